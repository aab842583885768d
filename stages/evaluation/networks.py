"""timm networks that classify tiles: their input, and the folder of the scene network."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stages.common.artifacts import (
    decode_image,
    read_json,
    stream_rows,
    write_json,
)
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.parallel import batched

DECODING_BATCH = 256  # images

# Keys of a timm config that describe timm's own weights of the architecture, which these aren't.
TIMM_WEIGHTS_KEYS = (
    "tag",
    "license",
    "origin_url",
    "paper_ids",
    "paper_name",
    "description",
    "notes",
)


def create_network(model: str, class_count: int, resolution: int, key: str) -> nn.Module:
    """A timm network with random weights, in training mode.

    Args:
        model: its timm name.
        class_count: number of outputs.
        resolution: pixels per side of the images that it must accept.
        key: the params key that names the model, for errors.

    Raises:
        SystemExit: timm has no such model, or the model can't read images of that size.
    """
    import timm

    if not timm.is_model(model):
        similar = difflib.get_close_matches(model, timm.list_models())
        hint = f"; near: {', '.join(similar)}" if similar else ""
        exit_with_error(f"{key}: timm has no model {model!r}{hint}")
    try:
        pretrained = timm.get_pretrained_cfg(model)
        options: dict[str, Any] = {}
        # The positions of a transformer are weights, so it must be built for the size.
        if pretrained and pretrained.fixed_input_size:
            options["img_size"] = resolution
        network = timm.create_model(model, num_classes=class_count, **options)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, resolution, resolution))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        exit_with_error(f"{key}: {model} can't read images of {resolution} px: {str(error)[:300]}")
    return network.train()


def load_images(folder: str | Path, resolution: int, indices: Iterable[int]) -> torch.Tensor:
    """The images of the rows `indices` of a folder of shards, in row order: uint8 [N, 3, R, R]."""
    chosen = set(indices)
    rows = (row for i, row in enumerate(stream_rows(folder, ["image"])) if i in chosen)
    images = torch.empty(len(chosen), 3, resolution, resolution, dtype=torch.uint8)
    # Resized batch by batch: all of them as floats would take four times the memory.
    for number, batch in enumerate(batched(rows, DECODING_BATCH)):
        resized = resize(decode_batch(batch), resolution).round().byte()
        first = number * DECODING_BATCH
        images[first : first + len(batch)] = resized
    return images


def decode_batch(rows: list[dict]) -> torch.Tensor:
    """The images of rows as uint8 [B, 3, H, W]; all must have one size."""
    images = [np.asarray(decode_image(row["image"])) for row in rows]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [B, 3, H, W] to float [B, 3, size, size] in [0, 255].

    Bicubic and antialiased, as in clean-fid (Parmar et al. 2022).
    """
    images = images.float()
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(
        images, (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(0, 255)


def add_black_frame(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] in the middle of a black frame of 512/224 their size.

    The paper's released script does this to RSICD's 224 px tiles when it center-crops them to
    512 px, while the generated images fill those 512 px.
    """
    top, left = (round(side * (512 / 224 - 1) / 2) for side in images.shape[-2:])
    return F.pad(images, (left, left, top, top))


def normalize(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Float [B, 3, H, W] in [0, 255] to zero mean and unit variance.

    `mean` and `std` are per channel, of pixels in [0, 1].
    """
    channel_mean = torch.tensor(mean, device=images.device).view(3, 1, 1)
    channel_std = torch.tensor(std, device=images.device).view(3, 1, 1)
    normalized = (images / 255 - channel_mean) / channel_std
    return normalized.contiguous(memory_format=torch.channels_last)


def channel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 [N, 3, H, W], as shares of 255.

    The deviation is at least 1 / 255.
    """
    levels = np.arange(256)
    means = []
    deviations = []
    for channel in range(3):
        counts = np.zeros(256, np.int64)
        for image in images[:, channel].numpy():  # a copy of a whole channel may fill the memory
            counts += np.bincount(image.ravel(), minlength=256)
        mean = float(np.average(levels, weights=counts))
        variance = float(np.average((levels - mean) ** 2, weights=counts))
        means.append(mean / 255)
        deviations.append(max(variance**0.5, 1.0) / 255)
    return means, deviations


def save_network(folder: str | Path, network: nn.Module, config: dict) -> None:
    """Write model.safetensors and config.json, which timm loads by `local-dir:` and `hf-hub:`.

    Args:
        folder: to write to.
        network: of timm.
        config: model (its timm name), resolution, mean, std, the names of the outputs as `classes`
            or `scenes`, and whatever else is known. These keys stand beside timm's.
    """
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    follow_umask(folder)
    size = config["resolution"]
    save_config_for_hf(
        network,
        str(folder / "config.json"),
        model_config={"label_names": config.get("classes") or config["scenes"]} | config,
        data_config={
            "input_size": (3, size, size),
            "mean": config["mean"],
            "std": config["std"],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # `resize` keeps no proportions either
        },
    )
    written = read_json(folder / "config.json")
    for key in TIMM_WEIGHTS_KEYS:
        written["pretrained_cfg"].pop(key, None)
    write_json(folder / "config.json", written)


def load_scene_network(folder: str | Path) -> tuple[nn.Module, dict]:
    """The scene network that `train_scene` wrote, in evaluation mode, and its config.

    Raises:
        SystemExit: the folder holds another network, or weights of another one.
    """
    from safetensors.torch import load_file

    config = read_json(Path(folder) / "config.json")
    missing = {"model", "scenes", "resolution", "mean", "std"} - config.keys()
    if missing:
        exit_with_error(f"{folder}: no scene classifier: its config.json lacks {min(missing)}")
    network = create_network(
        config["model"], len(config["scenes"]), config["resolution"], "train_scene.model"
    )
    weights = Path(folder) / "model.safetensors"
    try:
        network.load_state_dict(load_file(weights))
    except RuntimeError as error:
        exit_with_error(f"{weights}: not the weights of its config.json: {str(error)[:300]}")
    return network.eval().to(memory_format=torch.channels_last), config
