"""Rehearse a scale: run its pipeline on few images, and say what the full run will take.

    python -m tools.rehearse paper
    python -m tools.rehearse paper --random-weights --layers 2

Runs the commands of dvc.yaml in a temporary copy of the repository (in $TMPDIR), with the scale's
own models, widths and resolutions. Cut are counts: images, prompts, steps, repetitions, and on a
CPU the batches of large models. A stage that fails gets its error in the table, those that need it
are not rehearsed, all others are. Exit code 1 comes with any fault. Your params.yaml, dvc.lock,
data, models and metrics stay as they are; what a hub gives stays in its cache.

The forecast of a stage is the time that it took, and for each unit of work that was cut the time of
such a unit: by the stage's progress bars, or by a second run with more units. A stage without a
unit is taken to need the same time. Peak memory is that of the rehearsal. The disk has to hold all
outputs twice, as DVC keeps them, and the largest resume cache of a stage.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from stages.runtime.errors import exit_with_error
from stages.runtime.process import start_process
from stages.runtime.progress import log
from tools.cache import format_size
from tools.rehearsal import cuts, inputs
from tools.rehearsal.copying import copy_repository, read_stages, remove_outputs
from tools.rehearsal.cuts import Params
from tools.rehearsal.device import Device, find_device
from tools.rehearsal.inputs import SourceCounts
from tools.rehearsal.measuring import folder_size
from tools.rehearsal.stages import (
    FIGURES,
    Rehearsal,
    run_apart,
    run_stages,
    training_bytes,
)
from tools.rehearsal.table import HOUR, Row, duration, render
from tools.scale import compose, load_text, scale_names


def main() -> None:
    arguments = parse_arguments()
    start_process()
    if not arguments.scale:
        exit_with_error(f"name a scale: {', '.join(scale_names())} (make rehearse SCALE=paper)")
    # Both end it with the table of what was done, also where a shell started it in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    full = load_text(compose(arguments.scale)[0])
    device = find_device()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        root = Path(temporary)
        rehearsal = prepare(arguments, full, device, root)
        stages = read_stages(rehearsal.folder)
        remove_outputs(rehearsal.folder, stages)
        rows = run_stages(rehearsal, stages)
        report(arguments, rehearsal, rows)
    if any(row.fault for row in rows):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.rehearse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scale", nargs="*", help="as for tools.scale")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="make models of random weights instead of downloading them, and render the imagery",
    )
    parser.add_argument("--layers", type=int, help="--random-weights: at most so many layers")
    parser.add_argument(
        "--imagery", type=Path, metavar="FOLDER", help="Parquet files of the hub's imagery"
    )
    parser.add_argument(
        "--card-gb", type=float, help="memory of the GPU that the full run will have"
    )
    parser.add_argument("--usd-per-hour", type=float, help="price of the machine of the full run")
    arguments = parser.parse_args()
    if arguments.layers is not None and not arguments.random_weights:
        parser.error("--layers: only the models of --random-weights are cut")
    return arguments


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
        sizes, params = run_apart(make_models, params, root / "models", arguments.layers)
    if arguments.random_weights and full["fetch_papers"]["source"].startswith("hub:"):
        params["fetch_papers"]["source"] = "embedded"
        params["scrape"]["min_papers"] = 5
    card = arguments.card_gb * 1e9 if arguments.card_gb else device.gpu_memory
    rehearsal = Rehearsal(
        folder, full, params, device, card, large_on_cpu, imagery, hub_images, sizes
    )
    rehearsal.write_params()
    return rehearsal


def hub_counts(source: str) -> SourceCounts:
    """The images of each split of the hub's imagery that rendered tiles stand in for."""
    name = source.partition(":")[2].partition("@")[0]
    if name not in inputs.HUB_IMAGES:
        exit_with_error(
            f"fetch_imagery.source: {source}: --random-weights renders tiles in place of "
            f"{', '.join(inputs.HUB_IMAGES)} only; name its Parquet files with --imagery"
        )
    return inputs.HUB_IMAGES[name]


def make_models(params: Params, folder: Path, layers: int | None) -> tuple[dict[str, int], Params]:
    """`inputs.make_models` for another process, whose changes of `params` are returned."""
    sizes = inputs.make_models(params, folder, layers)
    return sizes, params


# The report.


def report(arguments: argparse.Namespace, rehearsal: Rehearsal, rows: list[Row]) -> None:
    """Print the table, the sums and whether this machine can run the scale."""
    scale = " ".join(arguments.scale)
    print(render(rows, f"## {scale}: rehearsed on {rehearsal.device.name}"))
    print("\n### Cut, or replaced\n")
    for key, change in cuts.changes(rehearsal.full, rehearsal.params).items():
        change = change.replace(str(rehearsal.folder.parent), "(temporary folder)")
        print(f"- {key}: {change}")
    if arguments.layers:
        print(f"- layers of the models: at most {arguments.layers}")
    ran = [row for row in rows if row.measured and not row.fault]
    seconds = sum(row.full_seconds for row in ran)
    disk = sum(row.full_disk for row in ran)
    largest = max(ran, key=lambda row: row.full_cache, default=Row(""))
    free = shutil.disk_usage(".").free
    rehearsed = sum(row.measured.seconds for row in rows if row.measured)
    print("\n### The full run\n")
    print(f"- time of the rehearsal: {duration(rehearsed)}")
    print(f"- time of the full run: {duration(seconds)}, of the stages that were rehearsed")
    if arguments.usd_per_hour:
        print(f"- cost: {seconds / HOUR * arguments.usd_per_hour:.2f} USD")
    peak = max((row.measured.memory for row in ran if row.measured), default=0)
    print(f"- peak memory of a stage, as rehearsed: {format_size(peak)}")
    print(
        f"- disk: {format_size(2 * disk)}: outputs of {format_size(disk)}, and as much in DVC's "
        f"cache where the disk has no reflinks; {format_size(free)} are free"
    )
    if largest.full_cache >= 1e6:
        print(f"- resume cache: {format_size(largest.full_cache)} at most, of {largest.stage}")
    print(f"- downloads of models: {describe_downloads(rehearsal)}")
    print(f"\n{verdict(rehearsal, rows, 2 * disk + largest.full_cache - free)}")


def describe_downloads(rehearsal: Rehearsal) -> str:
    """The bytes of each model that the full run downloads."""
    parts = []
    for role, source in rehearsal.full["fetch_model"].items():
        folder = rehearsal.folder / "models/base" / role
        if source.startswith("hub:") and role in rehearsal.model_bytes:
            parts.append(f"{role} {format_size(rehearsal.model_bytes[role])}")
        elif source.startswith("hub:") and folder.exists():
            parts.append(f"{role} {format_size(folder_size(folder))}")
    return ", ".join(parts) or "none"


def verdict(rehearsal: Rehearsal, rows: list[Row], missing_disk: float) -> str:
    """Whether this machine can run the scale, and if not, why."""
    reasons = []
    faults = sum(bool(row.fault) for row in rows)
    if faults:
        reasons.append(f"{faults} stages failed or were not rehearsed")
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
    if missing_disk > 0:
        reasons.append(f"the disk lacks {format_size(missing_disk)}")
    if reasons:
        return f"This machine cannot run it: {'; '.join(reasons)}."
    return "This machine can run it."


if __name__ == "__main__":
    main()
