"""Folders that the stages can run in, at demo size (rendered scenes, the embedded model) or at Stable Diffusion v1.5's (random weights)."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from stages.common.artifacts import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
SPLITS = {
    "valid": 0.1,
    "test": 0.15,
}  # fractions: the demo's counts would leave few images nothing to train on
# stable-diffusion-v1-5's config.json files, as far as they differ from the classes' defaults.
UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}


def write_params(folder: Path, **sections: dict) -> None:
    """params.yaml of the repository with these values laid over its sections."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for name, section in sections.items():
        values[name] |= section
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen:
    """`python <command>` in the folder, with the repository's modules, and scratch of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "REMOTE_DIFFUSION_SCRATCH": str(folder / "scratch"),
            **environment,
        },
    )


def stage(folder: Path, *command: str) -> str:
    """Run a stage to its end; returns what it printed."""
    process = start(folder, "-m", *command)
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {err[-2000:]}")
    return out


def demo(folder: Path, images: int, **sections: dict) -> Path:
    """Rendered tiles and the embedded model."""
    write_params(folder, **({"fetch_imagery": SPLITS | {"max_images": images}} | sections))
    for command in (
        ["stages.fetch_imagery"],
        ["stages.fetch_model", "diffusion"],
        ["stages.train_base"],
    ):
        stage(folder, *command)
    return folder


def stable_diffusion(folder: Path, images: int, resolution: int, **sections: dict) -> Path:
    """Rendered tiles at `resolution` px and a randomly initialized model of Stable Diffusion v1.5's architecture."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    write_params(
        folder,
        **(
            {
                "fetch_imagery": SPLITS | {"max_images": images, "resolution": resolution},
                "encode": {"base_domain": "none", "batch_size": 16, "precision": "bf16"},
            }
            | sections
        ),
    )
    for command in (
        ["stages.fetch_imagery"],
        ["stages.fetch_model", "diffusion"],
        ["stages.train_base"],
    ):
        stage(folder, *command)
    base = folder / "models/base/diffusion"  # the embedded one: its tokenizer and scheduler stay
    vocabulary = {"vocab_size": 49408, "max_position_embeddings": 77}
    torch.manual_seed(0)
    for name, model in (
        ("unet", UNet2DConditionModel(**UNET)),
        ("vae", AutoencoderKL(**VAE)),
        ("text_encoder", CLIPTextModel(CLIPTextConfig(**TEXT, **vocabulary))),
    ):
        for old in (base / name).iterdir():
            old.unlink()
        model.save_pretrained(base / name)
    write_json(folder / "models/start/start.json", {"folder": "models/base/diffusion"})
    return folder
