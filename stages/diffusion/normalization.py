"""The normalization of a VAE's pixels, as a part of its weights.

A VAE of Stable Diffusion reads and writes pixels in [-1, 1]. `encode.normalization: dataset` feeds
it (x - mean) / std of pixels x in [0, 1] instead. Per channel both differ by an affine map, which
is folded into the VAE's first and last convolution. So a model is the same to every reader of
its weights: latents are encoded, and images decoded, by the VAE that is saved with the model.

A normalization is {normalization, mean [3], std [3]}, per RGB channel.
"""

from pathlib import Path
from typing import Any

import torch

from stages.diffusion.models import load, read_config

# What gives [-1, 1], on which Stable Diffusion's VAEs are trained.
VAE_NORMALIZATION = {"normalization": "vae", "mean": [0.5] * 3, "std": [0.5] * 3}
# Of vae/config.json: the normalization that is folded into the weights. diffusers passes over keys
# that begin with "_".
FOLDED = "_pixel_normalization"


def read_folded(folder: str | Path) -> dict[str, Any]:
    """The normalization that is folded into a model's VAE; without any, the VAE's own."""
    return read_config(folder, "vae").get(FOLDED, VAE_NORMALIZATION)


def load_folded_vae(folder: str | Path, normalization: dict[str, Any]) -> Any:
    """Load a model's VAE with another normalization folded in. It reads and writes [-1, 1].

    What it writes is exact: the last convolution is the VAE's last step. What it reads is exact
    except at the border of an image, which the first convolution pads with zeros. They are mid-gray
    now, as for every VAE that reads [-1, 1]; around (x - mean) / std they were the data set's
    mean color. Latents that this VAE itself has encoded are its own all the same.
    """
    vae = load(folder, "vae")
    before = read_folded(folder)
    if normalization == before:
        return vae
    # For pixels v the VAE is to compute what it computes now for scale * v + shift.
    mean_before, std_before = _mean_and_std(before)
    mean, std = _mean_and_std(normalization)
    scale = std_before / std
    shift = 2 * (scale * (0.5 - mean) - (0.5 - mean_before))
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    weight = first.weight.double()  # [C, 3, k, k]
    first.bias.copy_(first.bias.double() + weight.sum((2, 3)) @ shift)
    first.weight.copy_(weight * scale[:, None, None])
    last.bias.copy_((last.bias.double() - shift) / scale)
    last.weight.copy_(last.weight.double() / scale[:, None, None, None])  # [3, C, k, k]
    return vae


def _mean_and_std(normalization: dict[str, Any]) -> torch.Tensor:
    """float64 [2, 3]."""
    return torch.tensor([normalization["mean"], normalization["std"]], dtype=torch.float64)
