"""Decide on the split of each tile, what is left out, and what to say of near-duplicates.

`groups` [N] is the group of near-duplicates of each tile, as `group_near_duplicates` returns them.
"""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np

from stages.imagery.scene_splits import (
    carve_scenes,
    count_close_tiles,
    leave_out_buffer,
    name_sites,
)
from stages.imagery.splits import carve_splits
from stages.imagery.tile_spool import SpooledTile
from stages.params import FetchImagery
from stages.runtime.progress import log

MANY_TILES = 5  # of a scene; fewer may all fall into test or valid by chance
MAX_LOGGED = 20  # scenes


def split_tiles(
    tiles: list[SpooledTile], groups: np.ndarray, missing: list[str], config: FetchImagery
) -> dict[str, Any]:
    """Decide on the split of each tile, and which tiles are left out; name the sites of scenes.

    Args:
        tiles: their `split` and `site` are changed in place.
        groups: see above.
        missing: which of "valid" and "test" to fill.
        config: the sizes of the splits.

    Returns:
        What REPORT.json says about it.
    """
    counts: dict[str, Any] = {}
    if has_windows(tiles):
        name_sites(tiles)
    if missing:
        counts = _carve_missing_splits(tiles, groups, missing, config)
    are_located = has_windows(tiles) or any(tile.georeference.bounds for tile in tiles)
    if are_located and not (missing and has_windows(tiles)):  # else there is a buffer
        _warn_of_close_tiles(tiles, are_carved=bool(missing))
    near_duplicates = _count_near_duplicates(tiles, groups)
    near_duplicates |= _exclude_near_duplicates(tiles, groups, config.exclude_near_duplicates)
    near_duplicates |= count_groups_of_several_scenes(tiles, groups)
    outside_train = find_scenes_outside_train(tiles, groups)
    return {"near_duplicates": near_duplicates} | counts | outside_train


def _carve_missing_splits(
    tiles: list[SpooledTile], groups: np.ndarray, missing: list[str], config: FetchImagery
) -> dict[str, int]:
    """Move tiles from train to the splits that the source doesn't have.

    Near-duplicates stay together; tiles of scenes by where they are. Near-duplicates of tiles of
    the source's own valid or test split stay in train.

    Args:
        tiles: their `split` is changed in place.
        groups: see above.
        missing: which of "valid" and "test" to fill.
        config: the sizes of the splits.

    Returns:
        The number of tiles of scenes that are left out between splits, for REPORT.json.
    """
    if has_windows(tiles):
        leave_out_buffer(tiles)  # around the source's own splits, if there are any
    own = {group for tile, group in zip(tiles, groups.tolist()) if tile.split in ("valid", "test")}
    pool = [
        i for i, tile in enumerate(tiles) if tile.split == "train" and int(groups[i]) not in own
    ]
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
    training_groups = {
        group for tile, group in zip(tiles, groups.tolist()) if tile.split == "train"
    }
    counts = {}
    for split in splits:
        held_out = [i for i, tile in enumerate(tiles) if tile.split == split]
        excluded = [i for i in held_out if is_wanted and int(groups[i]) in training_groups]
        for i in excluded:
            tiles[i].split = "excluded"
        counts[f"excluded_from_{split}"] = len(excluded)
        if excluded:
            scenes = {tiles[i].scene for i in excluded} - {""}
            lost = sorted(scenes.difference(tile.scene for tile in tiles if tile.split == split))
            log(
                f"fetch_imagery.exclude_near_duplicates: {len(excluded)} of {len(held_out)} "
                f"{split} tiles look like a training tile and are left out"
                + (f"; {split} has no tile left of {', '.join(lost[:MAX_LOGGED])}" if lost else "")
            )
    return counts


def has_windows(tiles: list[SpooledTile]) -> bool:
    """Whether a scene was cut into tiles."""
    return any(tile.window for tile in tiles)


def find_scenes_outside_train(
    tiles: list[SpooledTile], groups: np.ndarray
) -> dict[str, dict[str, dict[str, int]]]:
    """Find and log the scenes that training hardly sees.

    These are scenes of which one group of near-duplicates outside train holds more than half of the
    tiles, and scenes of at least `MANY_TILES` tiles of which none is in train.

    Returns:
        For REPORT.json: of each such scene the number of tiles in all, in train and in its largest
        group; {} if there is none.
    """
    groups_of: dict[str, list[int]] = {}  # the group of each tile of a scene
    train_groups_of: dict[str, list[int]] = {}  # the same of its tiles in train
    for tile, group in zip(tiles, groups.tolist()):
        groups_of.setdefault(tile.scene, []).append(group)
        if tile.split == "train":
            train_groups_of.setdefault(tile.scene, []).append(group)
    outside: dict[str, dict[str, int]] = {}
    for scene in sorted(groups_of.keys() - {""}):
        count = len(groups_of[scene])
        in_train = train_groups_of.get(scene, [])
        largest, size = Counter(groups_of[scene]).most_common(1)[0]
        is_grouped_out = size > max(1, count / 2) and largest not in in_train
        if is_grouped_out or (not in_train and count >= MANY_TILES):
            outside[scene] = {"tiles": count, "train": len(in_train), "largest_group": size}
    if not outside:
        return {}
    parts = [f"{found['train']} of {found['tiles']} of {name}" for name, found in outside.items()]
    more = f" and {len(parts) - MAX_LOGGED} more scenes" if len(parts) > MAX_LOGGED else ""
    log(
        "fetch_imagery: warning: training sees few tiles of some scenes (by near-duplicates or by "
        f"where they are): {', '.join(parts[:MAX_LOGGED])}{more}"
    )
    return {"scenes_outside_train": outside}


def _count_near_duplicates(tiles: list[SpooledTile], groups: np.ndarray) -> dict[str, int]:
    """Count the groups of two or more tiles, and those that are in two splits.

    Only splits that the source itself has can share a group: `carve_splits` keeps groups together.
    """
    splits_of: dict[int, list[str]] = {}  # the split of each tile of a group
    for tile, group in zip(tiles, groups.tolist()):
        splits_of.setdefault(group, []).append(tile.split)
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


def count_groups_of_several_scenes(tiles: list[SpooledTile], groups: np.ndarray) -> dict[str, int]:
    """Count and log the groups whose tiles are of several scenes: one image with two labels.

    Returns:
        For REPORT.json; {} if there is none.
    """
    scenes_of: dict[int, set[str]] = {}  # of each group
    for tile, group in zip(tiles, groups.tolist()):
        if tile.scene:
            scenes_of.setdefault(group, set()).add(tile.scene)
    several = Counter(" and ".join(sorted(found)) for found in scenes_of.values() if len(found) > 1)
    if not several:
        return {}
    shown = ", ".join(f"{count} of {names}" for names, count in several.most_common(5))
    more = ", ..." if len(several) > 5 else ""
    log(
        f"fetch_imagery: {several.total()} group(s) of near-duplicates hold several scenes, such "
        f"as one image with two labels: {shown}{more}"
    )
    return {"several_scenes": several.total()}
