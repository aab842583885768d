"""95 % intervals: of distances between sets of features by subsampling, of shares by Wilson."""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

MAX_SUBSAMPLE = 5000  # rows: more would cost hours and change little


def half_subsamples(n: int, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`count` random halves of n rows, drawn without replacement, as sorted indices.

    Not a bootstrap: rows drawn twice make a sample look less diverse than it is, which biases FID
    upward.
    """
    for _ in range(count):
        yield np.sort(rng.permutation(n)[: min(n // 2, MAX_SUBSAMPLE)])


def confidence_interval(
    estimate: float,
    subsampled: list[float],
    n: int,
    low: float = -np.inf,
    high: float = np.inf,
) -> tuple[float, float]:
    """95 % interval of where the truth lies, around an estimate from n rows.

    Args:
        estimate: the statistic of all n rows.
        subsampled: the same statistic of each of the `half_subsamples(n, ...)`.
        n: the number of rows.
        low: the lowest value that the statistic can take.
        high: the highest value that it can take.
    """
    margin = _margin(subsampled, n)
    return float(max(estimate - margin, low)), float(min(estimate + margin, high))


def prediction_interval(
    estimate: float,
    subsampled: list[float],
    n: int,
    low: float = -np.inf,
    high: float = np.inf,
) -> tuple[float, float]:
    """95 % interval of where the same statistic of n other rows would lie.

    The other rows' statistic varies as much as the estimate does, hence sqrt(2) times the width.
    Arguments as in `confidence_interval`.
    """
    margin = _margin(subsampled, n) * np.sqrt(2)
    return float(max(estimate - margin, low)), float(min(estimate + margin, high))


def _margin(subsampled: list[float], n: int) -> float:
    """Half the width of a 95 % confidence interval.

    Subsamples of m of n rows differ among each other by s^2 (1/m - 1/n), the estimate from the
    truth by s^2 / n (Politis & Romano 1994, with a finite population): for halves the two are the
    same. Only the subsamples' spread is used: their mean has the bias of a smaller N. Student's t,
    because they are few.
    """
    m = min(n // 2, MAX_SUBSAMPLE)
    standard_error = np.std(subsampled, ddof=1) * np.sqrt(m / (n - m))
    return standard_error * stdtrit(len(subsampled) - 1, 0.975)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share `successes / n` (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(center - margin, 0)), float(min(center + margin, 1))
