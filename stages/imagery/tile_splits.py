"""Decide on the split of each tile: the source's own splits, missing ones, and what is left out."""

from typing import Any

import numpy as np

from stages.imagery.near_duplicates import (
    count_groups_of_several_scenes,
    count_near_duplicates,
    find_scenes_outside_train,
)
from stages.imagery.scene_splits import carve_scenes, count_close_tiles, leave_out_buffer
from stages.imagery.splits import carve_splits
from stages.imagery.tile_spool import SpooledTile
from stages.params import FetchImagery
from stages.runtime.progress import log


def split_tiles(
    tiles: list[SpooledTile], groups: np.ndarray, missing: list[str], config: FetchImagery
) -> dict[str, Any]:
    """Decide on the split of each tile, and which tiles are left out.

    Args:
        tiles: their `split` is changed in place.
        groups: [N], the group of near-duplicates of each tile.
        missing: which of "valid" and "test" to fill.
        config: the sizes of the splits.

    Returns:
        What REPORT.json says about it.
    """
    counts: dict[str, Any] = {}
    if missing:
        counts = _carve_missing_splits(tiles, groups, missing, config)
    are_located = has_windows(tiles) or any(tile.georeference.bounds for tile in tiles)
    if are_located and not (missing and has_windows(tiles)):  # else there is a buffer
        _warn_of_close_tiles(tiles, are_carved=bool(missing))
    near_duplicates = count_near_duplicates(groups, [tile.split for tile in tiles])
    near_duplicates |= _exclude_near_duplicates(tiles, groups, config.exclude_near_duplicates)
    scenes = [tile.scene for tile in tiles]
    near_duplicates |= count_groups_of_several_scenes(scenes, groups)
    splits = [tile.split for tile in tiles]
    outside_train = find_scenes_outside_train(scenes, groups, splits)
    return {"near_duplicates": near_duplicates} | counts | outside_train


def _carve_missing_splits(
    tiles: list[SpooledTile], groups: np.ndarray, missing: list[str], config: FetchImagery
) -> dict[str, int]:
    """Move tiles from train to the splits that the source doesn't have.

    Near-duplicates stay together; tiles of scenes by where they are.

    Args:
        tiles: their `split` is changed in place.
        groups: [N], the group of near-duplicates of each tile.
        missing: which of "valid" and "test" to fill.
        config: the sizes of the splits.

    Returns:
        The number of tiles of scenes that are left out between splits, for REPORT.json.
    """
    if has_windows(tiles):
        leave_out_buffer(tiles)  # around the source's own splits, if there are any
    pool = [i for i, tile in enumerate(tiles) if tile.split == "train"]
    valid = config.valid if "valid" in missing else 0
    test = config.test if "test" in missing else 0
    train = [tiles[i] for i in pool]
    if has_windows(train):
        new_splits = carve_scenes(train, valid, test)
    else:
        new_splits = carve_splits([tile.name for tile in train], groups[pool], valid, test)
    for tile, split in zip(train, new_splits):
        tile.split = split
    return {"buffer": leave_out_buffer(tiles)} if has_windows(tiles) else {}


def _warn_of_close_tiles(tiles: list[SpooledTile], are_carved: bool) -> None:
    """Log how many tiles are close to a tile of another split, and if we carved it, what to do."""
    close = count_close_tiles(tiles)
    if close:
        log(
            f"fetch_imagery.splits: warning: {close} tiles of train or valid overlap a tile of "
            "another split, or lie less than a tile's side from it; they stay as they are"
            + (": cut the scenes by fetch_imagery.tile, or give own splits" if are_carved else "")
        )


def _exclude_near_duplicates(
    tiles: list[SpooledTile], groups: np.ndarray, is_wanted: bool
) -> dict[str, int]:
    """Take the tiles out of test that look like a training tile; of scenes, out of valid, too.

    Returns:
        The number of tiles that are left out, for REPORT.json.
    """
    splits = ["test", "valid"] if has_windows(tiles) else ["test"]
    counts = dict.fromkeys((f"excluded_from_{split}" for split in splits), 0)
    training_groups = {
        group for tile, group in zip(tiles, groups.tolist()) if tile.split == "train"
    }
    for tile, group in zip(tiles, groups.tolist()):
        if is_wanted and tile.split in splits and group in training_groups:
            counts[f"excluded_from_{tile.split}"] += 1
            tile.split = "excluded"
    return counts


def has_windows(tiles: list[SpooledTile]) -> bool:
    """Whether a scene was cut into tiles."""
    return any(tile.window for tile in tiles)
