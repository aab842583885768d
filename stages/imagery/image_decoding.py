"""Decode image files of any format, color mode and bit depth to 8-bit RGB; refuse broken ones."""

import hashlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2"}
# The formats that are decoded, independent of a file's suffix. Pillow knows more, but some are
# dangerous: EPS would start Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF")
MIN_SIDE = 16  # pixels; a smaller image shows no scene
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
    Image.DecompressionBombError,
)
TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
PIXELS_PER_BAND = 2**20
OUT_OF_MEMORY = "image needs more memory than there is"


class UnusableImage(Exception):
    """The image cannot become a tile. The message is the reason, as REPORT.json counts it."""


class DecodedImage(NamedTuple):
    """A decoded image and what it was."""

    rgb: Image.Image
    mode: str  # Pillow's mode before the conversion to RGB
    sha256: str  # of the encoded bytes


def decode_rgb(source: bytes | Path | None) -> DecodedImage:
    """Decode an encoded image, or the file that a path names, to 8-bit RGB.

    Raises:
        UnusableImage: it is empty, broken, smaller than `MIN_SIDE`, or too large for the memory.
    """
    if source is None or source == b"":
        raise UnusableImage("image is empty")
    try:
        encoded = source.read_bytes() if isinstance(source, Path) else source
        # Pillow warns of large or slightly broken files that it then reads.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS) as image,
        ):
            image.load()
            if min(image.size) < MIN_SIDE:
                raise UnusableImage(f"smaller than {MIN_SIDE} pixels")
            return DecodedImage(to_rgb(image), image.mode, hashlib.sha256(encoded).hexdigest())
    except MemoryError:
        raise UnusableImage(OUT_OF_MEMORY) from None
    except DECODE_ERRORS:
        raise UnusableImage("image is unreadable or truncated") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Transparent pixels become black, the value of no data. Modes with more than 8 bits are scaled.
    """
    if image.mode[0] in "IF":  # integers of 16 or 32 bits, floats
        return deep_gray_to_8_bit(np.asarray(image)).convert("RGB")
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, "black")
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def deep_gray_to_8_bit(values: np.ndarray) -> Image.Image:
    """Scale a gray image of 16-bit, 32-bit or float pixels to 8 bits.

    White is 1 if all values are at most 1. Otherwise it is the smallest 2^k - 1 that is at least
    the maximum, with k >= 8: the bit depth that the sensor used. NaN, inf and negative values
    become black.

    Args:
        values: pixels [H, W] of any numeric type.
    """
    # A whole satellite scene as float64 would take gigabytes, so it is scaled in bands of rows.
    band_count = min(len(values), values.size // PIXELS_PER_BAND + 1)
    bands = np.array_split(values, band_count)
    maximum = max(_finite_float(band).max() for band in bands)
    white = 1.0 if maximum <= 1 else 2.0 ** max(8, np.ceil(np.log2(maximum + 1))) - 1
    scaled = [np.rint(_finite_float(band) / white * 255).astype(np.uint8) for band in bands]
    return Image.fromarray(np.concatenate(scaled))


def _finite_float(band: np.ndarray) -> np.ndarray:
    """The values as float64, with 0 for NaN, inf and negative values."""
    return np.nan_to_num(band.astype(np.float64), nan=0, posinf=0, neginf=0).clip(min=0)
