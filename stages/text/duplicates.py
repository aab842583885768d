"""Near-duplicate texts share word shingles (Broder 1997, "On the resemblance of documents")."""

import re
import zlib
from functools import lru_cache

import numpy as np

SHINGLE_WORDS = 5
_WEIGHTS = np.array(
    [0x9E3779B97F4A7C15 * (2 * i + 1) % 2**64 for i in range(SHINGLE_WORDS)], dtype=np.uint64
)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


@lru_cache(1 << 17)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode())


def shingles(text: str) -> np.ndarray:
    """Return the hashes of the distinct runs of `SHINGLE_WORDS` words, sorted: [S] uint64.

    A shorter text is one shingle.
    """
    hashes = np.fromiter(map(_word_hash, words(text)), np.uint64)  # [words]
    if len(hashes) < SHINGLE_WORDS:
        hashes = np.concatenate([hashes, np.zeros(SHINGLE_WORDS - len(hashes), np.uint64)])
    count = len(hashes) - SHINGLE_WORDS + 1
    mixed = np.zeros(count, np.uint64)  # [count], sums modulo 2^64
    for offset, weight in enumerate(_WEIGHTS):
        mixed += hashes[offset : offset + count] * weight
    # The finalizer of SplitMix64 spreads the sums over all 64 bits.
    mixed ^= mixed >> np.uint64(31)
    return np.unique(mixed * np.uint64(0xBF58476D1CE4E5B9))


def positions_in(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the positions in `known` (sorted, not empty) of those `values` that it contains."""
    positions = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return positions[known[positions] == values]


def jaccard_similarity(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the sets of words of two texts, from 0 to 1."""
    words_a = set(words(text_a))
    words_b = set(words(text_b))
    return len(words_a & words_b) / max(1, len(words_a | words_b))
