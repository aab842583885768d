"""Draw the synthetic land-cover set, some images of each prompt of data/prompts.parquet: `data/synthetic/`.

python -m stages.runtime.launch generate      in one process, or several: the same bytes
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artifacts import IMAGE
from stages.common.torch_setup import make_deterministic
from stages.diffusion.sampler import draw_shards
from stages.params import load
from stages.runtime.process import run_stage

PROMPTS = Path("data/prompts.parquet")
CARRIED = ("row", "label", "prompt", "negative_prompt", "writer", "technique", "passages")


def main() -> None:
    p = load()
    make_deterministic(p.seed)
    columns = pq.read_schema(PROMPTS)
    schema = pa.schema(
        [
            ("image", IMAGE),
            *(columns.field(name) for name in CARRIED),
            ("seed", pa.int64()),
            ("scheduler", pa.string()),
            ("steps", pa.int32()),
            ("guidance_scale", pa.float64()),
            ("model", pa.string()),
        ]
    )
    copies = p.generate.images_per_prompt
    total = pq.read_metadata(PROMPTS).num_rows * copies
    out, model = Path("data/synthetic"), Path("models/diffusion")
    draw_shards(
        "generate",
        out,
        model,
        rows(copies),
        total,
        schema,
        p.sampling,
        p.seed,
        [PROMPTS, Path(__file__)],
    )


def rows(images_per_prompt: int):
    """A row per image; `row` is the prompt's."""
    for records in pq.ParquetFile(PROMPTS).iter_batches(256, columns=list(CARRIED)):
        for row in records.to_pylist():
            for copy in range(images_per_prompt):
                yield row | {"item": ("generate", row["row"], copy)}


if __name__ == "__main__":
    run_stage(main, __doc__)
