"""What is measured at a checkpoint: the validation loss, and a grid of images with its diversity.

Noise, timesteps and captions are the same for every checkpoint and every experiment, and don't depend on the run's seed.
"""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from stages.common.rng import rng
from stages.diffusion import models
from stages.diffusion.denoising import denoise
from stages.diffusion.latents import Latents
from stages.diffusion.loss import denoising_loss, stratified_timesteps

GRID_COLUMNS, GRID_STEPS, GRID_GUIDANCE = 4, 15, 4.0  # images per caption; of DPM-Solver++


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # other shapes than training's would each be compiled
def validation_loss(
    model,
    data: Latents,
    images: int,
    group: int,
    accelerator: Accelerator,
    alphas_cumprod,
    kind: str,
) -> float:
    """Mean squared error of one denoising step over at most `images` rows of `data`, timesteps stratified.

    Processes take turns at groups of `group` images; every one runs the model equally often (a sharded model needs that).
    """
    order = rng(0, "validation").permutation(len(data))[:images]
    times = stratified_timesteps(len(order), len(alphas_cumprod))
    errors = torch.zeros(len(order), dtype=torch.float64, device=accelerator.device)
    starts = list(range(0, len(order), group))
    for turn in range(0, len(starts), accelerator.num_processes):
        number = turn + accelerator.process_index
        here = slice(first := starts[min(number, len(starts) - 1)], first + group)
        noise = np.stack(
            [
                rng(0, "validation", int(row)).standard_normal(data.shape, np.float32)
                for row in order[here]
            ]
        )
        batch = {
            "latents": data.latents(order[here], 0, None),
            "noise": torch.from_numpy(noise),
            "timesteps": times[here],
            "text": data.text([data.captions[row][0] for row in order[here]]),
        }
        error = denoising_loss(
            model,
            {key: value.to(errors.device) for key, value in batch.items()},
            alphas_cumprod,
            kind,
        )
        if number < len(starts):
            errors[here] = error.double()
    return accelerator.reduce(errors, "sum").mean().item()


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def sample_grid(
    model,
    data: Latents,
    captions: int,
    start: Path,
    statistics: dict,
    device,
    zero_terminal_snr: bool,
) -> tuple[Image.Image, float]:
    """A picture of `captions` rows, four images of each of the first captions of `data`, and the images' diversity.

    Diversity: root mean square distance, in latents, between images of one caption, over that between real images. The
    paper's "averaged-out" images (section 4) would show as a fall. The VAE is loaded for this and freed.
    """
    scheduler = models.load_scheduler(start, "dpm", zero_terminal_snr)
    rows = np.linspace(0, len(data) - 1, min(captions, len(data))).astype(int)
    drawn = []
    for row in rows:
        noise = torch.from_numpy(
            rng(0, "grid", int(row)).standard_normal((GRID_COLUMNS, *data.shape), np.float32)
        )
        text = data.text(
            [0] * GRID_COLUMNS + [data.captions[row][0]] * GRID_COLUMNS
        )  # [2B,L,D]; caption 0 is the empty one
        drawn.append(
            denoise(
                model, scheduler, noise.to(device), text.to(device), GRID_GUIDANCE, GRID_STEPS
            ).cpu()
        )
    real = data.latents(np.arange(min(len(data), 64)), 0, None)
    diversity = np.mean([spread(images) for images in drawn]) / spread(real)

    vae = models.load(start, "vae").to(device, memory_format=torch.channels_last)
    images = [
        [
            vae.decode(latent[None].to(device) / data.scale, return_dict=False)[0]
            .float()
            .cpu()
            .numpy()
            for latent in line
        ]
        for line in drawn
    ]  # [1,3,H,W] each
    pixels = [
        np.concatenate([models.to_pixels(image, statistics)[0] for image in line], 1)
        for line in images
    ]
    return Image.fromarray(np.concatenate(pixels)), float(diversity)


def spread(latents: torch.Tensor) -> float:
    """Root mean square distance between two of several latents [N,C,h,w]: the square root of twice their variance."""
    variance = (
        latents.double().var(0).mean().item() if len(latents) > 1 else 1.0
    )  # what the latents are scaled to
    return (2 * variance) ** 0.5
