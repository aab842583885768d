"""Prepare the model that fine-tuning starts from.

    python -m stages.runtime.launch train_base

With `train_base.source: base` that is the fetched model; only `models/start/start.json` is written,
which points at it. With `source: scratch` (compact latent diffusion, no weights from elsewhere) a
VAE and a text encoder are trained on this run's imagery, and the UNet stays untrained until
`finetune_sd` trains it. A killed run resumes from its last checkpoints, in the resume cache.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.artifacts import decode_image, fingerprint, stream_rows, write_json
from stages.params import TrainBase, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.resume_cache import resume_folder

if TYPE_CHECKING:
    import numpy as np

IMAGERY = Path("data/imagery/train")
FETCHED = Path("models/base/diffusion")
START = Path("models/start")


def main() -> None:
    params = load()
    if params.train_base.source == "base":
        use_fetched_model()
    else:
        train_from_scratch(params.train_base, params.seed)


def use_fetched_model() -> None:
    """Point `models/start` at the fetched model."""
    index = FETCHED / "model_index.json"
    if not index.exists():
        exit_with_error(
            f"{index}: not found; `dvc repro fetch_model@diffusion` makes it, unless "
            "fetch_model.diffusion is none: then set train_base.source: scratch"
        )
    write_json(START / "start.json", {"folder": str(FETCHED)})


def train_from_scratch(config: TrainBase, seed: int) -> None:
    """Train the parts on the training tiles and write `models/start`."""
    # Imported late: pointing at the fetched model needs none of them.
    import numpy as np

    from stages.common.torch_setup import make_deterministic
    from stages.diffusion import from_scratch

    make_deterministic(seed)
    decoded = []
    captions = []
    for row in stream_rows(IMAGERY, ["image", "captions"]):
        decoded.append(np.asarray(decode_image(row["image"])))
        captions.append(row["captions"])
    images = np.stack(decoded)  # [N, H, W, 3]
    del decoded
    resolution = images.shape[1]
    factor = 2 ** (len(config.vae_channels) - 1)
    if resolution % factor:
        exit_with_error(
            f"fetch_imagery.resolution: {resolution} is not a multiple of the VAE's factor {factor}"
        )
    # A run resumes only checkpoints of the same params, imagery and code.
    code = sorted(Path(from_scratch.__file__).parent.glob("*.py"))
    settings = {"train_base": config.model_dump(), "seed": seed}
    run_id = fingerprint(settings, [IMAGERY, Path(__file__), *code])
    with resume_folder("train_base", run_id) as cache, atomic_folder(START) as folder:
        train_parts(images, captions, config, seed, cache, folder)
        write_json(folder / "start.json", {"folder": str(START)})


def train_parts(
    images: "np.ndarray",
    captions: list[list[str]],
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> None:
    """Train the parts in the order they depend on each other, and save them as a pipeline.

    Args:
        images: uint8 [N, H, W, 3].
        captions: of each image.
        config: the section `train_base`.
        seed: of the run.
        cache: holds the checkpoints.
        folder: to save to.
    """
    import torch
    from transformers import CLIPTokenizer

    from stages.diffusion import from_scratch

    all_captions = [caption for image_captions in captions for caption in image_captions]
    from_scratch.train_tokenizer(all_captions, folder / "tokenizer")
    text_encoder = from_scratch.train_text_encoder(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        images,
        captions,
        width=config.text_width,
        layers=config.text_layers,
        steps=config.text_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        cache=cache,
    )
    vae = from_scratch.train_vae(
        images,
        config.vae_channels,
        config.latent_channels,
        steps=config.vae_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        cache=cache,
    )
    torch.manual_seed(seed)
    unet = from_scratch.make_unet(
        config.unet_channels,
        config.latent_channels,
        latent_size=images.shape[1] // 2 ** (len(config.vae_channels) - 1),
        text_width=config.text_width,
    )
    from_scratch.save_pipeline(folder, vae, text_encoder, unet)


if __name__ == "__main__":
    run_stage(main, __doc__)
