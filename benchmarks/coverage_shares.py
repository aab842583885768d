"""Coverage of the 95 % intervals of shares, scores, perplexity and ratings, by simulation.

    python -m benchmarks.coverage_shares [--repetitions 1000] [--only TEXT]

Each row draws data from a known truth again and again, and counts how often the interval holds it.
The widths are half the interval's, on average: over 1.96 true standard deviations of the estimate,
over Student's t with the same number of independent units and, of shares, over Wilson's interval.
Prints Markdown; benchmarks/results/coverage_shares.md keeps it.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from stages.evaluation.caption_agreement import share_with_interval
from stages.evaluation.intervals import wilson_interval
from stages.evaluation.memorization import memorization_scores
from stages.evaluation.scores import (
    average_over_seeds,
    bootstrap_scores,
    classification_scores,
    share_of_ceiling,
)
from stages.review import mean_realism, proportion
from stages.runtime.progress import progress_bar
from stages.text.perplexity import perplexity, perplexity_interval

Z = 1.959964
Estimate = tuple[float, float, float]  # value, lower and upper end


class Scenario(NamedTuple):
    """A known truth, and how one estimate with its interval is drawn from it."""

    title: str
    draw: Callable[[np.random.Generator], Estimate]
    units: int  # independent ones; of two kinds the number of the scarcer
    truth: float | None = None  # None: the mean of the estimates
    is_share: bool = False


class Coverage(NamedTuple):
    """What the repetitions of a scenario found."""

    truth: float
    held: float  # share of the intervals that hold the truth
    width: float  # over 1.96 true standard deviations
    width_by_t: float  # over Student's t
    width_by_wilson: float | None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage_shares",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=1000, help="of each row")
    parser.add_argument("--only", default="", help="text that the row's title must contain")
    options = parser.parse_args()
    print(f"{options.repetitions} repetitions.\n")
    print("| interval | truth | held | width / 1.96 sd | width / Student's t | width / Wilson's |")
    print("|---|---:|---:|---:|---:|---:|")
    chosen = [scenario for scenario in scenarios() if options.only in scenario.title]
    for scenario in progress_bar(chosen, desc="coverage"):
        found = measure(scenario, options.repetitions)
        wilson = "-" if found.width_by_wilson is None else f"{found.width_by_wilson:.2f}"
        print(
            f"| {scenario.title} | {found.truth:.3f} | {found.held:.3f} | {found.width:.2f} | "
            f"{found.width_by_t:.2f} | {wilson} |",
            flush=True,
        )


def measure(scenario: Scenario, repetitions: int, shrink: float = 1.0) -> Coverage:
    """Draw a scenario's interval again and again.

    Args:
        scenario: what to draw.
        repetitions: how often.
        shrink: factor by which the ends are moved toward the estimate; for tests.
    """
    generator = np.random.default_rng(0)
    drawn = np.array([scenario.draw(generator) for _ in range(repetitions)])  # [repetitions, 3]
    values = drawn[:, 0]
    low, high = values[:, None].T + shrink * (drawn[:, 1:] - values[:, None]).T
    truth = float(values.mean()) if scenario.truth is None else scenario.truth
    half_width = float((high - low).mean()) / 2
    deviation = float(values.std(ddof=1))
    by_wilson = None
    if scenario.is_share:
        effective = truth * (1 - truth) / deviation**2
        ends = wilson_interval(truth * effective, effective)
        by_wilson = 2 * half_width / (ends[1] - ends[0])
    return Coverage(
        truth,
        float(((low <= truth) & (truth <= high)).mean()),
        half_width / Z / deviation,
        half_width / stdtrit(max(scenario.units - 1, 1), 0.975) / deviation,
        by_wilson,
    )


def scenarios() -> Iterator[Scenario]:
    """All rows of the table, at the sizes of the demo (256 tiles, 70 prompts) and around them."""
    for n, p in ((256, 0.91), (256, 0.5), (256, 0.02), (1093, 0.6), (20, 0.7), (7, 0.8)):
        title = f"caption agreement, {n} images"
        yield Scenario(title, partial(draw_clustered, n, 1, p, 0.0), n, p, is_share=True)
    for prompts, images, p, correlation in (
        (70, 5, 0.74, 0.5),
        (70, 5, 0.74, 0.0),
        (70, 5, 0.95, 0.2),
        (70, 5, 0.05, 0.5),
        (10, 5, 0.5, 0.5),
        (10, 5, 0.2, 0.2),
        (5, 5, 0.5, 0.5),
    ):
        yield Scenario(
            f"class agreement, {prompts} prompts x {images} images, correlation {correlation}",
            partial(draw_clustered, prompts, images, p, correlation),
            prompts,
            p,
            is_share=True,
        )
    for held_out in (256, 50, 12):
        for copied in (0.0, 0.05, 0.3):
            expected = (1 + 0.01 * (held_out - 1)) / (held_out + 1)
            yield Scenario(
                f"near-copies, 256 images, {held_out} held out, {copied:.0%} copied",
                partial(draw_near_copies, held_out, copied),
                256,
                copied + (1 - copied) * expected,
            )
    for documents in (4, 5, 10, 50):
        for spread in (0.0, 0.5, 1.0):
            title = f"log perplexity, {documents} documents, sd of log length {spread}"
            yield Scenario(title, partial(draw_perplexity, documents, spread), documents, 4.8)
    yield from classifier_scenarios()
    for experts, expert_sd in ((1, 0.0), (2, 0.3), (3, 0.0), (3, 0.3), (5, 0.3), (5, 0.7)):
        units = 40 if experts == 1 else experts
        described = f"{experts} experts of sd {expert_sd} x 40 tiles"
        detection = partial(draw_detection, experts, expert_sd)
        truth = float(ndtr(1.0 / np.sqrt(1 + 0.7**2 + expert_sd**2)))
        yield Scenario(f"detection accuracy, {described}", detection, units, truth, is_share=True)
        yield Scenario(f"realism, {described}", partial(draw_realism, experts, expert_sd), units)


def classifier_scenarios() -> Iterator[Scenario]:
    """Classifiers of several seeds; seeds of sd 0.1 differ by about 5 points from best to worst."""
    for seeds, seed_sd in ((1, 0.0), (3, 0.0), (3, 0.1), (3, 0.3), (5, 0.1), (5, 0.3)):
        units = 100 if seeds == 1 else seeds
        for score in ("overall_accuracy", "average_accuracy", "jaccard", "f1_macro", "loss"):
            yield Scenario(
                f"{score}, {seeds} seeds of sd {seed_sd}, 100 tiles",
                partial(draw_classifiers, seeds, seed_sd, score, 100),
                units,
            )
        if seeds > 1:
            title = f"share of ceiling, {seeds} seeds of sd {seed_sd}, 100 tiles"
            yield Scenario(title, partial(draw_share_of_ceiling, seeds, seed_sd, 100), units)
    for score in ("average_accuracy", "jaccard"):
        title = f"{score}, 1 seed, 21 tiles"
        yield Scenario(title, partial(draw_classifiers, 1, 0.0, score, 21), 21)


# Shares ------------------------------------------------------------------------------------------


def draw_clustered(
    clusters: int, size: int, p: float, correlation: float, generator: np.random.Generator
) -> Estimate:
    """A share over clusters whose own shares are beta-distributed around p."""
    shares = np.full(clusters, p)
    if correlation:
        total = (1 - correlation) / correlation
        shares = generator.beta(p * total, (1 - p) * total, clusters)
    successes = generator.random((clusters, size)) < shares[:, None]
    units = np.repeat(np.arange(clusters), size)
    found = share_with_interval("share", successes.ravel(), units)
    return found["share"], found["share_lo"], found["share_hi"]


def draw_near_copies(held_out: int, copied: float, generator: np.random.Generator) -> Estimate:
    """The share of near-copies of a generator that copies some tiles and draws the others."""
    generated = np.where(generator.random(256) < copied, 0.0, 1 + generator.random(256))
    found = memorization_scores(generated, 1 + generator.random(held_out))
    return found["memorized"], found["memorized_lo"], found["memorized_hi"]


# Documents ---------------------------------------------------------------------------------------


def draw_perplexity(documents: int, spread: float, generator: np.random.Generator) -> Estimate:
    """Log perplexity of documents of log-normal length, whose own ones have an sd of 0.15."""
    lengths = 1500 * np.exp(spread * generator.normal(size=documents))
    losses = np.stack([lengths * generator.normal(4.8, 0.15, documents), lengths], axis=1)
    interval = perplexity_interval(losses)
    assert interval is not None
    return float(np.log(perplexity(losses))), float(np.log(interval[0])), float(np.log(interval[1]))


# Classifiers -------------------------------------------------------------------------------------


def draw_classifiers(
    seeds: int, seed_sd: float, score: str, n: int, generator: np.random.Generator
) -> Estimate:
    """A score averaged over classifiers that share the difficulty of 7 classes' tiles."""
    difficulty = 1.2 * generator.normal(size=n)
    draws = int(generator.integers(2**32))
    averages, _ = _average(seeds, seed_sd, 0.8, difficulty, generator, draws)
    return averages[score], averages[f"{score}_lo"], averages[f"{score}_hi"]


def draw_share_of_ceiling(
    seeds: int, seed_sd: float, n: int, generator: np.random.Generator
) -> Estimate:
    """The ratio of two accuracies on the same tiles, half of whose difficulty is common."""
    common = generator.normal(size=n)
    draws = int(generator.integers(2**32))
    found = []
    for accuracy in (0.69, 0.84):
        difficulty = 1.2 * np.sqrt(0.5) * (common + generator.normal(size=n))
        found.append(_average(seeds, seed_sd, accuracy, difficulty, generator, draws))
    (scores, samples), (ceiling, ceiling_samples) = found
    share, low, high = share_of_ceiling(scores, ceiling, samples, ceiling_samples).values()
    return share, low, high


def _average(
    seeds: int,
    seed_sd: float,
    accuracy: float,
    difficulty: np.ndarray,
    generator: np.random.Generator,
    draws: int,
) -> tuple[dict[str, float], np.ndarray]:
    """`average_over_seeds` of a probit model, and its bootstrapped accuracies [seeds, B].

    An image is right where seed + image + noise stay below a threshold. draws: seed of the
    bootstrap.
    """
    n = len(difficulty)
    labels = generator.integers(0, 7, n)
    threshold = ndtri(accuracy) * np.sqrt(1 + 1.2**2 + seed_sd**2)
    scores = []
    bootstrapped = []
    for _ in range(seeds):
        latent = threshold + seed_sd * generator.normal() + difficulty + generator.normal(size=n)
        wrong = (labels + generator.integers(1, 7, n)) % 7
        predictions = np.where(latent > 0, labels, wrong)
        losses = np.log1p(np.exp(-1.5 * latent))
        values = classification_scores(labels[None], predictions[None], losses[None], 7)
        scores.append({name: float(value[0]) for name, value in values.items()} | {"n": n})
        bootstrapped.append(
            bootstrap_scores(labels, predictions, losses, 7, np.random.default_rng(draws))
        )
    samples = np.stack([sample["overall_accuracy"] for sample in bootstrapped])
    return average_over_seeds(scores, bootstrapped), samples


# Ratings -----------------------------------------------------------------------------------------


def draw_detection(experts: int, expert_sd: float, generator: np.random.Generator) -> Estimate:
    """Detection accuracy of a probit model: expert + tile of sd 0.7 + noise."""
    latent = 1.0 + _draw_ratings(experts, expert_sd, 0.7, generator)
    ratings = _as_ratings({"answer": np.where(latent > 0, "real", "generated")})
    found = proportion("share", ratings, "answer", "truth")
    return found["share"], found["share_lo"], found["share_hi"]


def draw_realism(experts: int, expert_sd: float, generator: np.random.Generator) -> Estimate:
    """Mean realism: expert + tile of sd 0.7 + noise of sd 1 around 3.4, rounded to 1, ..., 5."""
    values = (3.4 + _draw_ratings(experts, expert_sd, 0.7, generator)).round().clip(1, 5)
    found = mean_realism(_as_ratings({"realism": values.astype(int).astype(str)}), "real")
    return found["realism_real"], found["realism_real_lo"], found["realism_real_hi"]


def _draw_ratings(
    experts: int, expert_sd: float, tile_sd: float, generator: np.random.Generator
) -> np.ndarray:
    """Sums [experts, 40] of an expert's, a tile's and a rating's deviation."""
    return (
        expert_sd * generator.normal(size=(experts, 1))
        + tile_sd * generator.normal(size=(1, 40))
        + generator.normal(size=(experts, 40))
    )


def _as_ratings(columns: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """Ratings of real tiles from {column: values [experts, tiles]}."""
    (first, *_) = columns.values()
    return [
        {"rater": str(expert), "tile": str(tile), "truth": "real"}
        | {name: str(values[expert, tile]) for name, values in columns.items()}
        for expert, tile in np.ndindex(first.shape)
    ]


if __name__ == "__main__":
    main()
