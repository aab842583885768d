"""The course of fine-tuning as outputs: final metrics, the loss curve for DVC, the sample grids."""

import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from stages.common.artifacts import write_json
from stages.common.csv_files import write_csv
from stages.diffusion.checkpoints import TrainingState
from stages.params import FinetuneSD
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import BackgroundWriter
from stages.runtime.progress import log

LOSSES = ("train_loss", "validation_loss", "base_domain_loss")
# What is measured at step 0 and at each checkpoint. `base_domain_loss`: only with such a set;
# `diversity`: only where it is known.
MEASURED = ("validation_loss", "base_domain_loss", "diversity")
COLUMNS = ("step", "train_loss", *MEASURED)
GRIDS = Path("metrics/plots/diffusion_grid")


def grid_file(cache: Path, step: int) -> Path:
    """The file that keeps the sample grid of a step until training ends."""
    return cache / "grid" / f"{step:08d}.png"


def has_finite_losses(row: dict[str, float]) -> bool:
    """Whether the losses among measurements are neither NaN nor inf."""
    return all(math.isfinite(row[name]) for name in LOSSES if name in row)


def exit_if_diverged(
    row: dict[str, float], state: TrainingState, writer: BackgroundWriter, config: FinetuneSD
) -> None:
    """Exit with an error where a loss is NaN or infinite.

    Args:
        row: measured at `state.step`, by column.
        state: its curve ends at the last checkpoint, which stays on disk.
        writer: may still be writing that checkpoint.
        config: the params, of which the message names those that can help.
    """
    if has_finite_losses(row):
        return
    writer.wait()
    history = ", ".join(f"step {row['step']}: {row['train_loss']:.4f}" for row in state.curve)
    last_step = state.curve[-1]["step"]
    kept = f"The checkpoint of step {last_step} is kept"
    if not last_step:
        kept = "No checkpoint was written yet"
    exit_with_error(
        f"finetune_sd.lr: the loss is NaN or infinite at step {state.step} (mean training loss "
        f"before: {history}). {kept}. Try a lower lr than {config.lr}, a longer warm-up than "
        f"{config.warmup_steps} steps{'' if config.precision == 'fp32' else ', or precision fp32'}"
    )


def write(state: TrainingState, steps: int, cpu_threads: int, cache: Path, latents: Path) -> None:
    """Write `metrics/diffusion.json`, `metrics/plots/diffusion_loss.csv` and the sample grids.

    Args:
        state: at the end of training.
        steps: optimizer steps in all.
        cpu_threads: that trained; 0 on a GPU.
        cache: the folder with the sample grids.
        latents: what was trained on, `data/latents`.
    """
    base = state.curve[0]
    best = next(row for row in state.curve if row["step"] == state.best_step)
    last = state.curve[-1]
    metrics = {"train_loss": best["train_loss"]}
    for name in MEASURED:
        for suffix, row in (("", best), ("_base", base), ("_last", last)):
            if name in row:
                metrics[f"{name}{suffix}"] = row[name]
    captions = pq.read_table(latents / "captions.parquet", columns=["truncated"])
    metrics["best_step"] = state.best_step
    metrics["steps"] = steps
    metrics["cpu_threads"] = cpu_threads
    metrics["truncated_captions"] = sum(captions["truncated"].to_pylist())
    write_json("metrics/diffusion.json", metrics)

    write_csv("metrics/plots/diffusion_loss.csv", state.curve, COLUMNS)

    shutil.rmtree(GRIDS, ignore_errors=True)
    GRIDS.mkdir(parents=True)
    for row in state.curve:
        picture = grid_file(cache, int(row["step"]))
        try:
            with Image.open(picture) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError) as error:
            log(f"finetune_sd: {GRIDS} lacks {picture.name}, which is damaged ({error})")
            continue
        shutil.copy(picture, GRIDS)
