"""Scores of a classifier, and their uncertainty: from the size of the test set, and over seeds."""

import numpy as np
from scipy.special import stdtrit

from stages.evaluation.intervals import wilson_interval

BOOTSTRAP_SAMPLES = 500


def classification_scores(
    labels: np.ndarray, predictions: np.ndarray, losses: np.ndarray, class_count: int
) -> dict[str, np.ndarray]:
    """Scores [B] of B test sets of N images.

    average_accuracy is the mean over the classes that have images. f1 is micro-averaged, hence
    equal to the overall accuracy, as TorchGeo and the paper have it. jaccard and f1_macro are means
    over the classes that have images or are predicted.

    Args:
        labels: class numbers [B, N].
        predictions: class numbers [B, N].
        losses: cross-entropy [B, N] of each image.
        class_count: number of classes K.
    """
    set_count, n = labels.shape
    # Index [B, N] of each image's cell in the flattened confusion matrices.
    cells = (np.arange(set_count)[:, None] * class_count + labels) * class_count + predictions
    counts = np.bincount(cells.ravel(), minlength=set_count * class_count * class_count)
    confusion = counts.reshape(set_count, class_count, class_count)  # [B, actual, predicted]
    correct = confusion.diagonal(axis1=1, axis2=2)  # [B, K]
    actual = confusion.sum(2)  # [B, K]
    predicted = confusion.sum(1)  # [B, K]
    total = actual + predicted  # [B, K]
    union = total - correct  # [B, K]
    accuracy = correct.sum(1) / n
    return {
        "loss": losses.mean(1),
        "average_accuracy": _mean_over_classes(correct / actual.clip(1), actual > 0),
        "f1": accuracy,
        "jaccard": _mean_over_classes(correct / union.clip(1), total > 0),
        "overall_accuracy": accuracy,
        "f1_macro": _mean_over_classes(2 * correct / total.clip(1), total > 0),
    }


def _mean_over_classes(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Means [B] of values [B, K] where `counted` [B, K] is true."""
    return np.where(counted, values, 0).sum(1) / counted.sum(1)


def bootstrap_standard_errors(
    labels: np.ndarray,
    predictions: np.ndarray,
    losses: np.ndarray,
    class_count: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Standard error of each score of one test set [N]: its spread over bootstrap samples."""
    samples = rng.integers(len(labels), size=(BOOTSTRAP_SAMPLES, len(labels)))
    scores = classification_scores(
        labels[samples], predictions[samples], losses[samples], class_count
    )
    return {name: float(values.std(ddof=1)) for name, values in scores.items()}


def average_over_seeds(
    scores: list[dict[str, float]], standard_errors: list[dict[str, float]]
) -> dict[str, float]:
    """The mean of each score over several classifiers, with a 95 % interval.

    The interval combines two uncertainties: that of a finite test set (for accuracies Wilson's
    interval, which has a width even at 0 and 1; for the rest a bootstrap) and, with several
    classifiers, that of their mean (Student's t).

    Args:
        scores: of each classifier on one test set, with its size `n`.
        standard_errors: of each classifier's scores, from the size of the test set.

    Returns:
        n; and of each score its mean, `_lo`, `_hi` and, with several classifiers, its standard
        deviation over them, `_std`.
    """
    n = int(scores[0]["n"])
    averages: dict[str, float] = {"n": n}
    for name in standard_errors[0]:
        values = np.array([score[name] for score in scores])
        mean = float(values.mean())
        if name in ("overall_accuracy", "f1"):
            low, high = wilson_interval(round(mean * n), n)
        else:
            margin = 1.96 * float(np.mean([errors[name] for errors in standard_errors]))
            low = mean - margin
            high = mean + margin
        seed_margin = 0.0
        if len(scores) > 1:
            deviation = float(values.std(ddof=1))
            averages[f"{name}_std"] = deviation
            seed_margin = stdtrit(len(scores) - 1, 0.975) * deviation / np.sqrt(len(scores))
        highest = np.inf if name == "loss" else 1.0
        averages[name] = mean
        averages[f"{name}_lo"] = max(float(mean - np.hypot(mean - low, seed_margin)), 0.0)
        averages[f"{name}_hi"] = min(float(mean + np.hypot(high - mean, seed_margin)), highest)
    return averages


def share_of_ceiling(scores: dict[str, float], ceiling: dict[str, float]) -> dict[str, float]:
    """Overall accuracy divided by the ceiling's, with a 95 % interval.

    The interval combines those of the two accuracies as errors of their logarithms. Empty where an
    accuracy or its lower end is 0: no ratio has a meaning then.
    """
    accuracy = scores["overall_accuracy"]
    low = scores["overall_accuracy_lo"]
    high = scores["overall_accuracy_hi"]
    ceiling_accuracy = ceiling["overall_accuracy"]
    ceiling_low = ceiling["overall_accuracy_lo"]
    ceiling_high = ceiling["overall_accuracy_hi"]
    if not accuracy * low * ceiling_accuracy * ceiling_low:
        return {}
    share = accuracy / ceiling_accuracy
    margin_below = np.hypot(np.log(accuracy / low), np.log(ceiling_high / ceiling_accuracy))
    margin_above = np.hypot(np.log(high / accuracy), np.log(ceiling_accuracy / ceiling_low))
    return {
        "share_of_ceiling": share,
        "share_of_ceiling_lo": float(share * np.exp(-margin_below)),
        "share_of_ceiling_hi": float(share * np.exp(margin_above)),
    }
