"""Prepare the model that fine-tuning starts from.

    python -m stages.runtime.launch train_base

reads   train_base, seed; models/base/diffusion (source: base or adapt), data/imagery/train
        (source: adapt or scratch)
writes  models/start: start.json, which names the model's folder; unless that is the fetched one,
        the model itself

With `train_base.source: base` the start is the fetched model. With `source: adapt` the VAE of the
fetched model is trained further on this run's imagery and, with `text_steps`, a new text encoder on
its captions; the UNet is the fetched one. With `source: scratch` (compact latent diffusion, no
weights from elsewhere) both begin untrained, and so does the UNet, which `finetune_sd` trains. A
killed run resumes from its last checkpoints, in the resume cache.
"""

from pathlib import Path

import numpy as np

from stages.common.artifacts import decode_image, fingerprint, stream_rows, write_json
from stages.diffusion import models
from stages.params import TrainBase, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.resume_cache import resume_folder

IMAGERY = Path("data/imagery/train")
FETCHED = Path("models/base/diffusion")
START = Path("models/start")


def main() -> None:
    params = load()
    if params.train_base.source != "scratch":
        check_fetched_model()
    if params.train_base.source == "base":
        write_json(START / "start.json", {"folder": str(FETCHED)})
    else:
        train(params.train_base, params.seed)


def check_fetched_model() -> None:
    """Exit with an error where there is no fetched model."""
    index = FETCHED / "model_index.json"
    if not index.exists():
        exit_with_error(
            f"{index}: not found; `dvc repro fetch_model@diffusion` makes it, unless "
            "fetch_model.diffusion is none: then set train_base.source: scratch"
        )


def train(config: TrainBase, seed: int) -> None:
    """Train the parts on the training tiles and write `models/start`."""
    # Imported late: pointing at the fetched model needs no torch.
    from stages.common.torch_setup import make_deterministic
    from stages.diffusion import train_parts
    from stages.runtime.gpu_memory import report_out_of_memory

    make_deterministic(seed)
    first = next(stream_rows(IMAGERY, ["image"], 1))
    resolution = decode_image(first["image"]).width
    if config.source == "adapt":
        factor = models.downsampling_factor(FETCHED)
    else:
        factor = 2 ** (len(config.vae_channels) - 1)
    models.check_resolution("fetch_imagery.resolution", resolution, factor)
    # A run resumes only checkpoints of the same params, imagery and code.
    code = sorted(Path(models.__file__).parent.glob("*.py"))
    settings = {"train_base": config.model_dump(), "seed": seed}
    inputs = [IMAGERY, FETCHED] if config.source == "adapt" else [IMAGERY]
    run_id = fingerprint(settings, [*inputs, Path(__file__), *code])
    with (
        resume_folder("train_base", run_id) as cache,
        report_out_of_memory("train_base.batch_size", config.batch_size, None),
        atomic_folder(START) as folder,
    ):
        images, captions = decode_tiles(cache / "images")
        start: dict[str, object] = {"folder": str(START)}
        if config.source == "adapt":
            train_parts.adapt(FETCHED, images, captions, config, seed, cache, folder)
            start |= {"base": str(FETCHED), "trained": train_parts.trained_parts(config)}
        else:
            train_parts.train_from_scratch(images, captions, config, seed, cache, folder)
        write_json(folder / "start.json", start)
        del images  # over NFS, a folder with a mapped file can't be removed


def decode_tiles(file: Path) -> tuple[np.ndarray, list[list[str]]]:
    """Decode the training tiles into a file: 10^5 of 224 px take 15 GB.

    Returns them, memory-mapped uint8 [N, H, W, 3], and the captions of each.
    """
    captions = []
    with open(file, "wb") as decoded:
        for row in stream_rows(IMAGERY, ["image", "captions"]):
            pixels = np.asarray(decode_image(row["image"]))
            decoded.write(pixels.tobytes())
            captions.append(row["captions"])
    # What torch gets must be writable; nothing is written.
    return np.memmap(file, np.uint8, "c").reshape(len(captions), *pixels.shape), captions


if __name__ == "__main__":
    run_stage(main, __doc__)
