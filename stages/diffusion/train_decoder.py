"""Train the decoder of a VAE further, against a discriminator; its encoder stays as it is.

The L1 losses of `from_scratch.train_vae` ask for the median of all that a latent may stand for, a
blur. A patch discriminator (Isola et al. 2017, section 3.2.2; Rombach et al. 2022, section 3.1)
asks for detail as real tiles have it, a loss of local spectra (as in Jiang et al. 2021, section
3.2, of patches) for as much of it as this tile has, a perceptual loss for what the captions name.
Latents stay the same, so a UNet that was trained on them needs no further training.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from stages.common.rng import rng
from stages.common.torch_setup import device_type, torch_generator
from stages.diffusion.ema import update_ema
from stages.diffusion.from_scratch import (
    normalize_pixels,
    random_crop,
    reconstruction_loss,
)
from stages.diffusion.perceptual import WORD_STEPS, perceptual_loss, train_word_network
from stages.diffusion.resumable import MinuteCheckpoints
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import progress_bar

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
LR = 6e-4
DISCRIMINATOR_LR = 4e-4
BETAS = (0.5, 0.95)  # a discriminator changes: the usual 0.9 would follow its past
DISCRIMINATOR_WIDTH = 48
ADVERSARIAL_WEIGHT = 5.0
PERCEPTUAL_WEIGHT = 0.3
SPECTRAL_WEIGHT = 0.4
SPECTRAL_WINDOW = 8  # pixels per side
SPECTRAL_FLOOR = 0.02  # added to magnitudes: invisible detail hardly counts
WARMUP_STEPS = 100  # of the learning rates and of the adversarial weight
EMA_DECAY = 0.999


def train_decoder(
    vae: Any,
    images: np.ndarray,
    captions: list[list[str]],
    steps: int,
    batch_size: int,
    seed: int,
    cache: Path,
) -> Any:
    """Train the decoder of an AutoencoderKL; returns it in eval mode, with averaged weights.

    Args:
        vae: the AutoencoderKL; only its decoder is changed.
        images: uint8 [N, H, W, 3].
        captions: of each image, which the network of the perceptual loss learns.
        steps: of both the decoder and the discriminator.
        batch_size: crops per step.
        seed: of the training.
        cache: holds the checkpoints.

    Raises:
        SystemExit: the loss is NaN or infinite.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels per latent
    network = train_word_network(
        images, captions, min(steps, WORD_STEPS), batch_size, factor, seed, cache / "perceptual"
    )
    models = make_models(vae, seed)
    optimizer = make_optimizer(models)
    # With the buffers, which the spectral norms of the discriminator go on from.
    weights = models.state_dict(keep_vars=True)
    ema = {name: weight.detach().clone() for name, weight in weights.items()}
    saver = MinuteCheckpoints(cache, "decoder", weights, ema, optimizer)
    state = saver.resume()
    bar = progress_bar(total=steps, initial=state.step, desc="decoder", unit="step")
    while state.step < steps:
        warmup = min(1.0, (state.step + 1) / WARMUP_STEPS)
        cosine = 0.5 * (1.02 + math.cos(math.pi * state.step / steps))  # 1.01 down to 0.01: never 0
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * warmup * cosine
        real, decoded = draw_crops(vae, images, batch_size, factor, seed, state.step)
        loss = adversarial_loss(models["discriminator"], real, decoded, warmup)
        loss = loss + PERCEPTUAL_WEIGHT * perceptual_loss(network, real, decoded)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(models["decoder"].parameters(), 1.0)
        optimizer.step()
        update_ema(ema, weights, state.step, EMA_DECAY)
        state.step += 1
        bar.update()
        if (state.step % 20 == 0 or state.step == steps) and not loss.isfinite():
            exit_with_error("train_base.decoder_steps: it diverges to NaN or inf; try fewer steps")
        saver.save_if_due(state, steps)
    bar.close()
    models.load_state_dict(ema)
    return vae.eval()


def make_models(vae: Any, seed: int) -> nn.ModuleDict:
    """The decoder of a VAE and an untrained discriminator, ready to train; the encoder isn't."""
    torch.manual_seed(seed)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    models = nn.ModuleDict({"decoder": decoder, "discriminator": make_discriminator()})
    for model in (vae, models):
        model.to(device_type())
        model.to(memory_format=torch.channels_last)
    vae.requires_grad_(False)
    models.requires_grad_(True)
    return models


def make_optimizer(models: nn.ModuleDict) -> torch.optim.AdamW:
    """The optimizer of decoder and discriminator, each with its own peak learning rate."""
    return torch.optim.AdamW(
        [
            {"params": models["decoder"].parameters(), "peak_lr": LR},
            {"params": models["discriminator"].parameters(), "peak_lr": DISCRIMINATOR_LR},
        ],
        betas=BETAS,
        weight_decay=0.0,
        fused=True,
    )


def make_discriminator() -> nn.Sequential:
    """An untrained CNN from the brightness of images [B, 1, H, W] to logits [B, 1, H/4, W/4].

    Each logit judges a patch of 24 x 24 pixels. Of colors the L1 losses know enough: a
    discriminator of colors makes the decoder draw colored speckle.
    """
    width = DISCRIMINATOR_WIDTH
    layers: list[nn.Module] = []
    for channels_in, channels_out, stride in (
        (1, width, 1),
        (width, width, 2),
        (width, 2 * width, 1),
        (2 * width, 2 * width, 2),
        (2 * width, 2 * width, 1),
    ):
        size = 4 if stride == 2 else 3
        convolution = nn.Conv2d(channels_in, channels_out, size, stride, padding=1)
        layers += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(2 * width, 1, 1)))


def draw_crops(
    vae: Any, images: np.ndarray, batch_size: int, factor: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops [B, 3, H/2, W/2] of images, and what the VAE makes of them."""
    generator = rng(seed, "decoder", step)
    rows = generator.integers(len(images), size=batch_size)
    x = normalize_pixels(random_crop(images[rows], generator, factor))
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.sample(torch_generator(seed, "decoder noise", step))
    return x, vae.decode(latents).sample


def adversarial_loss(
    discriminator: nn.Module, x: torch.Tensor, y: torch.Tensor, warmup: float
) -> torch.Tensor:
    """The loss [] of the decoder plus that of the discriminator.

    Neither sends gradients into the weights of the other.

    Args:
        discriminator: of brightness [B, 1, H, W].
        x: images [B, 3, H, W].
        y: their reconstructions.
        warmup: factor of `ADVERSARIAL_WEIGHT`, from 0 to 1.
    """
    discriminator.requires_grad_(False)
    decoder_loss = reconstruction_loss(x, y) + SPECTRAL_WEIGHT * spectral_loss(x, y)
    decoder_loss -= warmup * ADVERSARIAL_WEIGHT * discriminator(brightness(y)).mean()
    discriminator.requires_grad_(True)
    real_logits = discriminator(brightness(x))
    fake_logits = discriminator(brightness(y.detach()))
    hinge_loss = F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    return decoder_loss + hinge_loss


def spectral_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How far the logarithms of the local spectra of images [B, 3, H, W] lie apart: a mean [].

    The spectra are the magnitudes of the Fourier transforms of windows of brightness: how much
    detail there is, not where.
    """
    window = torch.hann_window(SPECTRAL_WINDOW, device=x.device)
    logarithms = []
    for images in (x, y):
        patches = F.unfold(brightness(images), SPECTRAL_WINDOW, stride=SPECTRAL_WINDOW // 2)
        patches = patches.transpose(1, 2).unflatten(2, (SPECTRAL_WINDOW, SPECTRAL_WINDOW))
        patches = patches - patches.mean((2, 3), keepdim=True)  # [B, L, 8, 8]
        magnitudes = torch.fft.rfft2(patches * window.outer(window)).abs()
        logarithms.append((magnitudes + SPECTRAL_FLOOR).log())
    return (logarithms[0] - logarithms[1]).abs().mean()


def brightness(images: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W] of red, green and blue [B, 3, H, W]."""
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)
