"""Pairs of a test tile and the image of its caption, which are drawn together.

Images follow the captions of just these test tiles: they show the same scenes, as often. A random
half of the images compared with another half of the tiles would lose this match, and with it what
the whole sets have in common.
"""

from typing import NamedTuple

import numpy as np


class Pairing(NamedTuple):
    """The test tile that each generated image belongs with, and the scenes of real tiles."""

    real_indices: np.ndarray  # [M], distinct: the test tile whose caption each image shows
    test_scenes: np.ndarray  # str [N]; "": not known
    train_scenes: np.ndarray  # str [T]


def align_real(real: np.ndarray, pairing: Pairing | None) -> np.ndarray:
    """Features [N, D] of test tiles, that of image i in row i; those without an image come last."""
    if pairing is None:
        return real
    others = np.setdiff1d(np.arange(len(real)), pairing.real_indices)
    return real[np.concatenate([pairing.real_indices, others])]


def draw_in_scenes(
    scenes: np.ndarray, wanted: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """A tile [M] of each wanted scene, none twice; of any scene where its own has too few.

    Args:
        scenes: those of the tiles [T], T >= M.
        wanted: scenes [M].
        generator: draws the tiles.
    """
    order = generator.permutation(len(scenes))
    drawn = np.full(len(wanted), -1)
    for scene in np.unique(wanted):
        places = np.flatnonzero(wanted == scene)
        tiles = order[scenes[order] == scene][: len(places)]
        drawn[places[: len(tiles)]] = tiles
    missing = drawn < 0
    drawn[missing] = order[~np.isin(order, drawn)][: missing.sum()]
    return drawn


def count_other_scenes(scenes: np.ndarray, wanted: np.ndarray) -> int:
    """Number of tiles whose scene [M] isn't the wanted one [M], or isn't known ("")."""
    return int(((scenes != wanted) | (wanted == "")).sum())
