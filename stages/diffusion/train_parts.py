"""Train the parts of the model that fine-tuning starts from: VAE, tokenizer and text encoder."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.diffusion import from_scratch, models
from stages.diffusion.clip_tokenizer import train_tokenizer
from stages.diffusion.train_decoder import train_decoder
from stages.params import TrainBase


def adapt(
    fetched: Path,
    images: np.ndarray,
    captions: list[list[str]],
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> None:
    """Save a fetched model with the parts that are trained here in place of its own.

    Args:
        fetched: the folder of the model.
        images: uint8 [N, H, W, 3].
        captions: of each image.
        config: the section `train_base`.
        seed: of the run.
        cache: holds the checkpoints.
        folder: to save to.
    """
    replaced = ["SOURCE.json"]  # of the fetched files
    if config.text_steps:
        replaced += ["text_encoder", "tokenizer"]
    if config.vae_steps or config.decoder_steps:
        replaced += ["vae"]
    ignore = shutil.ignore_patterns(*replaced)
    # Without the modes: fetched files may be read-only.
    shutil.copytree(
        fetched, folder, copy_function=shutil.copyfile, ignore=ignore, dirs_exist_ok=True
    )
    if config.text_steps:
        width = models.load(fetched, "text_encoder").config.hidden_size
        text_encoder = train_tokenizer_and_text_encoder(
            images, captions, width, config, seed, cache, folder
        )
        from_scratch.save_part(folder / "text_encoder", text_encoder)
    if "vae" in replaced:
        vae = models.load(fetched, "vae")
        vae = train_vae_and_decoder(vae, images, captions, config, seed, cache)
        from_scratch.save_part(folder / "vae", vae)


def trained_parts(config: TrainBase) -> list[str]:
    """The parts that `adapt` trains."""
    steps = {
        "vae": config.vae_steps,
        "decoder": config.decoder_steps,
        "text_encoder": config.text_steps,
    }
    return [part for part in steps if steps[part]]


def train_from_scratch(
    images: np.ndarray,
    captions: list[list[str]],
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> None:
    """Train the parts in the order they depend on each other, and save them as a pipeline.

    The arguments are those of `adapt`.
    """
    text_encoder = train_tokenizer_and_text_encoder(
        images, captions, config.text_width, config, seed, cache, folder
    )
    torch.manual_seed(seed)
    vae = from_scratch.make_vae(config.vae_channels, config.latent_channels, images.shape[1])
    vae = train_vae_and_decoder(vae, images, captions, config, seed, cache)
    torch.manual_seed(seed)
    unet = from_scratch.make_unet(
        config.unet_channels,
        config.latent_channels,
        latent_size=images.shape[1] // 2 ** (len(config.vae_channels) - 1),
        text_width=config.text_width,
    )
    from_scratch.save_pipeline(folder, vae, text_encoder, unet)


def train_tokenizer_and_text_encoder(
    images: np.ndarray,
    captions: list[list[str]],
    width: int,
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> Any:
    """Train a tokenizer, saved in the folder, and a text encoder of this width, returned."""
    all_captions = [caption for image_captions in captions for caption in image_captions]
    train_tokenizer(all_captions, folder / "tokenizer")
    return from_scratch.train_text_encoder(
        models.load_tokenizer(folder),
        images,
        captions,
        width=width,
        layers=config.text_layers,
        steps=config.text_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        cache=cache,
    )


def train_vae_and_decoder(
    vae: Any,
    images: np.ndarray,
    captions: list[list[str]],
    config: TrainBase,
    seed: int,
    cache: Path,
) -> Any:
    """Train a VAE, and then its decoder alone."""
    if config.vae_steps:
        vae = from_scratch.train_vae(
            vae,
            images,
            steps=config.vae_steps,
            batch_size=config.batch_size,
            lr=config.lr,
            seed=seed,
            cache=cache,
        )
    if config.decoder_steps:
        vae = train_decoder(
            vae,
            images,
            captions,
            config.decoder_steps,
            config.batch_size,
            seed,
            cache / "decoder",
        )
    return vae
