"""The Makefile's environment, another Python, missing commands, other locales: real commands."""

import ast
import errno
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from stages.runtime.environment import clear_variables
from stages.runtime.errors import excepthook

MAKEFILE_READS = (
    "Makefile",
    "params/demo.yaml",
    "params.yaml",
    "stages/runtime/remote_diffusion.pth",
)


def start(*command, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with just these variables, and without this environment's folder on PATH."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    # The user's settings may allow every folder.
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    # Some other owner's git folder above the temporary ones is not meant.
    environment["GIT_CEILING_DIRECTORIES"] = str(cwd.parent)
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that ended with exit code 1."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA: 2 GiB"), MemoryError("8 GiB")])
def test_too_little_memory_is_one_line(error, capsys):
    excepthook(type(error), error, None)
    line = capsys.readouterr().err
    assert line.startswith(f"error: out of memory: {error}") and line.count("\n") == 1


def test_an_error_of_a_library_that_is_interrupted_is_one_line(capsys):
    error = AttributeError("type object 'tqdm' has no attribute '_lock'")
    error.__context__ = KeyboardInterrupt()
    excepthook(AttributeError, error, None)
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_that_of_the_copy(capsys):
    """shutil.copyfile names both files; the first was read."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "hub/model", None, "models/copy")
    excepthook(OSError, error, None)
    assert capsys.readouterr().err.startswith("error: models/copy: No space left on device")


@pytest.fixture
def folder(tmp_path) -> Path:
    """What the Makefile reads, in a folder with an accent and a blank, and a package to install."""
    folder = tmp_path / "josé/remote diffusion"
    for name in MAKEFILE_READS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    info = "tiny-1.0.dist-info/"
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "def main():\n    print('it runs')\n")
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        tags = "Root-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(info + "WHEEL", f"Wheel-Version: 1.0\nGenerator: test\n{tags}")
        wheel.writestr(info + "entry_points.txt", "[console_scripts]\ntiny = tiny:main\n")
        wheel.writestr(info + "RECORD", "")
    (folder / "requirements.txt").write_text("--no-index\n--find-links .\ntiny==1.0\n")
    (folder / "requirements-dev.txt").write_text("-r requirements.txt\n")
    return folder


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return start("make", f"PYTHON={sys.executable}", *arguments, cwd=folder, **variables)


def test_make_installs_with_any_settings_of_the_user_and_repairs_the_environment(folder):
    start("git", "init", "-q", cwd=folder)
    settings = folder.parent / "pip.conf"
    settings.write_text("[global]\nuser = true\n")
    elsewhere = str(folder.parent / "elsewhere")
    hostile = {
        "PIP_CONFIG_FILE": str(settings),
        "PIP_USER": "1",
        "PIP_TARGET": elsewhere,
        "PIP_PREFIX": elsewhere,
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PYTHONPATH": elsewhere,
        "PYTHONHOME": elsewhere,
    }

    def check(done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode == 0, done.stdout + done.stderr
        assert start(".venv/bin/tiny", cwd=folder).stdout == "it runs\n"

    # A set-up that ended early is finished by the next make; the one after it does nothing.
    start(sys.executable, "-m", "venv", "--without-pip", ".venv", cwd=folder)
    check(make(folder, "-j4", "setup-dev", **hostile))
    assert not Path(elsewhere).exists()
    again = make(folder, "setup", **hostile)
    assert again.returncode == 0 and "nstall" not in again.stdout

    # DVC without activation: its commands find this environment's Python, whatever `python` is.
    check_dvc_without_activation(folder)

    # The folder is moved: scripts name their Python by its old path.
    folder = folder.rename(folder.parent / "moved")
    assert start(".venv/bin/pip", "--version", cwd=folder).returncode != 0
    moved = make(folder, "setup", **hostile)
    check(moved)
    assert "moved" in moved.stdout

    # The Python that it was made with is gone.
    (folder / ".venv/bin/python").unlink()
    (folder / ".venv/bin/python").symlink_to("/nonexistent/python3")
    planned = make(folder, "--dry-run", "setup")
    assert "again" in planned.stdout and "-m venv --clear" in planned.stdout


def check_dvc_without_activation(folder: Path) -> None:
    venv = folder / ".venv"
    packages = next(venv.glob("lib/python3.*/site-packages"))
    (packages / "installed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / "dvc.yaml").write_text("stages: {one: {cmd: python where.py, outs: [where.txt]}}\n")
    (folder / "where.py").write_text("import sys\nopen('where.txt', 'w').write(sys.prefix)\n")
    other = folder.parent / "other"
    other.mkdir()
    (other / "python").write_text("#!/bin/sh\nexit 3\n")
    (other / "python").chmod(0o755)
    path = f"{other}:/usr/bin:/bin"
    dvc = [".venv/bin/python", "-m", "dvc"]  # as the script .venv/bin/dvc
    assert start(*dvc, "init", "-q", cwd=folder).returncode == 0
    done = start(*dvc, "repro", cwd=folder, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path((folder / "where.txt").read_text()).samefile(venv)


@pytest.mark.parametrize(
    "command",
    [["make", "setup"], ["make", "test"], ["tools.diff", "main"], ["tools.sweep", "prompts"]],
)
def test_a_folder_that_git_cannot_use_is_said_in_its_own_words_before_anything_else(
    folder, command
):
    tool = command[0] != "make"
    if tool:
        command = [sys.executable, "-m", *command]

    def words(**variables: str) -> str:
        done = start(*command, cwd=folder, PYTHONPATH=str(REPOSITORY), **variables)
        assert done.returncode and not (folder / ".venv").exists()
        return error_line(done) if tool else done.stderr

    assert "not a git repository" in words()
    start("git", "init", "-q", cwd=folder)
    # git's own switch for its tests of this.
    assert "dubious ownership" in words(GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    # make's commands, but no git.
    commands = folder.parent / "bin"
    commands.mkdir()
    for name in ("make", "sed", "sh"):
        if shutil.which(name):
            (commands / name).symlink_to(shutil.which(name))
    missing = words(PATH=str(commands))
    assert "git: " in missing and "not found" in missing and "dvc repro" not in missing


def copy_stages(folder: Path) -> Path:
    """The start of every stage and tool: the packages and their list, without other code."""
    for name in ("stages/__init__.py", "tools/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    shutil.copyfile(REPOSITORY / "requirements.txt", folder / "requirements.txt")
    for script in ("stages/any.py", "tools/any.py"):
        (folder / script).write_text("import torch, numpy\n")
    return folder


@pytest.mark.parametrize("module", ["stages.any", "tools.any"])
def test_another_python_is_named_before_any_import(tmp_path, module):
    copy_stages(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    other = str(tmp_path / "other/bin/python")
    line = error_line(start(other, "-m", module, cwd=tmp_path))
    assert other in line and "torch" not in line.split("type")[1] and "make setup" in line
    (tmp_path / ".venv").symlink_to(sys.prefix)
    assert "source .venv/bin/activate" in error_line(start(other, "-m", module, cwd=tmp_path))


def test_an_environment_older_than_requirements_txt_names_what_it_lacks(tmp_path):
    copy_stages(tmp_path)
    with (tmp_path / "requirements.txt").open("a") as file:
        file.write("not-installed-yet[extra]==1.0  # why\n")
    line = error_line(start(sys.executable, "-m", "stages.any", cwd=tmp_path))
    assert "(not-installed-yet)" in line and "make setup" in line


def test_an_old_python_is_told_so(tmp_path):
    copy_stages(tmp_path)
    # It must get as far as the message: nothing in the file is newer than Python 3.4.
    source = (tmp_path / "stages/__init__.py").read_text()
    ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)]
    code = "import sys; sys.version_info = (3, 9, 2); import stages"
    line = error_line(start(sys.executable, "-c", code, cwd=tmp_path))
    assert "3.11" in line and sys.executable in line


def test_tools_run_dvc_where_it_is_not_on_path(tmp_path):
    """Neither `dvc` nor a `python` is there; the stages run with the tool's Python all the same."""
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: python where.py, outs: [where.txt]}}\n")
    (tmp_path / "where.py").write_text("import sys\nopen('where.txt', 'w').write(sys.prefix)\n")
    code = "from tools.commands import run_command as run\n"
    code += "for words in (['init', '--no-scm', '-q'], ['repro']): print(run('dvc', *words))"
    done = start(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(REPOSITORY), PATH="/bin")
    assert done.returncode == 0 and (tmp_path / "where.txt").exists(), done.stdout + done.stderr
    assert Path((tmp_path / "where.txt").read_text()).samefile(sys.prefix)


CLEARED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "FSDP_VERSION": "2",
    "LOCAL_RANK": "1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "PL_TRAINER_PRECISION": "bf16-true",
    "TORCHINDUCTOR_USE_FAST_MATH": "1",
}
KEPT = {
    "ACCELERATE_USE_CPU": "1",
    "CUDA_VISIBLE_DEVICES": "0",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
}


def test_variables_that_change_results_are_named_and_removed(monkeypatch, capfd):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in (CLEARED | KEPT).items():
        monkeypatch.setenv(name, value)
    clear_variables()
    assert not CLEARED.keys() & os.environ.keys() and KEPT.items() <= os.environ.items()
    (line,) = capfd.readouterr().err.splitlines()
    assert all(name in line for name in CLEARED) and not any(name in line for name in KEPT)
    clear_variables()
    assert not capfd.readouterr().err
    # What a launcher has set for its processes stands in the machine's accelerate config.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name, value in CLEARED.items():
        monkeypatch.setenv(name, value)
    clear_variables()
    assert {"FSDP_VERSION", "RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()
    assert "PL_TRAINER_PRECISION" not in os.environ


def test_variables_are_removed_before_the_libraries_read_them(tmp_path):
    code = (
        "from stages.runtime.process import start_process\nstart_process()\nimport torch\n"
        "print(torch.backends.cpu.get_cpu_capability())"
    )
    said = [
        start(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(REPOSITORY), **variables)
        for variables in ({}, {"ATEN_CPU_CAPABILITY": "default"})
    ]
    assert said[0].stdout == said[1].stdout and said[0].stdout
    assert "ATEN_CPU_CAPABILITY" in said[1].stderr and not said[0].stderr


def test_texts_and_names_are_utf8_in_every_locale(tmp_path):
    begin = "from stages.runtime.process import start_process\nstart_process()\n"
    machine = {"PYTHONPATH": str(REPOSITORY)}
    (tmp_path / "show.py").write_text(begin + "print('▲ Forêt')\n", encoding="utf-8")
    for encoding, shown in (("ascii", "\\u25b2 For\\xeat"), ("utf-8", "▲ Forêt")):
        done = start(sys.executable, "show.py", cwd=tmp_path, PYTHONIOENCODING=encoding, **machine)
        assert (done.stdout, done.returncode) == (f"{shown}\n", 0), done.stderr
    # File names are UTF-8, too: in an ASCII locale Python would read this one as other characters.
    (tmp_path / "names.py").write_text(begin + "import os\nprint(*os.listdir('tiles'))\n")
    (tmp_path / "tiles/forêt").mkdir(parents=True)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = start(sys.executable, "names.py", cwd=tmp_path, **machine, **locale)
    assert (done.stdout, done.returncode) == ("forêt\n", 0), done.stderr
