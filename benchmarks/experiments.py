"""What DVC itself costs: nothing to do, at the size of the run on disk and with 100,000 synthetic images; a changed `fid` param.

    python -m benchmarks.experiments [nothing large fid]      in a repository whose run is finished (`dvc status`: up to date)

`large` and `fid` work in a temporary copy. Wall seconds say what a user waits, on a quiet machine; processor seconds, children included,
hardly depend on what else runs.
"""

import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from stages.common.artifacts import IMAGE, write_shards

ROUNDS, IMAGES, IMAGE_BYTES = 5, 100_000, 6_000
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.string())])


def main(*chosen: str) -> None:
    print(
        "| what | wall s, median | lowest to highest | processor s, median | wanted |\n|---|---:|---|---:|---|"
    )
    if not chosen or "nothing" in chosen:
        for command in (["dvc", "repro"], ["dvc", "status"]):
            measure(f"`{' '.join(command)}`, nothing to do", command, Path("."), "<= 2 s")
    if not chosen or "fid" in chosen:
        with copy() as folder:
            # Another value each time: DVC's run cache would know the last one.
            for number in range(3):
                text = Path("params.yaml").read_text(encoding="utf-8")
                changed = text.replace("subsets: 20 ", f"subsets: {21 + number} ")
                assert changed != text, "params.yaml: fid.subsets is not 20 here"
                (folder / "params.yaml").write_text(changed, encoding="utf-8")
                measure(
                    f"`dvc repro` after fid.subsets = {21 + number}",
                    ["dvc", "repro"],
                    folder,
                    "<= 15 s",
                    rounds=1,
                )
    if not chosen or "large" in chosen:
        with copy() as folder:
            shutil.rmtree(folder / "data/synthetic")
            noise = random.Random(0)
            rows = (
                {
                    "image": {"bytes": noise.randbytes(IMAGE_BYTES), "path": f"{i}.png"},
                    "label": "Bare Land",
                }
                for i in range(IMAGES)
            )
            write_shards(folder / "data/synthetic", rows, SCHEMA)
            # As if the pipeline had made them: dvc.lock takes what lies there, nothing runs.
            subprocess.run(["dvc", "commit", "-q", "-f"], cwd=folder, check=True)
            for command in (["dvc", "repro"], ["dvc", "status"]):
                measure(
                    f"`{' '.join(command)}`, {IMAGES:,} images of {IMAGE_BYTES / 1000:.0f} kB",
                    command,
                    folder,
                    "<= 5 s",
                )


@contextmanager
def copy() -> Iterator[Path]:
    """A temporary copy of the repository with its outputs and a cache of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        subprocess.run(["git", "clone", "-q", ".", str(folder)], check=True)
        for name in ("data", "models", "metrics"):
            shutil.copytree(name, folder / name, dirs_exist_ok=True)
        subprocess.run(["dvc", "commit", "-q", "-f"], cwd=folder, check=True)
        yield folder


def measure(what: str, command: list[str], folder: Path, wanted: str, rounds: int = ROUNDS) -> None:
    walls, processors = [], []
    for _ in range(rounds):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    wall, processor = statistics.median(walls), statistics.median(processors)
    print(
        f"| {what} | {wall:.2f} | {min(walls):.2f} to {max(walls):.2f} | {processor:.2f} | {wanted} |",
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
