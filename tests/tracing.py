"""Which files of the repository a stage opens while it runs, by the system calls themselves (strace): what Python opens, and what
Arrow, safetensors and tokenizers open behind its back. Listing a folder is not seen as reading it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import audit

# Opened by stages though no dep: git and DVC, asked by DVCLive for the repository's root, and its folder (stages/runtime/tracking.py,
# which the audit of imports lists as harmless), and params.yaml, of which `params:` declares the sections.
NOT_DATA = (".git", ".dvc", ".dvcignore", "dvclive", "params.yaml")
# The report asks git and DVC for the graph and what was run, for run.js alone: what changes between two runs (stages/reporting/run.py).
OF_THE_MOMENT = {"python -m stages.report": ("dvc.yaml", "dvc.lock")}


def available() -> bool:
    strace = shutil.which("strace")
    return (
        bool(strace)
        and subprocess.run(
            [strace, "-qq", "-o", "/dev/null", "true"], capture_output=True
        ).returncode
        == 0
    )


def install(shim: Path, traces: Path) -> None:
    """Make `shim/python`, to be found on PATH before the real one: it runs Python under strace, a trace per command in `traces`."""
    shim.mkdir(parents=True)
    traces.mkdir(parents=True)
    (shim / "python").write_text(f"""#!/bin/sh
exec strace -f -y -qq --seccomp-bpf -e trace=open,openat -e signal=none -o "{traces}/$*" "{sys.executable}" "$@"
""")
    (shim / "python").chmod(0o755)


def opened(trace: Path, root: Path) -> set[str]:
    """Files below `root` that were opened and that the traced processes had not made themselves; of code, the modules imported."""
    read, made, halves = set(), set(), {}
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            halves[pid] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... open"):
            call = halves.pop(pid) + call
        # An import asks for the compiled module, there or not. Sources are also opened by a library that hashes all that lie beside its
        # caller, without running them: opening a `.py` is no import.
        if imported := re.search(
            rf'"{re.escape(str(root))}/(\S+)/__pycache__/([^/]+?)\.cpython-[^/"]*\.pyc"', call
        ):
            read.add(f"{imported[1]}/{imported[2]}.py")
        # openat(AT_FDCWD</folder>, "name", O_RDONLY|O_CLOEXEC) = 3</folder/name>
        if not (found := re.search(r"= \d+<(.+?)(?: \(deleted\))?>$", call)) or not found[
            1
        ].startswith(f"{root}/"):
            continue
        path = found[1].removeprefix(f"{root}/")
        if "O_CREAT" in call or "O_TMPFILE" in call:
            made |= {path, path.removesuffix(".part")}  # written as a part, then renamed
        elif (
            not path.endswith((".py", ".pyc"))
            and "O_DIRECTORY" not in call
            and path not in made
            and not (root / path).is_dir()
        ):
            read.add(path)
    return read


def undeclared(files: set[str], stage: dict, root: Path) -> list[str]:
    """Those of the opened files that are neither deps nor outs of a stage (an entry of dvc.lock), nor known to be harmless."""
    declared = (
        {entry["path"] for kind in ("deps", "outs") for entry in stage.get(kind, [])}
        | set(audit.HARMLESS)
        | set(NOT_DATA)
    )
    declared |= set(OF_THE_MOMENT.get(stage["cmd"], ()))

    def harmless(file: str) -> bool:
        if file.endswith(".gitignore"):
            return True
        empty = file.endswith("__init__.py") and not (root / file).read_text()
        return empty or any(
            file == name or file.startswith((f"{name}/", f"{name}.part")) for name in declared
        )

    return sorted(file for file in files if not harmless(file))
