"""Read rasters with rasterio: chosen bands in their own type, and which pixels are valid.

A raster is a TIFF, a JPEG 2000 or a PNG of 16 bits, which rasterio (GDAL) reads in full depth.
"""

import io
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from stages.imagery.bands import (
    BYTES,
    ParamsMisfit,
    RasterType,
    alpha_band,
    choose_bands,
    find_band,
    list_bands,
    one_band_advice,
)
from stages.imagery.georeference import Georeference, horizontal_crs, read_georeference
from stages.imagery.unusable_image import (
    MAX_PIXELS,
    MIN_SIDE,
    OUT_OF_MEMORY,
    TOO_LARGE,
    TOO_SMALL,
    UNREADABLE,
    UnusableImage,
)
from stages.params import Mask

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
JPEG2000_SIGNATURES = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIGNATURE_BYTES = 25  # up to the bit depth of a PNG
GDAL_OPTIONS = {
    # Listing the folder for each of its files would take the square of their number.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "GDAL_CACHEMAX": 128,  # MB of decoded blocks, per process
}
# The largest share of an alpha band's nonzero values that may lie below opaque: resampling makes a
# few at its edges, while most values of near infrared lie below.
MAX_PARTIAL = 0.1
NO_CODEC = "its compression is not supported"
NOT_UTF8 = "the name of its file is not UTF-8"
ORIENTATION_TAG = 274  # of TIFF
# GDAL's messages about broken files; each one is an `UnusableImage`.
logging.getLogger("rasterio").setLevel(logging.CRITICAL)


class RasterWindow(NamedTuple):
    """A rectangle of a raster, such as a tile of a scene."""

    path: Path
    row: int  # of its upper left pixel
    column: int
    height: int  # pixels
    width: int

    @property
    def area(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(first row, row behind the last), (first column, column behind the last)."""
        return (self.row, self.row + self.height), (self.column, self.column + self.width)


class AlphaCounts(NamedTuple):
    """How many pixels of a band that is tagged alpha hold which values."""

    full: int = 0  # what means opaque
    partial: int = 0  # neither that nor 0

    @property
    def is_mask(self) -> bool:
        """Whether it is a mask, perhaps resampled, and not near infrared that is called alpha."""
        return self.partial <= MAX_PARTIAL * (self.full + self.partial)


class Raster(NamedTuple):
    """The chosen bands of a raster or window."""

    values: np.ndarray  # [B, H, W] in the file's type; B is 1 (gray) or 3 (red, green, blue)
    valid: np.ndarray  # bool [H, W]: false where there is no data, NaN or inf
    # bool [H, W]: where a band that is tagged alpha, and not chosen, is half opaque or more.
    # None: no such band
    opaque: np.ndarray | None = None
    alpha: AlphaCounts = AlphaCounts()  # of that band
    # Of the chosen bands: their numbers, from 1; the same with their names; and the file's
    # (scale, offset) of each, not applied. Empty: Pillow decoded the image
    bands: tuple[int, ...] = ()
    band_list: str = ""
    scaling: tuple[tuple[float, float], ...] = ()
    type: RasterType = BYTES  # of the file
    georeference: Georeference = Georeference()  # of the center square

    def mode(self) -> str:
        """Pillow's word for 8-bit gray and RGB, or else the type of the values."""
        if self.values.dtype != np.uint8:
            return str(self.values.dtype)
        return "L" if len(self.values) == 1 else "RGB"


def raster_driver(head: bytes) -> str | None:
    """The GDAL driver for a file with these first `SIGNATURE_BYTES` bytes; None: for Pillow."""
    if head.startswith(TIFF_SIGNATURES):
        return "GTiff"
    if head.startswith(JPEG2000_SIGNATURES):
        return "JP2OpenJPEG"
    return "PNG" if head.startswith(PNG_SIGNATURE) and head[24:25] == b"\x10" else None


def read_raster(
    image: bytes | Path, bands: list[int | str] | None, mask: Mask | None, name: str
) -> Raster | Georeference:
    """Read the chosen bands of a raster.

    Args:
        image: an encoded file, or its path.
        bands: numbers from 1, or names; None: the file's red, green and blue.
        mask: which pixels are valid besides those that the file marks; None: no further ones.
        name: the file's name, for error messages and its date.

    Returns:
        The raster; its georeference alone where Pillow converts its colors (8-bit CMYK, LAB or
        YCbCr of which all bands are read).

    Raises:
        ParamsMisfit: a band isn't there, or it isn't clear which bands to read.
        UnusableImage: it is unreadable, truncated, too small or too large, holds complex numbers,
            or its mask is missing or of another grid.
    """
    with _reasons(), _open(image) as dataset:
        path = image if isinstance(image, Path) else Path(name)
        window = RasterWindow(path, 0, 0, dataset.height, dataset.width)
        if bands is None and mask is None and _pillow_converts(dataset):
            return read_georeference(dataset, window[1:], name)
        raster = _read(dataset, window, bands, mask, name)
        if raster.georeference.crs is None:
            return _turn_upright(raster, _orientation(image))
        return raster


def read_window(
    window: RasterWindow, bands: list[int | str] | None, mask: Mask | None, name: str
) -> Raster:
    """Read the chosen bands of a window of a raster. Arguments and errors: see `read_raster`."""
    with _scene(window.path) as dataset:
        return _read(dataset, window, bands, mask, name)


def read_visible(
    window: RasterWindow, bands: list[int | str] | None, mask: Mask | None, name: str
) -> np.ndarray:
    """Which pixels [H, W] of a window its tile shows: those that are valid and opaque.

    Of bands of integers, only masks are read. Arguments and errors: see `read_raster`.
    """
    with _scene(window.path) as dataset:
        chosen = choose_bands(dataset, bands, name)
        visible = _read_validity(dataset, chosen, mask, window, name)
        if np.issubdtype(dataset.dtypes[0], np.floating):
            visible &= np.isfinite(dataset.read(chosen, window=window.area)).all(axis=0)
        opaque, alpha = _read_alpha(dataset, chosen, mask, window, name)
    # A band that is tagged alpha and is 0 in all of a window may be infrared, over water.
    if opaque is not None and alpha.is_mask and opaque.any():
        visible &= opaque
    return visible


def close_scenes() -> None:
    """Close the scenes that are kept open: processes must not share them."""
    _open_scene.cache_clear()


@contextmanager
def _scene(path: Path) -> Iterator[Any]:
    """The open dataset of a scene; what rasterio raises becomes `UnusableImage`."""
    try:
        with _reasons():
            yield _open_scene(path)
    except UnusableImage:
        # Once a block is unreadable, GDAL may report that again for the next window.
        close_scenes()
        raise


@contextmanager
def _reasons(unreadable: str = UNREADABLE) -> Iterator[None]:
    """Turn what rasterio raises on broken files into `UnusableImage`, with the reason given."""
    from rasterio._err import CPLE_BaseError  # of GDAL; `colorinterp` lets it through
    from rasterio.errors import RasterioError

    try:
        with rasterio_settings():
            yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        reason = NO_CODEC if "missing codec" in str(error) else unreadable
        raise UnusableImage(reason) from None
    except MemoryError:
        raise UnusableImage(OUT_OF_MEMORY) from None


@contextmanager
def rasterio_settings() -> Iterator[None]:
    """Open and read files with `GDAL_OPTIONS`."""
    import rasterio

    with warnings.catch_warnings(action="ignore"), rasterio.Env(**GDAL_OPTIONS):
        yield


@contextmanager
def _open(image: bytes | Path) -> Iterator[Any]:
    """Open a file, or encoded bytes, as a rasterio dataset."""
    import rasterio

    if isinstance(image, Path):
        with open_raster(image) as dataset:
            yield dataset
        return
    driver = raster_driver(image[:SIGNATURE_BYTES])
    with rasterio.MemoryFile(image) as memory, memory.open(driver=driver) as dataset:
        _clear_warnings(dataset)
        yield dataset


def _clear_warnings(dataset: Any) -> None:
    """Let GDAL forget that a tag of a readable file has a wrong value.

    GDAL says it where it looks for masks, but the next `colorinterp` raises it; then both work.

    Raises:
        RasterioIOError: GDAL says that the file is broken.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioIOError

    try:
        _ = dataset.mask_flag_enums, dataset.colorinterp
    except CPLE_BaseError as error:
        if "Bad value" not in str(error):
            raise RasterioIOError(str(error)) from None


def open_raster(path: Path) -> Any:
    """Open a file as a rasterio dataset, with the driver of its first bytes.

    GDAL is not left to choose: a file of another driver, such as VRT, could name further files.

    Raises:
        RasterioIOError: it is no raster, or broken.
        UnusableImage: rasterio cannot open a file of that name.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    with open(path, "rb") as stream:
        driver = raster_driver(stream.read(SIGNATURE_BYTES))
    if driver is None:
        raise RasterioIOError(f"{path} is no raster")
    try:
        dataset = rasterio.open(path, driver=driver)
    except UnicodeEncodeError:
        raise UnusableImage(NOT_UTF8) from None
    _clear_warnings(dataset)
    return dataset


@lru_cache(maxsize=2)
def _open_scene(path: Path) -> Any:
    """Open a scene once for many windows: GDAL keeps its decoded blocks while it is open."""
    return open_raster(path)


def _pillow_converts(dataset: Any) -> bool:
    """Whether Pillow converts the colors of an image, more exactly than GDAL does."""
    color_space = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE")
    return color_space is not None and dataset.dtypes[0] == "uint8" and not _has_mask(dataset, 1)


def _has_mask(dataset: Any, band: int) -> bool:
    """Whether the file marks pixels of a band as invalid, by nodata or a mask other than alpha."""
    from rasterio.enums import MaskFlags

    return not {MaskFlags.all_valid, MaskFlags.alpha} & set(dataset.mask_flag_enums[band - 1])


def _read(
    dataset: Any,
    window: RasterWindow,
    bands: list[int | str] | None,
    mask: Mask | None,
    name: str,
) -> Raster:
    """Read the chosen bands of a window of an open dataset."""
    if window.height * window.width > MAX_PIXELS:
        raise UnusableImage(f"{TOO_LARGE}: cut it by fetch_imagery.tile")
    if min(window.height, window.width) < MIN_SIDE:
        raise UnusableImage(TOO_SMALL)
    if dataset.dtypes[0].startswith("complex"):
        raise UnusableImage("complex numbers: write their magnitude")
    if len(dataset.subdatasets) > 1:
        raise UnusableImage("several pages: write its bands into one image")
    chosen = choose_bands(dataset, bands, name)
    values = dataset.read(chosen, window=window.area)
    valid = np.isfinite(values).all(axis=0)
    valid &= _read_validity(dataset, chosen, mask, window, name)
    opaque, alpha = _read_alpha(dataset, chosen, mask, window, name)
    georeference = read_georeference(dataset, window[1:], name)
    if chosen == [1] and dataset.colorinterp[0].name == "palette":
        values = _look_up_colors(dataset, values)
    else:
        values = _as_displayed(dataset, values)
    return Raster(
        values,
        valid,
        opaque,
        alpha,
        bands=tuple(chosen),
        band_list=list_bands(dataset, chosen),
        scaling=tuple((dataset.scales[band - 1], dataset.offsets[band - 1]) for band in chosen),
        type=RasterType(dataset.count, str(values.dtype)),
        georeference=georeference,
    )


def _look_up_colors(dataset: Any, values: np.ndarray) -> np.ndarray:
    """The RGB colors [3, H, W] of values [1, H, W] in the file's color table, of 8 or 16 bits."""
    colors = np.zeros((np.iinfo(values.dtype).max + 1, 3), np.uint8)
    for index, color in dataset.colormap(1).items():
        colors[index] = color[:3]
    return colors[values[0]].transpose(2, 0, 1)


def _as_displayed(dataset: Any, values: np.ndarray) -> np.ndarray:
    """Scale values of fewer than 8 bits to 8; make 0 black where the file says that it is white."""
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    if bits < 8:
        values = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
    if values.dtype.kind == "u" and "MINISWHITE" in dataset.tags(ns="IMAGE_STRUCTURE"):
        values = np.iinfo(values.dtype).max - values
    return values


def _read_alpha(
    dataset: Any, chosen: list[int], mask: Mask | None, window: RasterWindow, name: str
) -> tuple[np.ndarray | None, AlphaCounts]:
    """`opaque` and `alpha` of a window's `Raster`."""
    used = list(chosen)
    if mask is not None and mask.band is not None:
        used.append(find_band(dataset, mask.band, name, "fetch_imagery.mask"))
    alpha = alpha_band(dataset, used)
    if alpha is None:
        return None, AlphaCounts()
    values = dataset.read(alpha, window=window.area)
    if dataset.driver == "PNG":  # its alpha is always alpha
        return values != 0, AlphaCounts()
    full = _opaque_value(values)
    count = int((values == full).sum())
    return values >= full / 2, AlphaCounts(count, int((values != 0).sum()) - count)


def _opaque_value(alpha: np.ndarray) -> float:
    """What means opaque in a band that is tagged alpha, if it is a mask.

    GDAL writes 255 for most types (`gdalwarp -dstalpha`), or the type's maximum.
    """
    is_integer = np.issubdtype(alpha.dtype, np.integer)
    maximum = np.iinfo(alpha.dtype).max if is_integer else 1.0
    return min((value for value in (255, maximum) if alpha.max() <= value), default=maximum)


def _read_validity(
    dataset: Any, chosen: list[int], mask: Mask | None, window: RasterWindow, name: str
) -> np.ndarray:
    """Which pixels have data: by the file's nodata and mask, and by `mask`.

    A pixel has none where any chosen band has none. Where nodata is 0, which dark pixels may hold
    in a band, or 255 of 8 bits, which bright ones may hold, all must.
    """
    valid = np.ones((window.height, window.width), bool)
    if _has_mask(dataset, chosen[0]):
        masks = dataset.read_masks(chosen, window=window.area) != 0  # [B, H, W]
        is_byte = dataset.dtypes[0] == "uint8"
        is_value_too = dataset.nodata == 0 or (dataset.nodata == 255 and is_byte)
        valid = masks.any(axis=0) if is_value_too else masks.all(axis=0)
    if mask is not None:
        valid &= np.isin(_read_mask(dataset, mask, window, name), mask.valid)
    return valid


def _read_mask(dataset: Any, mask: Mask, window: RasterWindow, name: str) -> np.ndarray:
    """The values [H, W] of the mask of a window."""
    if mask.band is not None:
        number = find_band(dataset, mask.band, name, "fetch_imagery.mask")
        return dataset.read(number, window=window.area)
    path = file_of_image(window.path, str(mask.file))
    with (
        _reasons(f"its mask is unreadable or truncated ({mask.file})"),
        _open_mask(path, mask) as mask_dataset,
    ):
        if mask_dataset.count != 1:
            raise ParamsMisfit(
                f"fetch_imagery.mask: {path.name} {one_band_advice(mask_dataset)}",
                RasterType(dataset.count, dataset.dtypes[0]),
            )
        if not _same_ground(dataset, mask_dataset):
            raise UnusableImage(f"its mask covers another area ({mask.file})")
        rows = mask_dataset.height / dataset.height  # of the mask per row of the image
        columns = mask_dataset.width / dataset.width
        (top, bottom), (left, right) = window.area
        mask_area = ((top * rows, bottom * rows), (left * columns, right * columns))
        # A mask of another resolution (SCL: 20 m beside bands of 10 m) is read by nearest pixel.
        return mask_dataset.read(1, window=mask_area, out_shape=(window.height, window.width))


def _open_mask(path: Path, mask: Mask) -> Any:
    if not path.is_file():
        raise UnusableImage(f"its mask is missing ({mask.file})")
    dataset = open_mask_or_labels(path)
    if dataset is None:
        raise UnusableImage(f"its mask is no TIFF, JPEG 2000 or PNG ({mask.file})")
    return dataset


def open_mask_or_labels(path: Path) -> Any:
    """Open a raster, or a PNG of any depth: its values count. None: it is of another format."""
    import rasterio

    with open(path, "rb") as stream:
        head = stream.read(SIGNATURE_BYTES)
    driver = "PNG" if head.startswith(PNG_SIGNATURE) else raster_driver(head)
    return rasterio.open(path, driver=driver) if driver else None


def file_of_image(image: Path, name: str) -> Path:
    """The mask or labels of an image, as params name such a file. It need not exist.

    The name is relative to the image's folder; {stem} stands for the image's name without suffix.
    """
    return Path(os.path.normpath(image.parent / name.replace("{stem}", image.stem)))


def _same_ground(dataset: Any, mask_dataset: Any) -> bool:
    """Whether a mask covers the ground of a raster; without georeference: has its shape."""
    if not dataset.crs or not mask_dataset.crs:
        return dataset.shape == mask_dataset.shape
    pixel = max(abs(dataset.transform.a), abs(dataset.transform.e))
    differences = np.subtract(dataset.bounds, mask_dataset.bounds)
    same_crs = horizontal_crs(dataset.crs) == horizontal_crs(mask_dataset.crs)
    return same_crs and bool(np.all(np.abs(differences) < pixel / 2))


def _turn_upright(raster: Raster, orientation: int) -> Raster:
    """Turn or mirror an image as its tag Orientation says (1 to 8; 1: as it is stored)."""
    return raster._replace(
        values=_turned(raster.values, orientation),
        valid=_turned(raster.valid, orientation),
        opaque=None if raster.opaque is None else _turned(raster.opaque, orientation),
    )


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn or mirror an array [..., H, W]."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1]
    return np.ascontiguousarray(array)


def _orientation(image: bytes | Path) -> int:
    """The tag Orientation of a TIFF or PNG, which GDAL doesn't apply; 1: as it is stored."""
    stream = open(image, "rb") if isinstance(image, Path) else io.BytesIO(image)
    with stream:
        header = stream.read(8)
        if header == PNG_SIGNATURE:
            return _png_orientation(stream)
        if not header.startswith(TIFF_SIGNATURES[:3]):  # Pillow cannot parse the fourth
            return 1
        if header.startswith(TIFF_SIGNATURES[2]):
            header += stream.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        stream.seek(directory.next)
        directory.load(stream)
        return directory.get(ORIENTATION_TAG, 1)


def _png_orientation(stream: BinaryIO) -> int:
    """The tag Orientation in the chunk eXIf of a PNG, after whose signature the stream stands."""
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            exif = Image.Exif()
            with suppress(SyntaxError, struct.error):  # broken EXIF says nothing
                exif.load(stream.read(length))
            return exif.get(ORIENTATION_TAG, 1)
        stream.seek(length + 4, os.SEEK_CUR)  # its content and checksum
    return 1
