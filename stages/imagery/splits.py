"""Train, valid and test carved out by a hash of the file name, near-duplicates kept together."""

import hashlib
from itertools import combinations, pairwise

import numpy as np

from stages.runtime.errors import exit_with_error

# Measured on 300 RSICD images: JPEG quality 60, or 70 % size and quality 85, changes <= 10 bits (98-100 % <= 6) and <= 0.6
# grey levels; the nearest *different* images differ by >= 6.8 grey levels, however alike their hashes are.
MAX_BITS = 6  # of 64 in the difference hash
MAX_GREY = 3.0  # of 255, mean absolute difference of 16 x 16 thumbnails


def share(name: str, purpose: str = "split") -> float:
    """A number in [0, 1) that depends on the name alone, another one for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{name}".encode()).digest()[:7], "big") / 2**56


def near_duplicates(dhash: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """Group images that look the same.

    dhash: uint64 [N]; thumbs: uint8 [N, 256]. Returns int64 [N]: the smallest index of each image's group. Two images
    are near-duplicates when at most `MAX_BITS` bits and `MAX_GREY` grey levels differ; groups are chains of those. Two
    hashes that differ in k bits agree in one of k + 1 bands, so only images that share a band are compared.
    """
    parent = np.arange(len(dhash))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    edges = np.linspace(0, 64, MAX_BITS + 2).astype(int)
    for low, high in pairwise(edges):
        band = (dhash >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for place, i in enumerate(bucket[:-1]):
                rest = bucket[place + 1 :]
                rest = rest[np.bitwise_count(dhash[rest] ^ dhash[i]) <= MAX_BITS]
                grey = np.abs(thumbs[rest].astype(np.int16) - thumbs[i]).mean(1)
                for j in rest[grey <= MAX_GREY]:
                    a, b = sorted((root(i), root(j)))
                    parent[b] = a
    return np.array([root(i) for i in range(len(parent))], dtype=np.int64)


def carve(names: list[str], groups: np.ndarray, valid: float, test: float) -> list[str]:
    """`train`, `valid` or `test` for each image.

    names: [N]; groups: [N], images with one value stay together; valid, test: a fraction (< 1), a count (>= 1), or 0.
    By fraction, an image's split depends on its name (in a group: on the first name) alone, whatever else is there.
    test is taken from the low end of the hash, valid from the high end, so that neither moves when the other's size changes.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(i)
    hashed = sorted((share(min(names[i] for i in group)), group) for group in members.values())
    split = ["train"] * len(names)
    for name, size, ordered, place in (
        ("test", test, hashed, lambda u: u),
        ("valid", valid, hashed[::-1], lambda u: 1 - u),
    ):
        taken = 0
        for u, group in ordered:
            fits = place(u) < size or not taken if size < 1 else taken + len(group) <= size
            if size and fits and split[group[0]] == "train":
                taken += len(group)
                for i in group:
                    split[i] = name
    return split


def own_splits(
    found: dict[str | None, int], wanted: dict[str, str | None], key: str
) -> tuple[dict, list[str]]:
    """Which of the source's splits serves as what, and what is left to carve.

    found: the source's splits (None: in no split) with their usable images; wanted: ours -> the source's name or None.
    Returns {source split: "train", "valid" or "test"} and the splits to carve out of what is `train` there.
    """
    has = [name for name in found if name is not None]
    there = (
        f"the source has {', '.join(sorted(has)) if has else 'none'}"
        + " and images in no split" * bool(has and None in found)
    )
    named = {ours: theirs for ours, theirs in wanted.items() if theirs is not None}
    for ours, theirs in named.items():
        if theirs not in has:
            exit_with_error(f"{key}.{ours}: no split {theirs!r} in the imagery; {there}")
        if list(named.values()).count(theirs) > 1:
            exit_with_error(f"{key}: {theirs} is named twice; {there}")
    if not named and len(found) > 1:
        exit_with_error(
            f"{key}: {there} as its own splits: say which is train, valid, test (null: carved out of train)"
        )
    # Without a train of its own, whatever is not named is the pool.
    pool = (
        [named["train"]]
        if "train" in named
        else [name for name in found if name not in named.values()]
    )
    if not pool:
        exit_with_error(f"{key}.train: nothing is left for it; {there}")
    given = {theirs: ours for ours, theirs in named.items()} | dict.fromkeys(pool, "train")
    return given, [ours for ours in ("valid", "test") if ours not in named]


def duplicates(groups: np.ndarray, splits: list[str]) -> dict:
    """Groups of look-alikes, and how many of them straddle two splits (only the source's own splits can)."""
    members: dict[int, list[str]] = {}
    for group, split in zip(groups.tolist(), splits):
        members.setdefault(group, []).append(split)
    several = [group for group in members.values() if len(group) > 1]
    across = {
        f"{a}_{b}": sum(a in group and b in group for group in several)
        for a, b in combinations(("train", "valid", "test"), 2)
    }
    return {
        "groups": len(several),
        "images": sum(map(len, several)),
        "largest": max(map(len, several), default=0),
        **across,
    }
