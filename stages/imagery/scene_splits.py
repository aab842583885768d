"""Splits of tiles that were cut from scenes: tiles of different splits lie apart on the ground.

A site is a scene, or several that show the same ground. Of `MIN_SITES` sites or more each is in
one split. Fewer sites, or those of which one holds more tiles than train is to have, are cut into
square blocks, or where these would be small into lines of tiles: test takes the first lines, valid
the last. Then tiles that are closer than a tile's side to a tile of another split are left out: the
buffer.
"""

from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from stages.imagery.splits import name_hash
from stages.imagery.tile_spool import SpooledTile
from stages.runtime.progress import log

MIN_SITES = 10
BLOCKS = 25  # in all sites together, about; more if a split is to be smaller than a block
MIN_BLOCK = 4  # sides of a tile; around a smaller block the buffer would be larger than the block
SAME_GROUND = 0.5  # the least share of the smaller of two scenes that the other one covers
BUFFER = "buffer"  # the split of tiles that are left out
# Split -> those to whose tiles its own give way where both are close.
GIVES_WAY = {"valid": ("test",), "train": ("valid", "test")}


class Places(NamedTuple):
    """Where tiles are. Lengths are in sides of the largest tile of a frame."""

    frames: np.ndarray  # int [N]: a CRS or, without bounds, a scene
    scenes: np.ndarray  # int [N]
    scene_names: list[str]
    centers: np.ndarray  # float64 [N, 2]


def find_places(tiles: list[SpooledTile]) -> Places:
    """The places of tiles. An image that is no window of a scene is a scene of its own."""
    frames, scenes, boxes = [], [], []
    for tile in tiles:
        bounds, window = tile.georeference.bounds, tile.window
        scene = tile.name if window is None else _scene_name(tile.name)
        scenes.append(scene)
        # Bounds without a CRS are all in one frame: in a data set, equal numbers are equal ground.
        frames.append(f"crs {tile.georeference.crs}" if bounds else f"scene {scene}")
        if not bounds:
            left, top, width, height = (0, 0, 1, 1)
            if window is not None:
                left, top, width, height = window.column, window.row, window.width, window.height
            bounds = (left, top, left + width, top + height)
        boxes.append(bounds)
    corners = np.array(boxes, np.float64).reshape(-1, 2, 2)  # [N, corner, axis]
    _, frame_numbers = np.unique(frames, return_inverse=True)
    names, scene_numbers = np.unique(scenes, return_inverse=True)
    sides = np.zeros((frame_numbers.max() + 1, 2))
    np.maximum.at(sides, frame_numbers, np.abs(corners[:, 1] - corners[:, 0]))
    centers = corners.mean(axis=1) / sides[frame_numbers]
    return Places(frame_numbers, scene_numbers, names.tolist(), centers)


def _scene_name(tile_name: str) -> str:
    """The name of the file that a tile was cut from."""
    return tile_name.rpartition("_r")[0] + PurePosixPath(tile_name).suffix


def carve_scenes(tiles: list[SpooledTile], valid: float, test: float) -> list[str]:
    """Assign tiles to splits by site, block or line; the sizes are met as closely as these allow.

    Args:
        tiles: of scenes, and perhaps further images.
        valid: size of the split: a fraction (< 1), a count (>= 1), or 0.
        test: likewise.

    Returns:
        "train", "valid" or "test" for each tile.
    """
    test, valid = (size if size >= 1 else size * len(tiles) for size in (test, valid))
    smallest_share = min(size for size in (test, valid, len(tiles)) if size) / len(tiles)
    is_cut = [tile.window is not None for tile in tiles]
    if len({tile.georeference.crs for tile in tiles if tile.georeference.bounds}) > 1:
        log(
            "fetch_imagery.tile: warning: distances between tiles are measured within each CRS: "
            "where scenes of two CRS show the same ground, leave one of them out"
        )
    train = len(tiles) - test - valid
    units, order, are_lines = _split_units(find_places(tiles), is_cut, smallest_share, train)
    unit_sizes = np.bincount(units, minlength=len(order))
    split_of = np.full(len(order), "train", dtype=object)
    for split, size, ordered in (("test", test, order), ("valid", valid, order[::-1])):
        free = [unit for unit in ordered if split_of[unit] == "train"]
        take = _take_lines if are_lines else _take_units
        split_of[take(free, unit_sizes, size)] = split
    return split_of[units].tolist()


def _split_units(
    places: Places, is_cut: list[bool], smallest_share: float, train: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Group the tiles into units, each of which is in one split.

    Args:
        places: of the tiles.
        is_cut: whether each tile is one of a scene.
        smallest_share: of the tiles that a split gets. A block is not larger.
        train: the number of tiles that train is to have. A site with more is cut.

    Returns:
        The unit of each tile, int [N]; the order in which test takes the units; and whether they
        are lines of tiles, side by side in this order.
    """
    sites, site_names = find_sites(places, is_cut)
    low, high = _extents(sites, places.centers)
    sides = high - low  # of the sites
    cut_sites = np.unique(sites[is_cut])
    area = sides[cut_sites].prod(axis=1).sum()
    block = max(MIN_BLOCK, int(np.sqrt(area * min(1 / BLOCKS, smallest_share))))
    offsets = places.centers - low[sites]
    are_lines = False
    if len(cut_sites) >= MIN_SITES and np.bincount(sites).max() <= train:
        unit_kind, cells = "scene", np.zeros_like(offsets)
    elif area >= BLOCKS * MIN_BLOCK**2:
        unit_kind = f"block of about {block} x {block} tiles"
        counts = np.maximum(np.rint(sides / block), 1)[sites]
        cells = np.floor(offsets / sides[sites] * counts)
    else:
        unit_kind, are_lines = "line of tiles", True
        is_longer = sides == sides.max(axis=1, keepdims=True)
        is_longer[:, 1] &= ~is_longer[:, 0]
        cells = np.round(offsets * is_longer[sites], 6)
    log(f"fetch_imagery.tile: scenes of {len(cut_sites)} site(s), split by {unit_kind}")
    keys, units = np.unique(np.column_stack([sites, cells]), axis=0, return_inverse=True)
    if are_lines:
        return units, np.arange(len(keys)), True
    names = [f"{site_names[int(site)]} {x:g} {y:g}" for site, x, y in keys]
    return units, np.argsort([name_hash(name) for name in names], kind="stable"), False


def name_sites(tiles: list[SpooledTile]) -> None:
    """Set the `site` of the tiles that were cut from scenes: the name of a scene of their site."""
    is_cut = [tile.window is not None for tile in tiles]
    sites, names = find_sites(find_places(tiles), is_cut)
    for tile, site in zip(tiles, sites.tolist()):
        tile.site = names[site] if tile.window is not None else None


def find_sites(places: Places, is_cut: list[bool]) -> tuple[np.ndarray, list[str]]:
    """The site of each tile, int [N], and the names of the sites."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(places.scene_names)
    frames = np.zeros(count, np.int64)
    frames[places.scenes] = places.frames
    low, high = _extents(places.scenes, places.centers)
    scenes = np.unique(places.scenes[is_cut])
    boxes = np.column_stack([frames, low, high])[scenes]
    # A time series has many scenes of one extent: one of them is compared with the others.
    _, first, box_of_scene = np.unique(boxes, axis=0, return_index=True, return_inverse=True)
    one_of_box = scenes[first]
    pairs = _pairs_of_same_ground(frames[one_of_box], low[one_of_box], high[one_of_box])
    i = np.concatenate([scenes, one_of_box[pairs[0]]])
    j = np.concatenate([one_of_box[box_of_scene], one_of_box[pairs[1]]])
    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(count, count))
    _, site_of_scene = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    for name, site in zip(places.scene_names, site_of_scene.tolist()):
        names.setdefault(site, name)
    return site_of_scene[places.scenes], [names[site] for site in sorted(names)]


def _pairs_of_same_ground(frames: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Pairs of boxes of one frame that show the same ground: int [2, P].

    Args:
        frames: int [B], of the boxes.
        low: their lowest corners, [B, 2].
        high: their highest corners, [B, 2].
    """
    from scipy.spatial import KDTree

    # The larger of two such boxes contains the center of the smaller one.
    reach = (high - low).max(axis=1) / 2
    apart = 2 * reach.max() + 1  # of frames, along a third axis
    points = np.column_stack([(low + high) / 2, frames * apart])
    near = KDTree(points).query_ball_point(points, reach * (1 + 1e-9) + 1e-9, p=np.inf)
    i = np.repeat(np.arange(len(near)), list(map(len, near)))
    j = np.concatenate(near)
    overlap = np.minimum(high[i], high[j]) - np.maximum(low[i], low[j])
    areas = (high - low).prod(axis=1)
    are_same = overlap.clip(min=0).prod(axis=1) >= SAME_GROUND * np.minimum(areas[i], areas[j])
    return np.stack([i, j])[:, are_same]


def _extents(areas: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest corner of each area [A, 2], of tiles in the areas [N] with centers."""
    low, high = (np.full((areas.max() + 1, 2), bound) for bound in (np.inf, -np.inf))
    np.minimum.at(low, areas, centers - 0.5)
    np.maximum.at(high, areas, centers + 0.5)
    return low, high


def _take_units(order: list[int], sizes: np.ndarray, target: float) -> list[int]:
    """The first units that each bring the number of tiles closer to the target; one at least."""
    taken: list[int] = []
    total = 0
    for unit in order:
        if target and abs(total + sizes[unit] - target) < abs(total - target):
            taken.append(unit)
            total += sizes[unit]
    if target and not taken and len(order) > 1:
        return [min(order, key=lambda unit: sizes[unit])]
    return taken


def _take_lines(order: list[int], sizes: np.ndarray, target: float) -> list[int]:
    """The first lines, as many as come closest to the target; one at least."""
    if not target or len(order) < 2:
        return []
    totals = np.cumsum(sizes[order])
    return order[: 1 + int(np.abs(totals - target).argmin())]


def leave_out_buffer(tiles: list[SpooledTile]) -> int:
    """Take the tiles out of train and valid that are too close to a tile of another split.

    Args:
        tiles: their `split` is changed in place, as `GIVES_WAY` says.

    Returns:
        The number of tiles that are left out.
    """
    places = find_places(tiles)
    splits = np.array([tile.split for tile in tiles], dtype=object)
    for split, others in GIVES_WAY.items():
        splits[_close_tiles(places, splits, split, others)] = BUFFER
    for tile, split in zip(tiles, splits.tolist()):
        tile.split = split
    return int(np.sum(splits == BUFFER))


def count_close_tiles(tiles: list[SpooledTile]) -> int:
    """The number of tiles of train and valid that are too close to a tile of another split."""
    places = find_places(tiles)
    splits = np.array([tile.split for tile in tiles], dtype=object)
    close = (_close_tiles(places, splits, *pair) for pair in GIVES_WAY.items())
    return sum(map(len, close))


def _close_tiles(
    places: Places, splits: np.ndarray, split: str, others: tuple[str, ...]
) -> np.ndarray:
    """Which tiles of a split are less than a side from a tile of the others, as indices int [M]."""
    from scipy.spatial import KDTree

    # Tiles of different frames are far from each other along a third axis.
    points = np.column_stack([places.centers, 10 * places.frames])
    own = np.flatnonzero(splits == split)
    tree = KDTree(points[np.isin(splits, others)])
    # Between centers: half a side of each tile, and the side in between.
    distances, _ = tree.query(points[own], p=np.inf, distance_upper_bound=2 - 1e-6)
    return own[np.isfinite(distances)]
