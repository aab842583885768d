"""Coverage of the 95 % intervals of shares, scores, perplexity and ratings, by simulation.

    python -m benchmarks.coverage_shares [--repetitions 1000] [--only TEXT]

Each row draws data from a known truth again and again, and counts how often the interval holds it.
The widths are half the interval's, on average: over 1.96 true standard deviations of the estimate,
over Student's t with the same number of independent units and, of shares, over Wilson's interval.
Prints Markdown; benchmarks/results/coverage_shares.md keeps it.

Classifiers differ from seed to seed as 20 real ones do: `python -m benchmarks.classifier_variances`
measures them. Their scores are bootstrapped 100 times here, 500 times in a run.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from stages.common.artifacts import read_json
from stages.evaluation import scores as evaluation_scores
from stages.evaluation.caption_agreement import clip_score_with_interval
from stages.evaluation.intervals import Z, share_with_interval, wilson_interval
from stages.evaluation.memorization import memorization_scores
from stages.evaluation.scores import (
    accuracy_by_class,
    average_over_seeds,
    bootstrap_scores,
    class_accuracy,
    classification_scores,
    share_of_ceiling,
)
from stages.review import mean_realism, proportion
from stages.runtime.process import make_parser
from stages.runtime.progress import progress_bar
from stages.text.perplexity import perplexity, perplexity_interval

VARIANCES = Path(__file__).parent / "results/classifier_variances.json"
SCORES = ("overall_accuracy", "average_accuracy", "jaccard", "f1_macro", "loss")
Estimate = tuple[float, float, float]  # value, lower and upper end


class Scenario(NamedTuple):
    """A known truth, and how estimates with their intervals are drawn from it."""

    title: str
    draw: Callable[[np.random.Generator], dict[str, Estimate]]  # by name
    units: int  # independent ones; where there are two kinds, the smaller number
    truth: float | None = None  # None: the mean of the estimates
    is_share: bool = False


class Coverage(NamedTuple):
    """What the repetitions of a scenario found of one estimate."""

    truth: float
    held: float  # share of the intervals that hold the truth
    width: float  # over 1.96 true standard deviations
    width_by_t: float  # over Student's t
    width_by_wilson: float | None


class ClassifierModel(NamedTuple):
    """The probit model of benchmarks.classifier_variances: standard deviations of its parts."""

    class_shares: list[float]  # of the images
    class_accuracies: list[float]
    seed_sd: float
    seed_class_sd: float
    image_sd: float


def main() -> None:
    parser = make_parser("benchmarks.coverage_shares", __doc__)
    parser.add_argument("--repetitions", type=int, default=1000, help="of each row")
    parser.add_argument("--only", default="", help="text that the row's title must contain")
    options = parser.parse_args()
    evaluation_scores.BOOTSTRAP_SAMPLES = 100
    print(f"{options.repetitions} repetitions.\n")
    print("| interval | truth | held | width / 1.96 sd | width / Student's t | width / Wilson's |")
    print("|---|---:|---:|---:|---:|---:|")
    chosen = [scenario for scenario in scenarios() if options.only in scenario.title]
    for scenario in progress_bar(chosen, desc="coverage"):
        for name, found in measure(scenario, options.repetitions).items():
            wilson = "-" if found.width_by_wilson is None else f"{found.width_by_wilson:.2f}"
            print(
                f"| {name}, {scenario.title} | {found.truth:.3f} | {found.held:.3f} | "
                f"{found.width:.2f} | {found.width_by_t:.2f} | {wilson} |",
                flush=True,
            )


def measure(scenario: Scenario, repetitions: int, shrink: float = 1.0) -> dict[str, Coverage]:
    """Draw a scenario's intervals again and again.

    Args:
        scenario: what to draw.
        repetitions: how often.
        shrink: factor by which the ends are moved toward the estimate; for tests.
    """
    generator = np.random.default_rng(0)
    drawn = [scenario.draw(generator) for _ in range(repetitions)]
    return {
        name: _coverage(scenario, np.array([estimates[name] for estimates in drawn]), shrink)
        for name in drawn[0]
    }


def _coverage(scenario: Scenario, estimates: np.ndarray, shrink: float) -> Coverage:
    """What `estimates` [repetitions, 3] found."""
    values = estimates[:, 0]
    low, high = values + shrink * (estimates[:, 1:].T - values)
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
        draw = partial(draw_clustered, "caption agreement", n, 1, p, 0.0)
        yield Scenario(f"{n} images", draw, n, p, is_share=True)
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
            f"{prompts} prompts x {images} images, correlation {correlation}",
            partial(draw_clustered, "class agreement", prompts, images, p, correlation),
            prompts,
            p,
            is_share=True,
        )
    for captions, images in ((256, 1), (30, 10), (5, 10)):
        draw = partial(draw_clip_scores, captions, images)
        yield Scenario(f"{captions} captions x {images} images", draw, captions)
    for held_out in (256, 50, 12):
        for copied in (0.0, 0.05, 0.3):
            expected = (1 + 0.01 * (held_out - 1)) / (held_out + 1)
            yield Scenario(
                f"256 images, {held_out} held out, {copied:.0%} copied",
                partial(draw_near_copies, held_out, copied),
                256,
                copied + (1 - copied) * expected,
                is_share=True,
            )
    for documents in (4, 5, 10, 50):
        for spread, by_length in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.5)):
            title = f"{documents} documents, sd of log length {spread}"
            if by_length:
                title += ", short ones vary more"
            draw = partial(draw_perplexity, documents, spread, by_length)
            yield Scenario(title, draw, documents, 4.8)
    yield from rating_scenarios()
    yield from classifier_scenarios()


def rating_scenarios() -> Iterator[Scenario]:
    """Experts who rate the same 40 tiles; their habits vary by a standard deviation."""
    for experts, expert_sd in (
        (1, 0.0),
        (2, 0.0),
        (2, 0.3),
        (2, 0.7),
        (3, 0.0),
        (3, 0.3),
        (5, 0.0),
        (5, 0.3),
        (5, 0.7),
    ):
        units = 40 if experts == 1 else experts
        title = f"{experts} experts of sd {expert_sd} x 40 tiles"
        truth = float(ndtr(1.0 / np.sqrt(1 + 0.7**2 + expert_sd**2)))
        detection = partial(draw_detection, experts, expert_sd)
        yield Scenario(title, detection, units, truth, is_share=True)
        yield Scenario(title, partial(draw_realism, experts, expert_sd), units)


def classifier_scenarios() -> Iterator[Scenario]:
    """Classifiers of several seeds, with the variances of 20 real trainings; one row stresses."""
    variances = read_json(VARIANCES)
    classify, ceiling = (
        ClassifierModel(variances["class_shares"], **variances[name])
        for name in ("classify", "ceiling")
    )
    for tiles in (21, 186):
        given = classify._replace(seed_sd=0.0, seed_class_sd=0.0)
        title = f"1 given classifier, {tiles} tiles"
        yield Scenario(title, partial(draw_classifiers, given, 1, tiles), tiles)
    for accuracy in (0.65, 0.9):
        draw = partial(draw_class_accuracy, given, 1, 49, accuracy)
        yield Scenario("1 given classifier, 49 tiles of a class", draw, 49, accuracy)
        for seeds, tiles in ((3, 20), (3, 49), (3, 200), (5, 49), (5, 200)):
            draw = partial(draw_class_accuracy, classify, seeds, tiles, accuracy)
            title = f"{seeds} classifiers, {tiles} tiles of a class"
            yield Scenario(title, draw, seeds, accuracy)
    for seeds, tiles in ((2, 186), (3, 186), (5, 186), (2, 1093), (3, 1093)):
        title = f"{seeds} classifiers, {tiles} tiles"
        yield Scenario(title, partial(draw_classifiers, classify, seeds, tiles), seeds)
    for seeds in (2, 3, 5):
        title = f"{seeds} classifiers trained on real tiles, 186 tiles"
        yield Scenario(title, partial(draw_classifiers, ceiling, seeds, 186), seeds)
    for rare in (1, 2, 3, 5, 10):
        title = f"3 classifiers, 186 tiles, {rare} of the last class"
        draw = partial(draw_classifiers, classify, 3, 186, rare=rare)
        yield Scenario(title, draw, 3)
    for scenes in (6, 12, 30):
        title = f"3 classifiers, 186 tiles of {scenes} scenes"
        draw = partial(draw_classifiers, classify, 3, 186, scenes=scenes)
        yield Scenario(title, draw, min(3, scenes))
    stressed = classify._replace(seed_sd=0.3)
    title = "3 classifiers of seeds of sd 0.3, 186 tiles"
    yield Scenario(title, partial(draw_classifiers, stressed, 3, 186), 3)
    for seeds in (2, 3, 5):
        models = (classify, ceiling)
        draw = partial(draw_share_of_ceiling, models, variances["shared_difficulty"], seeds, 186)
        yield Scenario(f"{seeds} classifiers of each kind, 186 tiles", draw, seeds)
    for scenes in (6, 12, 30):
        shared = variances["shared_difficulty"]
        draw = partial(draw_share_of_ceiling, (classify, ceiling), shared, 3, 186, scenes=scenes)
        title = f"3 classifiers of each kind, 186 tiles of {scenes} scenes"
        yield Scenario(title, draw, min(3, scenes))


# Shares ------------------------------------------------------------------------------------------


def draw_clustered(
    name: str,
    clusters: int,
    size: int,
    p: float,
    correlation: float,
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """A share over clusters whose own shares are beta-distributed around p."""
    shares = np.full(clusters, p)
    if correlation:
        total = (1 - correlation) / correlation
        shares = generator.beta(p * total, (1 - p) * total, clusters)
    successes = generator.random((clusters, size)) < shares[:, None]
    units = np.repeat(np.arange(clusters), size)
    found = share_with_interval("share", successes.ravel(), units)
    return {name: estimate_of(found, "share")}


def draw_clip_scores(
    captions: int, images: int, generator: np.random.Generator
) -> dict[str, Estimate]:
    """CLIP score of images that lie near their caption's embedding, of some captions nearer."""
    texts = np.repeat(generator.normal(size=(captions, 64)), images, axis=0)
    nearness = np.repeat(1 + 0.3 * generator.normal(size=(captions, 1)), images, axis=0)
    embeddings = nearness * texts + generator.normal(size=texts.shape)
    units = np.repeat(np.arange(captions), images)
    found = clip_score_with_interval(embeddings, texts, units)
    return {"CLIP score": estimate_of(found, "clip_score")}


def draw_near_copies(
    held_out: int, copied: float, generator: np.random.Generator
) -> dict[str, Estimate]:
    """The share of near-copies of a generator that copies some tiles and draws the others."""
    generated = np.where(generator.random(256) < copied, 0.0, 1 + generator.random(256))
    found = memorization_scores(generated, 1 + generator.random(held_out))
    return {"near-copies": estimate_of(found, "memorized")}


def estimate_of(metrics: dict[str, float], key: str) -> Estimate:
    """A metric with the ends of its interval."""
    return metrics[key], metrics[f"{key}_lo"], metrics[f"{key}_hi"]


# Documents ---------------------------------------------------------------------------------------


def draw_perplexity(
    documents: int, spread: float, by_length: float, generator: np.random.Generator
) -> dict[str, Estimate]:
    """Log perplexity of documents of log-normal length, whose own ones have an sd of 0.15.

    by_length: share of their variance that falls as 1 / length, as the noise of single tokens does.
    """
    lengths = 1500 * np.exp(spread * generator.normal(size=documents))
    deviations = 0.15 * np.sqrt(1 - by_length + by_length * 1500 / lengths)
    losses = np.stack([lengths * generator.normal(4.8, deviations), lengths], axis=1)
    interval = perplexity_interval(losses)
    assert interval is not None
    low, high = np.log(interval)
    return {"log perplexity": (float(np.log(perplexity(losses))), float(low), float(high))}


# Classifiers -------------------------------------------------------------------------------------


def draw_classifiers(
    model: ClassifierModel,
    seeds: int,
    n: int,
    generator: np.random.Generator,
    rare: int | None = None,
    scenes: int | None = None,
) -> dict[str, Estimate]:
    """Scores averaged over classifiers that are tested on the same n images.

    Args:
        model: of the classifiers.
        seeds: their number.
        n: images.
        generator: draws.
        rare: of the last class there are so many images.
        scenes: as for `draw_tiles`.
    """
    shares = model.class_shares if rare is None else model.class_shares[:-1]
    labels, units = draw_tiles(shares, n, scenes, generator)
    if rare is not None:
        labels[:rare] = len(shares)
    difficulty = draw_difficulty(units, generator)
    draws = int(generator.integers(2**32))
    averages, _ = _average(model, seeds, labels, difficulty, generator, draws, units)
    return {score: estimate_of(averages, score) for score in SCORES}


def draw_class_accuracy(
    model: ClassifierModel, seeds: int, n: int, accuracy: float, generator: np.random.Generator
) -> dict[str, Estimate]:
    """Accuracy of classifiers on the same n images of a class, on average `accuracy`."""
    of_seed = np.hypot(model.seed_sd, model.seed_class_sd) * generator.normal(size=(seeds, 1))
    of_image = model.image_sd * generator.normal(size=n)
    threshold = ndtri(accuracy) * np.sqrt(
        1 + model.seed_sd**2 + model.seed_class_sd**2 + model.image_sd**2
    )
    latent = threshold + of_seed + of_image + generator.normal(size=(seeds, n))
    found = class_accuracy(latent > 0, np.arange(n))
    return {"accuracy": estimate_of(found, "accuracy")}


def draw_share_of_ceiling(
    models: tuple[ClassifierModel, ClassifierModel],
    shared_difficulty: float,
    seeds: int,
    n: int,
    generator: np.random.Generator,
    scenes: int | None = None,
) -> dict[str, Estimate]:
    """The ratio of two accuracies on the same images, which may be difficult for both."""
    labels, units = draw_tiles(models[0].class_shares, n, scenes, generator)
    common = draw_difficulty(units, generator)
    draws = int(generator.integers(2**32))
    found = []
    for model in models:
        own = draw_difficulty(units, generator)
        difficulty = np.sqrt(shared_difficulty) * common + np.sqrt(1 - shared_difficulty) * own
        found.append(_average(model, seeds, labels, difficulty, generator, draws, units))
    (scores, samples), (ceiling, ceiling_samples) = found
    share = share_of_ceiling(scores, ceiling, samples, ceiling_samples)
    return {"share of ceiling": estimate_of(share, "share_of_ceiling")}


def draw_tiles(
    shares: list[float], n: int, scenes: int | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers and numbers of the scenes of n tiles, [n] each.

    The tiles of one of `scenes` scenes are of one class. None: each tile is its own scene.
    """
    units = np.arange(n) * (scenes or n) // n
    return generator.choice(len(shares), units.max() + 1, p=normalized(shares))[units], units


def draw_difficulty(units: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Standard normal [N], of whose variance the tiles of one scene share half."""
    of_tile = generator.normal(size=len(units))
    if units.max() + 1 == len(units):
        return of_tile
    of_scene = generator.normal(size=units.max() + 1)[units]
    return np.sqrt(0.5) * (of_tile + of_scene)


def normalized(shares: list[float]) -> np.ndarray:
    """Shares whose sum is 1."""
    return np.array(shares) / sum(shares)


def _average(
    model: ClassifierModel,
    seeds: int,
    labels: np.ndarray,
    difficulty: np.ndarray,
    generator: np.random.Generator,
    draws: int,
    units: np.ndarray,
) -> tuple[dict[str, float], np.ndarray]:
    """`average_over_seeds` of classifiers as the model has them, and their accuracies [seeds, B].

    Args:
        model: of the classifiers.
        seeds: their number.
        labels: class numbers [N].
        difficulty: standard normal [N].
        generator: draws the rest.
        draws: seed of the bootstrap.
        units: what the interval takes as independent [N].
    """
    n = len(labels)
    class_count = len(model.class_shares)
    total = 1 + model.seed_sd**2 + model.seed_class_sd**2 + model.image_sd**2  # variance
    thresholds = ndtri(np.array(model.class_accuracies)) * np.sqrt(total)  # [K]
    scores = []
    bootstrapped = []
    by_class = []
    sizes = {"n": n, "n_units": len(np.unique(units))}
    for _ in range(seeds):
        of_class = thresholds + model.seed_sd * generator.normal()
        of_class = of_class + model.seed_class_sd * generator.normal(size=class_count)
        latent = of_class[labels] + model.image_sd * difficulty + generator.normal(size=n)
        wrong = (labels + generator.integers(1, class_count, n)) % class_count
        predictions = np.where(latent > 0, labels, wrong)
        losses = np.log1p(np.exp(-1.5 * latent))
        values = classification_scores(labels[None], predictions[None], losses[None], class_count)
        scores.append({name: float(value[0]) for name, value in values.items()} | sizes)
        redrawn = np.random.default_rng(draws)
        bootstrapped.append(
            bootstrap_scores(labels, predictions, losses, class_count, redrawn, units)
        )
        by_class.append(accuracy_by_class(labels, predictions, class_count, units))
    samples = np.stack([sample["overall_accuracy"] for sample in bootstrapped])
    return average_over_seeds(scores, bootstrapped, by_class), samples


# Ratings -----------------------------------------------------------------------------------------


def draw_detection(
    experts: int, expert_sd: float, generator: np.random.Generator
) -> dict[str, Estimate]:
    """Detection accuracy of a probit model: expert + tile of sd 0.7 + noise."""
    latent = 1.0 + _draw_ratings(experts, expert_sd, generator)
    ratings = _as_ratings({"answer": np.where(latent > 0, "real", "generated")})
    found = proportion("share", ratings, "answer", "truth")
    return {"detection accuracy": estimate_of(found, "share")}


def draw_realism(
    experts: int, expert_sd: float, generator: np.random.Generator
) -> dict[str, Estimate]:
    """Mean realism: expert + tile of sd 0.7 + noise of sd 1 around 3.4, rounded to 1, ..., 5."""
    values = (3.4 + _draw_ratings(experts, expert_sd, generator)).round().clip(1, 5)
    found = mean_realism(_as_ratings({"realism": values.astype(int).astype(str)}), "real")
    return {"realism": estimate_of(found, "realism_real")}


def _draw_ratings(experts: int, expert_sd: float, generator: np.random.Generator) -> np.ndarray:
    """Sums [experts, 40] of an expert's, a tile's and a rating's deviation."""
    return (
        expert_sd * generator.normal(size=(experts, 1))
        + 0.7 * generator.normal(size=(1, 40))
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
