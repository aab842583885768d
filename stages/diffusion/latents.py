"""What `encode` computes once and `finetune_sd` reads: VAE latents and text embeddings.

`data/latents/`
    {train,valid,base}.safetensors
        mean, logvar: float16 [N, V, C, h, w], the VAE's posterior, unscaled. V is
        encode.variants for train (the flips and rotations of an image), 1 for the others.
    rows_{train,valid,base}.parquet
        filename, scene, caption_ids (a list; [0] for an image without captions)
    captions.parquet
        id, caption, truncated (longer than the text encoder reads); id 0 is the empty caption
    captions.safetensors
        embeddings: float16 [M, L, D]; absent where it would exceed encode.cache_gb
    captions.json
        in its place: {precision, batch_size}, with which finetune_sd runs the text encoder itself
        (stages/diffusion/caption_embeddings.py)
    normalization.json
        {normalization, mean, std}: the VAE was fed (x - mean) / std of pixels x in [0, 1], by a
        first convolution with this folded in (stages/diffusion/normalization.py)
    SOURCE_base.json
        where the base model's own domain came from; without such a set no *base* file exists

Arrays are memory-mapped: any number of images is read, and written, in constant memory.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from stages.common.rng import rng
from stages.runtime.errors import exit_with_error

# The embeddings, float32 [B, L, D], of captions by their ids [B].
TextEmbeddings = Callable[[Sequence[int]], torch.Tensor]
NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4"}  # by their names in safetensors


def allocate(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of float16 zeros, to be filled through `memory_map(path, "r+")`.

    The header is written here because `save_file` would need the whole arrays in memory. The disk
    blocks are reserved: where a write to a memory map finds the disk full, a signal kills the
    process.

    Raises:
        OSError: the disk has no space for it.
    """
    start, file_bytes = start_and_size(shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(start)
        try:
            file.truncate(file_bytes)
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, file_bytes)
        except OSError as error:
            mebibytes = file_bytes / 2**20
            reason = f"no space for its {mebibytes:,.1f} MiB: {error.strerror}"
            raise OSError(error.errno, reason, str(path)) from None


def start_and_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """What stands before the data in a safetensors file of float16 arrays; the file's bytes."""
    header = {}
    data_bytes = 0
    for name, shape in shapes.items():
        begin = data_bytes
        data_bytes += int(np.prod(shape)) * 2
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, data_bytes]}
    encoded_header = json.dumps(header).encode()
    encoded_header += b" " * (-len(encoded_header) % 8)  # the format aligns the data to 8 bytes
    start = len(encoded_header).to_bytes(8, "little") + encoded_header
    return start, len(start) + data_bytes


def is_allocated(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file is as `allocate` writes it, but for the values of the arrays."""
    start, file_bytes = start_and_size(shapes)
    with open(path, "rb") as file:
        return path.stat().st_size == file_bytes and file.read(len(start)) == start


def memory_map(path: Path, mode: str = "r") -> dict[str, np.memmap]:
    """The tensors of a safetensors file as memory maps, without a copy.

    Args:
        path: the file. Empty tensors, which cannot be mapped, are left out.
        mode: "r", or "r+" to write in place.
    """
    if not path.is_file():
        exit_with_error(f"{path}: not found; run the stage encode")
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    data_begin = 8 + header_bytes
    return {
        name: np.memmap(
            path,
            NUMPY_DTYPES[tensor["dtype"]],
            mode,  # type: ignore[call-overload]
            data_begin + tensor["data_offsets"][0],
            tuple(tensor["shape"]),
        )
        for name, tensor in header.items()
        if 0 not in tensor["shape"]
    }


class Latents:
    """One split of `data/latents`.

    Attributes:
        caption_ids: the caption ids of all rows, one row after the other, int32.
        caption_begins: where those of each row begin and the last ones end, int64 [N + 1].
        mean, logvar: the VAE's posterior [N, V, C, h, w], memory-mapped.
        text_embeddings: the embeddings, float32 [B, L, D], of captions by their ids [B].
        scale: what latents are multiplied by so that their standard deviation is near 1.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        scale: float,
        text_embeddings: TextEmbeddings,
    ) -> None:
        folder = Path(folder)
        rows = pq.read_table(folder / f"rows_{split}.parquet", columns=["caption_ids"])
        if not rows.num_rows:
            exit_with_error(f"data/imagery/{split}: no images")
        counts = pc.list_value_length(rows["caption_ids"]).to_numpy()
        self.caption_ids = pc.list_flatten(rows["caption_ids"]).to_numpy()
        self.caption_begins = np.concatenate([[0], counts.cumsum(dtype=np.int64)])
        posterior = memory_map(folder / f"{split}.safetensors")
        self.mean = posterior["mean"]
        self.logvar = posterior["logvar"]
        self.text_embeddings = text_embeddings
        self.scale = scale

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of a latent."""
        return self.mean.shape[2:]

    def latents(
        self,
        rows: Sequence[int] | np.ndarray,
        variants: Sequence[int] | int,
        noise: np.ndarray | None,
    ) -> torch.Tensor:
        """Scaled latents, float32 [B, C, h, w].

        Args:
            rows: images [B].
            variants: the flip or rotation of each image [B], or one for all.
            noise: standard normal [B, C, h, w] to sample the posterior with; None takes its mean.
        """
        z = self.mean[rows, variants].astype(np.float32)  # [B, C, h, w]
        if noise is not None:
            z += np.exp(0.5 * self.logvar[rows, variants].astype(np.float32)) * noise
        return torch.from_numpy(z * np.float32(self.scale))

    def captions(self, row: int) -> np.ndarray:
        """The ids of the captions of an image, int32 [1 or more]."""
        return self.caption_ids[self.caption_begins[row] : self.caption_begins[row + 1]]

    def training_batch(
        self,
        positions: Iterable[int],
        seed: int,
        timesteps: int,
        caption_dropout: float,
        sample: bool,
    ) -> dict[str, torch.Tensor]:
        """The training examples at these positions of the endless stream of epochs.

        An epoch is every image once, in a new order, each under one of its variants and
        with one of its captions. Every random number is drawn from (seed, epoch, row): the same in
        any process, at any batch size, after any restart.

        Args:
            positions: B positions; position // len(self) is the epoch.
            seed: of the run.
            timesteps: the length T of the noise schedule.
            caption_dropout: probability of the empty caption instead of one of the image's own.
            sample: whether the latent is a sample of the VAE's posterior or its mean.

        Returns:
            latents [B, C, h, w], noise [B, C, h, w], timesteps int64 [B], text [B, L, D].
        """
        rows = []
        variants = []
        caption_ids = []
        times = []
        noises = []
        for position in positions:
            epoch, index = divmod(position, len(self))
            row = int(epoch_order(seed, epoch, len(self))[index])
            generator = rng(seed, "visit", epoch, row)
            rows.append(row)
            variants.append(int(generator.integers(self.mean.shape[1])))
            captions = self.captions(row)
            caption_id = int(captions[generator.integers(len(captions))])
            dropped = generator.random() < caption_dropout
            caption_ids.append(0 if dropped else caption_id)
            times.append(int(generator.integers(timesteps)))
            noises.append(generator.standard_normal((2, *self.shape), np.float32))
        noise = np.stack(noises)  # [B, 2, C, h, w]: of the posterior, and of the diffusion
        return {
            "latents": self.latents(rows, variants, noise[:, 0] if sample else None),
            "noise": torch.from_numpy(noise[:, 1].copy()),
            "timesteps": torch.tensor(times),
            "text": self.text_embeddings(caption_ids),
        }


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order [N] in which an epoch visits the rows."""
    return rng(seed, "order", epoch).permutation(rows)
