"""Two protocols of comparing generated with real images by their features.

Standard: all generated images against all real test tiles, with intervals. Paper: means over a few
random draws of a few hundred images, as the paper compares them.

Each number stands beside two others: its floor, the same number of real training tiles, and its
base, that of the model before fine-tuning.
"""

import numpy as np

from stages.common.rng import rng
from stages.evaluation.frechet import SUBSET_COUNTS, fid, fid_curve, fid_infinity
from stages.evaluation.intervals import confidence_interval, half_subsamples, prediction_interval
from stages.evaluation.kernel import cmmd, kid
from stages.evaluation.prdc import compute_prdc
from stages.evaluation.sinkhorn import sinkhorn_divergence
from stages.params import Fid
from stages.runtime.progress import log, progress_bar

# Lowest and highest value of the metrics that are not in [0, inf).
VALUE_RANGES = {
    "precision": (0, 1),
    "recall": (0, 1),
    "coverage": (0, 1),
    "kid_x1000": (-np.inf, np.inf),
    "fid_infinity": (-np.inf, np.inf),
}
MIN_IMAGES = 8  # quarters of them, as in the FID curve, still have a covariance


def compute_metrics(
    real: np.ndarray, fake: np.ndarray, extractor: str, generator: np.random.Generator
) -> dict[str, float]:
    """All metrics of generated features [M, D] against real ones [N, D].

    `generator` draws the subsets of the FID curve.
    """
    metrics = {
        "fid": fid(real, fake),
        "fid_infinity": fid_infinity(fid_curve(real, fake, generator)),
        "kid_x1000": 1000 * kid(real, fake),
    }
    metrics |= compute_prdc(real, fake)
    metrics["sinkhorn"] = sinkhorn_divergence(real, fake)
    if extractor == "clip":
        metrics["cmmd"] = cmmd(real, fake)
    return metrics


def standard_protocol(
    sets: dict[str, np.ndarray], config: Fid, seed: int, extractor: str
) -> dict[str, float]:
    """All metrics of all generated images against all real test tiles.

    Args:
        sets: features [N, D] of `test` and `tuned` and, where there are any, `train` and `base`.
        config: the section `fid`.
        seed: of the floor's training tiles and of the subsamples.
        extractor: name of the features.

    Returns:
        refused = 0; n, n_real, n_floor; `singular` and `infinity_singular`, 1 where FID and FID
        infinity compare singular covariances, of fewer images than dimensions; and of each metric
        its value, a 95 % confidence interval `_lo`, `_hi`, its `_floor`, a 95 % prediction interval
        `_floor_lo`, `_floor_hi`, and its `_base`; no floor without `train`, no base without `base`.
        Of too few images: refused = 1, n, n_needed.
    """
    real = sets["test"]
    n = min(len(real), len(sets["tuned"]))
    n_needed = max(config.standard_min_n, MIN_IMAGES)
    if n < n_needed:
        larger = f"{n_needed}, the larger of fid.standard_min_n and {MIN_IMAGES}"
        log(f"fid: {n} images are fewer than {larger}: no standard protocol for {extractor}")
        return {"refused": 1, "n": n, "n_needed": n_needed}

    values = {}
    subsampled = {}
    compared = compared_sets(sets, seed)
    for name, fake in compared.items():
        # Draws of its own: they are the same whatever else is compared.
        generator = rng(seed, "intervals", name)
        values[name] = compute_metrics(real, fake, extractor, generator)
        if name != "base":
            subsampled[name] = subsample_metrics(
                real, fake, extractor, config.subsets, generator, name
            )

    result: dict[str, float] = {"refused": 0, "n": len(compared["tuned"]), "n_real": len(real)}
    if "floor" in compared:
        result["n_floor"] = len(compared["floor"])
    result["singular"] = int(n <= real.shape[1])
    result["infinity_singular"] = int(n // max(SUBSET_COUNTS) <= real.shape[1])
    for name, value in values["tuned"].items():
        low, high = VALUE_RANGES.get(name, (0, np.inf))
        result[name] = value
        result[f"{name}_lo"], result[f"{name}_hi"] = confidence_interval(
            value, subsampled["tuned"][name], n, low, high
        )
        if "floor" in compared:
            floor = values["floor"][name]
            n_floor = min(len(real), len(compared["floor"]))
            result[f"{name}_floor"] = floor
            result[f"{name}_floor_lo"], result[f"{name}_floor_hi"] = prediction_interval(
                floor, subsampled["floor"][name], n_floor, low, high
            )
        if "base" in compared:
            result[f"{name}_base"] = values["base"][name]
    return result


def subsample_metrics(
    real: np.ndarray,
    fake: np.ndarray,
    extractor: str,
    count: int,
    generator: np.random.Generator,
    name: str,
) -> dict[str, list[float]]:
    """Each metric of `count` random halves of features [N, D] against halves of [M, D].

    `name` of the second set is for the progress bar.
    """
    pairs = zip(
        half_subsamples(len(real), count, generator), half_subsamples(len(fake), count, generator)
    )
    subsampled: dict[str, list[float]] = {}
    title = f"intervals of {extractor}, {name}"
    for real_half, fake_half in progress_bar(pairs, total=count, desc=title):
        metrics = compute_metrics(real[real_half], fake[fake_half], extractor, generator)
        for metric, value in metrics.items():
            subsampled.setdefault(metric, []).append(value)
    return subsampled


def paper_protocol(
    sets: dict[str, np.ndarray], real_indices: np.ndarray, config: Fid, seed: int
) -> dict[str, float]:
    """The paper's FID: of few generated images and their real tiles, the mean of several draws.

    The test tiles of `sets` may have a black frame, as the paper's have. The floor is then that of
    training tiles without one, as a generator of perfect tiles would score.

    Args:
        sets: features [N, D] of `test`, `train`, `tuned` and `base`.
        real_indices: the test tile [M] whose caption each tuned and base image shows.
        config: the section `fid`.
        seed: of the draws.
    """
    n = config.paper_n
    if len(real_indices) < n:
        log(
            f"fid: {len(real_indices)} generated images are fewer than fid.paper_n = {n}: "
            "no paper protocol"
        )
        return {"refused": 1, "n": len(real_indices), "n_needed": n}
    fids = []
    for draw in range(config.paper_draws):
        generator = rng(seed, "paper", draw)
        chosen = generator.permutation(len(real_indices))[:n]
        training_tiles = generator.permutation(len(sets["train"]))[:n]
        real = sets["test"][real_indices[chosen]]  # [n, D]
        compared = (sets["tuned"][chosen], sets["train"][training_tiles], sets["base"][chosen])
        fids.append([fid(real, fake) for fake in compared])
    tuned, floor, base = np.mean(fids, 0)  # of [draws, 3]
    return {
        "refused": 0,
        "n": n,
        "draws": config.paper_draws,
        "singular": int(n <= sets["test"].shape[1]),
        "fid": float(tuned),
        "fid_std": float(np.std([row[0] for row in fids])),
        "fid_floor": float(floor),
        "fid_base": float(base),
    }


def fid_curves(sets: dict[str, np.ndarray], seed: int) -> list[dict]:
    """FID by the number of images N: rows {images, one_over_n, tuned, base, floor}.

    Over 1/N, the straight line through a set's FIDs meets 1/N = 0 at its FID infinity.
    """
    curves = {}
    for name, fake in compared_sets(sets, seed).items():
        curves[name] = fid_curve(sets["test"], fake, rng(seed, "curve"))
    shared = min(len(points) for points in curves.values())  # few training tiles have no quarters
    rows = []
    for i in range(shared):
        size, _ = curves["tuned"][i]
        row = {"images": size, "one_over_n": 1 / size}
        row |= {name: points[i][1] for name, points in curves.items()}
        rows.append(row)
    return rows


def compared_sets(sets: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Features of what is compared with the test tiles: the images of each model, and the floor.

    The floor is as many random training tiles as there are test tiles.
    """
    compared = {"tuned": sets["tuned"]}
    if "base" in sets:
        compared["base"] = sets["base"]
    if "train" in sets:
        order = rng(seed, "floor").permutation(len(sets["train"]))
        compared["floor"] = sets["train"][np.sort(order[: len(sets["test"])])]
    return compared
