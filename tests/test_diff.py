"""The pull request's comment, from real revisions of a small DVC repository without data."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, shell

BASE = {
    "fid": {
        "scene": {"standard": {"fid": 4.0, "fid_lo": 3.5, "fid_hi": 4.5, "recall": 0.5, "n": 300}}
    },
    "llm": {"perplexity": 100.0, "perplexity_lo": 90.0, "perplexity_hi": 110.0, "tokens": 900},
}
CURVE = "step,train_loss,validation_loss\n0,,0.7\n10,0.6,0.65\n20,0.5,0.6\n"


IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@localhost"]


class Checkout:
    """A folder with a git repository whose commits hold params and metrics."""

    def __init__(self, folder: Path, environment: dict) -> None:
        self.folder = folder
        self.environment = {**environment, "PYTHONPATH": str(REPOSITORY)}

    def git(self, *arguments: str) -> None:
        finished = shell("git", *arguments, cwd=self.folder, env=self.environment)
        assert finished.returncode == 0, finished.stderr

    def commit(self, metrics: dict, guidance: float = 3.0, imagery: str = "a") -> None:
        """Replace the metrics and params of the last commit."""
        for old_file in (self.folder / "metrics").glob("*.json"):
            old_file.unlink()
        for name, numbers in metrics.items():
            (self.folder / f"metrics/{name}.json").write_text(json.dumps(numbers))
        (self.folder / "params.yaml").write_text(f"sampling:\n  guidance_scale: {guidance}\n")
        (self.folder / "metrics/plots/diffusion_loss.csv").write_text(CURVE)
        context = {"fid.scene.standard.fid": {"protocol": "standard", "n": 300, "imagery": imagery}}
        (self.folder / "metrics/context.json").write_text(json.dumps({"numbers": context}))
        lines = ["params: [params.yaml]"]
        if metrics:
            lines += ["metrics:", *(f"  - metrics/{name}.json" for name in metrics)]
        (self.folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
        self.git("add", "-A")
        self.git(*IDENTITY, "commit", "-qm", "run")

    def diff(self, revision: str):
        command = [sys.executable, "-m", "tools.diff", revision]
        return shell(*command, cwd=self.folder, env=self.environment)


@pytest.fixture
def clone(tmp_path, environment):
    """`clone(metrics)` makes a clone of a repository whose `main` holds these metrics."""

    def make(metrics: dict) -> Checkout:
        origin = Checkout(tmp_path / "origin", environment)
        for folder in ("metrics/plots", ".dvc"):
            (origin.folder / folder).mkdir(parents=True)
        (origin.folder / ".dvc/config").touch()
        (origin.folder / ".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n")
        origin.git("init", "-q", "-b", "main")
        origin.commit(metrics)
        origin.git("clone", "-q", ".", str(tmp_path / "clone"))
        return Checkout(tmp_path / "clone", environment)

    return make


def row(text: str, name: str) -> str:
    """The old and new values and the verdict of a metric's row."""
    match = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    assert match, f"{name} is not in\n{text}"
    return match.group(1)


def changed(**fid) -> dict:
    return {**BASE, "fid": {"scene": {"standard": {**BASE["fid"]["scene"]["standard"], **fid}}}}


def test_a_better_run(clone):
    here = clone(BASE)
    here.commit(changed(fid=2.0, fid_lo=1.5, fid_hi=2.5, recall=0.6), guidance=5.0)
    done = here.diff("origin/main")
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "fid `scene.standard.fid`") == "4 | 2 | ▼ **better**"
    assert row(done.stdout, "fid `scene.standard.recall`") == "0.5 | 0.6 | ▲ better, no interval"
    assert row(done.stdout, "llm `perplexity`") == "100 | 100 | the same"
    assert row(done.stdout, "`sampling.guidance_scale`") == "3 | 5 | "


def test_a_worse_run(clone):
    here = clone(BASE)
    here.commit(changed(fid=6.0, fid_lo=5.5, fid_hi=6.5, recall=0.4))
    text = here.diff("origin/main").stdout
    assert row(text, "fid `scene.standard.fid`") == "4 | 6 | ▲ **worse**"
    assert row(text, "fid `scene.standard.recall`") == "0.5 | 0.4 | ▼ worse, no interval"
    params = text.split("### Params")[1].split("### Metrics")[0]
    assert "|" not in params  # no table, as no param changed


def test_a_change_within_the_intervals_is_neither(clone):
    here = clone(BASE)
    here.commit(changed(fid=4.4, fid_lo=3.9, fid_hi=4.9, n=310))
    text = here.diff("origin/main").stdout
    assert row(text, "fid `scene.standard.fid`") == "4 | 4.4 | ▲ within the intervals"
    assert row(text, "fid `scene.standard.n`") == "300 | 310 | ▲"


def test_numbers_of_other_imagery_are_not_compared(clone):
    here = clone(BASE)
    here.commit(changed(fid=2.0, fid_lo=1.5, fid_hi=2.5, recall=0.6), imagery="b")
    text = here.diff("origin/main").stdout
    assert row(text, "fid `scene.standard.fid`") == "4 | 2 | not comparable: imagery: b and a"
    assert row(text, "fid `scene.standard.recall`") == "0.5 | 0.6 | ▲ better, no interval"


def test_metrics_come_and_go(clone):
    here = clone(BASE)
    here.commit({"fid": {"scene": {"standard": {"fid": 4.0, "kid_x1000": 20.0}}}})
    text = here.diff("origin/main").stdout
    assert row(text, "fid `scene.standard.kid_x1000`") == "- | 20 | new"
    assert row(text, "fid `scene.standard.recall`") == "0.5 | - | gone"
    assert row(text, "llm `perplexity`") == "100 | - | gone"


def test_a_base_without_metrics(clone):
    here = clone({})
    here.commit(BASE)
    done = here.diff("origin/main")
    assert done.returncode == 0, done.stderr
    _, *notes = done.stdout.split("### Params")[0].splitlines()
    assert any("`origin/main`" in note for note in notes)
    assert row(done.stdout, "llm `perplexity`") == "- | 100 | new"


def test_the_losses_of_both_are_drawn_over_one_another(clone):
    here = clone(BASE)
    (here.folder / "metrics/plots/diffusion_loss.csv").write_text(
        "step,train_loss,validation_loss\n0,,0.8\n16,0.5,0.4\n"
    )
    chart = here.diff("origin/main").stdout.split("```mermaid\n")[1].split("```")[0]
    title = re.search('title "(.*)"', chart)[1]
    assert all(name in title for name in ("validation_loss", "diffusion_loss", "origin/main"))
    assert 'x-axis "step" 0 --> 16' in chart
    curves = re.findall(r"line \[(.*)\]", chart)
    old, new = ([float(value) for value in values.split(",")] for values in curves)
    # At steps that both have, with linear interpolation.
    assert len(old) == len(new) == 25
    assert (old[0], old[15], new[0], new[-1]) == (0.7, 0.65, 0.8, 0.4)


def test_an_unknown_revision_is_one_line(clone):
    done = clone(BASE).diff("nosuch")
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and "nosuch" in done.stderr
        and "fetch-depth: 0" in done.stderr
    )
