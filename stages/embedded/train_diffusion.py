"""Train the tiny base diffusion model that ships in `stages/embedded/models/diffusion/` (once; about an hour and a half on 2 cores).

    python -m stages.embedded.train_models diffusion

It stands in for Stable Diffusion v1.5: its VAE and text encoder have seen both looks and all scenes (as SD's have seen
the web), its UNet only the `base` look and not the scenes of `UNSEEN`, so that fine-tuning has a domain to learn.
"""

import re
from pathlib import Path

import numpy as np
import torch

from stages.common.rng import rng
from stages.common.torch_setup import make_deterministic, torch_generator
from stages.diffusion import from_scratch
from stages.diffusion.loss import denoising_loss
from stages.embedded.scenes import SCENES, tiles
from stages.imagery.base_domain import UNSEEN
from stages.runtime.progress import progress_bar

FOLDER = Path("stages/embedded/models/diffusion")
SEED = 20260101  # far from any run's own tiles: base and domain imagery never share a tile
SIZE = 64  # pixels
BOTH_TILES, UNET_TILES = 6000, 24000


def main(
    *parts: str, vae_steps: int = 2500, text_steps: int = 800, unet_steps: int = 10000
) -> None:
    """Train the named parts (vae, text_encoder, unet), or all; the others are taken from the folder as they are."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    make_deterministic(SEED)
    parts = parts or ("vae", "text_encoder", "unet")
    notes = [
        re.sub(r"[^a-z ]", " ", path.read_text().lower())
        for path in sorted(Path("stages/embedded/notes").glob("*.md"))
    ]
    half = BOTH_TILES // 2
    both = [*tiles(SEED, 0, half, SIZE, "domain"), *tiles(SEED, half, BOTH_TILES, SIZE, "base")]
    images, captions = np.stack([t["image"] for t in both]), [t["captions"] for t in both]
    sentences = [c for five in captions for c in five]
    # Words of the notes that no caption uses: general English, to the text encoder.
    fillers = sorted(
        {word for note in notes for word in note.split()}
        - {word for c in sentences for word in c.split()}
    )

    if "vae" in parts:
        from_scratch.train_vae(images, [24, 48, 96], 4, vae_steps, 32, 3e-3, SEED).save_pretrained(
            FOLDER / "vae"
        )
    if "text_encoder" in parts:
        from_scratch.train_tokenizer(sentences + notes, FOLDER / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
        from_scratch.train_text_encoder(
            tokenizer, images, captions, 64, 2, text_steps, 96, 2e-3, SEED, fillers
        ).save_pretrained(FOLDER / "text_encoder")
    if "unet" not in parts:
        return
    vae = AutoencoderKL.from_pretrained(FOLDER / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    base = list(
        tiles(SEED + 1, 0, UNET_TILES, SIZE, "base", [s for s in SCENES if s not in UNSEEN])
    )
    latents, captions = (
        encode(vae, np.stack([t["image"] for t in base])),
        [t["captions"] for t in base],
    )
    unet = from_scratch.untrained_unet(
        [32, 64, 128], 4, SIZE // 4, 64, attention_from=2
    )  # at 8 x 8 it costs a quarter of a step
    train_unet(unet, latents, captions, text, tokenizer, fillers, unet_steps, batch=32, lr=1.5e-3)
    from_scratch.save_pipeline(FOLDER, vae, text, unet, torch.float16)


@torch.no_grad()
def encode(vae, images: np.ndarray) -> torch.Tensor:
    """Latents of images, each under a random flip or rotation: fp16 [N,C,h,w]."""
    turns = rng(SEED, "turns").integers(8, size=len(images))
    images = np.stack([np.rot90(x, k % 4)[:, :: -1 if k > 3 else 1] for x, k in zip(images, turns)])
    return torch.cat(
        [
            vae.encode(from_scratch._pixels(images[i : i + 64])).latent_dist.mean.half()
            * vae.config.scaling_factor
            for i in progress_bar(range(0, len(images), 64), what="latents", unit="batch")
        ]
    )


def train_unet(
    unet, latents, captions, text, tokenizer, fillers, steps: int, batch: int, lr: float
) -> None:
    """v-prediction (Salimans & Ho 2022, eq. 12) on latents [N,C,h,w], captions dropped at 10 %; leaves the averaged weights.

    Min-SNR weighting (Hang et al. 2023, eq. 6 for v, gamma 5) spends the steps where structure is decided.
    """
    from diffusers import PNDMScheduler

    unet.to(memory_format=torch.channels_last).train()
    ema = [p.detach().clone() for p in unet.parameters()]
    powers = PNDMScheduler.from_pretrained(FOLDER / "scheduler").alphas_cumprod  # [T]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, s / 200) * 0.5 * (1.02 + np.cos(np.pi * s / steps))
    )
    losses = []
    for step in (bar := progress_bar(range(steps), what="UNet", unit="step")):
        draw, generator = (
            rng(SEED, "unet", batch, step),
            torch_generator(SEED, "unet noise", batch, step),
        )
        rows = draw.integers(len(latents), size=batch)
        words = [
            ""
            if draw.random() < 0.1
            else from_scratch.scatter(captions[r][draw.integers(5)], fillers, draw)
            for r in rows
        ]
        with torch.no_grad():
            context = text(from_scratch.tokenize(tokenizer, words)).last_hidden_state  # [B,77,D]
        x = latents[rows].float()  # [B,C,h,w]
        eps, t = (
            torch.randn(x.shape, generator=generator),
            torch.randint(1000, (batch,), generator=generator),
        )
        loss = denoising_loss(
            unet,
            {"latents": x, "noise": eps, "timesteps": t, "text": context},
            powers,
            "v_prediction",
            5.0,
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(
            ema, [p.detach() for p in unet.parameters()], 1 - min(0.999, (1 + step) / (10 + step))
        )
        losses.append(loss.item())
        if step % 100 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-500:]):.4f}", refresh=False)
    with torch.no_grad():
        for p, e in zip(unet.parameters(), ema):
            p.copy_(e)
