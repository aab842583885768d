"""Generate an image of one caption of each test tile, with the base or the fine-tuned model.

    python -m stages.runtime.launch sample base|tuned|figures

reads   sampling, seed, classifier.images_per_caption (tuned); data/imagery/test or
        stages/embedded/figures.csv (figures); models/diffusion or, for base, models/start and the
        model before fine-tuning
writes  data/samples/<which>    image, filename, scene, caption, prompt, negative_prompt, seed,
                                scheduler, steps, guidance_scale, model (its digest)

`base` and `tuned` generate the same captions from the same noise, so that their images can be
compared pair by pair. `tuned` then generates further images of each caption, as many as
`classifier.images_per_caption` asks for. `figures` generates the prompts of the paper's Figures 4
to 10 with the fine-tuned model. One process or several write the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from stages.common.artifacts import IMAGE, shard_paths, stream_rows
from stages.common.csv_files import read_csv
from stages.common.rng import rng
from stages.common.torch_setup import make_deterministic
from stages.diffusion import models
from stages.diffusion.sampler import PROVENANCE, generate_shards
from stages.diffusion.unread_text import log_unread_prompts
from stages.params import load
from stages.runtime.process import run_stage

TEST_IMAGERY = Path("data/imagery/test")
FIGURES = Path("stages/embedded/figures.csv")
IMAGES_PER_FIGURE = 4
SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("filename", pa.string()),
        ("scene", pa.string()),
        ("caption", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        *PROVENANCE,
    ]
)


def main(which: str) -> None:
    params = load()
    make_deterministic(params.seed)
    if which == "figures":
        inputs = [FIGURES]
        rows = figure_rows()
        prompts = [row["prompt"] for row in figure_rows()]
        total = len(prompts)
    else:
        inputs = shard_paths(TEST_IMAGERY)
        copies = params.classifier.images_per_caption if which == "tuned" else 1
        rows = caption_rows(params.seed, copies)
        prompts = [row["prompt"] for row in caption_rows(params.seed, 1)]
        total = copies * len(prompts)
    model = models.base_folder() if which == "base" else Path("models/diffusion")
    log_unread_prompts(f"sample@{which}", model, prompts)
    generate_shards(
        stage=f"sample@{which}",
        out=Path("data/samples") / which,
        model=model,
        rows=rows,
        total=total,
        schema=SCHEMA,
        sampling=params.sampling,
        seed=params.seed,
        inputs=[*inputs, Path(__file__)],
    )


def caption_rows(seed: int, copies: int) -> Iterator[dict]:
    """One row per test image, with one of its captions, and then `copies - 1` further ones.

    The caption is drawn by (seed, filename), so it is the same in each copy. The noise differs.
    """
    for copy in range(copies):
        for image in stream_rows(TEST_IMAGERY, ["filename", "scene", "captions"]):
            filename = image["filename"]
            captions = image["captions"] or [""]
            caption = captions[rng(seed, "caption", filename).integers(len(captions))]
            row = make_row(filename, image["scene"], caption)
            if copy:
                row["item"] = (*row["item"], copy)
            yield row


def figure_rows() -> Iterator[dict]:
    """Four rows per figure of the paper. Their land-cover class stands in the column `scene`."""
    for figure in read_csv(FIGURES):
        for copy in range(IMAGES_PER_FIGURE):
            filename = f"figure_{figure['figure']}_{copy}.png"
            yield make_row(filename, figure["label"], figure["prompt"])


def make_row(filename: str, scene: str, caption: str) -> dict:
    """What `generate_shards` reads of a row."""
    return {
        "filename": filename,
        "scene": scene,
        "caption": caption,
        "prompt": caption,
        "negative_prompt": "",
        "item": ("sample", filename),
    }


if __name__ == "__main__":
    run_stage(main, __doc__, which=["base", "tuned", "figures"])
