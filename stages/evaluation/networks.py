"""The scene network: a timm classifier of real tiles, its input scaling, its folder."""

import difflib
from collections.abc import Collection
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stages.common.artifacts import decode_image, read_json, stream_rows, write_json
from stages.runtime.errors import exit_with_error


def create(model: str, classes: int, resolution: int, key: str) -> nn.Module:
    """A timm network with random weights for images of `resolution` px. What there is none of ends the stage.

    `key`: the params key that gave its name.
    """
    import timm

    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models())
        exit_with_error(
            f"{key}: timm has no model {model!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    try:
        fixed = timm.get_pretrained_cfg(
            model
        ).fixed_input_size  # a transformer's positions are weights: it is made for one size
        network = timm.create_model(
            model, num_classes=classes, **({"img_size": resolution} if fixed else {})
        )
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, resolution, resolution))
    except (AssertionError, RuntimeError, TypeError, ValueError) as fault:
        exit_with_error(f"{key}: {model} can't read images of {resolution} px: {str(fault)[:300]}")
    return network.train()


def pixels(rows: list[dict]) -> torch.Tensor:
    """The images of rows as uint8 [N, 3, H, W]; all must have one size."""
    return torch.from_numpy(
        np.stack([np.asarray(decode_image(row["image"])) for row in rows])
    ).permute(0, 3, 1, 2)


def load_images(
    folder: str | Path, resolution: int, places: Collection[int] | None = None
) -> torch.Tensor:
    """Images of a folder of shards (all, or those at sorted row numbers) as uint8 [N, 3, R, R]."""
    wanted = None if places is None else set(places)
    rows = (
        row for i, row in enumerate(stream_rows(folder, ["image"])) if wanted is None or i in wanted
    )
    groups = []
    while some := list(
        islice(rows, 256)
    ):  # resized in groups: all of them as floats would take four times the memory
        groups.append(resize(pixels(some), resolution).round().byte())
    return (
        torch.cat(groups)
        if groups
        else torch.empty(0, 3, resolution, resolution, dtype=torch.uint8)
    )


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, 3, H, W] to float [N, 3, size, size] in [0, 255]; bicubic, antialiased (Parmar et al. 2022, clean-fid)."""
    images = images.float()
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(
        images, (size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 255)


def framed(images: torch.Tensor) -> torch.Tensor:
    """Tiles uint8 [N, 3, H, W] in the middle of a black frame of 512/224 their size.

    What the paper's released script does to RSICD's 224 px tiles when it center-crops them to 512 px, beside generated
    images that fill those 512 px.
    """
    before = [round(side * (512 / 224 - 1) / 2) for side in images.shape[-2:]]
    return F.pad(images, (before[1], before[1], before[0], before[0]))


def normalize(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Float [N, 3, H, W] in [0, 255] to zero mean and unit variance; mean and std per channel, of pixels in [0, 1]."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 [N, 3, H, W], as shares of 255."""
    flat = [images[:, c].numpy().ravel() for c in range(3)]
    mean, std = (
        [float(value) for value in values]
        for values in (
            [x.mean(dtype=np.float64) / 255 for x in flat],
            [max(x.std(dtype=np.float64), 1.0) / 255 for x in flat],
        )
    )
    return mean, std


def save(folder: str | Path, network: nn.Module, config: dict) -> None:
    """Write model.safetensors and config.json."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(state, Path(folder) / "model.safetensors")
    write_json(Path(folder) / "config.json", config)


def load_scene(folder: str | Path) -> tuple[nn.Module, dict]:
    """The trained scene network, in evaluation mode, and its config."""
    from safetensors.torch import load_file

    config = read_json(Path(folder) / "config.json")
    network = create(
        config["model"], len(config["scenes"]), config["resolution"], "train_scene.model"
    )
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval().to(memory_format=torch.channels_last), config
