"""Run the VAE and the text encoder once, so that fine-tuning never needs them.

    python -m stages.runtime.launch encode

Reads the training and validation imagery, images of the base model's own domain
(`encode.base_domain`), and the model that `models/start` names. Writes `data/latents/`, whose files
`stages/diffusion/latents.py` describes. One process or several write the same bytes.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState

from stages.common import sources
from stages.common.artifacts import (
    decode_image,
    shard_paths,
    stream_rows,
    write_json,
    write_table,
)
from stages.common.torch_setup import make_deterministic
from stages.diffusion import models
from stages.diffusion.encoding import VaeEncoder, encode_captions, encode_images, tile_size
from stages.diffusion.latents import VARIANTS
from stages.diffusion.normalization import read_folded
from stages.imagery import base_domain
from stages.params import Encode, load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.processes import process_state

TRAIN = Path("data/imagery/train")
VALID = Path("data/imagery/valid")
OUT = Path("data/latents")
BASE_IMAGES = OUT / "base_images"  # removed once they are encoded


def main() -> None:
    params = load()
    config = params.encode
    make_deterministic(params.seed)
    state = process_state()
    start = models.start_folder()
    check_config(config, state)

    # Start from an empty output folder.
    if state.is_main_process:
        shutil.rmtree(OUT, ignore_errors=True)
    state.wait_for_everyone()

    # The images to encode, and how their pixels are normalized.
    images = {"train": TRAIN, "valid": VALID}
    if config.base_domain != "none":
        if state.is_main_process:
            fetch_base_domain(config)
        state.wait_for_everyone()
        images["base"] = BASE_IMAGES
    normalization = read_folded(start)
    if config.normalization == "dataset":
        normalization = dataset_normalization(TRAIN)

    # Encode each distinct caption once.
    caption_ids = number_captions(images.values())
    encode_captions(list(caption_ids), start, OUT, config, state)

    # Encode the images: those to train on under all flips and rotations.
    encoder = VaeEncoder(start, normalization, config.precision, state.device)
    for split, folder in images.items():
        if state.is_main_process:
            write_rows(folder, caption_ids, OUT / f"rows_{split}.parquet")
        variants = VARIANTS if split == "train" else 1
        posteriors_file = OUT / f"{split}.safetensors"
        encode_images(folder, posteriors_file, variants, encoder, config.batch_size, state)

    if state.is_main_process:
        shutil.rmtree(BASE_IMAGES, ignore_errors=True)
        write_json(OUT / "normalization.json", normalization)


def check_config(config: Encode, state: PartialState) -> None:
    """Exit with an error on wrong params, before the latents of the last run are removed."""
    if config.precision == "fp16" and state.device.type != "cuda":
        exit_with_error("encode.precision: fp16 needs a GPU; use bf16 or fp32")
    if sources.kind(config.base_domain) == "path":
        sources.local_path(config.base_domain, base_domain.KEY)


def fetch_base_domain(config: Encode) -> None:
    """Write images of the base model's own domain to `BASE_IMAGES`, as large as training tiles."""
    base_domain.fetch(config.base_domain, config.base_images, tile_size(TRAIN), BASE_IMAGES)
    (BASE_IMAGES / "SOURCE.json").replace(OUT / "SOURCE_base.json")


def dataset_normalization(images: Path) -> dict[str, Any]:
    """Mean and standard deviation [3] of the pixels of a folder of shards, in [0, 1]."""
    pixel_sum = np.zeros(3)
    square_sum = np.zeros(3)
    pixel_count = 0
    for row in stream_rows(images, ["image"]):
        image = decode_image(row["image"])
        pixels = np.asarray(image, np.float64).reshape(-1, 3) / 255  # [H * W, 3]
        pixel_sum += pixels.sum(0)
        square_sum += (pixels * pixels).sum(0)
        pixel_count += len(pixels)
    mean = pixel_sum / pixel_count
    std = np.sqrt(np.maximum(square_sum / pixel_count - mean**2, 1e-8))
    return {"normalization": "dataset", "mean": mean.tolist(), "std": std.tolist()}


def number_captions(folders: Iterable[Path]) -> dict[str, int]:
    """The id of each distinct caption of folders of shards. The empty caption has id 0."""
    caption_ids = {"": 0}
    for folder in folders:
        for row in stream_rows(folder, ["captions"], batch=4096):
            for caption in row["captions"]:
                caption_ids.setdefault(caption, len(caption_ids))
    return caption_ids


def write_rows(images: Path, caption_ids: dict[str, int], path: Path) -> None:
    """Write filename, scene and caption ids of each image of a folder of shards."""
    columns = ["filename", "scene", "captions"]
    table = pa.concat_tables(
        [pq.read_table(shard, columns=columns) for shard in shard_paths(images)]
    )
    ids = [
        [caption_ids[caption] for caption in captions] or [caption_ids[""]]
        for captions in table["captions"].to_pylist()
    ]
    table = table.select(["filename", "scene"])
    write_table(path, table.append_column("caption_ids", pa.array(ids, pa.list_(pa.int32()))))


if __name__ == "__main__":
    run_stage(main, __doc__)
