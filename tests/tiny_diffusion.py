"""An untrained diffusion model and a few colored tiles, for tests that need no trained model."""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from stages.common.artifacts import IMAGE, encode_png, write_json, write_shards
from stages.diffusion import models

TEXT = pa.string()
IMAGERY = pa.schema(
    [("image", IMAGE), ("captions", pa.list_(TEXT)), ("scene", TEXT), ("filename", TEXT)]
)


def save_unet(folder: Path, channels: tuple[int, ...], width: int, size: int) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
    ).save_pretrained(folder)


def save_vae(folder: Path, channels: tuple[int, ...]) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=channels,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    ).save_pretrained(folder)


def save_text_encoder(folder: Path, width: int) -> None:
    """Save a tokenizer of single characters and a CLIP text encoder of one layer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(32, 127)]
    vocab = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=[], model_max_length=77
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=len(vocab) - 2,
            eos_token_id=len(vocab) - 1,
            pad_token_id=len(vocab) - 1,
        )
    )
    models.save_text_encoder(text_encoder, folder / "text_encoder")


def save_scheduler(folder: Path, prediction_type: str) -> None:
    from diffusers import PNDMScheduler

    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder)


def make_pipeline(
    folder: Path,
    channels: tuple[int, ...] = (8, 16, 16),
    vae_channels: tuple[int, ...] = (8, 8, 8),
    width: int = 16,
    size: int = 8,
    seed: int = 0,
    prediction_type: str = "v_prediction",
) -> Path:
    """A randomly initialized StableDiffusionPipeline folder.

    The architecture is that of the shipped base model: a UNet with cross-attention at its lowest
    level, and a VAE that makes one latent of 4 x 4 pixels.
    """
    import diffusers

    torch.manual_seed(seed)
    save_unet(folder / "unet", channels, width, size)
    save_vae(folder / "vae", vae_channels)
    save_text_encoder(folder, width)
    save_scheduler(folder / "scheduler", prediction_type)
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "_diffusers_version": diffusers.__version__,
                "feature_extractor": [None, None],
                "safety_checker": [None, None],
                "requires_safety_checker": False,
                "scheduler": ["diffusers", "PNDMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )
    return folder


def make_imagery(folder: Path, counts: dict[str, int], size: int = 32) -> Path:
    """Tiles of one color and a bright corner, two captions each, in `folder/{split}`."""
    for split, count in counts.items():
        rows = []
        for i in range(count):
            generator = np.random.default_rng([i, len(split)])
            color = generator.integers(0, 256, 3)
            noise = generator.normal(0, 20, (size, size, 3))
            pixels = np.clip(color + noise, 0, 255).astype(np.uint8)
            pixels[: size // 4, : size // 2] = 255
            rows.append(
                {
                    "image": {"bytes": encode_png(Image.fromarray(pixels)), "path": None},
                    "filename": f"{split}_{i:04d}.png",
                    "scene": "field",
                    "captions": [f"a field number {i}", "a field" if i % 2 else f"a bright {i}"],
                }
            )
        write_shards(folder / split, rows, IMAGERY)
    return folder


def make_workspace(folder: Path, train: int = 20, valid: int = 6, test: int = 7, **model) -> Path:
    """A working directory with the inputs of encode, finetune_sd, sample and generate.

    `train`, `valid` and `test` count tiles; `model` is passed on to `make_pipeline`.
    """
    make_pipeline(folder / "models/base/diffusion", **model)
    write_json(folder / "models/start/start.json", {"folder": "models/base/diffusion"})
    make_imagery(folder / "data/imagery", {"train": train, "valid": valid, "test": test})
    return folder


TINY = {
    "sampling": {
        "scheduler": "pndm",
        "guidance_scale": 3.0,
        "steps": 3,
        "resolution": 32,
        "batch_size": 4,
        "precision": "fp32",
    },
    "encode": {"variants": 8, "batch_size": 8, "precision": "fp32", "base_images": 4},
    "finetune_sd": {
        "epochs": 4,
        "batch_size": 8,
        "lr": 1.0e-3,
        "warmup_steps": 2,
        "precision": "fp32",
        "checkpoint_steps": 3,
        "validation_images": 5,
        "grid_captions": 2,
        "grid_steps": 4,
        "optimizer": "adamw",
    },
    "generate": {"images_per_prompt": 2},
}


def write_params(folder: Path, **sections: dict) -> None:
    """The demo's params with `TINY` and then `sections` laid over it."""
    values = yaml.safe_load((Path(__file__).parents[1] / "params/demo.yaml").read_text())
    for overlay in (TINY, sections):
        for name, section in overlay.items():
            values[name] |= section
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


# Each run of a stage is a new process. It is forked from a server that has done the imports,
# so that its start takes 0.1 s instead of 8 s.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "stages.encode",
        "stages.finetune_sd",
        "stages.sample",
        "stages.generate",
        "diffusers",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.autoencoders.autoencoder_kl",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "dvclive",
    ]
)


def run(workspace: Path, function, *args, processes: int = 1) -> tuple[int, str]:
    """Call `function(*args)` in `workspace`, in new processes.

    Returns the exit code (-9: killed) and the stderr of the first process.
    """
    port = str(_free_port())
    children = [
        FORKSERVER.Process(target=_child, args=(workspace, rank, processes, port, function, args))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(600)
    return children[0].exitcode, (workspace / "stderr0.txt").read_text()


def _child(workspace: Path, rank: int, world: int, port: str, function, args: tuple) -> None:
    os.chdir(workspace)
    os.dup2(os.open(f"stderr{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ["REMOTE_DIFFUSION_SCRATCH"] = str(workspace / "scratch")
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
        }
    # A stage forks its processes, as outside the tests, and starts no further server for them.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    function(*args)


def resume_key(monkeypatch, module, main, *args) -> str:
    """The fingerprint for which a stage resumes what a killed run has finished.

    `main(*args)` runs in this process, in this folder, until it asks `module` for the resume cache.
    """
    asked = []

    def stop(stage: str, fingerprint: str):
        asked.append(fingerprint)
        sys.exit()

    with monkeypatch.context() as patch:
        patch.setattr(module, "resume_folder", stop)
        with pytest.raises(SystemExit):
            main(*args)
    return asked.pop()


def on_threads(count: int, function, *args) -> None:
    torch.set_num_threads(count)
    function(*args)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
