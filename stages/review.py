"""The blind review: how realistic experts find the images, whether they tell generated from real.

    python -m stages.review

`python -m tools.review add ratings.csv` files the ratings that an expert sends back.

reads   metrics/review_key.csv  names this run; ratings of other runs' images are not counted
        data/reviews/*.csv      run, rater, tile, truth, answer, realism, label, label_answer,
                                artifacts, comment; a row per rated tile:
                                truth, answer        real or generated; the answer, and that for
                                                     the class, may be "can't tell"
                                realism              1 (not at all) to 5 (completely)
                                label, label_answer  class of the tile, and the one that the expert
                                                     named; may be blank
                                artifacts            any of repetition, blur, deformation,
                                                     wrong scale, separated by `;`
writes  metrics/review.json     {"ratings": 0, "experts": 0, ...} until an expert has rated

"can't tell" is neither right nor wrong: `detection_accuracy`, `class_agreement_real`,
`class_agreement_generated` and the agreement between experts are of the other answers, whose
number is their `_n`. `undecided` is the share of ratings that can't tell real from generated. `_n`
of realism is a number of tiles, not of ratings: each tile counts once.
"""

from typing import Literal

import krippendorff
import numpy as np
from scipy.special import stdtrit

from stages.common.artifacts import write_json
from stages.common.class_names import slug
from stages.evaluation.intervals import share_with_interval, squared_margin
from stages.reporting.ratings import ARTIFACTS, CANNOT_TELL, TRUTHS, Rating, read_filed, read_key
from stages.runtime.process import run_stage
from stages.runtime.progress import log


def main() -> None:
    key = read_key()
    filed = [rating for _, rating in read_filed(key)]
    ratings = [rating for rating in filed if rating["run"] == key.run]
    metrics = summarize(ratings, len(key.classes))
    metrics["ratings_of_other_runs"] = len(filed) - len(ratings)
    write_json("metrics/review.json", metrics)
    log(f"review: {len(ratings)} ratings" if ratings else "review: no ratings of this run yet")


def summarize(ratings: list[Rating], class_count: int) -> dict:
    """Compute the metrics of all experts' ratings.

    Args:
        ratings: of this run.
        class_count: number of classes that the experts could choose from.
    """
    experts = {rating["rater"].casefold() for rating in ratings}
    metrics: dict = {"ratings": len(ratings), "experts": len(experts)}
    if not ratings:
        return metrics
    for truth in TRUTHS:
        metrics |= mean_realism(ratings, truth)
    undecided = np.array([rating["answer"] == CANNOT_TELL for rating in ratings])
    metrics |= share("undecided", ratings, undecided)
    decided = [rating for rating in ratings if rating["answer"] != CANNOT_TELL]
    if decided:
        metrics |= proportion("detection_accuracy", decided, "answer", "truth")
        metrics["detection_chance"] = 0.5
    named = [rating for rating in ratings if rating["label"] and is_given(rating, "label_answer")]
    for truth in TRUTHS:
        if of_truth := [rating for rating in named if rating["truth"] == truth]:
            metrics |= proportion(f"class_agreement_{truth}", of_truth, "label_answer", "label")
            metrics["class_agreement_chance"] = 1 / class_count
    alphas = {
        "alpha_answer": krippendorff_alpha(ratings, "answer", "nominal"),
        "alpha_realism": krippendorff_alpha(ratings, "realism", "ordinal"),
        "alpha_class": krippendorff_alpha(ratings, "label_answer", "nominal"),
    }
    metrics |= {key: alpha for key, alpha in alphas.items() if alpha is not None}
    metrics["artifacts"] = {truth: artifact_shares(ratings, truth) for truth in TRUTHS}
    return metrics


def mean_realism(ratings: list[Rating], truth: str) -> dict[str, float]:
    """Return the mean realism of real or of generated tiles, with Student's 95 % interval.

    Neither several experts' ratings of one tile nor one expert's ratings of several tiles are
    independent: the interval holds the spread over tiles and that over experts. One tile alone
    says nothing of the spread: its interval is the whole scale.
    """
    of_truth = [rating for rating in ratings if rating["truth"] == truth]
    if not of_truth:
        return {}
    tiles, experts = rating_units(of_truth)
    realism = np.array([float(rating["realism"]) for rating in of_truth])
    n = int(tiles.max()) + 1
    # Each tile counts once, however many experts have rated it.
    weights = 1 / np.bincount(tiles)[tiles] / n
    mean = float((weights * realism).sum())
    margin = 4.0
    if n > 1:
        squared = squared_margin(weights * (realism - mean), tiles, experts)
        # Equal ratings do not make a mean certain: whole numbers hide a spread of 1 / sqrt(12).
        of_rounding = stdtrit(n - 1, 0.975) ** 2 / 12 / n
        margin = float(np.sqrt(max(squared, of_rounding)))
    key = f"realism_{truth}"
    return {
        key: mean,
        f"{key}_lo": max(mean - margin, 1.0),
        f"{key}_hi": min(mean + margin, 5.0),
        f"{key}_n": n,
    }


def proportion(key: str, ratings: list[Rating], given: str, right: str) -> dict[str, float]:
    """Return the share of ratings whose `given` is their `right`, with its 95 % interval."""
    return share(key, ratings, np.array([rating[given] == rating[right] for rating in ratings]))


def share(key: str, ratings: list[Rating], successes: np.ndarray) -> dict[str, float]:
    """Return the share of N ratings that are true in bool [N], with its 95 % interval.

    It is Wilson's, with the effective number of ratings, which depend on each other where they are
    of one tile or of one expert.
    """
    metrics = share_with_interval(key, successes, *rating_units(ratings))
    return metrics | {f"{key}_n": len(successes)}


def is_given(rating: Rating, field: str) -> bool:
    """Whether an answer was given: it is neither blank nor "can't tell"."""
    return rating[field] not in ("", CANNOT_TELL)


def rating_units(ratings: list[Rating]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the tile [N] and of the expert [N] of each rating, from 0."""
    _, tiles = np.unique([rating["tile"] for rating in ratings], return_inverse=True)
    raters = [rating["rater"].casefold() for rating in ratings]
    _, experts = np.unique(raters, return_inverse=True)
    return tiles, experts


def krippendorff_alpha(
    ratings: list[Rating], field: str, level: Literal["nominal", "ordinal"]
) -> float | None:
    """Return Krippendorff's alpha between the experts; 1: they agree, 0: as by chance.

    None where it is not defined: no tile was rated by two, or all gave the same value everywhere.
    """
    values = sorted({rating[field] for rating in ratings if is_given(rating, field)})
    counts_by_tile: dict[str, list[int]] = {}
    for rating in ratings:
        if is_given(rating, field):
            counts = counts_by_tile.setdefault(rating["tile"], [0] * len(values))
            counts[values.index(rating[field])] += 1
    shared = [counts for counts in counts_by_tile.values() if sum(counts) > 1]
    if not shared:
        return None
    value_counts = np.array(shared)  # [tiles, values]
    if (value_counts.sum(0) > 0).sum() < 2:
        return None
    domain = [int(value) for value in values] if level == "ordinal" else None
    alpha = krippendorff.alpha(
        value_counts=value_counts, value_domain=domain, level_of_measurement=level
    )
    return float(alpha)


def artifact_shares(ratings: list[Rating], truth: str) -> dict[str, dict[str, float]]:
    """Return slug of a class -> share of its ratings that name each artifact, and their number `n`.

    Args:
        ratings: of this run.
        truth: real or generated, whose ratings count.
    """
    shares = {}
    for label in sorted({rating["label"] for rating in ratings if rating["label"]}):
        named = [
            {artifact.strip() for artifact in rating["artifacts"].split(";")}
            for rating in ratings
            if rating["truth"] == truth and rating["label"] == label
        ]
        if named:
            shares[slug(label)] = {
                artifact.replace(" ", "_"): sum(artifact in each for each in named) / len(named)
                for artifact in ARTIFACTS
            }
            shares[slug(label)]["n"] = len(named)
    return shares


if __name__ == "__main__":
    run_stage(main, __doc__)
