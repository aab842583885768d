"""Kernel distance between two sets of features: KID when they are Inception's (Binkowski et al. 2018)."""

import numpy as np

BLOCK = 2048  # rows of the kernel matrix in memory at a time


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features [N, D], [M, D] under (x.y / D + 1)^3, all pairs.

    The unbiased estimator (eq. 4): its mean is 0 for two samples of one distribution, at any N, so it may be negative.
    Small numbers: report it x 1000.
    """
    n, m = len(real), len(fake)
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return _within(real) / (n * (n - 1)) + _within(fake) / (m * (m - 1)) - 2 * _sum(real, fake) / (n * m)


def _within(x: np.ndarray) -> float:
    """Sum of k(x_i, x_j) over i != j."""
    return _sum(x, x) - float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    return sum(float(((x[i:i + BLOCK] @ y.T / x.shape[1] + 1) ** 3).sum()) for i in range(0, len(x), BLOCK))
