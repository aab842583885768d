"""Near-duplicate images: the perceptual fingerprint of a tile, and groups of similar ones."""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

# Measured on 300 RSICD images: JPEG of quality 60, or 70 % of the size at quality 85, changes at
# most 10 bits of the hash (in 98-100 % of the images at most 6) and at most 0.6 gray levels. The
# most similar *different* images differ by at least 6.8 gray levels, however similar
# their hashes are.
MAX_HASH_BITS = 6  # of 64
MAX_GRAY_LEVELS = 3.0  # of 255, mean absolute difference of the thumbnails


class Fingerprint(NamedTuple):
    """What near-duplicates are found by."""

    dhash: int  # 64 bits
    thumbnail: bytes  # 16 x 16 gray levels


def fingerprint(image: Image.Image) -> Fingerprint:
    """The difference hash (Krawetz 2013) and a gray thumbnail of an RGB tile.

    Each of the 8 x 8 bits of the hash tells whether the brightness rises to the right.
    """
    gray = image.convert("L")
    small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), np.int16)  # [8, 9]
    rises = np.packbits(small[:, 1:] > small[:, :-1])
    thumbnail = gray.resize((16, 16), Image.Resampling.BOX).tobytes()
    return Fingerprint(int.from_bytes(rises.tobytes(), "big"), thumbnail)


def group_near_duplicates(dhashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Group images that look the same.

    Two images are near-duplicates if they differ in at most `MAX_HASH_BITS` bits and
    `MAX_GRAY_LEVELS` gray levels. A group is a connected component of the graph of such pairs.

    Args:
        dhashes: uint64 [N].
        thumbnails: uint8 [N, 256].

    Returns:
        int64 [N]: the smallest index of each image's group.
    """
    parent = np.arange(len(dhashes))  # union-find: a root is the smallest index of its group
    for i, j in _near_duplicate_pairs(dhashes, thumbnails):
        smaller, larger = sorted((_find_root(parent, i), _find_root(parent, j)))
        parent[larger] = smaller
    return np.array([_find_root(parent, i) for i in range(len(parent))], dtype=np.int64)


def _find_root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]  # path halving
        i = parent[i]
    return i


def _near_duplicate_pairs(dhashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of near-duplicates. A pair may come several times."""
    for bucket in _buckets(dhashes):
        for position, i in enumerate(bucket[:-1]):
            others = bucket[position + 1 :]
            different_bits = np.bitwise_count(dhashes[others] ^ dhashes[i])
            others = others[different_bits <= MAX_HASH_BITS]
            differences = np.abs(thumbnails[others].astype(np.int16) - thumbnails[i])
            for j in others[differences.mean(1) <= MAX_GRAY_LEVELS]:
                yield i, j


def _buckets(dhashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield sets of indices that together contain every pair that differs in few enough bits.

    Two hashes that differ in k bits are equal in one of k + 1 bit ranges at least. So the images
    are sorted by each bit range, and those with equal bits form a set.
    """
    edges = np.linspace(0, 64, MAX_HASH_BITS + 2).astype(int)
    for low, high in pairwise(edges):
        bits = (dhashes >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(bits, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(bits[order])) + 1)


def count_near_duplicates(groups: np.ndarray, splits: list[str]) -> dict[str, int]:
    """Count the groups of two or more images, and those that are in two splits.

    Only splits that the source itself has can share a group: `carve_splits` keeps groups together.

    Args:
        groups: [N], as `group_near_duplicates` returns them.
        splits: the split of each image.
    """
    splits_of: dict[int, list[str]] = {}  # the split of each image of a group
    for group, split in zip(groups.tolist(), splits):
        splits_of.setdefault(group, []).append(split)
    duplicates = [group_splits for group_splits in splits_of.values() if len(group_splits) > 1]
    counts = {
        "groups": len(duplicates),
        "images": sum(map(len, duplicates)),
        "largest": max(map(len, duplicates), default=0),
    }
    for first, second in combinations(("train", "valid", "test"), 2):
        counts[f"{first}_{second}"] = sum(
            first in group_splits and second in group_splits for group_splits in duplicates
        )
    return counts
