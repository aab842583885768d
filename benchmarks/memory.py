"""Peak memory of `encode` and `generate` at N and 10 N images, and of fine-tuning's data.

    python -m benchmarks.memory

The training data has Stable Diffusion v1.5's size. What counts is the resident memory of the
process that runs the stage. It includes the pages of memory-mapped files, which the kernel takes
back when it needs them; for the training data, the memory without them is shown too.
"""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workspace import make_demo, run_module, run_stage, write_params
from stages.runtime.process import make_parser

IMAGES = 100
STAGES = ("encode", "generate")
# RSICD's training split at 512 px.
TRAINING_IMAGES = 10_921
CAPTIONS = 18_000
CAPTIONS_PER_IMAGE = 5
VARIANTS = 8
BATCH_SIZE = 64


def main() -> None:
    parser = make_parser("benchmarks.memory", __doc__)
    parser.add_argument(
        "part",
        nargs="?",
        choices=["all", "training_data"],
        default="all",
        help="training_data: the process that `all` starts for the training data",
    )
    if parser.parse_args().part == "training_data":
        measure_training_data()
        return
    peaks = {count: measure_stages(count) for count in (IMAGES, 10 * IMAGES)}
    columns = " | ".join(f"{count} images" for count in peaks)
    print(f"| peak resident memory, MiB | {columns} |\n|---|---|---|")
    for stage in STAGES:
        cells = " | ".join(f"{by_stage[stage]:.0f}" for by_stage in peaks.values())
        print(f"| {stage} | {cells} |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_params(folder)
        print(run_module(folder, "benchmarks.memory", "training_data"))


def measure_stages(count: int) -> dict[str, float]:
    """Peak memory of each stage on `count` images, MiB."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_demo(
            Path(temporary),
            count,
            sampling={"steps": 2},
            encode={"base_domain": "none"},
        )
        (folder / "models/diffusion").symlink_to(folder / "models/base/diffusion")
        write_prompts(folder / "data", count)
        return {stage: run_stage(folder, stage).peak for stage in STAGES}


def write_prompts(folder: Path, count: int) -> None:
    """Write `count` prompts, and that each gets one image, as `prompt` and `balance` do."""
    columns = {
        name: [f"{name} {i}" for i in range(count)]
        for name in ("label", "prompt", "negative_prompt", "writer", "technique")
    }
    table = pa.table({"row": range(count), **columns, "passages": [""] * count})
    pq.write_table(table, folder / "prompts.parquet")
    lines = "".join(f"{row},1\n" for row in range(count))
    (folder / "images_per_prompt.csv").write_text(f"row,images\n{lines}", encoding="utf-8")


def measure_training_data() -> None:
    """Read an epoch of batches from sparse files, so that every latent and embedding is read."""
    from stages.diffusion.caption_embeddings import CachedEmbeddings
    from stages.diffusion.latents import Latents, allocate

    folder = Path("data/latents")
    shape = (TRAINING_IMAGES, VARIANTS, 4, 64, 64)
    allocate(folder / "train.safetensors", {"mean": shape, "logvar": shape})
    allocate(folder / "captions.safetensors", {"embeddings": (CAPTIONS, 77, 768)})
    caption_ids = [
        [(CAPTIONS_PER_IMAGE * image + i) % CAPTIONS for i in range(CAPTIONS_PER_IMAGE)]
        for image in range(TRAINING_IMAGES)
    ]
    rows = pa.table({"caption_ids": pa.array(caption_ids, pa.list_(pa.int32()))})
    pq.write_table(rows, folder / "rows_train.parquet")

    train = Latents(folder, "train", 0.18215, CachedEmbeddings(folder))
    for first in range(0, TRAINING_IMAGES - BATCH_SIZE, BATCH_SIZE):
        train.training_batch(
            range(first, first + BATCH_SIZE),
            seed=0,
            timesteps=1000,
            caption_dropout=0.1,
            sample=True,
        )
    gibibytes = sum(path.stat().st_size for path in folder.iterdir()) / 2**30
    status = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    mebibytes = {name: int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon")}
    size = f"{TRAINING_IMAGES} images x {VARIANTS} variants at 512 px, {CAPTIONS} captions"
    print(f"\n| data of fine-tuning at SD v1.5's size, {size} | |\n|---|---|")
    print(f"| on disk | {gibibytes:.1f} GiB |")
    print(f"| peak resident memory over an epoch | {mebibytes['VmHWM']:.0f} MiB |")
    print(f"| without mapped pages, after it | {mebibytes['RssAnon']:.0f} MiB |")


if __name__ == "__main__":
    main()
