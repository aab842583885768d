"""Train the tiny diffusion model that ships in `stages/embedded/models/diffusion/`.

    python -m stages.embedded.train_models diffusion

It takes an hour and a half on 2 cores. The model stands in for Stable Diffusion v1.5. Its VAE and
text encoder are trained on both looks and all scenes, as SD's were on the web. Its UNet is trained
on the `base` look only, without the scenes of `UNSEEN_SCENES`, so that fine-tuning has a domain to
learn.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.common.rng import rng
from stages.common.torch_setup import make_deterministic, torch_generator
from stages.diffusion import from_scratch
from stages.diffusion.loss import denoising_loss
from stages.embedded.scenes import SCENES, render_tiles
from stages.imagery.base_domain import UNSEEN_SCENES
from stages.runtime.file_modes import follow_umask
from stages.runtime.progress import progress_bar

FOLDER = Path("stages/embedded/models/diffusion")
PARTS = ("vae", "text_encoder", "unet")
SEED = 20260101  # no run uses it: base imagery and domain imagery never share a tile
SIZE = 64  # pixels per side
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
BOTH_LOOKS_TILES = 6000  # for the VAE and the text encoder
UNET_TILES = 24000
UNET_BATCH = 32
UNET_LR = 1.5e-3
CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
ENCODING_BATCH = 64  # images


def main(
    parts: Sequence[str] = PARTS,
    vae_steps: int = 2500,
    text_steps: int = 800,
    unet_steps: int = 10000,
) -> None:
    """Train these parts of the model. The others are loaded from `FOLDER`."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    make_deterministic(SEED)
    tiles = both_looks_tiles()
    images = np.stack([tile["image"] for tile in tiles])  # [N, H, W, 3]
    captions = [tile["captions"] for tile in tiles]
    all_captions = [caption for tile_captions in captions for caption in tile_captions]
    notes = read_notes()
    fillers = filler_words(notes, all_captions)

    if "vae" in parts:
        trained_vae = from_scratch.train_vae(
            images,
            [24, 48, 96],
            LATENT_CHANNELS,
            steps=vae_steps,
            batch_size=32,
            lr=3e-3,
            seed=SEED,
        )
        trained_vae.save_pretrained(FOLDER / "vae")
        follow_umask(FOLDER)
    if "text_encoder" in parts:
        # The shipped text encoder has this vocabulary. Its captions and notes are English.
        letters = [chr(code) for code in range(33, 127)]
        from_scratch.train_tokenizer(all_captions + notes, FOLDER / "tokenizer", letters)
        trained_text_encoder = from_scratch.train_text_encoder(
            CLIPTokenizer.from_pretrained(FOLDER / "tokenizer"),
            images,
            captions,
            width=TEXT_WIDTH,
            layers=2,
            steps=text_steps,
            batch_size=96,
            lr=2e-3,
            seed=SEED,
            fillers=fillers,
        )
        trained_text_encoder.save_pretrained(FOLDER / "text_encoder")
        follow_umask(FOLDER)
    if "unet" in parts:
        vae = AutoencoderKL.from_pretrained(FOLDER / "vae", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
        unet = train_unet(vae, text_encoder, tokenizer, fillers, unet_steps)
        from_scratch.save_pipeline(FOLDER, vae, text_encoder, unet, torch.float16)


def both_looks_tiles() -> list[dict]:
    """Tiles of all scenes, the first half in the `domain` look, the second in the `base` look."""
    half = BOTH_LOOKS_TILES // 2
    return [
        *render_tiles(SEED, 0, half, SIZE, "domain"),
        *render_tiles(SEED, half, BOTH_LOOKS_TILES, SIZE, "base"),
    ]


def read_notes() -> list[str]:
    """The field notes that ship with the repository, as lower-case letters and spaces."""
    paths = sorted(Path("stages/embedded/notes").glob("*.md"))
    return [re.sub(r"[^a-z ]", " ", path.read_text("utf-8").lower()) for path in paths]


def filler_words(notes: list[str], captions: list[str]) -> list[str]:
    """Words of the notes that no caption uses, sorted: to the text encoder, general English."""
    note_words = {word for note in notes for word in note.split()}
    caption_words = {word for caption in captions for word in caption.split()}
    return sorted(note_words - caption_words)


def train_unet(
    vae: Any, text_encoder: Any, tokenizer: Any, fillers: Sequence[str], steps: int
) -> Any:
    """Train a UNet to predict the velocity (Salimans & Ho 2022, eq. 12); returns its EMA.

    Min-SNR weighting (Hang et al. 2023, eq. 6 for v) spends the steps where structure is decided.
    """
    from diffusers import PNDMScheduler

    tiles = unet_tiles()
    latents = encode_latents(vae, np.stack([tile["image"] for tile in tiles]))  # [N, C, h, w]
    captions = [tile["captions"] for tile in tiles]
    # Attention starts at the lowest level, of 4 x 4 latents. At 8 x 8 it would cost a quarter of a
    # step.
    unet = from_scratch.make_unet(
        [32, 64, 128], LATENT_CHANNELS, SIZE // 4, TEXT_WIDTH, attention_from=2
    )
    unet.to(memory_format=torch.channels_last).train()
    ema = [weight.detach().clone() for weight in unet.parameters()]
    schedule: Any = PNDMScheduler.from_pretrained(FOLDER / "scheduler")
    alphas_cumprod = schedule.alphas_cumprod  # [T]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=UNET_LR, weight_decay=0.01, fused=True)
    lr_schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps)
    )
    losses: list[float] = []
    bar = progress_bar(range(steps), desc="UNet", unit="step")
    for step in bar:
        batch = draw_batch(step, latents, captions, text_encoder, tokenizer, fillers)
        loss = denoising_loss(unet, batch, alphas_cumprod, "v_prediction", MIN_SNR_GAMMA).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        lr_schedule.step()
        # Update EMA. Its decay rises from 0.1 to 0.999.
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [weight.detach() for weight in unet.parameters()], 1 - decay)
        losses.append(loss.item())
        if step % 100 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-500:]):.4f}", refresh=False)
    with torch.no_grad():
        for weight, average in zip(unet.parameters(), ema):
            weight.copy_(average)
    return unet


def unet_tiles() -> list[dict]:
    """Tiles in the `base` look, of the scenes that the UNet may see."""
    scenes = tuple(scene for scene in SCENES if scene not in UNSEEN_SCENES)
    return list(render_tiles(SEED + 1, 0, UNET_TILES, SIZE, "base", scenes))


@torch.no_grad()
def encode_latents(vae: Any, images: np.ndarray) -> torch.Tensor:
    """Latents of images [N, H, W, 3], each under a random flip or rotation: fp16 [N, C, h, w]."""
    variants = rng(SEED, "turns").integers(8, size=len(images))
    images = np.stack(
        [
            np.rot90(image, variant % 4)[:, :: -1 if variant > 3 else 1]
            for image, variant in zip(images, variants)
        ]
    )
    latents = []
    begins = range(0, len(images), ENCODING_BATCH)
    for begin in progress_bar(begins, desc="latents", unit="batch"):
        x = from_scratch.normalize_pixels(images[begin : begin + ENCODING_BATCH])  # [B, 3, H, W]
        latents.append(vae.encode(x).latent_dist.mean.half() * vae.config.scaling_factor)
    return torch.cat(latents)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 200 steps, then half a cosine down to a hundredth."""
    return min(1, step / 200) * 0.5 * (1.02 + np.cos(np.pi * step / steps))


def draw_batch(
    step: int,
    latents: torch.Tensor,
    captions: list[list[str]],
    text_encoder: Any,
    tokenizer: Any,
    fillers: Sequence[str],
) -> dict[str, torch.Tensor]:
    """The batch of a training step, as `denoising_loss` takes it. Some captions are dropped."""
    generator = rng(SEED, "unet", UNET_BATCH, step)
    noise_generator = torch_generator(SEED, "unet noise", UNET_BATCH, step)
    rows = generator.integers(len(latents), size=UNET_BATCH)
    texts = []
    for row in rows:
        if generator.random() < CAPTION_DROPOUT:
            texts.append("")
        else:
            caption = captions[row][generator.integers(5)]
            texts.append(from_scratch.insert_fillers(caption, fillers, generator))
    with torch.no_grad():
        token_ids = from_scratch.tokenize(tokenizer, texts)
        text_embeddings = text_encoder(token_ids).last_hidden_state  # [B, 77, D]
    x = latents[rows].float()  # [B, C, h, w]
    return {
        "latents": x,
        "noise": torch.randn(x.shape, generator=noise_generator),
        "timesteps": torch.randint(1000, (UNET_BATCH,), generator=noise_generator),
        "text": text_embeddings,
    }
