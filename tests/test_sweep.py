"""The sweeps, by real `dvc exp run --temp` in a small repository whose one stage is a formula of the params."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY, shell

from stages.reporting import sweeps

# FID falls with steps and is least at guidance 2; accuracy rises with guidance; one combination breaks.
STAGE = """
import json, os, sys, time, yaml
p = yaml.safe_load(open("params.yaml"))["sampling"]
scale, steps = p["guidance_scale"], p["steps"]
if (scale, steps) == (5.0, 7):
    sys.exit("error: this one breaks")
time.sleep(1)
fid = (scale - 2) ** 2 + 28 / steps
json.dump({"scene": {"standard": {"fid": fid, "fid_lo": fid - 1, "fid_hi": fid + 1}}}, open("metrics/fid.json", "w"))
json.dump({"real_test": {"overall_accuracy": scale / 10}}, open("metrics/classify_lulc.json", "w"))
json.dump({"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "time": time.time()}, open("metrics/gpu.json", "w"))
"""
PIPELINE = """
stages:
  all:
    cmd: python stage.py
    params: [sampling]
    deps: [stage.py]
    metrics: [metrics/fid.json: {cache: false}, metrics/classify_lulc.json: {cache: false}, metrics/gpu.json: {cache: false}]
"""


@pytest.fixture
def repository(tmp_path, environment):
    """Returns (folder, run): a committed run, and a way to run a command in it as a machine with two GPUs would."""
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
        identity = {
            f"GIT_{who}_{what}": "test"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        two = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "0,1"}
        done = shell(*command, cwd=cwd, env={**environment, **identity, **two, **env}, timeout=1800)
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


def test_a_sweep_runs_one_experiment_per_gpu_and_ends_in_a_pareto_table(repository):
    folder, run = repository
    done = run("python", "-m", "tools.sweep", "guidance")
    table = (folder / "sweeps/guidance.md").read_text()
    assert table in done.stdout and (folder / "sweeps/guidance.png").read_bytes().startswith(
        b"\x89PNG"
    )
    rows = {
        name: cells
        for name, *cells in (
            re.split(r" \| ", line.strip("| ")) for line in table.splitlines()[2:14]
        )
    }
    assert len(rows) == 12 and rows["guidance-5.0-7"][:2] == ["failed", "failed"]
    assert "this one breaks" in done.stderr and re.findall(r"sweep: (\S+) failed", done.stderr) == [
        "guidance-5.0-7"
    ], done.stderr
    assert rows["guidance-2.0-28"][:2] == ["1 [0, 2]", "0.2 [0.2, 0.2]"]
    # Least FID at 2; more guidance buys accuracy; less than 2, or fewer steps, buys nothing.
    assert {name for name, cells in rows.items() if cells[-1] == "yes"} == {
        "guidance-2.0-28",
        "guidance-3.0-28",
        "guidance-5.0-28",
    }
    (chart,) = sweeps.charts_of(folder / "sweeps")
    assert chart["text"].startswith("11 experiments, 1 more failed"), (
        "the report reads this very table"
    )
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    seen = [
        json.loads(run("git", "show", f"{ref}:metrics/gpu.json").stdout)["gpu"]
        for ref in refs
        if "/guidance-" in ref
    ]
    assert len(seen) == 11 and set(seen) == {"0", "1"}, "each with one GPU to itself, both in use"
    assert run("git", "status", "--porcelain").stdout == "", "the working tree is untouched"

    # Again: what has run is not run again, what failed is tried again.
    again = run("python", "-m", "tools.sweep", "guidance").stderr
    assert re.findall(r"sweep: (guidance\S+) on", again) == ["guidance-5.0-7"]


def test_the_slurm_script_runs_its_experiment_in_a_clone_and_brings_it_home(repository):
    """As Slurm would start it: by bash, with the task's number and the folder it was submitted from."""
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
    from tools.sweep import combinations

    assert int(array) == len(combinations("guidance")) - 1


def test_the_prompts_sweep_asks_only_writers_that_are_there(monkeypatch):
    from tools.sweep import combinations

    monkeypatch.chdir(REPOSITORY)
    assert set(combinations("prompts")) == {
        "prompts-extractive-retrieval",
        "prompts-domain-zero-shot",
        "prompts-domain-few-shot",
    }


def test_an_unknown_sweep_is_one_line(tmp_path):
    done = shell(
        "python",
        "-m",
        "tools.sweep",
        "everything",
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    assert (
        done.returncode == 1 and done.stderr.strip() == "error: sweep: say which: guidance, prompts"
    )
