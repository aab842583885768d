"""Run the VAE and the text encoder once, so that fine-tuning need not run them at every step.

    python -m stages.runtime.launch encode

reads   encode, seed (sampling and finetune_sd: to refuse early what these stages would refuse);
        data/imagery/{train,valid}, the source encode.base_domain, models/start, the VAE and the
        text encoder of the model that it names
writes  data/latents, whose files stages/diffusion/latents.py describes

Text embeddings that would take too much space are left to `finetune_sd`. One process or several
write the same bytes. A run that was killed goes on with what is missing.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate import PartialState

from stages.common import sources
from stages.common.artifacts import (
    fingerprint,
    read_json,
    shard_paths,
    write_json,
    write_table,
)
from stages.common.torch_setup import make_deterministic
from stages.diffusion import models, schedulers
from stages.diffusion.encoding import (
    GB,
    VaeEncoder,
    count_images,
    dataset_normalization,
    encode_captions,
    encode_images,
    latent_bytes,
    tile_size,
)
from stages.diffusion.normalization import read_folded
from stages.diffusion.param_checks import check_sampling, check_training
from stages.imagery import base_domain
from stages.params import Encode, load
from stages.runtime.atomic import link_or_copy
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.processes import check_precision, once, process_state
from stages.runtime.progress import log
from stages.runtime.resume_cache import is_awaited, resume_folder

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
    check_config(config, start, state)
    # What would end `sample` or `finetune_sd` after hours.
    schedulers.check_scheduler(start)
    check_sampling(params.sampling, start, state.device)
    compare_sizes(tile_size(TRAIN), params.sampling.resolution)
    if params.finetune_sd.epochs:
        check_training(params.finetune_sd, start, state.device, state.num_processes)
    latents_bytes = check_latents_size(config, start)

    once(state, empty_output)

    # The images to encode.
    images = {"train": TRAIN, "valid": VALID}
    if config.base_domain != "none":
        once(state, fetch_base_domain, config)
        images["base"] = BASE_IMAGES
    # A run resumes only what the same params made of the same bytes of all inputs.
    inputs: list[str | Path] = [*images.values()]
    inputs += [start / part for part in ("vae", "tokenizer", "text_encoder")]
    inputs += [Path(__file__), *sorted(Path(models.__file__).parent.glob("*.py"))]
    inputs.append(Path(__file__).parent / "common/dihedral.py")
    with resume_folder("encode", fingerprint({"encode": config.model_dump()}, inputs)) as cache:
        # How pixels are normalized: as the VAE reads them, or by the training tiles' statistics.
        normalization_file = cache / "normalization.json"
        once(state, write_normalization, config, start, normalization_file)
        normalization = read_json(normalization_file)

        # Encode each distinct caption once, if the embeddings fit beside the latents.
        captions = number_captions(images.values())
        free_bytes = config.cache_gb * GB - latents_bytes
        encode_captions(captions, start, cache, config, free_bytes, state)

        # Encode the images: those to train on under flips and rotations.
        encoder = VaeEncoder(start, normalization, config.precision, state.device)
        for split, folder in images.items():
            if state.is_main_process:
                write_rows(folder, captions, cache / f"rows_{split}.parquet")
            variants = config.variants if split == "train" else 1
            posteriors_file = cache / f"{split}.safetensors"
            encode_images(folder, posteriors_file, variants, encoder, config.batch_size, state)

        once(state, copy_to_output, cache)


def empty_output() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)


def write_normalization(config: Encode, start: Path, file: Path) -> None:
    """Write the normalization that the params ask for."""
    by_dataset = config.normalization == "dataset"
    write_json(file, dataset_normalization(TRAIN) if by_dataset else read_folded(start))


def copy_to_output(cache: Path) -> None:
    """Copy the finished files, but for the notes of finished groups, to the output folder.

    The images of the base's domain, which are encoded now, are removed from it. The cache keeps
    the finished files until it is removed, so a kill loses none. Where no other run waits for the
    cache, which could write to them, and both are on one disk, the copies are links.
    """
    shutil.rmtree(BASE_IMAGES, ignore_errors=True)
    copy = shutil.copyfile if is_awaited(cache) else link_or_copy
    for file in sorted(cache.iterdir()):
        if file.suffix != ".npy":
            copy(file, OUT / file.name)


def check_config(config: Encode, start: Path, state: PartialState) -> None:
    """Exit with an error on wrong params, before the latents of the last run are removed."""
    check_precision("encode.precision", config.precision, state.device)
    factor = models.downsampling_factor(start)
    models.check_resolution("fetch_imagery.resolution", tile_size(TRAIN), factor)
    if sources.kind(config.base_domain) == "path":
        sources.local_path(config.base_domain, base_domain.KEY)


def compare_sizes(trained: int, sampled: int) -> None:
    """Log where images are generated at another size [pixels] than the model is trained at."""
    if sampled != trained:
        log(
            f"sampling.resolution: images of {sampled} px from a model that is trained on tiles of "
            f"{trained} px (fetch_imagery.resolution): the scale of their content may differ"
        )


def check_latents_size(config: Encode, start: Path) -> int:
    """Bytes of the latents of all images. Exits with an error where `cache_gb` is less."""
    train = count_images(TRAIN)
    others = count_images(VALID)
    if config.base_domain != "none":
        others += config.base_images  # at most
    image_bytes = latent_bytes(start, tile_size(TRAIN))
    sizes = {
        variants: (train * variants + others) * image_bytes
        for variants in range(1, config.variants + 1)
    }
    size = sizes[config.variants]
    if size > config.cache_gb * GB:
        fitting = [
            f"{variants} ({smaller / GB:,.3g} GB)"
            for variants, smaller in sizes.items()
            if smaller <= config.cache_gb * GB
        ]
        advice = f"these encode.variants fit: {', '.join(fitting)}"
        if not fitting:
            advice = f"even encode.variants 1 takes {sizes[1] / GB:,.3g} GB"
        exit_with_error(
            f"encode.cache_gb: the latents of {train + others:,} images with encode.variants "
            f"{config.variants} take {size / GB:,.3g} GB, more than {config.cache_gb:,g} GB; "
            f"{advice}"
        )
    return size


def fetch_base_domain(config: Encode) -> None:
    """Write images of the base model's own domain to `BASE_IMAGES`, as large as training tiles."""
    base_domain.fetch(config.base_domain, config.base_images, tile_size(TRAIN), BASE_IMAGES)
    (BASE_IMAGES / "SOURCE.json").replace(OUT / "SOURCE_base.json")


def number_captions(folders: Iterable[Path]) -> pa.Array:
    """The distinct captions of folders of shards, [M]. A caption's position is its id.

    The empty caption has id 0, the others follow in the order in which they first appear.
    """
    distinct = [pa.array([""], pa.large_string())]
    for folder in folders:
        for shard in shard_paths(folder):
            captions = pq.read_table(shard, columns=["captions"])["captions"]
            distinct.append(flatten(captions).unique())
    return pa.chunked_array(distinct).unique()


def flatten(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """The captions of lists of them."""
    # A string array holds 2 GiB at most, a large one any number.
    return pc.list_flatten(captions).cast(pa.large_string())


def write_rows(images: Path, captions: pa.Array, path: Path) -> None:
    """Write filename, scene and caption ids of each image of a folder of shards.

    `captions` are those of `number_captions`. An image without any gets the empty one.
    """
    columns = ["filename", "scene", "captions"]
    table = pa.concat_tables(
        [pq.read_table(shard, columns=columns) for shard in shard_paths(images)]
    )
    counts = pc.list_value_length(table["captions"]).to_numpy()  # [N]
    filled = np.maximum(counts, 1)
    ids = np.zeros(filled.sum(), np.int32)
    # All at once: each call hashes the distinct captions.
    found = pc.index_in(flatten(table["captions"]), value_set=captions).to_numpy()
    ids[np.repeat(counts > 0, filled)] = found
    begins = np.concatenate([[0], filled.cumsum()]).astype(np.int32)
    caption_ids = pa.ListArray.from_arrays(begins, ids)
    write_table(path, table.select(["filename", "scene"]).append_column("caption_ids", caption_ids))


if __name__ == "__main__":
    run_stage(main, __doc__)
