"""Random numbers drawn per item from (seed, item id): the same in any process, at any batch size, after any restart."""

import zlib

import numpy as np


def rng(seed: int, *item: int | str) -> np.random.Generator:
    """A generator of its own for one item."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in item]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))
