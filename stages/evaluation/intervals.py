"""95 % intervals: of distances between sets of features by subsampling, of shares by Wilson's formula."""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

LARGEST = 5000  # rows of a subsample: more cost hours and change little


def half_subsamples(n: int, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`count` random subsamples of half of n rows, sorted indices, without replacement.

    Not a bootstrap: rows drawn twice make a sample look less diverse than it is, which biases FID upward.
    """
    for _ in range(count):
        yield np.sort(rng.permutation(n)[: min(n // 2, LARGEST)])


def confidence_interval(
    estimate: float,
    subsampled: list[float],
    n: int,
    low: float = -np.inf,
    high: float = np.inf,
    again: bool = False,
) -> tuple[float, float]:
    """95 % interval around an estimate from all n rows, from the same statistic of subsamples of `halves(n, ...)`.

    Subsamples of m of n rows differ among each other by s^2 (1/m - 1/n), the estimate from the truth by s^2 / n (Politis &
    Romano 1994, finite population): for halves the two are the same. Only their spread is used: their mean has the bias
    of a smaller N. Student's t, because they are few. `low`, `high`: the range of the statistic. `again`: not where the truth
    lies but where the same statistic of n other rows would; it varies as much as the estimate does, hence sqrt(2) times as wide.
    """
    m = min(n // 2, LARGEST)
    error = (
        np.std(subsampled, ddof=1)
        * np.sqrt(m / (n - m))
        * stdtrit(len(subsampled) - 1, 0.975)
        * (np.sqrt(2) if again else 1)
    )
    return float(max(estimate - error, low)), float(min(estimate + error, high))


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share `right / n` (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.959964, right / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    error = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(center - error, 0)), float(min(center + error, 1))
