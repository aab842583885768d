"""Start git and DVC."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from stages.runtime.errors import exit_with_error


def run_command(
    *command: str, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run a command and capture what it prints. `dvc` is this Python's, on PATH or not.

    What the command starts finds this Python as `python`. Its output is read as UTF-8.
    """
    if command[0] == "dvc":
        command = (sys.executable, "-m", *command)
    return subprocess.run(
        command,
        env={**environment, "PATH": path_with_python(environment)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def path_with_python(environment: Mapping[str, str] = os.environ) -> str:
    """PATH for a command, whose `python` is this one."""
    return f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"


def git(*arguments: str) -> str | None:
    """Run git; return what it prints, or None where it fails.

    Exits with git's own words where this folder is no repository or belongs to another user.
    """
    finished = run_command("git", *arguments)
    if finished.returncode == 0:
        return finished.stdout
    repository = run_command("git", "rev-parse", "--git-dir")
    if repository.returncode:
        exit_with_error(repository.stderr)
    return None
