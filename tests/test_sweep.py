"""The sweeps, by real `dvc exp run --temp` in a small repository.

Its only stage computes the metrics from the params by a formula.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY, shell

from stages.reporting import sweeps
from tools.sweep import list_experiments

# The FID falls with the steps and has its minimum at guidance 2; the accuracy rises with guidance.
# One combination fails.
STAGE = """
import json, os, sys, time, yaml
p = yaml.safe_load(open("params.yaml"))["sampling"]
scale, steps = p["guidance_scale"], p["steps"]
if (scale, steps) == (5.0, 7):
    sys.exit("error: this one breaks")
time.sleep(1)
fid = (scale - 2) ** 2 + 28 / steps
metrics = {
    "fid": {"scene": {"standard": {"fid": fid, "fid_lo": fid - 1, "fid_hi": fid + 1}}},
    "classify_lulc": {"real_test": {"overall_accuracy": scale / 10}},
    "gpu": {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "time": time.time()},
}
for name, content in metrics.items():
    json.dump(content, open(f"metrics/{name}.json", "w"))
"""
PIPELINE = """
stages:
  all:
    cmd: python stage.py
    params: [sampling]
    deps: [stage.py]
    metrics:
      - metrics/fid.json: {cache: false}
      - metrics/classify_lulc.json: {cache: false}
      - metrics/gpu.json: {cache: false}
"""
IDENTITY = {
    f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


@pytest.fixture
def repository(tmp_path, environment):
    """Returns (folder, run): a committed run, and a function that runs a command with two GPUs."""
    folder = tmp_path / "repository"
    (folder / "metrics").mkdir(parents=True)
    (folder / "metrics/.gitkeep").touch()
    (folder / "docs").mkdir()
    shutil.copyfile(REPOSITORY / "docs/sweep.slurm", folder / "docs/sweep.slurm")
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("sampling:\n  guidance_scale: 1.0\n  steps: 10\n")
    (folder / ".gitignore").write_text("/sweeps/\n/.venv/\n")

    def run(*command: str, cwd: Path = folder, **env):
        machine = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "0,1"}
        env = {**environment, **IDENTITY, **machine, **env}
        done = shell(*command, cwd=cwd, env=env, timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    for command in (
        ["git", "init", "-q", "-b", "main"],
        ["dvc", "init", "-q"],
        ["dvc", "repro", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "run"],
    ):
        run(*command)
    return folder, run


def test_a_sweep_runs_one_experiment_per_gpu_and_writes_a_pareto_table(repository):
    folder, run = repository
    done = run("python", "-m", "tools.sweep", "guidance")
    table = (folder / "sweeps/guidance.md").read_text()
    assert table in done.stdout
    assert (folder / "sweeps/guidance.png").read_bytes().startswith(b"\x89PNG")
    rows = {}
    for line in table.splitlines()[2:14]:
        name, *cells = re.split(r" \| ", line.strip("| "))
        rows[name] = cells
    assert len(rows) == 12 and rows["guidance-5.0-7"][:2] == ["failed", "failed"]
    assert [name for name, cells in rows.items() if "failed" in cells] == ["guidance-5.0-7"]
    # The log names the failed experiment, then shows the end of what it printed.
    assert re.search(r"guidance-5\.0-7.*this one breaks", done.stderr, re.DOTALL), done.stderr
    assert rows["guidance-2.0-28"][:2] == ["1 [0, 2]", "0.2 [0.2, 0.2]"]
    # The FID is least at guidance 2, and a higher one buys accuracy; a lower one, or fewer steps,
    # buys nothing.
    assert {name for name, cells in rows.items() if cells[-1] == "yes"} == {
        "guidance-2.0-28",
        "guidance-3.0-28",
        "guidance-5.0-28",
    }
    # The report reads this table.
    (chart,) = sweeps.sweep_charts(folder / "sweeps")
    assert re.findall(r"\d+", chart["text"])[:2] == ["11", "1"]
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

    # A second run runs only the experiment that failed.
    again = run("python", "-m", "tools.sweep", "guidance").stderr
    assert re.findall(r"sweep: (guidance\S+) on", again) == ["guidance-5.0-7"]


def test_the_slurm_script_runs_its_experiment_in_a_clone_and_pushes_it_back(repository):
    """Slurm starts it by bash, with the number of the task and the folder it was submitted from."""
    folder, run = repository
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text("")
    run(
        "bash",
        "docs/sweep.slurm",
        SLURM_SUBMIT_DIR=str(folder),
        SLURM_ARRAY_TASK_ID="5",
        CUDA_VISIBLE_DEVICES="0",
    )
    assert "guidance-2.0-28" in run("dvc", "exp", "list", "--name-only").stdout.split()
    array = re.search(r"--array=0-(\d+)", (REPOSITORY / "docs/sweep.slurm").read_text())[1]
    assert int(array) == len(list_experiments("guidance")) - 1


def test_the_prompts_sweep_runs_only_writers_that_have_a_model(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert set(list_experiments("prompts")) == {
        "prompts-extractive-retrieval",
        "prompts-domain-zero-shot",
        "prompts-domain-few-shot",
    }


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
    assert done.returncode == 1 and done.stderr.startswith("error: sweep: ")
    assert len(done.stderr.splitlines()) == 1
