"""What is measured at a checkpoint: validation losses, and a grid of samples with its diversity.

Noise, timesteps and captions are the same at every checkpoint and in every experiment; they don't
depend on the run's seed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.common.artifacts import encode_png, read_json, write_atomically
from stages.common.rng import rng
from stages.diffusion import models, schedulers
from stages.diffusion.denoising import denoise
from stages.diffusion.latents import Latents, TextEmbeddings
from stages.diffusion.loss import denoising_loss, stratified_timesteps
from stages.diffusion.normalization import load_folded_vae
from stages.diffusion.trainer import Trainer
from stages.params import FinetuneSD
from stages.runtime.progress import log

GRID_COLUMNS = 4  # images per caption
GRID_GUIDANCE = 4.0  # scale of classifier-free guidance
# Latents of equal images are nearer to each other, and differ by their rounding to float16.
MIN_DISTANCE = 1e-3
# With the right prediction type, a base model's loss is below this fraction of the loss of
# predicting zeros (the shipped model: 0.5); with the wrong type, it is about that loss.
CLEARLY_BETTER = 0.9


class Evaluator:
    """Measures the model of a trainer on the validation split and on the base model's own domain.

    Attributes:
        valid: the validation split.
        base: images of the base model's own domain, to measure forgetting; None without such a set.
    """

    def __init__(
        self, latents: Path, start: Path, config: FinetuneSD, text_embeddings: TextEmbeddings
    ) -> None:
        scale = models.scaling_factor(start)
        self.valid = Latents(latents, "valid", scale, text_embeddings)
        self.base: Latents | None = None
        if (latents / "base.safetensors").exists():
            self.base = Latents(latents, "base", scale, text_embeddings)
        self.normalization = read_json(latents / "normalization.json")
        self.start = start
        self.config = config

    def measure(
        self, trainer: Trainer, step: int, train_losses: torch.Tensor, grid_file: Path
    ) -> dict[str, float]:
        """The measurements of a checkpoint, by column of the training log.

        Args:
            trainer: holds the model. Every process of a run must call this.
            step: optimizer steps done.
            train_losses: training losses [K] of this process since the checkpoint before.
            grid_file: where the grid of samples is written.
        """
        measurements: dict[str, float] = {"step": step}
        train_loss = trainer.accelerator.reduce(train_losses.mean(), "mean")
        measurements["train_loss"] = train_loss.item()
        sets = {"validation_loss": (self.valid, self.config.validation_images)}
        if self.base is not None:
            sets["base_domain_loss"] = (self.base, len(self.base))
        for name, (data, images) in sets.items():
            measurements[name] = validation_loss(
                trainer, trainer.model, data, images, trainer.prediction_type
            )
        device = trainer.accelerator.device
        scheduler = schedulers.load_scheduler(self.start, "dpm", self.config.zero_terminal_snr)
        samples = sample_captions(
            trainer.model,
            self.valid,
            self.config.grid_captions,
            self.config.grid_steps,
            scheduler,
            device,
        )
        diversity = relative_diversity(samples, self.valid)
        if diversity is not None:
            measurements["diversity"] = diversity
        if trainer.accelerator.is_main_process:
            grid = decode_grid(samples, self.start, self.normalization, device)
            write_atomically(grid_file, encode_png(grid))
        return measurements

    def warn_of_wrong_prediction_type(self, trainer: Trainer, loss: float) -> None:
        """Log where a base model is hardly better than predicting zeros, as with a wrong type.

        The configuration of a base's scheduler may lack what the UNet predicts, or have it wrong.
        Every process of a run must call this.

        Args:
            trainer: holds the base model.
            loss: its validation loss.
        """
        if self.start == models.TRAINED and models.read_start().get("trained") != ["decoder"]:
            return  # a UNet that is untrained, or new to its latents or its text encoder

        def measure_valid(model: Any, prediction_type: str) -> float:
            images = self.config.validation_images
            return validation_loss(trainer, model, self.valid, images, prediction_type)

        assumed = trainer.prediction_type
        zero_loss = measure_valid(predict_zeros, assumed)
        if loss < CLEARLY_BETTER * zero_loss:
            return
        other = "epsilon" if assumed == "v_prediction" else "v_prediction"
        other_loss = measure_valid(trainer.model, other)
        other_zero_loss = measure_valid(predict_zeros, other)
        message = (
            f"finetune_sd: the base model's validation loss is {loss:.3g}, predicting zeros has "
            f"{zero_loss:.3g}"
        )
        if other_loss / other_zero_loss < loss / zero_loss:
            log(
                f"{message}: {self.start}/scheduler may have a wrong prediction_type, or none; it "
                f"is taken as {assumed}, as {other} the loss is {other_loss:.3g}, where predicting "
                f"zeros has {other_zero_loss:.3g}"
            )
        elif loss > zero_loss:
            log(f"{message}: the base knows nothing of these images")


def predict_zeros(noisy: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
    """A model that predicts zeros, of the shape of the noisy latents."""
    return (torch.zeros_like(noisy),)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # each shape unlike training's would be compiled
def validation_loss(
    trainer: Trainer, model: Any, data: Latents, images: int, prediction_type: str
) -> float:
    """Mean squared error of one denoising step over at most `images` rows of `data`.

    The timesteps are stratified. The processes take turns at batches; each of them runs the model
    equally often, because a sharded model needs all of them at every call.

    Args:
        trainer: of which the noise schedule, the batch size and the processes are used.
        model: the trainer's UNet, as accelerate wraps it, or another function of its arguments.
        data: latents and captions; the first caption of each image is used.
        images: at most.
        prediction_type: `epsilon` or `v_prediction`.
    """
    accelerator = trainer.accelerator
    batch_size = trainer.batch_size
    alphas_cumprod = trainer.alphas_cumprod
    order = rng(0, "validation").permutation(len(data))[:images]  # [N]
    timesteps = stratified_timesteps(len(order), len(alphas_cumprod))  # [N]
    errors = torch.zeros(len(order), dtype=torch.float64, device=accelerator.device)  # [N]
    firsts = list(range(0, len(order), batch_size))
    for turn in range(0, len(firsts), accelerator.num_processes):
        number = turn + accelerator.process_index
        first = firsts[min(number, len(firsts) - 1)]  # a process without a batch repeats the last
        here = slice(first, first + batch_size)
        batch = validation_batch(data, order[here]) | {"timesteps": timesteps[here]}
        batch = {name: tensor.to(errors.device) for name, tensor in batch.items()}
        error = denoising_loss(model, batch, alphas_cumprod, prediction_type)  # [B]
        if number < len(firsts):
            errors[here] = error.double()
    return accelerator.reduce(errors, "sum").mean().item()


def validation_batch(data: Latents, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """latents [B, C, h, w], noise [B, C, h, w] and text [B, L, D] of these rows."""
    noise = [rng(0, "validation", int(row)).standard_normal(data.shape, np.float32) for row in rows]
    return {
        "latents": data.latents(rows, 0, None),
        "noise": torch.from_numpy(np.stack(noise)),
        "text": data.text_embeddings([int(data.captions(row)[0]) for row in rows]),
    }


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def sample_captions(
    model: torch.nn.Module,
    data: Latents,
    captions: int,
    steps: int,
    scheduler: Any,
    device: torch.device,
) -> list[torch.Tensor]:
    """Generated latents [GRID_COLUMNS, C, h, w] of each of some captions, on the CPU.

    The captions are the first ones of at most `captions` images, evenly spaced in `data`. `steps`
    are denoising steps.
    """
    samples = []
    for row in np.linspace(0, len(data) - 1, min(captions, len(data))).astype(int):
        generator = rng(0, "grid", int(row))
        noise = generator.standard_normal((GRID_COLUMNS, *data.shape), np.float32)
        # Guidance leads away from the empty caption, which has id 0.
        caption_ids = [0] * GRID_COLUMNS + [int(data.captions(row)[0])] * GRID_COLUMNS
        latents = denoise(
            model,
            scheduler,
            torch.from_numpy(noise).to(device),
            data.text_embeddings(caption_ids).to(device),  # [2 GRID_COLUMNS, L, D]
            GRID_GUIDANCE,
            steps,
        )
        samples.append(latents.cpu())
    return samples


def relative_diversity(samples: list[torch.Tensor], data: Latents) -> float | None:
    """How much images of one caption differ, as a fraction of how much real images differ.

    Measured by the root mean square distance of latents. The paper's "averaged-out" images
    (section 4) would show as a fall. None, for unknown, where the real images are copies of one
    image, or generated ones are NaN or inf.

    Args:
        samples: for each caption, the latents [N, C, h, w] of its images.
        data: the real images; the first 64 are used.
    """
    real = data.latents(np.arange(min(len(data), 64)), 0, None)  # [N, C, h, w]
    real_distance = rms_distance(real)
    distance = float(np.mean([rms_distance(latents) for latents in samples]))
    if real_distance < MIN_DISTANCE or not np.isfinite(distance):
        return None
    return distance / real_distance


def rms_distance(latents: torch.Tensor) -> float:
    """Root mean square distance, per element, between two of several latents [N, C, h, w].

    It is the square root of twice their variance, which is taken as 1 for a single latent: the
    variance that latents are scaled to.
    """
    variance = latents.double().var(0).mean().item() if len(latents) > 1 else 1.0
    return (2 * variance) ** 0.5


@torch.no_grad()
def decode_grid(
    samples: list[torch.Tensor], start: Path, normalization: dict, device: torch.device
) -> Image.Image:
    """A picture with one row of images for each caption. The VAE is loaded for it and freed.

    Args:
        samples: for each caption, the scaled latents [N, C, h, w] of its images.
        start: the model folder with the VAE.
        normalization: of the pixels whose latents these are.
        device: to decode on.
    """
    vae = load_folded_vae(start, normalization).to(device, memory_format=torch.channels_last)
    scale = models.scaling_factor(start)
    rows = []
    for latents in samples:
        tiles = []
        for latent in latents:
            decoded = vae.decode(latent[None].to(device) / scale, return_dict=False)[0]
            pixels = decoded.float().cpu().numpy()  # [1, 3, H, W]
            tiles.append(models.to_pixels(pixels)[0])  # [H, W, 3]
        rows.append(np.concatenate(tiles, axis=1))
    return Image.fromarray(np.concatenate(rows))
