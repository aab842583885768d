"""Stretch values of any type to 8 bits: which value becomes black, which white.

A stretch is a list of (low, high) pairs, one per band or one for all bands. `low` becomes 0, `high`
becomes 255, what lies outside is clipped. The inverse is value = low + byte / 255 * (high - low).
"""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from stages.imagery.raw_tiles import RawTile

Pair = tuple[float, float]
Setting = Literal["auto", "none"] | float | list[float] | list[list[float]]  # as in the params
PERCENTILES = (2, 98)
MAX_SAMPLES = 2**22  # pixels that the percentiles are computed of; up to it, all pixels
# Pixels in a gap, per pixel of a fill value: resampling makes such at the edges of the fill.
MAX_STRAYS = 0.1
# What is a fill value, and no dark background: such a low, or a value that is so many times farther
# from most pixels than these from each other.
MAX_FILL = -9999
FAR = 10
# Magnitudes of most values of a tile: those of reflectance and of linear backscatter lie below 1,
# in clouds and cities below 2; digital numbers and decibels, which are negative, lie beyond.
MAX_FRACTION = 1
MAX_BRIGHT_FRACTION = 2
MIN_NUMBER = 20
MIN_DECIBELS = 5


def fixed_stretch(setting: Setting) -> list[Pair] | None:
    """The pairs that the params fix; None for `auto` and `none`.

    Args:
        setting: "auto", "none", a divisor (white; black is 0), a pair, or a pair per band.
    """
    if isinstance(setting, str):
        return None
    if isinstance(setting, (int, float)):
        return [(0, setting)]
    pairs = np.array(setting, np.float64).reshape(-1, 2)
    return [(low, high) for low, high in pairs.tolist()]


def sample_pixels(
    tiles: Iterable[RawTile], pixel_count: int, limit: int = MAX_SAMPLES
) -> Iterator[np.ndarray]:
    """Yield the valid pixels [B, N] of each tile; of more than `limit`, every k-th.

    Args:
        tiles: of the same type.
        pixel_count: how many pixels all of them have.
        limit: of the samples of all tiles together.
    """
    step = math.ceil(pixel_count / limit)
    step += 1 - step % 2  # odd, so that it doesn't fall on the same columns of each row
    for tile in tiles:
        chosen = np.flatnonzero(tile.valid)[::step]
        yield tile.values.reshape(len(tile.values), -1)[:, chosen]


def percentile_stretch(samples: Iterable[np.ndarray]) -> list[Pair]:
    """The 2nd and 98th percentile of each band over all samples [B, N].

    Where both are the same value, the minimum and maximum, which are the same in a band that holds
    only one value.
    """
    pairs = []
    for band in np.concatenate(list(samples), axis=1):
        # The differences of signed integers might overflow.
        exact = band if band.dtype.kind == "u" else band.astype(np.float64)
        low, high = np.percentile(exact, PERCENTILES)
        if low == high:
            low, high = band.min(), band.max()
        pairs.append((float(low), float(high)))
    return pairs


def extreme_share(samples: Iterable[np.ndarray], stretch: list[Pair]) -> float:
    """The share of sampled pixels that a stretch makes black or white, to one of 255 levels."""
    extreme = total = 0
    for sample in samples:
        pixels = to_8_bit(sample[:, :, None], stretch)  # [B, N, 1]
        extreme += int(np.all(pixels <= 1, axis=0).sum() + np.all(pixels >= 254, axis=0).sum())
        total += pixels.shape[1]
    return extreme / max(total, 1)


def find_gap(samples: Iterable[np.ndarray], stretch: list[Pair]) -> Pair | None:
    """The (low, high) of the first band without a pixel in one half of the range between; or None.

    The low or high beside the empty half is then a value apart from the others, such as -9999. If
    it can be nothing but a fill value, and many pixels have it in all bands, a few pixels may lie
    in that half. A band of two values, such as a mask, has no gap.
    """
    values = np.concatenate(list(samples), axis=1)  # [B, N]
    lows, highs = np.array(stretch).T[:, :, None]  # [B, 1]
    low_count = np.all(values == lows, axis=0).sum()
    high_count = np.all(values == highs, axis=0).sum()
    for band, (low, high) in zip(values, stretch):
        inside = band[(band > low) & (band < high)].astype(np.float64)
        if not inside.size:
            continue
        middle = low + (high - low) / 2
        start, end = np.percentile(inside, (5, 95))  # of most pixels
        far = FAR * (end - start)
        low_is_fill = low <= MAX_FILL or start > max(low + far, middle)
        high_is_fill = end < min(high - far, middle)
        if np.sum(inside <= middle) <= low_count * MAX_STRAYS * low_is_fill:
            return low, high
        if np.sum(inside >= middle) <= high_count * MAX_STRAYS * high_is_fill:
            return low, high
    return None


def find_unit_mix(samples: list[np.ndarray]) -> tuple[int, int] | None:
    """The positions of two samples [B, N] that seem to be in two units; None: all may be in one.

    One is of fractions, such as reflectance, the other of large values, such as digital numbers or
    decibels, and no sample lies between or reaches from the ones to the others, as dark and bright
    tiles of one unit do. Zeros, and what may be another fill value, tell nothing.
    """
    fraction = large = None
    for i, sample in enumerate(samples):
        values = sample[(sample != 0) & (sample > MAX_FILL)]
        if sample.dtype.kind != "f" or not values.size:
            continue
        low, high = np.percentile(np.abs(values), (10, 90))
        if low > (MIN_NUMBER if np.median(values) > 0 else MIN_DECIBELS):
            large = i if large is None else large
        elif high > MAX_BRIGHT_FRACTION:
            return None
        elif high < MAX_FRACTION:
            fraction = i if fraction is None else fraction
    return None if fraction is None or large is None else (fraction, large)


def to_8_bit(values: np.ndarray, stretch: list[Pair]) -> np.ndarray:
    """Stretch values [B, H, W] to bytes; all to 0 where low and high are the same.

    Masked values (NaN and inf too) may become any byte.
    """
    stretched = np.empty(values.shape, np.uint8)
    pairs = stretch * len(values) if len(stretch) == 1 else stretch
    for band, (low, high), out in zip(values, pairs, stretched, strict=True):
        scaled = np.nan_to_num(band.astype(np.float64), copy=False, posinf=0, neginf=0)
        scaled -= low
        scaled /= high - low if high > low else np.inf
        scaled *= 255
        np.clip(scaled, 0, 255, out=scaled)
        out[:] = np.rint(scaled, out=scaled)
    return stretched
