"""What DVC itself costs, in a repository whose run is finished (`dvc status`: up to date).

    python -m benchmarks.experiments [nothing] [fid] [large]

nothing   nothing has changed: `dvc repro` and `dvc status`
fid       a param of the stage `fid` has changed
large     nothing has changed, but `data/synthetic` holds 100,000 images

Without a name it measures all three. `fid` and `large` work in a temporary copy. Wall seconds are
what a user waits on a quiet machine; processor seconds, of all child processes, hardly depend on
what else runs.
"""

import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from stages.common.artifacts import IMAGE, write_shards
from stages.runtime.process import make_parser

ROUNDS = 5
LARGE_IMAGES = 100_000
IMAGE_BYTES = 6_000
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.string())])
DVC_COMMANDS = (["dvc", "repro"], ["dvc", "status"])


def main() -> None:
    parser = make_parser("benchmarks.experiments", __doc__)
    measurements = {"nothing": measure_nothing, "fid": measure_fid, "large": measure_large}
    parser.add_argument("names", nargs="*", metavar="nothing|fid|large")
    names = parser.parse_args().names or list(measurements)
    for name in names:
        if name not in measurements:
            parser.error(f"unknown measurement: {name}")
    print("| what | wall s, median | lowest to highest | processor s, median | wanted |")
    print("|---|---:|---|---:|---|")
    for name in names:
        measurements[name]()


def measure_nothing() -> None:
    for command in DVC_COMMANDS:
        measure(f"`{' '.join(command)}`, nothing to do", command, Path("."), "<= 2 s")


def measure_fid() -> None:
    params = Path("params.yaml").read_text(encoding="utf-8")
    with copy_repository() as folder:
        # Three values: DVC's run cache would restore the result of one that ran before.
        for subsets in (21, 22, 23):
            changed = params.replace("subsets: 20 ", f"subsets: {subsets} ")
            assert changed != params, "params.yaml: fid.subsets is not 20 here"
            (folder / "params.yaml").write_text(changed, encoding="utf-8")
            what = f"`dvc repro` after fid.subsets = {subsets}"
            measure(what, ["dvc", "repro"], folder, "<= 15 s", rounds=1)


def measure_large() -> None:
    with copy_repository() as folder:
        shutil.rmtree(folder / "data/synthetic")
        write_shards(folder / "data/synthetic", random_rows(), SCHEMA)
        # Make DVC believe that the pipeline made them: dvc.lock takes what is there, nothing runs.
        subprocess.run(["dvc", "commit", "-q", "-f"], cwd=folder, check=True)
        for command in DVC_COMMANDS:
            images = f"{LARGE_IMAGES:,} images of {IMAGE_BYTES / 1000:.0f} kB"
            measure(f"`{' '.join(command)}`, {images}", command, folder, "<= 5 s")


def random_rows() -> Iterator[dict]:
    """Rows of a synthetic set whose images are random bytes."""
    generator = random.Random(0)
    for i in range(LARGE_IMAGES):
        image = {"bytes": generator.randbytes(IMAGE_BYTES), "path": f"{i}.png"}
        yield {"image": image, "label": "farmland"}


@contextmanager
def copy_repository() -> Iterator[Path]:
    """A temporary copy of the repository with its outputs and a separate DVC cache."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        subprocess.run(["git", "clone", "-q", ".", str(folder)], check=True)
        for name in ("data", "models", "metrics"):
            shutil.copytree(name, folder / name, dirs_exist_ok=True)
        subprocess.run(["dvc", "commit", "-q", "-f"], cwd=folder, check=True)
        yield folder


def measure(what: str, command: list[str], folder: Path, wanted: str, rounds: int = ROUNDS) -> None:
    """Run a command several times and print a row of the table."""
    wall_seconds = []
    processor_seconds = []
    for _ in range(rounds):
        processor_start = children_seconds()
        wall_start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        wall_seconds.append(time.perf_counter() - wall_start)
        processor_seconds.append(children_seconds() - processor_start)
    wall = statistics.median(wall_seconds)
    spread = f"{min(wall_seconds):.2f} to {max(wall_seconds):.2f}"
    processor = statistics.median(processor_seconds)
    print(f"| {what} | {wall:.2f} | {spread} | {processor:.2f} | {wanted} |", flush=True)


def children_seconds() -> float:
    """Processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
