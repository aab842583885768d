"""Near-duplicate images: a thumbnail of each tile, and groups of tiles around one member.

Two tiles are near-duplicates if their thumbnails have about the same color, and differ from it in
about the same way: by little against their own contrast. So tiles of calm water, snow or sand are
kept apart, which differ by less than a copy of another tile does from its original.

Measured on 2,000 RSICD tiles of 64 pixels: copies (JPEG of quality 60, or 70 % of the size) differ
by 0.03 of the contrast (median; largest: 0.39) and by at most 1.7 levels; of different tiles of
the same color within 3 levels, the most similar pair by 0.7 of the contrast. Of 100 rendered tiles
of water in one color no two are near-duplicates, at a contrast of 0.5 to 4 levels; from 1.5 on all
copies are found, below it JPEG changes a tile as much as another tile differs.

The same margin is nearly all of the contrast of any two tiles that have it. So what lies inside the
margins of both must be about the same, too, by its own contrast. Of 150 RSICD tiles with 4 % of
their contrast and a third of black, 117 to 129 JPEG copies are found so, and 27 other pairs instead
of 18,000; with their whole contrast, all copies and no other pair.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 8  # pixels of a thumbnail
THUMBNAIL_VALUES = 3 * SIDE * SIDE
LEVEL = 256  # steps of a thumbnail's values per gray level
# Of two tiles, all root mean square. The contrast is the larger one of the two: what the channels
# differ from their means.
MAX_COLOR_DIFFERENCE = 2.0  # gray levels, of the channels' means
MAX_COLOR_BY_CONTRAST = 2.0  # the same in units of the contrast; the smaller of the two counts
MAX_PATTERN_DIFFERENCE = 2.0  # gray levels, of the channels without their means
MAX_PATTERN_BY_CONTRAST = 0.2  # the same in units of the contrast; the larger of the two counts
WEAK_PATTERN_BY_CONTRAST = 0.6  # in units of the contrast: the limit is never above it
MARGIN = 4  # gray levels that a black or white cell may be off: resampling blurs its edge
MIN_INSIDE = 0.25  # share of the cells; with fewer inside the margins, the whole tile counts alone
MIN_CORRELATION = (1 - WEAK_PATTERN_BY_CONTRAST**2) ** 0.5  # implied by the limit above
BLOCK = 512  # images that are compared at once
PART = 8 * BLOCK  # centers that they are compared with
PAIRS = 2**14  # pairs of images whose insides are compared at once


def thumbnail_bytes(image: Image.Image) -> bytes:
    """The means of 8 x 8 cells of an RGB tile, channel by channel, as uint16 in 1/256 levels."""
    cells = [
        channel.convert("F").resize((SIDE, SIDE), Image.Resampling.BOX) for channel in image.split()
    ]
    return np.rint(np.stack([np.asarray(cell) for cell in cells]) * LEVEL).astype("<u2").tobytes()


def group_near_duplicates(thumbnails: np.ndarray) -> np.ndarray:
    """Group images that look the same: all of a group are near-duplicates of its center.

    In the order of their mean level, each image joins the first center that it is a near-duplicate
    of, or else becomes a center.

    Args:
        thumbnails: uint16 [N, 192], of `thumbnail_bytes`.

    Returns:
        int64 [N]: the smallest index of each image's group.
    """
    if not len(thumbnails):
        return np.zeros(0, np.int64)
    rows = np.ascontiguousarray(thumbnails).view(f"V{thumbnails.itemsize * THUMBNAIL_VALUES}")[:, 0]
    _, first, copy_of = np.unique(rows, return_index=True, return_inverse=True)
    mean = thumbnails[first].mean(axis=1) / LEVEL
    order = np.lexsort((first, mean))  # several images of the same mean: by their index
    levels = thumbnails[first[order]].astype(np.float32) / LEVEL
    centers = np.empty(len(first), np.int64)
    centers[order] = order[_find_centers(levels, mean[order])]
    center = centers[copy_of]
    smallest = np.full(len(first), len(thumbnails), np.int64)  # index of each center's group
    np.minimum.at(smallest, center, np.arange(len(thumbnails)))
    return smallest[center]


def _find_centers(levels: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The center of each of different thumbnails, which are sorted by their mean.

    Args:
        levels: float32 [N, 192].
        mean: [N]. A difference is at least that of the means, so few centers have to be compared.

    Returns:
        int64 [N]: indices of the centers; a center's is its own.
    """
    looks = _looks_of(levels)
    center = np.arange(len(levels))
    is_center = np.zeros(len(levels), bool)
    for start in range(0, len(levels), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(levels)))
        earliest = np.searchsorted(mean, mean[start] - MAX_COLOR_DIFFERENCE)
        earlier = earliest + np.flatnonzero(is_center[earliest:start])
        for first in range(0, len(earlier), PART):
            part = earlier[first : first + PART]
            alone = block[center[block] == block]
            near = _are_near(looks.take(alone), looks.take(part))
            joins = near.any(axis=1)
            center[alone[joins]] = part[near[joins].argmax(axis=1)]
        near = _are_near(looks.take(block), looks.take(block))
        for i in block[center[block] == block]:
            if center[i] == i:
                is_center[i] = True
                center[block[near[i - start] & (center[block] == block)]] = i
    return center


class _Looks(NamedTuple):
    """Thumbnails in the parts that are compared."""

    colors: np.ndarray  # [N, 3], the means of the channels
    contrasts: np.ndarray  # [N], root mean square of what the channels differ from their means
    patterns: np.ndarray  # [N, 192], these differences as unit vectors; 0 where all are 0
    margins: np.ndarray  # bool [N, 64], cells that are black or white, or beside such a cell

    def take(self, indices: np.ndarray) -> "_Looks":
        return _Looks(*(part[indices] for part in self))


def _looks_of(levels: np.ndarray) -> _Looks:
    """Take thumbnails [N, 192] apart."""
    channels = levels.reshape(len(levels), 3, -1)
    colors = channels.mean(axis=2)
    patterns = (channels - colors[:, :, None]).reshape(levels.shape)
    lengths = np.linalg.norm(patterns, axis=1)
    patterns /= np.maximum(lengths, 1e-6)[:, None]
    return _Looks(colors, lengths / np.sqrt(THUMBNAIL_VALUES), patterns, _margins_of(channels))


def _margins_of(channels: np.ndarray) -> np.ndarray:
    """Which cells of thumbnails [N, 3, 64] are black or white, or partly so, as bool [N, 64]."""
    is_flat = (channels < MARGIN).all(axis=1) | (channels > 255 - MARGIN).all(axis=1)
    flat = np.pad(is_flat.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    beside = flat[:, :-2, 1:-1] | flat[:, 2:, 1:-1] | flat[:, 1:-1, :-2] | flat[:, 1:-1, 2:]
    return is_flat | beside.reshape(is_flat.shape)


def _are_near(some: _Looks, others: _Looks) -> np.ndarray:
    """Which of some images [A] are near-duplicates of which others [B], as bool [A, B]."""
    correlations = some.patterns @ others.patterns.T
    near = correlations >= MIN_CORRELATION
    i, j = np.nonzero(near)
    a, b = some.contrasts[i], others.contrasts[j]
    pattern_difference = a**2 + b**2 - 2 * a * b * correlations[i, j]
    color_difference = np.square(some.colors[i] - others.colors[j]).mean(axis=1)
    contrast = np.maximum(a, b)
    color_limit = np.minimum(MAX_COLOR_DIFFERENCE, MAX_COLOR_BY_CONTRAST * contrast)
    near[i, j] = (color_difference <= color_limit**2) & (
        pattern_difference <= _pattern_limit(contrast) ** 2
    )
    has_margin = some.margins.any(axis=1, keepdims=True) | others.margins.any(axis=1)
    i, j = np.nonzero(near & has_margin)
    for first in range(0, len(i), PAIRS):
        part = slice(first, first + PAIRS)
        near[i[part], j[part]] = _are_near_inside(some.take(i[part]), others.take(j[part]))
    return near


def _are_near_inside(some: _Looks, others: _Looks) -> np.ndarray:
    """Whether the images of pairs [P] have the same pattern inside their margins, as bool [P]."""
    inside = ~(some.margins | others.margins)[:, None]  # [P, 1, 64]
    count = np.maximum(inside.sum(axis=2), 1)  # [P, 1]
    patterns = []
    for looks in (some, others):
        pattern = (looks.patterns * looks.contrasts[:, None]).reshape(len(inside), 3, -1) * inside
        pattern -= inside * (pattern.sum(axis=2) / count)[:, :, None]
        patterns.append(pattern * np.sqrt(THUMBNAIL_VALUES))
    first, second, difference = (
        np.square(pattern).mean(axis=1).sum(axis=1) / count[:, 0]
        for pattern in (*patterns, patterns[0] - patterns[1])
    )
    limit = _pattern_limit(np.sqrt(np.maximum(first, second)))
    return (difference <= limit**2) | (inside.mean(axis=(1, 2)) < MIN_INSIDE)


def _pattern_limit(contrast: np.ndarray) -> np.ndarray:
    """How much patterns may differ, in gray levels, by the larger contrast of two images."""
    return np.minimum(
        np.maximum(MAX_PATTERN_DIFFERENCE, MAX_PATTERN_BY_CONTRAST * contrast),
        WEAK_PATTERN_BY_CONTRAST * contrast,
    )
