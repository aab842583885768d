"""Generate the images of the prompts with the fine-tuned model.

    python -m stages.runtime.launch generate

reads   generate.keep, sampling, seed; data/prompts.parquet, data/images_per_prompt.csv,
        models/diffusion
writes  data/generated    image, row (the prompt's number), label, prompt, negative_prompt, writer,
                          technique, passages, seed, scheduler, steps, guidance_scale, model

`select` makes the synthetic data set of these images. One process or several write the same bytes.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artifacts import IMAGE
from stages.common.csv_files import read_csv
from stages.common.torch_setup import make_deterministic
from stages.diffusion.sampler import PROVENANCE, generate_shards
from stages.diffusion.unread_text import log_unread_prompts
from stages.params import load
from stages.runtime.process import run_stage

PROMPTS = Path("data/prompts.parquet")
IMAGES_PER_PROMPT = Path("data/images_per_prompt.csv")
# Columns of the prompts that are copied to each of their images.
PROMPT_COLUMNS = ["row", "label", "prompt", "negative_prompt", "writer", "technique", "passages"]


def main() -> None:
    params = load()
    make_deterministic(params.seed)
    prompt_fields = [pq.read_schema(PROMPTS).field(name) for name in PROMPT_COLUMNS]
    keep = params.generate.keep
    counts = read_image_counts(keep.draw if keep else 1)
    texts = pq.read_table(PROMPTS, columns=["prompt", "negative_prompt"])
    prompts = [text for column in texts.columns for text in column.to_pylist()]
    log_unread_prompts("generate", Path("models/diffusion"), prompts)
    generate_shards(
        stage="generate",
        out=Path("data/generated"),
        model=Path("models/diffusion"),
        rows=image_rows(counts),
        total=sum(counts.values()),
        schema=pa.schema([("image", IMAGE), *prompt_fields, *PROVENANCE]),
        sampling=params.sampling,
        seed=params.seed,
        inputs=[PROMPTS, IMAGES_PER_PROMPT, Path(__file__)],
    )


def read_image_counts(draw: float) -> dict[int, int]:
    """The number of images to draw of each prompt, by its row: `draw` times those to keep."""
    # `draw` as it was written: 100 x 1.1 is 110.00000000000001 in floats.
    factor = Fraction(str(draw))
    return {
        int(line["row"]): math.ceil(int(line["images"]) * factor)
        for line in read_csv(IMAGES_PER_PROMPT)
    }


def image_rows(counts: dict[int, int]) -> Iterator[dict]:
    """One row per image, the images of a prompt in sequence; `row` is the prompt's number.

    An image's noise is drawn by (row, copy): however many there are, the first ones are the same.
    """
    for batch in pq.ParquetFile(PROMPTS).iter_batches(256, columns=PROMPT_COLUMNS):
        for prompt in batch.to_pylist():
            for copy in range(counts[prompt["row"]]):
                yield prompt | {"item": ("generate", prompt["row"], copy)}


if __name__ == "__main__":
    run_stage(main, __doc__)
