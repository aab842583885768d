"""Shared fixtures: workspaces of tiny models, and one run of the whole pipeline at smoke scale."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import tracing
import yaml
from filelock import FileLock
from warm_python import warm_python

# One thread per process, stages included: the test workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


# The longest files of tests, in the order in which they start. The second run of the pipeline is
# compared with the first, which takes some minutes. Before them comes the file whose tests train in
# forks of their own process: torch refuses that once another test has trained in it.
LONGEST = (
    "test_evaluation_classifier.py",
    "test_pipeline.py",
    "test_hub.py",
    "test_resume_from_scratch.py",
    "test_demo.py",
    "test_real.py",
    "test_gpu_benchmark.py",
    "test_sweep.py",
    "test_same_bytes.py",
    "test_gpu_memory.py",
    "test_remotes.py",
    "test_pipeline_workflow.py",
    "test_resume.py",
    "test_label_set_runs.py",
    "test_browser.py",
    "test_launch.py",
    "test_finetune_sd.py",
    "test_text_language.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; last the others that need the finished run, which is ready then."""
    need_smoke = {item.path for item in items if "smoke" in getattr(item, "fixturenames", ())}

    def rank(item: pytest.Item) -> int:
        if item.path.name in LONGEST:
            return LONGEST.index(item.path.name)
        return len(LONGEST) + (item.path in need_smoke)

    items.sort(key=rank)


def skip_unless_demo_is_committed() -> None:
    """Skip a test of the committed results where they are a run of a user's own params."""
    committed = shell("git", "show", "HEAD:params.yaml", cwd=REPOSITORY).stdout
    if not committed.startswith("# Scale: demo\n"):
        pytest.skip("the committed params.yaml is not the demo's")


def shell(
    *command: str, cwd: Path, env: dict | None = None, timeout: int = 600
) -> subprocess.CompletedProcess:
    """Run a command as a user would, with this environment's `python` and `dvc` first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **(env or {})}
    return subprocess.run(
        command, cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout
    )


def wait_until(condition: Callable[[], object], seconds: float = 600) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def heed_signals() -> None:
    """Undo what a shell does for a background job, and `nohup`: they have signals ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def alive(pid: int) -> bool:
    """Whether a process runs; in a container the dead may stay in the table."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


@functools.cache
def smoke_params() -> str:
    """The text of params.yaml at smoke scale: the demo's with the values of tests/params.yaml."""
    from tools.scale import compose

    return compose(["tests/params.yaml"], REPOSITORY)[0]


def write_smoke_params(folder: Path) -> None:
    """Write params.yaml at smoke scale into a folder."""
    (folder / "params.yaml").write_text(smoke_params(), encoding="utf-8")


def change_params(section: str, values: dict) -> None:
    """Change values of a section in the params.yaml of this folder."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def replace_in_params(folder: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a folder's params.yaml."""
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


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
def warm_environment(environment, tmp_path_factory) -> Iterator[dict]:
    """`environment` with a `python` that has imported the libraries of the stages already."""
    with warm_python(tmp_path_factory.mktemp("warm"), environment) as variables:
        yield variables


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """fetch(role, source): run the stage in a new folder and return the files it wrote."""
    from model_files import files_below

    from stages import fetch_model

    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(role: str, source: str) -> dict[str, bytes]:
        params = yaml.safe_load((REPOSITORY / "params/demo.yaml").read_text())
        params["fetch_model"][role] = source
        params["train_base"] |= {"source": "scratch", "vae_steps": 1, "text_steps": 1}
        params["encode"]["base_domain"] = "none"
        if params["fetch_model"]["vision"] == "none":
            params["features"]["extractors"] = ["scene"]
        Path("params.yaml").write_text(yaml.safe_dump(params))
        fetch_model.main(role)
        return files_below(Path("models/base") / role)

    return run


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
def smoke(tmp_path_factory, warm_environment) -> Path:
    """A copy of the repository after `dvc repro` at smoke scale, shared by the test workers.

    The files that its stages opened are traced into `traces/` beside it. Tests only read it.
    """
    root = tmp_path_factory.getbasetemp() / "smoke"
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The workers' temporary folders lie in one folder.
        root = tmp_path_factory.getbasetemp().parent / "smoke"
    copy = root / "copy"
    with FileLock(f"{root}.lock"):
        if not (root / "finished").exists():
            shutil.rmtree(root, ignore_errors=True)
            copy_repository(copy)
            run_smoke(copy, warm_environment)
            (root / "finished").touch()
    return copy


def run_smoke(copy: Path, environment: dict) -> None:
    """Run the pipeline at smoke scale in a copy of the repository, traced where strace is."""
    write_smoke_params(copy)
    if tracing.available():
        (copy.parent / "traces").mkdir()
        environment = {**environment, "TRACES": str(copy.parent / "traces")}
    done = shell("dvc", "repro", cwd=copy, env=environment, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture
def committed(smoke, warm_environment, tmp_path):
    """A clone whose last commit is the smoke run, with its cache; and `run` for commands in it."""
    clone = tmp_path / "clone"

    def run(*command: str, **options) -> str:
        identity = {
            f"GIT_{who}_{what}": "test"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        done = shell(*command, cwd=clone, env={**warm_environment, **identity}, **options)
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
