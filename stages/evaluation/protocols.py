"""Two protocols of comparing generated with real images by their features.

Standard: all generated images against all real test tiles, with intervals. (Metrics of all pairs
of images, such as recall, are of 10,000 images a set at most: their time grows as the square.)
Paper: means over a few random draws of a few hundred images, as the paper compares them.

Each number stands beside two others: its floor, the same number of real training tiles, and its
base, that of the model before fine-tuning. Where the training tiles are fewer than the images,
there is no floor: FID and others depend on the number.

The images of a run follow the captions of the test tiles. With a `Pairing`, an image and the tile
of its caption are drawn together, and so are a floor tile and the test tile whose scene it shows.
Without one, the sets count as independent. If the images follow the real ones' captions after all,
FID infinity and KID are then too low, intervals are too wide, and the floor, of random tiles, is
too high.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from stages.common.rng import rng
from stages.evaluation import sinkhorn
from stages.evaluation.frechet import Curve, fid, fid_curve, fit_fid_line
from stages.evaluation.intervals import (
    MAX_HALVED,
    Rows,
    count_variance,
    draw_halvings,
    draw_orders,
    root_scale_interval,
    share_interval_of_margin,
    share_variance,
    smooth_variance,
    t_margin,
)
from stages.evaluation.kernel import cmmd, kid
from stages.evaluation.pairing import (
    Pairing,
    align_real,
    count_other_scenes,
    draw_in_scenes,
)
from stages.evaluation.prdc import compute_prdc, draw_rows
from stages.evaluation.sites import can_tell_spread, shared_sites
from stages.params import Fid
from stages.runtime.progress import log, progress_bar

SHARES = ("precision", "recall", "coverage")
MAY_BE_NEGATIVE = ("fid_infinity", "kid_x1000")
CURVE_COLUMNS = ("tuned", "base", "floor")
MAX_PAIRED = 10_000  # rows of a set whose distances to all others are computed
MIN_IMAGES = 8  # quarters of them, as in the FID curve, still have a covariance

Compute = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # metrics of real and fake rows


def compute_metrics(
    real: np.ndarray, fake: np.ndarray, extractor: str, curve: Curve, paired: bool = False
) -> dict[str, float]:
    """All metrics of generated features [M, D] against real ones [N, D], and their FID curve.

    paired: row i of `fake` was drawn with row i of `real`, M <= N.
    """
    distances = compute_distances(real, fake, extractor, paired)
    _, infinity = fit_fid_line(curve, real.shape[1])
    return {
        "fid": distances.pop("fid"),
        "fid_infinity": infinity,
        **distances,
        **compute_sinkhorn(real, fake),
    }


def compute_distances(
    real: np.ndarray, fake: np.ndarray, extractor: str, paired: bool = False
) -> dict[str, float]:
    """FID of features [N, D], [M, D], and the metrics of pairs of rows, of 10,000 rows at most.

    paired: as in `compute_metrics`.
    """
    metrics = {"fid": fid(real, fake)}
    if paired:  # the same rows of both sets, then real ones without a partner
        count = len(fake)
        others = draw_rows(real[count:], max(MAX_PAIRED - count, 0))
        real = np.concatenate([draw_rows(real[:count], MAX_PAIRED), others])
    real, fake = (draw_rows(features, MAX_PAIRED) for features in (real, fake))
    metrics["kid_x1000"] = 1000 * kid(real, fake, paired)
    metrics |= compute_prdc(real, fake)
    if extractor == "clip":
        metrics["cmmd"] = cmmd(real, fake)
    return metrics


def compute_sinkhorn(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Sinkhorn divergence of features [N, D], [M, D]: slow, so apart from the other metrics."""
    return {"sinkhorn": sinkhorn.sinkhorn_divergence(real, fake)}


def estimate_variances(
    real: np.ndarray,
    fake: np.ndarray,
    extractor: str,
    count: int,
    generator: np.random.Generator,
    name: str,
    paired: bool = False,
    sites: np.ndarray | None = None,
) -> dict[str, float]:
    """Variance of each metric over other draws of both sets, from `count` pairs of halves.

    Args:
        real: features [N, D].
        fake: features [M, D].
        extractor: name of the features.
        count: pairs of halves.
        generator: draws the halves.
        name: of the second set, for the progress bar.
        paired: row i of `fake` was drawn with row i of `real`; otherwise, independently of `real`.
        sites: number [N] of the site of each real row, which were drawn whole; None: each row is
            its own site.
    """
    title = f"intervals of {extractor}, {name}"
    real_order, fake_order = draw_orders(len(real), len(fake), generator, paired)

    def variances_of(compute: Compute, limit: int, title: str) -> dict[str, float]:
        some_real, some_fake = real[real_order[:limit]], fake[fake_order[:limit]]
        some_sites = None if sites is None else sites[real_order[:limit]]
        sizes = len(some_real), len(some_fake)
        halvings = draw_halvings(*sizes, count, generator, paired, some_sites)
        bar = progress_bar(halvings, total=count, desc=title)
        halves = measure_halves(compute, some_real, some_fake, bar)
        return {metric: variance_of(metric, values) for metric, values in halves.items()}

    distances = partial(compute_distances, extractor=extractor, paired=paired)
    variances = variances_of(distances, MAX_HALVED, title)
    # FID is of all rows, of which only some were halved: to first order, a variance falls as 1/n,
    # but not where the rows are of the same few sites.
    if sites is None:
        n = min(len(real), len(fake))
        variances["fid"] *= min(n, MAX_HALVED) / n
    # To second order, FID infinity is FID less its expected bias, and errs as FID does.
    variances["fid_infinity"] = variances["fid"]
    return variances | variances_of(compute_sinkhorn, sinkhorn.MAX_ROWS, f"{title}, Sinkhorn")


def measure_halves(
    compute: Compute,
    real: np.ndarray,
    fake: np.ndarray,
    halvings: Iterable[tuple[Rows, Rows]],
) -> dict[str, np.ndarray]:
    """Values [K, 2] of each metric for K pairs of halves of features [N, D] and [M, D]."""
    pairs = [[compute(real[i], fake[j]) for i, j in halves] for halves in halvings]
    return {
        metric: np.array([[half[metric] for half in pair] for pair in pairs])
        for metric in pairs[0][0]
    }


def variance_of(metric: str, halves: np.ndarray) -> float:
    """Variance of a metric from its values [K, 2] for K pairs of halves."""
    if metric in SHARES:
        return share_variance(halves)
    if metric == "density":
        return count_variance(halves)
    return smooth_variance(halves)


def interval_of(
    metric: str, value: float, variance: float, count: int, n: int
) -> tuple[float, float]:
    """95 % interval of where a metric's expectation lies, over draws of both sets at this n.

    That of FID infinity and KID, which are unbiased, is their value for infinitely many images (of
    as many sites, where tiles share them).

    Args:
        metric: its name.
        value: of the metric.
        variance: of `estimate_variances`.
        count: halvings behind the variance.
        n: images of the smaller set that the metric is of.
    """
    margin = t_margin(variance, count)
    if metric in SHARES or (metric == "density" and value == variance == 0):  # of no image
        return share_interval_of_margin(value, margin, n)
    low, high = root_scale_interval(value, margin)
    return low if metric in MAY_BE_NEGATIVE else max(low, 0.0), high


def has_interval(metric: str, value: float, variance: float) -> bool:
    """Whether the variance tells the spread: that of a distance of constant features is 0."""
    is_share = metric in SHARES or (metric == "density" and value == 0)
    return is_share or bool(np.sqrt(variance) > 1e-6 * abs(value))


def prediction_interval_of(
    metric: str, value: float, variance: float, count: int, n: int
) -> tuple[float, float]:
    """95 % interval of the metric of other draws of both sets; arguments as in `interval_of`.

    The other value errs as much as this one, so their difference has twice the variance. For a
    share, Wilson's interval is that of their mean, which has half the variance; it is then solved
    for the other value.
    """
    if metric not in SHARES:
        return interval_of(metric, value, 2 * variance, count, n)
    low, high = interval_of(metric, value, variance / 2, count, 2 * n)
    return max(2 * low - value, 0.0), min(2 * high - value, 1.0)


def standard_protocol(
    sets: dict[str, np.ndarray],
    curves: dict[str, Curve],
    config: Fid,
    seed: int,
    extractor: str,
    pairing: Pairing | None = None,
    sites: list[str] | None = None,
) -> dict[str, float]:
    """All metrics of all generated images against all real test tiles.

    Args:
        sets: features [N, D] of `test` and `tuned` and, where there are any, `train` and `base`.
        curves: of `fid_curves`.
        config: the section `fid`.
        seed: of the floor's training tiles and of the halves behind the intervals.
        extractor: name of the features.
        pairing: of `tuned` and `base` with `test`; None: none is known.
        sites: the site [N] that each test tile was cut from; None: each tile is its own.

    Returns:
        refused = 0; n, n_real, n_floor; n_sites where test tiles share sites; with a pairing
        n_floor_other_scene, the floor's tiles that aren't of their test tile's scene; `singular`
        and `infinity_singular`, 1 where FID and FID infinity compare singular covariances, of fewer
        images than dimensions; and of each metric its value, a 95 % confidence interval `_lo`,
        `_hi`, its `_floor` and a 95 % prediction interval `_floor_lo`, `_floor_hi` (with enough of
        `train`), and its `_base` (with `base`).
        A singular FID infinity has no intervals: its bias isn't known. Nor has a distance that is
        the same in all halves. Where test tiles share sites, there is no prediction interval, and
        of too few sites (`can_tell_spread`) no interval at all. Of too few images:
        refused = 1, n, n_needed, infinity_singular (of the curve, which has any n).
    """
    n = min(len(sets["test"]), len(sets["tuned"]))
    singular = {"infinity_singular": int(n // 2 <= sets["test"].shape[1])}
    n_needed = max(config.standard_min_n, MIN_IMAGES)
    if n < n_needed:
        larger = f"{n_needed}, the larger of fid.standard_min_n and {MIN_IMAGES}"
        log(f"fid: {n} images are fewer than {larger}: no standard protocol for {extractor}")
        return {"refused": 1, "n": n, "n_needed": n_needed, **singular}

    real = align_real(sets["test"], pairing)
    paired = pairing is not None
    compared = compared_sets(sets, seed, pairing)
    sizes = {"refused": 0, "n": len(compared["tuned"]), "n_real": len(real)}
    shared, names, count = count_sites(sites, pairing, len(compared["tuned"]), config.subsets)
    if shared is not None:
        sizes["n_sites"] = int(shared.max()) + 1
    values = {}
    variances: dict[str, dict[str, float]] = {"tuned": {}, "floor": {}}
    for name, fake in compared.items():
        values[name] = compute_metrics(real, fake, extractor, curves[name], paired)
        if name in names:
            draws = rng(seed, "intervals", name)
            variances[name] = estimate_variances(
                real, fake, extractor, config.subsets, draws, name, paired, shared
            )
    sizes |= measure_floor(sets, seed, extractor, pairing)
    sizes |= {"singular": int(n <= real.shape[1])} | singular
    return sizes | with_references(values, variances, sizes, count)


def count_sites(
    sites: list[str] | None, pairing: Pairing | None, n: int, count: int
) -> tuple[np.ndarray | None, list[str], int]:
    """What the sites of the test tiles do to the intervals of n images.

    Args:
        sites: as in `standard_protocol`.
        pairing: likewise.
        n: generated images.
        count: halvings.

    Returns:
        Number [N] of the site of each tile in the order of `align_real`, None where no two share
        one; the sets whose metrics have intervals; their degrees of freedom.
    """
    shared = None if sites is None else shared_sites(sites)
    if shared is None:
        return None, ["tuned", "floor"], count
    shared = align_real(shared, pairing)
    halved = shared if pairing is None else shared[:n]
    # Of the floor, halves don't count the sites of its training tiles. Those of few sites repeat.
    names = ["tuned"] if can_tell_spread(halved) else []
    return shared, names, min(count, len(np.unique(halved)) - 1)


def with_references(
    values: dict[str, dict[str, float]],
    variances: dict[str, dict[str, float]],
    sizes: dict[str, int],
    count: int,
) -> dict[str, float]:
    """The metrics of `tuned`, each with its intervals, its floor and its base.

    Args:
        values: of the metrics of each of the `compared_sets`.
        variances: of `tuned` and `floor`; a set whose are empty has no intervals.
        sizes: n, n_real, n_floor and infinity_singular of `standard_protocol`.
        count: halvings behind the variances, or degrees of freedom of fewer sites.
    """
    n = min(sizes["n"], sizes["n_real"], MAX_PAIRED)
    result: dict[str, float] = {}
    for name, value in values["tuned"].items():
        has_intervals = name != "fid_infinity" or not sizes["infinity_singular"]
        result[name] = value
        variance = variances["tuned"].get(name)
        if has_intervals and variance is not None and has_interval(name, value, variance):
            result[f"{name}_lo"], result[f"{name}_hi"] = interval_of(
                name, value, variance, count, n
            )
        if "floor" in values:
            floor, variance = values["floor"][name], variances["floor"].get(name)
            result[f"{name}_floor"] = floor
            if has_intervals and variance is not None and has_interval(name, floor, variance):
                n_floor = min(sizes["n_floor"], sizes["n_real"], MAX_PAIRED)
                result[f"{name}_floor_lo"], result[f"{name}_floor_hi"] = prediction_interval_of(
                    name, floor, variance, count, n_floor
                )
        if "base" in values:
            result[f"{name}_base"] = values["base"][name]
    return result


def paper_protocol(
    sets: dict[str, np.ndarray], pairing: Pairing, config: Fid, seed: int
) -> dict[str, float]:
    """The paper's FID: of few generated images and their real tiles, the mean of several draws.

    The test tiles of `sets` may have a black frame, as the paper's have. The floor is then that of
    training tiles without one, as a generator of perfect tiles would score. It is left out where
    there are fewer than `fid.paper_n` of them. `n_floor_other_scene` is the number of a draw's
    floor tiles, at most, that aren't of their test tile's scene.

    `fid_std` is the standard deviation over the draws. They share images: those of others would
    differ more, by 40 % where a draw is half of the images. It is left out where a draw is more
    than that, and of one draw.

    Args:
        sets: features [N, D] of `test`, `train`, `tuned` and `base`.
        pairing: of `tuned` and `base` with `test`.
        config: the section `fid`.
        seed: of the draws.
    """
    n = config.paper_n
    image_count = len(pairing.real_indices)
    if image_count < n:
        log(
            f"fid: {image_count} generated images are fewer than fid.paper_n = {n}: "
            "no paper protocol"
        )
        return {"refused": 1, "n": image_count, "n_needed": n}
    fids: dict[str, list[float]] = {"fid": [], "fid_floor": [], "fid_base": []}
    other_scenes = []
    for draw in range(config.paper_draws):
        generator = rng(seed, "paper", draw)
        chosen = generator.permutation(image_count)[:n]
        rows = pairing.real_indices[chosen]
        real = sets["test"][rows]  # [n, D]
        fids["fid"].append(fid(real, sets["tuned"][chosen]))
        if len(sets["train"]) >= n:
            wanted = pairing.test_scenes[rows]
            tiles = draw_in_scenes(pairing.train_scenes, wanted, generator)
            other_scenes.append(count_other_scenes(pairing.train_scenes[tiles], wanted))
            fids["fid_floor"].append(fid(real, sets["train"][tiles]))
        fids["fid_base"].append(fid(real, sets["base"][chosen]))
    means = {key: float(np.mean(values)) for key, values in fids.items() if values}
    result = {
        "refused": 0,
        "n": n,
        "draws": config.paper_draws,
        "singular": int(n <= sets["test"].shape[1]),
        "fid": means.pop("fid"),
    }
    if config.paper_draws > 1 and 2 * n <= image_count:
        result["fid_std"] = float(np.std(fids["fid"], ddof=1))
    return result | means | ({"n_floor_other_scene": max(other_scenes)} if other_scenes else {})


def fid_curves(
    sets: dict[str, np.ndarray], seed: int, pairing: Pairing | None = None
) -> dict[str, Curve]:
    """FID curve of each of the `compared_sets` against the test tiles.

    Arguments as in `standard_protocol`.
    """
    real = align_real(sets["test"], pairing)
    return {
        name: fid_curve(real, fake, rng(seed, "curve"), pairing is not None)
        for name, fake in compared_sets(sets, seed, pairing).items()
    }


def curve_rows(curves: dict[str, Curve], dimensions: int) -> list[dict]:
    """FID by the number of images N, to plot: rows {images, one_over_n, tuned, base, floor, ...}.

    `tuned_line` and so on are the lines of `fit_fid_line` over 1/N. The last row is where they meet
    1/N = 0, at FID infinity; it has no `images` and no FIDs.

    Args:
        curves: FID curves of `tuned`, `base` and `floor`, of the same numbers of images. The cells
            of one that is missing are empty.
        dimensions: those of the features.
    """
    sizes: list[int | str] = [size for size, _ in curves["tuned"]]
    rows = []
    for i, size in enumerate([*sizes, ""]):
        one_over_n = 1 / size if isinstance(size, int) else 0.0
        row: dict = {"images": size, "one_over_n": one_over_n}
        for name in CURVE_COLUMNS:
            row[name] = curves[name][i][1] if size and name in curves else ""
        for name in CURVE_COLUMNS:
            row[f"{name}_line"] = ""
            if len(curves.get(name, [])) > 1:
                slope, intercept = fit_fid_line(curves[name], dimensions)
                row[f"{name}_line"] = intercept + slope * one_over_n
        rows.append(row)
    return rows


def compared_sets(
    sets: dict[str, np.ndarray], seed: int, pairing: Pairing | None = None
) -> dict[str, np.ndarray]:
    """Features of what is compared with the test tiles: the images of each model, and the floor.

    Row i of each [M, D] belongs with row i of the test tiles in the order of `align_real`.
    Arguments as in `standard_protocol`.
    """
    compared = {"tuned": sets["tuned"]}
    if "base" in sets:
        compared["base"] = sets["base"]
    tiles = floor_tiles(sets, seed, pairing)
    if tiles is not None:
        compared["floor"] = sets["train"][tiles]
    return compared


def floor_tiles(
    sets: dict[str, np.ndarray], seed: int, pairing: Pairing | None
) -> np.ndarray | None:
    """Indices [M] of the floor's training tiles, for M generated images; None: there are fewer.

    With a pairing, they are of the scenes of the test tiles whose captions the images show, as far
    as there are so many. Otherwise they are random ones.
    """
    count = len(sets["tuned"])
    if "train" not in sets or len(sets["train"]) < count:
        return None
    generator = rng(seed, "floor")
    if pairing is None:
        return np.sort(generator.permutation(len(sets["train"]))[:count])
    wanted = pairing.test_scenes[pairing.real_indices]
    return draw_in_scenes(pairing.train_scenes, wanted, generator)


def measure_floor(
    sets: dict[str, np.ndarray], seed: int, extractor: str, pairing: Pairing | None
) -> dict[str, int]:
    """n_floor and n_floor_other_scene of `standard_protocol`; logs what the floor lacks.

    Arguments as in `standard_protocol`.
    """
    tiles = floor_tiles(sets, seed, pairing)
    if tiles is None:
        if "train" in sets:
            log(
                f"fid: {len(sets['train'])} training tiles are fewer than {len(sets['tuned'])} "
                f"generated images: no real vs. real for {extractor}"
            )
        return {}
    sizes = {"n_floor": len(tiles)}
    if pairing is not None:
        others = count_other_scenes(
            pairing.train_scenes[tiles], pairing.test_scenes[pairing.real_indices]
        )
        sizes["n_floor_other_scene"] = others
        if others:
            log(
                f"fid: {others} of {len(tiles)} training tiles of real vs. real show another scene "
                f"than their test tile, as too few show its own: it is too high for {extractor}"
            )
    return sizes
