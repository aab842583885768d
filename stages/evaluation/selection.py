"""Which of the images that were drawn for a class are kept.

Three rules, in this order: an image shows its class to the scene classifier; of images that look
alike one is kept; of what is left, those that differ most in the classifier's features.

The set that is left is chosen in these features, so a distance in them, or the classifier's
agreement with it, says nothing of the generator: it has to be measured in another network's.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """What the rules look at, of the N images drawn for a class."""

    scenes: np.ndarray  # str [N], the scene that the classifier sees
    features: np.ndarray  # [N, D], of the classifier
    thumbnails: np.ndarray  # [N, T], what `group_duplicates` compares


class Selection(NamedTuple):
    """The images that are kept, and how many each rule took out."""

    kept: np.ndarray  # int64 [K], ascending
    rejected_caption: int
    rejected_duplicate: int
    rejected_diversity: int


def select_images(
    candidates: Candidates,
    scenes: set[str],
    wanted: int,
    group_duplicates: Callable[[np.ndarray], np.ndarray],
) -> Selection:
    """Select at most `wanted` of a class's images; fewer where fewer pass.

    Args:
        candidates: the images, in the order of their rows. Ties are broken by this order.
        scenes: those of the class that the classifier knows; none: it can't judge the class, and
            the first rule is left out.
        wanted: the number of images to keep.
        group_duplicates: the group [M] of each of thumbnails [M, T].
    """
    remaining = np.arange(len(candidates.scenes))
    if scenes:
        remaining = remaining[np.isin(candidates.scenes, sorted(scenes))]
    n_agreeing = len(remaining)
    _, first = np.unique(group_duplicates(candidates.thumbnails[remaining]), return_index=True)
    remaining = remaining[np.sort(first)]
    n_different = len(remaining)
    remaining = remaining[farthest_points(candidates.features[remaining], wanted)]
    return Selection(
        kept=remaining,
        rejected_caption=len(candidates.scenes) - n_agreeing,
        rejected_duplicate=n_agreeing - n_different,
        rejected_diversity=n_different - len(remaining),
    )


def farthest_points(features: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices int64 [min(count, N)] of features [N, D] that lie far from each other.

    The first is the nearest to the mean; each further one is the farthest from those before it
    (Gonzalez 1985, "Clustering to Minimize the Maximum Intercluster Distance"; Sener & Savarese
    2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", k-center
    greedy). Ties go to the first.
    """
    if len(features) <= count:
        return np.arange(len(features))
    features = features.astype(np.float64)
    features -= features.mean(0)
    norms = np.einsum("nd,nd->n", features, features)  # squared distances from the mean
    chosen = np.zeros(len(features), bool)
    distances = -norms  # the nearest to the mean is the largest
    for i in range(count):
        newest = int(np.where(chosen, -np.inf, distances).argmax())
        chosen[newest] = True
        to_newest = norms + norms[newest] - 2 * (features @ features[newest])  # squared, too
        distances = np.minimum(distances, to_newest) if i else to_newest
    return np.flatnonzero(chosen)
