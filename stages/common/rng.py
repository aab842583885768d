"""Random numbers per item, drawn from (seed, item id).

They are the same in any process, at any batch size and after any restart.
"""

import zlib

import numpy as np


def rng(seed: int, *item: int | str) -> np.random.Generator:
    """A random number generator for one item, which its id (integers and strings) seeds."""
    item_id = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in item]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *item_id])))
