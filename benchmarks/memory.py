"""Peak memory of `encode` and `generate` at N and 10 N images, and of the training data at Stable Diffusion v1.5's size.

    python -m benchmarks.memory
Resident memory of the process that runs the stage. Pages of memory-mapped files count in it, though the kernel takes them
back when it needs them: for the training data, what is left without them is shown too.
"""

import os
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workspace import demo, start, write_params

N, TRAIN, CAPTIONS = 100, 10_921, 18_000


def main() -> None:
    print(f"| peak resident memory, MiB | {N} images | {10 * N} images |\n|---|---|---|")
    found = {"encode": [], "generate": []}
    for count in (N, 10 * N):
        with tempfile.TemporaryDirectory() as place:
            folder = demo(
                Path(place),
                count,
                sampling={"steps": 2},
                encode={"base_domain": "none"},
                generate={"images_per_prompt": 1},
            )
            (folder / "models/diffusion").symlink_to(folder / "models/base/diffusion")
            texts = {
                name: [f"{name} {i}" for i in range(count)]
                for name in ("label", "prompt", "negative_prompt", "writer", "technique")
            }
            pq.write_table(
                pa.table({"row": range(count), **texts, "passages": [""] * count}),
                folder / "data/prompts.parquet",
            )
            for stage in found:
                found[stage].append(peak(folder, "-m", f"stages.{stage}"))
    for stage, (small, large) in found.items():
        print(f"| {stage} | {small:.0f} | {large:.0f} |")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_params(folder)
        process = start(folder, "-m", "benchmarks.memory", "training_data")
        print(process.communicate()[0])


def peak(folder: Path, *command: str) -> float:
    """Highest resident memory of a process, MiB."""
    process = start(folder, *command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: {process.stderr.read()[-1000:]}")
    return usage.ru_maxrss / 1024


def training_data(batch: int = 64) -> None:
    """An epoch's visits of RSICD's size at 512 px, every latent and embedding read once; the files are sparse."""
    from stages.diffusion.latents import VARIANTS, Latents, allocate

    out, shape = Path("data/latents"), (TRAIN, VARIANTS, 4, 64, 64)
    allocate(out / "train.safetensors", {"mean": shape, "logvar": shape})
    allocate(out / "captions.safetensors", {"embeddings": (CAPTIONS, 77, 768)})
    ids = pa.array(
        [[(5 * i + k) % CAPTIONS for k in range(5)] for i in range(TRAIN)], pa.list_(pa.int32())
    )
    pq.write_table(pa.table({"caption_ids": ids}), out / "rows_train.parquet")
    train = Latents(out, "train", 0.18215)
    for first in range(0, TRAIN - batch, batch):
        train.visits(range(first, first + batch), 0, 1000, 0.1, True)
    sizes = sum(path.stat().st_size for path in out.iterdir()) / 2**30
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    mib = {name: int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon")}
    print(
        f"\n| data of fine-tuning at SD v1.5's size, {TRAIN} images x {VARIANTS} variants at 512 px, {CAPTIONS} captions | |\n|---|---|\n"
        f"| on disk | {sizes:.1f} GiB |\n| peak resident memory over an epoch, mapped pages included | {mib['VmHWM']:.0f} MiB |\n"
        f"| without mapped pages | {mib['RssAnon']:.0f} MiB |"
    )


if __name__ == "__main__":
    training_data() if sys.argv[1:] == ["training_data"] else main()
