"""The pull request's comment, from real revisions of a small DVC repository without data."""

import json
import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from conftest import REPOSITORY, shell

from stages.common.artifacts import digest
from tools import diff

IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
CURVE = "step,train_loss,validation_loss\n0,,0.7\n10,0.6,0.65\n20,0.5,0.6\n"


def interval(key: str, value: float, margin: float) -> dict[str, float]:
    return {key: value, f"{key}_lo": value - margin, f"{key}_hi": value + margin}


METRICS = {
    "fid": {"scene": {"standard": interval("fid", 4.0, 0.5) | {"recall": 0.5, "n": 300}}},
    "llm": interval("perplexity", 100.0, 10) | {"tokens": 900},
    "diffusion": {"validation_loss": 0.6},
}
MEASURED_ON: dict[str, dict] = {
    "fid.scene.standard": {"n": 300, "test_tiles": "a"},
    "llm": {"held_out_text": "a"},
    "diffusion": {"validation_tiles": "a"},
}


class Checkout:
    """A folder with a git repository whose commits hold params and metrics."""

    def __init__(self, folder: Path, environment: dict) -> None:
        self.folder = folder
        self.environment = {**environment, "PYTHONPATH": str(REPOSITORY)}

    def git(self, *arguments: str) -> str:
        finished = shell("git", *arguments, cwd=self.folder, env=self.environment)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def commit(
        self,
        metrics: dict,
        measured_on: dict = MEASURED_ON,
        guidance: float = 3.0,
        words: str = "FID",
        model: str | None = "first",
    ) -> str:
        """Replace the metrics and params of the last commit. Returns the new one, abbreviated.

        `model` is the hash of all trained models; None: there is no dvc.lock.
        """
        for old_file in (self.folder / "metrics").glob("*.json"):
            old_file.unlink()
        for name, numbers in metrics.items():
            (self.folder / f"metrics/{name}.json").write_text(json.dumps(numbers))
        (self.folder / "params.yaml").write_text(f"sampling:\n  guidance_scale: {guidance}\n")
        (self.folder / "metrics/plots/diffusion_loss.csv").write_text(CURVE)
        context = {"numbers": {"fid": {"metric": words}}, "measured_on": measured_on}
        (self.folder / "metrics/context.json").write_text(json.dumps(context))
        outs = [{"path": f"models/{name}", "md5": model} for name in ("diffusion", "llm", "scene")]
        lock = {"schema": "2.0", "stages": {"train": {"cmd": "true", "outs": outs}}}
        (self.folder / "dvc.lock").write_text(json.dumps(lock if model else {"schema": "2.0"}))
        lines = ["params: [params.yaml]"]
        if metrics:
            lines += ["metrics:", *(f"  - metrics/{name}.json" for name in metrics)]
        (self.folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
        self.git("add", "-A")
        self.git(*IDENTITY, "commit", "-qm", "run")
        return self.git("rev-parse", "--short=7", "HEAD")

    def run(self, revision: str):
        command = [sys.executable, "-m", "tools.diff", revision]
        return shell(*command, cwd=self.folder, env=self.environment)

    def diff(self, revision: str = "origin/main") -> str:
        finished = self.run(revision)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout


@pytest.fixture
def clone(tmp_path, environment):
    """`clone(metrics)` makes a clone of a repository whose `main` holds these metrics."""

    def make(metrics: dict = METRICS, measured_on: dict = MEASURED_ON) -> Checkout:
        origin = Checkout(tmp_path / "origin", environment)
        for folder in ("metrics/plots", ".dvc"):
            (origin.folder / folder).mkdir(parents=True)
        (origin.folder / ".dvc/config").touch()
        (origin.folder / ".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n")
        origin.git("init", "-q", "-b", "main")
        origin.commit(metrics, measured_on)
        origin.git("clone", "-q", ".", str(tmp_path / "clone"))
        return Checkout(tmp_path / "clone", environment)

    return make


def row(text: str, name: str) -> str:
    """The old and new values and the verdict of a metric's row."""
    match = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    assert match, f"{name} is not in\n{text}"
    return match.group(1)


def is_judged(text: str) -> bool:
    return re.search(r"\b(better|worse)\b", text) is not None


# What is measured on the same -------------------------------------------------------------------


def test_only_headlines_are_judged_and_only_by_disjoint_intervals(clone):
    near = interval("fid", 4.0, 0.5) | interval("recall", 0.5, 0.1)
    far = interval("fid", 2.0, 0.5) | interval("recall", 0.3, 0.05)
    shared = {"n": 300, "spread": 2} | interval("precision", 0.5, 0.01)
    old = {
        "fid": {"scene": {"standard": near | shared}, "efficientnet": {"standard": near}},
        "caption_agreement": interval("caption_agreement", 0.5, 0.1)
        | {
            "per_scene": {"lake": 0.5},
            "per_scene_lo": {"lake": 0.4},
            "per_scene_hi": {"lake": 0.6},
        },
        # As 7 of 9 and 8 of 9 in every repetition: the spread was not seen.
        "classify_lulc": {"real_test": interval("overall_accuracy", 7 / 9, 0)},
        "llm": interval("perplexity", 100.0, 10),
    }
    measured_on = dict.fromkeys(
        ["fid.scene", "fid.efficientnet", "caption_agreement", "classify_lulc", "llm"], {"n": 300}
    )
    here = clone(old, measured_on)
    changed = {"n": 300.0, "spread": 3} | interval("precision", 0.9, 0.01)
    new = {
        "fid": {"scene": {"standard": far | changed}, "efficientnet": {"standard": far}},
        "caption_agreement": interval("caption_agreement", 0.7, 0.1)
        | {
            "per_scene": {"lake": 0.8},
            "per_scene_lo": {"lake": 0.7},
            "per_scene_hi": {"lake": 0.9},
        },
        "classify_lulc": {"real_test": interval("overall_accuracy", 8 / 9, 0)},
        "llm": {"perplexity": 50.0},
    }
    # The words of metrics/context.json are no part of what was measured.
    here.commit(new, measured_on, guidance=5.0, words="Frechet distance")
    text = here.diff()
    for name, verdict in (
        ("fid `scene.standard.fid`", "4 [3.5, 4.5] | 2 [1.5, 2.5] | ▼ **better**"),
        ("fid `scene.standard.recall`", "0.5 [0.4, 0.6] | 0.3 [0.25, 0.35] | ▼ **worse**"),
        ("llm `perplexity`", "100 [90, 110] | 50 | ▼ no 95 % CI"),
        # Not judged, however far apart:
        ("fid `efficientnet.standard.fid`", "4 [3.5, 4.5] | 2 [1.5, 2.5] | ▼"),
        ("fid `scene.standard.precision`", "0.5 [0.49, 0.51] | 0.9 [0.89, 0.91] | ▲"),
        ("fid `scene.standard.spread`", "2 | 3 | ▲"),
        ("caption_agreement `per_scene.lake`", "0.5 [0.4, 0.6] | 0.8 [0.7, 0.9] | ▲"),
    ):
        assert row(text, name) == verdict
    agreement = row(text, "caption_agreement `caption_agreement`")
    assert agreement == "0.5 [0.4, 0.6] | 0.7 [0.6, 0.8] | ▲ the 95 % CIs overlap"
    assert row(text, "classify_lulc `real_test.overall_accuracy`").endswith("▲ no 95 % CI")
    assert len(re.findall(r"\*\*(better|worse)", text)) == 2
    assert "`scene.standard.n`" not in text, "300 and 300.0 are the same"
    assert "_lo`" not in text and "_lo." not in text, "the interval stands in its number's row"
    assert row(text, "`sampling.guidance_scale`") == "3 | 5 | "


@pytest.mark.parametrize(
    "model, metric, differs",
    [
        ("diffusion", "classify_lulc.real_test.overall_accuracy", True),
        ("llm", "classify_lulc.real_test.overall_accuracy", True),  # it may write the prompts
        ("scene", "classify_lulc.real_test.overall_accuracy", True),  # it may choose the images
        ("diffusion", "fid.scene.standard.fid", True),
        ("llm", "fid.scene.standard.fid", False),
        ("diffusion", "llm.perplexity", False),
        ("llm", "llm.perplexity", True),
    ],
)
def test_another_training_counts_where_it_is_behind_a_metric(model, metric, differs):
    old = {f"models/{name}": "first" for name in ("diffusion", "llm", "scene")}
    runs = diff.Runs({}, {}, old, old | {f"models/{model}": "second"})
    assert runs.may_differ_by_training(metric) == differs


@pytest.mark.parametrize("model, seeds", [("first", 3), ("first", 1), ("second", 3), (None, 3)])
def test_two_trainings_are_not_judged(clone, model, seeds):
    """The demo's accuracies with two seeds, on 1,000 tiles: 0.645 and 0.731."""
    old, new = (
        {"classify_lulc": {"real_test": interval("overall_accuracy", value, 0.03)}}
        for value in (0.645, 0.731)
    )
    measured_on = {"classify_lulc": {"n": 1000, "seeds": seeds}}
    here = clone(old, measured_on)
    here.commit(new, measured_on, model=model)
    text = here.diff()
    cells = row(text, "classify_lulc `real_test.overall_accuracy`")
    is_same = model == "first" and seeds > 1
    assert cells.endswith("▲ **better**" if is_same else "don't overlap; one training each")
    assert ("not another training" in text) != is_same
    assert is_judged(cells) == is_same


def test_a_floor_has_a_prediction_interval_and_is_of_training_tiles(clone):
    floors = interval("fid_floor", 0.5, 0.25) | {"n_floor_other_scene": 2}
    metrics = {
        "fid": {
            "scene": {
                "standard": interval("fid", 4.0, 0.5) | floors,
                "separability": {"accuracy": 0.75, "accuracy_floor": 0.5},
            }
        }
    }
    measured_on = {"fid.scene": {"test_tiles": "a", "floor_tiles": "a"}}
    here = clone(metrics, measured_on)
    new = deepcopy(metrics)
    new["fid"]["scene"]["standard"]["fid_floor"] = 0.625
    new["fid"]["scene"]["separability"] = {"accuracy": 0.625, "accuracy_floor": 0.625}
    here.commit(new, measured_on)
    floor = "0.5 [PI 0.25, 0.75] | 0.625 [PI 0.25, 0.75]"
    assert row(here.diff(), "fid `scene.standard.fid_floor`") == f"{floor} | ▲"
    here.commit(new, {"fid.scene": {"test_tiles": "a", "floor_tiles": "b"}})
    text = here.diff()
    assert row(text, "fid `scene.standard.fid_floor`") == f"{floor} | not comparable"
    cells = row(text, "fid `scene.separability.accuracy_floor`")
    assert cells == "0.5 | 0.625 | not comparable"
    assert row(text, "fid `scene.separability.accuracy`") == "0.75 | 0.625 | ▼"
    assert row(text, "fid `scene.standard.fid`").endswith("| the same")


def test_text_of_params_keeps_its_cell_and_mentions_nobody(clone):
    here = clone()
    params = {"guidance_scale": 3.0, "cues": "a | b\n@octocat <b> me@host"}
    (here.folder / "params.yaml").write_text(json.dumps({"sampling": params}))
    cells = row(here.diff(), "`sampling.cues`")
    assert cells == "- | a \\| b @&#8203;octocat \\<b\\> me@host | "


def test_metrics_come_and_go(clone):
    here = clone()
    here.commit({"fid": {"scene": {"standard": {"fid": 4.0, "kid_x1000": 20.0}}}})
    text = here.diff()
    assert row(text, "fid `scene.standard.fid`") == "4 [3.5, 4.5] | 4 | the same"
    assert row(text, "fid `scene.standard.kid_x1000`") == "- | 20 | new"
    assert row(text, "fid `scene.standard.recall`") == "0.5 | - | gone"
    assert row(text, "llm `perplexity`") == "100 [90, 110] | - | gone"
    params = text.split("### Params")[1].split("### Metrics")[0]
    assert "|" not in params  # no table, as no param changed


def test_a_base_without_metrics(clone):
    here = clone({})
    here.commit(METRICS)
    text = here.diff()
    assert "`origin/main` has no metrics" in text
    assert row(text, "llm `perplexity`") == "- | 100 [90, 110] | new"


# What is not ------------------------------------------------------------------------------------


def test_numbers_of_other_data_are_not_compared(clone):
    here = clone()
    measured_on = deepcopy(MEASURED_ON)
    measured_on["fid.scene.standard"] |= {"n": 256, "tiles_px": 64}
    measured_on["diffusion"]["validation_tiles"] = "b"
    del measured_on["llm"]
    metrics = deepcopy(METRICS)
    metrics["fid"]["scene"]["standard"] |= interval("fid", 2.0, 0.5) | {"n": 256}
    metrics["llm"] = interval("perplexity", 50.0, 10) | {"tokens": 900}
    metrics["diffusion"]["validation_loss"] = 0.4
    here.commit(metrics, measured_on)
    text = here.diff()
    assert not is_judged(text)
    fid = row(text, "fid `scene.standard.fid`")
    assert fid.startswith("4 [3.5, 4.5] | 2 [1.5, 2.5] | not comparable: ")
    assert "n 256, was 300" in fid and "tiles 64 px, was none" in fid and "test tiles" not in fid
    loss = row(text, "diffusion `validation_loss`")
    assert loss == "0.6 | 0.4 | not comparable", "the reason is said of headlines alone"
    assert "of diffusion_loss is not comparable: other validation tiles" in text
    assert row(text, "llm `perplexity`").endswith("| not described in context.json")
    assert "mermaid" not in text, "the two curves are not drawn in one chart"


def test_runs_at_two_scales_are_not_compared(clone, smoke):
    """Every number of a finished run, against itself with another judge, then on other tiles."""
    names = [path.stem for path in (smoke / "metrics").glob("*.json") if path.stem != "context"]
    old = {name: json.loads((smoke / f"metrics/{name}.json").read_text()) for name in names}
    measured_on = json.loads((smoke / "metrics/context.json").read_text())["measured_on"]
    here = clone(old, measured_on)

    def halved(value):
        if isinstance(value, dict):
            return {key: halved(part) for key, part in value.items()}
        return value / 2

    new = halved(old)
    here.commit(new, measured_on)
    assert is_judged(here.diff()), "the same tiles: the comparison is one"
    judge = digest(smoke / "models/scene")
    on_another_judge = deepcopy(measured_on)
    judged = {key for key, entry in measured_on.items() if entry.get("extractor") == judge}
    assert judged >= {"fid.scene.standard", "images.scene.tuned", "caption_agreement"}
    for key in judged:
        on_another_judge[key]["extractor"] = "other"
    here.commit(new, on_another_judge)
    text = here.diff()
    reason = "not comparable: other weights of the feature extractor"
    assert row(text, "fid `scene.standard.fid`").endswith(reason)
    assert reason not in row(text, "llm `perplexity`")
    on_other_inputs = deepcopy(measured_on)
    for entry in on_other_inputs.values():
        entry.update(dict.fromkeys(entry.keys() - {"device"}, "other"))
    here.commit(new, on_other_inputs)
    text = here.diff()
    assert not is_judged(text) and "not comparable: other test tiles" in text
    here.commit(new, {})
    text = here.diff()
    assert not is_judged(text) and "not described in context.json" in text


def test_another_device_alone_makes_nothing_better(clone):
    """It is named beside the verdict."""
    measured_on = deepcopy(MEASURED_ON)
    for entry in measured_on.values():
        entry["device"] = {"finetune_sd": "cpu with 2 threads"}
    here = clone(METRICS, measured_on)
    measured_on["diffusion"]["device"] = {"finetune_sd": "gpu"}
    measured_on["fid.scene.standard"]["device"] = {"finetune_sd": "gpu"}
    metrics = deepcopy(METRICS)
    metrics["fid"]["scene"]["standard"] |= interval("fid", 2.0, 0.5)
    metrics["diffusion"]["validation_loss"] = 0.4
    metrics["llm"] = interval("perplexity", 50.0, 10) | {"tokens": 900}
    here.commit(metrics, measured_on, model="second")
    text = here.diff()
    device = "finetune_sd on gpu, was cpu with 2 threads"
    assert device in text.split("### Params")[0]
    cells = "| ▼ the 95 % CIs don't overlap; one training each"
    assert row(text, "fid `scene.standard.fid`").endswith(f"{cells}; {device}")
    assert row(text, "diffusion `validation_loss`") == "0.6 | 0.4 | ▼"
    assert row(text, "llm `perplexity`").endswith(cells)


# Which commit -----------------------------------------------------------------------------------


def test_the_merge_base_is_compared_and_named(clone, tmp_path, environment):
    here = clone()
    base = here.git("rev-parse", "--short=7", "HEAD")
    metrics = deepcopy(METRICS)
    metrics["diffusion"]["validation_loss"] = 0.3
    origin = Checkout(tmp_path / "origin", environment)
    origin.commit(metrics, guidance=9.0)
    here.git("fetch", "-q")
    here.commit(METRICS, guidance=5.0)
    text = here.diff()
    assert f"`{base}`" in text.split("### Params")[0]
    # Not what `main` did since: its guidance of 9 and its loss of 0.3.
    assert row(text, "`sampling.guidance_scale`") == "3 | 5 | "
    assert "validation_loss`" not in text, "it is the same"

    # A branch that builds on this commit: nothing but uncommitted changes is compared.
    here.git("reset", "-q", "--hard", base)
    assert "not committed" in here.diff()


def test_the_losses_of_both_are_drawn_over_one_another(clone):
    here = clone()
    (here.folder / "metrics/plots/diffusion_loss.csv").write_text(
        "step,train_loss,validation_loss\n4,,0.8\n16,0.5,0.4\n"
    )
    chart = here.diff().split("```mermaid\n")[1].split("```")[0]
    title = re.search('title "(.*)"', chart)[1]
    assert all(name in title for name in ("validation_loss", "diffusion_loss", "here"))
    assert 'x-axis "step" 4 --> 16' in chart
    curves = re.findall(r"line \[(.*)\]", chart)
    old, new = ([float(value) for value in values.split(",")] for values in curves)
    # At steps that both have, with linear interpolation.
    assert len(old) == len(new) == 25
    assert (old[0], old[12]) == (0.68, 0.65)
    assert (new[0], new[12], new[-1]) == (0.8, 0.6, 0.4)


# What can't be read -----------------------------------------------------------------------------


@pytest.fixture
def refuse(monkeypatch, capsys):
    """`refuse(checkout, revision)` runs the tool in this process and returns its error."""

    def run(checkout: Checkout, revision: str) -> str:
        monkeypatch.chdir(checkout.folder)
        monkeypatch.setattr(sys, "argv", ["diff", revision])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the tool installs its own
        with pytest.raises(SystemExit) as stop:
            diff.main()
        assert not capsys.readouterr().out
        error = str(stop.value.code)
        assert error.startswith("error: ") and "\n" not in error
        return error

    return run


def test_what_cannot_be_read_is_an_error_of_one_line(clone, refuse):
    here = clone()
    for path, content, named in (
        ("metrics/llm.json", '{"perplexity": 90.0,', "not valid JSON"),
        ("metrics/llm.json", '{"perplexity": NaN}', "perplexity: nan"),
        ("metrics/llm.json", '{"perplexity": [90.0]}', "perplexity: [90.0]"),
        ("metrics/llm.json", None, "missing"),
        ("metrics/context.json", "<<<<<<< HEAD", "not valid JSON"),
        ("params.yaml", "sampling: [", "params.yaml"),
        ("metrics/plots/diffusion_loss.csv", "step,validation_loss\n0,low\n", "low"),
    ):
        file = here.folder / path
        before = file.read_text()
        file.write_text(content) if content else file.unlink()
        error = refuse(here, "origin/main")
        assert path in error and named in error
        file.write_text(before)


def test_what_a_base_cannot_show_is_an_error(clone, refuse, tmp_path, environment):
    here = clone()
    (here.folder / "metrics/llm.json").write_text("<<<<<<< HEAD")
    (here.folder / "dvc.yaml").write_text("metrics: [metrics/llm.json]\n")
    here.git(*IDENTITY, "commit", "-qam", "a conflict")
    base = here.git("rev-parse", "--short=7", "HEAD")
    here.commit(METRICS)
    error = refuse(here, "HEAD~1")
    assert "metrics/llm.json" in error and base in error

    # DVC's own message, where it can't read the pipeline of the base.
    (here.folder / "dvc.yaml").write_text("stages: [\n")
    here.git(*IDENTITY, "commit", "-qam", "no YAML")
    base = here.git("rev-parse", "--short=7", "HEAD")
    here.commit(METRICS)
    done = here.run("HEAD~1")
    assert done.returncode == 1 and not done.stdout
    assert base in done.stderr.splitlines()[-1] and "YAML" in done.stderr.splitlines()[-1]

    # A shallow clone without the merge base; a branch without one; no such revision.
    here.git("push", "-q", "origin", "HEAD:refs/heads/topic")
    shallow = Checkout(tmp_path / "shallow", environment)
    url = f"file://{tmp_path}/origin"
    here.git("clone", "-q", "--depth=1", "--no-single-branch", "-b", "topic", url, shallow.folder)
    here.git("checkout", "-q", "--orphan", "unrelated")
    here.git(*IDENTITY, "commit", "-qm", "unrelated")
    for checkout, revision, named in (
        (shallow, "main", "in common; this clone is shallow: `git fetch --unshallow`"),
        (here, "main", "no commit in common"),
        (here, "nosuch", "nosuch"),
    ):
        assert named in refuse(checkout, revision)
