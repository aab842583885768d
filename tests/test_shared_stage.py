"""Runs at the same time that share a stage: one works, the others wait and take what it made."""

import re
import signal
import socket
import subprocess
import sys

from conftest import REPOSITORY, shell, wait_until

# Five steps, each a file in the resume folder with the name of the run that made it. The first run
# never gets beyond the third.
STAGE = """
import sys, time
from pathlib import Path
from stages.runtime import resume_cache

resume_cache.POLL = 0.05
resume_cache.REMIND = 0.1
name = sys.argv[1]
with resume_cache.resume_folder("train", "fingerprint") as folder:
    for step in range(5):
        file = folder / str(step)
        if not file.exists():
            file.write_text(name)
        while name == "A" and step == 2:
            time.sleep(0.02)
    Path(f"{name}.out").write_text("".join((folder / str(step)).read_text() for step in range(5)))
"""


def test_a_waiting_run_goes_on_after_a_kill_and_another_takes_what_it_finished(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    runs = {}

    def start(name):
        runs[name] = subprocess.Popen(
            [sys.executable, "stage.py", name],
            cwd=tmp_path,
            env={"PYTHONPATH": str(REPOSITORY), "REMOTE_DIFFUSION_SCRATCH": str(tmp_path)},
            stderr=open(tmp_path / f"{name}.log", "w"),
        )

    def log(name):
        return (tmp_path / f"{name}.log").read_text()

    start("A")
    folder = tmp_path / "train/fingerprint"
    wait_until((folder / "2").exists)
    holder = f"process {runs['A'].pid} on {socket.gethostname()}"
    for name in "BCD":
        start(name)
    # Each says once for whom it waits, and then now and then that it still does.
    wait_until(lambda: all(log(name).count(holder) > 2 for name in "BCD"))
    assert all(len(re.findall(f"waits for {holder}", log(name))) == 1 for name in "BCD")

    # A run that was killed while it waited keeps no finished work from being removed.
    for name in "DA":
        runs[name].send_signal(signal.SIGKILL)
        runs[name].wait(600)
    assert [runs[name].wait(600) for name in "BC"] == [0, 0]
    results = {(tmp_path / f"{name}.out").read_text() for name in "BC"}
    assert results in ({"AAABB"}, {"AAACC"})
    assert [path.name for path in folder.parent.iterdir()] == ["fingerprint.lock"]


# A stage that all experiments share, which begins when three of them are there, and one that
# differs.
TRAIN = """
import os, time
from pathlib import Path
from stages.runtime import resume_cache

shared = Path(os.environ["REMOTE_DIFFUSION_SCRATCH"])
with resume_cache.resume_folder("train", "fingerprint") as folder:
    model = folder / "model"
    if not model.exists():
        while len(list(folder.parent.glob("*.waits-*"))) < 2:
            time.sleep(0.05)
        with open(shared / "trained", "a") as trainings:
            trainings.write("once ")
        model.write_text("model")
    Path("model").write_text(model.read_text())
"""
SAMPLE = """
import json
from ruamel.yaml import YAML

sampling = YAML(typ="safe").load(open("params.yaml"))["sampling"]
json.dump({"fid": sampling["guidance_scale"] * sampling["steps"]}, open("fid.json", "w"))
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py
    params: [train]
    deps: [train.py]
    outs: [model]
  sample:
    cmd: python sample.py
    params: [sampling]
    deps: [sample.py, model]
    metrics:
      - fid.json: {cache: false}
"""


def test_a_queue_of_six_experiments_that_share_a_stage_ends_with_six_results(tmp_path, environment):
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "scratch").mkdir()
    for name, content in {
        "train.py": TRAIN,
        "sample.py": SAMPLE,
        "dvc.yaml": PIPELINE,
        "params.yaml": "train: 1\nsampling: {guidance_scale: 1, steps: 1}\n",
    }.items():
        (project / name).write_text(content)
    who = {
        f"GIT_{role}_{key}": "test" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    machine = {"PYTHONPATH": str(REPOSITORY), "REMOTE_DIFFUSION_SCRATCH": str(tmp_path / "scratch")}

    def project_run(*command):
        done = shell(*command, cwd=project, env={**environment, **who, **machine}, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    project_run("git", "init", "-q", "-b", "main")
    project_run("dvc", "init", "-q")
    project_run("git", "add", "-A")
    project_run("git", "commit", "-qm", "project")
    grid = ["-S", "sampling.guidance_scale=1,2,3", "-S", "sampling.steps=10,20"]
    project_run("dvc", "exp", "run", "--queue", *grid)
    project_run("dvc", "exp", "run", "--run-all", "--jobs", "3")
    refs = project_run("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*").split()
    results = [project_run("git", "show", f"{ref}:fid.json") for ref in refs]
    assert sorted(results) == sorted(
        f'{{"fid": {scale * steps}}}' for scale in (1, 2, 3) for steps in (10, 20)
    )
    assert (tmp_path / "scratch/trained").read_text() == "once "
