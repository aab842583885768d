"""Draw one image per held-out caption, by the base model or the fine-tuned one: `data/samples/<which>/`.

    python -m stages.runtime.launch sample base|tuned|figures      in one process, or several: the same bytes
Both draw the same captions from the same noise, so that their images compare pair by pair. After one image per caption,
`tuned` draws the further ones that `classifier.images_per_caption` asks for. `figures` draws the prompts of the paper's
Figures 4-10 by the fine-tuned model.
"""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artifacts import IMAGE, shard_paths, stream_rows
from stages.common.rng import rng
from stages.common.torch_setup import make_deterministic
from stages.diffusion import models
from stages.diffusion.sampler import draw_shards
from stages.params import load
from stages.runtime.process import run_stage

REAL, FIGURES = Path("data/imagery/test"), Path("stages/embedded/figures.csv")
SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("filename", pa.string()),
        ("scene", pa.string()),
        ("caption", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("scheduler", pa.string()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("model", pa.string()),
    ]
)


def main(which: str) -> None:
    p = load()
    make_deterministic(p.seed)
    if which == "figures":
        rows, total, inputs = figures(), sum(1 for _ in figures()), [FIGURES]
    else:
        copies = p.classifier.images_per_caption if which == "tuned" else 1
        rows, inputs = (
            (row for copy in range(copies) for row in held_out(p.seed, copy)),
            shard_paths(REAL),
        )
        total = copies * sum(pq.read_metadata(path).num_rows for path in inputs)
    folder = models.start_folder() if which == "base" else Path("models/diffusion")
    draw_shards(
        f"sample@{which}",
        Path("data/samples") / which,
        folder,
        rows,
        total,
        SCHEMA,
        p.sampling,
        p.seed,
        [*inputs, Path(__file__)],
    )


def held_out(seed: int, copy: int):
    """A row per real image, with one of its captions drawn by (seed, filename): the same for each copy, from other noise."""
    for row in stream_rows(REAL, ["filename", "scene", "captions"]):
        captions = row["captions"] or [""]
        caption = captions[rng(seed, "caption", row["filename"]).integers(len(captions))]
        wanted = request(row["filename"], row["scene"], caption)
        yield wanted | {"item": (*wanted["item"], copy)} if copy else wanted


def figures():
    """Four rows per figure; its land-cover class stands where a real image has its scene."""
    with open(FIGURES, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            for copy in range(4):
                yield request(f"figure_{line['figure']}_{copy}.png", line["label"], line["prompt"])


def request(filename: str, scene: str, caption: str) -> dict:
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
