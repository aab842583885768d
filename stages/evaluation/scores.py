"""What a classifier scored, and how sure that is: the size of the test set, and the spread over several classifiers."""

import numpy as np
from scipy.special import stdtrit

from stages.evaluation.intervals import wilson

DRAWS = 500  # of the test images with replacement


def scores_of(
    labels: np.ndarray, guesses: np.ndarray, losses: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Scores [B] of B test sets of N images: labels, guesses [B, N] class numbers; losses [B, N].

    average_accuracy: the mean over classes that have images. f1 is micro-averaged, hence the overall accuracy, as TorchGeo
    and the paper have it; jaccard and f1_macro: means over classes that have images or are guessed.
    """
    b, n = labels.shape
    cells = (np.arange(b)[:, None] * classes + labels) * classes + guesses
    confusion = np.bincount(cells.ravel(), minlength=b * classes * classes).reshape(
        b, classes, classes
    )  # actual, guessed
    right, actual, guessed = (
        confusion.diagonal(axis1=1, axis2=2),
        confusion.sum(2),
        confusion.sum(1),
    )  # each [B, K]
    either = actual + guessed

    def mean(shares: np.ndarray, counted: np.ndarray) -> np.ndarray:
        return np.where(counted, shares, 0).sum(1) / counted.sum(1)

    overall = right.sum(1) / n
    return {
        "loss": losses.mean(1),
        "average_accuracy": mean(right / actual.clip(1), actual > 0),
        "f1": overall,
        "jaccard": mean(right / (either - right).clip(1), either > 0),
        "overall_accuracy": overall,
        "f1_macro": mean(2 * right / either.clip(1), either > 0),
    }


def errors_of(
    labels: np.ndarray,
    guesses: np.ndarray,
    losses: np.ndarray,
    classes: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Standard error of each score from the size of the test set [N]: its spread over bootstrap draws of the images."""
    drawn = rng.integers(len(labels), size=(DRAWS, len(labels)))
    found = scores_of(labels[drawn], guesses[drawn], losses[drawn], classes)
    return {name: float(values.std(ddof=1)) for name, values in found.items()}


def pooled(outcomes: list, test: str) -> dict[str, float]:
    """The mean of each score over the classifiers, its standard deviation over them, and a 95 % interval.

    The interval holds the size of the test set (accuracies: Wilson, never empty; the rest: bootstrap) and, with several
    classifiers, their spread (Student's t).
    """
    scores, errors = (
        [outcome.scores[test] for outcome in outcomes],
        [outcome.errors[test] for outcome in outcomes],
    )
    n, count, result = scores[0]["n"], len(scores), {"n": scores[0]["n"]}
    for name in errors[0]:
        values = np.array([score[name] for score in scores])
        mean, error = float(values.mean()), 1.96 * float(np.mean([each[name] for each in errors]))
        lo, hi = mean - error, mean + error
        if name in ("overall_accuracy", "f1"):
            lo, hi = wilson(round(mean * n), n)
        spread = 0.0
        if count > 1:
            result[f"{name}_std"] = float(values.std(ddof=1))
            spread = stdtrit(count - 1, 0.975) * result[f"{name}_std"] / np.sqrt(count)
        result |= {
            name: mean,
            f"{name}_lo": max(float(mean - np.hypot(mean - lo, spread)), 0.0),
            f"{name}_hi": min(
                float(mean + np.hypot(hi - mean, spread)), np.inf if name == "loss" else 1.0
            ),
        }
    return result


def share_of_ceiling(scores: dict[str, float], ceiling: dict[str, float]) -> dict[str, float]:
    """Overall accuracy relative to the ceiling's, with a 95 % interval that holds both of theirs (errors of the logarithm).

    Nothing where one of the accuracies is 0 and no ratio has a meaning.
    """
    (ours, lo, hi), (top, top_lo, top_hi) = (
        [each[f"overall_accuracy{end}"] for end in ("", "_lo", "_hi")] for each in (scores, ceiling)
    )
    if not ours * lo * top * top_lo:
        return {}
    share, below, above = (
        ours / top,
        np.hypot(np.log(ours / lo), np.log(top_hi / top)),
        np.hypot(np.log(hi / ours), np.log(top / top_lo)),
    )
    return {
        "share_of_ceiling": share,
        "share_of_ceiling_lo": float(share * np.exp(-below)),
        "share_of_ceiling_hi": float(share * np.exp(above)),
    }
