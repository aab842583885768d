"""Fields a scene is drawn from: smooth noise, cells, parcels, coverage of shapes.

Every field is float32 of shape (size, size) over the unit tile: x grows to the right, y down, both
in (0, 1). Lengths are fractions of the tile's side, so a layout does not depend on the pixel size.
"""

from functools import lru_cache

import numpy as np

_TABLE = 512  # random lattices are windows into one fixed table: a slice costs nothing


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Fixed normal lattice (512, 512) and uniform cell numbers (256, 256, 4)."""
    rng = np.random.Generator(np.random.Philox(20240607))
    return (
        rng.standard_normal((_TABLE, _TABLE), dtype=np.float32),
        rng.random((256, 256, 4), dtype=np.float32),
    )


@lru_cache(maxsize=16)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centers: x and y, each (size, size)."""
    t = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = np.broadcast_to(t, (size, size)).copy(), np.broadcast_to(t[:, None], (size, size)).copy()
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


@lru_cache(maxsize=256)
def _spline(size: int, freq: float) -> np.ndarray:
    """Cubic B-spline weights (size, cells): smooth interpolation of a lattice as one matrix."""
    pos = (np.arange(size) + 0.5) / size * freq
    base = np.floor(pos).astype(int)
    t = pos - base
    w = (
        np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1)
        / 6
    )
    out = np.zeros((size, int(np.ceil(freq)) + 4), np.float32)
    for k in range(4):
        out[np.arange(size), base + k] = w[:, k]
    return out


def fbm(
    rng: np.random.Generator,
    size: int,
    freq: float,
    octaves: int = 1,
    gain: float = 0.5,
    stretch: float = 1.0,
) -> np.ndarray:
    """Fractal noise (size, size), about zero mean and unit variance.

    `freq` is the number of lattice cells across the tile in the first octave, `stretch` multiplies
    it along y. Octaves finer than two pixels are left out, but their random numbers are still drawn,
    so that the coarse octaves are the same at every size.
    """
    table = _tables()[0]
    out = np.zeros((size, size), np.float32)
    amp, power = 1.0, 0.0
    for _ in range(octaves):
        oy, ox = rng.integers(0, _TABLE - 160, 2)
        fy = freq * stretch
        if max(freq, fy) <= max(size / 2, 8) and max(freq, fy) < 150:
            wy, wx = _spline(size, fy), _spline(size, freq)
            out += np.float32(amp) * (
                wy @ table[oy : oy + wy.shape[1], ox : ox + wx.shape[1]] @ wx.T
            )
        power += (0.479 * amp) ** 2  # 0.479: what the spline leaves of the lattice's deviation
        freq, amp = freq * 2, amp * gain
    return out / np.float32(np.sqrt(power))


def cells(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, pu: float, pv: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the plane into pu x pv cells.

    Returns the offsets from the cell's center (in tile units, each (size, size)) and four uniform
    numbers that are constant within a cell, (4, size, size).
    """
    ou, ov = rng.integers(0, 256, 2)
    a, b = u / np.float32(pu), v / np.float32(pv)
    iu, iv = np.floor(a), np.floor(b)
    numbers = _tables()[1][(iv.astype(np.int32) + ov) & 255, (iu.astype(np.int32) + ou) & 255]
    return (
        (a - iu - np.float32(0.5)) * np.float32(pu),
        (b - iv - np.float32(0.5)) * np.float32(pv),
        np.moveaxis(numbers, -1, 0),
    )


def voronoi(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi parcels: ids (size, size) and the distance to the nearest border, in tile units."""
    side = int(np.ceil(np.sqrt(count)))
    gy, gx = np.divmod(np.arange(side * side), side)
    points = (np.stack([gx, gy], 1) + rng.random((side * side, 2))) / side * 1.2 - 0.1
    points = points.astype(np.float32)
    d = (x[None] - points[:, 0, None, None]) ** 2 + (y[None] - points[:, 1, None, None]) ** 2
    ids = d.argmin(0)
    two = np.partition(d, 1, axis=0)[:2]
    two = np.sqrt(two)
    return ids, (two[1] - two[0]) * np.float32(0.5)


def splits(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, depth: int, slant: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Parcels by repeated straight splits of the unit square (in u, v centered on 0).

    Returns ids (size, size) in [0, 2**depth) and the distance to the nearest cut, in tile units.
    """
    ids = np.zeros(u.shape, np.int32)
    edge = np.full(u.shape, 1, np.float32)
    lo, hi = np.array([[-0.7, -0.7]]), np.array([[0.7, 0.7]])
    for _ in range(depth):
        span = hi - lo
        axis = (span[:, 1] > span[:, 0]).astype(int)  # cut across the long side
        at = lo + span * rng.uniform(0.32, 0.68, (len(lo), 1))
        lean = rng.uniform(-slant, slant, len(lo))
        n = np.where(
            axis[:, None] == 0,
            np.stack([np.ones(len(lo)), lean], 1),
            np.stack([lean, np.ones(len(lo))], 1),
        )
        mid = (lo + hi) / 2
        pivot = np.where(np.arange(2) == axis[:, None], at, mid)
        n = n / np.sqrt((n**2).sum(1, keepdims=True))
        k = (n * pivot).sum(1).astype(np.float32)
        n = n.astype(np.float32)
        side = n[ids, 0] * u + n[ids, 1] * v - k[ids]
        edge = np.minimum(edge, np.abs(side))
        ids = ids * 2 + (side > 0)
        rows = np.arange(len(lo))
        left_hi, right_lo = hi.copy(), lo.copy()
        left_hi[rows, axis] = at[rows, axis]
        right_lo[rows, axis] = at[rows, axis]
        lo = np.stack([lo, right_lo], 1).reshape(-1, 2)
        hi = np.stack([left_hi, hi], 1).reshape(-1, 2)
    return ids, edge


def cover(distance: np.ndarray, soft: float) -> np.ndarray:
    """Coverage 0..1 of a shape from its signed distance (negative inside); `soft` is the edge width."""
    return np.clip(np.float32(0.5) - distance / np.float32(soft), 0, 1)


def box(u: np.ndarray, v: np.ndarray, half_u, half_v) -> np.ndarray:
    """Signed distance (Chebyshev) to a box centered on the origin."""
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def smooth(t: np.ndarray) -> np.ndarray:
    """Smoothstep of t clipped to 0..1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def blur(img: np.ndarray, weight: float) -> np.ndarray:
    """Three-tap blur along the last two axes; `weight` 0..0.33 is each neighbor's share."""
    w = np.float32(weight)
    for axis in (-1, -2):
        a = np.moveaxis(img, axis, 0)
        out = a * (1 - 2 * w)
        out[1:] += w * a[:-1]
        out[:-1] += w * a[1:]
        out[0] += w * a[0]
        out[-1] += w * a[-1]
        img = np.moveaxis(out, 0, axis)
    return img
