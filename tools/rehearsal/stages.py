"""Run the stages of a rehearsal, each in a process of its own, and collect what they took."""

import math
import os
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from stages.common.artifacts import read_json
from stages.common.csv_files import read_csv
from stages.runtime.memory import available_memory
from stages.runtime.progress import log
from tools.cache import format_size
from tools.commands import path_with_python
from tools.rehearsal import cuts, inputs
from tools.rehearsal.copying import Stage, without_git
from tools.rehearsal.cuts import Counts, Params
from tools.rehearsal.device import Device
from tools.rehearsal.inputs import SourceCounts
from tools.rehearsal.measuring import Measurement, folder_size, measure
from tools.rehearsal.table import Row

# Share of the memory that weights, gradients and optimizer state may take: activations need some.
MEMORY_SHARE = 0.5
FIGURES = Path("stages/embedded/figures.csv")
IMAGES_PER_FIGURE = 4  # as stages/sample.py has it, whose import takes seconds
# Stages that take longer the more text there is.
TEXT_STAGES = ("scrape", "chunk", "index_rag", "finetune_llm")
INTERRUPTED = "not rehearsed: interrupted"


@dataclass
class Rehearsal:
    """A rehearsal at work.

    Attributes:
        folder: the copy of the repository.
        full: the params of the scale.
        params: those of the rehearsal.
        device: of this machine.
        card: bytes of memory of the GPU that the full run will have; None: unknown.
        large_on_cpu: whether the diffusion model is large, and there is no GPU.
        imagery: the source of the full run's imagery: the scale's, or a local copy of it.
        hub_images: numbers of images of the hub's imagery, where rendered tiles stand in for it.
        model_bytes: role -> bytes of the hub's model, where one of random weights stands in for it.
        full_images: split, or `figures` -> images of the full run.
        images: the same of the rehearsal.
    """

    folder: Path
    full: Params
    params: Params
    device: Device
    card: float | None
    large_on_cpu: bool
    imagery: str
    hub_images: SourceCounts
    model_bytes: dict[str, int]
    full_images: Counts = field(default_factory=dict)
    images: Counts = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.folder.parent / "cache"

    def write_params(self, params: Params | None = None) -> None:
        text = yaml.safe_dump(params or self.params, sort_keys=False, allow_unicode=True)
        (self.folder / "params.yaml").write_text(text, encoding="utf-8")


def run_apart(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own, whose memory is free afterwards."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run_stages(rehearsal: Rehearsal, stages: list[Stage]) -> list[Row]:
    """Run the stages; those that need a failed one are not run. Ctrl-C ends it with a table."""
    rows = [Row(stage.name) for stage in stages]
    failed: set[str] = set()
    for stage, row in zip(stages, rows):
        row.fault = check_card(rehearsal) if stage.name == "finetune_sd" else ""
        missing = [name for name in stage.needs if name in failed]
        if not row.fault and missing:
            row.fault = f"not rehearsed: needs {', '.join(missing)}"
        try:
            if not row.fault:
                run_stage(rehearsal, stage, row)
        except KeyboardInterrupt:
            later = rows[rows.index(row) :]
            for unfinished in later:
                unfinished.fault = INTERRUPTED
            break
        # The stages that ran can be forecast all the same. BrokenExecutor: a process of `run_apart`
        # was killed.
        except (SystemExit, OSError, BrokenExecutor) as error:
            row.fault = " ".join(str(error).split())
        if row.fault:
            failed.add(stage.name)
        log(f"rehearse: {stage.name}: {row.fault or 'done'}")
    return rows


def run_stage(rehearsal: Rehearsal, stage: Stage, row: Row) -> None:
    """Run a stage and fill in its row."""
    if stage.name == "finetune_sd":
        choose_method(rehearsal, row)
    row.measured = measure_stage(rehearsal, stage)
    row.fault = row.measured.error
    row.disk = sum(folder_size(rehearsal.folder / out) for out in stage.outs)
    if row.fault:
        return
    row.full_cache = row.measured.cache
    row.notes += check_gpu_peak(rehearsal, row.measured)
    papers, full_papers = rehearsal.params["fetch_papers"], rehearsal.full["fetch_papers"]
    if stage.name in TEXT_STAGES and papers["source"] != full_papers["source"]:
        row.notes.append("the field notes stand in for the papers: the forecast is of them")
    kind, _, role = stage.name.partition("@")
    if kind == "fetch_model" and role in rehearsal.model_bytes:
        row.disk_ratio = max(1, rehearsal.model_bytes[role] / max(row.disk, 1))
    if stage.name == "fetch_imagery":
        row.full_fault = count_images_and_cut_epochs(rehearsal)
    if not rehearsal.images:
        return
    count_work(rehearsal, row)
    if not row.unit:
        return
    in_bars = cuts.work_in_bars(stage.name, rehearsal.params, rehearsal.images)
    row.unit_seconds = row.measured.bar_seconds / in_bars if in_bars else 0
    if stage.name in cuts.SECOND_RUN and row.full > row.done:
        row.unit_seconds = measure_second_run(rehearsal, stage, row)
    row.lacks_time = not row.unit_seconds and row.full > row.done
    if row.lacks_time:
        row.notes.append("its time per unit was too short to measure: the forecast leaves it out")


def count_work(rehearsal: Rehearsal, row: Row) -> None:
    """Fill in the work of both runs and the growth of the outputs, with notes on the forecast."""
    row.unit, row.done = cuts.work(row.stage, rehearsal.params, rehearsal.images)
    row.full = cuts.work(row.stage, rehearsal.full, rehearsal.full_images)[1]
    if row.stage == "encode":
        row.disk_ratio *= encode_ratio(rehearsal)
    else:
        row.disk_ratio *= image_ratio(rehearsal, row.stage)
    # Finished latents and shards, until the stage ends.
    if row.stage in ("encode", "generate") or row.stage.startswith("sample@"):
        row.full_cache *= row.disk_ratio
    if row.stage == "finetune_sd":
        row.full_cache = checkpoints_cache(rehearsal, row.full_cache)
        row.full_fault = check_warmup(rehearsal)
    if row.stage == "encode":
        note_cache(rehearsal, row)
    if row.stage == "fid":
        note_refused_fid(rehearsal, row)
    compared = ("features@real", "features@tuned", "features@synthetic")
    if row.stage == "fid" and any(image_ratio(rehearsal, stage) != 1 for stage in compared):
        row.notes.append("its images are cut, too: the forecast is of the images rehearsed")


def image_ratio(rehearsal: Rehearsal, stage: str) -> float:
    """The full run's number of stored images over the rehearsal's; 1 where outputs don't grow."""
    done = cuts.stored_images(stage, rehearsal.params, rehearsal.images)
    full = cuts.stored_images(stage, rehearsal.full, rehearsal.full_images)
    return full / done if done else 1


def encode_ratio(rehearsal: Rehearsal) -> float:
    """`image_ratio` of `encode`: latents grow with images and variants, embeddings with images."""
    folder = rehearsal.folder / "data/latents"
    total = folder_size(folder)
    captions = sum(folder_size(file) for file in folder.glob("captions.*"))
    full, done = (
        images["train"] + images["valid"] for images in (rehearsal.full_images, rehearsal.images)
    )
    latents = (total - captions) * image_ratio(rehearsal, "encode")
    return (latents + captions * full / done) / total


def checkpoints_cache(rehearsal: Rehearsal, rehearsed: float) -> float:
    """Bytes of the checkpoints that the full run of fine-tuning holds at most.

    With full fine-tuning they are computed, as LoRA may have stood in for it. With LoRA they are
    taken from the rehearsal, and scaled to the number of checkpoints.
    """
    full = cuts.checkpoint_bytes(rehearsal.full, rehearsal.full_images)
    if rehearsal.full["finetune_sd"]["method"] == "full":
        return full * count_weights(rehearsal.folder / "models/diffusion/unet")
    done = cuts.checkpoint_bytes(rehearsal.params, rehearsal.images)
    return rehearsed * full / done if done else 0


def check_warmup(rehearsal: Rehearsal) -> str:
    """Why the full run of fine-tuning stops at its warm-up, as the stage has it; "" if not."""
    warmup = rehearsal.full["finetune_sd"]["warmup_steps"]
    steps = cuts.training_steps(rehearsal.full, rehearsal.full_images)
    if not warmup > steps > 0:
        return ""
    return f"finetune_sd.warmup_steps: {warmup} are more than the {steps} steps of the training"


def note_refused_fid(rehearsal: Rehearsal, row: Row) -> None:
    """Note the FID protocols that the full run has too few test tiles for."""
    config, tiles = rehearsal.full["fid"], rehearsal.full_images["test"]
    for key, refused in (("standard_min_n", "no FID"), ("paper_n", "no FID of the paper's kind")):
        if tiles < config[key]:
            row.notes.append(f"{refused}: {tiles} test tiles, fid.{key} needs {config[key]}")


def note_cache(rehearsal: Rehearsal, row: Row) -> None:
    """Say whether the latents and text embeddings of the full run exceed `encode.cache_gb`.

    Where the latents alone do, the full run stops.
    """
    config = rehearsal.full["encode"]
    limit = config["cache_gb"] * 1e9
    if row.full_disk <= limit:
        return
    file = rehearsal.folder / "data/latents/train.safetensors"
    done = rehearsal.params["encode"]["variants"] * rehearsal.images["train"]
    one_variant = folder_size(file) / done * rehearsal.full_images["train"]
    others = rehearsal.full_images["valid"] + cuts.base_images(rehearsal.full)
    others_bytes = folder_size(file) / done * others
    latents = one_variant * config["variants"] + others_bytes
    if latents <= limit:
        row.notes.append(
            f"latents of {format_size(latents)} and text embeddings would pass encode.cache_gb "
            f"({config['cache_gb']:g}): finetune_sd would embed captions while it trains"
        )
        return
    variants = math.floor((limit - others_bytes) / one_variant)
    least = format_size(one_variant + others_bytes)
    row.full_fault = (
        f"latents of {format_size(latents)} would pass encode.cache_gb ({config['cache_gb']:g}): "
        f"encode.variants: {f'{variants} fits' if variants > 0 else f'1 takes {least}'}"
    )


def measure_stage(rehearsal: Rehearsal, stage: Stage) -> Measurement:
    """Run the command of a stage as DVC would, with a resume cache of its own."""
    environment = {
        **without_git(os.environ),
        **inputs.absolute_variables(rehearsal.full),
        "PATH": path_with_python(),
        "REMOTE_DIFFUSION_SCRATCH": str(rehearsal.cache),
        "DVC_STAGE": stage.name,
        "DVC_ROOT": str(rehearsal.folder),
    }
    environment.pop("PYTHONPATH", None)  # the copy's modules, not those of this folder
    environment.pop("WANDB_PROJECT", None)  # a rehearsal is no run of the project
    return measure(stage.command, rehearsal.folder, environment, rehearsal.cache)


def measure_second_run(rehearsal: Rehearsal, stage: Stage, row: Row) -> float:
    """Seconds of a unit: by how much longer a run with more units takes."""
    longer = deepcopy(rehearsal.params)
    key = cuts.SECOND_RUN[stage.name]
    cuts.put(longer, key, cuts.get(longer, key) * cuts.SECOND_RUN_FACTOR)
    rehearsal.write_params(longer)
    second = measure_stage(rehearsal, stage)
    rehearsal.write_params()
    row.fault = second.error
    units = cuts.work(stage.name, longer, rehearsal.images)[1] - row.done
    assert row.measured is not None
    return max(0, second.seconds - row.measured.seconds) / units


def count_images_and_cut_epochs(rehearsal: Rehearsal) -> str:
    """Count the images of both runs, and cut the epochs to a few steps.

    Returns:
        Why the full run's images can't be split so; they are then taken to be as many as the
        rehearsal's. "" where they can.
    """
    kept = read_json(rehearsal.folder / "data/imagery/REPORT.json")["kept"]
    full_figures = len(read_csv(FIGURES))
    figures = len(read_csv(rehearsal.folder / FIGURES))
    fault = ""
    try:
        if rehearsal.hub_images:
            of_splits = inputs.count_splits(rehearsal.full, rehearsal.hub_images)
        else:
            of_splits = run_apart(inputs.count_images, rehearsal.full, rehearsal.imagery)
    except SystemExit as error:
        of_splits, fault = kept, " ".join(str(error).split()).removeprefix("error: ")
    rehearsal.full_images = {**of_splits, "figures": IMAGES_PER_FIGURE * full_figures}
    rehearsal.images = {**kept, "figures": IMAGES_PER_FIGURE * figures}
    cuts.fit_training(rehearsal.params, rehearsal.images, rehearsal.large_on_cpu)
    rehearsal.write_params()
    return fault


# Memory.


def check_card(rehearsal: Rehearsal) -> str:
    """Why the GPU of the full run is too small for fine-tuning; "" where it isn't or is unknown."""
    needed = training_bytes(rehearsal)
    if rehearsal.card is None or needed <= rehearsal.card:
        return ""
    method = rehearsal.full["finetune_sd"]["method"]
    return (
        f"finetune_sd.method: {method}: weights, gradients and optimizer state alone need "
        f"{format_size(needed)}, the card has {format_size(rehearsal.card)}"
    )


def check_gpu_peak(rehearsal: Rehearsal, measured: Measurement) -> list[str]:
    """A note where a stage took more GPU memory in the rehearsal than the full run's card has."""
    if rehearsal.card is None or measured.gpu_memory is None:
        return []
    if measured.gpu_memory <= rehearsal.card:
        return []
    return [
        f"it took {format_size(measured.gpu_memory)} of GPU memory, what PyTorch only keeps for "
        f"reuse included; the card has {format_size(rehearsal.card)}"
    ]


def training_bytes(rehearsal: Rehearsal) -> float:
    """Bytes that fine-tuning holds besides activations; 0 where the model is unknown.

    fp32 weights, gradients and moving average, and the optimizer's state; with LoRA the weights.
    """
    config = rehearsal.full["finetune_sd"]
    weights = count_weights(rehearsal.folder / "models/base/diffusion/unet")
    if config["method"] == "lora":
        return cuts.WEIGHT_BYTES * weights
    copies = 3 if config["ema_decay"] else 2
    state = cuts.OPTIMIZER_BYTES[config["optimizer"]]
    return weights * (copies * cuts.WEIGHT_BYTES + state)


def count_weights(folder: Path) -> int:
    """The number of weights in the safetensors files of a folder."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():
                total += math.prod(tensors.get_slice(name).get_shape())
    return total


def choose_method(rehearsal: Rehearsal, row: Row) -> None:
    """Where full fine-tuning doesn't fit this machine's memory, let LoRA stand in for it."""
    config = rehearsal.params["finetune_sd"]
    needed = training_bytes(rehearsal)
    free = available_memory()
    if rehearsal.device.gpu_memory is None and needed > MEMORY_SHARE * free:
        config["method"] = "lora"
        rehearsal.write_params()
        row.notes.append(
            f"LoRA stands in for full fine-tuning, whose weights, gradients and optimizer state "
            f"need {format_size(needed)}; {format_size(free)} are free"
        )
