"""Decode image files of any format and color mode to 8-bit RGB; refuse broken ones."""

import contextlib
import hashlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from stages.imagery.bands import ParamsMisfit
from stages.imagery.rasters import SIGNATURE_BYTES, Raster, raster_driver, read_raster
from stages.imagery.unusable_image import (
    EMPTY,
    MIN_SIDE,
    NO_BLACK_AND_WHITE,
    NO_BYTES,
    NO_RED,
    OUT_OF_MEMORY,
    TOO_LARGE,
    TOO_SMALL,
    UNREADABLE,
    UnusableImage,
)

# .jfif: a JPEG, as browsers save it on Windows.
IMAGE_SUFFIXES = set(".jpg .jpeg .jfif .png .tif .tiff .bmp .gif .webp .avif .jp2 .j2k".split())
# The formats that Pillow decodes, independent of a file's suffix. It knows more, but some are
# dangerous: EPS would start Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF")
# What Pillow raises on broken files of these formats. Its plugins parse bytes with struct, zlib and
# indexing; the one for AVIF raises RuntimeError.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class DecodedImage(NamedTuple):
    """A decoded image and what it was."""

    rgb: Image.Image
    mode: str  # Pillow's mode before the conversion to RGB
    sha256: str  # of the encoded bytes
    # bool [H, W]: false where an image that Pillow decodes is fully transparent. None: nowhere
    valid: np.ndarray | None = None


def read_encoded(source: bytes | Path | None, size: int = -1) -> bytes:
    """The bytes of an image that is given as such or by its path, or the first `size` of them.

    Raises:
        UnusableImage: there are none, or they can't be read.
    """
    if isinstance(source, Path):
        try:
            with open(source, "rb") as stream:
                encoded = stream.read(size)
        except OSError:
            raise UnusableImage(UNREADABLE) from None
    else:
        encoded = (source or b"")[: None if size < 0 else size]
    if not encoded:
        raise UnusableImage(NO_BYTES if source is None else EMPTY)
    return encoded


def is_raster(source: bytes | Path | None) -> bool:
    """Whether an image is a raster by its first bytes, whatever its suffix; else it is Pillow's.

    Raises:
        UnusableImage: there are no bytes, or they can't be read.
    """
    return raster_driver(read_encoded(source, SIGNATURE_BYTES)) is not None


def decode_rgb(source: bytes | Path | None) -> DecodedImage:
    """Decode an encoded 8-bit image, or the file that a path names, to RGB.

    Of a TIFF with a band that is tagged alpha, pixels that it masks become black if it is
    a mask; else it is a band like another, and left out.

    Raises:
        UnusableImage: it is empty, broken, smaller than `MIN_SIDE`, too large, has more than 8 bits
            per value, or its bands are not known as red, green and blue.
    """
    encoded = read_encoded(source)
    if is_raster(encoded):
        try:
            raster = read_raster(source or encoded, None, None, "")
        except ParamsMisfit as error:
            raise UnusableImage(f"{error.raster_type}, {NO_RED}") from None
        if isinstance(raster, Raster):
            sha256 = hashlib.sha256(encoded).hexdigest()
            return DecodedImage(raster_to_rgb(raster), raster.mode(), sha256)
    return decode_with_pillow(encoded)


def raster_to_rgb(raster: Raster) -> Image.Image:
    """An 8-bit raster as an RGB image, whose masked pixels are black.

    Raises:
        UnusableImage: it has more than 8 bits per value.
    """
    if raster.values.dtype != np.uint8:
        raise UnusableImage(f"{raster.values.dtype} values, {NO_BLACK_AND_WHITE}")
    valid = raster.valid
    if raster.opaque is not None and raster.alpha.is_mask:
        valid = valid & raster.opaque
    return rgb_image(raster.values, valid)


def rgb_image(values: np.ndarray, valid: np.ndarray) -> Image.Image:
    """Bytes [1 or 3, H, W] as an RGB image, black where `valid` [H, W] is false."""
    pixels = np.where(valid, values, 0).astype(np.uint8).transpose(1, 2, 0)  # [H, W, 1 or 3]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*valid.shape, 3))))


def decode_with_pillow(encoded: bytes) -> DecodedImage:
    """Decode an image of 8 bits to RGB, upright as its EXIF orientation says.

    Raises:
        UnusableImage: it is broken, smaller than `MIN_SIDE`, or too large.
    """
    try:
        # Pillow warns of large or slightly broken files that it then reads.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS) as image,
        ):
            image.load()
            if min(image.size) < MIN_SIDE:
                raise UnusableImage(TOO_SMALL)
            mode = image.mode
            turn_upright(image)
            rgb, valid = to_rgb(image)
            return DecodedImage(rgb, mode, hashlib.sha256(encoded).hexdigest(), valid)
    except MemoryError:
        raise UnusableImage(OUT_OF_MEMORY) from None
    except Image.DecompressionBombError:
        raise UnusableImage(TOO_LARGE) from None
    except DECODE_ERRORS:
        raise UnusableImage(UNREADABLE) from None


def turn_upright(image: Image.Image) -> None:
    """Turn or mirror an image in place as its EXIF orientation says. Broken EXIF says nothing."""
    with contextlib.suppress(*DECODE_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """Convert an 8-bit image of any mode to RGB. Transparent pixels become black: no data.

    Returns:
        The image, and where it is not fully transparent, bool [H, W]; None: no pixel may be.
    """
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    image = image.convert("RGBA")
    black = Image.new("RGBA", image.size, "black")
    valid = np.asarray(image.getchannel("A")) != 0
    return Image.alpha_composite(black, image).convert("RGB"), valid
