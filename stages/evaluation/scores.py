"""Scores of a classifier, and their uncertainty: from the size of the test set, and over seeds."""

import numpy as np
from scipy.special import stdtrit

from stages.evaluation.intervals import Z, effective_size, share_with_interval, wilson_interval

BOOTSTRAP_SAMPLES = 500
GUESSES = 4  # images added to a bootstrap: two classified rightly, two wrongly
CLASS_MEANS = ("jaccard", "f1_macro")  # means over classes other than average_accuracy


def classification_scores(
    labels: np.ndarray,
    predictions: np.ndarray,
    losses: np.ndarray,
    class_count: int,
    weights: np.ndarray | None = None,
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
        weights: how often each image counts [B, N]; None: once.
    """
    set_count, _ = labels.shape
    if weights is None:
        weights = np.ones(labels.shape)
    # Index [B, N] of each image's cell in the flattened confusion matrices.
    cells = (np.arange(set_count)[:, None] * class_count + labels) * class_count + predictions
    counts = np.bincount(
        cells.ravel(), weights.ravel(), minlength=set_count * class_count * class_count
    )
    confusion = counts.reshape(set_count, class_count, class_count)  # [B, actual, predicted]
    correct = confusion.diagonal(axis1=1, axis2=2)  # [B, K]
    actual = confusion.sum(2)  # [B, K]
    predicted = confusion.sum(1)  # [B, K]
    total = actual + predicted  # [B, K]
    union = total - correct  # [B, K]
    n = weights.sum(1)  # [B]
    accuracy = correct.sum(1) / n
    return {
        "loss": (weights * losses).sum(1) / n,
        "average_accuracy": _mean_over_classes(correct / actual.clip(1), actual > 0),
        "f1": accuracy,
        "jaccard": _mean_over_classes(correct / union.clip(1), total > 0),
        "overall_accuracy": accuracy,
        "f1_macro": _mean_over_classes(2 * correct / total.clip(1), total > 0),
    }


def _mean_over_classes(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Means [B] of values [B, K] where `counted` [B, K] is true."""
    return np.where(counted, values, 0).sum(1) / counted.sum(1)


def bootstrap_scores(
    labels: np.ndarray,
    predictions: np.ndarray,
    losses: np.ndarray,
    class_count: int,
    rng: np.random.Generator,
    units: np.ndarray,
) -> dict[str, np.ndarray]:
    """Scores of BOOTSTRAP_SAMPLES redrawn test sets: their spread is that from a finite test set.

    Each unit is drawn a Poisson number of times, the same in every call with an equally seeded
    generator, so that what several classifiers share in their errors is seen. Four guesses are
    added to the images (Agresti & Coull 1998), so that the scores spread even where every image is
    classified rightly. They widen the sample too, which `average_over_seeds` takes back.

    Args:
        labels: class numbers [N].
        predictions: class numbers [N].
        losses: cross-entropy [N].
        class_count: number of classes K.
        rng: draws.
        units: number [N] of the prompt or site of each image, whose images are drawn together.
    """
    size = (BOOTSTRAP_SAMPLES, GUESSES)
    guess_labels = labels[(rng.random(size) * len(labels)).astype(int)]
    shifts = rng.integers(1, max(class_count, 2), size)
    shifts[:, : GUESSES // 2] = 0  # the right ones
    guesses = (guess_labels + shifts) % class_count
    guess_losses = np.full(size, np.log(class_count))
    guess_weights = rng.poisson(1.0, size)
    # Row by row: a unit's draws don't depend on how many units follow.
    drawn = rng.poisson(1.0, (units.max() + 1, BOOTSTRAP_SAMPLES)).T  # [B, units]
    weights = np.hstack([drawn[:, units], guess_weights])
    weights[weights.sum(1) == 0] = 1  # nothing was drawn, as happens with a tiny test set
    rows = np.ones((BOOTSTRAP_SAMPLES, 1), int)
    return classification_scores(
        np.hstack([rows * labels, guess_labels]),
        np.hstack([rows * predictions, guesses]),
        np.hstack([rows * losses, guess_losses]),
        class_count,
        weights,
    )


def accuracy_by_class(
    labels: np.ndarray, predictions: np.ndarray, class_count: int, units: np.ndarray
) -> np.ndarray:
    """Accuracy of each class and the effective number of its images: [2, K], 0 where it has none.

    Arguments as in `bootstrap_scores`.
    """
    result = np.zeros((2, class_count))
    for label in np.unique(labels):
        of_class = labels == label  # [N]
        correct = predictions[of_class] == label
        result[:, label] = correct.mean(), effective_size(correct, units[of_class])
    return result


def average_over_seeds(
    scores: list[dict[str, float]],
    bootstrapped: list[dict[str, np.ndarray]],
    by_class: list[np.ndarray],
) -> dict[str, float]:
    """The mean of each score over several classifiers, with a 95 % interval.

    The interval combines two uncertainties: that of a finite test set, from the bootstrap, and,
    with several classifiers, that of their mean (Student's t of their spread, less the part of it
    that is noise of the test set). Scores from 0 to 1 get Wilson's interval with the effective
    sample size of that width, the loss a symmetric one.

    A bootstrap can't tell how uncertain a class of few images is, which counts as much in
    average_accuracy as any other: there the intervals of the classes are combined, where that is
    wider. The intervals of jaccard and f1_macro, other means over classes, are widened as much.

    Args:
        scores: of each classifier on one test set, with its size `n` and the number `n_units` of
            prompts or sites that are independent (of unequal sizes, `count_units`).
        bootstrapped: of each classifier, its `bootstrap_scores`.
        by_class: of each classifier, its `accuracy_by_class`.

    Returns:
        Mean n, smallest n_units; each score's mean, `_lo`, `_hi`; of several classifiers, `_std`.
    """
    n = round(float(np.mean([score["n"] for score in scores])))
    units = min(int(score["n_units"]) for score in scores)
    widening = max(_variance_factor(int(score["n"]), int(score["n_units"])) for score in scores)
    samples = {
        name: np.stack([sample[name] for sample in bootstrapped]) for name in bootstrapped[0]
    }  # [classifiers, B] each
    below, above = _margins_of_class_mean(by_class)
    squared_margin = Z**2 * widening * _variance_of_mean(samples["average_accuracy"], n)
    class_widening = max((below + above) ** 2 / 4 / squared_margin, 1.0)

    averages: dict[str, float] = {"n": n, "n_units": units}
    for name, of_score in samples.items():
        values = np.array([score[name] for score in scores])
        mean = float(values.mean())
        from_test_set = Z**2 * widening * _variance_of_mean(of_score, n)  # a squared margin
        from_seeds = 0.0  # likewise
        if len(scores) > 1:
            deviation = float(values.std(ddof=1))
            averages[f"{name}_std"] = deviation
            from_seeds = _variance_of_seeds(deviation, of_score, n)
            from_seeds *= stdtrit(len(scores) - 1, 0.975) ** 2
        if name == "loss":
            margin = float(np.sqrt(from_test_set + from_seeds))
            low, high = max(mean - margin, 0.0), mean + margin
        elif name == "average_accuracy":
            low = max(mean - float(np.sqrt(max(below**2, from_test_set) + from_seeds)), 0.0)
            high = min(mean + float(np.sqrt(max(above**2, from_test_set) + from_seeds)), 1.0)
        else:
            if name in CLASS_MEANS:
                from_test_set *= class_widening
            middle = of_score.mean()  # guesses included: never 0 or 1
            effective = float(middle * (1 - middle) * Z**2 / (from_test_set + from_seeds))
            low, high = wilson_interval(mean * effective, effective)
        averages |= {name: mean, f"{name}_lo": low, f"{name}_hi": high}
    return averages


def _variance_factor(n: int, units: int) -> float:
    """By how much the squared margin grows where n images are of fewer independent units.

    Student's t stands for the normal quantile, and their variance is estimated without bias (Korn &
    Graubard 1998).
    """
    if units == n:
        return 1.0
    freedom = max(units - 1, 1)
    return float((stdtrit(freedom, 0.975) / Z) ** 2 * (freedom + 1) / freedom)


def average_by_class(by_class: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy [K] of each class over classifiers, and the mean effective number of images.

    A class may have images in the test sets of some classifiers only: its mean is over these.

    Args:
        by_class: of each classifier, its `accuracy_by_class`.
    """
    accuracies, sizes = np.stack(by_class, axis=1)  # [classifiers, K] each
    return accuracies.sum(0) / np.maximum((sizes > 0).sum(0), 1), sizes.mean(0)


def class_accuracy(correct: np.ndarray, units: np.ndarray) -> dict[str, float]:
    """Accuracy of S classifiers on the N images of a class, with its 95 % interval.

    Other images and other classifiers would give another accuracy, as other tiles and other experts
    do: the interval is of both. That of one classifier is of the images alone.

    Args:
        correct: whether each classifier is right about each image, bool [S, N].
        units: as in `bootstrap_scores`, of these images.
    """
    seeds, images = np.indices(correct.shape)
    return share_with_interval("accuracy", correct.ravel(), units[images].ravel(), seeds.ravel())


def _margins_of_class_mean(by_class: list[np.ndarray]) -> tuple[float, float]:
    """How far the 95 % interval of the mean accuracy of the classes reaches below and above it.

    Wilson's intervals of the classes are combined as independent ones (MOVER: Zou & Donner 2008).

    Args:
        by_class: of each classifier, its `accuracy_by_class`.
    """
    accuracies, sizes = average_by_class(by_class)
    shown = sizes > 0
    ends = np.array([wilson_interval(p * n, n) for p, n in zip(accuracies[shown], sizes[shown])])
    distances = ends - accuracies[shown, None]  # [K, 2]
    below, above = np.sqrt((distances**2).sum(0)) / shown.sum()
    return float(below), float(above)


def _variance_of_mean(samples: np.ndarray, n: int) -> float:
    """Variance, from the test set of n images, of the mean of bootstrapped scores [S, B]."""
    return float(samples.mean(0).var(ddof=1)) * (n + GUESSES) / n


def _variance_of_seeds(deviation: float, samples: np.ndarray, n: int) -> float:
    """Variance, from training, of the mean of a score over S classifiers.

    Part of their spread is noise of the test set that each has for itself: it is in
    `_variance_of_mean` already. Two or three classifiers may agree by chance; less is then taken
    off.

    Args:
        deviation: standard deviation of the score over the classifiers.
        samples: bootstrapped scores [S, B].
        n: images in the test set.
    """
    count = len(samples)
    of_single = float(samples.var(1, ddof=1).mean()) * (n + GUESSES) / n
    noise = max(of_single - _variance_of_mean(samples, n), 0.0) / (count - 1)
    noise *= min((count - 1) / 3, 1.0)
    return max(deviation**2 / count - noise, 0.0)


def share_of_ceiling(
    scores: dict[str, float],
    ceiling: dict[str, float],
    samples: np.ndarray,
    ceiling_samples: np.ndarray,
) -> dict[str, float]:
    """Overall accuracy divided by the ceiling's, with a 95 % interval.

    Both classifiers are tested on the same images: what makes an image hard for both cancels. Half
    an image for each that it alone classifies rightly is added to the variance (Agresti & Min
    2005), so that the interval has a width where both are right about the same images. Student's t
    has the degrees of freedom of Welch and Satterthwaite. The interval is symmetric in the
    logarithm. Empty where an accuracy is 0: no ratio has a meaning then.

    Args:
        scores: `average_over_seeds` of the classifiers.
        ceiling: the same of those trained on real tiles.
        samples: bootstrapped overall accuracies [S, B] of the classifiers.
        ceiling_samples: the same [S, B] of those trained on real tiles, of the same draws.
    """
    accuracy = scores["overall_accuracy"]
    ceiling_accuracy = ceiling["overall_accuracy"]
    if not accuracy * ceiling_accuracy:
        return {}
    n, units = int(scores["n"]), int(scores["n_units"])
    relative = samples / samples.mean()
    ceiling_relative = ceiling_samples / ceiling_samples.mean()
    difference = relative.mean(0) - ceiling_relative.mean(0)  # [B]
    seed_variances = []
    for values, of_classifiers in ((scores, relative), (ceiling, ceiling_relative)):
        if len(of_classifiers) > 1:
            deviation = values["overall_accuracy_std"] / values["overall_accuracy"]
            seed_variances.append(_variance_of_seeds(deviation, of_classifiers, n))
    test_variance = _variance_factor(n, units) * _variance_of_mean(difference[None], n)
    half_images_variance = 1 / (units**2 * accuracy * ceiling_accuracy)
    variance = test_variance + half_images_variance + sum(seed_variances)
    quantile = Z
    if sum(seed_variances) > 0:
        freedom = (len(samples) - 1) * variance**2 / sum(v**2 for v in seed_variances)
        quantile = stdtrit(freedom, 0.975)
    margin = float(quantile * np.sqrt(variance))
    share = accuracy / ceiling_accuracy
    return {
        "share_of_ceiling": share,
        "share_of_ceiling_lo": float(share * np.exp(-margin)),
        "share_of_ceiling_hi": float(share * np.exp(margin)),
    }
