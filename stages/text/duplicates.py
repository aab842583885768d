"""Near-duplicate texts share word shingles (Broder 1997, "On the resemblance of documents")."""

import math
import re
import zlib
from collections import defaultdict
from functools import lru_cache

import numpy as np

SHINGLE_WORDS = 5
SKETCH_SIZE = 128  # shingles; resemblance is estimated to about 0.04
# Share of the shingles of two texts that is common to both, from which on they are one paper.
SAME_TEXT = 0.5
SAME_NAME = 0.1  # where the names differ by a version alone
# `2405.04717v2`, `thesisv2` or `survey_v_2`, but not `survey_nov_2020`, `uav_1` or `v_2020`.
VERSION = re.compile(r"(?:(?<![a-z])v(?:er|ersion)?[ ._-]?|v)(\d{1,2})(?![a-z0-9])")
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
    """Return the positions in `known` (sorted) of those `values` that it contains."""
    if not len(known):
        return np.zeros(0, int)
    positions = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return positions[known[positions] == values]


def sketch(text: str) -> np.ndarray:
    """Return the `SKETCH_SIZE` smallest hashes of `shingles`, sorted: [K] uint64.

    They stand for the whole text in `resemblance` (the bottom-k sketch of Broder 1997).
    """
    return shingles(text)[:SKETCH_SIZE].copy()


def resemblance(sketch_a: np.ndarray, sketch_b: np.ndarray) -> float:
    """Estimate the Jaccard similarity of the shingles of two texts from their sketches."""
    union = np.union1d(sketch_a, sketch_b)[:SKETCH_SIZE]
    return float((np.isin(union, sketch_a) & np.isin(union, sketch_b)).mean())


def find_copies(sketches: dict[str, np.ndarray], lengths: dict[str, int]) -> dict[str, str]:
    """Find the papers that another one repeats: the same text, or an older version of it.

    Of two, the one with the higher version in its name stays (`2405.04717v2`), else the longer one,
    else the first by name.

    No pair is missed, though few are compared. The sketches of two texts of one resemblance share
    at least `SAME_TEXT` of each one's hashes, so one of any `_rarest` hashes: a license or a footer
    that many texts have in common makes them candidates only where it is about half of a text.

    Args:
        sketches: `sketch` of each paper, by the papers' names.
        lengths: characters of each paper.

    Returns:
        {paper to leave out: paper that stays}
    """
    copies = {}
    kept: dict[int, list[str]] = defaultdict(list)  # hash -> papers that stay
    versions: dict[str, list[str]] = defaultdict(list)  # name without version -> papers that stay
    newest_first = sorted(sketches, key=lambda name: (-_version(name), -lengths[name], name))
    for name in newest_first:
        hashes = sketches[name].tolist()
        same_name = versions[_without_version(name)]
        sharing = (other for value in _rarest(hashes, kept) for other in kept.get(value, ()))
        candidates = {other: sketches[other] for other in [*same_name, *sharing]}
        original = _find_original(sketches[name], candidates, set(same_name))
        if original is not None:
            copies[name] = original
            continue
        same_name.append(name)
        for value in hashes:
            kept[value].append(name)
    return copies


def _rarest(hashes: list[int], kept: dict[int, list[str]]) -> list[int]:
    """Return the hashes that fewest kept papers have; a copy of a kept paper has one of these."""
    shared = math.ceil(SAME_TEXT * len(hashes))  # at least, with a paper of the same text
    by_count = sorted(hashes, key=lambda value: len(kept.get(value, ())))
    return by_count[: len(hashes) - shared + 1]


def _find_original(
    own: np.ndarray, candidates: dict[str, np.ndarray], same_name: set[str]
) -> str | None:
    """Return the candidate that a sketch repeats, of several the one that shares most; or None."""
    own_hashes = set(own.tolist())
    shared = {name: len(own_hashes.intersection(candidates[name].tolist())) for name in candidates}
    for name in sorted(shared, key=lambda name: -shared[name]):
        least = SAME_NAME if name in same_name else SAME_TEXT
        # `resemblance` is at most this, as if all that is shared were in its part of the union.
        union = len(own) + len(candidates[name]) - shared[name]
        bound = shared[name] / min(union, SKETCH_SIZE)
        if bound >= least and resemblance(own, candidates[name]) >= least:
            return name
    return None


def _version(name: str) -> int:
    """Return the version number in a paper's name, 1 without one."""
    found = VERSION.findall(name.lower())
    return int(found[-1]) if found else 1


def _without_version(name: str) -> str:
    return VERSION.sub("", name.lower())


def trigram_similarity(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the sets of word trigrams of two texts, from 0 to 1."""
    trigrams_a, trigrams_b = (
        set(zip(text_words, text_words[1:], text_words[2:]))
        for text_words in (words(text_a), words(text_b))
    )
    return len(trigrams_a & trigrams_b) / max(1, len(trigrams_a | trigrams_b))


@lru_cache(1 << 17)
def _word_set(text: str) -> frozenset[str]:
    """Return the words of a text; kept, since a prompt is compared with each later candidate."""
    return frozenset(words(text))


def jaccard_similarity(text_a: str, text_b: str) -> float:
    """Return the Jaccard similarity of the sets of words of two texts, from 0 to 1."""
    words_a = _word_set(text_a)
    words_b = _word_set(text_b)
    return len(words_a & words_b) / max(1, len(words_a | words_b))
