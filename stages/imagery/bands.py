"""Choose bands of an open raster, by number or name."""

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

RGB_NAMES = ("red", "green", "blue")
RGB_LETTERS = ("r", "g", "b")
# How the name of a file ends that holds one band of an image: Sentinel-2's and Landsat's (`_B04`,
# `_B04_10m`, `_SR_B4`), Sentinel-1's (`_VV`), those of drones (`_MS_NIR`, `IMG_0001_5`), colors.
BAND_OF_FILE = re.compile(
    r"(?:^|[ _.-])"
    r"(b(?:and)?[ _-]?\d{1,2}a?|(?:blue|green|red|red_?edge|nir|swir)\d*|pan|gre|reg|vv|vh|hh|hv|"
    r"ms_(?:g|r|re|nir)|(?<=img_\d{4}_)(?:[1-6]|10))"
    r"(?:_\d+m|_vcid_\d|_\(raw\))?$"
)
ONE_BAND = "`rio stack --bidx <number> <file> <new file>`"  # writes one band of a file


class RasterType(NamedTuple):
    """What the images of a data set have in common."""

    band_count: int | None  # None: of any number, as in 8-bit images that Pillow decodes
    dtype: str

    def __str__(self) -> str:
        count = "" if self.band_count is None else f"{self.band_count} band(s) of "
        return f"{count}{self.dtype}"


class FileBand(NamedTuple):
    """The name of a file that holds one band of an image."""

    before: str  # what stands before the band
    band: str


BYTES = RasterType(None, "uint8")  # of an image that Pillow decodes


class ParamsMisfit(Exception):
    """The params don't fit a raster: it lacks a band, or they don't say which. Ends the stage."""

    def __init__(self, message: str, raster_type: RasterType) -> None:
        super().__init__(message, raster_type)  # both, so that it can be pickled
        self.message = message
        self.raster_type = raster_type


def choose_bands(dataset: Any, bands: list[int | str] | None, name: str) -> list[int]:
    """The numbers of the bands to read, from 1.

    Args:
        dataset: an open rasterio dataset.
        bands: numbers from 1 or names, one (gray) or three; None: red, green and blue if
            descriptions name them, or, where these don't name all bands, color interpretation
            does; else the first three of three or four, or the only one.
        name: the file's name, for error messages.

    Raises:
        ParamsMisfit: a band isn't there, or it isn't clear which bands to read.
    """
    if bands is not None:
        return [find_band(dataset, band, name) for band in bands]
    if dataset.count == 1 or (dataset.count == 2 and alpha_band(dataset, [1]) == 2):
        return [1]
    all_names = _band_names(dataset)
    are_named = _are_named(all_names[0])
    for names in all_names[:-1] if are_named else all_names:  # the last: color interpretation
        for colors in (RGB_NAMES, RGB_LETTERS):
            if all(names.count(color) == 1 for color in colors):
                return [names.index(color) + 1 for color in colors]
    if dataset.count in (3, 4) and not are_named:
        return [1, 2, 3]
    example = "[B4, B3, B2]" if are_named else "[4, 3, 2]"
    advice = f"which are red, green and blue, such as {example}, or one for gray"
    if dataset.count == 2:
        advice = "which is gray, such as [1]"
    raise ParamsMisfit(
        f"fetch_imagery.bands: {name} has {dataset.count} bands ({list_bands(dataset)}): write "
        f"{advice}",
        RasterType(dataset.count, dataset.dtypes[0]),
    )


def find_band(dataset: Any, band: int | str, name: str, key: str = "fetch_imagery.bands") -> int:
    """The number of a band that the params key `key` gives by its number or name."""
    if isinstance(band, str):
        wanted = _plain(band)
        names = next((names for names in _band_names(dataset) if wanted in names), [])
        numbers = [number for number, name in enumerate(names, 1) if name == wanted]
    else:
        numbers = [number for number in dataset.indexes if number == band]
    if len(numbers) == 1:
        return numbers[0]
    fault = "has several bands named" if numbers else "has no band"
    raise ParamsMisfit(
        f"{key}: {name} {fault} {band}; it has {list_bands(dataset)}",
        RasterType(dataset.count, dataset.dtypes[0]),
    )


def band_of_file(stem: str) -> FileBand | None:
    """The band that the name of a file without suffix ends in (`x_B04` is of b4), if any."""
    band = BAND_OF_FILE.search(stem.lower())
    if not band:
        return None
    return FileBand(stem[: band.start(1)], re.sub(r"\b(b(?:and)?[ _-]?)0+", r"\1", band[1]))


def _are_named(descriptions: list[str]) -> bool:
    """Whether each band has a name of its own, such as B4 or VV: not its number, as in band_1."""
    numbered = [
        re.fullmatch(rf"(band|layer|channel)?{number}|.*[ _.-]{number}", text)
        for number, text in enumerate(descriptions, 1)
    ]
    are_distinct = len(set(descriptions)) == len(descriptions)
    return all(descriptions) and are_distinct and not all(numbered)


def _band_names(dataset: Any) -> list[list[str]]:
    """The names of all bands: descriptions, first words and colors in them, color interpretation.

    The last comes last, because software calls the first three bands red, green and blue unasked.
    """
    descriptions = [_plain(text or "") for text in dataset.descriptions]
    first_words = [
        text if text.startswith("red edge") else re.split(r"[\s,;:(]", text)[0]
        for text in descriptions
    ]
    words = [re.findall("[a-z]+", re.sub("red[ _-]?edge", "", text)) for text in descriptions]
    colors = [" ".join(color for color in RGB_NAMES if color in of_band) for of_band in words]
    return [descriptions, first_words, colors, [color.name for color in dataset.colorinterp]]


def _plain(name: str) -> str:
    """A band's name in lower case and without zeros before a number: B04 is b4."""
    return re.sub(r"^(\D*)0+(?=\d)", r"\1", name.strip().lower())


def list_bands(dataset: Any, numbers: Iterable[int] | None = None) -> str:
    """Such as `1 gray, 2 B02, 3`: the number of each band, or of these, and its name if it has one.

    Args:
        dataset: an open rasterio dataset.
        numbers: of the bands; None: all.
    """
    parts = []
    for number in dataset.indexes if numbers is None else numbers:
        color = dataset.colorinterp[number - 1].name
        name = dataset.descriptions[number - 1] or ("" if color == "undefined" else color)
        parts.append(f"{number} {name}".strip())
    return ", ".join(parts)


def one_band_advice(dataset: Any) -> str:
    """What to say of a dataset of several bands where one holds labels or a mask."""
    said = f"has {dataset.count} bands ({list_bands(dataset)})"
    if tuple(color.name for color in dataset.colorinterp[:3]) == RGB_NAMES:
        red, green, blue = dataset.read([1, 2, 3])
        if (red != green).any() or (red != blue).any():
            # Several classes may have the same red.
            return f"{said}, which hold colors: write a file of one band, a number for each color"
    return f"{said}: write the one that counts into a file of its own, {ONE_BAND}"


def alpha_band(dataset: Any, used: Collection[int]) -> int | None:
    """The number of the first band that is tagged alpha and not used otherwise."""
    colors = enumerate(dataset.colorinterp, 1)
    alpha = (number for number, color in colors if color.name == "alpha")
    return next((number for number in alpha if number not in used), None)
