"""Frechet distance of two sets of features: FID where the features are Inception's.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule".

A Gaussian is held as its mean [D] and a root [K, D] of its covariance (root.T @ root), in float64.
No covariance is squared or inverted, so singular ones (fewer images than dimensions) need no small
constant on the diagonal.
"""

import numpy as np

from stages.evaluation.intervals import draw_orders
from stages.runtime.progress import progress_bar

Gaussian = tuple[np.ndarray, np.ndarray]
Curve = list[tuple[int, float]]  # (images per set, FID)
SUBSET_COUNTS = (1, 2, 3, 4)  # the FID curve has points at N, N/2, N/3 and N/4 images per set
PARTITIONS = 10  # into halves, thirds and quarters: of a single one, FID infinity varies more


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Mean [D] and root [min(N, D), D] of the unbiased covariance of features [N, D], N >= 2."""
    features = features.astype(np.float64)
    mean = features.mean(0)
    root = (features - mean) / np.sqrt(len(features) - 1)  # [N, D]
    if len(root) > root.shape[1]:
        root = np.linalg.qr(root, mode="r")  # [D, D]
    return mean, root


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), eq. 6 of Heusel et al.

    The eigenvalues of C_a C_b are the squared singular values of root_a @ root_b.T.
    """
    mean_a, root_a = a
    mean_b, root_b = b
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    squared_means = ((mean_a - mean_b) ** 2).sum()
    distance = squared_means + (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return max(float(distance), 0.0)


def fid(real: np.ndarray, fake: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to features [N, D] and [M, D].

    Biased upward at small N or M: compare values of one N only.
    """
    return frechet_distance(fit_gaussian(real), fit_gaussian(fake))


def fid_curve(
    real: np.ndarray, fake: np.ndarray, rng: np.random.Generator, paired: bool = False
) -> Curve:
    """(images per set, FID) of all images, and of halves, thirds and quarters of them.

    Of the larger set of features [N, D], [M, D], as many rows are drawn as the smaller one has. At
    each size, the FID is the mean over the disjoint subsets of several random partitions.

    Paired, row i of both belongs together, as a test tile and the image of its caption, and both
    are in one subset. Unpaired subsets of such sets match less well than the whole sets do: the
    curve is too steep, and FID infinity too low.
    """
    n = min(len(real), len(fake))
    partitions = []
    for subset_count in SUBSET_COUNTS:
        if n // subset_count < 2:  # no covariance
            continue
        # All rows of two sets of one size, and all pairs, make one partition.
        whole = subset_count == 1 and (paired or len(real) == len(fake))
        partitions += [subset_count] * (1 if whole else PARTITIONS)
    values: dict[int, list[float]] = {}
    for subset_count in progress_bar(partitions, desc="FID by the number of images"):
        size = n // subset_count
        real_order, fake_order = draw_orders(len(real), len(fake), rng, paired)
        for start in range(0, subset_count * size, size):
            subset = slice(start, start + size)
            value = fid(real[real_order[subset]], fake[fake_order[subset]])
            values.setdefault(subset_count, []).append(value)
    return [(n // subset_count, float(np.mean(fids))) for subset_count, fids in values.items()]


def fit_fid_line(points: Curve, dimensions: int) -> tuple[float, float]:
    """Slope and intercept of the line through (1/N, FID), from the points of `fid_curve`.

    FID is straight in 1/N only where N is above the features' dimensions. The other points are
    left out, unless fewer than two would remain.

    The intercept is FID infinity, that of infinitely many images (Chong & Forsyth 2020,
    "Effectively Unbiased FID and Inception Score"). They vary the number of generated images alone;
    here both sets shrink, since the real one is as small. Unbiased to first order in 1/N where the
    subsets of the curve are drawn as the whole sets are (in pairs, or not), so it may fall below 0
    for sets that are alike. Far too high where half of the images are fewer than the features'
    dimensions.
    """
    above = [(size, value) for size, value in points if size > dimensions]
    sizes, values = np.array(above if len(above) > 1 else points, dtype=np.float64).T
    slope, intercept = np.polyfit(1 / sizes, values, 1)
    return float(slope), float(intercept)
