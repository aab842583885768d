"""Coverage of the 95 % intervals of distances between sets of features, by simulation.

    python -m benchmarks.coverage [--repetitions 1000] [--only TEXT]

Both sets are drawn again and again from known populations: Gaussians, and rendered tiles seen by
the scene network of a finished run (models/scene), against a generator that is off by a known
amount. Counted is how often a confidence interval holds the truth and a prediction interval, as
that of the floor, holds the value of other draws. The truth is a metric's mean over the draws; of
FID infinity, the FID of the populations. Prints Markdown; benchmarks/results/coverage.md keeps it.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from stages.evaluation.frechet import fid, fid_curve, fid_infinity
from stages.evaluation.intervals import draw_halvings
from stages.evaluation.protocols import (
    compute_distances,
    compute_sinkhorn,
    halving_variances,
    interval_of,
    prediction_interval_of,
)
from stages.runtime.progress import progress_bar

HALVINGS = 20  # params.yaml: fid.subsets
TILES = 12288  # the population of tiles
OTHER_DRAWS = 4  # of both sets, without intervals, for each with intervals
SINKHORN_SHARE = 5  # Sinkhorn is slow: every fifth repetition measures it
METRICS = (
    "fid",
    "fid_infinity",
    "kid_x1000",
    "precision",
    "recall",
    "density",
    "coverage",
    "cmmd",
    "sinkhorn",
)
Sets = tuple[np.ndarray, np.ndarray]  # features of real and of generated images
# Standard deviations [D] of real features, and ratios of them and shifts [D] of generated ones.
Scales = tuple[np.ndarray, np.ndarray, np.ndarray]


class Scenario(NamedTuple):
    """Two populations of features, and how n of each are drawn."""

    title: str
    n: int
    draw: Callable[[np.random.Generator], Sets]
    population_fid: Callable[[], float]


class Coverage(NamedTuple):
    """What the repetitions of a scenario found of one metric."""

    truth: float
    held: float  # share of the confidence intervals that hold the truth
    width: float  # of them, over 2 x 1.96 true standard deviations
    predicted: float  # share of other draws in the prediction intervals


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=1000, help="of each scenario")
    parser.add_argument("--only", default="", help="text that the scenario's title must contain")
    options = parser.parse_args()
    print("| features, generator | repetitions | metric | truth | held | width | predicted |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for scenario in scenarios():
        if options.only not in scenario.title:
            continue
        for metric, found in simulate(scenario, options.repetitions, METRICS).items():
            print(
                f"| {scenario.title} | {options.repetitions} | {metric} | {found.truth:.3g} "
                f"| {found.held:.3f} | {found.width:.2f} | {found.predicted:.3f} |",
                flush=True,
            )


def scenarios() -> Iterator[Scenario]:
    """At the sizes of the demo (256) and of RSICD (1,093), near the floor and far from it."""
    for n in (256, 1093):
        for dimensions, decay in ((96, "log-normal"), (256, "power law")):
            for distance in (0.0, 0.1, 0.3):
                scales = gaussian_scales(dimensions, decay, distance)
                yield Scenario(
                    f"Gaussian, {decay}, {dimensions} dimensions, n = {n}, distance {distance}",
                    n,
                    partial(draw_gaussians, n, scales),
                    partial(gaussian_fid, scales),
                )
        for generator in ("equal", "half a class", "blended", "blurred", "half the classes"):
            yield Scenario(
                f"rendered tiles, n = {n}, {generator}",
                n,
                partial(draw_tiles, n, generator),
                partial(tiles_fid, generator),
            )


def simulate(
    scenario: Scenario, repetitions: int, metrics: tuple[str, ...], shrink: float = 1.0
) -> dict[str, Coverage]:
    """Draw both sets of a scenario again and again.

    Args:
        scenario: what to draw.
        repetitions: how often, with intervals.
        metrics: those to measure.
        shrink: factor of the standard errors behind the intervals; for tests.
    """
    generator = np.random.default_rng(0)
    drawn: dict[str, list[tuple[float, ...]]] = {metric: [] for metric in metrics}
    others: dict[str, list[float]] = {metric: [] for metric in metrics}
    for repetition in progress_bar(range(repetitions), desc=scenario.title):
        real, fake = scenario.draw(generator)
        with_sinkhorn = "sinkhorn" in metrics and repetition % SINKHORN_SHARE == 0
        values, variances = measure(real, fake, with_sinkhorn, generator)
        for metric in values.keys() & drawn.keys():
            variance = variances[metric] * shrink**2
            arguments = (metric, values[metric], variance, HALVINGS, scenario.n)
            drawn[metric].append(
                (values[metric], *interval_of(*arguments), *prediction_interval_of(*arguments))
            )
        for _ in range(OTHER_DRAWS):
            real, fake = scenario.draw(generator)
            other = compute_distances(real, fake, "clip")
            if with_sinkhorn:
                other |= compute_sinkhorn(real, fake)
            for metric in other.keys() & others.keys():
                others[metric].append(other[metric])
    found = {}
    for metric in metrics:
        truth = scenario.population_fid() if metric == "fid_infinity" else None
        found[metric] = summarize(np.array(drawn[metric]), np.array(others[metric]), truth)
    return found


def measure(
    real: np.ndarray, fake: np.ndarray, with_sinkhorn: bool, generator: np.random.Generator
) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of two sets of features, and the variance of each."""
    computations: list[Callable[[np.ndarray, np.ndarray], dict[str, float]]]
    computations = [partial(compute_distances, extractor="clip")]
    if with_sinkhorn:
        computations.append(compute_sinkhorn)
    values = {"fid_infinity": fid_infinity(fid_curve(real, fake, generator), real.shape[1])}
    variances: dict[str, float] = {}
    for compute in computations:
        values |= compute(real, fake)
        halvings = draw_halvings(len(real), len(fake), HALVINGS, generator)
        variances |= halving_variances(compute, real, fake, halvings)
    return values, variances | {"fid_infinity": variances["fid"]}


def summarize(drawn: np.ndarray, others: np.ndarray, truth: float | None) -> Coverage:
    """Coverage of one metric.

    Args:
        drawn: value, interval and prediction interval [R, 5] of each repetition.
        others: values of other draws; none of FID infinity, whose values among `drawn` serve.
        truth: None for the mean of all values.
    """
    values, low, high, predicted_low, predicted_high = drawn.T
    if not len(others):
        others = values
    everything = np.concatenate([values, others])
    truth = float(everything.mean()) if truth is None else truth
    inside = (predicted_low[:, None] <= others) & (others <= predicted_high[:, None])
    return Coverage(
        truth,
        float(((low <= truth) & (truth <= high)).mean()),
        float((high - low).mean() / (2 * 1.96 * everything.std(ddof=1))),
        float(inside.mean()),
    )


# Gaussian features ------------------------------------------------------------------------------


def gaussian_scales(dimensions: int, decay: str, distance: float) -> Scales:
    """Unequal standard deviations, and generated features at a distance; decay: their kind."""
    generator = np.random.default_rng(5)
    deviations = np.exp(generator.normal(size=dimensions))
    if decay == "power law":
        deviations = np.arange(1, dimensions + 1) ** -0.5
    ratios = np.exp(distance * generator.normal(size=dimensions))
    shifts = distance * deviations * generator.normal(size=dimensions)
    return deviations, ratios, shifts


def draw_gaussians(n: int, scales: Scales, generator: np.random.Generator) -> Sets:
    deviations, ratios, shifts = scales
    real, fake = generator.normal(size=(2, n, len(deviations))) * deviations
    return real.astype(np.float32), (fake * ratios + shifts).astype(np.float32)


def gaussian_fid(scales: Scales) -> float:
    deviations, ratios, shifts = scales
    return float((shifts**2 + (deviations - deviations * ratios) ** 2).sum())


# Rendered tiles ---------------------------------------------------------------------------------


def draw_tiles(n: int, kind: str, generator: np.random.Generator) -> Sets:
    """Features of n tiles each, none of them twice; from so many tiles they are nearly fresh."""
    real, fake, choice = tile_populations(kind)
    chosen = generator.choice(choice, n, replace=False)
    remaining = np.setdiff1d(np.arange(len(real)), chosen)
    return real[generator.choice(remaining, n, replace=False)], fake[chosen]


def tiles_fid(kind: str) -> float:
    real, fake, choice = tile_populations(kind)
    return fid(real, fake[choice])


def tile_populations(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of real and of generated tiles, and the indices of those that are generated."""
    features = tile_features()
    scenes = np.arange(TILES) % 12
    second_half = np.arange(TILES) // 12 % 2 == 1
    everything = np.arange(TILES)
    if kind == "half a class":
        everything = np.flatnonzero((scenes != 3) | second_half)
    if kind == "half the classes":
        everything = np.flatnonzero(scenes % 2 == 0)
    fake = features["plain"]
    if kind == "blurred":
        fake = features["blurred"]
    if kind == "blended":
        blended = np.random.default_rng(1).random(TILES) < 0.1
        fake = np.where(blended[:, None], features["blended"], fake)
    return features["plain"], fake, everything


@cache
def tile_features() -> dict[str, np.ndarray]:
    """Features [TILES, D] of tiles, of tiles blurred by half a pixel, of blends of two tiles."""
    import torch
    from PIL import Image, ImageFilter

    from stages.embedded.scenes import render_tiles
    from stages.evaluation.extractors import SceneExtractor

    tiles = [
        tile["image"]
        for tile in progress_bar(
            render_tiles(777, 0, TILES, 64, "domain"), total=TILES, desc="render tiles"
        )
    ]
    order = np.random.default_rng(0).permutation(TILES)
    blur = ImageFilter.GaussianBlur(0.5)
    images = {
        "plain": tiles,
        "blurred": [np.asarray(Image.fromarray(tile).filter(blur)) for tile in tiles],
        "blended": [
            ((tile.astype(np.uint16) + tiles[other]) // 2).astype(np.uint8)
            for tile, other in zip(tiles, order)
        ],
    }
    extractor = SceneExtractor()
    extractor.eval()
    features: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for name, pictures in images.items():
            batches = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).split(256)
            features[name] = torch.cat([extractor(b)["features"] for b in batches]).numpy()
    return features


if __name__ == "__main__":
    main()
