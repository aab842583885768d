"""An image of a source to an RGB tile: odd modes and depths, broken files, the fingerprints that near-duplicates are found by."""

import hashlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from stages.common.artifacts import encode_png

# What is decoded, whatever a file is called. Not all that Pillow knows: EPS content would start Ghostscript.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF")
SMALLEST = 16  # pixels of the shorter side: fewer show no scene
# What Pillow raises on broken files of these (its plugins parse bytes with struct, zlib and indexing; AVIF's raises RuntimeError).
BROKEN = (
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


class Tile(NamedTuple):
    """A stored tile and what near-duplicates are found by."""

    encode_png: bytes
    dhash: int  # 64 bits
    thumb: bytes  # 16 x 16 grey
    mode: str  # Pillow mode the image came in
    sha256: str  # of the encoded image, "" for a drawn one
    captions: list[str] | None = None  # of a drawn tile


def tile(source: bytes | Path | None, resolution: int) -> Tile | str:
    """Decode, make RGB, scale the shorter side to `resolution` (antialiased) and center-crop; or a word on what is wrong."""
    if source is None or source == b"":
        return "image is empty"
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        # Pillow warns of large or slightly broken files it then reads.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=FORMATS) as image,
        ):
            image.load()
            if min(image.size) < SMALLEST:
                return f"smaller than {SMALLEST} pixels"
            picture = ImageOps.fit(rgb(image), (resolution, resolution), Image.Resampling.LANCZOS)
            return finish(picture, image.mode, hashlib.sha256(content).hexdigest())
    except MemoryError:
        return "image needs more memory than there is"
    except BROKEN:
        return "image is unreadable or truncated"


def finish(picture: Image.Image, mode: str = "RGB", sha256: str = "") -> Tile:
    """Encode an RGB tile and take its fingerprints."""
    grey = picture.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(
        small[:, 1:] > small[:, :-1]
    )  # difference hash: does brightness rise to the right? 8 x 8
    thumb = grey.resize((16, 16), Image.Resampling.BOX).tobytes()
    return Tile(encode_png(picture), int.from_bytes(bits.tobytes(), "big"), thumb, mode, sha256)


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: transparent parts turn black (no data), deep greys are scaled by their bit depth."""
    if image.mode[0] in "IF":
        return deep(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image.convert("RGB")


def deep(values: np.ndarray) -> Image.Image:
    """16-bit, 32-bit or float grey [H,W] to 8 bits; white is 1 for fractions, else the least 2^k - 1 >= maximum, k >= 8."""

    def grey(
        band: np.ndarray,
    ) -> np.ndarray:  # a band at a time: a whole satellite scene as float64 would take gigabytes
        return np.nan_to_num(band.astype(np.float64), nan=0, posinf=0, neginf=0).clip(min=0)

    bands = np.array_split(values, min(len(values), values.size // 2**20 + 1))
    top = max(grey(band).max() for band in bands)
    white = 1.0 if top <= 1 else 2.0 ** max(8, np.ceil(np.log2(top + 1))) - 1
    return Image.fromarray(
        np.concatenate([np.rint(grey(band) / white * 255).astype(np.uint8) for band in bands])
    )
