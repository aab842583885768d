"""Precision, recall, density and coverage (PRDC): fidelity and diversity from nearest neighbors.

Precision and recall: Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing
Generative Models". Density and coverage: Naeem et al. 2020, "Reliable Fidelity and Diversity
Metrics for Generative Models".
"""

from collections.abc import Iterator

import numpy as np

from stages.common.rng import rng

NEIGHBORS = 3  # of precision and recall (their section 3.1; torch-fidelity's default)
DENSITY_NEIGHBORS = 5  # of density and coverage (their section 4)
BLOCK = 1024  # rows of a distance matrix in memory at a time, at most
BLOCK_DISTANCES = 2**24  # distances in memory at a time, at most: 128 MiB


def compute_prdc(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage of generated images; all but density in [0, 1].

    The ball of an image reaches to its k-th nearest neighbor in its own set.
    precision: share of the generated images inside the ball of some real image, k = 3.
    recall: share of the real images inside the ball of some generated image, k = 3.
    density: mean number of real balls that a generated image lies in, divided by k = 5; may be > 1.
    coverage: share of the real images whose ball holds a generated image, k = 5.
    Where a set has no more than k images, k is their number less one.

    Args:
        real: features [N, D], N >= 2.
        fake: features [M, D], M >= 2.
    """
    # Distances don't change when both sets are moved; small norms keep digits.
    center = real.mean(0, dtype=np.float64)
    real = real - center
    fake = fake - center
    density_neighbors = min(DENSITY_NEIGHBORS, len(real) - 1)
    real_radii, density_radii = neighbor_radii(
        real, min(NEIGHBORS, len(real) - 1), density_neighbors
    )  # [N], [N]
    (fake_radii,) = neighbor_radii(fake, min(NEIGHBORS, len(fake) - 1))  # [M]

    precise_count = 0
    ball_count = 0
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for block in row_blocks(len(fake), len(real)):
        squared = squared_distances(fake[block], real)  # [B, N]
        precise_count += int((squared <= real_radii).any(1).sum())
        recalled |= (squared <= fake_radii[block, None]).any(0)
        in_density_ball = squared <= density_radii  # [B, N]
        ball_count += int(in_density_ball.sum())
        covered |= in_density_ball.any(0)
    return {
        "precision": precise_count / len(fake),
        "recall": float(recalled.mean()),
        "density": ball_count / (density_neighbors * len(fake)),
        "coverage": float(covered.mean()),
    }


def neighbor_radii(features: np.ndarray, *neighbors: int) -> list[np.ndarray]:
    """Squared distance [N] of each row of features [N, D] to its k-th nearest other row, per k."""
    blocks = []
    for block in row_blocks(len(features), len(features)):
        squared = squared_distances(features[block], features)  # [B, N]
        # Index 0 is the row itself, so index k is the k-th nearest other row.
        blocks.append(np.partition(squared, neighbors, axis=1)[:, neighbors])
    return list(np.concatenate(blocks).T)


def draw_rows(features: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` rows of features [N, D]: random, as images may be sorted by scene.

    Of sets of one size they are the same rows: pairs stay together.
    """
    if len(features) <= limit:
        return features
    return features[np.sort(rng(0, "rows").permutation(len(features))[:limit])]


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield the rows of a distance matrix [rows, columns] that are in memory at a time."""
    step = max(1, min(BLOCK, BLOCK_DISTANCES // columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [N, M] of rows [N, D] and [M, D] in float64, from the expansion
    |x|^2 + |y|^2 - 2 x.y; equal rows are at exactly 0."""
    norms = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
    squared = norms - 2 * (x @ y.T)
    # What is below this is rounding of the expansion: float32 features differ by more.
    squared[squared < 1e-12 * norms] = 0
    return squared
