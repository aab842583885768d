"""Frechet distance between two sets of features: FID when the features are Inception's (Heusel et al. 2017).

A Gaussian is held as its mean [D] and a root [K, D] of its covariance (root' root = C), both float64. No covariance is
ever squared or inverted, so singular ones (fewer images than dimensions) need no small constant on the diagonal.
"""

import numpy as np

Gaussian = tuple[np.ndarray, np.ndarray]
PARTS = (1, 2, 3, 4)  # the curve has N, N/2, N/3 and N/4 images per set


def gaussian(features: np.ndarray) -> Gaussian:
    """Mean [D] and root [min(N, D), D] of the unbiased covariance of features [N, D], N >= 2."""
    features = features.astype(np.float64)
    mean = features.mean(0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root


def distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), eq. 6 of the paper.

    The eigenvalues of C_a C_b are the squared singular values of R_a R_b'.
    """
    (mean_a, root_a), (mean_b, root_b) = a, b
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(
        float(((mean_a - mean_b) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * shared),
        0.0,
    )


def fid(real: np.ndarray, fake: np.ndarray) -> float:
    """Frechet distance of two feature matrices [N, D], [M, D]. Biased upward at small N or M: compare at one N only."""
    return distance(gaussian(real), gaussian(fake))


def curve(real: np.ndarray, fake: np.ndarray, rng: np.random.Generator) -> list[tuple[int, float]]:
    """(images per set, FID) for the whole of features [N, D], [M, D] and for halves, thirds and quarters of them.

    The smaller of the sets counts: of the larger, as many rows are drawn. Each part's FID is the mean over disjoint
    parts, so that every image counts once at every size.
    """
    n = min(len(real), len(fake))
    real, fake = real[rng.permutation(len(real))[:n]], fake[rng.permutation(len(fake))[:n]]
    found = []
    for parts in PARTS:
        size = n // parts
        if size >= 2:
            places = [slice(i * size, (i + 1) * size) for i in range(parts)]
            found.append(
                (size, float(np.mean([fid(real[place], fake[place]) for place in places])))
            )
    return found


def at_infinity(points: list[tuple[int, float]]) -> float:
    """FID of infinitely many images, where the line through (1/N, FID) meets 1/N = 0 (Chong & Forsyth 2020).

    They let only the generated images vary; here both sets shrink, since the real one is as small. Unbiased to first
    order in 1/N, so it may fall below 0 for sets that are alike. Needs N above the features' dimensions at every point.
    """
    sizes, values = np.array(points, dtype=np.float64).T
    return float(np.polyfit(1 / sizes, values, 1)[1])
