"""Memorization: are generated images nearer to training images than held-out real images are?"""

from collections.abc import Callable

import numpy as np

from stages.evaluation.intervals import wilson_interval
from stages.evaluation.prdc import BLOCK, squared_distances

PERCENTILE = 1  # of the held-out images' distances; what is nearer is a near-copy
THUMBNAIL_SIDE = 16  # pixels of the thumbnails that are compared
CLOSEST_PAIRS = 24  # pairs of generated and training image that are listed

Search = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def compare_with_training_images(
    sets: dict[str, np.ndarray], search: Search
) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """How near generated and held-out real images are to their nearest training images.

    Args:
        sets: features [N, D] of `train`, `test`, `tuned` and `synthetic`.
        search: `nearest_neighbors` or `nearest_neighbors_dihedral`.

    Returns:
        `memorization_scores` of `tuned` and of `synthetic`; and the pairs of a tuned image and its
        nearest training image that are closest, as {generated, training: index into the set,
        distance, real_percentile: share of the held-out real images that are as near or nearer}.
    """
    held_out, _ = search(sets["test"], sets["train"])
    tuned, neighbors = search(sets["tuned"], sets["train"])
    synthetic, _ = search(sets["synthetic"], sets["train"])
    scores = {
        "tuned": memorization_scores(tuned, held_out),
        "synthetic": memorization_scores(synthetic, held_out),
    }
    pairs = []
    for i in np.argsort(tuned, kind="stable")[:CLOSEST_PAIRS]:
        pair = {
            "generated": int(i),
            "training": int(neighbors[i]),
            "distance": float(tuned[i]),
            "real_percentile": float((held_out <= tuned[i]).mean()),
        }
        pairs.append(pair)
    return scores, pairs


def memorization_scores(generated: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Share of near-copies of training images, with a 95 % interval, and median distances.

    A near-copy is nearer to its nearest training image than 99 % of the held-out real images are
    to theirs. A model that has learned the distribution and not the images scores about 0.01, one
    that copies scores 1.

    Args:
        generated: distance [N] of each generated image to its nearest training image.
        held_out: the same [M] of held-out real images.
    """
    limit = float(np.percentile(held_out, PERCENTILE))
    if limit > 0:
        copies = int((generated < limit).sum())
    else:  # held-out images that are themselves in the training set: exact copies alone count
        copies = int((generated <= 0).sum())
    low, high = wilson_interval(copies, len(generated))
    return {
        "memorized": copies / len(generated),
        "memorized_lo": low,
        "memorized_hi": high,
        "limit": limit,
        "median": float(np.median(generated)),
        "median_real": float(np.median(held_out)),
        "n": len(generated),
    }


def nearest_neighbors(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] of each row of x [N, D] to the nearest row of train [M, D]; its index [N]."""
    # Distances don't change when both sets are moved; small norms keep digits.
    center = train.mean(0, dtype=np.float64)
    x = x - center
    train = train - center
    distances = []
    neighbors = []
    for start in range(0, len(x), BLOCK):
        squared = squared_distances(x[start : start + BLOCK], train)  # [B, M]
        nearest = squared.argmin(1)  # [B]
        neighbors.append(nearest)
        distances.append(np.sqrt(squared[np.arange(len(squared)), nearest]))
    return np.concatenate(distances), np.concatenate(neighbors)


def nearest_neighbors_dihedral(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nearest_neighbors` of thumbnails [N, 3 * side * side], each under its 8 flips and rotations.

    Training draws from the same 8 views of an image. Distances are root mean squares over the
    pixels, in gray levels.
    """
    thumbnails = x.reshape(-1, 3, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    view_distances = []
    view_neighbors = []
    for flipped in (thumbnails, thumbnails[..., ::-1]):
        for quarter_turns in range(4):
            view = np.rot90(flipped, quarter_turns, (2, 3)).reshape(x.shape)
            distances, neighbors = nearest_neighbors(view, train)
            view_distances.append(distances)
            view_neighbors.append(neighbors)
    distances = np.stack(view_distances)  # [8, N]
    best_view = distances.argmin(0), np.arange(len(x))
    root_mean_square = distances[best_view] / np.sqrt(x.shape[1])
    return root_mean_square, np.stack(view_neighbors)[best_view]
