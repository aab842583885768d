"""The evaluation on real tiles (RSICD, in $RD_DATA), and its cost.

    python -m benchmarks.evaluation degradations    does each metric order degraded tiles?
    python -m benchmarks.evaluation halvings        does the floor's interval hold other floors?
    python -m benchmarks.evaluation speed           seconds and memory, at 2,000 and 20,000 images

Prints Markdown; benchmarks/results/evaluation.md keeps it.
"""

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.runtime.process import make_parser

if TYPE_CHECKING:
    import torch

DATA = Path(os.environ.get("RD_DATA", "../shared/data")) / "rsicd"
SIDE = 64  # pixels
BATCH = 256
FEW_CLASSES = ("forest", "meadow", "desert")  # what a generator that lost most classes would draw
METRICS = (
    "fid",
    "fid_infinity",
    "kid_x1000",
    "sinkhorn",
    "precision",
    "recall",
    "density",
    "coverage",
)
LOWER_IS_BETTER = ("fid", "fid_infinity", "kid_x1000", "sinkhorn")
HALVINGS_BEHIND_INTERVAL = 20  # of both sets
HALVINGS = 30
HALVINGS_WITH_INTERVAL = 10  # do their intervals hold the values of the others?
MEASUREMENTS = {
    "all": "all metrics, floor, base, intervals of both from 20 halvings",
    "fid": "FID",
    "kid": "KID",
    "prdc": "precision, recall, density, coverage",
}

Extractor = Callable[["torch.Tensor"], dict[str, "torch.Tensor"]]
Indices = tuple[np.ndarray, np.ndarray]  # rows of the real and of the generated features


def main() -> None:
    parser = make_parser("benchmarks.evaluation", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    degradations = commands.add_parser("degradations")
    degradations.add_argument("--epochs", type=int, default=6, help="training of the judge")
    halvings = commands.add_parser("halvings")
    halvings.add_argument("--epochs", type=int, default=6, help="training of the judge")
    speed = commands.add_parser("speed")
    speed.add_argument("--only", choices=MEASUREMENTS, help="one of the measurements")
    options = parser.parse_args()
    if options.command == "degradations":
        compare_degradations(options.epochs)
    elif options.command == "halvings":
        compare_halvings(options.epochs)
    elif options.only:
        measure_speed(options.only)
    else:
        measure_all_speeds()


# Degradations


def compare_degradations(epochs: int) -> None:
    """Measure real tiles degraded step by step, and list the metrics that follow the steps."""
    images, scenes = read_tiles("train")
    real, real_scenes = read_tiles("valid")
    # The judge hasn't seen the tiles that play the generated images.
    order = np.random.default_rng(0).permutation(len(images))
    fake = images[order[: len(real)]]
    fake_scenes = scenes[order[: len(real)]]
    judge_tiles = order[len(real) :]
    start = time.time()
    extractor, names = train_judge(images[judge_tiles], scenes[judge_tiles], epochs)
    real_features = extract(extractor, real)
    accuracy = (np.array(names)[real_features["logits"].argmax(1)] == real_scenes).mean()
    metrics = [*METRICS, "agreement"]
    print(
        f"Judge: test_resnet, {epochs} epochs on {len(judge_tiles)} tiles, "
        f"{time.time() - start:.0f} s; {accuracy:.3f} of {len(real)} valid tiles right. "
        f"{len(fake)} other training tiles play the generated images.\n"
    )

    print(f"| generated | {' | '.join(metrics)} |\n|---|{'---:|' * len(metrics)}")
    halves = draw_halves(len(real))  # the same for every row
    floor = measure(extractor, real_features, fake, fake_scenes, names, halves)
    print_values("as they are (floor)", floor, metrics)
    chains = {}
    for title, steps in degrade(fake, fake_scenes).items():
        chains[title] = [floor]
        for step, degraded in steps.items():
            values = measure(extractor, real_features, degraded, fake_scenes, names, halves)
            print_values(step, values, metrics)
            chains[title].append(values)

    print(f"\n| worse at every step from the floor on | {' | '.join(chains)} |")
    print("|---" * (len(chains) + 1) + "|")
    for metric in metrics:
        verdicts = [judge_order(metric, chain) for chain in chains.values()]
        print(f"| {metric} | {' | '.join(verdicts)} |")


def degrade(images: np.ndarray, scenes: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """{kind of degradation: {what it does: images}}, from the weakest to the strongest."""
    return {
        "blur": {f"blur, sigma {sigma} px": blur(images, sigma) for sigma in (0.5, 1.0, 2.0)},
        "JPEG": {f"JPEG, quality {quality}": compress(images, quality) for quality in (75, 40, 15)},
        "classes blended": {
            f"{share:.0%} of another class blended in": blend_classes(images, scenes, share)
            for share in (0.1, 0.25, 0.5)
        },
        "classes lost": {
            f"{share:.0%} replaced by 3 classes": lose_classes(images, scenes, share)
            for share in (0.25, 0.5, 1.0)
        },
    }


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of uint8 [N, H, W, 3]."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, (0, sigma, sigma, 0))


def compress(images: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [N, H, W, 3] through JPEG."""
    from PIL import Image

    compressed = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        compressed.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(compressed)


def blend_classes(images: np.ndarray, scenes: np.ndarray, share: float) -> np.ndarray:
    """Blend a share of an image of another class into each image."""
    rng = np.random.default_rng(0)
    others = np.array([rng.choice(np.flatnonzero(scenes != scene)) for scene in scenes])
    return np.rint((1 - share) * images + share * images[others]).astype(np.uint8)


def lose_classes(images: np.ndarray, scenes: np.ndarray, share: float) -> np.ndarray:
    """Replace a share of the images by images of `FEW_CLASSES`."""
    rng = np.random.default_rng(0)
    of_few_classes = np.flatnonzero(np.isin(scenes, FEW_CLASSES))
    indices = np.arange(len(images))
    replaced = rng.permutation(len(images))[: round(share * len(images))]
    indices[replaced] = rng.choice(of_few_classes, len(replaced))
    return images[indices]


def draw_halves(n: int) -> list[Indices]:
    """Rows of both halves of each halving of n real and n generated images."""
    from stages.evaluation.intervals import draw_halvings

    halvings = draw_halvings(n, n, HALVINGS_BEHIND_INTERVAL, np.random.default_rng(1))
    return [rows for halves in halvings for rows in halves]


def measure(
    extractor: Extractor,
    real: dict[str, np.ndarray],
    fake: np.ndarray,
    fake_scenes: np.ndarray,
    names: list[str],
    halves: list[Indices],
) -> list[dict[str, float]]:
    """Metrics of all images, then of each of the halves."""
    from stages.evaluation.frechet import fid_curve
    from stages.evaluation.protocols import compute_metrics

    features = extract(extractor, fake)
    everything = np.arange(len(fake))
    values = []
    for real_rows, fake_rows in [(everything, everything), *halves]:
        pair = (real["features"][real_rows], features["features"][fake_rows])
        metrics = compute_metrics(*pair, "scene", fid_curve(*pair, np.random.default_rng(0)))
        predicted = np.array(names)[features["logits"][fake_rows].argmax(1)]
        metrics["agreement"] = float((predicted == fake_scenes[fake_rows]).mean())
        values.append(metrics)
    return values


def judge_order(metric: str, chain: list[list[dict[str, float]]]) -> str:
    """Whether a metric gets worse at each step of a chain of `measure`'s values.

    "in noise": at some step it doesn't, by less than its 95 % interval; "no": by more.
    """
    from stages.evaluation.intervals import t_margin
    from stages.evaluation.protocols import variance_of

    sign = 1 if metric in LOWER_IS_BETTER else -1
    verdict = "yes"
    for before, after in zip(chain, chain[1:]):
        changes = [sign * (b[metric] - a[metric]) for a, b in zip(before, after)]
        if changes[0] > 0:
            continue
        variance = variance_of(metric, np.reshape(changes[1:], (-1, 2)))
        if changes[0] + t_margin(variance, HALVINGS_BEHIND_INTERVAL) < 0:
            return "no"
        verdict = "in noise"
    return verdict


def print_values(title: str, values: list[dict[str, float]], metrics: list[str]) -> None:
    cells = [f"{values[0][metric]:.3f}" for metric in metrics]
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


# Halvings


def compare_halvings(epochs: int) -> None:
    """Halve 2,000 tiles at random: intervals of ten halvings against values of 20 others."""
    from stages.evaluation.frechet import fid_curve
    from stages.evaluation.protocols import (
        compute_metrics,
        estimate_variances,
        prediction_interval_of,
    )

    images, scenes = read_tiles("train")
    order = np.random.default_rng(1).permutation(len(images))
    extractor, _ = train_judge(images[order[2000:]], scenes[order[2000:]], epochs)
    features = extract(extractor, images[order[:2000]])["features"]
    rng = np.random.default_rng(2)
    first_values = []
    first_variances = []
    other_values = []
    for number in range(HALVINGS):
        shuffled = features[rng.permutation(2000)]
        a = shuffled[:1000]
        b = shuffled[1000:]
        values = compute_metrics(a, b, "scene", fid_curve(a, b, rng))
        if number < HALVINGS_WITH_INTERVAL:
            first_values.append(values)
            first_variances.append(
                estimate_variances(
                    a, b, "scene", HALVINGS_BEHIND_INTERVAL, rng, f"halving {number}"
                )
            )
        else:
            other_values.append(values)

    print(
        "| metric | a halving, and the range it gives for others "
        "| of 20 others inside, mean of 10 | at least 18 inside |\n|---|---|---:|---:|"
    )
    for metric in other_values[0]:
        intervals = []
        counts = []
        for values, variances in zip(first_values, first_variances):
            interval = prediction_interval_of(
                metric, values[metric], variances[metric], HALVINGS_BEHIND_INTERVAL, 1000
            )
            intervals.append(interval)
            counts.append(
                sum(interval[0] <= other[metric] <= interval[1] for other in other_values)
            )
        print(
            f"| {metric} | {first_values[0][metric]:.3f} "
            f"[{intervals[0][0]:.3f}, {intervals[0][1]:.3f}] | {np.mean(counts):.1f} | "
            f"{sum(count >= 18 for count in counts)} of {HALVINGS_WITH_INTERVAL} |",
            flush=True,
        )


# Speed


def measure_all_speeds() -> None:
    """Run each measurement in a new process, so that each peak memory is of one measurement."""
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={threads}\n")
    print("| what | size | seconds | of CPU time | peak memory, GB |", flush=True)
    print("|---|---|---:|---:|---:|", flush=True)
    for measurement in MEASUREMENTS:
        command = [sys.executable, "-m", "benchmarks.evaluation", "speed", "--only", measurement]
        subprocess.run(command, check=True)


def measure_speed(measurement: str) -> None:
    from stages.evaluation.frechet import fid
    from stages.evaluation.kernel import kid
    from stages.evaluation.prdc import compute_prdc
    from stages.evaluation.protocols import fid_curves, standard_protocol
    from stages.params import Fid

    n, dimensions = (2000, 512) if measurement == "all" else (20000, 2048)
    rng = np.random.default_rng(0)
    deviations = (np.arange(1, dimensions + 1) ** -0.5).astype(np.float32)
    real = rng.standard_normal((n, dimensions), dtype=np.float32) * deviations
    fake = rng.standard_normal((n, dimensions), dtype=np.float32) * deviations
    wall_start = time.time()
    cpu_start = time.process_time()
    if measurement == "all":
        sets = {"test": real, "tuned": fake, "base": fake + 1, "train": real[::-1]}
        config = Fid(standard_min_n=1000, paper_n=250, paper_draws=5, subsets=20)
        standard_protocol(sets, fid_curves(sets, 0), config, 0, "scene")
    elif measurement == "fid":
        fid(real, fake)
    elif measurement == "kid":
        kid(real, fake)
    else:
        compute_prdc(real, fake)
    wall = time.time() - wall_start
    cpu = time.process_time() - cpu_start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {MEASUREMENTS[measurement]} | {n:,} x {n:,}, {dimensions} dimensions | "
        f"{wall:.0f} | {cpu:.0f} | {gigabytes:.1f} |",
        flush=True,
    )


# Tiles and features


def read_tiles(split: str) -> tuple[np.ndarray, np.ndarray]:
    """RSICD tiles uint8 [N, SIDE, SIDE, 3] and their scenes [N]."""
    import pyarrow.parquet as pq
    from PIL import Image

    rows = pq.read_table(DATA / f"{split}.parquet", columns=["filename", "image"]).to_pylist()
    images = []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        images.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    scenes = [Path(row["filename"]).stem.rpartition("_")[0] for row in rows]
    return np.stack(images), np.array(scenes)


def train_judge(images: np.ndarray, scenes: np.ndarray, epochs: int) -> tuple[Extractor, list[str]]:
    """The `scene` extractor, trained by the stage's own code, and the names of its outputs."""
    import torch

    from stages.common.torch_setup import make_deterministic
    from stages.evaluation.extractors import SceneExtractor
    from stages.evaluation.networks import channel_statistics, save_network
    from stages.params import TrainScene
    from stages.train_scene import train

    make_deterministic(0)
    names = sorted(set(scenes))
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # [N, 3, SIDE, SIDE]
    labels = torch.tensor([names.index(scene) for scene in scenes])
    mean, std = channel_statistics(x)
    config = TrainScene(
        source="scratch",
        model="test_resnet",
        resolution=SIDE,
        epochs=epochs,
        batch_size=64,
        lr=6e-3,
    )
    network = train(x, labels, mean, std, len(names), config, 0)
    network_config = {
        "model": config.model,
        "resolution": SIDE,
        "scenes": names,
        "mean": mean,
        "std": std,
    }
    with tempfile.TemporaryDirectory() as folder:
        save_network(folder, network.cpu(), network_config)
        return SceneExtractor(Path(folder)).eval(), names


def extract(extractor: Extractor, images: np.ndarray) -> dict[str, np.ndarray]:
    """Each output [N, ...] of the extractor for tiles uint8 [N, H, W, 3]."""
    import torch

    outputs = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2)
            outputs.append(extractor(batch))
    return {key: torch.cat([output[key] for output in outputs]).numpy() for key in outputs[0]}


if __name__ == "__main__":
    main()
