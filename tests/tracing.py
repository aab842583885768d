"""Which files of the repository a stage opens while it runs, from its system calls (strace).

They include what Arrow, safetensors and tokenizers open by themselves. Listing a folder does not
count as reading it.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import audit

# Opened by stages, but no deps: what DVCLive reads to find the repository's root, DVCLive's folder,
# params.yaml, of which `params:` declares the sections, and the list of packages that must be here.
NOT_DATA = (".git", ".dvc", ".dvcignore", "dvclive", "params.yaml", "requirements.txt")
# The report reads the graph and what ran, for metrics/run.js alone, which is no output.
READ_FOR_NO_OUTPUT = {"python -m stages.report": ("dvc.yaml", "dvc.lock")}

STRACE = ("strace", "-f", "-y", "-qq", "-e", "trace=open,openat", "-e", "signal=none")


def available() -> bool:
    """Whether strace is installed and allowed to trace a process that runs here."""
    if not shutil.which("strace"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys, tracing; tracing.trace_me(sys.argv[1])"
        command = [sys.executable, "-c", code, f"{folder}/trace"]
        trial = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True)
        return trial.returncode == 0


def trace_me(path: str | Path) -> None:
    """Have strace write the open and openat calls of this process, from now on, to a file.

    Raises:
        RuntimeError: strace has ended, because it may not trace.
    """
    allow_tracing()
    strace = subprocess.Popen([*STRACE, "-o", str(path), "-p", str(os.getpid())])
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if strace.poll() is not None:
            raise RuntimeError(f"strace has ended with exit code {strace.returncode}")
        time.sleep(0.01)
    time.sleep(0.01)  # strace is attached before it interrupts this process for the first time


def allow_tracing() -> None:
    """Where Linux lets only parents trace (Yama), let any process of this user trace this one."""
    set_ptracer, any_process = 0x59616D61, -1  # prctl(2)
    ctypes.CDLL(None).prctl(set_ptracer, ctypes.c_ulong(any_process), 0, 0, 0)


def open_calls(trace: Path) -> list[str]:
    """The open and openat calls of a trace; a call that strace printed in two parts is joined."""
    calls = []
    first_halves = {}  # by process id
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            first_halves[process] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... open"):
            call = first_halves.pop(process) + call
        calls.append(call)
    return calls


def opened(trace: Path, root: Path) -> set[str]:
    """Files below `root` that were opened; of code, the modules that were imported.

    Files that the traced processes made themselves are left out.
    """
    read = set()
    made = set()
    compiled = re.compile(
        rf'"{re.escape(str(root))}/(\S+)/__pycache__/([^/]+?)\.cpython-[^/"]*\.pyc"'
    )
    for call in open_calls(trace):
        # An import looks for the compiled module, whether there is one or not. A source that is
        # opened is no import: libraries hash all sources beside their caller without running them.
        imported = compiled.search(call)
        if imported:
            read.add(f"{imported[1]}/{imported[2]}.py")
        # openat(AT_FDCWD</folder>, "name", O_RDONLY|O_CLOEXEC) = 3</folder/name>
        result = re.search(r"= \d+<(.+?)(?: \(deleted\))?>$", call)
        if not result or not result[1].startswith(f"{root}/"):
            continue
        path = result[1].removeprefix(f"{root}/")
        if "O_CREAT" in call or "O_TMPFILE" in call:
            # Outputs are written as a part, then renamed.
            made |= {path, path.removesuffix(".part")}
            continue
        is_code = path.endswith((".py", ".pyc"))
        is_folder = "O_DIRECTORY" in call or (root / path).is_dir()
        if not is_code and not is_folder and path not in made:
            read.add(path)
    return read


def undeclared(files: set[str], stage: dict, root: Path) -> list[str]:
    """The files that a stage (an entry of dvc.lock) neither declares nor may read undeclared."""
    entries = [entry for kind in ("deps", "outs") for entry in stage.get(kind, [])]
    declared = {entry["path"] for entry in entries} | set(audit.HARMLESS) | set(NOT_DATA)
    # Every stage opens them; the audit sees which ones use them for more than params.py does.
    declared |= audit.direct_imports("stages/params.py")
    declared |= set(READ_FOR_NO_OUTPUT.get(stage["cmd"], ()))

    def harmless(file: str) -> bool:
        if file.endswith(".gitignore"):
            return True
        empty = file.endswith("__init__.py") and not (root / file).read_text()
        return empty or any(
            file == name or file.startswith((f"{name}/", f"{name}.part")) for name in declared
        )

    return sorted(file for file in files if not harmless(file))
