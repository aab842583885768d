"""Houses along streets."""

from typing import NamedTuple

import numpy as np

from .canvas import FAR_OUTSIDE, Canvas
from .ground import paint_ground
from .noise import box_distance, coverage, f32, lattice_cells

ROOF_WORDS = ["red", "gray", "white", "blue", "brown"]


class StreetGrid(NamedTuple):
    """Blocks two lots deep and some lots wide, with streets around them."""

    streets: np.ndarray  # mask [size, size]
    lot_u: np.ndarray  # coordinate along the rows of lots [size, size]
    lot_v: np.ndarray  # coordinate across the rows of lots [size, size]
    lot_width: float
    lot_depth: float


class Lots(NamedTuple):
    """What is known of each pixel's lot, [size, size] but for `numbers`."""

    offset_u: np.ndarray  # from the lot's center
    offset_v: np.ndarray
    half_width: np.ndarray  # of the house
    half_depth: np.ndarray
    outside: np.ndarray  # 0 where the lot holds a house, else a distance outside of every shape
    numbers: np.ndarray  # four uniform numbers per lot [4, size, size]


def paint_residential(canvas: Canvas) -> None:
    """Houses in lots along a rotated street grid, with gardens and trees."""
    rng = canvas.rng
    garden = "grass" if canvas.chance(0.65) else "soil"
    paint_ground(canvas, garden, canvas.pick_color(garden)[0], 0.5)
    angle = canvas.survey_angle()
    grid = _lay_out_streets(canvas, angle)
    house_share = rng.uniform(0.55, 1.0)  # of the lots
    roof_words = list(rng.permutation(ROOF_WORDS))
    mixed_roofs = canvas.chance(0.5)
    lots = _lay_out_lots(canvas, grid, house_share)
    tree_share = _plant_gardens(canvas, angle, grid.streets)
    sun = canvas.sun_direction(angle)
    houses = _draw_houses(canvas, lots, sun)
    roofs = _roof_colors(canvas, lots, roof_words[: 3 if mixed_roofs else 1], sun)
    canvas.flatten(np.maximum(grid.streets, houses))
    canvas.fill(canvas.pick_color("road")[1], grid.streets)
    canvas.fill(roofs, houses)
    canvas.add_texture(canvas.noise(14, 3, 0.8), 0.04)

    dense = house_share > 0.8 and grid.lot_width * grid.lot_depth < 0.062
    if dense:
        canvas.adjectives.append("dense")
    elif house_share < 0.68:
        canvas.adjectives.append("sparse")
    canvas.details.append("many houses" if dense else "some houses")
    canvas.details.append(f"houses with {'colorful' if mixed_roofs else roof_words[0]} roofs")
    canvas.details.append("many green trees" if tree_share > 0.5 else "some green trees")
    canvas.neighbors.append("with some roads")


def _lay_out_streets(canvas: Canvas, angle: float) -> StreetGrid:
    """Draw a street grid; nothing is painted yet."""
    rng = canvas.rng
    u, v = canvas.coordinates(angle, rng.uniform(0, 0.04), 1.2)
    lot_width = rng.uniform(0.17, 0.27)
    lot_depth = rng.uniform(0.2, 0.3)
    street_width = rng.uniform(0.07, 0.1)
    v = v + f32(rng.uniform(0, 1))
    u = u + f32(rng.uniform(0, 1))
    # A block with one street.
    depth = 2 * lot_depth + street_width
    width = rng.integers(3, 7) * lot_width + street_width
    row = np.floor(v / f32(depth))
    column = np.floor(u / f32(width))
    # Coordinates within a block, negative in the street before it.
    block_v = v - row * f32(depth) - f32(street_width)
    block_u = u - column * f32(width) - f32(street_width)
    streets = np.maximum(
        coverage(_street_distance(block_v, depth, street_width), canvas.edge_width),
        coverage(_street_distance(block_u, width, street_width), canvas.edge_width),
    )
    # The blocks lie 40 lots apart, so that each lot has a number of its own.
    lot_u = block_u + column * f32(40 * lot_width)
    lot_v = block_v + row * f32(40 * lot_depth)
    return StreetGrid(streets, lot_u, lot_v, lot_width, lot_depth)


def _street_distance(position: np.ndarray, block: float, street_width: float) -> np.ndarray:
    """Signed distance to the nearer of the streets before and behind a block (of this length)."""
    before = np.maximum(position, -street_width - position)
    behind = f32(block - street_width) - position
    return np.minimum(before, behind)


def _lay_out_lots(canvas: Canvas, grid: StreetGrid, house_share: float) -> Lots:
    """Draw which lots hold a house and how large it is; nothing is painted yet."""
    offset_u, offset_v, numbers = lattice_cells(
        canvas.rng, grid.lot_u, grid.lot_v, grid.lot_width, grid.lot_depth
    )
    half_width = f32(grid.lot_width) * (f32(0.28) + f32(0.17) * numbers[0])
    half_depth = f32(grid.lot_depth) * (f32(0.26) + f32(0.16) * numbers[1])
    has_house = (numbers[3] < house_share) & (grid.streets < 0.01)
    outside = np.where(has_house, f32(0), FAR_OUTSIDE)
    return Lots(offset_u, offset_v, half_width, half_depth, outside, numbers)


def _plant_gardens(canvas: Canvas, angle: float, streets: np.ndarray) -> float:
    """Draw trees outside of the streets; returns the share of their lattice that holds one."""
    green = canvas.color("tree", canvas.pick_color("tree")[0])
    keep = canvas.rng.uniform(0.2, 0.75)
    u, v = canvas.coordinates(angle + 0.6)
    canvas.draw_crowns(
        u,
        v,
        angle + 0.6,
        period=0.125,
        radius=(0.28, 0.48),
        keep=keep,
        colors=(green, green * f32(1.3)),
        where=1 - streets,
    )
    return keep


def _draw_houses(canvas: Canvas, lots: Lots, sun: tuple[float, float]) -> np.ndarray:
    """Cast the shadows of the houses; returns the mask of the houses, [size, size]."""
    distance = box_distance(lots.offset_u, lots.offset_v, lots.half_width, lots.half_depth)
    houses = coverage(distance + lots.outside, canvas.edge_width)
    reach = f32(0.05 * canvas.shadow_length)
    shadow_u = lots.offset_u + sun[0] * reach
    shadow_v = lots.offset_v + sun[1] * reach
    shadow_distance = box_distance(shadow_u, shadow_v, lots.half_width, lots.half_depth)
    shadows = coverage(shadow_distance + lots.outside, canvas.edge_width)
    canvas.cast_shadow(shadows * (1 - houses), 0.62)
    return houses


def _roof_colors(
    canvas: Canvas, lots: Lots, words: list[str], sun: tuple[float, float]
) -> np.ndarray:
    """Roof RGB [3, size, size] in these color words, one color per lot."""
    colors = [canvas.color("roof", words[i % len(words)], 0.12) for i in range(6)]
    choice = (lots.numbers[2] * f32(5.99)).astype(np.int32)
    roofs = np.moveaxis(np.stack(colors)[choice], -1, 0)
    if canvas.is_domain:
        # Gabled roofs: the half that faces the sun is brighter.
        lit_u = np.sign(lots.offset_u) * f32(sun[0])
        lit_v = np.sign(lots.offset_v) * f32(sun[1])
        roofs = roofs * (1 + f32(0.16) * np.where(lots.numbers[0] > 0.45, lit_v, lit_u))
    return roofs
