"""Save the fine-tuned model as a folder that is whole by itself, in diffusers' own layout.

`StableDiffusionPipeline.from_pretrained(folder)` draws from it what our sampler draws: how pixels
are normalized lies in the VAE's weights, and how the schedulers step in their configuration.
"""

import shutil
from pathlib import Path
from typing import Any

from stages.common.artifacts import read_json, write_json
from stages.diffusion.models import CONFIG_FILES, load, read_config, save_text_encoder
from stages.diffusion.normalization import FOLDED, load_folded_vae, read_folded
from stages.diffusion.schedulers import ZERO_TERMINAL_SNR, stepping_config
from stages.runtime.file_modes import follow_umask

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of the UNet and the VAE


def save_unchanged(start: Path, target: Path) -> None:
    """Save the model that fine-tuning would start from; an old folder `target` is replaced."""
    _save(start, target, {})


def save_finetuned(
    start: Path,
    target: Path,
    unet_weights: dict[str, Any],
    normalization: dict[str, Any],
    latent_size: int,
    zero_terminal_snr: bool = False,
) -> None:
    """Save a fine-tuned UNet with the other parts of `start`.

    Args:
        start: the model that fine-tuning started from.
        target: the folder to write; an old one is replaced.
        unet_weights: the UNet's weights by name, float32.
        normalization: of the pixels whose latents were trained on.
        latent_size: latents along a side of the training images. It becomes the pipeline's default.
        zero_terminal_snr: whether the UNet was trained on the rescaled noise schedule.
    """
    weights = {"unet": unet_weights}
    if normalization != read_folded(start):
        weights["vae"] = load_folded_vae(start, normalization).state_dict()
    _save(start, target, weights)
    if "vae" in weights:
        _change_config(target, "vae", {FOLDED: normalization})
    if read_config(start, "unet").get("sample_size") != latent_size:
        from diffusers import __version__

        # In a file of an old version, diffusers replaces a size below 64 by 64.
        _change_config(
            target, "unet", {"sample_size": latent_size, "_diffusers_version": __version__}
        )
    if zero_terminal_snr:
        # diffusers would sample with PNDM, which cannot start from pure noise.
        _change_config(target, "scheduler", ZERO_TERMINAL_SNR | {"_class_name": "DDIMScheduler"})
        index = read_json(target / "model_index.json")
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        write_json(target / "model_index.json", index)


def _save(start: Path, target: Path, weights: dict[str, dict[str, Any]]) -> None:
    """Save a model, with other weights by name for some of its parts.

    The safety checker, which classifies photographs, is left out.
    """
    from safetensors.torch import save_file

    shutil.rmtree(target, ignore_errors=True)
    for part in CONFIG_FILES:
        with_weights = part != "text_encoder" and part not in weights
        _copy_part(start / part, target / part, with_weights)
    for part, tensors in weights.items():
        save_file(tensors, target / part / WEIGHTS, metadata={"format": "pt"})
        follow_umask(target / part)
    # diffusers loads its parts as float32 however they are stored, transformers as they are stored.
    save_text_encoder(load(start, "text_encoder"), target / "text_encoder")
    scheduler = stepping_config(read_config(target, "scheduler"))
    write_json(target / "scheduler" / CONFIG_FILES["scheduler"], scheduler)
    index = read_json(start / "model_index.json")
    index.pop("_name_or_path", None)
    write_json(target / "model_index.json", index)


def _copy_part(source: Path, target: Path, with_weights: bool) -> None:
    """Copy the configuration of a part, and its safetensors files where wanted."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        is_weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        is_config = file.suffix in (".json", ".txt") and not is_weights
        if is_config or is_weights and with_weights:
            shutil.copyfile(file, target / file.name)


def _change_config(folder: Path, part: str, values: dict[str, Any]) -> None:
    """Set values in the configuration of a part."""
    write_json(folder / part / CONFIG_FILES[part], read_config(folder, part) | values)
