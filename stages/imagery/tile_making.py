"""Make a tile of an image. These functions run in worker processes."""

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stages.common.artifacts import encode_png
from stages.imagery.bands import BYTES, ParamsMisfit, RasterType
from stages.imagery.embedded_scenes import SceneId, render_scene
from stages.imagery.georeference import Georeference
from stages.imagery.image_decoding import decode_with_pillow, is_raster, read_encoded, rgb_image
from stages.imagery.near_duplicates import thumbnail_bytes
from stages.imagery.rasters import (
    AlphaCounts,
    Raster,
    RasterWindow,
    read_raster,
    read_window,
)
from stages.imagery.raw_tiles import RawLayout, pack, unpack
from stages.imagery.scale_and_crop import scale_and_crop
from stages.imagery.stretch import Pair, to_8_bit
from stages.imagery.unusable_image import UnusableImage
from stages.params import Mask

TOO_FEW_VALID = "too few of its pixels are valid"
ONE_VALUE = "all of its pixels have one value"


class Reading(NamedTuple):
    """How images are read."""

    size: int  # pixels along a side of a tile
    bands: list[int | str] | None  # None: those that the file says are red, green and blue
    mask: Mask | None
    keeps_bytes: bool  # 8-bit values are not stretched
    needs_bytes: bool  # no values are stretched
    min_valid: float  # share of the pixels; a tile with less is left out


class Finish(NamedTuple):
    """How raw tiles become images."""

    size: int  # pixels along a side of a tile
    stretch: list[Pair] | None  # None: the values are bytes and stay as they are
    alpha_is_mask: bool


class Tile(NamedTuple):
    """A tile: finished, or of raw values that wait for the stretch of the whole data set."""

    mode: str  # Pillow mode of the source image, or the type of its values
    sha256: str  # of the encoded source image or a window's values, and its mask; "" if rendered
    pixels: bytes = b""  # a PNG, or raw values of the layout `raw`
    raw: RawLayout | None = None
    thumbnail: bytes | None = None  # for near-duplicates; None: it waits for the stretch, too
    captions: list[str] | None = None  # of a rendered tile
    georeference: Georeference = Georeference()
    raster_type: RasterType = BYTES
    bands: tuple[int, ...] = ()  # that were chosen of a raster
    band_list: str = ""  # the same with their names
    scaling: tuple[tuple[float, float], ...] = ()  # the file's (scale, offset) of each
    pixel_count: int = 0  # of the source image, if it is a raster
    is_enlarged: bool = False  # the source image's shorter side is smaller than the tile's
    masked: int = 0  # pixels of the source image without data
    masked_by_alpha: int = 0  # further ones, if the band that is tagged alpha is a mask
    alpha: AlphaCounts | None = None  # None: no band is tagged alpha


def make_tile(job: tuple[Any, str], reading: Reading) -> Tile | UnusableImage | ParamsMisfit:
    """Make a tile of (image, name): encoded bytes, a path, a RasterWindow or a SceneId."""
    image, name = job
    if isinstance(image, SceneId):
        rendered, captions = render_scene(image, reading.size)
        return _finished(rendered, Tile("RGB", "", captions=captions))
    try:
        if isinstance(image, RasterWindow):
            raster = read_window(image, reading.bands, reading.mask, name)
            content = hashlib.sha256(raster.values.tobytes())
            for mask in (raster.valid, raster.opaque):
                content.update(b"" if mask is None else mask.tobytes())
            return _raster_tile(raster, name, content.hexdigest(), reading)
        return _file_tile(image, name, reading)
    except (UnusableImage, ParamsMisfit) as error:
        return error


def _file_tile(image: Any, name: str, reading: Reading) -> Tile:
    """Make a tile of encoded bytes or a path.

    Raises:
        UnusableImage: it can't be read, too few of its pixels are valid, or all have one value.
        ParamsMisfit: the params don't fit.
    """
    georeference = Georeference()
    if is_raster(image):
        raster = read_raster(image, reading.bands, reading.mask, name)
        if isinstance(raster, Raster):
            with open(image, "rb") if isinstance(image, Path) else io.BytesIO(image) as stream:
                content = hashlib.file_digest(stream, "sha256")
            if reading.mask is not None:  # it may be a file of its own
                content.update(raster.valid.tobytes())
            return _raster_tile(raster, name, content.hexdigest(), reading)
        georeference = raster
    if reading.bands is not None or reading.mask is not None:
        key = "mask" if reading.bands is None else "bands"
        raise ParamsMisfit(
            f"fetch_imagery.{key}: {name} is not a raster (TIFF, JPEG 2000 or 16-bit PNG), which "
            "bands and mask are for: write null for both",
            BYTES,
        )
    decoded = decode_with_pillow(read_encoded(image))
    width, height = decoded.rgb.size
    valid = np.ones((height, width), bool) if decoded.valid is None else decoded.valid
    values = np.asarray(decoded.rgb).transpose(2, 0, 1)
    raster = Raster(values, valid, georeference=georeference)
    if not reading.keeps_bytes:
        return _raster_tile(raster, name, decoded.sha256, reading)
    masked = _count_masked(raster, reading.min_valid)
    square = scale_and_crop(decoded.rgb, reading.size)
    tile = Tile(
        decoded.mode,
        decoded.sha256,
        georeference=_of_tile(georeference, decoded.rgb.size, reading.size),
        is_enlarged=min(decoded.rgb.size) < reading.size,
        masked=masked,
    )
    return _finished(square, tile)


def _raster_tile(raster: Raster, name: str, sha256: str, reading: Reading) -> Tile:
    """Make a tile of a raster: finished if its values are bytes that stay as they are.

    Raises:
        UnusableImage: too few of its pixels are valid, or all have one value.
        ParamsMisfit: its values are not to be stretched, but don't fit into a byte.
    """
    masked = _count_masked(raster, reading.min_valid)
    transparent = 0 if raster.opaque is None else int((raster.valid & ~raster.opaque).sum())
    tile = Tile(
        raster.mode(),
        sha256,
        georeference=_of_tile(raster.georeference, raster.valid.shape, reading.size),
        raster_type=raster.type,
        bands=raster.bands,
        band_list=raster.band_list,
        scaling=raster.scaling,
        pixel_count=raster.valid.size,
        is_enlarged=min(raster.valid.shape) < reading.size,
        masked=masked,
        masked_by_alpha=transparent,
        alpha=None if raster.opaque is None else raster.alpha,
    )
    if raster.values.dtype == np.uint8 and reading.keeps_bytes and raster.opaque is None:
        rgb = rgb_image(raster.values, raster.valid)
        return _finished(scale_and_crop(rgb, reading.size), tile)
    if reading.needs_bytes:
        _check_range(raster, name)
    bands, height, width = raster.values.shape
    layout = RawLayout(raster.values.dtype.str, (bands, height, width), raster.opaque is not None)
    pixels = pack(raster.values, raster.valid, raster.opaque)
    return tile._replace(pixels=pixels, raw=layout)


def _count_masked(raster: Raster, min_valid: float) -> int:
    """The number of pixels of an image that are not valid.

    Raises:
        UnusableImage: too few are valid, or all of these have one value, which shows nothing.
    """
    masked = raster.valid.size - int(raster.valid.sum())
    if has_too_few_valid(raster.valid.size, masked, min_valid):
        raise UnusableImage(TOO_FEW_VALID)
    is_shown = raster.opaque is None or raster.opaque.any()  # else alpha may mask the fill value
    if is_shown and not any(np.ptp(band[raster.valid]) for band in raster.values):
        raise UnusableImage(ONE_VALUE)
    return masked


def has_too_few_valid(pixel_count: int, masked: int, min_valid: float) -> bool:
    """Whether an image is left out: no pixel is valid, or less than the share `min_valid`."""
    return pixel_count > 0 and pixel_count - masked < max(1, min_valid * pixel_count)


def _check_range(raster: Raster, name: str) -> None:
    """Raise an error if valid values lie outside 0 to 255."""
    values = raster.values[:, raster.valid]
    if values.min() < 0 or values.max() > 255:
        raise ParamsMisfit(
            f"fetch_imagery.stretch: none is for values from 0 to 255; {name} holds "
            f"{values.min():g} to {values.max():g}: write auto, or [low, high]",
            raster.type,
        )


def _finished(image: Image.Image, tile: Tile) -> Tile:
    return tile._replace(pixels=encode_png(image), thumbnail=thumbnail_bytes(image))


def _of_tile(georeference: Georeference, sides: tuple[int, ...], size: int) -> Georeference:
    """The georeference of a tile of `size` pixels, which shows the center square of an image."""
    if georeference.gsd is None:
        return georeference
    return georeference._replace(gsd=georeference.gsd * min(sides) / size)


def finish_raw_tile(job: tuple[bytes, RawLayout | None], finish: Finish) -> bytes:
    """The PNG of a tile: of raw values, stretched; or the one that it is already."""
    content, layout = job
    if layout is None:
        return content
    return encode_png(_render(content, layout, finish))


def raw_thumbnail(job: tuple[bytes, RawLayout], finish: Finish) -> bytes:
    """The thumbnail of a raw tile."""
    return thumbnail_bytes(_render(*job, finish))


def _render(content: bytes, layout: RawLayout, finish: Finish) -> Image.Image:
    """Stretch a raw tile, make invalid pixels black, then scale and crop it."""
    raw = unpack(content, layout, finish.alpha_is_mask)
    values = raw.values if finish.stretch is None else to_8_bit(raw.values, finish.stretch)
    return scale_and_crop(rgb_image(values, raw.valid), finish.size)
