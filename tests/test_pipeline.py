"""`dvc repro` of the whole pipeline at smoke scale, then what a second run and new params do."""

import json
import math
import re
import shlex
import shutil
from functools import cache

import audit
import pytest
import tracing
import yaml
from conftest import REPOSITORY, copy_repository, shell

from stages.params import LULC_CLASSES

STAGES = audit.pipeline()
SECTIONS = list(
    dict.fromkeys(param.split(".")[0] for stage in STAGES.values() for param in stage["params"])
)


@cache
def followers() -> dict[str, set[str]]:
    """stage -> the stages that read its outputs, by DVC's own graph."""
    edges = re.findall(r'"(.*?)" -> "(.*?)"', shell("dvc", "dag", "--dot", cwd=REPOSITORY).stdout)
    readers = {stage: set() for stage in STAGES}
    for maker, reader in edges:
        readers[maker.split("@")[0]].add(reader.split("@")[0])
    return readers


def stages_that_read(section: str) -> list[str]:
    """The stages that declare a section of the params."""
    return [
        name
        for name, stage in STAGES.items()
        if any(param.split(".")[0] == section for param in stage["params"])
    ]


def section_table() -> str:
    """The table of docs/experiments.md: what a change of a section reruns."""
    lines = [
        "| section | stages that read it and rerun | stages that rerun if their inputs changed |",
        "|---|---|---|",
    ]
    for section in SECTIONS:
        direct = stages_that_read(section)
        reached = set()
        waiting = list(direct)
        while waiting:
            stage = waiting.pop()
            if stage not in reached:
                reached.add(stage)
                waiting += followers()[stage]
        later = [name for name in STAGES if name in reached - set(direct)]
        lines.append(f"| `{section}` | {', '.join(direct)} | {', '.join(later)} |")
    return "\n".join(lines)


def stages_that_would_run(copy, environment) -> set[str]:
    done = shell("dvc", "repro", "--dry", cwd=copy, env=environment)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"Running stage '([^']+)'", done.stdout))


@pytest.fixture
def changed(smoke, environment):
    """Change lines of params.yaml for one test."""
    original = (smoke / "params.yaml").read_text()

    def change(old: str, new: str) -> set[str]:
        assert old in original, "the test's own premise"
        (smoke / "params.yaml").write_text(original.replace(old, new, 1))
        return stages_that_would_run(smoke, environment)

    yield change
    (smoke / "params.yaml").write_text(original)


def test_every_stage_ran_offline(smoke):
    lock = yaml.safe_load((smoke / "dvc.lock").read_text())["stages"]
    declared = set()
    for name, entry in yaml.safe_load((smoke / "dvc.yaml").read_text())["stages"].items():
        declared |= (
            {f"{name}@{item}" for item in entry["foreach"]} if "foreach" in entry else {name}
        )
    assert set(lock) == declared


traced = pytest.mark.skipif(
    not tracing.available(),
    reason="no strace here, or not allowed to trace: apt-get install strace",
)


@traced
def test_every_file_that_a_stage_opens_is_declared(smoke):
    lock = yaml.safe_load((smoke / "dvc.lock").read_text())["stages"]
    traces = smoke.parent / "traces"
    read = {
        name: tracing.opened(traces / stage["cmd"].removeprefix("python "), smoke)
        for name, stage in lock.items()
    }
    # The traces show what each stage must read: its script, tables opened by C++, weights by Rust.
    assert all(any(file.startswith("stages/") for file in files) for files in read.values())
    assert (
        "data/imagery/test/00000.parquet" in read["features@real"]
        and "models/scene/model.safetensors" in read["features@real"]
    )
    undeclared = {
        name: tracing.undeclared(files, lock[name], smoke) for name, files in read.items()
    }
    assert not {name: files for name, files in undeclared.items() if files}, (
        "read, but neither deps nor outs"
    )


@traced
def test_the_trace_shows_a_stage_that_reads_an_undeclared_file(tmp_path):
    """The same check on a stage that reads one declared and four undeclared files.

    Python, a child process, C++ and an import open them.
    """
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("declared.csv", "undeclared.csv", "child.csv", "arrow.csv"):
        (root / name).write_text("x\n1\n")
    (root / "part").mkdir()
    for name in ("__init__", "helper", "bystander"):
        (root / f"part/{name}.py").touch()
    (root / "stage.py").write_text("""
import importlib, subprocess, pyarrow.csv
open("part/bystander.py"), importlib.import_module("part.helper")
open("declared.csv"), open("undeclared.csv"), open("new", "w"), open("new")
subprocess.run(["cat", "child.csv"])
pyarrow.csv.read_csv("arrow.csv")
""")
    tracing.install(tmp_path / "shim", tmp_path / "traces")
    done = shell(str(tmp_path / "shim/python"), "stage.py", cwd=root)
    assert done.returncode == 0, done.stderr
    stage = {"cmd": "python stage.py", "deps": [{"path": "declared.csv"}]}
    files = tracing.opened(tmp_path / "traces/stage.py", root)
    assert tracing.undeclared(files, stage, root) == [
        "arrow.csv",
        "child.csv",
        "part/helper.py",
        "undeclared.csv",
    ]


def test_nothing_to_do(smoke, environment):
    done = shell("dvc", "repro", cwd=smoke, env=environment)
    assert done.returncode == 0 and "Running stage" not in done.stdout
    listed = shell(
        "git", "status", "--porcelain", "--untracked-files=all", "--", "data", "models", cwd=smoke
    ).stdout.splitlines()
    stray = [line for line in listed if not line.endswith((".gitignore", "data/papers_report.csv"))]
    assert not stray, "an output is neither in git nor ignored by DVC"


def test_guidance_scale_reruns_what_samples_and_nothing_that_trains_a_generator(changed):
    ran = changed("guidance_scale: 3.0", "guidance_scale: 4.0")
    # `--dry` runs nothing: it names the stages that read the param, and may name those that follow.
    names = {stage.split("@")[0] for stage in ran}
    assert (
        {"sample", "generate"}
        <= names
        <= {"sample", "generate", "features", "fid", "classify", "review_page", "review", "report"}
    )
    assert "features@real" not in ran


@pytest.mark.parametrize(
    ("old", "new", "first", "untouched"),
    [
        (
            "min_characters: 500",
            "min_characters: 400",
            {"chunk"},
            {"index_rag", "finetune_sd", "encode", "scrape"},
        ),
        ("gallery_per_class: 2", "gallery_per_class: 3", {"report"}, {"fid", "sample", "review"}),
        (
            "Woody Vegetation: [forest]",
            "Woody Vegetation: [forest, parking]",
            {"classify", "ceiling"},
            {"fetch_imagery", "sample", "generate"},
        ),
        ("subsets: 4", "subsets: 5", {"fid"}, {"features", "sample", "classify"}),
        (
            "ema_decay: 0.99",
            "ema_decay: 0.9",
            {"finetune_sd"},
            {"encode", "prompt", "ceiling", "train_scene"},
        ),
    ],
)
def test_only_stages_that_depend_on_a_param_run(changed, old, new, first, untouched):
    ran = {stage.split("@")[0] for stage in changed(old, new)}
    assert first <= ran and not ran & untouched


def test_the_documented_table_is_the_dag():
    assert section_table() in (REPOSITORY / "docs/experiments.md").read_text(), (
        f"docs/experiments.md should hold:\n{section_table()}"
    )


def test_the_documented_graph_is_the_dag():
    assert (
        shell("dvc", "dag", "--md", cwd=REPOSITORY).stdout.strip()
        in (REPOSITORY / "docs/pipeline.md").read_text()
    ), "docs/pipeline.md should hold what `dvc dag --md` prints"


def changed_value(value):
    """The same section or value, with every leaf changed."""
    if isinstance(value, dict):
        return {key: changed_value(inner) for key, inner in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value + 1
    return f"not {value}"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_changed_section_reaches_its_readers_and_nothing_else(section, smoke, environment):
    path = smoke / "params.yaml"
    original = path.read_text()
    params = yaml.safe_load(original)

    params[section] = changed_value(params[section])
    path.write_text(yaml.safe_dump(params))
    try:
        ran = stages_that_would_run(smoke, environment)
    finally:
        path.write_text(original)
    # `--dry` names the stages that read the params; what follows depends on their new outputs.
    assert {stage.split("@")[0] for stage in ran} == set(stages_that_read(section))


def leaves(value) -> list:
    """The values of nested dicts."""
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [value]


def test_metrics_have_their_names_and_are_finite(smoke):
    read = {path.stem: json.loads(path.read_text()) for path in (smoke / "metrics").glob("*.json")}
    numbers = [
        number for name, metrics in read.items() if name != "context" for number in leaves(metrics)
    ]
    assert all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    assert {"perplexity", "perplexity_base", "train_loss", "tokens", "trainable_share"} <= set(
        read["llm"]
    )
    assert {"train_loss", "validation_loss", "validation_loss_base", "best_step"} <= set(
        read["diffusion"]
    )
    assert {"fid", "fid_floor", "fid_base", "kid_x1000", "precision", "recall", "n"} <= set(
        read["fid"]["scene"]["standard"]
    )
    assert {"caption_agreement", "ceiling"} <= set(read["caption_agreement"])
    for key in ("lulc", "scenes"):
        for part in ("synthetic_test", "real_test"):
            assert {"loss", "average_accuracy", "f1", "jaccard", "overall_accuracy", "n"} <= set(
                read[f"classify_{key}"][part]
            )
        assert (
            0 < read[f"classify_{key}"]["chance"] < 1
            and "overall_accuracy" in read[f"ceiling_{key}"]
        )
    assert {"count", "distinct_2", "class_agreement", "rejected"} <= set(
        read["prompts"]["extractive"]["retrieval"]
    )
    assert {"corpus", "review"} <= set(read)


def test_synthetic_data_set_loads_with_datasets(smoke):
    import datasets

    loaded = datasets.load_dataset(
        "parquet",
        data_dir=str(smoke / "data/synthetic"),
        split="train",
        cache_dir=str(smoke / "tmp"),
    )
    params = yaml.safe_load((smoke / "params.yaml").read_text())
    assert (
        len(loaded)
        == sum(params["prompt"]["per_class"].values()) * params["generate"]["images_per_prompt"]
    )
    assert loaded[0]["image"].size == (32, 32) and set(loaded["label"]) == set(LULC_CLASSES)


def test_tuned_model_is_a_stable_diffusion_pipeline(smoke):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(smoke / "models/diffusion")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a lake", num_inference_steps=2, height=32, width=32).images[0]
    assert image.size == (32, 32)


def test_dvc_reads_metrics_and_plots(smoke, environment):
    shown = json.loads(
        shell("dvc", "metrics", "show", "--json", cwd=smoke, env=environment).stdout
    )[""]["data"]
    assert shown["metrics/fid.json"]["data"]["scene"]["standard"]["n"] > 0
    done = shell("dvc", "plots", "show", "-o", "plots_page", cwd=smoke, env=environment)
    assert done.returncode == 0, done.stderr
    page = (smoke / "plots_page/index.html").read_text()
    for shown in (
        "Diffusion loss",
        "validation_loss",
        "Language model loss",
        "Land cover of real tiles",
        "base_tuned.jpg",
        "figures.jpg",
    ):
        assert shown in page, shown
    shutil.rmtree(smoke / "plots_page")


@pytest.fixture
def committed(smoke, environment, tmp_path):
    """A clone whose last commit is the smoke run, with its cache; and `run` for commands in it."""
    clone = tmp_path / "clone"

    def run(*command: str, **options) -> str:
        identity = {
            f"GIT_{who}_{what}": "test"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        done = shell(*command, cwd=clone, env={**environment, **identity}, **options)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    assert shell("git", "clone", "-q", str(smoke), str(clone), cwd=tmp_path).returncode == 0
    for name in shell(
        "git", "ls-files", "-mo", "--exclude-standard", cwd=smoke
    ).stdout.splitlines():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(smoke / name, clone / name)
    run("git", "add", "-A")
    run("git", "commit", "-qm", "run")
    run("dvc", "config", "--local", "cache.dir", str(smoke / ".dvc/cache"))
    run("dvc", "checkout", "-q")
    return clone, run


def test_an_artifact_is_registered_and_taken_by_name(committed):
    clone, run = committed
    declared = yaml.safe_load((clone / "dvc.yaml").read_text())["artifacts"]
    assert set(declared) == {
        "diffusion-model",
        "language-model",
        "land-cover-classifier",
        "synthetic-data-set",
    }
    outs = {
        out["path"]
        for stage in yaml.safe_load((clone / "dvc.lock").read_text())["stages"].values()
        for out in stage["outs"]
    }
    assert {artifact["path"] for artifact in declared.values()} <= outs
    run("gto", "register", "synthetic-data-set")
    run("dvc", "artifacts", "get", ".", "synthetic-data-set", "-o", "got")
    assert {path.name for path in (clone / "got").iterdir()} == {
        path.name for path in (clone / "data/synthetic").iterdir()
    }


def test_a_queued_experiment_runs_in_its_own_copy_and_is_compared(committed):
    clone, run = committed
    run("dvc", "exp", "run", "--queue", "--name", "other", "-S", "fid.subsets=5")
    run("dvc", "exp", "run", "--run-all", timeout=900)
    assert run("git", "status", "--porcelain") == "", "the working tree is untouched"
    # It ran the stages that read the param.
    ref = next(
        ref
        for ref in run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
        if ref.endswith("/other")
    )
    locks = [
        yaml.safe_load(run("git", "show", f"{revision}:dvc.lock"))["stages"]
        for revision in ("HEAD", ref)
    ]
    differ = {name for name in locks[0] if locks[0][name] != locks[1][name]}
    assert "fid" in differ and differ <= {"fid", "report"}

    # What `make compare` runs, as CSV and with the columns that did not change.
    recipe = run("make", "-n", "compare", "VENV=nowhere", "PYTHON=true").splitlines()
    command = shlex.split(next(line for line in recipe if line.startswith("dvc exp show")))
    columns = (
        run(*[word for word in command if word != "--only-changed"], "--csv")
        .splitlines()[0]
        .split(",")
    )
    read = {
        "Experiment",
        "scene.standard.fid",
        "fid.subsets",
        "metrics/classify_lulc.json:real_test.overall_accuracy",
    }
    assert read <= set(columns), columns
    sections = tuple(yaml.safe_load((clone / "params.yaml").read_text()))
    assert len([name for name in columns if not name.startswith(sections)]) < 20, columns
    run("dvc", "plots", "diff", "HEAD", "other", "-o", "page")
    page = (clone / "page/index.html").read_text()
    for shown in (
        "Diffusion loss",
        "validation_loss",
        "FID at infinitely many images",
        "Land cover of real tiles",
        "base_tuned.jpg",
    ):
        assert shown in page, shown


def test_committed_metrics_keep_the_demos_promises():
    """The numbers in git, of the last `make` at demo scale."""
    read = {
        file.stem: json.loads(file.read_text()) for file in (REPOSITORY / "metrics").glob("*.json")
    }
    fid = read["fid"]["scene"]["standard"]
    assert read["caption_agreement"]["caption_agreement"] >= 0.85
    assert fid["fid"] <= fid["fid_base"] / 3
    assert read["classify_lulc"]["real_test"]["overall_accuracy"] >= 0.65
    assert (
        read["llm"]["perplexity_hi"] < read["llm"]["perplexity_base_lo"] and read["llm"]["n"] >= 4
    )
    assert read["prompts"]["extractive"]["retrieval"]["retrieval_top3_about_class_min"] >= 2 / 3


def test_two_runs_give_the_same_bytes(smoke, environment, tmp_path_factory):
    """A second run from nothing, with a new resume cache, gives the same hashes."""
    copy = copy_repository(tmp_path_factory.mktemp("again"))
    shutil.copyfile(smoke / "params.yaml", copy / "params.yaml")
    done = shell(
        "dvc",
        "repro",
        cwd=copy,
        env={**environment, "REMOTE_DIFFUSION_SCRATCH": str(copy / "scratch")},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (
        yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in (smoke, copy)
    )
    differ = [
        out["path"]
        for name in first
        for out, other in zip(
            first[name].get("outs", []), second[name].get("outs", []), strict=True
        )
        if out["md5"] != other["md5"]
    ]
    # The report holds times and the like, all in run.js.
    assert set(differ) <= {"metrics/report"}
    first, second = (
        {
            str(file.relative_to(folder)): file.read_bytes()
            for file in (folder / "metrics/report").rglob("*")
            if file.is_file() and file.name != "run.js"
        }
        for folder in (smoke, copy)
    )
    assert first == second
