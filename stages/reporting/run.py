"""run.js: what ran where: commit, versions, device, params, times and sizes of the stages.

The report's page shows it where it lies beside the report. It is neither an output nor in git: the
report has the same bytes whenever and wherever it is made from the same inputs.
"""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from stages.common.artifacts import write_atomically
from stages.runtime.parallel import available_cores

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
OUT = Path("metrics/run.js")
TIMES = Path(".dvc/tmp/stage_times")  # written by stages/runtime/process.py
TRACKED = ("stages", "params.yaml", "dvc.yaml")  # code and params, whose changes the page names


def write_run_script(report_id: str) -> None:
    """Write `OUT`, `const run = {...};`. report_id: a page shows only the run with its own id."""
    commit = output_of("git", "rev-parse", "HEAD")
    changes = output_of("git", "status", "--porcelain", "--", *TRACKED)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    run = {
        "report": report_id,
        "commit": commit,
        "changed": bool(commit and changes),
        "device": hardware_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "params": Path("params.yaml").read_text(encoding="utf-8"),
        "stages": describe_stages(),
    }
    write_atomically(OUT, f"const run = {json.dumps(run, indent=1)};\n".encode())


def describe_stages() -> list[dict]:
    """Return {name, items, reads, seconds, bytes} per stage of dvc.yaml, in its order.

    A foreach stage is one, with its number of items. reads: the stages whose outputs it reads.
    """
    from dvc.repo import Repo

    index = Repo(".").index
    outputs: dict[str, list[Path]] = {}
    items: dict[str, int] = {}
    for stage in index.stages:
        name = stage_name(stage)
        items[name] = items.get(name, 0) + 1
        outputs.setdefault(name, []).extend(Path(str(out)) for out in stage.outs)
    reads = {(stage_name(reader), stage_name(writer)) for reader, writer in index.graph.edges}
    return [
        {
            "name": name,
            "items": items[name],
            "reads": [other for other in outputs if (name, other) in reads],
            "seconds": wall_time(name),
            "bytes": total_size(outputs[name]),
        }
        for name in outputs
    ]


def stage_name(stage) -> str:
    """Return the name of a DVC stage, without the item of a foreach stage."""
    return stage.addressing.partition("@")[0]


def output_of(*command: str) -> str:
    """Return what a program prints; "" where it isn't installed or fails."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()


def hardware_name() -> str:
    """Name the GPUs, or the processor and how many cores this process may use."""
    gpus = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if gpus:
        return ", ".join(gpus.splitlines())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {available_cores()} cores"


def wall_time(stage: str) -> float | None:
    """Return seconds of the stage's last complete run here, over all items of a foreach stage.

    Where that run was resumed, those since then. None where none is known: the stage never ran
    here, for example where its outputs were pulled.
    """
    files = [TIMES / stage, *TIMES.glob(f"{stage}@*")]
    times = []
    for file in files:
        with suppress(OSError, ValueError):  # a power cut or a full disk may leave an empty file
            times.append(float(file.read_text("utf-8")))
    return round(sum(times), 1) if times else None


def total_size(paths: list[Path]) -> int | None:
    """Return the bytes of files and of folders with all they hold; None where there is no file."""
    files = []
    for path in paths:
        files += [file for file in [path, *path.rglob("*")] if file.is_file()]
    return sum(file.stat().st_size for file in files) if files else None
