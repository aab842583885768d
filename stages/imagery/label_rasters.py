"""Classes of tiles from label rasters, such as WorldCover, Dynamic World or CORINE."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.imagery.bands import ParamsMisfit, one_band_advice
from stages.imagery.georeference import horizontal_crs, short_name
from stages.imagery.rasters import (
    RasterWindow,
    close_scenes,
    file_of_image,
    open_mask_or_labels,
    open_raster,
    read_visible,
)
from stages.imagery.tile_making import TOO_FEW_VALID, Reading, has_too_few_valid
from stages.imagery.unusable_image import UnusableImage
from stages.params import Labels, TileGrid
from stages.runtime.errors import exit_with_error

KEY = "fetch_imagery.labels"
WARPED = "_warped_labels.tif"  # behind a scene's name, in the advice for labels of another grid


class TileLabel(NamedTuple):
    """The class of a tile."""

    scene: str | None = None  # None: it has no label
    share: float | None = None  # of its labeled pixels: those of the class
    skip_reason: str | None = None  # why it has no label


def label_windows(
    path: Path,
    windows: list[RasterWindow],
    labels: Labels,
    grid: TileGrid | None,
    reading: Reading,
) -> list[TileLabel]:
    """The class of each window of a scene: the one with the largest share of labeled pixels.

    A pixel is labeled if the tile shows it, the label raster's mask band keeps it (if there is
    one), and its value isn't nodata; a value that `labels.classes` lists always counts. A value
    that is in no class counts too: a tile that shows mostly such a value is in no class either.

    Args:
        path: the scene.
        windows: of the scene.
        labels: where the label raster is, and the class of each of its values.
        grid: its `min_valid` is the least share of labeled pixels; None: one pixel is enough.
        reading: how the scene is read.

    Raises:
        SystemExit: the label raster is unreadable, of another grid, or holds no integers.
    """
    from rasterio.errors import RasterioError

    file = file_of_image(path, labels.file)
    if not file.is_file():
        return [TileLabel(skip_reason="its label raster is missing")] * len(windows)
    min_valid = 0 if grid is None else grid.min_valid
    try:
        with open_raster(path) as scene, _open_labels(file) as dataset:
            _check_grid(scene, dataset, path, file)
            return [
                _label(dataset, window, _visible(window, reading), labels.classes, min_valid)
                for window in windows
            ]
    except (OSError, RasterioError) as error:
        exit_with_error(f"{KEY}: {file.name} is unreadable or truncated: {error}")
    finally:
        close_scenes()


def _open_labels(file: Path) -> Any:
    """Open a label raster. Exits with an error if it is of another format."""
    dataset = open_mask_or_labels(file)
    if dataset is None:
        exit_with_error(
            f"{KEY}: {file.name} is no TIFF, JPEG 2000 or PNG; `rio rasterize` makes a raster of "
            "polygons (docs/data.md, Labels)"
        )
    return dataset


def _check_grid(scene: Any, dataset: Any, path: Path, file: Path) -> None:
    """Exit with an error if a label raster isn't one band of integers on the grid of its scene."""
    if dataset.count != 1:
        exit_with_error(f"{KEY}: {file.name} {one_band_advice(dataset)}")
    if not np.issubdtype(dataset.dtypes[0], np.integer):
        exit_with_error(
            f"{KEY}: {file.name} holds {dataset.dtypes[0]}: labels are integers, as "
            "`gdal_rasterize -ot Byte` writes them"
        )
    same = scene.shape == dataset.shape
    if scene.crs and dataset.crs:
        pixel = abs(scene.transform.a) + abs(scene.transform.b)
        corners = np.abs(np.subtract(scene.bounds, dataset.bounds))
        same = same and horizontal_crs(scene.crs) == horizontal_crs(dataset.crs)
        same = same and bool(np.all(corners < pixel / 2))
    if not same:
        advice = "give it that grid"
        if scene.crs and dataset.crs:
            warped = path.with_name(path.stem + WARPED)
            command = ["rio", "warp", file, warped, "--like", path, "--resampling", "nearest"]
            advice = (
                f"warp it for each scene, `{shlex.join(map(str, command))}`, and write "
                f'labels.file: "{{stem}}{WARPED}" (docs/data.md, Labels)'
            )
        exit_with_error(
            f"{KEY}: {file.name} ({_describe(dataset)}) is of another grid than {path.name} "
            f"({_describe(scene)}): {advice}"
        )


def _describe(dataset: Any) -> str:
    crs = short_name(dataset.crs.to_string()) if dataset.crs else "no CRS"
    origin = f"{dataset.transform.c:.12g}, {dataset.transform.f:.12g}"
    return f"{dataset.height} x {dataset.width} pixels, {crs}, origin {origin}"


def _visible(window: RasterWindow, reading: Reading) -> np.ndarray:
    """Which pixels [H, W] of a window its tile shows."""
    try:
        return read_visible(window, reading.bands, reading.mask, window.path.name)
    except (UnusableImage, ParamsMisfit):  # the tile can't be read either, which says why
        return np.ones((window.height, window.width), bool)


def _label(
    dataset: Any,
    window: RasterWindow,
    visible: np.ndarray,
    classes: dict[int, str],
    min_valid: float,
) -> TileLabel:
    """The class of a window; none where too few of its pixels are visible or labeled.

    Args:
        dataset: the open label raster.
        window: of the scene, whose grid is that of the labels.
        visible: bool [H, W]: which pixels of the window its tile shows.
        classes: value -> class.
        min_valid: the least share of visible, and of labeled pixels.
    """
    from rasterio.enums import MaskFlags

    if has_too_few_valid(visible.size, visible.size - int(visible.sum()), min_valid):
        return TileLabel(skip_reason=TOO_FEW_VALID)
    pixels = dataset.read(1, window=window.area)
    if MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
        visible = visible & (dataset.read_masks(1, window=window.area) != 0)
    values, counts = np.unique(pixels[visible], return_counts=True)
    shares: Counter[str | int] = Counter()  # class, or a value of no class -> pixels
    for value, count in zip(values.tolist(), counts.tolist()):
        if value in classes or value != dataset.nodata:
            shares[classes.get(value, value)] += count
    labeled = shares.total()
    if not labeled or labeled < min_valid * pixels.size:
        return TileLabel(skip_reason="too few of its pixels are labeled")
    ((scene, count),) = shares.most_common(1)  # of several, the one of the smallest value
    if isinstance(scene, int):
        return TileLabel(skip_reason=f"label {scene} is in no class of {KEY}")
    return TileLabel(scene, count / labeled)
