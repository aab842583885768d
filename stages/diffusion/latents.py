"""What `encode` makes once and `finetune_sd` reads: VAE latents of the eight flips and rotations, text embeddings.

`data/latents/`
    {train,valid,base}.safetensors    mean, logvar: float16 [N,V,C,h,w] of the VAE's posterior, unscaled; V = 8 (train) or 1
    rows_{train,valid,base}.parquet   filename, scene, caption_ids (list; a row without captions has [0])
                                 base: the base model's own domain, with SOURCE_base.json; absent where there is none
    captions.parquet             id, caption, truncated (longer than the text encoder reads); id 0 is the empty caption
    captions.safetensors         embeddings: float16 [M,L,D]
    normalization.json           {normalization, mean, std}: the VAE was fed (x - mean) / std of pixels x in [0, 1]
Arrays are memory-mapped: any size is read, and written, in constant memory.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from stages.common.rng import rng
from stages.runtime.errors import exit_with_error

VARIANTS = 8  # the dihedral group of the square; an aerial image has no up
_DTYPES = {"F16": "<f2", "F32": "<f4"}


def dihedral(images: torch.Tensor, variant: int) -> torch.Tensor:
    """One of 8 flips and rotations of square images [...,H,W]: mirrored if variant >= 4, then variant % 4 quarter turns."""
    if variant >= 4:
        images = images.flip(-1)
    return torch.rot90(images, variant % 4, (-2, -1))


def allocate(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of float16 zeros, to be filled through `arrays(path, "r+")`.

    Its blocks are reserved: where a memory map finds the disk full, the process dies by a signal.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        size = 8 + len(text) + end
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as fault:
            exit_with_error(f"{path}: no room for its {size / 2**20:,.1f} MiB: {fault.strerror}")


def arrays(path: Path, mode: str = "r") -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as memory maps, no copy. `mode`: "r", or "r+" to write in place."""
    if not path.is_file():
        exit_with_error(f"{path}: not found; run the stage encode")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(
            path, _DTYPES[t["dtype"]], mode, 8 + length + t["data_offsets"][0], tuple(t["shape"])
        )
        for name, t in header.items()
        if 0 not in t["shape"]
    }


class Latents:
    """One split of `data/latents`. `visits` draws what an optimizer step sees."""

    def __init__(self, folder: str | Path, split: str, scale: float):
        folder = Path(folder)
        self.captions = pq.read_table(folder / f"rows_{split}.parquet", columns=["caption_ids"])[
            "caption_ids"
        ].to_pylist()
        if not self.captions:
            exit_with_error(f"data/imagery/{split}: no images")
        found = arrays(folder / f"{split}.safetensors")
        self.mean, self.logvar = found["mean"], found["logvar"]  # [N,V,C,h,w]
        self.embeddings = arrays(folder / "captions.safetensors")["embeddings"]  # [M,L,D]
        self.scale = scale

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C,h,w) of a latent."""
        return self.mean.shape[2:]

    def latents(self, rows, variants, noise: np.ndarray | None) -> torch.Tensor:
        """Scaled latents [B,C,h,w]: the posterior's mean, or a sample of it by standard normal `noise` [B,C,h,w]."""
        z = self.mean[rows, variants].astype(np.float32)
        if noise is not None:
            z += np.exp(0.5 * self.logvar[rows, variants].astype(np.float32)) * noise
        return torch.from_numpy(z * np.float32(self.scale))

    def text(self, ids) -> torch.Tensor:
        """Embeddings of captions, float32 [B,L,D]."""
        return torch.from_numpy(self.embeddings[ids].astype(np.float32))

    def visits(
        self, positions, seed: int, timesteps: int, caption_dropout: float, sample: bool
    ) -> dict[str, torch.Tensor]:
        """What the visits at these positions of the endless stream of epochs see.

        An epoch is every image once, in an order of its own, each under one of its variants, with one of its captions. Every
        number is drawn from (seed, epoch, row): the same in any process, at any batch size, after any restart.
        Returns latents [B,C,h,w], noise [B,C,h,w], timesteps int64 [B], text [B,L,D].
        """
        rows, variants, captions, times, noise = [], [], [], [], []
        for position in positions:
            epoch, place = divmod(position, len(self))
            row = int(_order(seed, epoch, len(self))[place])
            draw = rng(seed, "visit", epoch, row)
            rows.append(row)
            variants.append(int(draw.integers(self.mean.shape[1])))
            caption = self.captions[row][draw.integers(len(self.captions[row]))]
            captions.append(0 if draw.random() < caption_dropout else caption)
            times.append(int(draw.integers(timesteps)))
            noise.append(draw.standard_normal((2, *self.shape), np.float32))
        noise = np.stack(noise)  # [B,2,C,h,w]
        return {
            "latents": self.latents(rows, variants, noise[:, 0] if sample else None),
            "timesteps": torch.tensor(times),
            "noise": torch.from_numpy(noise[:, 1].copy()),
            "text": self.text(captions),
        }


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return rng(seed, "order", epoch).permutation(rows)
