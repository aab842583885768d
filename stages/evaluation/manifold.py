"""Fidelity and diversity from nearest neighbors in feature space.

Precision and recall: Kynkaanniemi et al. 2019, 3 neighbors. Density and coverage: Naeem et al. 2020, 5 neighbors.
"""

import numpy as np

NEIGHBORS = 3  # of precision and recall (their section 3.1; torch-fidelity's default)
DENSITY_NEIGHBORS = 5  # of density and coverage (their section 4)
BLOCK = 1024  # rows of the distance matrix in memory at a time


def manifold(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage of fake [M, D] against real [N, D], N, M >= 2.

    precision: share of fakes inside a real image's ball (radius: its 3rd nearest real neighbor), `recall` the other way
    round; density: real balls (5th neighbor) around a fake, relative to 5, may exceed 1; coverage: share of real images
    with a fake in their ball (5th). Sets of fewer images than that use all the neighbors there are.
    """
    shift = real.mean(0, dtype=np.float64)  # distances don't change; small norms keep digits
    real, fake = real - shift, fake - shift
    wide_k = min(DENSITY_NEIGHBORS, len(real) - 1)
    near, wide = radii(real, min(NEIGHBORS, len(real) - 1), wide_k)  # [N], [N]
    (fake_near,) = radii(fake, min(NEIGHBORS, len(fake) - 1))  # [M]
    inside, around = 0, 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start in range(0, len(fake), BLOCK):
        block = slice(start, start + BLOCK)
        squared = squared_distances(fake[block], real)  # [B, N]
        inside += int((squared <= near).any(1).sum())
        recalled |= (squared <= fake_near[block, None]).any(0)
        in_wide = squared <= wide
        around += int(in_wide.sum())
        covered |= in_wide.any(0)
    return {
        "precision": inside / len(fake),
        "recall": float(recalled.mean()),
        "density": around / (wide_k * len(fake)),
        "coverage": float(covered.mean()),
    }


def radii(x: np.ndarray, *neighbors: int) -> list[np.ndarray]:
    """Squared distance [N] of each row of x [N, D] to its k-th nearest other row, for each k."""
    found = []
    for start in range(0, len(x), BLOCK):
        squared = squared_distances(x[start : start + BLOCK], x)
        found.append(
            np.partition(squared, neighbors, axis=1)[:, neighbors]
        )  # place 0 is the row itself
    return list(np.concatenate(found).T)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [N, M] of rows [N, D], [M, D], float64; equal rows are at exactly 0."""
    norms = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
    squared = norms - 2 * (x @ y.T)
    squared[squared < 1e-12 * norms] = (
        0  # rounding of the expansion, far below a float32 feature's own
    )
    return squared
