"""Cut scenes, which are rasters larger than a tile, into windows of their own grid and CRS."""

import math
import re
from collections.abc import Iterator
from functools import partial
from itertools import product, repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stages.imagery.bands import ONE_BAND
from stages.imagery.image_decoding import is_raster
from stages.imagery.label_rasters import KEY, TileLabel, label_windows
from stages.imagery.rasters import RasterWindow, file_of_image, open_raster, rasterio_settings
from stages.imagery.readers.class_folders import NO_SCENE
from stages.imagery.readers.items import ImageSource, SourceItem, scene_of
from stages.imagery.tile_making import Reading
from stages.imagery.unusable_image import UNREADABLE, UnusableImage
from stages.params import Labels, TileGrid
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log, progress_bar

IS_LABEL_RASTER = "a label raster"
IS_PREVIEW = "a preview of a scene that is cut"
PREVIEW_SUFFIXES = {".jpg", ".jpeg", ".png"}
LABELS_ARE_FOR_RASTERS = (
    "labels are for rasters (TIFF, JPEG 2000, 16-bit PNG): convert the image, "
    "rio convert a.png a.tif"
)


class Scene(NamedTuple):
    """A raster: the windows it is cut into, in the order of its compressed blocks."""

    windows: list[RasterWindow]
    is_cut: bool  # False: it is one tile, which shows the window
    labels: list[TileLabel] | None = None  # of the windows; None: there are no label rasters


def cut_scenes(
    source: ImageSource, grid: TileGrid | None, labels: Labels | None, reading: Reading
) -> ImageSource:
    """Cut the scenes of a source, and give tiles their class from label rasters.

    Args:
        source: the opened source. Images that are no raster files stay as they are.
        grid: size, stride and least valid share of the tiles; None: nothing is cut.
        labels: where label rasters are, and their classes; None: there are none.
        reading: how the scenes are read: a label counts where its tile shows something.

    Returns:
        A source whose tiles of scenes are named scene_r<row>_c<column>, in pixels. Previews of
        scenes that are cut are skipped: they would show the scene in any split.

    Raises:
        SystemExit: a label raster is of another grid than its scene, or is the scene.
    """
    if grid is None and labels is None:
        return source
    items = (item for item in source.read_items(False) if item.skip_reason in (None, NO_SCENE))
    paths = {item.image for item in items if isinstance(item.image, Path)}
    label_files = {path: file_of_image(path, labels.file) for path in paths} if labels else {}
    own_labels: set[Path | None] = set(label_files.values())
    images = sorted(paths - own_labels)
    if own_labels and not images:
        exit_with_error(
            f"{KEY}.file: it names the scenes themselves ({min(paths).name}): write their labels "
            f"into files of their own; of one band of a scene, {ONE_BAND}"
        )
    scenes: dict[Path | None, Scene] = {}
    with rasterio_settings():
        for path in progress_bar(images, desc="scenes", unit="file"):
            scene = _open_scene(path, grid)
            if scene is not None and labels is not None:
                tile_labels = label_windows(path, scene.windows, labels, grid, reading)
                scene = scene._replace(labels=tile_labels)
            if scene is not None:
                scenes[path] = scene
    expected = [file for path, file in sorted(label_files.items()) if path in scenes]
    missing = [file for file in expected if not file.is_file()]
    if missing:
        log(f"{KEY}: {len(missing)} of {len(scenes)} scenes have none: there is no {missing[0]}")
    if grid is not None:
        cut = [len(scene.windows) for scene in scenes.values() if scene.is_cut]
        log(
            f"fetch_imagery.tile: {len(cut)} of {len(images)} image files are cut, "
            f"into {sum(cut)} tiles of {grid.size} pixels"
        )
    read_items = partial(_read_items, source, scenes, own_labels, labels is not None)
    return source._replace(read_items=read_items)


def _open_scene(path: Path, grid: TileGrid | None) -> Scene | None:
    """The windows of a raster; None: the file is no raster or unreadable, as its reader says."""
    from rasterio.errors import RasterioError

    try:
        with open_raster(path) as dataset:
            height, width = dataset.shape
            blocks = dataset.block_shapes[0]
    except (OSError, RasterioError, UnusableImage):
        return None
    side = min(height, width)
    if grid is None or side < grid.size or (height, width) == (grid.size, grid.size):
        square = RasterWindow(path, (height - side) // 2, (width - side) // 2, side, side)
        return Scene([square], is_cut=False)
    return Scene(list(_cut(path, (height, width), blocks, grid)), is_cut=True)


def _cut(
    path: Path, shape: tuple[int, int], blocks: tuple[int, int], grid: TileGrid
) -> Iterator[RasterWindow]:
    """Yield the whole windows in a raster, those of one compressed block after the other."""
    rows, columns = (range(0, side - grid.size + 1, grid.stride) for side in shape)
    height, width = (max(side, grid.size) for side in blocks)
    for top, left in product(range(0, shape[0], height), range(0, shape[1], width)):
        rows_here = _within(rows, top, top + height)
        columns_here = _within(columns, left, left + width)
        for row, column in product(rows_here, columns_here):
            yield RasterWindow(path, row, column, grid.size, grid.size)


def _within(positions: range, start: int, stop: int) -> range:
    """The positions from `start` to before `stop`. They begin at 0."""
    first, last = (math.ceil(bound / positions.step) for bound in (start, stop))
    return positions[first:last]


def _read_items(
    source: ImageSource,
    scenes: dict[Path | None, Scene],
    label_files: set[Path | None],
    has_labels: bool,
    with_images: bool,
) -> Iterator[SourceItem]:
    """Yield the items of a source with its scenes cut and labeled."""
    cut = {scene.windows[0].path.with_suffix("") for scene in scenes.values() if scene.is_cut}
    for item in source.read_items(with_images):
        path = item.image if isinstance(item.image, Path) else None
        scene = scenes.get(path)
        if path in label_files:
            yield item._replace(image=None, skip_reason=IS_LABEL_RASTER)
            continue
        if path is not None and scene is None and _is_preview(path, cut):
            yield item._replace(image=None, skip_reason=IS_PREVIEW)
            continue
        if has_labels and item.skip_reason in (None, NO_SCENE):
            item = item._replace(skip_reason=None if scene else _why_unlabeled(path))
        if scene is None or item.skip_reason:
            yield item
            continue
        if has_labels and not source.has_captions:  # fetch_imagery.caption is for lack of classes
            item = item._replace(captions=None)
        tiles = _tiles(item, scene.windows) if scene.is_cut else [item]
        for tile, label in zip(tiles, scene.labels or repeat(None)):
            yield tile if label is None else _labeled(tile, label)


def _is_preview(path: Path, cut: set[Path]) -> bool:
    """Whether a JPEG or PNG is named as a scene beside it that is cut: a_browse.jpg, a.tif.png.

    Args:
        path: of the image, which is not cut.
        cut: the paths of the scenes that are, without suffix.
    """
    ends = [match.start() for match in re.finditer(r"[\W_]|$", path.stem)]
    named = (path.parent / path.stem[:end] in cut for end in ends)
    return path.suffix.lower() in PREVIEW_SUFFIXES and any(named)


def _why_unlabeled(path: Path | None) -> str:
    """Why an image that could not be opened as a raster gets no label."""
    try:
        return UNREADABLE if path and is_raster(path) else LABELS_ARE_FOR_RASTERS
    except UnusableImage as error:
        return str(error)


def _tiles(item: SourceItem, windows: list[RasterWindow]) -> Iterator[SourceItem]:
    """Yield the tiles of a scene, which have its captions and its class."""
    path = PurePosixPath(item.name)
    for window in windows:
        name = f"{path.stem}_r{window.row}_c{window.column}{path.suffix}"
        yield item._replace(
            name=str(path.with_name(name)), scene=scene_of(item), image=window, content_name=None
        )


def _labeled(tile: SourceItem, label: TileLabel) -> SourceItem:
    return tile._replace(scene=label.scene, label_share=label.share, skip_reason=label.skip_reason)
