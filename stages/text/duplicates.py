"""Near-duplicates by shared word shingles."""

import re
import zlib
from functools import lru_cache

import numpy as np

WIDTH = 5  # words per shingle
_WEIGHTS = np.array(
    [0x9E3779B97F4A7C15 * (2 * i + 1) % 2**64 for i in range(WIDTH)], dtype=np.uint64
)


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"\w+", text.lower())


@lru_cache(1 << 17)
def _code(word: str) -> int:
    return zlib.crc32(word.encode())


def shingles(text: str) -> np.ndarray:
    """64-bit hashes of the distinct runs of `WIDTH` words, sorted: [n] uint64; a shorter text is one shingle."""
    codes = np.fromiter(map(_code, words(text)), np.uint64)
    if len(codes) < WIDTH:
        codes = np.concatenate([codes, np.zeros(WIDTH - len(codes), np.uint64)])
    runs = len(codes) - WIDTH + 1
    mixed = sum(
        codes[at : at + runs] * weight for at, weight in enumerate(_WEIGHTS)
    )  # [runs], modulo 2^64
    mixed ^= mixed >> np.uint64(31)
    return np.unique(mixed * np.uint64(0xBF58476D1CE4E5B9))


def where(mine: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Positions in `known` (sorted, not empty) of those of `mine` that it holds."""
    at = np.minimum(np.searchsorted(known, mine), len(known) - 1)
    return at[known[at] == mine]


def alike(a: str, b: str) -> float:
    """Jaccard similarity of two short texts' sets of words."""
    first, second = set(words(a)), set(words(b))
    return len(first & second) / max(1, len(first | second))
