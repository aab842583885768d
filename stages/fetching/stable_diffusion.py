"""Whether a folder holds the kind of diffusion model that the stages train and sample.

That is Stable Diffusion (Rombach et al. 2022): a UNet reads noisy latents of a VAE, a timestep and
the hidden states of one CLIP text encoder, and predicts the noise or the velocity. A model of
another kind has inputs that no stage fills. Most kinds tell by their configuration files.
"""

import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from stages.common.artifacts import read_json
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import count_more
from stages.runtime.progress import log

# Their parts are alike.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
# Part of a pipeline's name -> what it has that no stage reads. The first that fits is named.
OTHER_PIPELINES = {
    "XL": "it has two text encoders, and a UNet that also reads the size of the image",
    "Inpaint": "its UNet also reads a mask and the image around it",
    "InstructPix2Pix": "its UNet also reads an image",
    "Flux": "it is a transformer trained by flow matching, without a UNet",
    "StableDiffusion3": "it is a transformer trained by flow matching, without a UNet",
    "LatentConsistency": "its UNet is distilled to a few steps and also reads the guidance scale",
    "ControlNet": "it has a second network, which reads an image",
    "Upscale": "its UNet also reads a small image",
    "": "it has other parts, or parts with other inputs",
}
# Keys of unet/config.json that are null in Stable Diffusion -> what a UNet with a value reads.
OTHER_INPUTS = {
    "addition_embed_type": "more than text, such as the size of the image (SDXL)",
    "class_embed_type": "a class",
    "num_class_embeds": "a class",
    "time_cond_proj_dim": "the guidance scale, as it is distilled to a few steps (LCM)",
    "encoder_hid_dim_type": "text of another encoder (DeepFloyd IF, Kandinsky)",
}
# Channels of a UNet's input -> what it is besides 4 channels of latents.
OTHER_CHANNELS = {
    5: "a depth map",
    7: "a small image (upscaling)",
    8: "an image (InstructPix2Pix)",
    9: "a mask and a masked image (inpainting)",
}
CONFIG_FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
SINGLE_FILE_ADVICE = (
    "a checkpoint in a single file is made a folder by `StableDiffusionPipeline.from_single_file("
    "<file>).save_pretrained(<folder>)` of diffusers"
)


def check_kind(folder: Path, listing: set[str], label: str) -> None:
    """Exit with an error that names what shows that a folder holds no Stable Diffusion.

    Files that are missing, and keys that their library writes, are not checked here.

    Args:
        folder: as diffusers saves it; weights aren't read.
        listing: paths of the model's files, also of those of a hub that weren't downloaded.
        label: the start of error messages: params key and source.
    """
    if not (folder / "model_index.json").is_file():
        advice = _advice_without_index(folder, listing, label)
        exit_with_error(f"{label}: model_index.json is missing{advice}")
    index, unet, vae, text, scheduler = (
        read_json_object(folder / name, label) for name in CONFIG_FILES
    )
    tokenizer = read_json_object(folder / "tokenizer/tokenizer.json", label)
    faults = chain(
        _find_faults(index, unet, vae, text, scheduler),
        _tokenizer_faults(folder / "tokenizer", tokenizer, label),
    )
    if fault := next(faults, None):
        exit_with_error(f"{label}: {fault}")


def _advice_without_index(folder: Path, listing: set[str], label: str) -> str:
    """What a folder without model_index.json holds instead, and how that becomes a model."""
    # Such as the hub's cache, models--owner--name.
    for index in sorted(name for name in listing if name.endswith("/model_index.json")):
        return f", there is {index}: name its folder by path:"
    config = read_json_object(folder / "config.json", label)
    parts = {name.partition("/")[0] for name in listing if "/" in name}
    has_part = "unet" in parts and "vae" not in parts
    if config.get("_class_name") == "UNet2DConditionModel" or has_part:
        return ", there is a UNet alone: put it as unet/ into a copy of its base model's folder"
    files = sorted(name for name in listing if "/" not in name)
    weights = [
        name for suffix in (".safetensors", ".ckpt") for name in files if name.endswith(suffix)
    ]
    if not weights:
        return ""
    beside = f", there is {weights[0]}"
    if re.search(r"(?:^|[^a-z])lora(?:[^a-z]|$)", weights[0].lower()):
        return (
            f"{beside}: a LoRA is merged into its base by load_lora_weights, fuse_lora, "
            "unload_lora_weights and save_pretrained of its StableDiffusionPipeline"
        )
    return f"{beside}; {SINGLE_FILE_ADVICE}"


def read_json_object(path: Path, label: str) -> dict[str, Any]:
    """The JSON object of a file; {} where there is no file, or it holds a list (modules.json)."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except OSError as error:
        exit_with_error(f"{label}: {path.parent.name}/{path.name} is not readable JSON ({error})")
    return content if isinstance(content, dict) else {}


def _find_faults(index: dict, unet: dict, vae: dict, text: dict, scheduler: dict) -> Iterator[str]:
    """What shows in the configuration files of a pipeline that it is no Stable Diffusion."""
    pipeline = str(index.get("_class_name", PIPELINES[0]))
    if pipeline not in PIPELINES:
        reason = next(OTHER_PIPELINES[part] for part in OTHER_PIPELINES if part in pipeline)
        yield f"model_index.json says {pipeline}; a {PIPELINES[0]} is needed: {reason}"
    yield from _class_faults("unet/config.json", unet, "UNet2DConditionModel")
    yield from _class_faults("vae/config.json", vae, "AutoencoderKL")
    for key, read in OTHER_INPUTS.items():
        if unet.get(key) is not None:
            yield f"unet/config.json: {key} is {unet[key]}: the UNet also reads {read}"
    channels = unet.get("in_channels", 4)
    latent_channels = vae.get("latent_channels", 4)
    if channels != latent_channels:
        read = OTHER_CHANNELS.get(channels, "something else, or has another VAE")
        yield (
            f"unet/config.json: in_channels is {channels}, and the VAE's latents have "
            f"{latent_channels} channels: the UNet also reads {read}"
        )
    if unet.get("out_channels", 4) != channels:
        yield (
            f"unet/config.json: out_channels is {unet.get('out_channels', 4)} and in_channels "
            f"{channels}: the UNet predicts more than the noise"
        )
    yield from _text_faults(unet, text)
    yield from _vae_faults(vae)
    yield from _scheduler_faults(scheduler)


def _class_faults(name: str, config: dict, needed: str) -> Iterator[str]:
    if config.get("_class_name", needed) != needed:
        yield f"{name} says {config['_class_name']}; a {needed} is needed"


def _text_faults(unet: dict, text: dict) -> Iterator[str]:
    """What is wrong with a text encoder; absent keys have their library's defaults."""
    kind = text.get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        yield f"text_encoder/config.json says {kind}; a CLIP text encoder is needed"
    if not unet or not text:
        return
    width = text.get("text_config", text).get("hidden_size", 512)
    read = unet.get("cross_attention_dim", 1280)
    if any(dim != width for dim in (read if isinstance(read, list) else [read])):
        yield (
            f"unet/config.json: cross_attention_dim is {read}, and hidden_size of the text encoder "
            f"is {width}: one of them belongs to another model"
        )


def _vae_faults(vae: dict) -> Iterator[str]:
    factor = vae.get("scaling_factor", 0.18215)
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        yield (
            f"vae/config.json: scaling_factor is {factor}; a number is needed that brings the "
            "latents to a standard deviation of 1 (0.18215 in Stable Diffusion v1 and v2)"
        )
    if vae.get("shift_factor"):
        yield (
            f"vae/config.json: shift_factor is {vae['shift_factor']}: no stage shifts latents (SD3 "
            "and FLUX do)"
        )
    for key in ("in_channels", "out_channels"):
        if vae.get(key, 3) != 3:
            yield f"vae/config.json: {key} is {vae[key]}: images have 3 channels here"


def _scheduler_faults(scheduler: dict) -> Iterator[str]:
    name = "scheduler/scheduler_config.json"
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith("FlowMatch") or scheduler.get("use_flow_sigmas"):
        yield f"{name} says {kind}: flow matching, no denoising diffusion"
    if kind.startswith("EDM"):
        yield f"{name} says {kind}: the UNet reads and predicts scaled values (Karras et al. 2022)"
    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted not in ("epsilon", "v_prediction"):
        yield f"{name}: prediction_type {predicted} is not supported (epsilon, v_prediction)"
    if scheduler.get("rescale_betas_zero_snr") and predicted == "epsilon":
        yield (
            f"{name}: rescale_betas_zero_snr needs a UNet with v_prediction, and this one predicts "
            "the noise (epsilon), which says nothing about the image where the signal is zero"
        )


def _tokenizer_faults(folder: Path, tokenizer: dict, label: str) -> Iterator[str]:
    """What shows that a tokenizer is no byte-pair encoding, or has lost its merges.

    Without merges it would read every word letter by letter.
    """
    name = "tokenizer/tokenizer.json"
    if tokenizer:
        model = tokenizer.get("model") or {}
        if model.get("type", "BPE") != "BPE":
            yield f"{name} says {model['type']}; a byte-pair encoding (BPE) is needed, as of CLIP"
        vocabulary = model.get("vocab") or {}
        merges = model.get("merges") or []
    else:
        name = "tokenizer/merges.txt"
        vocabulary = read_json_object(folder / "vocab.json", label)
        if not (folder / "merges.txt").is_file():
            return  # a missing file
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    words = [
        token
        for token in vocabulary
        if len(token.removesuffix("</w>")) > 1 and not token.startswith("<|")
    ]
    if words and not merges:
        yield f"{name} holds no merges; the vocabulary has tokens of several letters ({words[-1]})"


def log_missing_prediction_type(folder: Path, label: str) -> None:
    """Say what a UNet is taken to predict where its scheduler doesn't."""
    name = "scheduler/scheduler_config.json"
    if "prediction_type" not in read_json(folder / name):
        log(
            f"{label}: {name} has no prediction_type: the UNet is taken to predict the noise "
            "(epsilon), as diffusers does; finetune_sd checks it by the validation loss"
        )


def check_unet_weights(folder: Path, label: str) -> None:
    """Exit with an error where the UNet's weights are not those of its configuration.

    A weight that the network doesn't read belongs to an input that no stage fills (the metadata of
    DiffusionSat, Khanna et al. 2024); the library leaves it out with a warning. Only the headers of
    the files are read.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors import safe_open

    try:
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(read_json(folder / "unet/config.json"))
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, ZeroDivisionError) as error:
        exit_with_error(f"{label}: unet/config.json: no UNet can be built: {str(error)[:300]}")
    needed = {name: list(weight.shape) for name, weight in unet.state_dict().items()}
    stored: dict[str, list[int]] = {}
    for file in sorted((folder / "unet").glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            stored |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
    for names, fault in (
        (stored.keys() - needed.keys(), "hold {}, which its network doesn't read"),
        (needed.keys() - stored.keys(), "lack {}"),
        ([name for name in needed if stored.get(name) != needed[name]], "hold {} in another shape"),
    ):
        if names:
            exit_with_error(
                f"{label}: unet: its weights {fault.format(min(names))}{count_more(names)}: "
                "unet/config.json belongs to another model, or the UNet is of another kind"
            )
