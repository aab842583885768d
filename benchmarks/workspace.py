"""Folders that stages can run in, for the benchmarks.

At demo size they hold rendered scenes and the embedded model; at Stable Diffusion v1.5's size, a
model with random weights.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.common.artifacts import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
# As fractions: the demo's counts would leave nothing to train on where there are few images.
SPLITS = {"valid": 0.1, "test": 0.15}
# The config.json files of stable-diffusion-v1-5, as far as they differ from the classes' defaults.
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}


# Of what finetune_sd does besides its steps, as little as it can.
LITTLE_MEASURING = {"validation_images": 2, "grid_captions": 1, "grid_steps": 1}


class Usage(NamedTuple):
    """What a stage used."""

    wall: float  # seconds
    cpu: float  # processor seconds
    peak: float  # MB, of its largest process

    def __str__(self) -> str:
        return f"{self.wall:.1f} s (cpu {self.cpu:.1f} s), {self.peak:.0f} MB"


def read_scale(name: str) -> dict[str, Any]:
    """The values of params/<name>.yaml; only `demo` has all keys."""
    # Not by tools.scale: the machine of benchmarks.gpu lacks its YAML library.
    return yaml.safe_load((REPOSITORY / f"params/{name}.yaml").read_text(encoding="utf-8"))


def write_params(folder: Path, seed: int = 0, **sections: dict[str, Any]) -> None:
    """Write the demo's params.yaml to the folder, with this seed and these values in sections."""
    params = read_scale("demo")
    params["seed"] = seed
    for name, values in sections.items():
        params[name] |= values
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """Variables with which this repository's modules run in the folder, with a new resume cache."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "REMOTE_DIFFUSION_SCRATCH": str(folder / "scratch"),
    }


def run_module(folder: Path, module: str, *arguments: str) -> str:
    """Run `python -m module arguments` in the folder; returns what it printed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{module}: {done.stderr[-2000:]}")
    return done.stdout


def run_stage(folder: Path, name: str, cores: int | None = None) -> Usage:
    """Run a stage, with its argument if it has one, in a folder, on `cores` cores (None: all).

    The kernel counts this process's memory in the peak: import nothing large before.
    """
    command = [sys.executable, "-m", *f"stages.{name}".split()]
    if cores:
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        command = ["taskset", "--cpu-list", ",".join(map(str, allowed)), *command]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            errors.seek(0)
            sys.exit(f"{name} failed:\n{errors.read()[-2000:]}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def make_demo(folder: Path, images: int, **sections: dict[str, Any]) -> Path:
    """Make a folder with `images` rendered tiles and the embedded model.

    `sections` are written to params.yaml. Returns the folder.
    """
    imagery: dict[str, Any] = SPLITS | {"max_images": images}
    make_inputs(folder, {"fetch_imagery": imagery} | without_warmup(sections))
    return folder


def make_stable_diffusion(
    folder: Path,
    images: int,
    resolution: int,
    model: Path | None = None,
    **sections: dict[str, Any],
) -> Path:
    """Make a folder with `images` rendered tiles of `resolution` px and a large untrained model.

    The model has the architecture of Stable Diffusion v1.5; `model` names one that another call
    made. `sections` are written to params.yaml. Returns the folder.
    """
    import torch

    imagery: dict[str, Any] = SPLITS | {"max_images": images, "resolution": resolution}
    encoding: dict[str, Any] = {
        "variants": 8,
        "base_domain": "none",
        "batch_size": 16,
        "precision": "bf16",
    }
    make_inputs(folder, {"fetch_imagery": imagery, "encode": encoding} | without_warmup(sections))
    if model:
        write_json(folder / "models/start/start.json", {"folder": str(model)})
        return folder
    # Replace the embedded model, except its tokenizer and scheduler.
    model = folder / "models/base/diffusion"
    torch.manual_seed(0)
    for part in ("unet", "vae", "text_encoder"):
        for file in (model / part).iterdir():
            file.unlink()
        build_part(part).save_pretrained(model / part)
    write_json(folder / "models/start/start.json", {"folder": "models/base/diffusion"})
    return folder


def build_part(part: str) -> Any:
    """Build the `unet`, `vae` or `text_encoder` of Stable Diffusion v1.5, with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if part == "unet":
        return UNet2DConditionModel(**UNET)
    if part == "vae":
        return AutoencoderKL(**VAE)
    return CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))


def make_rsicd_scale(folder: Path, images: int, **steps: int) -> Path:
    """Make a folder for fine-tuning at the scale of params/rsicd.yaml, on rendered tiles.

    `steps` cut the training of the autoencoder and the text encoder. Returns the folder.
    """
    scale = read_scale("rsicd")
    training: dict[str, Any] = LITTLE_MEASURING | {"warmup_steps": 0}
    make_inputs(
        folder,
        {
            "fetch_imagery": SPLITS | {"max_images": images},
            "fetch_model": {"diffusion": "none"},
            "train_base": scale["train_base"] | steps,
            "encode": scale["encode"],
            "finetune_sd": scale["finetune_sd"] | training,
        },
    )
    run_module(folder, "stages.encode")
    return folder


def without_warmup(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections of params for a training that may be shorter than the demo's warm-up."""
    return sections | {"finetune_sd": {"warmup_steps": 0} | sections.get("finetune_sd", {})}


def make_inputs(folder: Path, sections: dict[str, dict[str, Any]], seed: int = 0) -> None:
    """Write params.yaml and run the stages that fetch the imagery and the embedded model."""
    write_params(folder, seed, **sections)
    run_module(folder, "stages.fetch_imagery")
    run_module(folder, "stages.fetch_model", "diffusion")
    run_module(folder, "stages.train_base")
