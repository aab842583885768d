"""Memorization: is a generated image nearer to some training image than held-out real images are?"""

import numpy as np

from stages.evaluation.intervals import wilson
from stages.evaluation.manifold import BLOCK, squared_distances

PERCENTILE = 1  # of the distances from held-out real images to their nearest training image
SIDE = 16  # pixels of the thumbnails that are compared


def nearest_neighbors(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of x [N, D]: its distance to the nearest row of train [M, D], and that row's place; both [N]."""
    shift = train.mean(0, dtype=np.float64)
    x, train = x - shift, train - shift
    distances, places = [], []
    for start in range(0, len(x), BLOCK):
        squared = squared_distances(x[start : start + BLOCK], train)  # [B, M]
        places.append(squared.argmin(1))
        distances.append(np.sqrt(squared[np.arange(len(squared)), places[-1]]))
    return np.concatenate(distances), np.concatenate(places)


def nearest_neighbors_dihedral(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` for thumbnails [N, 3 * SIDE * SIDE], each under its 8 flips and rotations: those that training drew from.

    Distances are root mean squares over the pixels, in grey levels.
    """
    tiles = x.reshape(-1, 3, SIDE, SIDE)
    views = [
        np.rot90(flipped, k, (2, 3)).reshape(x.shape)
        for flipped in (tiles, tiles[..., ::-1])
        for k in range(4)
    ]
    distances, places = (
        np.stack(found) for found in zip(*(nearest_neighbors(view, train) for view in views))
    )  # [8, N]
    best = distances.argmin(0), np.arange(len(x))
    return distances[best] / np.sqrt(x.shape[1]), places[best]


def memorized(generated: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Share of the distances `generated` [N] below the 1st percentile of `held_out` [M], with a 95 % interval.

    A model that has learned the distribution and not the images scores about 0.01; one that copies scores 1.
    """
    limit = float(np.percentile(held_out, PERCENTILE))
    # A held-out image that is itself in the training set puts the limit at 0: a copy is at 0 too.
    closer = int((generated < limit).sum() if limit > 0 else (generated <= 0).sum())
    lo, hi = wilson(closer, len(generated))
    return {
        "memorized": closer / len(generated),
        "memorized_lo": lo,
        "memorized_hi": hi,
        "limit": limit,
        "median": float(np.median(generated)),
        "median_real": float(np.median(held_out)),
        "n": len(generated),
    }
