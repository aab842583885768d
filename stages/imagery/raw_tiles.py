"""Tiles of raw values, which wait for the stretch of the whole data set."""

import math
from typing import NamedTuple

import numpy as np


class RawTile(NamedTuple):
    """Values that are not stretched yet, and which of them are valid."""

    values: np.ndarray  # [B, H, W]
    valid: np.ndarray  # bool [H, W]


class RawLayout(NamedTuple):
    """How the bytes of a raw tile are read back."""

    dtype: str
    shape: tuple[int, int, int]  # B, H, W
    has_alpha: bool


def pack(values: np.ndarray, valid: np.ndarray, opaque: np.ndarray | None) -> bytes:
    """The bytes of a raw tile: its values, then a bit per pixel for `valid`, and for `opaque`."""
    bits = [np.packbits(mask).tobytes() for mask in (valid, opaque) if mask is not None]
    return values.tobytes() + b"".join(bits)


def unpack(content: bytes, layout: RawLayout, alpha_is_mask: bool) -> RawTile:
    """Read a raw tile back.

    Args:
        content: as `pack` returns it.
        layout: of the tile.
        alpha_is_mask: whether pixels that are not opaque are invalid.
    """
    count = int(np.prod(layout.shape))
    values = np.frombuffer(content, layout.dtype, count).reshape(layout.shape)
    pixels = layout.shape[1] * layout.shape[2]
    mask_bytes = math.ceil(pixels / 8)
    masks = np.frombuffer(content, np.uint8, offset=values.nbytes).reshape(-1, mask_bytes)
    valid, *opaque = np.unpackbits(masks, axis=1, count=pixels).astype(bool)
    if opaque and alpha_is_mask:
        valid = valid & opaque[0]
    return RawTile(values, valid.reshape(layout.shape[1:]))
