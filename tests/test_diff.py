"""The pull request's comment, from real revisions of a small DVC repository: metrics in git, no data."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, shell

BASE = {
    "fid": {
        "scene": {"standard": {"fid": 4.0, "fid_lo": 3.5, "fid_hi": 4.5, "recall": 0.5, "n": 300}}
    },
    "llm": {"perplexity": 100.0, "perplexity_lo": 90.0, "perplexity_hi": 110.0, "tokens": 900},
}
CURVE = "step,train_loss,validation_loss\n0,,0.7\n10,0.6,0.65\n20,0.5,0.6\n"


@pytest.fixture
def clone(tmp_path, environment):
    """`clone(metrics)`: a clone of a repository whose `main` holds them; then `commit` others on top and `diff` the two."""
    origin, copy = tmp_path / "origin", tmp_path / "clone"

    def commit(metrics: dict, guidance: float = 3.0, imagery: str = "a", where=copy) -> None:
        for old in (where / "metrics").glob("*.json"):
            old.unlink()
        for name, numbers in metrics.items():
            (where / f"metrics/{name}.json").write_text(json.dumps(numbers))
        (where / "params.yaml").write_text(f"sampling:\n  guidance_scale: {guidance}\n")
        (where / "metrics/plots/diffusion_loss.csv").write_text(CURVE)
        context = {"fid.scene.standard.fid": {"protocol": "standard", "n": 300, "imagery": imagery}}
        (where / "metrics/context.json").write_text(json.dumps({"numbers": context}))
        listed = [
            "params: [params.yaml]",
            *(["metrics:"] if metrics else []),
            *(f"  - metrics/{name}.json" for name in metrics),
        ]
        (where / "dvc.yaml").write_text("\n".join(listed) + "\n")
        for words in (
            ["add", "-A"],
            ["-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "run"],
        ):
            assert shell("git", *words, cwd=where, env=environment).returncode == 0

    def diff(*words: str):
        return shell(
            sys.executable,
            "-m",
            "tools.diff",
            *words,
            cwd=copy,
            env={**environment, "PYTHONPATH": str(REPOSITORY)},
        )

    def make(base: dict) -> SimpleNamespace:
        for folder in ("metrics/plots", ".dvc"):
            (origin / folder).mkdir(parents=True)
        (origin / ".dvc/config").touch()
        (origin / ".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n")
        shell("git", "init", "-q", "-b", "main", cwd=origin, env=environment)
        commit(base, where=origin)
        assert (
            shell(
                "git", "clone", "-q", str(origin), str(copy), cwd=tmp_path, env=environment
            ).returncode
            == 0
        )
        return SimpleNamespace(folder=copy, commit=commit, diff=diff)

    return make


def row(text: str, name: str) -> str:
    """The verdict of a metric's row, and the numbers it stands on."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    assert found, f"{name} is not in\n{text}"
    return found.group(1)


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
    assert "No change." in text.split("### Metrics")[0]


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
    assert (
        "`origin/main` has no metrics to compare with." in done.stdout
        and row(done.stdout, "llm `perplexity`") == "- | 100 | new"
    )


def test_the_losses_of_both_are_drawn_over_one_another(clone):
    here = clone(BASE)
    (here.folder / "metrics/plots/diffusion_loss.csv").write_text(
        "step,train_loss,validation_loss\n0,,0.8\n16,0.5,0.4\n"
    )
    chart = here.diff("origin/main").stdout.split("```mermaid\n")[1].split("```")[0]
    assert (
        'title "validation_loss of diffusion_loss: origin/main, then here"' in chart
        and 'x-axis "step" 0 --> 16' in chart
    )
    base, ours = (
        [float(value) for value in values.split(",")]
        for values in re.findall(r"line \[(.*)\]", chart)
    )
    # At steps that both have, between the measured ones by a straight line.
    assert len(base) == len(ours) == 25 and (base[0], base[15], ours[0], ours[-1]) == (
        0.7,
        0.65,
        0.8,
        0.4,
    )


def test_an_unknown_revision_is_one_line(clone):
    done = clone(BASE).diff("nosuch")
    assert (
        done.returncode == 1
        and done.stderr.strip().startswith("error: diff: nosuch is no revision")
        and "\n" not in done.stderr.strip()
    )
