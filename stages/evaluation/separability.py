"""Can generated images be told from real ones? A classifier two-sample test.

Lopez-Paz & Oquab 2017.

A logistic regression on features learns to tell generated images from real tiles. Its accuracy on
images that it hasn't seen is 0.5 where nothing sets them apart, and 1 where all are told apart.
"""

import numpy as np

from stages.common.rng import rng
from stages.evaluation.intervals import share_with_interval
from stages.evaluation.pairing import Pairing, draw_in_scenes
from stages.evaluation.prdc import draw_rows
from stages.evaluation.sites import MIN_SITES

MIN_PAIRS = 8  # a real tile and an image of its caption each; half of them train


def separability(
    real: np.ndarray, fake: np.ndarray, sites: list[str], seed: int
) -> dict[str, float]:
    """Accuracy of a classifier of real against generated images, with its 95 % interval.

    The pairs of half of the sites train the classifier, those of the other half test it: tiles of
    one site are alike. The interval is that of this classifier's accuracy on other sites.

    Args:
        real: features [N, D] of real tiles.
        fake: features [N, D] of images generated for the captions of these tiles.
        sites: the site [N] that each real tile was cut from.
        seed: of the halves.

    Returns:
        accuracy, accuracy_lo, accuracy_hi, n (images that it was tested on).
    """
    train, test, units = halve_by_site(sites, seed)
    correct = classify_pairs(real[train], fake[train], real[test], fake[test])  # [M, 2]
    metrics = share_with_interval("accuracy", correct.ravel(), np.repeat(units, 2))
    return metrics | {"n": correct.size}


def halve_by_site(sites: list[str], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw half of the sites.

    Args:
        sites: the site [N] of each tile.
        seed: of the drawing.

    Returns:
        Indices of the tiles of the sites drawn; those of the other tiles, and a number for the
        site of each of these.
    """
    numbers = {site: i for i, site in enumerate(dict.fromkeys(sites))}
    positions = np.argsort(rng(seed, "separability").permutation(len(numbers)))  # of each site
    units = positions[[numbers[site] for site in sites]]  # [N], the position of a tile's site
    order = np.argsort(units, kind="stable")
    is_drawn = units[order] % 2 == 0
    test = order[~is_drawn]
    return order[is_drawn], test, units[test]


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
    correct = [classifier.predict(real_test) == 0, classifier.predict(fake_test) == 1]
    return np.stack(correct, axis=1)


def compare_separability(
    sets: dict[str, np.ndarray], sites: dict[str, list[str]], pairing: Pairing, seed: int
) -> dict[str, float]:
    """Separability of the tuned images, with that of the base's and of training tiles (floor).

    The training tiles show what the test tiles do, lakes for lakes, as far as there are so many:
    another mix would be told by that alone.

    Args:
        sets: features [N, D] of `test`, `train`, `tuned` and `base`.
        sites: what the `test` and `train` tiles were cut from, of `sites_of_tiles`.
        pairing: of `tuned` and `base` with `test`; several images may belong with one tile.
        seed: of the halves.

    Returns:
        The keys of `separability`, accuracy_base and accuracy_floor; nothing of fewer than
        `MIN_PAIRS` pairs or `MIN_SITES` sites, and no floor of fewer training tiles.
    """
    # Of several images of one caption, the first: pairs are independent.
    captions, first = np.unique(pairing.real_indices, return_index=True)
    of_pairs = [sites["test"][i] for i in captions]
    if not can_be_halved(of_pairs):
        return {}
    real = sets["test"][captions]
    result = separability(real, sets["tuned"][first], of_pairs, seed)
    result["accuracy_base"] = separability(real, sets["base"][first], of_pairs, seed)["accuracy"]
    generator = rng(seed, "separability floor")
    shown = pairing.test_scenes[generator.permutation(captions)[: len(sets["train"])]]
    tiles = draw_in_scenes(pairing.train_scenes, shown, generator)
    of_train = [sites["train"][i] for i in tiles]
    if can_be_halved(of_train):
        train = sets["train"][tiles]
        result["accuracy_floor"] = floor_accuracy(real, train, of_pairs, of_train, seed)
    return result


def can_be_halved(sites: list[str]) -> bool:
    """Whether N tiles of these sites can be halved."""
    return len(sites) >= MIN_PAIRS and len(set(sites)) >= MIN_SITES


def floor_accuracy(
    real: np.ndarray, train: np.ndarray, sites: list[str], train_sites: list[str], seed: int
) -> float:
    """Accuracy of a classifier of test against training tiles, each halved by their own sites.

    Args:
        real: features [N, D] of test tiles.
        train: features [M, D] of training tiles.
        sites: the site [N] that each test tile was cut from.
        train_sites: the same [M] of the training tiles.
        seed: of the halves.
    """
    *halves, _ = halve_by_site(sites, seed)
    *train_halves, _ = halve_by_site(train_sites, seed)
    pairs = []
    for half, train_half in zip(halves, train_halves):
        count = min(len(half), len(train_half))
        pairs += [real[draw_rows(half, count)], train[draw_rows(train_half, count)]]
    return float(classify_pairs(*pairs).mean())
