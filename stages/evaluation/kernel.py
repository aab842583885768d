"""Maximum mean discrepancies (MMD) of two sets of features: KID and CMMD.

KID: Binkowski et al. 2018, "Demystifying MMD GANs". Its estimators: Gretton et al. 2012, "A Kernel
Two-Sample Test", section 2.2. CMMD: Jayasumana et al. 2024, "Rethinking FID".
"""

from collections.abc import Callable

import numpy as np

BLOCK = 2048  # rows of the kernel matrix in memory at a time
CMMD_SIGMA = 10.0  # width of the Gaussian kernel (CMMD's section 4)
CMMD_SCALE = 1000.0  # the published numbers are multiplied by this


def kid(real: np.ndarray, fake: np.ndarray, paired: bool = False) -> float:
    """Squared MMD of features [N, D], [M, D] under the kernel (x.y / D + 1)^3.

    Unbiased: its mean is 0 for two samples of one distribution, at any N, so it may be negative.
    Small numbers: report it x 1000.

    Args:
        real: features [N, D].
        fake: features [M, D], M <= N where paired.
        paired: row i of `fake` was drawn with row i of `real`, as an image of its caption. The two
            are alike, so k(real_i, fake_i) is left out (Gretton et al., eq. 4): with it, KID is too
            low, in proportion to 1/N. Otherwise the sets are independent and all pairs count.
    """
    n = len(real)
    m = len(fake)
    real = real.astype(np.float64)
    fake = fake.astype(np.float64)
    if paired:
        between = _cubic_sum_of_distinct_pairs(real, fake) / (m * (n - 1))
    else:
        between = _kernel_sum(real, fake, _cubic_kernel) / (n * m)
    return (
        _cubic_sum_of_distinct_pairs(real, real) / (n * (n - 1))
        + _cubic_sum_of_distinct_pairs(fake, fake) / (m * (m - 1))
        - 2 * between
    )


def cmmd(real: np.ndarray, fake: np.ndarray) -> float:
    """1000 x squared MMD of CLIP embeddings [N, D], [M, D] at unit length, under a Gaussian kernel.

    As published and as the authors' code has it: sigma 10, and every pair counts, that of an
    embedding with itself included.
    """
    real = _to_unit_length(real)
    fake = _to_unit_length(fake)
    return CMMD_SCALE * (
        _gaussian_mean(real, real) + _gaussian_mean(fake, fake) - 2 * _gaussian_mean(real, fake)
    )


def _to_unit_length(embeddings: np.ndarray) -> np.ndarray:
    embeddings = embeddings.astype(np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _gaussian_mean(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of k(x_i, y_j) over all pairs of rows [N, D], [M, D]."""
    return _kernel_sum(x, y, _gaussian_kernel) / (len(x) * len(y))


def _cubic_sum_of_distinct_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of k(x_i, y_j) over i != j of rows [N, D], [M, D], M <= N."""
    diagonal = _cubic_kernel((x[: len(y)] * y).sum(1), x.shape[1])  # [M]
    return _kernel_sum(x, y, _cubic_kernel) - float(diagonal.sum())


def _kernel_sum(
    x: np.ndarray, y: np.ndarray, kernel: Callable[[np.ndarray, int], np.ndarray]
) -> float:
    """Sum of k(x_i, y_j) over all pairs of rows [N, D], [M, D], a block of rows at a time."""
    total = 0.0
    for start in range(0, len(x), BLOCK):
        products = x[start : start + BLOCK] @ y.T  # [B, M]
        total += float(kernel(products, x.shape[1]).sum())
    return total


def _cubic_kernel(products: np.ndarray, dimensions: int) -> np.ndarray:
    """(x.y / D + 1)^3 of inner products [...], which are overwritten."""
    products /= dimensions
    products += 1
    return products * products * products  # `** 3` would call pow for each


def _gaussian_kernel(products: np.ndarray, dimensions: int) -> np.ndarray:
    """exp(-|x - y|^2 / (2 sigma^2)) of inner products: |x - y|^2 = 2 - 2 x.y at unit length."""
    return np.exp((products - 1) / CMMD_SIGMA**2)
