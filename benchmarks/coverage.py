"""Coverage of the 95 % intervals of distances between sets of features, by simulation.

    python -m benchmarks.coverage [--repetitions 1000] [--only TEXT]

Both sets are drawn again and again from known populations: Gaussians, pairs of a tile and an image
of its scene, whose features are clustered by scene, tiles that were cut from few sites, and
rendered tiles seen by the scene network of a finished run (models/scene), against a generator that
is off by a known amount. Counted is how
often a confidence interval holds the truth and a prediction interval, as that of the floor, holds
the value of other draws. The truth is a metric's mean over the draws; of FID infinity and of KID,
the FID and the KID of the populations. Prints Markdown; benchmarks/results/coverage.md keeps it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from stages.common.rng import rng
from stages.evaluation.frechet import Gaussian, fid, fid_curve, fit_fid_line, frechet_distance
from stages.evaluation.intervals import draw_halvings
from stages.evaluation.kernel import kid
from stages.evaluation.protocols import (
    compute_distances,
    compute_sinkhorn,
    interval_of,
    measure_halves,
    prediction_interval_of,
    variance_of,
)
from stages.runtime.damage import hash_file
from stages.runtime.process import make_parser
from stages.runtime.progress import progress_bar
from stages.runtime.resume_cache import cache_root

HALVINGS = 20  # params.yaml: fid.subsets
TILES = 12288  # the population of tiles
OTHER_DRAWS = 2  # further draws of both sets per repetition, without intervals
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


class Mixture(NamedTuple):
    """A population of features: Gaussians of one diagonal covariance."""

    centers: np.ndarray  # [K, D]
    weights: np.ndarray  # [K]
    variances: np.ndarray  # [D]


class Scenario(NamedTuple):
    """Two populations of features, and how n of each are drawn."""

    title: str
    n: int
    draw: Callable[[np.random.Generator], Sets]
    truths: Callable[[], dict[str, float]]  # of infinitely many images, by metric
    paired: bool = False  # row i of both sets is drawn together
    sites: np.ndarray | None = None  # [n] of real rows, which are alike within a site

    @property
    def freedom(self) -> int:
        """Degrees of freedom: halvings, or those of fewer sites, as in `standard_protocol`."""
        return HALVINGS if self.sites is None else min(HALVINGS, int(self.sites.max()))


class Draws(NamedTuple):
    """One metric of R repetitions of a scenario."""

    values: np.ndarray  # [R]
    halves: np.ndarray  # [R, K, 2]: of K pairs of halves of the same draws
    others: np.ndarray  # [R']: of other draws


class Coverage(NamedTuple):
    """What the repetitions of a scenario found of one metric."""

    repetitions: int
    truth: float
    held: float  # share of the confidence intervals that hold the truth
    width: float  # of them, over 2 x 1.96 true standard deviations
    predicted: float  # share of other draws in the prediction intervals


def main() -> None:
    parser = make_parser("benchmarks.coverage", __doc__)
    parser.add_argument("--repetitions", type=int, default=1000, help="of each scenario")
    parser.add_argument("--only", default="", help="text that the scenario's title must contain")
    options = parser.parse_args()
    print("| features, generator | metric | repetitions | truth | held | width | predicted |")
    print("|---|---|---:|---:|---:|---:|---:|")
    chosen = [scenario for scenario in scenarios() if options.only in scenario.title]
    for scenario in chosen:
        every_fifth = range(0, options.repetitions, SINKHORN_SHARE)
        compute = partial(compute_all, paired=scenario.paired)
        draws = simulate(scenario, range(options.repetitions), compute)
        draws |= simulate(scenario, every_fifth, compute_sinkhorn)
        for metric in METRICS:
            if metric in draws:
                print(table_row(scenario, metric, draws[metric]), flush=True)


def table_row(scenario: Scenario, metric: str, draws: Draws) -> str:
    found = summarize(scenario, metric, draws)
    return (
        f"| {scenario.title} | {metric} | {found.repetitions} | {found.truth:.3g} "
        f"| {found.held:.3f} | {found.width:.2f} | {found.predicted:.3f} |"
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
                    partial(gaussian_truths, scales),
                )
        scales = gaussian_scales(96, "log-normal", 0.0)
        yield Scenario(
            f"Gaussian, log-normal, 96 dimensions, n = {n}, 10 images per caption",
            n,
            partial(draw_gaussians, n, scales, images=10),
            partial(gaussian_truths, scales),
        )
        for kind in ("perfect", "off", "wrong scenes"):
            yield Scenario(
                f"pairs of 11 scenes, 24 dimensions, n = {n}, {kind}",
                n,
                partial(draw_pairs, n, kind),
                partial(pairs_truths, kind),
                paired=True,
            )
        if n == 256:
            yield from site_scenarios(n)
        for generator in ("equal", "half a class", "blended", "blurred", "half the classes"):
            yield Scenario(
                f"rendered tiles, n = {n}, {generator}",
                n,
                partial(draw_tiles, n, generator),
                partial(tiles_truths, generator),
            )


def simulate(
    scenario: Scenario,
    repetitions: Iterable[int],
    compute: Callable[[np.ndarray, np.ndarray], dict[str, float]],
) -> dict[str, Draws]:
    """Draw both sets of a scenario again and again; the numbers of the repetitions seed them.

    Args:
        scenario: what to draw.
        repetitions: their numbers.
        compute: the metrics of features [N, D] and [M, D].
    """
    values: dict[str, list[float]] = defaultdict(list)
    halves: dict[str, list[np.ndarray]] = defaultdict(list)
    others: dict[str, list[float]] = defaultdict(list)
    for repetition in progress_bar(repetitions, desc=scenario.title):
        generator = rng(0, scenario.title, repetition)
        real, fake = scenario.draw(generator)
        for metric, value in compute(real, fake).items():
            values[metric].append(value)
        halvings = draw_halvings(
            scenario.n, scenario.n, HALVINGS, generator, scenario.paired, scenario.sites
        )
        for metric, measured in measure_halves(compute, real, fake, halvings).items():
            halves[metric].append(measured)
        for _ in range(OTHER_DRAWS):
            for metric, value in compute(*scenario.draw(generator)).items():
                others[metric].append(value)
        dimensions = real.shape[1]
        if "fid" in values and scenario.n // 2 > dimensions:  # otherwise it has no interval
            curve = fid_curve(real, fake, generator, scenario.paired)
            values["fid_infinity"].append(fit_fid_line(curve, dimensions)[1])
    if "fid_infinity" in values:
        halves["fid_infinity"] = halves["fid"]  # as in `estimate_variances`
        others["fid_infinity"] = values["fid_infinity"]
    return {
        metric: Draws(*(np.array(drawn[metric]) for drawn in (values, halves, others)))
        for metric in values
    }


def compute_all(real: np.ndarray, fake: np.ndarray, paired: bool = False) -> dict[str, float]:
    """The metrics of all rows, CMMD among them."""
    return compute_distances(real, fake, "clip", paired)


def summarize(scenario: Scenario, metric: str, draws: Draws, shrink: float = 1.0) -> Coverage:
    """Coverage of one metric; its intervals are made `shrink` times as wide, for tests."""
    rows = []
    for value, halves in zip(draws.values, draws.halves):
        variance = variance_of(metric, halves) * shrink**2
        arguments = (metric, value, variance, scenario.freedom, scenario.n)
        rows.append((*interval_of(*arguments), *prediction_interval_of(*arguments)))
    low, high, predicted_low, predicted_high = np.array(rows).T
    everything = np.concatenate([draws.values, draws.others])
    truth = scenario.truths().get(metric, float(everything.mean()))
    inside = (predicted_low[:, None] <= draws.others) & (draws.others <= predicted_high[:, None])
    return Coverage(
        len(draws.values),
        truth,
        float(((low <= truth) & (truth <= high)).mean()),
        float((high - low).mean() / (2 * 1.96 * everything.std(ddof=1))),
        float(inside.mean()),
    )


# Truths of Gaussian mixtures --------------------------------------------------------------------


def mixture_truths(real: Mixture, fake: Mixture) -> dict[str, float]:
    kernels = [expected_kernel(*pair) for pair in ((real, real), (fake, fake), (real, fake))]
    return {
        "fid_infinity": frechet_distance(mixture_gaussian(real), mixture_gaussian(fake)),
        "kid_x1000": 1000 * (kernels[0] + kernels[1] - 2 * kernels[2]),
    }


def mixture_gaussian(mixture: Mixture) -> Gaussian:
    """Mean [D] and root [D, D] of the covariance of a mixture."""
    mean = mixture.weights @ mixture.centers
    centered = mixture.centers - mean
    covariance = centered.T @ (mixture.weights[:, None] * centered) + np.diag(mixture.variances)
    return mean, np.linalg.cholesky(covariance).T


def expected_kernel(a: Mixture, b: Mixture) -> float:
    """Mean of KID's kernel (x.y / D + 1)^3 over independent x of `a` and y of `b`.

    Around the value of two centers, x.y errs by products of normal values: their mean square and
    their mean cube follow from the variances.
    """
    dimensions = len(a.variances)
    middle = a.centers @ b.centers.T / dimensions + 1  # [K, L]
    square = (a.centers**2 @ b.variances)[:, None] + b.centers**2 @ a.variances
    square = (square + a.variances @ b.variances) / dimensions**2
    cube = 6 * (a.centers * a.variances * b.variances) @ b.centers.T / dimensions**3
    return float(a.weights @ (middle**3 + 3 * middle * square + cube) @ b.weights)


# Gaussian features ------------------------------------------------------------------------------


def gaussian_scales(dimensions: int, decay: str, distance: float) -> Scales:
    """Unequal standard deviations; for generated features, ratios and shifts of size `distance`."""
    generator = np.random.default_rng(5)
    deviations = np.exp(generator.normal(size=dimensions))
    if decay == "power law":
        deviations = np.arange(1, dimensions + 1) ** -0.5
    ratios = np.exp(distance * generator.normal(size=dimensions))
    shifts = distance * deviations * generator.normal(size=dimensions)
    return deviations, ratios, shifts


def draw_gaussians(n: int, scales: Scales, generator: np.random.Generator, images: int = 1) -> Sets:
    """n features of each set; generated ones of several images per caption share 0.7 of their
    variance, which the intervals don't know.
    """
    deviations, ratios, shifts = scales
    real, fake = generator.normal(size=(2, n, len(deviations)))
    if images > 1:
        captions = generator.normal(size=(n, len(deviations)))
        fake = np.sqrt(0.7) * captions[np.arange(n) // images] + np.sqrt(0.3) * fake
    fake = fake * deviations * ratios + shifts
    return (real * deviations).astype(np.float32), fake.astype(np.float32)


def gaussian_truths(scales: Scales) -> dict[str, float]:
    deviations, ratios, shifts = scales
    one = np.ones(1)
    return mixture_truths(
        Mixture(np.zeros((1, len(shifts))), one, deviations**2),
        Mixture(shifts[None], one, (deviations * ratios) ** 2),
    )


# Pairs of a tile and an image of its scene ------------------------------------------------------


def draw_pairs(n: int, kind: str, generator: np.random.Generator) -> Sets:
    """Features of n tiles of random scenes, and of an image of the scene of each."""
    centers, image_centers, deviation, chances = pair_populations(kind)
    scene_count, dimensions = centers.shape
    scenes = generator.integers(scene_count, size=n)
    shown = np.array([generator.choice(scene_count, p=chances[scene]) for scene in scenes])
    noise = generator.normal(size=(2, n, dimensions))
    return centers[scenes] + noise[0], image_centers[shown] + deviation * noise[1]


def pairs_truths(kind: str) -> dict[str, float]:
    centers, image_centers, deviation, chances = pair_populations(kind)
    scene_count, dimensions = centers.shape
    return mixture_truths(
        Mixture(centers, np.full(scene_count, 1 / scene_count), np.ones(dimensions)),
        Mixture(image_centers, chances.mean(0), np.full(dimensions, deviation**2)),
    )


def pair_populations(kind: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Centers [K, D] of the scenes of tiles, and of images; the images' standard deviation within
    a scene, where the tiles' is 1; and the chance [K, K] that a caption's scene gives each scene.
    """
    generator = np.random.default_rng(9)
    centers = 3 * generator.normal(size=(11, 24))
    chances = np.eye(11)
    if kind == "off":  # a little beside each scene, and less diverse
        return centers, centers + 0.5 * generator.normal(size=(11, 24)), 0.8, chances
    if kind == "wrong scenes":  # a fifth of the images, most of them of the first two scenes
        chances = 0.8 * chances + 0.2 * np.array([0.4, 0.4, *[0.2 / 9] * 9])
    return centers, centers, 1.0, chances


# Tiles of few sites ------------------------------------------------------------------------------


def site_scenarios(n: int) -> Iterator[Scenario]:
    """Sites of equal sizes, of sizes 1, 1/2, 1/3, ..., and with one that has half of the tiles."""
    for count in (4, 8, 16, 64):
        for kind, weights in (
            ("equal", np.ones(count)),
            ("equal, images of any site", np.ones(count)),
            ("equal, independent images", np.ones(count)),
            ("unequal", 1 / np.arange(1, count + 1)),
            ("one of half", np.append(count - 1, np.ones(count - 1))),
        ):
            ends = np.cumsum(weights) / weights.sum() * n
            sites = np.searchsorted(ends, np.arange(n) + 0.5)
            yield Scenario(
                f"tiles of {count} sites, 8 dimensions, n = {n}, {kind}",
                n,
                partial(draw_sites, sites, "images" in kind),
                dict,
                paired="independent" not in kind,
                sites=sites,
            )


def draw_sites(sites: np.ndarray, of_any: bool, generator: np.random.Generator) -> Sets:
    """Features of tiles of sites [n], and of an image for the caption of each.

    Half of the variance lies between sites. Images are a little less diverse than tiles, and
    beside them. They show what is common to the tile's site or, `of_any`, to a site of their own.
    """
    n = len(sites)
    of_tiles = generator.normal(size=(n, 8))[sites]
    of_images = generator.normal(size=(n, 8)) if of_any else of_tiles
    noise = generator.normal(size=(2, n, 8))
    real, fake = np.sqrt(0.5) * (np.stack([of_tiles, of_images]) + noise)
    return real, 0.9 * fake + 0.1


# Rendered tiles ---------------------------------------------------------------------------------


def draw_tiles(n: int, kind: str, generator: np.random.Generator) -> Sets:
    """Features of n tiles each, none of them twice: nearly independent, of so many tiles."""
    real, fake, choice = tile_populations(kind)
    of_real = generator.choice(len(real), n, replace=False)
    remaining = np.setdiff1d(choice, of_real)
    return real[of_real], fake[generator.choice(remaining, n, replace=False)]


@cache
def tiles_truths(kind: str) -> dict[str, float]:
    real, fake, choice = tile_populations(kind)
    order = np.concatenate([choice, np.setdiff1d(np.arange(TILES), choice)])
    return {  # no tile is drawn for both sets
        "fid_infinity": fid(real, fake[choice]),
        "kid_x1000": 1000 * kid(real[order], fake[choice], paired=True),
    }


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
    """Features [TILES, D] of tiles, of tiles blurred by half a pixel, of blends of two tiles.

    They are kept in the user's cache folder, under the hash of the scene network's weights.
    """
    from stages.evaluation.extractors import SCENE

    file = cache_root() / f"coverage/{hash_file(SCENE / 'model.safetensors')}.npz"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        np.savez(file, allow_pickle=False, **compute_tile_features())
    with np.load(file) as arrays:
        return dict(arrays)


def compute_tile_features() -> dict[str, np.ndarray]:
    import torch
    from PIL import Image, ImageFilter

    from stages.embedded.scenes import render_tiles
    from stages.evaluation.extractors import load_extractor

    rendered = render_tiles(777, 0, TILES, 64, "domain")
    tiles = [tile["image"] for tile in progress_bar(rendered, total=TILES, desc="render tiles")]
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
    extractor = load_extractor("scene")
    features: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for name, pictures in images.items():
            batches = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).split(256)
            features[name] = torch.cat([extractor(b)["features"] for b in batches]).numpy()
    return features


if __name__ == "__main__":
    main()
