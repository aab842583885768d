"""The Dockerfile and the SkyPilot task: their syntax by their own tools, and what the task runs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, shell

TASK = REPOSITORY / "docs/sky.yaml"
READ_TASKS = """
import sys
import sky
from sky.utils import yaml_utils
envs = [("REPOSITORY", "https://localhost/repository"), ("BUCKET", "s3://bucket")]
for file in sys.argv[1:]:
    try:
        task = sky.Task.from_yaml_config(yaml_utils.read_yaml(file), env_overrides=envs)
        print("valid", task.storage_mounts["/bucket"].mode.value)
    except (ValueError, sky.exceptions.InvalidSkyPilotConfigError) as error:
        print("invalid", str(error).splitlines()[0])
"""


def tool(name: str) -> str:
    """The path of a command of requirements-dev.txt."""
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return shutil.which(name, path=folders) or pytest.skip(
        f"no {name} here: pip install -r requirements-dev.txt"
    )


@pytest.mark.parametrize("fault", [None, ("COPY requirements", "COPPY requirements")])
def test_dockerfile(fault, tmp_path):
    text = (REPOSITORY / "Dockerfile").read_text()
    if fault:
        assert fault[0] in text
        text = text.replace(*fault)
    (tmp_path / "Dockerfile").write_text(text)
    done = shell(tool("hadolint"), "--no-color", "Dockerfile", cwd=tmp_path)
    assert (done.returncode == 0) == (fault is None), done.stdout + done.stderr


def test_task_is_valid(tmp_path):
    """SkyPilot accepts the task, and neither an unknown key nor an unknown mode."""
    # It needs older packages than requirements.txt has, so uv makes an environment of its own.
    guide = (REPOSITORY / "docs/scale.md").read_text()
    package = "skypilot==" + re.search(r"skypilot\[aws\]==([\d.]+)", guide)[1]
    skypilot = [tool("uv"), "run", "--quiet", "--no-project", "--with", package]
    # With what it depended on at this date: a newer release of that changes nothing here.
    skypilot += ["--exclude-newer", "2026-11-01", "--python", sys.executable]
    installed = subprocess.run([*skypilot, "true"], text=True, capture_output=True)
    if installed.returncode:
        assert "GITHUB_ACTIONS" not in os.environ, installed.stderr
        pytest.skip(f"SkyPilot cannot be installed here: {installed.stderr.strip()[-300:]}")
    text = TASK.read_text()
    (tmp_path / "key.yaml").write_text(text.replace("\nresources:", "\nresource:"))
    (tmp_path / "mode.yaml").write_text(text.replace("MOUNT_CACHED", "MOUNT_CASHED"))
    # What SkyPilot keeps in the home folder; uv's cache stays where it is.
    command = [*skypilot, "env", f"HOME={tmp_path}", "python", "-c", READ_TASKS]
    done = shell(*command, str(TASK), "key.yaml", "mode.yaml", cwd=tmp_path)
    valid, key, mode = done.stdout.splitlines()[-3:]
    assert valid == "valid MOUNT_CACHED", done.stdout + done.stderr
    assert key.startswith("invalid") and "resource" in key
    assert mode.startswith("invalid") and "MOUNT_CASHED" in mode


# What the task runs, on a pipeline of two stages: the first counts how often it runs, the second
# is interrupted after a checkpoint.
PIPELINE = {
    "stages": {
        "fetch": {
            "cmd": "echo ran >> $RUNS && echo fetched > data",
            "params": ["scale"],
            "outs": ["data"],
        },
        "train": {
            "cmd": "sh train.sh",
            "deps": ["data", "train.sh"],
            "outs": ["model"],
            "metrics": [{"metrics.json": {"cache": False}}],
        },
    }
}
TRAIN = """\
set -e
if [ ! -e $REMOTE_DIFFUSION_SCRATCH/train/checkpoint ]; then
  mkdir -p $REMOTE_DIFFUSION_SCRATCH/train $REMOTE_DIFFUSION_SCRATCH/chroma
  echo 1 > $REMOTE_DIFFUSION_SCRATCH/chroma/complete
  echo 500 > $REMOTE_DIFFUSION_SCRATCH/train/checkpoint
  sleep 600
fi
ls $REMOTE_DIFFUSION_SCRATCH > model
cat $RD_VISION/weights >> model
echo '{"step": 500}' > metrics.json
rm -r $REMOTE_DIFFUSION_SCRATCH/train
"""
MAKEFILE = "scale:\n\techo scale: $(SCALE) > params.yaml\n"


class Cloud:
    """Machines that see one bucket; each starts with a clone of the repository and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = folder / "bucket"
        self.origin = folder / "origin"
        self.runs = folder / "runs"  # one line per run of the first stage

    def start(self, name: str) -> subprocess.Popen:
        machine = self.folder / name
        (machine / "home").mkdir(parents=True)
        subprocess.run(["git", "clone", "-q", self.origin, machine / "work"], check=True)
        commands = yaml.safe_load(TASK.read_text())["run"]
        commands = commands.replace("/bucket", str(self.bucket)).replace("sleep 60", "sleep 0.2")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"HOME": str(machine / "home"), "SCALE": "tiny", "RUNS": str(self.runs)}
        return subprocess.Popen(
            ["bash", "-c", commands],
            cwd=machine / "work",
            env={**os.environ, "PATH": path, **variables},
            stdout=(machine / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    for command in ("rsync", "flock"):
        if shutil.which(command) is None:
            pytest.skip(f"no {command} here: apt-get install rsync util-linux")
    cloud = Cloud(tmp_path)
    (cloud.bucket / "vision").mkdir(parents=True)
    (cloud.bucket / "vision/weights").write_text("weights\n")
    cloud.origin.mkdir()
    (cloud.origin / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (cloud.origin / "train.sh").write_text(TRAIN)
    (cloud.origin / "Makefile").write_text(MAKEFILE)
    (cloud.origin / "params.yaml").write_text("scale: demo\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", *identity, "commit", "-qm", "pipeline"],
    ):
        done = shell(*command, cwd=cloud.origin)
        assert done.returncode == 0, done.stderr
    return cloud


def test_a_preempted_machine_is_continued_by_the_next(cloud):
    first = cloud.start("first")
    deadline = time.monotonic() + 600
    while not (cloud.bucket / "run/scratch/train/checkpoint").exists():
        log = (cloud.folder / "first/log").read_text()
        assert first.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    shutil.rmtree(cloud.folder / "first")

    second = cloud.start("second")
    code = second.wait(timeout=600)
    assert code == 0, (cloud.folder / "second/log").read_text()
    # The finished stage came from the bucket, the other one went on; the index was not copied.
    assert cloud.runs.read_text() == "ran\n"
    assert (cloud.folder / "second/work/model").read_text() == "train\nweights\n"
    assert not list((cloud.bucket / "run/scratch").iterdir())

    # At home, as docs/scale.md has it.
    home = cloud.origin
    for command in (
        ["git", "apply", str(cloud.bucket / "run/git.patch")],
        ["dvc", "remote", "add", "-q", "-d", "bucket", str(cloud.bucket / "run/dvc")],
        ["dvc", "pull", "-q"],
    ):
        done = shell(*command, cwd=home)
        assert done.returncode == 0, done.stderr
    assert (home / "model").read_text() == "train\nweights\n"
    assert (home / "params.yaml").read_text() == "scale: tiny\n"
    assert (home / "metrics.json").exists()
    assert "up to date" in shell("dvc", "status", cwd=home).stdout
