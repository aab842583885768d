"""Fine-tune the UNet on cached latents; keep the checkpoint with the lowest validation loss.

    python -m stages.runtime.launch finetune_sd

reads   finetune_sd, seed; data/latents, models/start, the model that it names
writes  models/diffusion                    that model with the best weights, whole by itself
        metrics/diffusion.json              losses and diversity of the best checkpoint, of the
                                            model before fine-tuning (_base) and at the end (_last)
        metrics/plots/diffusion_loss.csv    the same of each checkpoint, by step
        metrics/plots/diffusion_grid        the grid of samples at each checkpoint

It runs in one process or in several (data parallel, with the same global batch). A run that was
killed resumes from its last checkpoint and ends with the same bytes. The loop is the standard one
(Ho et al. 2020, algorithm 1; the text-to-image example of diffusers) without the VAE and, where its
embeddings fit into the cache, the text encoder, which `encode` has already run. Each checkpoint
also measures what fine-tuning may harm: the loss on the base model's own domain, and the diversity
of a grid of samples.
"""

import math
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch

from stages.common.artifacts import fingerprint
from stages.common.torch_setup import cpu_threads, make_deterministic
from stages.diffusion import checkpoints, models, training_log
from stages.diffusion.batches import Batch, BatchLoader
from stages.diffusion.caption_embeddings import load_embeddings
from stages.diffusion.checkpoints import TrainingState
from stages.diffusion.latents import Latents
from stages.diffusion.param_checks import check_training
from stages.diffusion.saved_model import save_finetuned, save_unchanged
from stages.diffusion.trainer import Trainer, check_shapes, create_accelerator
from stages.diffusion.validation import Evaluator
from stages.params import FinetuneSD, load
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.parallel import BackgroundWriter
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar
from stages.runtime.resume_cache import resume_folder
from stages.runtime.tracking import LogMetrics, track_metrics

LATENTS = Path("data/latents")
OUT = Path("models/diffusion")
LOG_STEPS = 10  # optimizer steps between two readings of the loss; each reading waits for the GPU
# Params that don't affect the weights, so a resumed run may change them. (Compiled code may round
# differently.)
SAVING = ("keep_checkpoints", "gradient_checkpointing", "compile")
GRID = ("grid_captions", "grid_steps")  # decide `diversity`
MEASURING = ("checkpoint_steps", *GRID)
MEMORY_ADVICE = (
    "; a bigger gradient_accumulation keeps the step the same, gradient_checkpointing and "
    "adamw8bit save memory"
)


def main() -> None:
    params = load()
    seed = params.seed
    config = params.finetune_sd
    make_deterministic(seed)
    accelerator = create_accelerator(config)
    start = models.start_folder()
    check_training(config, start, accelerator.device, accelerator.num_processes)

    # Data: the latents and text embeddings that `encode` cached, memory-mapped. Embeddings too
    # large for the cache are computed batch by batch.
    embeddings = load_embeddings(LATENTS, start, accelerator.device)
    train_split = Latents(LATENTS, "train", models.scaling_factor(start), embeddings)
    check_shapes(train_split, embeddings.width, start)
    evaluator = Evaluator(LATENTS, start, config, embeddings)

    # Model: the UNet, its optimizer and the average of its weights; the batches it will see.
    trainer = Trainer(start, config, seed, accelerator)
    loader = BatchLoader(train_split, config, seed, len(trainer.alphas_cumprod), accelerator)
    steps = count_steps(config, len(train_split))

    def try_batch(images: int) -> None:
        trainer.trial_step(loader.trial_batch(images))

    # A run resumes only checkpoints of the same params and the same bytes of all inputs.
    inputs: list[str | Path] = [LATENTS, start / "unet", start / "scheduler"]
    inputs += embeddings.inputs
    inputs += [Path(__file__), *sorted(Path(models.__file__).parent.glob("*.py"))]
    settings = config.model_dump(exclude={*SAVING, *MEASURING})
    run_id = fingerprint({"finetune_sd": settings, "seed": seed}, inputs)
    with (
        resume_folder("finetune_sd", run_id) as cache,
        report_out_of_memory(
            "finetune_sd.batch_size",
            config.batch_size,
            None if trainer.sharded else try_batch,  # a shard alone would wait for the others
            MEMORY_ADVICE,
        ),
        track_metrics(
            "finetune_sd", config.model_dump(), run_id, resume=any(cache.glob("step_*"))
        ) as log_metrics,
    ):
        # Resume from the last checkpoint, or measure the base model.
        state = trainer.resume(cache)
        if state is None:
            state = measure_base(trainer, loader, evaluator, cache)
        note_measuring(state, config)

        train(trainer, loader, evaluator, state, steps, cache, log_metrics)

        # Save the best checkpoint as a complete pipeline, with its metrics.
        if accelerator.is_main_process:
            save_model(cache, start, config, seed, evaluator, state)
            training_log.write(state, steps, cpu_threads(accelerator.device), cache, LATENTS)
        accelerator.wait_for_everyone()


def count_steps(config: FinetuneSD, images: int) -> int:
    """Optimizer steps of the training. Exits with an error where the warm-up has more.

    `images` is the number of training images.
    """
    per_step = config.batch_size * config.gradient_accumulation
    steps = math.ceil(config.epochs * images / per_step)
    if config.warmup_steps > steps > 0:
        exit_with_error(
            f"finetune_sd.warmup_steps: {config.warmup_steps} are more than the {steps} steps of "
            f"the training ({config.epochs:g} epochs of {images} images, {per_step} a step): the "
            f"learning rate would end at {learning_rate(steps - 1, steps, config):.1e} instead of "
            f"{config.lr:.1e}"
        )
    return steps


def measure_base(
    trainer: Trainer, loader: BatchLoader, evaluator: Evaluator, cache: Path
) -> TrainingState:
    """The state before training, with the measurements of the base model."""
    with torch.no_grad():
        losses = trainer.losses(trainer.model, next(loader.batches(range(1))))  # [B]
    row = evaluator.measure(trainer, 0, losses, training_log.grid_file(cache, 0))
    if not training_log.has_finite_losses(row):
        exit_with_error(
            f"{evaluator.start}: its loss is NaN or infinite before any training: its weights, or "
            f"{LATENTS}, hold such values in {trainer.config.precision}"
        )
    evaluator.warn_of_wrong_prediction_type(trainer, row["validation_loss"])
    return TrainingState(curve=[row])


def note_measuring(state: TrainingState, config: FinetuneSD) -> None:
    """Record the validation settings in `state`; log where the run that is resumed had others.

    `diversity` measured on another grid is dropped: the report assumes one grid.
    """
    measuring = config.model_dump(include=set(MEASURING))
    if state.measuring and state.measuring != measuring:
        before = ", ".join(f"{name} {value}" for name, value in state.measuring.items())
        kept = "is kept"
        if any(state.measuring[name] != measuring[name] for name in GRID):
            kept += ", but for the diversity"
            for row in state.curve:
                row.pop("diversity", None)
        log(f"finetune_sd: what was measured until step {state.step}, with {before}, {kept}")
    state.measuring = measuring


def train(
    trainer: Trainer,
    loader: BatchLoader,
    evaluator: Evaluator,
    state: TrainingState,
    steps: int,
    cache: Path,
    log_metrics: LogMetrics,
) -> None:
    """Train from `state.step` to `steps`; updates `state` and writes checkpoints to `cache`."""
    config = trainer.config
    accumulation = config.gradient_accumulation
    batches = loader.batches(range(state.step * accumulation, steps * accumulation))
    writer = BackgroundWriter()
    losses: list[torch.Tensor] = []  # a scalar per micro-batch since the last checkpoint
    bar = progress_bar(total=steps, initial=state.step, desc="finetune_sd", unit="step")
    first_step = state.step
    started = time.perf_counter()
    while state.step < steps:
        # Update the weights, then their average.
        lr = learning_rate(state.step, steps, config)
        losses += train_step(trainer, islice(batches, accumulation), lr)
        trainer.update_ema(state.step)
        state.step += 1
        bar.update()
        writer.raise_if_failed()  # a full disk ends the stage here, not at the next checkpoint
        checkpoint_due = state.step % config.checkpoint_steps == 0 or state.step == steps

        # Log the loss of the last steps.
        if state.step % LOG_STEPS == 0 or checkpoint_due:
            train_loss = torch.stack(losses[-LOG_STEPS * accumulation :]).mean().item()
            images = (state.step - first_step) * accumulation * config.batch_size
            rate = images / (time.perf_counter() - started)
            bar.set_postfix(loss=f"{train_loss:.4f}", images_s=f"{rate:.0f}", refresh=False)
            training_log.exit_if_diverged({"train_loss": train_loss}, state, writer, config)
            log_metrics(state.step, {"train_loss": train_loss, "images_per_second": rate, "lr": lr})

        # Checkpoint: measure the averaged weights, then write all that resuming needs.
        if checkpoint_due:
            grid_file = training_log.grid_file(cache, state.step)
            with trainer.averaged_weights():
                row = evaluator.measure(trainer, state.step, torch.stack(losses), grid_file)
            training_log.exit_if_diverged(row, state, writer, config)
            losses.clear()
            state.record(row)
            trainer.save_checkpoint(writer, cache, state)
            measured = {name: row[name] for name in training_log.MEASURED if name in row}
            log_metrics(state.step, measured, grid_file)
    bar.close()
    writer.wait()


def train_step(trainer: Trainer, micro_batches: Iterable[Batch], lr: float) -> list[torch.Tensor]:
    """Take one optimizer step on the mean gradient of the micro-batches; return their losses []."""
    accelerator = trainer.accelerator
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    losses = []
    for batch in micro_batches:
        # Until the last micro-batch, processes exchange no gradients, and the optimizer's `step`
        # and `zero_grad` do nothing.
        with accelerator.accumulate(trainer.model):
            losses.append(trainer.backward(batch))
            if accelerator.sync_gradients:
                weights = list(trainer.weights.values())
                accelerator.clip_grad_norm_(weights, trainer.config.max_grad_norm)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    return losses


def learning_rate(step: int, steps: int, config: FinetuneSD) -> float:
    """Linear warm-up, then constant or half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    angle = math.pi * (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(angle))


def save_model(
    cache: Path,
    start: Path,
    config: FinetuneSD,
    seed: int,
    evaluator: Evaluator,
    state: TrainingState,
) -> None:
    """Write `models/diffusion`: `start` with the best weights, or unchanged after zero steps."""
    if not state.best_step:
        save_unchanged(start, OUT)
        return
    weights = checkpoints.load_best(cache, state)
    base_loss = state.curve[0]["validation_loss"]
    if state.best_loss >= base_loss:
        log(
            f"finetune_sd: no checkpoint has a lower validation loss ({state.best_loss:.3g} at "
            f"step {state.best_step}) than the base model ({base_loss:.3g}), and {OUT} is no "
            f"better; try a lower lr than {config.lr:g}, or fewer epochs than {config.epochs:g}"
        )
    unet = models.merge_trained_weights(start, config.method, seed, weights)
    latent_size = evaluator.valid.shape[-1]
    zero_terminal_snr = config.zero_terminal_snr
    save_finetuned(start, OUT, unet, evaluator.normalization, latent_size, zero_terminal_snr)


if __name__ == "__main__":
    run_stage(main, __doc__)
