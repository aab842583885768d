"""Run the VAE and the text encoder once, so that fine-tuning never needs them: `data/latents/`.

    python -m stages.runtime.launch encode        in one process, or several: the same bytes
Reads data/imagery/{train,valid}, the base's own domain (`encode.base_domain`) and the model that models/start names; what
it writes is told in stages/diffusion/latents.py. Memory doesn't grow with the number of images.
"""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState

from stages.common import sources
from stages.common.artifacts import decode_image, shard_paths, stream_rows, write_json, write_table
from stages.common.torch_setup import make_deterministic
from stages.diffusion import models
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.latents import VARIANTS, allocate, arrays, dihedral
from stages.imagery import base_domain
from stages.params import Encode, load
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.process import run_stage
from stages.runtime.processes import process_state
from stages.runtime.progress import log, progress_bar

IMAGERY, OUT = Path("data/imagery"), Path("data/latents")
BASE = OUT / "base_images"  # while encoding


def main() -> None:
    p = load()
    make_deterministic(p.seed)
    state = process_state()
    if p.encode.precision == "fp16" and state.device.type != "cuda":
        exit_with_error("encode.precision: fp16 needs a GPU; use bf16 or fp32")
    start = models.start_folder()
    if sources.kind(p.encode.base_domain) == "path":
        sources.local(
            p.encode.base_domain, base_domain.KEY
        )  # refused while the latents of the last run are still there
    if state.is_main_process:
        shutil.rmtree(OUT, ignore_errors=True)
    state.wait_for_everyone()
    statistics = pixel_mean_std() if p.encode.normalization == "dataset" else models.VAE_PIXELS
    splits = {"train": (IMAGERY / "train", VARIANTS), "valid": (IMAGERY / "valid", 1)}
    if p.encode.base_domain != "none":
        if state.is_main_process:
            base_domain.fetch(
                p.encode.base_domain, p.encode.base_images, tile_size(IMAGERY / "train"), BASE
            )
            (BASE / "SOURCE.json").replace(OUT / "SOURCE_base.json")
        state.wait_for_everyone()
        splits["base"] = (BASE, 1)
    captions = encode_captions([folder for folder, _ in splits.values()], start, p.encode, state)
    for split, (folder, variants) in splits.items():
        encode_images(split, folder, variants, start, statistics, captions, p.encode, state)
    if state.is_main_process:
        shutil.rmtree(BASE, ignore_errors=True)
        write_json(OUT / "normalization.json", statistics)


def tile_size(folder: Path) -> int:
    """Pixels along a side of the folder's first tile."""
    first = next(stream_rows(folder, ["image"], 1), None)
    if first is None:
        exit_with_error(f"{folder}: no images")
    return decode_image(first["image"]).width


def pixel_mean_std() -> dict:
    """Mean and standard deviation [3] of the training pixels in [0, 1]."""
    total, square, count = np.zeros(3), np.zeros(3), 0
    for row in stream_rows(IMAGERY / "train", ["image"]):
        x = np.asarray(decode_image(row["image"]), np.float64).reshape(-1, 3) / 255
        total, square, count = total + x.sum(0), square + (x * x).sum(0), count + len(x)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 1e-8))
    return {"normalization": "dataset", "mean": mean.tolist(), "std": std.tolist()}


def encode_captions(
    folders: list[Path], start: Path, p: Encode, state: PartialState
) -> dict[str, int]:
    """Embed every distinct caption of these folders of shards; returns caption -> id. The empty caption is 0."""
    captions = {"": 0}
    for folder in folders:
        for row in stream_rows(folder, ["captions"], 4096):
            for caption in row["captions"]:
                captions.setdefault(caption, len(captions))
    tokenizer, encoder = (
        models.load_tokenizer(start),
        models.load(start, "text_encoder").to(state.device),
    )
    length = models.text_length(tokenizer, encoder)
    texts, path = list(captions), OUT / "captions.safetensors"
    if state.is_main_process:
        truncated = [
            len(ids) > length
            for i in range(0, len(texts), 4096)
            for ids in tokenizer(texts[i : i + 4096], verbose=False).input_ids
        ]
        if any(truncated):
            log(
                f"encode: {sum(truncated)} of {len(texts)} distinct captions are longer than {length} tokens and are cut"
            )
        allocate(path, {"embeddings": (len(texts), length, encoder.config.hidden_size)})
        ids = pa.array(range(len(texts)), pa.int32())
        write_table(
            OUT / "captions.parquet",
            pa.table({"id": ids, "caption": texts, "truncated": truncated}),
        )
    state.wait_for_everyone()
    out = arrays(path, "r+")["embeddings"]  # [M,L,D]
    for begin in progress_bar(
        range(0, len(texts), p.batch_size), what="encode captions", unit="group"
    ):
        if not mine(begin, p, state):
            continue
        batch = texts[begin : begin + p.batch_size]
        with torch.inference_mode(), autocast(p, state):
            e = models.embed(
                tokenizer, encoder, batch + [""] * (p.batch_size - len(batch))
            )  # [B,L,D], padded
        out[begin : begin + len(batch)] = e[: len(batch)].cpu().numpy()
    out.flush()
    return captions


def encode_images(
    split: str,
    folder: Path,
    variants: int,
    start: Path,
    statistics: dict,
    captions: dict[str, int],
    p: Encode,
    state: PartialState,
) -> None:
    """Posterior mean and log-variance of the folder's images under `variants` flips and rotations."""
    size, factor = tile_size(folder), models.vae_factor(start)
    words = ["filename", "scene", "captions"]
    table = pa.concat_tables([pq.read_table(path, columns=words) for path in shard_paths(folder)])
    if size % factor:
        exit_with_error(
            f"fetch_imagery.resolution: {size} px is not a multiple of {factor}, the VAE's factor"
        )
    vae = models.load(start, "vae").to(state.device, memory_format=torch.channels_last)
    shape = (len(table), variants, vae.config.latent_channels, size // factor, size // factor)
    path = OUT / f"{split}.safetensors"
    if state.is_main_process:
        allocate(path, {"mean": shape, "logvar": shape})
        ids = [
            [captions[caption] for caption in row] or [0] for row in table["captions"].to_pylist()
        ]
        table = table.select(["filename", "scene"]).append_column(
            "caption_ids", pa.array(ids, pa.list_(pa.int32()))
        )
        write_table(OUT / f"rows_{split}.parquet", table)
    state.wait_for_everyone()
    out = arrays(path, "r+")  # mean, logvar [N,V,C,h,w]
    mean, std = (
        torch.tensor(statistics[key], device=state.device)[:, None, None] for key in ("mean", "std")
    )
    rows = stream_rows(folder, ["image", "filename"], p.batch_size)

    def posteriors(pixels: np.ndarray, variant: int):
        """The VAE's posterior of uint8 pixels [B,H,W,3], turned: mean and logvar [B,C,h,w]."""
        x = (
            torch.from_numpy(pixels).to(state.device).permute(0, 3, 1, 2) / 255 - mean
        ) / std  # [B,3,H,W]
        turned = dihedral(x, variant).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(p, state):
            return vae.encode(turned).latent_dist

    blank, slices = (
        np.zeros((p.batch_size, size, size, 3), np.uint8),
        CpuChunks(p.batch_size, state.device),
    )
    with report_out_of_memory(
        "encode.batch_size", p.batch_size, lambda count: posteriors(blank[:count], 0)
    ):
        for begin in progress_bar(
            range(0, len(table), p.batch_size), what=f"encode {split}", unit="group"
        ):
            group = list(islice(rows, p.batch_size))
            if not mine(begin, p, state):
                continue
            pixels = blank.copy()  # the last group is padded
            for i, row in enumerate(group):
                image = decode_image(row["image"])
                if image.size != (size, size):
                    exit_with_error(
                        f"{folder}: {row['filename']} is {image.width} x {image.height} px, others {size} x {size}"
                    )
                pixels[i] = image

            def encode(part: slice) -> None:
                for variant in range(variants):
                    posterior = posteriors(pixels[part], variant)
                    for name in out:
                        values = (
                            getattr(posterior, name)[: max(len(group) - part.start, 0)]
                            .float()
                            .cpu()
                            .numpy()
                        )
                        out[name][
                            begin + part.start : begin + part.start + len(values), variant
                        ] = values

            slices.map(encode)
    for array in out.values():
        array.flush()
    state.wait_for_everyone()


def mine(begin: int, p: Encode, state: PartialState) -> bool:
    """Whether this process does the fixed group that begins here: which one does it changes nothing in it."""
    return begin // p.batch_size % state.num_processes == state.process_index


def autocast(p: Encode, state: PartialState):
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[p.precision]
    return torch.autocast(state.device.type, dtype, enabled=dtype is not None)


if __name__ == "__main__":
    run_stage(main, __doc__)
