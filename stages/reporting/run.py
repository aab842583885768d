"""run.js: what belongs to this machine and moment: commit, versions, device, params, the stages with their times and sizes.

In a file of its own, so that all the rest of the report has the same bytes for the same declared inputs: DVC keeps no times,
writes dvc.lock after the stage, and takes no dvc.yaml as a dependency.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "torchgeo",
    "lightning",
    "dvc",
    "numpy",
    "pillow",
)
TIMES = Path(".dvc/tmp/stage_times")  # what `stages/__init__.py` leaves


def script(flow: str, outs: dict[str, list[str | Path]]) -> str:
    """`const run = {...}`. flow: the diagram, as <svg>; outs: stage -> paths that it writes."""
    commit = ask("git", "rev-parse", "HEAD")
    found = {
        "commit": commit,
        "changed": bool(
            commit
            and ask("git", "status", "--porcelain", "--", "stages", "params.yaml", "dvc.yaml")
        ),
        "device": device(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "flow": flow,
        "params": Path("params.yaml").read_text(encoding="utf-8"),
        "stages": {
            stage: {"seconds": seconds(stage), "bytes": size(paths)}
            for stage, paths in outs.items()
        },
    }
    return f"const run = {json.dumps(found, indent=1)};\n"


def ask(*command: str) -> str:
    """What a program prints, or "" where it isn't installed or has nothing to say."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def device() -> str:
    """The GPUs, or the processor and how many cores this process may use."""
    if gpus := ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"):
        return ", ".join(gpus.splitlines())
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def seconds(stage: str) -> float | None:
    """Wall time of the stage's last run here, its items added up; None where one was never run here (pulled, say)."""
    files = [TIMES / stage, *TIMES.glob(f"{stage}@*")]
    times = [float(file.read_text()) for file in files if file.is_file()]
    return round(sum(times), 1) if times else None


def size(paths: list[str | Path]) -> int | None:
    """Bytes of a stage's outputs, None where none is here."""
    files = [
        file
        for path in map(Path, paths)
        for file in (path.rglob("*") if path.is_dir() else [path])
        if file.is_file()
    ]
    return sum(file.stat().st_size for file in files) if files else None
