"""Prepare the model that fine-tuning starts from.

    python -m stages.runtime.launch train_base

With `train_base.source: base` that is the fetched model; only `models/start/start.json` is written,
which points at it. With `source: adapt` the VAE of the fetched model is trained further on this
run's imagery, and a new text encoder on its captions; the UNet is the fetched one. With `source:
scratch` (compact latent diffusion, no weights from elsewhere) both begin untrained, and so does the
UNet, which `finetune_sd` trains. A killed run resumes from its last checkpoints, in the resume
cache.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    # Imported late: pointing at the fetched model needs none of them.
    import numpy as np

    from stages.common.torch_setup import make_deterministic
    from stages.diffusion import from_scratch, models

    make_deterministic(seed)
    decoded = []
    captions = []
    for row in stream_rows(IMAGERY, ["image", "captions"]):
        decoded.append(np.asarray(decode_image(row["image"])))
        captions.append(row["captions"])
    images = np.stack(decoded)  # [N, H, W, 3]
    del decoded
    resolution = images.shape[1]
    if config.source == "adapt":
        factor = models.downsampling_factor(FETCHED)
    else:
        factor = 2 ** (len(config.vae_channels) - 1)
    if resolution % factor:
        exit_with_error(
            f"fetch_imagery.resolution: {resolution} is not a multiple of the VAE's factor {factor}"
        )
    # A run resumes only checkpoints of the same params, imagery and code.
    code = sorted(Path(from_scratch.__file__).parent.glob("*.py"))
    settings = {"train_base": config.model_dump(), "seed": seed}
    given = [IMAGERY, FETCHED] if config.source == "adapt" else [IMAGERY]
    run_id = fingerprint(settings, [*given, Path(__file__), *code])
    with resume_folder("train_base", run_id) as cache, atomic_folder(START) as folder:
        if config.source == "adapt":
            adapt(images, captions, config, seed, cache, folder)
        else:
            train_from_scratch(images, captions, config, seed, cache, folder)
        write_json(folder / "start.json", {"folder": str(START)})


def adapt(
    images: "np.ndarray",
    captions: list[list[str]],
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> None:
    """Save the fetched model with the parts that are trained here in place of its own.

    Args:
        images: uint8 [N, H, W, 3].
        captions: of each image.
        config: the section `train_base`.
        seed: of the run.
        cache: holds the checkpoints.
        folder: to save to.
    """
    from stages.diffusion import from_scratch, models

    replaced = ["SOURCE.json"]  # of the fetched files
    if config.text_steps:
        replaced += ["text_encoder", "tokenizer"]
    if config.vae_steps or config.decoder_steps:
        replaced += ["vae"]
    ignore = shutil.ignore_patterns(*replaced)
    # Without the modes: fetched files may be read-only.
    shutil.copytree(
        FETCHED, folder, copy_function=shutil.copyfile, ignore=ignore, dirs_exist_ok=True
    )
    if config.text_steps:
        width = models.read_config(FETCHED, "unet")["cross_attention_dim"]
        text_encoder = train_text_encoder(images, captions, width, config, seed, cache, folder)
        from_scratch.save_part(folder / "text_encoder", text_encoder)
    if "vae" in replaced:
        vae = train_vae(models.load(FETCHED, "vae"), images, config, seed, cache)
        from_scratch.save_part(folder / "vae", vae)


def train_from_scratch(
    images: "np.ndarray",
    captions: list[list[str]],
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> None:
    """Train the parts in the order they depend on each other, and save them as a pipeline.

    The arguments are those of `adapt`.
    """
    import torch

    from stages.diffusion import from_scratch

    text_encoder = train_text_encoder(
        images, captions, config.text_width, config, seed, cache, folder
    )
    torch.manual_seed(seed)
    vae = from_scratch.make_vae(config.vae_channels, config.latent_channels, images.shape[1])
    vae = train_vae(vae, images, config, seed, cache)
    torch.manual_seed(seed)
    unet = from_scratch.make_unet(
        config.unet_channels,
        config.latent_channels,
        latent_size=images.shape[1] // 2 ** (len(config.vae_channels) - 1),
        text_width=config.text_width,
    )
    from_scratch.save_pipeline(folder, vae, text_encoder, unet)


def train_text_encoder(
    images: "np.ndarray",
    captions: list[list[str]],
    width: int,
    config: TrainBase,
    seed: int,
    cache: Path,
    folder: Path,
) -> Any:
    """Train a text encoder of this width; its tokenizer is saved in the folder."""
    from transformers import CLIPTokenizer

    from stages.diffusion import from_scratch

    all_captions = [caption for image_captions in captions for caption in image_captions]
    from_scratch.train_tokenizer(all_captions, folder / "tokenizer")
    return from_scratch.train_text_encoder(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        images,
        captions,
        width=width,
        layers=config.text_layers,
        steps=config.text_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        cache=cache,
    )


def train_vae(vae: Any, images: "np.ndarray", config: TrainBase, seed: int, cache: Path) -> Any:
    """Train a VAE, and then its decoder alone."""
    from stages.diffusion import from_scratch
    from stages.diffusion.train_decoder import train_decoder

    if config.vae_steps:
        vae = from_scratch.train_vae(
            vae,
            images,
            steps=config.vae_steps,
            batch_size=config.batch_size,
            lr=config.lr,
            seed=seed,
            cache=cache,
        )
    if config.decoder_steps:
        vae = train_decoder(
            vae, images, config.decoder_steps, config.batch_size, seed, cache / "decoder"
        )
    return vae


if __name__ == "__main__":
    run_stage(main, __doc__)
