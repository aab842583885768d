"""Fields that a scene is painted with: fractal noise, lattices, parcels, and coverage of shapes.

A field is a float32 array [size, size] over the unit tile: x grows to the right, y down, both in
(0, 1). Lengths are fractions of the tile's side, so a layout does not depend on the pixel size.
"""

from functools import lru_cache

import numpy as np

f32 = np.float32

# Noise lattices are windows into one fixed table: a slice costs less than drawing numbers.
TABLE_SIZE = 512
# A noise lattice has at most this many cells per side.
MAX_FREQUENCY = 150
# What a cubic B-spline leaves of the standard deviation of the lattice it smooths, per octave.
SPLINE_DEVIATION = 0.479


@lru_cache(maxsize=1)
def _random_tables() -> tuple[np.ndarray, np.ndarray]:
    """Fixed normal numbers [512, 512] and four uniform numbers per cell [256, 256, 4]."""
    rng = np.random.Generator(np.random.Philox(20240607))
    normal = rng.standard_normal((TABLE_SIZE, TABLE_SIZE), dtype=f32)
    uniform = rng.random((256, 256, 4), dtype=f32)
    return normal, uniform


@lru_cache(maxsize=16)
def pixel_centers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the pixel centers: x and y, each [size, size] and read-only."""
    centers = (np.arange(size, dtype=f32) + f32(0.5)) / f32(size)
    x = np.broadcast_to(centers, (size, size)).copy()
    y = np.broadcast_to(centers[:, None], (size, size)).copy()
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


@lru_cache(maxsize=256)
def _spline_weights(size: int, frequency: float) -> np.ndarray:
    """Cubic B-spline weights [size, lattice points]: they interpolate a lattice as one matrix."""
    position = (np.arange(size) + 0.5) / size * frequency
    first_point = np.floor(position).astype(int)
    t = position - first_point
    basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    four_weights = np.stack(basis, 1) / 6  # [size, 4]
    weights = np.zeros((size, int(np.ceil(frequency)) + 4), f32)
    for k in range(4):
        weights[np.arange(size), first_point + k] = four_weights[:, k]
    return weights


def fractal_noise(
    rng: np.random.Generator, size: int, frequency: float, octaves: int, gain: float
) -> np.ndarray:
    """Fractal noise [size, size] of about zero mean and unit variance.

    Octaves finer than two pixels are left out, but their random numbers are still drawn, so that
    the coarse octaves are the same at every size.

    Args:
        rng: draws the window of the lattice table, twice per octave.
        size: pixels per side.
        frequency: lattice cells across the tile in the first octave; it doubles with each octave.
        octaves: number of octaves.
        gain: amplitude of an octave relative to the one before.
    """
    normal_table = _random_tables()[0]
    noise = np.zeros((size, size), f32)
    amplitude = 1.0
    variance = 0.0
    for _ in range(octaves):
        top, left = rng.integers(0, TABLE_SIZE - 160, 2)
        if frequency <= max(size / 2, 8) and frequency < MAX_FREQUENCY:
            weights = _spline_weights(size, frequency)
            points = weights.shape[1]
            lattice = normal_table[top : top + points, left : left + points]
            noise += f32(amplitude) * (weights @ lattice @ weights.T)
        variance += (SPLINE_DEVIATION * amplitude) ** 2
        frequency = frequency * 2
        amplitude = amplitude * gain
    return noise / f32(np.sqrt(variance))


def lattice_cells(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, width: float, height: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the plane into cells of width x height (along u and v, in tile units).

    Returns:
        The offsets from the center of a pixel's cell along u and along v, each [size, size], and
        four uniform numbers that are constant within a cell, [4, size, size].
    """
    shift_u, shift_v = rng.integers(0, 256, 2)
    column_position = u / f32(width)
    row_position = v / f32(height)
    column = np.floor(column_position)
    row = np.floor(row_position)
    offset_u = (column_position - column - f32(0.5)) * f32(width)
    offset_v = (row_position - row - f32(0.5)) * f32(height)
    # The table repeats after 256 cells.
    table_row = (row.astype(np.int32) + shift_v) & 255
    table_column = (column.astype(np.int32) + shift_u) & 255
    numbers = _random_tables()[1][table_row, table_column]  # [size, size, 4]
    return offset_u, offset_v, np.moveaxis(numbers, -1, 0)


def voronoi_parcels(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi parcels of jittered lattice points.

    Returns:
        Parcel ids [size, size] and the distance to the nearest border [size, size], in tile units.
    """
    side = int(np.ceil(np.sqrt(count)))
    lattice_y, lattice_x = np.divmod(np.arange(side * side), side)
    lattice = np.stack([lattice_x, lattice_y], 1)
    # The points reach a little beyond the tile, else its edge would cut through no parcel.
    points = (lattice + rng.random((side * side, 2))) / side * 1.2 - 0.1
    points = points.astype(f32)
    squared_x = (x[None] - points[:, 0, None, None]) ** 2
    squared_y = (y[None] - points[:, 1, None, None]) ** 2
    squared = squared_x + squared_y  # [points, size, size]
    ids = squared.argmin(0)
    nearest_two = np.sqrt(np.partition(squared, 1, axis=0)[:2])
    return ids, (nearest_two[1] - nearest_two[0]) * f32(0.5)


def split_parcels(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, depth: int, slant: float
) -> tuple[np.ndarray, np.ndarray]:
    """Parcels by repeated straight cuts of a square around u = v = 0, each across the long side.

    Args:
        rng: draws where and how each cut runs.
        u: horizontal coordinate [size, size].
        v: vertical coordinate [size, size].
        depth: number of rounds in which every parcel is cut in two.
        slant: largest slope of a cut.

    Returns:
        Parcel ids [size, size] in [0, 2**depth) and the distance to the nearest cut [size, size],
        in tile units.
    """
    ids = np.zeros(u.shape, np.int32)
    edge = np.full(u.shape, 1, f32)
    # The bounding boxes of the parcels, [parcels, 2]: the corners of least and of greatest (u, v).
    low = np.array([[-0.7, -0.7]])
    high = np.array([[0.7, 0.7]])
    for _ in range(depth):
        extent = high - low
        axis = (extent[:, 1] > extent[:, 0]).astype(int)
        cut = low + extent * rng.uniform(0.32, 0.68, (len(low), 1))
        slope = rng.uniform(-slant, slant, len(low))
        ones = np.ones(len(low))
        normal_if_u = np.stack([ones, slope], 1)
        normal_if_v = np.stack([slope, ones], 1)
        normal = np.where(axis[:, None] == 0, normal_if_u, normal_if_v)
        normal = normal / np.sqrt((normal**2).sum(1, keepdims=True))
        # The cut runs through this point of its parcel.
        pivot = np.where(np.arange(2) == axis[:, None], cut, (low + high) / 2)
        offset = (normal * pivot).sum(1).astype(f32)
        normal = normal.astype(f32)
        # Signed distance to the cut of the parcel that a pixel lies in.
        side = normal[ids, 0] * u + normal[ids, 1] * v - offset[ids]
        edge = np.minimum(edge, np.abs(side))
        ids = ids * 2 + (side > 0)
        # A parcel with id i becomes the two with the ids 2i and 2i + 1.
        parcels = np.arange(len(low))
        first_high = high.copy()
        first_high[parcels, axis] = cut[parcels, axis]
        second_low = low.copy()
        second_low[parcels, axis] = cut[parcels, axis]
        low = np.stack([low, second_low], 1).reshape(-1, 2)
        high = np.stack([first_high, high], 1).reshape(-1, 2)
    return ids, edge


def coverage(distance: np.ndarray, edge_width: float) -> np.ndarray:
    """Coverage of a shape in [0, 1], from its signed distance (negative inside)."""
    return np.clip(f32(0.5) - distance / f32(edge_width), 0, 1)


def box_distance(
    u: np.ndarray,
    v: np.ndarray,
    half_u: np.ndarray | np.floating,
    half_v: np.ndarray | np.floating,
) -> np.ndarray:
    """Signed Chebyshev distance to a box that is centered on the origin."""
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def distance_to_multiple(values: np.ndarray, period: np.floating) -> np.ndarray:
    """Distance of each value to the nearest multiple of the period, in periods."""
    return np.abs(values / period - np.round(values / period))


def smoothstep(t: np.ndarray) -> np.ndarray:
    """The cubic 3t^2 - 2t^3 of t clipped to [0, 1]."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def blur(image: np.ndarray, weight: float) -> np.ndarray:
    """Three-tap blur along the last two axes.

    Args:
        image: [..., height, width].
        weight: weight of each of the two neighbors, 0 to 1/3.
    """
    w = f32(weight)
    for axis in (-1, -2):
        lines = np.moveaxis(image, axis, 0)
        blurred = lines * (1 - 2 * w)
        blurred[1:] += w * lines[:-1]
        blurred[:-1] += w * lines[1:]
        # Beyond the edge the image goes on with its last line.
        blurred[0] += w * lines[0]
        blurred[-1] += w * lines[-1]
        image = np.moveaxis(blurred, 0, axis)
    return image
