"""Generate the synthetic land-cover data set with the fine-tuned model: some images per prompt.

    python -m stages.runtime.launch generate

Reads `data/prompts.parquet`, writes `data/synthetic/`. One process or several write the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artifacts import IMAGE
from stages.common.torch_setup import make_deterministic
from stages.diffusion.sampler import PROVENANCE, generate_shards
from stages.params import load
from stages.runtime.process import run_stage

PROMPTS = Path("data/prompts.parquet")
# Columns of the prompts that are copied to each of their images.
PROMPT_COLUMNS = ["row", "label", "prompt", "negative_prompt", "writer", "technique", "passages"]


def main() -> None:
    params = load()
    make_deterministic(params.seed)
    images_per_prompt = params.generate.images_per_prompt
    prompt_fields = [pq.read_schema(PROMPTS).field(name) for name in PROMPT_COLUMNS]
    generate_shards(
        stage="generate",
        out=Path("data/synthetic"),
        model=Path("models/diffusion"),
        rows=image_rows(images_per_prompt),
        total=pq.read_metadata(PROMPTS).num_rows * images_per_prompt,
        schema=pa.schema([("image", IMAGE), *prompt_fields, *PROVENANCE]),
        sampling=params.sampling,
        seed=params.seed,
        inputs=[PROMPTS, Path(__file__)],
    )


def image_rows(images_per_prompt: int) -> Iterator[dict]:
    """One row per image, the images of a prompt in sequence; `row` is the prompt's number."""
    for batch in pq.ParquetFile(PROMPTS).iter_batches(256, columns=PROMPT_COLUMNS):
        for prompt in batch.to_pylist():
            for copy in range(images_per_prompt):
                yield prompt | {"item": ("generate", prompt["row"], copy)}


if __name__ == "__main__":
    run_stage(main, __doc__)
