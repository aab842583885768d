"""`dvc repro` of the whole pipeline at smoke scale, then what a second run and new params do."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import audit
import pytest
import tracing
import yaml
from conftest import REPOSITORY, shell, skip_unless_demo_is_committed

from stages.params import load

STAGES = audit.pipeline()
CODE_FOLDERS = ("common", "text", "diffusion", "evaluation", "reporting", "publishing")
SECTIONS = list(
    dict.fromkeys(param.split(".")[0] for stage in STAGES.values() for param in stage["params"])
)


def stages_that_read(section: str) -> list[str]:
    """The stages that declare a section of the params."""
    return [
        name
        for name, stage in STAGES.items()
        if any(param.split(".")[0] == section for param in stage["params"])
    ]


def running(printed: str) -> set[str]:
    """The stages that `dvc repro` or `dvc exp run` says it runs."""
    return set(re.findall(r"Running stage '([^']+)'", printed))


def stages_that_would_run(copy, environment) -> set[str]:
    done = shell("dvc", "repro", "--dry", cwd=copy, env=environment)
    assert done.returncode == 0, done.stderr
    return running(done.stdout)


@pytest.fixture(scope="module")
def project(smoke, tmp_path_factory) -> Path:
    """A copy of the smoke run, whose files a test may change and change back."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        return {"cache", "tmp"} if Path(folder).name == ".dvc" else set()

    copy = tmp_path_factory.mktemp("project") / "copy"
    shutil.copytree(smoke, copy, symlinks=True, ignore=left_out)
    done = shell("dvc", "config", "--local", "cache.dir", str(smoke / ".dvc/cache"), cwd=copy)
    assert done.returncode == 0, done.stderr
    return copy


def changed_value(value):
    """The same section or value, with every leaf changed."""
    if isinstance(value, dict):
        return {key: changed_value(inner) for key, inner in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value + 1
    return f"not {value}"


@pytest.fixture(scope="module")
def changed_deps(project, warm_environment) -> dict[str, dict]:
    """The changed deps of each stage where all params and one module have changed."""
    files = [project / "params.yaml", project / "stages/common/class_names.py"]
    params, code = originals = [file.read_text() for file in files]
    files[0].write_text(yaml.safe_dump(changed_value(yaml.safe_load(params))))
    files[1].write_text(code + "\nx = 1\n")
    try:
        done = shell("dvc", "status", "--json", cwd=project, env=warm_environment)
    finally:
        for file, original in zip(files, originals):
            file.write_text(original)
    assert done.returncode == 0, done.stderr
    deps = {}
    for stage, changes in json.loads(done.stdout).items():
        (changed,) = changes
        deps[stage] = changed["changed deps"]
    return deps


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
def test_the_trace_shows_a_stage_that_reads_an_undeclared_file(tmp_path, warm_environment):
    """The same check on a stage that reads one declared and four undeclared files.

    Python, a child process, C++ and an import open them.
    """
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("declared.csv", "undeclared.csv", "child.csv", "arrow.csv"):
        (root / name).write_text("x\n1\n")
    (root / "part").mkdir()
    (root / "stages").mkdir()
    for name in ("__init__", "helper", "bystander"):
        (root / f"part/{name}.py").touch()
    (root / "stages/example.py").write_text("""
import importlib, subprocess, pyarrow.csv
open("part/bystander.py"), importlib.import_module("part.helper")
open("declared.csv"), open("undeclared.csv"), open("new", "w"), open("new")
subprocess.run(["cat", "child.csv"])
pyarrow.csv.read_csv("arrow.csv")
""")
    environment = {**warm_environment, "TRACES": str(tmp_path)}
    done = shell("python", "-m", "stages.example", cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    stage = {"cmd": "python -m stages.example", "deps": [{"path": "declared.csv"}]}
    files = tracing.opened(tmp_path / "-m stages.example", root)
    files.remove("stages/example.py")
    assert tracing.undeclared(files, stage, root) == [
        "arrow.csv",
        "child.csv",
        "part/helper.py",
        "undeclared.csv",
    ]


def test_nothing_to_do(project, warm_environment):
    done = shell("dvc", "repro", cwd=project, env=warm_environment)
    assert done.returncode == 0 and "Running stage" not in done.stdout
    listed = shell(
        "git", "status", "--porcelain", "--untracked-files=all", "--", "data", "models", cwd=project
    ).stdout.splitlines()
    stray = [line for line in listed if not line.endswith(".gitignore")]
    assert not stray, "an output is neither in git nor ignored by DVC"


def test_an_edit_in_a_folder_of_code_reruns_nothing_that_costs_gpu_hours(project, warm_environment):
    """Of modules that no stage imports; compiled ones and previews rerun nothing at all."""
    compiled = project / "stages/common/__pycache__/rng.cpython-399.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"new")
    with open(project / "stages/embedded/scenes/__main__.py", "a") as file:
        file.write("# changed\n")
    assert not stages_that_would_run(project, warm_environment)

    new = [project / "stages" / folder / "new.py" for folder in CODE_FOLDERS]
    for file in new:
        file.write_text("x = 1\n")
    try:
        ran = stages_that_would_run(project, warm_environment)
    finally:
        for file in new:
            file.unlink()
    cheap = {"scrape", "chunk", "features", "fid", "ceiling", "classify"}
    assert {stage.split("@")[0] for stage in ran} == cheap | {"review_page", "review", "report"}


@pytest.mark.parametrize(
    ("param", "first", "untouched"),
    [
        ("chunk.min_characters", {"chunk"}, {"index_rag", "finetune_sd", "encode", "scrape"}),
        ("report.gallery_per_class", {"report"}, {"fid", "sample", "review"}),
        # fetch_imagery runs, as it says which classes no image shows; its data stay the same.
        ("classes", {"balance", "select", "classify", "ceiling"}, {"encode", "sample", "generate"}),
        ("fid.subsets", {"fid"}, {"features", "sample", "classify"}),
        ("finetune_sd.ema_decay", {"finetune_sd"}, {"encode", "prompt", "train_scene"}),
        (
            "sampling.guidance_scale",
            {"sample", "generate"},
            {"train_base", "train_scene", "finetune_llm", "encode", "finetune_sd", "features"},
        ),
        # Further images per caption are drawn by the tuned model alone.
        (
            "classifier.images_per_caption",
            {"sample@tuned"},
            {"sample@base", "sample@figures", "generate", "features"},
        ),
    ],
)
def test_only_stages_that_depend_on_a_param_run(changed_deps, param, first, untouched):
    ran = {
        stage
        for stage, deps in changed_deps.items()
        if any(f"{param}.".startswith(f"{read}.") for read in deps.get("params.yaml", {}))
    }
    ran |= {stage.split("@")[0] for stage in ran}
    assert first <= ran and not ran & untouched


def test_other_names_of_classes_rerun_what_writes_them(changed_deps):
    """But not every stage, though each checks params.yaml with them."""
    changed = {
        stage.split("@")[0] for stage, deps in changed_deps.items() if deps.keys() - {"params.yaml"}
    }
    assert changed >= {"fetch_imagery", "encode", "prompt", "select", "fid", "classify", "report"}
    assert not changed & {"train_base", "train_scene", "finetune_sd", "sample", "generate"}


def test_a_changed_section_reaches_its_readers_and_nothing_else(changed_deps):
    readers: dict[str, set[str]] = {section: set() for section in SECTIONS}
    for stage, deps in changed_deps.items():
        for param, what in deps.get("params.yaml", {}).items():
            assert what == "modified"
            readers[param.split(".")[0]].add(stage.split("@")[0])
    assert readers == {section: set(stages_that_read(section)) for section in SECTIONS}


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


def test_synthetic_data_set_loads_with_datasets(smoke, tmp_path):
    import datasets

    loaded = datasets.load_dataset(
        "parquet",
        data_dir=str(smoke / "data/synthetic"),
        split="train",
        cache_dir=str(tmp_path),
    )
    params = load(smoke / "params.yaml")
    prompts = sum(params.prompts_per_class().values())
    assert len(loaded) == prompts * params.generate.images_per_prompt
    assert loaded[0]["image"].size == (32, 32) and set(loaded["label"]) == set(params.classes)


def test_other_accounts_can_read_the_weights_as_they_can_the_params(smoke):
    mode = (smoke / "params.yaml").stat().st_mode
    files = [file for folder in ("data", "models") for file in smoke.glob(f"{folder}/**/*")]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) >= 18
    assert not [file for file in weights if file.stat().st_mode != mode]


def test_tuned_model_is_a_stable_diffusion_pipeline(smoke):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(smoke / "models/diffusion")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a lake", num_inference_steps=2, height=32, width=32).images[0]
    assert image.size == (32, 32)


def test_dvc_reads_metrics_and_plots(project, warm_environment):
    shown = json.loads(
        shell("dvc", "metrics", "show", "--json", cwd=project, env=warm_environment).stdout
    )[""]["data"]
    assert set(shown) == {
        f"metrics/{path.name}" for path in (project / "metrics").glob("*.json")
    } - {"metrics/context.json"}
    assert shown["metrics/fid.json"]["data"]["scene"]["standard"]["n"] > 0
    done = shell("dvc", "plots", "show", "-o", "plots_page", cwd=project, env=warm_environment)
    assert done.returncode == 0, done.stderr
    page = (project / "plots_page/index.html").read_text()
    shutil.rmtree(project / "plots_page")
    for title in (
        "Diffusion loss",
        "FID at infinitely many images",
        "Language model loss",
        "Confusion on real tiles: lulc",
        "Accuracy on real tiles: scenes",
        "Generated images that are nearest to a training tile",
    ):
        assert title in page, title
    grids = sorted(path.name for path in (project / "metrics/plots/diffusion_grid").iterdir())
    assert grids and all(name in page for name in grids)


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


def test_a_run_that_ran_before_is_not_run_again(committed):
    """Back from an experiment, all but the report comes from the run cache, with the same bytes."""
    clone, run = committed
    lock = (clone / "dvc.lock").read_text()
    ema_decay = yaml.safe_load((clone / "params.yaml").read_text())["finetune_sd"]["ema_decay"]
    shown = run("dvc", "exp", "run", "-S", f"finetune_sd.ema_decay={ema_decay / 2}", "finetune_sd")
    assert running(shown) == {"finetune_sd"}

    # That experiment was short. As after one that reached every stage behind what is fetched:
    entries = yaml.safe_load(lock)
    entries["stages"] = {
        name: entry for name, entry in entries["stages"].items() if name.startswith("fetch_")
    }
    (clone / "dvc.lock").write_text(yaml.safe_dump(entries))
    shown = run("dvc", "exp", "run", "-S", f"finetune_sd.ema_decay={ema_decay}")
    assert running(shown) == {"report"}
    assert yaml.safe_load((clone / "dvc.lock").read_text()) == yaml.safe_load(lock)
    assert run("git", "status", "--porcelain", "--", "data", "metrics", "models") == ""


def test_what_the_lock_names_is_in_git_or_in_the_cache(committed, warm_environment, tmp_path):
    """A clone agrees with the committed run, also after a sweep, whose table the report shows."""
    clone, run = committed
    (clone / "sweeps/guidance.md").write_text(
        "| experiment | FID | accuracy | Pareto |\n"
        "|---|---:|---:|---|\n"
        "| guidance-2.0-14 | 3.65 [2.08, 5.2] | 0.658 [0.45, 0.86] | yes |\n"
    )
    assert running(run("dvc", "repro")) == {"report"}
    assert "Sweep: guidance" in (clone / "metrics/report/index.html").read_text()
    run("git", "add", "-A")
    run("git", "commit", "-qm", "run after a sweep")

    run("git", "clone", "-q", ".", str(tmp_path / "other"))

    def run_there(*command: str) -> str:
        done = shell(*command, cwd=tmp_path / "other", env=warm_environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run_there("python", "-m", "tools.check_lock")  # without data
    run_there("dvc", "config", "--local", "cache.dir", run("dvc", "cache", "dir").strip())
    run_there("dvc", "checkout", "-q")
    assert not running(run_there("dvc", "repro"))
    assert run_there("git", "status", "--porcelain") == ""


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
    (line,) = [line for line in recipe if "dvc exp show" in line]
    command = shlex.split(line[line.index("dvc exp show") :])
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
        "Confusion on real tiles: lulc",
        *(path.name for path in (clone / "metrics/plots/diffusion_grid").iterdir()),
    ):
        assert shown in page, shown


def test_an_experiment_is_recorded_in_a_clone_that_pulled_nothing(committed, tmp_path):
    _, run = committed
    fresh = str(tmp_path / "fresh")
    run("git", "clone", "-q", ".", fresh)
    change = "fetch_papers.text_column=other"
    run("dvc", "--cd", fresh, "exp", "run", "--name", "papers", "-S", change, "fetch_papers")
    assert "papers" in run("dvc", "--cd", fresh, "exp", "list", "--name-only").split()


def test_committed_metrics_keep_the_demos_promises():
    """The numbers in git, of the last `make` at demo scale, by the judge that ships."""
    skip_unless_demo_is_committed()
    read = {
        file.stem: json.loads(file.read_text()) for file in (REPOSITORY / "metrics").glob("*.json")
    }
    fid = read["fid"]["scene"]["standard"]
    assert read["caption_agreement"]["caption_agreement"] >= 0.8
    # Processors round differently: 4.37 on one, 4.60 on another, against 13.5 of the base.
    assert fid["fid_hi"] <= fid["fid_base"] / 2
    assert read["classify_lulc"]["real_test"]["overall_accuracy"] >= 0.65
    assert (
        read["llm"]["perplexity_hi"] < read["llm"]["perplexity_base_lo"] and read["llm"]["n"] >= 4
    )
    assert read["prompts"]["extractive"]["retrieval"]["retrieval_top3_about_class_min"] >= 2 / 3
