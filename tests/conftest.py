"""Shared fixtures: workspaces of tiny models, and one run of the whole pipeline at smoke scale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tracing

# One thread per process, stages included: the test workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def shell(
    *command: str, cwd: Path, env: dict | None = None, timeout: int = 600
) -> subprocess.CompletedProcess:
    """Run a command as a user would, with this environment's `python` and `dvc` first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **(env or {})}
    return subprocess.run(
        command, cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout
    )


def copy_repository(target: Path) -> Path:
    """A clone with the uncommitted changes, as a new git repository without outputs."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            # With its time: git reads a file again that is as young as its index.
            shutil.copy2(REPOSITORY / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "copy"],
    ):
        subprocess.run(["git", *command], cwd=target, check=True)
    return target


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict:
    """Variables with a new resume cache and no network: a stage that needs the network fails."""
    closed_port = "http://127.0.0.1:9"
    return {
        "REMOTE_DIFFUSION_SCRATCH": str(tmp_path_factory.mktemp("scratch")),
        "HTTP_PROXY": closed_port,
        "HTTPS_PROXY": closed_port,
        "http_proxy": closed_port,
        "https_proxy": closed_port,
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
    }


@pytest.fixture(scope="session")
def encoded(tmp_path_factory) -> Path:
    """A workspace of the tiny diffusion model with latents in it."""
    from tiny_diffusion import make_workspace, run, write_params

    from stages import encode

    folder = make_workspace(tmp_path_factory.mktemp("encoded"))
    write_params(folder)
    assert run(folder, encode.main) == (0, (folder / "stderr0.txt").read_text())
    return folder


@pytest.fixture
def workspace(encoded, tmp_path) -> Path:
    """A copy of `encoded` for one test."""
    return shutil.copytree(encoded, tmp_path / "work")


@pytest.fixture(scope="session")
def trained(encoded, tmp_path_factory) -> Path:
    """A workspace after fine-tuning without a stop: 10 steps, checkpoints at 3, 6, 9 and 10."""
    from tiny_diffusion import run

    from stages import finetune_sd

    folder = shutil.copytree(encoded, tmp_path_factory.mktemp("trained") / "work")
    code, log = run(folder, finetune_sd.main)
    assert code == 0, log
    return folder


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, environment) -> Path:
    """A copy of the repository after `dvc repro` at smoke scale.

    The files that its stages opened are traced into `traces/` beside it.
    """
    copy = copy_repository(tmp_path_factory.mktemp("smoke") / "copy")
    shutil.copyfile(copy / "tests/params.yaml", copy / "params.yaml")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if tracing.available():
        tracing.install(copy.parent / "shim", copy.parent / "traces")
        path = f"{copy.parent / 'shim'}{os.pathsep}{path}"
    done = shell("dvc", "repro", cwd=copy, env={**environment, "PATH": path}, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy
