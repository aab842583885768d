"""How the rasters of a source are read: their type, bands and stretch, each one for all of them."""

import json
from collections.abc import Iterator
from math import isclose, isnan
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from stages.imagery.bands import ParamsMisfit, RasterType, band_of_file
from stages.imagery.rasters import AlphaCounts
from stages.imagery.stretch import (
    MAX_SAMPLES,
    Pair,
    Setting,
    extreme_share,
    find_gap,
    find_unit_mix,
    fixed_stretch,
    percentile_stretch,
    sample_pixels,
)
from stages.imagery.tile_making import Tile
from stages.imagery.tile_spool import SpooledTile, TileSpool
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

MAX_BAND_LISTS = 4  # that the log shows
MAX_BAND_FILES = 13  # of an image, one for each band: Sentinel-2's
FEW_SAMPLES = 2**18  # pixels; for what needs no exact percentiles
ROUNDING = 1e-6  # relative; of a scale or offset that a program kept as float32
MAX_EXTREME = 0.5  # share of the pixels that a fixed stretch may make black or white


class SourceRasters:
    """Collects the types and the chosen bands of the images of a source.

    Attributes:
        type: of the rasters, of gray and RGB ones the latter; its band count is None where there
            are none.
        bands: the bands that were chosen, of each raster.
        band_lists: the same with their names, for the log.
        has_alpha: whether an image has a band that is tagged alpha and was not chosen.
        alpha: the values of those bands, of all images.
        alpha_that_is_a_band: the name of an image where that band is no mask; "": there is none.
    """

    def __init__(self) -> None:
        self.type: RasterType | None = None
        self.first_name = ""  # of an image of that type
        self.bands: set[tuple[int, ...]] = set()
        self.band_lists: set[str] = set()
        # Of each (number of chosen bands, position), an image and its scale and offset: the first
        # one that is tagged, if there is one.
        self.scalings: dict[tuple[int, int], tuple[str, float, float]] = {}
        self.has_alpha = False
        self.alpha = AlphaCounts()
        self.alpha_that_is_a_band = ""  # the name of an image

    def check(self, name: str, tile: Tile | ParamsMisfit) -> Tile:
        """Check the next image, and return it.

        Images that Pillow decodes match rasters of bytes, and 8-bit gray matches 8-bit RGB.

        Raises:
            SystemExit: it differs from the images before in its type, or its scale or offset says
                that its values mean something else, or it isn't clear which bands to read.
        """
        this = tile.raster_type
        if self.type is None:
            self.type, self.first_name = this, name
        if not _fit(self.type, this):
            exit_with_error(
                f"fetch_imagery.source: {self.first_name} has {self.type}, {name} has {this}: all "
                "images must have the same bands and type"
            )
        if (this.band_count or 0) > (self.type.band_count or 0):
            self.type, self.first_name = this, name
        if isinstance(tile, ParamsMisfit):
            exit_with_error(tile.message)
        if tile.bands:
            self.bands.add(tile.bands)
            self.band_lists.add(tile.band_list)
            self._check_scaling(name, tile)
        if tile.alpha is not None:
            self.has_alpha = True
            self.alpha = AlphaCounts(
                self.alpha.full + tile.alpha.full, self.alpha.partial + tile.alpha.partial
            )
            if not tile.alpha.is_mask:
                self.alpha_that_is_a_band = self.alpha_that_is_a_band or name
        return tile

    def _check_scaling(self, name: str, tile: Tile) -> None:
        """Exit with an error if values of two images differ in meaning, as their files say.

        A file without tags, (1, 0), says nothing of its scale: software drops the tags of equal
        values. Bytes are shown as they are, whatever their tags say.
        """
        if tile.raster_type.dtype == "uint8":
            return
        for position, (scale, offset) in enumerate(tile.scaling):
            scale, offset = 1 if isnan(scale) else scale, 0 if isnan(offset) else offset
            key = len(tile.bands), position
            first, first_scale, first_offset = self.scalings.setdefault(key, (name, scale, offset))
            are_tagged = (1, 0) not in ((first_scale, first_offset), (scale, offset))
            if not isclose(offset, first_offset, rel_tol=ROUNDING) or (
                are_tagged and not isclose(scale, first_scale, rel_tol=ROUNDING)
            ):
                exit_with_error(
                    f"fetch_imagery.source: {first} has scale {first_scale:.8g} and offset "
                    f"{first_offset:.8g}, {name} has {scale:.8g} and {offset:.8g}, so equal values "
                    "differ in meaning: bring values and tags of all files to one scale and offset "
                    "(docs/data.md, Stretch)"
                )
            if not are_tagged and (scale, offset) != (1, 0):
                self.scalings[key] = name, scale, offset

    def describe_bands(self) -> str:
        """What was read of the rasters, in one line; "" without rasters."""
        if not self.bands or self.type is None:
            return ""
        chosen = " or ".join(sorted(self.band_lists)[:MAX_BAND_LISTS])
        role = "red, green and blue"
        if all(len(bands) == 1 for bands in self.bands):
            role = "colors" if "palette" in chosen else "gray"
        text = f"rasters of {self.type}: {role} from band {chosen}"
        left_out = (self.type.band_count or 0) - max(len(set(bands)) for bands in self.bands)
        if self.has_alpha and self.alpha.is_mask:
            left_out -= 1
            text += "; the band tagged alpha masks pixels"
        if left_out:
            text += f"; {left_out} other band(s) left out"
        if not self.alpha.is_mask:
            text += (
                f", one of them tagged alpha, but not a mask: {self.alpha_that_is_a_band} holds "
                "many values in it between 0 and 255 or the maximum"
            )
        return text


def _fit(first: RasterType, second: RasterType) -> bool:
    """Whether two images can be in one data set: of the same type, and as many bands.

    Bytes are the same with one band (gray) and three, and in images that Pillow decodes.
    """
    any_count = None in (first.band_count, second.band_count)
    counts = {first.band_count, second.band_count}
    are_gray_and_rgb = first.dtype == "uint8" and counts <= {1, 3}
    return first.dtype == second.dtype and (any_count or len(counts) == 1 or are_gray_and_rgb)


def refuse_band_files(gray: list[str], tile_count: int, are_rasters: bool) -> None:
    """Exit with an error if most tiles are of gray files, each of one of several bands by its name.

    Args:
        gray: the names of the files of gray tiles.
        tile_count: of all tiles.
        are_rasters: whether fetch_imagery.bands applies to the files.
    """
    images: dict[str, dict[str, list[str]]] = {}  # names by what stands before the band; by band
    for file in map(PurePosixPath, gray):
        band = band_of_file(file.stem)
        # Only rasters are told by a number alone: IMG_0001_5 may be a photo of a series.
        if band and (are_rasters or not band.band.isdigit()):
            of_image = images.setdefault(f"{file.parent}/{band.before}", {})
            of_image.setdefault(band.band, []).append(file.name)
    # A number of more bands is that of an image.
    stacks = [bands for bands in images.values() if 1 < len(bands) <= MAX_BAND_FILES]
    if sum(len(names) for bands in stacks for names in bands.values()) > tile_count / 2:
        first, second = [names[0] for names in stacks[0].values()][:2]
        advice = "to read each file as a gray image, write fetch_imagery.bands: [1]"
        if not are_rasters:
            advice = "if each file is an image of its own, rename the files"
        exit_with_error(
            f"fetch_imagery.source: {first} and {second} seem to hold one band of an image each: "
            f"stack its bands into one file, `rio stack <red> <green> <blue> <new file>`; {advice}"
        )


def choose_stretch(
    setting: Setting, spool: TileSpool, rasters: SourceRasters, split: str | None = None
) -> list[Pair] | None:
    """The stretch of the raw tiles.

    Args:
        setting: fetch_imagery.stretch.
        spool: holds the tiles.
        rasters: what they are.
        split: that of the tiles whose percentiles `auto` takes; None: of all tiles, from fewer
            samples, to find near-duplicates by.

    Returns:
        A pair for each band or one for all. None: values are bytes and stay as they are.

    Raises:
        SystemExit: the stretch doesn't fit to the tiles.
    """
    raw = [tile for tile in spool.tiles if tile.raw is not None and split in (None, tile.split)]
    if not raw:
        return None
    stretch = fixed_stretch(setting)
    if stretch is None and (rasters.type is None or rasters.type.dtype == "uint8"):
        return None
    if stretch is None and setting == "none":
        stretch = [(0, 255)]
    elif stretch is None:
        limit = FEW_SAMPLES if split is None else MAX_SAMPLES
        stretch = percentile_stretch(_sample(spool, rasters, raw, limit))
    samples = list(_sample(spool, rasters, raw, FEW_SAMPLES))
    _check_stretch(setting, stretch, raw, samples)
    if split is None:
        _check_units(setting, raw, samples)
    return stretch


def _check_stretch(
    setting: Setting, stretch: list[Pair], raw: list[SpooledTile], samples: list[np.ndarray]
) -> None:
    """Exit with an error if a stretch doesn't fit to raw tiles, or to samples [B, N] of them."""
    if setting == "auto":
        _check_auto(stretch, samples)
        return
    for tile in raw:
        bands = tile.raw.shape[0] if tile.raw else 0
        if len(stretch) not in (1, bands):
            exit_with_error(
                f"fetch_imagery.stretch: {len(stretch)} pairs, but {tile.name} is read as {bands} "
                "band(s)"
            )
    share = extreme_share(samples, stretch)
    if share > MAX_EXTREME:
        exit_with_error(
            f"fetch_imagery.stretch: {json.dumps(setting)} makes {share:.0%} of the valid pixels "
            "black or white; auto takes the 2nd to the 98th percentile of each band"
        )


def _check_auto(stretch: list[Pair], samples: list[np.ndarray]) -> None:
    """Exit with an error if the percentiles seem to be those of an undeclared fill value."""
    if gap := find_gap(samples, stretch):
        low, high = gap
        exit_with_error(
            f"fetch_imagery.stretch: auto takes {low:g} to {high:g} (2nd to 98th percentile), but "
            "half of this range has hardly a pixel: do the files hold a fill value that they don't "
            "declare as nodata? Declare it, `rio edit-info --nodata <value> <file>`, or write "
            "[low, high]"
        )


def _check_units(setting: Setting, raw: list[SpooledTile], samples: list[np.ndarray]) -> None:
    """Exit with an error if tiles seem to differ in unit; warn where the params fix a stretch."""
    if mix := find_unit_mix(samples):
        first, second = (
            f"{raw[i].name} holds {samples[i].min():g} to {samples[i].max():g}" for i in mix
        )
        text = (
            f"{first}, {second}, and no tile lies between: are they in different units "
            "(reflectance, digital numbers, decibels)? Bring all files to one unit"
        )
        if setting == "auto":
            exit_with_error(
                f"fetch_imagery.source: {text}, or, if they are in one, write "
                "fetch_imagery.stretch: [low, high]"
            )
        log(f"fetch_imagery: warning: {text}")


def _sample(
    spool: TileSpool, rasters: SourceRasters, tiles: list[SpooledTile], limit: int
) -> Iterator[np.ndarray]:
    """Yield valid pixels [B, N] of each raw tile, about `limit` in all."""
    pixel_count = sum(tile.pixel_count for tile in tiles)
    return sample_pixels(spool.read_raw(tiles, rasters.alpha.is_mask), pixel_count, limit)


def describe_pixels(
    bands: list[int | str] | None, rasters: SourceRasters, stretch: list[Pair] | None
) -> dict[str, Any]:
    """Log which bands were read and how they were stretched; return both for SOURCE.json.

    They are in the form of the params. {} for 8-bit images that are no rasters.

    Args:
        bands: fetch_imagery.bands.
        rasters: what the images are.
        stretch: of the training tiles; None: bytes stay as they are.
    """
    pixels: dict[str, Any] = {}
    for low, high in stretch or []:
        if low == high:
            log(f"fetch_imagery: warning: a band holds nothing but {low:g}: it becomes black")
    if rasters.bands:
        log(f"fetch_imagery: {rasters.describe_bands()}")
        if bands is None and len(rasters.bands) == 1:
            pixels["bands"] = list(*rasters.bands)
        else:
            pixels["bands"] = bands
    if rasters.bands or stretch is not None:
        pixels["stretch"] = "none" if stretch is None else [list(pair) for pair in stretch]
        text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in pixels.items())
        log(f"fetch_imagery: how they were read, as params: {text}")
    return pixels
