"""Rehearse a scale: run its pipeline on few images, and say what the full run will take.

    python -m tools.rehearse paper
    python -m tools.rehearse paper --random-weights --layers 2

Runs the commands of dvc.yaml in a temporary copy of the repository (in $TMPDIR), with the scale's
own models, widths and resolutions. Only counts are cut: images, prompts, steps, repetitions, and on
a CPU the batches of large models. Where a stage fails, its error is in the table; the stages that
need it are not rehearsed, all others are. A stage that only the full run would stop at is named
below the table. Any fault gives exit code 1. Your params.yaml, dvc.lock, data, models and metrics
stay as they are; downloads from the hub stay in its cache.

With --random-weights, models of random weights, rendered tiles and the field notes stand in for the
hub's models, imagery and papers. Still downloaded are papers of arXiv, encode.base_domain of the
hub and, with fetch_imagery.download, data sets of TorchGeo.

The forecast of a stage is the time that it took, plus the time of the work that was cut: its units
(images, steps, ...) times the seconds of a unit, which are taken from the stage's progress bars or
from a second run with more units. A stage without a unit is taken to need the same time. Peak
memory is that of the rehearsal. The disk has to hold all outputs twice, as DVC keeps them, the
hub's models once more, in the hub's cache, and the largest resume cache of a stage. Where one of
these caches is on another disk, it is compared with what is free there.
"""

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.constants import HF_HUB_CACHE

from stages.params import load_yaml
from stages.runtime.errors import exit_with_error
from stages.runtime.process import interrupt_on_signals, make_parser, start_process
from stages.runtime.progress import log
from stages.runtime.resume_cache import cache_root
from tools.cache import format_size
from tools.rehearsal import cuts, inputs
from tools.rehearsal.copying import copy_repository, read_stages, remove_outputs
from tools.rehearsal.cuts import Params
from tools.rehearsal.device import Device, find_device
from tools.rehearsal.inputs import SourceCounts
from tools.rehearsal.measuring import folder_size
from tools.rehearsal.stages import (
    FIGURES,
    INTERRUPTED,
    Rehearsal,
    run_apart,
    run_stages,
    training_bytes,
)
from tools.rehearsal.table import HOUR, Row, duration, render
from tools.scale import compose, scale_names


class Disk(NamedTuple):
    """A folder, the device that it is on, and the bytes that are free there."""

    folder: Path
    device: int
    free: float


class Disks(NamedTuple):
    """Where the full run writes; the three may be one."""

    outputs: Disk
    hub: Disk
    resume: Disk


def main() -> None:
    arguments = parse_arguments()
    start_process()
    if not arguments.scale:
        exit_with_error(f"name a scale: {', '.join(scale_names())} (make rehearse SCALE=paper)")
    interrupt_on_signals()  # the table of what was done is printed
    full = load_yaml(compose(arguments.scale)[0])
    device = find_device()
    disks = find_disks()  # without the rehearsal's own files
    cached = size_of_cached_models()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        root = Path(temporary)
        rehearsal = prepare(arguments, full, device, root)
        stages = read_stages(rehearsal.folder)
        remove_outputs(rehearsal.folder, stages)
        rows = run_stages(rehearsal, stages)
        report(arguments, rehearsal, rows, disks, size_of_cached_models() - cached)
    if any(row.fault or row.full_fault for row in rows):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("tools.rehearse", __doc__)
    parser.add_argument("scale", nargs="*", help="as for tools.scale")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="models of random weights, rendered tiles and field notes in place of the hub's",
    )
    parser.add_argument(
        "--layers", type=positive(int), help="with --random-weights: most layers per model"
    )
    parser.add_argument(
        "--imagery", type=Path, metavar="FOLDER", help="local Parquet files of the hub's imagery"
    )
    parser.add_argument(
        "--card-gb", type=positive(float), help="memory of the GPU that the full run will have"
    )
    parser.add_argument(
        "--usd-per-hour", type=positive(float), help="price of the machine of the full run"
    )
    arguments = parser.parse_args()
    if arguments.layers is not None and not arguments.random_weights:
        parser.error("--layers: only the models of --random-weights are cut")
    return arguments


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """A type of argparse: numbers above 0 that are finite."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: write a number above 0")
        return value

    parse.__name__ = kind.__name__  # in argparse's message about text that is no number
    return parse


def prepare(arguments: argparse.Namespace, full: Params, device: Device, root: Path) -> Rehearsal:
    """Make the copy and its inputs."""
    imagery = full["fetch_imagery"]["source"]
    if arguments.imagery and not imagery.startswith("hub:"):
        exit_with_error(f"--imagery: is for imagery of the hub; fetch_imagery.source is {imagery}")
    hub_images: SourceCounts = {}
    if imagery.startswith("hub:") and arguments.random_weights and not arguments.imagery:
        hub_images = hub_counts(imagery)
    folder = root / "copy"
    copy_repository(folder, inputs.resolve_paths(full))
    is_large = full["fetch_model"]["diffusion"].partition(":")[0] in ("hub", "path")
    large_on_cpu = is_large and device.gpu_memory is None
    params = cuts.cut_params(full, large_on_cpu, device.precisions)
    if large_on_cpu:
        lines = (folder / FIGURES).read_text(encoding="utf-8").splitlines()[:2]
        (folder / FIGURES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes: dict[str, int] = {}
    images = params["fetch_imagery"]["max_images"]
    if arguments.imagery:
        run_apart(inputs.copy_first_rows, params, arguments.imagery, root / "imagery", images)
        imagery = f"path:{arguments.imagery}"
    elif hub_images:
        run_apart(inputs.render_imagery, params, root / "imagery", images)
    if (root / "imagery").exists():
        params["fetch_imagery"]["source"] = f"path:{root / 'imagery'}"
    if arguments.random_weights:
        log("rehearse: makes models of random weights")
        models = root / "models"
        sizes, params = run_apart(inputs.make_models, params, models, arguments.layers)
    if arguments.random_weights and full["fetch_papers"]["source"].startswith("hub:"):
        params["fetch_papers"]["source"] = "embedded"
        params["scrape"]["min_papers"] = 5
    card = device.gpu_memory if arguments.card_gb is None else arguments.card_gb * 1e9
    rehearsal = Rehearsal(
        folder, full, params, device, card, large_on_cpu, imagery, hub_images, sizes
    )
    rehearsal.write_params()
    return rehearsal


def hub_counts(source: str) -> SourceCounts:
    """Return how many images each split has of the hub's imagery that rendered tiles replace."""
    name = source.partition(":")[2].partition("@")[0]
    if name not in inputs.HUB_IMAGES:
        exit_with_error(
            f"fetch_imagery.source: {source}: --random-weights renders tiles in place of "
            f"{', '.join(inputs.HUB_IMAGES)} only; name its Parquet files with --imagery"
        )
    return inputs.HUB_IMAGES[name]


# Disks.


def find_disks() -> Disks:
    """The disks of the outputs, of the hub's cache and of the stages' resume cache.

    Raises:
        SystemExit: no resume cache can be written, with which the full run would stop.
    """
    resume = cache_root()
    if not os.access(resume, os.W_OK | os.X_OK):
        exit_with_error(f"{resume}: cannot be written; set REMOTE_DIFFUSION_SCRATCH")
    return Disks(*(find_disk(folder) for folder in (Path.cwd(), Path(HF_HUB_CACHE), resume)))


def find_disk(folder: Path) -> Disk:
    """The disk of a folder, which need not be there yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return Disk(folder, existing.stat().st_dev, shutil.disk_usage(existing).free)


def size_of_cached_models() -> int:
    """The bytes of the models in the hub's cache."""
    return sum(folder_size(folder) for folder in Path(HF_HUB_CACHE).glob("models--*"))


def place(disk: Disk, disks: Disks) -> str:
    """Where a folder lies that is on another disk than the outputs; "" for theirs."""
    if disk.device == disks.outputs.device:
        return ""
    return f" (in {disk.folder}, another disk: {format_size(disk.free)} are free)"


def describe_lacks(disks: Disks, needs: tuple[float, float, float], least: str) -> list[str]:
    """What each disk lacks, of which less is free than `needs` has for its folders, bytes."""
    lacks = []
    for device in dict.fromkeys(disk.device for disk in disks):
        there = [(disk, needed) for disk, needed in zip(disks, needs) if disk.device == device]
        first = there[0][0]
        missing = sum(needed for _, needed in there) - first.free
        name = "the disk" if first is disks.outputs else f"the disk of {first.folder}"
        if missing > 0:
            lacks.append(f"{name} lacks {least}{format_size(missing)}")
    return lacks


# The report.


def report(
    arguments: argparse.Namespace,
    rehearsal: Rehearsal,
    rows: list[Row],
    disks: Disks,
    newly_cached: float,
) -> None:
    """Print the table, the sums and whether this machine can run the scale.

    `disks` are those before the rehearsal; `newly_cached` are the bytes of the models that it has
    downloaded to the hub's cache.
    """
    scale = " ".join(arguments.scale)
    print(render(rows, f"## {scale}: rehearsed on {rehearsal.device.name}"))
    print("\n### Cut, or replaced\n")
    for key, change in cuts.changes(rehearsal.full, rehearsal.params).items():
        change = change.replace(str(rehearsal.folder.parent), "(temporary folder)")
        print(f"- {key}: {change}")
    if arguments.layers:
        print(f"- layers of the models: at most {arguments.layers}")
    print("\n### The full run\n")
    for line in describe_time(rows, arguments.usd_per_hour):
        print(f"- {line}")
    ran = [row for row in rows if row.measured and not row.fault]
    peak = max((row.measured.memory for row in ran if row.measured), default=0)
    print(f"- peak memory of a stage, as rehearsed: {format_size(peak)}")
    if rehearsal.device.gpu_memory is None and (rehearsal.card or rehearsal.large_on_cpu):
        print("- activations are not counted: docs/scale.md has what fits a card")
    lacks = report_disks(rehearsal, rows, disks, newly_cached)
    print(f"\n{verdict(rehearsal, rows, lacks)}")


def report_disks(
    rehearsal: Rehearsal, rows: list[Row], disks: Disks, newly_cached: float
) -> list[str]:
    """Print what the full run needs of the disks; return what they lack."""
    ran = [row for row in rows if row.measured and not row.fault]
    disk = sum(row.full_disk for row in ran)
    downloads = model_downloads(rehearsal)
    stand_ins = sum(downloads[role] or 0 for role in downloads if role in rehearsal.model_bytes)
    # Models that the hub's cache had before take no more of it.
    fetched = sum(size or 0 for size in downloads.values()) - stand_ins
    downloaded = stand_ins + min(fetched, newly_cached)
    largest = max(ran, key=lambda row: row.full_cache, default=Row(""))
    least, without = describe_unknown([row.stage for row in rows if row.fault])

    in_hub_cache = f", and {format_size(downloaded)} in the hub's" if downloaded else ""
    in_hub_cache += place(disks.hub, disks) if downloaded else ""
    needed = 2 * disk + (downloaded if disks.hub.device == disks.outputs.device else 0)
    print(
        f"- disk: {least}{format_size(needed)}{without}: outputs of {format_size(disk)}, and as "
        f"much in DVC's cache where the disk has no reflinks{in_hub_cache}; "
        f"{format_size(disks.outputs.free)} are free"
    )
    if largest.full_cache >= 1e6:
        most = "" if least else " at most"
        print(
            f"- resume cache: {least}{format_size(largest.full_cache)}{most}, of {largest.stage}"
            f"{place(disks.resume, disks)}"
        )
    sizes = ", ".join(
        f"{role} {'unknown' if size is None else format_size(size)}"
        for role, size in downloads.items()
    )
    print(f"- downloads of models: {sizes or 'none'}")
    return describe_lacks(disks, (2 * disk, downloaded, largest.full_cache), least)


def describe_time(rows: list[Row], usd_per_hour: float | None) -> list[str]:
    """What the rehearsal took, and what the full run takes: time, and costs where there is a price.

    The latter is a lower bound where the time of a stage is unknown.
    """
    rehearsed = sum(row.measured.seconds for row in rows if row.measured)
    unknown = [row.stage for row in rows if row.fault or row.lacks_time]
    seconds = sum(row.full_seconds for row in rows if not row.fault)
    least, without = describe_unknown(unknown)
    lines = [
        f"time of the rehearsal: {duration(rehearsed)}",
        f"time of the full run: {least}{duration(seconds)}{without}",
    ]
    if usd_per_hour:
        lines.append(f"cost: {least}{seconds / HOUR * usd_per_hour:.2f} USD")
    return lines


def describe_unknown(stages: list[str]) -> tuple[str, str]:
    """What stands before and after a sum that leaves out these stages."""
    if not stages:
        return "", ""
    return "at least ", f", without what is unknown of {', '.join(stages)}"


def model_downloads(rehearsal: Rehearsal) -> dict[str, int | None]:
    """Role -> bytes of the model that the full run downloads; None: it wasn't fetched here."""
    downloads: dict[str, int | None] = {}
    for role, source in rehearsal.full["fetch_model"].items():
        folder = rehearsal.folder / "models/base" / role
        if source.startswith("hub:") and role in rehearsal.model_bytes:
            downloads[role] = rehearsal.model_bytes[role]
        elif source.startswith("hub:"):
            downloads[role] = folder_size(folder) if folder.exists() else None
    return downloads


def verdict(rehearsal: Rehearsal, rows: list[Row], lacks: list[str]) -> str:
    """Whether this machine can run the scale, and if not, why."""
    reasons = []
    interrupted = sum(row.fault == INTERRUPTED for row in rows)
    faults = sum(bool(row.fault) for row in rows) - interrupted
    if faults:
        reasons.append(f"{faults} stages failed or were not rehearsed")
    reasons += [f"{row.stage}: {row.full_fault}" for row in rows if row.full_fault]
    for key in cuts.PRECISIONS:
        precision = cuts.get(rehearsal.full, key)
        if precision == "fp16" and rehearsal.device.gpu_memory is None:
            reasons.append(f"{key}: fp16 needs a GPU")
    needed = training_bytes(rehearsal)
    memory = rehearsal.device.gpu_memory or rehearsal.device.memory
    if needed > memory:
        reasons.append(
            f"fine-tuning needs more than {format_size(needed)} of its {format_size(memory)} of "
            "memory"
        )
    reasons += lacks
    if reasons:
        return f"This machine cannot run it: {'; '.join(reasons)}."
    if interrupted:
        return f"Interrupted: {interrupted} stages were not rehearsed; the others can run here."
    return "This machine can run it."


if __name__ == "__main__":
    main()
