"""95 % intervals: of distances between sets of features by random halvings, of shares by Wilson."""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations
MAX_HALVED = 10_000  # rows: to halve more would cost hours and change little

# Distances between two sets of features. Coverage and width: `python -m benchmarks.coverage`.


Rows = tuple[np.ndarray, np.ndarray]  # indices of rows of the first set, and of the second


def draw_halvings(
    n: int,
    m: int,
    count: int,
    rng: np.random.Generator,
    paired: bool = False,
    sites: np.ndarray | None = None,
) -> Iterator[tuple[Rows, Rows]]:
    """Cut two sets of n and m rows at random into halves of equal size, `count` times.

    Not a bootstrap: rows drawn twice make a sample look less diverse than it is, which biases FID
    upward.

    Args:
        n: rows of the first set.
        m: rows of the second set.
        count: times.
        rng: draws the halves.
        paired: as in `draw_orders`. Halves of a set that follows the other's captions, drawn
            without it, vary more than the whole does: intervals are too wide.
        sites: number [n] of the site of each row of the first set: rows of one site are alike, and
            in one half. Halves are then of nearly equal size. None: each row is its own site.

    Yields:
        The rows of the first halves, and those of the second halves.
    """
    for _ in range(count):
        a, b = draw_orders(n, m, rng, paired)
        if sites is None:
            real = _halve(a[:m], a[m:]) if paired else _halve(a)
            fake = _halve(b)
        else:
            is_first = _halve_sites(sites, m if paired else n, rng)
            real = np.flatnonzero(is_first), np.flatnonzero(~is_first)
            fake = (real[0][real[0] < m], real[1][real[1] < m]) if paired else _halve(b)
        yield (real[0], fake[0]), (real[1], fake[1])


def draw_orders(n: int, m: int, rng: np.random.Generator, paired: bool) -> Rows:
    """Random orders of the n and m rows of two sets: the first k rows are a random subset.

    Paired: row i of the second set belongs with row i of the first, n >= m, and stands at the same
    place of its order. The first set's rows without a partner come last.
    """
    if not paired:
        return rng.permutation(n), rng.permutation(m)
    order = rng.permutation(m)
    return np.concatenate([order, m + rng.permutation(n - m)]), order


def _halve(*orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first half of each order, and the second half; of an odd number, one is left out."""
    first = [order[: len(order) // 2] for order in orders]
    second = [order[len(order) // 2 :][: len(order) // 2] for order in orders]
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _halve_sites(sites: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Whether each row [n] is of the sites of the first half, drawn at random.

    Of the first m rows, each half has half of them, as nearly as whole sites allow.
    """
    counts = np.bincount(sites[:m], minlength=sites.max() + 1)
    order = rng.permutation(len(counts))
    totals = counts[order].cumsum()  # rows of the first site, of the first two, ...
    end = np.abs(totals[:-1] - m / 2).argmin() + 1
    return np.isin(sites, order[:end])


def smooth_variance(halves: np.ndarray) -> float:
    """Variance of a smooth statistic of all rows, from its values [K, 2] for K pairs of halves.

    To second order, the error of a statistic is the sum of a mean over rows, of variance a, and a
    mean over pairs of rows, of variance b (Hoeffding 1948): its variance is a + b. Half the
    difference of two halves has variance a + 2 b; their mean, in which single rows cancel, has b.
    So a + b is the first less the second. Both are estimates, and intervals from that difference
    hold the truth too rarely: only half of the second is subtracted. Where sets are alike, a is 0,
    and the difference may come out far too small: the least is a third of a single half's
    variance, a + 3 b.
    """
    differences, means = _variances_of_halves(halves)
    return max(differences - means / 2, (differences + means) / 3)


def count_variance(halves: np.ndarray) -> float:
    """As `smooth_variance`, of a mean number of near neighbors: 1.25 times the variance of halves.

    The rows of a half lie farther apart, which changes such a number by more than the theory of
    smooth statistics says, most where features are clustered by scene. In simulations this variance
    and `share_variance` are large enough, but for coverage of some clustered features.
    """
    differences, means = _variances_of_halves(halves)
    return 1.25 * (differences + means)


def share_variance(halves: np.ndarray) -> float:
    """As `smooth_variance`, of a share of rows with a near neighbor."""
    differences, means = _variances_of_halves(halves)
    return differences + means / 2


def _variances_of_halves(halves: np.ndarray) -> tuple[float, float]:
    """Variance of half the difference, and of the mean, of two halves [K, 2]."""
    differences = (halves[:, 0] - halves[:, 1]) / 2
    return float((differences**2).mean()), float(halves.mean(1).var(ddof=1))


def t_margin(variance: float, count: int) -> float:
    """Half the width of a 95 % interval by Student's t, from a variance of `count` halvings."""
    return float(stdtrit(count, 0.975) * np.sqrt(variance))


def root_scale_interval(estimate: float, margin: float) -> tuple[float, float]:
    """Interval of an estimate whose square root errs symmetrically, as a squared distance's does.

    Its middle lies above the estimate: a set that by chance is close has a small variance, too. The
    lower end may be negative, and so may an estimate that is corrected for its bias.
    """
    shift = margin**2 / (4 * max(estimate, margin, 1e-300))
    return estimate - margin + shift, estimate + margin + shift


def share_interval_of_margin(share: float, margin: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of n, for the effective n at which it is as wide as `margin`.

    The effective number is n where the margin is less than that of n independent values.
    """
    smoothed = (share * n + 2) / (n + 4)  # a share of 0 or 1 would have no variance at all
    effective = min(n, Z**2 * smoothed * (1 - smoothed) / max(margin**2, 1e-12))
    return wilson_interval(share * effective, effective)


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a share `successes / n` (Wilson 1927); (0, 1) where n is 0.

    n is the effective number of trials where trials depend on each other.
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    center = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    margin = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = max(center - margin, 0), min(center + margin, 1)
    return float(min(low, share)), float(max(high, share))  # rounding might leave it out


# Values that depend on each other: images of one prompt, tokens of one document, ratings of one
# tile or of one expert. Coverage and width: `python -m benchmarks.coverage_shares`.


def count_units(units: np.ndarray) -> float:
    """How many units of equal size are as good as those of the values [N] (Kish 1965).

    Where one unit holds most values it is near 1, but at least 1.05: Student's t, of so little
    freedom, is then so large that an interval is all there is, and still finite.

    Args:
        units: what was drawn independently [N].
    """
    _, sizes = np.unique(units, return_counts=True)
    return max(float(sizes.sum() ** 2 / (sizes**2).sum()), 1.05)


def squared_margin(
    deviations: np.ndarray,
    units: np.ndarray,
    raters: np.ndarray | None = None,
    unit_count: float | None = None,
) -> float:
    """Square of half the width of the 95 % interval of a weighted mean, by Student's t.

    Args:
        deviations: weight x (value - mean) [N] of each value; the weights' sum is 1.
        units: what was drawn independently [N]: values of one unit depend on each other.
        raters: a second kind of unit [N], crossed with the first, as tiles are with the experts
            who rate them (two-way clustering: Cameron, Gelbach & Miller 2011). One rater alone says
            nothing of others: the interval is then that of this rater's values.
        unit_count: their number, as `count_units` tells; None: each counts alike.

    Raises:
        ValueError: the values are of a single unit, which says nothing of the spread.
    """
    variance, count = _variance_between(deviations, units, unit_count)
    margin = stdtrit(count - 1, 0.975) ** 2 * variance
    if raters is not None and len(np.unique(raters)) > 1:
        between_raters, rater_count = _variance_between(deviations, raters)
        between_ratings, _ = _variance_between(deviations, np.arange(len(deviations)))
        # What raters with equal habits would differ by: the noise of single ratings. Two or three
        # raters may agree by chance; less is then taken off.
        noise = max(rater_count * between_ratings - variance, 0.0) / (rater_count - 1)
        noise *= min((rater_count - 1) / 3, 1.0)
        margin += stdtrit(rater_count - 1, 0.975) ** 2 * max(between_raters - noise, 0.0)
    return float(margin)


def _variance_between(
    deviations: np.ndarray, units: np.ndarray, count: float | None = None
) -> tuple[float, float]:
    """Variance of a mean of independent units, and their number: `count`, where it is given."""
    _, numbers = np.unique(units, return_inverse=True)
    sums = np.bincount(numbers, deviations)
    if len(sums) == 1:
        raise ValueError("the values are of a single unit")
    count = count or len(sums)
    return float(count / (count - 1) * (sums**2).sum()), count


def effective_size(
    successes: np.ndarray, units: np.ndarray, raters: np.ndarray | None = None
) -> float:
    """How many independent values hold as much about a share as bool [N], which depend on units.

    It is N / design effect (with Student's t for few units: Korn & Graubard 1998), at most N, and
    N where each value is its own unit. Where all values agree, nothing tells how much those of one
    unit depend on each other: they then count as one. Otherwise units of unequal sizes count as
    fewer.

    Args:
        successes: the values.
        units: what was drawn independently [N].
        raters: a second kind of unit [N], as in `squared_margin`.
    """
    n = len(successes)
    share = float(np.mean(successes))
    unit_count = len(np.unique(units))
    rater_count = 1 if raters is None else len(np.unique(raters))
    if unit_count == n and rater_count == 1:
        return float(n)
    if share in (0, 1) or unit_count == 1:
        return float(unit_count)
    margin = squared_margin((successes - share) / n, units, raters, count_units(units))
    return min(share * (1 - share) * Z**2 / max(margin, 1e-12), float(n))


def share_interval(
    successes: np.ndarray, units: np.ndarray, raters: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % interval of the share of true values of bool [N]; (0, 1) of no value or of one unit.

    Wilson's interval with the effective sample size (Dean & Pagano 2015). Arguments as in
    `effective_size`.
    """
    n = len(successes)
    if n == 0 or len(np.unique(units)) == 1 < n:
        return 0.0, 1.0
    effective = effective_size(successes, units, raters)
    return wilson_interval(float(np.mean(successes)) * effective, effective)


def share_with_interval(
    key: str,
    successes: np.ndarray,
    units: np.ndarray | None = None,
    raters: np.ndarray | None = None,
) -> dict[str, float]:
    """Share of true values of bool [N] under `key`, with its 95 % interval; 0 where N is 0.

    `units` [N] says which values depend on each other; None: each stands for itself. `raters` as
    in `effective_size`.
    """
    if units is None:
        units = np.arange(len(successes))
    low, high = share_interval(successes, units, raters)
    share = float(successes.mean()) if len(successes) else 0.0
    return {key: share, f"{key}_lo": low, f"{key}_hi": high}
