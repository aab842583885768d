"""How time, memory and disk grow with the number of tiles, and what they would be for millions.

    python -m benchmarks.growth [--sizes 1000 10000 100000]

Runs the stages on N made-up tiles of 32 px with five captions each, with an untrained model and two
sampling steps: it measures growth, not models. `loading` stands for the data of `finetune_sd`: the
latents are opened and 200 micro-batches drawn, without a UNet. As many images are generated as
there are tiles; the test tiles stand for the samples of their captions.

Memory includes the pages of memory-mapped files (`encode`, `loading`), which the kernel takes back
when it needs them. Time includes the start of Python, some ten seconds for each command.

Prints Markdown; benchmarks/results/growth.md keeps it.
"""

import io
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.memory import write_prompts
from benchmarks.workspace import REPOSITORY, SPLITS, environment, write_params
from stages.common.artifacts import read_json, write_json, write_shards
from stages.imagery.schema import IMAGERY_SCHEMA
from stages.runtime.process import make_parser
from tools.cache import format_size
from tools.rehearsal.measuring import folder_size, measure
from tools.rehearsal.table import duration

sys.path.append(str(REPOSITORY / "tests"))
from tiny_diffusion import make_pipeline

SIDE = 32  # pixels
CAPTIONS_PER_TILE = 5
LARGER = (10**6, 10**7)  # about RS5M's and Git-10M's numbers of images
MICRO_BATCHES = 200
SCENE = REPOSITORY / "stages/embedded/models/scene"
WORDS = {
    "size": "small large wide narrow long short huge tiny broad compact".split(),
    "color": "green brown gray white dark bright pale yellow blue red".split(),
    "part": "roads trees houses ponds fields paths rocks boats lines shadows".split(),
    "place": "left right top bottom middle corner edge north south center".split(),
    "number": "one two three four five six seven eight nine many".split(),
    "neighbor": "river road beach hill bridge railway garden square farm canal".split(),
}
# What is measured: a command, and what it writes.
COMMANDS = {
    "fetch_imagery": (["-m stages.fetch_imagery"], ["data/imagery"]),
    "encode": (["-m stages.encode"], ["data/latents"]),
    "loading": (["-m benchmarks.growth --part loading"], []),
    "generate": (["-m stages.generate"], ["data/generated"]),
    "features": (
        [f"-m stages.features {which}" for which in ("real", "base", "tuned", "synthetic")],
        ["data/features"],
    ),
    "fid": (["-m stages.fid"], ["metrics"]),
}


@dataclass(frozen=True)
class Cost:
    """What a stage took: seconds, and bytes of memory and of its outputs."""

    seconds: float
    memory: int
    disk: int


def main() -> None:
    parser = make_parser("benchmarks.growth", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument(
        "--part",
        choices=["all", "loading"],
        default="all",
        help="loading: the process that `all` starts for it",
    )
    options = parser.parse_args()
    if options.part == "loading":
        load_batches()
        return
    print("| stage | tiles | time | peak memory | written | time grows as n to the |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    costs: dict[str, dict[int, Cost]] = {stage: {} for stage in COMMANDS}
    for size in sorted(options.sizes):
        measure_size(size, costs)
    if len(options.sizes) > 1:
        print_larger(costs)


def measure_size(size: int, costs: dict[str, dict[int, Cost]]) -> None:
    """Run the stages on `size` tiles, add what each took to `costs`, and print it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        make_project(folder, size)
        for stage in COMMANDS:
            cost = measure_stage(folder, stage)
            costs[stage][size] = cost
            exponents = time_exponents(costs[stage])
            cells = [
                stage,
                f"{size:,}",
                f"{cost.seconds:.1f} s",
                format_size(cost.memory),
                format_size(cost.disk),
                f"{exponents[-1]:.2f}" if exponents else "",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def make_project(folder: Path, size: int) -> None:
    """Make a folder with a Parquet table of `size` tiles, the models, the prompts and the params.

    The samples of the test captions are the test tiles, and no image is selected.
    """
    write_params(
        folder,
        sampling={"scheduler": "dpm", "steps": 2, "resolution": SIDE},
        fetch_imagery=SPLITS | {"source": "path:tiles", "max_images": None, "resolution": SIDE},
        train_scene={"source": "scratch"},  # not run
        encode={"variants": 1, "base_domain": "none"},
        features={"extractors": ["scene"], "padded": False},
    )
    scenes = read_json(SCENE / "config.json")["scenes"]
    write_shards(folder / "tiles", make_tiles(size, scenes), IMAGERY_SCHEMA)
    make_pipeline(folder / "models/base/diffusion")
    write_json(folder / "models/start/start.json", {"folder": "models/base/diffusion"})
    (folder / "models/diffusion").symlink_to(folder / "models/base/diffusion")
    shutil.copytree(SCENE, folder / "models/scene")
    (folder / "data/samples").mkdir(parents=True)
    for link, target in (
        ("samples/base", "imagery/test"),
        ("samples/tuned", "imagery/test"),
        ("synthetic", "generated"),
    ):
        (folder / "data" / link).symlink_to(folder / "data" / target)
    write_prompts(folder / "data", size)


def make_tiles(size: int, scenes: list[str]) -> Iterator[dict]:
    """Rows of tiles: smooth colors with noise, and captions of which most are distinct."""
    for number in range(size):
        generator = np.random.default_rng(number)
        colors = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        smooth = Image.fromarray(colors).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + generator.normal(0, 8, (SIDE, SIDE, 3))
        png = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(png, "PNG", compress_level=1)
        scene = scenes[number % len(scenes)]
        captions = []
        for _ in range(CAPTIONS_PER_TILE):
            word = {key: words[generator.integers(10)] for key, words in WORDS.items()}
            captions.append(
                f"a {word['size']} {word['color']} {scene} with {word['number']} {word['part']} "
                f"at the {word['place']}, near a {word['neighbor']}"
            )
        yield {
            "image": {"bytes": png.getvalue(), "path": None},
            "captions": captions,
            "scene": scene,
            "filename": f"{scene}_{number:08d}.png",
        }


def measure_stage(folder: Path, stage: str) -> Cost:
    """Run a stage in its own processes. Where it has several commands, they run one by one."""
    commands, outs = COMMANDS[stage]
    command = " && ".join(f"{sys.executable} {arguments}" for arguments in commands)
    taken = measure(command, folder, environment(folder), folder / "scratch")
    if taken.error:
        sys.exit(f"{stage}: {taken.error}\n{taken.log[-2000:]}")
    seconds = taken.seconds
    if stage == "loading":
        seconds = json.loads(taken.log.splitlines()[-1])["seconds"]
    return Cost(seconds, taken.memory, sum(folder_size(folder / out) for out in outs))


def load_batches() -> None:
    """Open the training data and draw micro-batches; print the seconds as JSON."""
    import torch

    from stages.diffusion import models
    from stages.diffusion.caption_embeddings import load_embeddings
    from stages.diffusion.latents import Latents
    from stages.params import load

    config = load().finetune_sd
    latents, start = Path("data/latents"), models.start_folder()
    started = time.perf_counter()
    embeddings = load_embeddings(latents, start, torch.device("cpu"))
    train = Latents(latents, "train", models.scaling_factor(start), embeddings)
    for number in range(MICRO_BATCHES):
        first = number * config.batch_size
        train.training_batch(
            range(first, first + config.batch_size),
            seed=0,
            timesteps=1000,
            caption_dropout=config.caption_dropout,
            sample=True,
        )
    print(json.dumps({"seconds": time.perf_counter() - started}))


def time_exponents(costs: dict[int, Cost]) -> list[float]:
    """log(time ratio) / log(size ratio) of each size and the one before it."""
    return [
        math.log(costs[larger].seconds / costs[smaller].seconds) / math.log(larger / smaller)
        for smaller, larger in pairwise(costs)
    ]


def print_larger(costs: dict[str, dict[int, Cost]]) -> None:
    """Print what each stage would take for millions of tiles.

    Time grows from the largest size measured, as n log n or by the last exponent, whichever is
    more; memory on the line through the two largest sizes; disk in proportion.
    """
    print("\n| stage | time grows as | memory per tile |", end="")
    print("".join(f" time, {n:,} | memory | disk |" for n in LARGER))
    print("|---|---|---:|" + "---:|" * 3 * len(LARGER))
    for stage, by_size in costs.items():
        smaller, size = list(by_size)[-2:]
        last = by_size[size]
        exponent = time_exponents(by_size)[-1]
        tile_memory = max(0, last.memory - by_size[smaller].memory) / (size - smaller)
        rules = []
        cells = []
        for n in LARGER:
            n_log_n = n * math.log(n) / (size * math.log(size))
            by_exponent = (n / size) ** exponent
            rules.append(f"n^{exponent:.2f}" if by_exponent > n_log_n else "n log n")
            cells += [
                duration(last.seconds * max(n_log_n, by_exponent)),
                format_size(last.memory + tile_memory * (n - size)),
                format_size(last.disk * n / size),
            ]
        grows = " / ".join(dict.fromkeys(rules))
        print(f"| {stage} | {grows} | {format_size(tile_memory)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
