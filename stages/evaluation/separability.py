"""Can generated images be told from real ones? A classifier two-sample test.

Lopez-Paz & Oquab 2017.

A logistic regression on features learns to tell generated images from real tiles. Its accuracy on
images that it hasn't seen is 0.5 where nothing sets them apart, and 1 where all are told apart.
"""

import numpy as np

from stages.common.rng import rng
from stages.evaluation.intervals import share_interval
from stages.evaluation.prdc import draw_rows

MIN_PAIRS = 8  # a real tile and an image of its caption each; half of them train


def separability(real: np.ndarray, fake: np.ndarray, seed: int) -> dict[str, float]:
    """Accuracy of a classifier of real against generated images, with its 95 % interval.

    Half of the pairs train the classifier, the other half test it. The interval is that of this
    classifier's accuracy on other pairs.

    Args:
        real: features [N, D] of real tiles.
        fake: features [N, D] of images generated for the captions of these tiles.
        seed: of the halves.

    Returns:
        accuracy, accuracy_lo, accuracy_hi, n (images that it was tested on).
    """
    order = rng(seed, "separability").permutation(len(real))
    train, test = order[::2], order[1::2]
    correct = classify_pairs(real[train], fake[train], real[test], fake[test])  # [M, 2]
    pairs = np.repeat(np.arange(len(test)), 2)
    low, high = share_interval(correct.ravel(), pairs)
    return {
        "accuracy": float(correct.mean()),
        "accuracy_lo": low,
        "accuracy_hi": high,
        "n": correct.size,
    }


def classify_pairs(
    real: np.ndarray, fake: np.ndarray, real_test: np.ndarray, fake_test: np.ndarray
) -> np.ndarray:
    """Train on features [N, D] each; return whether each of [M, D] is told rightly: bool [M, 2]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.repeat([0, 1], [len(real), len(fake)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(np.concatenate([real, fake]), labels)
    told = [classifier.predict(real_test) == 0, classifier.predict(fake_test) == 1]
    return np.stack(told, axis=1)


def compare_separability(
    sets: dict[str, np.ndarray], real_indices: np.ndarray, seed: int
) -> dict[str, float]:
    """Separability of the tuned images, with that of the base's and of training tiles (floor).

    Args:
        sets: features [N, D] of `test`, `train`, `tuned` and `base`.
        real_indices: the test tile [M] whose caption each tuned and base image shows.
        seed: of the halves.

    Returns:
        The keys of `separability`, accuracy_base and accuracy_floor; nothing of fewer than
        `MIN_PAIRS` pairs, and no floor of fewer training tiles.
    """
    # Of several images of one caption, the first: pairs are independent.
    captions, first = np.unique(real_indices, return_index=True)
    if len(captions) < MIN_PAIRS:
        return {}
    real = sets["test"][captions]
    result = separability(real, sets["tuned"][first], seed)
    result["accuracy_base"] = separability(real, sets["base"][first], seed)["accuracy"]
    count = min(len(real), len(sets["train"]))
    tiles = rng(seed, "separability floor").permutation(len(sets["train"]))[:count]
    if count >= MIN_PAIRS:
        floor = separability(draw_rows(real, count), sets["train"][tiles], seed)
        result["accuracy_floor"] = floor["accuracy"]
    return result
