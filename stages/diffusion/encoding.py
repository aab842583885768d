"""Run the text encoder over captions and the VAE's encoder over images, once, for `data/latents/`.

Both work in fixed groups of `encode.batch_size` items, the last one padded, and the processes take
turns at the groups. So any number of processes writes the same bytes, and a run that was killed
goes on with the groups that are missing. Images are streamed: memory does not grow with their
number.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState

from stages.common.artifacts import (
    decode_image,
    shard_paths,
    stream_rows,
    write_json,
    write_table,
)
from stages.common.dihedral import dihedral
from stages.common.torch_setup import autocast
from stages.diffusion import models
from stages.diffusion.caption_embeddings import EMBEDDING_SETTINGS, CaptionEncoder, overflow_advice
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.grouped_arrays import GroupedArrays
from stages.diffusion.normalization import load_folded_vae
from stages.diffusion.unread_text import find_truncated, log_dropped_words
from stages.params import Encode
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.parallel import ordered_map, read_ahead
from stages.runtime.progress import log, progress_bar

GB = 10**9
CAPTIONS_PER_ARRAY = 2**20


def encode_captions(
    captions: pa.Array,
    model: Path,
    out: Path,
    config: Encode,
    free_bytes: float,
    state: PartialState,
) -> None:
    """Write `captions.parquet` and, where they fit, the text embeddings to `out`.

    Else `captions.json` says how `finetune_sd` is to compute them.

    Args:
        captions: the M distinct captions; their positions are their ids.
        model: the folder with the tokenizer and the text encoder.
        out: the folder to write to.
        config: batch size and precision.
        free_bytes: what the latents leave of `encode.cache_gb`.
        state: this process among those that encode.
    """
    encoder = CaptionEncoder(model, config.precision, config.batch_size, state.device)
    shape = (len(captions), encoder.length, encoder.width)
    embeddings_bytes = 2 * math.prod(shape)  # float16
    is_cached = embeddings_bytes <= free_bytes
    if state.is_main_process:
        if not is_cached:
            settings = {"precision": config.precision, "batch_size": config.batch_size}
            write_json(out / EMBEDDING_SETTINGS, settings)
            latents_bytes = config.cache_gb * GB - free_bytes
            log(
                f"encode: the embeddings of {len(captions):,} captions "
                f"({embeddings_bytes / GB:,.3g} GB) and the latents ({latents_bytes / GB:,.3g} GB) "
                f"pass encode.cache_gb ({config.cache_gb:,g} GB): finetune_sd will embed captions "
                "while it trains"
            )
        truncated = find_truncated("encode", "captions", captions, encoder.tokenizer, shape[1])
        log_dropped_words("encode", "captions", captions, encoder.tokenizer)
        _write_caption_table(captions, truncated, out / "captions.parquet")
    if not is_cached:
        return

    path = out / "captions.safetensors"
    output = GroupedArrays(path, {"embeddings": shape}, config.batch_size, state)
    begins = range(0, len(captions), config.batch_size)
    for begin in progress_bar(begins, desc="encode captions", unit="group"):
        if output.is_mine(begin):
            group = captions.slice(begin, config.batch_size).to_pylist()
            output.write(begin, {"embeddings": encoder.embed(group)})
    output.finish()


def _write_caption_table(captions: pa.Array, truncated: np.ndarray, path: Path) -> None:
    """Write id, caption and whether it is longer than the text encoder reads."""
    # A string array holds 2 GiB at most, so the captions are written as several.
    begins = range(0, len(captions), CAPTIONS_PER_ARRAY)
    arrays = [captions.slice(begin, CAPTIONS_PER_ARRAY).cast(pa.string()) for begin in begins]
    ids = np.arange(len(captions), dtype=np.int32)
    write_table(
        path, pa.table({"id": ids, "caption": pa.chunked_array(arrays), "truncated": truncated})
    )


class VaeEncoder:
    """The encoder of a model's VAE, with a normalization of the pixels folded into it."""

    def __init__(
        self, model: Path, normalization: dict[str, Any], precision: str, device: torch.device
    ) -> None:
        self.factor = models.downsampling_factor(model)
        vae = load_folded_vae(model, normalization)
        self.vae = vae.to(device, memory_format=torch.channels_last)
        self.precision = precision
        self.device = device

    def posterior(self, pixels: np.ndarray, variant: int) -> Any:
        """The posterior distribution of uint8 pixels [B, H, W, 3], flipped or rotated.

        `variant` is that of `dihedral`. The distribution's `mean` and `logvar` are [B, C, h, w].
        """
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # [B, 3, H, W]
        x = dihedral((x / 255 - 0.5) / 0.5, variant)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.vae.encode(x).latent_dist

    def posteriors(self, pixels: np.ndarray, variants: int) -> dict[str, np.ndarray]:
        """Mean and logvar, float16 [B, V, C, h, w], of the first `variants` flips and rotations."""
        means = []
        logvars = []
        for variant in range(variants):
            posterior = self.posterior(pixels, variant)
            means.append(posterior.mean.half())
            logvars.append(posterior.logvar.half())
        stacked = {"mean": torch.stack(means, 1), "logvar": torch.stack(logvars, 1)}
        return {name: tensor.cpu().numpy() for name, tensor in stacked.items()}


def encode_images(
    images: Path,
    out: Path,
    variants: int,
    encoder: VaeEncoder,
    batch_size: int,
    state: PartialState,
) -> None:
    """Write the posteriors of a folder of image shards to the safetensors file `out`.

    Args:
        images: the folder; its N images are square and of one size.
        out: the file; gets `mean` and `logvar`, float16 [N, V, C, h, w].
        variants: V, how many flips and rotations of each image are encoded.
        encoder: the VAE.
        batch_size: images per group.
        state: this process among those that encode.
    """
    image_count = count_images(images)
    size = tile_size(images)
    latent_size = size // encoder.factor
    channels = encoder.vae.config.latent_channels
    shape = (image_count, variants, channels, latent_size, latent_size)
    output = GroupedArrays(out, {"mean": shape, "logvar": shape}, batch_size, state)
    chunks = CpuChunks(batch_size, encoder.device)
    blank = np.zeros((batch_size, size, size, 3), np.uint8)
    with report_out_of_memory(
        "encode.batch_size", batch_size, lambda trial: encoder.posterior(blank[:trial], 0)
    ):
        groups = progress_bar(
            read_ahead(_read_groups(images, blank, image_count, output)),
            total=math.ceil(image_count / batch_size),
            desc=f"encode {out.stem}",
            unit="group",
        )
        for begin, group, pixels in groups:
            if pixels is None:
                continue
            padded = _encode_group(encoder, pixels, variants, chunks)
            posteriors = {name: values[: len(group)] for name, values in padded.items()}
            _exit_if_not_finite(posteriors, group, images, encoder.precision)
            output.write(begin, posteriors)
    output.finish()


def dataset_normalization(images: Path) -> dict[str, Any]:
    """Mean and standard deviation [3] of the pixels of a folder of shards, in [0, 1]."""
    cells = (("", row["image"]) for row in stream_rows(images, ["image"]))
    histograms = progress_bar(
        ordered_map(channel_histograms, cells),
        total=count_images(images),
        desc="encode normalization",
        unit="image",
    )
    counts = sum(histogram for _, histogram in histograms)  # [3, 256]
    levels = np.arange(256) / 255
    pixel_count = counts[0].sum()
    mean = counts @ levels / pixel_count
    std = np.sqrt(np.maximum(counts @ levels**2 / pixel_count - mean**2, 1e-8))
    return {"normalization": "dataset", "mean": mean.tolist(), "std": std.tolist()}


def channel_histograms(cell: dict) -> np.ndarray:
    """How many pixels of an image have each level: int64 [3, 256]."""
    channels = np.asarray(decode_image(cell)).reshape(-1, 3).T
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])


def count_images(images: Path) -> int:
    """The number of rows of a folder of shards."""
    return sum(pq.read_metadata(shard).num_rows for shard in shard_paths(images))


def latent_bytes(model: Path, size: int) -> int:
    """Bytes of the posterior of one image of `size` px: its mean and logvar, in float16."""
    channels = int(models.read_config(model, "vae").get("latent_channels", 4))
    latent_size = size // models.downsampling_factor(model)
    return 2 * 2 * channels * latent_size**2


def tile_size(images: Path) -> int:
    """Pixels along a side of the first image of a folder of shards."""
    first = next(stream_rows(images, ["image"], 1), None)
    if first is None:
        exit_with_error(f"{images}: no images")
    return decode_image(first["image"]).width


def _read_groups(
    images: Path, blank: np.ndarray, image_count: int, output: GroupedArrays
) -> Iterator[tuple[int, list[dict], np.ndarray | None]]:
    """Begin, rows and pixels [B, H, W, 3] of each group; no pixels where it is not to be encoded.

    `blank` [B, H, W, 3] is a group without images, as `_read_pixels` takes it.
    """
    batch_size = len(blank)
    rows = stream_rows(images, ["image", "filename"], batch_size)
    for begin in range(0, image_count, batch_size):
        group = list(islice(rows, batch_size))
        is_mine = output.is_mine(begin)
        yield begin, group, _read_pixels(group, blank, images) if is_mine else None


def _read_pixels(group: list[dict], blank: np.ndarray, images: Path) -> np.ndarray:
    """Decode a group of images into a copy of `blank`: uint8 [B, H, W, 3], padded with black."""
    pixels = blank.copy()
    size = blank.shape[1]
    for i, row in enumerate(group):
        image = decode_image(row["image"])
        if image.size != (size, size):
            exit_with_error(
                f"{images}: {row['filename']} is {image.width} x {image.height} px, "
                f"others {size} x {size}"
            )
        pixels[i] = np.asarray(image)
    return pixels


def _encode_group(
    encoder: VaeEncoder, pixels: np.ndarray, variants: int, chunks: CpuChunks
) -> dict[str, np.ndarray]:
    """Mean and logvar [B, V, C, h, w] of a group of pixels [B, H, W, 3]."""
    by_chunk = chunks.map(lambda chunk: encoder.posteriors(pixels[chunk], variants))
    return {
        name: np.concatenate([posteriors[name] for posteriors in by_chunk])
        for name in ("mean", "logvar")
    }


def _exit_if_not_finite(
    posteriors: dict[str, np.ndarray], group: list[dict], images: Path, precision: str
) -> None:
    """Exit with an error that names the first image whose posterior is NaN or infinite."""
    for array in posteriors.values():
        finite = np.isfinite(array).all(axis=(1, 2, 3, 4))  # [B]
        if not finite.all():
            exit_with_error(
                f"{images}: {group[finite.argmin()]['filename']}: its latents are NaN, or too "
                f"large for float16: {overflow_advice(precision, 'VAE')}"
            )
