"""The model that fine-tuning starts from: the base as fetched, or a VAE and text encoder trained on this run's imagery.

    python -m stages.train_base

`source: base` writes only `models/start/start.json`, which points at the fetched model: nothing is copied. `source:
scratch` (compact latent diffusion, no weights from elsewhere) leaves the UNet untrained: `finetune_sd` trains it.
"""

from pathlib import Path

from stages.common.artifacts import decode_image, read_rows, write_json
from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage


def main() -> None:
    p = load()
    start = Path("models/start")
    if p.train_base.source == "base":
        index = Path("models/base/diffusion/model_index.json")
        if not index.exists():
            exit_with_error(
                f"{index}: not found; `dvc repro fetch_model@diffusion` makes it, unless fetch_model.diffusion is none: then set "
                "train_base.source: scratch"
            )
        return write_json(start / "start.json", {"folder": "models/base/diffusion"})

    import numpy as np
    import torch
    from transformers import CLIPTokenizer

    from stages.common.torch_setup import make_deterministic
    from stages.diffusion import from_scratch

    make_deterministic(p.seed)
    rows = read_rows("data/imagery/train")
    images = np.stack([np.asarray(decode_image(row["image"])) for row in rows])  # [N,H,W,3] uint8
    captions = [row["captions"] for row in rows]
    width, height = p.train_base.vae_channels, images.shape[1]
    factor = 2 ** (len(width) - 1)
    if height % factor:
        exit_with_error(
            f"fetch_imagery.resolution: {height} is not a multiple of the VAE's factor {factor}"
        )

    # The parts in the order they depend on each other: tokenizer, text encoder; VAE; a UNet that knows nothing yet.
    with atomic_folder(start) as part:
        from_scratch.train_tokenizer([c for five in captions for c in five], part / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(part / "tokenizer")
        text = from_scratch.train_text_encoder(
            tokenizer,
            images,
            captions,
            p.train_base.text_width,
            p.train_base.text_layers,
            p.train_base.text_steps,
            p.train_base.batch_size,
            p.train_base.lr,
            p.seed,
        )
        vae = from_scratch.train_vae(
            images,
            width,
            p.train_base.latent_channels,
            p.train_base.vae_steps,
            p.train_base.batch_size,
            p.train_base.lr,
            p.seed,
        )
        torch.manual_seed(p.seed)
        unet = from_scratch.untrained_unet(
            p.train_base.unet_channels,
            p.train_base.latent_channels,
            height // factor,
            p.train_base.text_width,
        )
        from_scratch.save_pipeline(part, vae, text, unet)
        write_json(part / "start.json", {"folder": "models/start"})


if __name__ == "__main__":
    run_stage(main, __doc__)
