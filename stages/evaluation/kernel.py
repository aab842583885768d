"""Kernel distances between two sets of features: KID (Binkowski et al. 2018), CMMD (Jayasumana et al. 2024)."""

import numpy as np

BLOCK = 2048  # rows of the kernel matrix in memory at a time
CMMD_SIGMA, CMMD_SCALE = (
    10.0,
    1000.0,
)  # of the Gaussian kernel, of the reported number (theirs, section 4)


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features [N, D], [M, D] under (x.y / D + 1)^3, all pairs.

    The unbiased estimator (eq. 4): its mean is 0 for two samples of one distribution, at any N, so it may be negative.
    Small numbers: report it x 1000.
    """
    n, m = len(real), len(fake)
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return (
        _within(real) / (n * (n - 1))
        + _within(fake) / (m * (m - 1))
        - 2 * _sum(real, fake, _cubic) / (n * m)
    )


def cmmd(real: np.ndarray, fake: np.ndarray) -> float:
    """1000 x squared maximum mean discrepancy of CLIP embeddings [N, D], [M, D] at unit length under a Gaussian kernel.

    As published and as its authors' code has it: sigma 10, every pair counted, an embedding with itself included.
    """
    real, fake = (
        each / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (real.astype(np.float64), fake.astype(np.float64))
    )
    means = [
        _sum(x, y, _gaussian) / (len(x) * len(y))
        for x, y in ((real, real), (fake, fake), (real, fake))
    ]
    return CMMD_SCALE * (means[0] + means[1] - 2 * means[2])


def _within(x: np.ndarray) -> float:
    """Sum of k(x_i, x_j) over i != j."""
    return _sum(x, x, _cubic) - float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())


def _sum(x: np.ndarray, y: np.ndarray, kernel) -> float:
    return sum(
        float(kernel(x[i : i + BLOCK] @ y.T, x.shape[1]).sum()) for i in range(0, len(x), BLOCK)
    )


def _cubic(products: np.ndarray, dimensions: int) -> np.ndarray:
    products /= dimensions
    products += 1
    return products * products * products  # ** 3 is a call of pow for each


def _gaussian(products: np.ndarray, dimensions: int) -> np.ndarray:
    """Rows at unit length: |x - y|^2 = 2 - 2 x.y."""
    return np.exp((products - 1) / CMMD_SIGMA**2)
