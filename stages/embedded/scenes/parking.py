"""A parking lot."""

import numpy as np

from .canvas import FAR_OUTSIDE, Canvas
from .ground import PAVEMENT_WORDS, draw_canopy
from .noise import box_distance, coverage, f32, lattice_cells

# Each as often as it stands here.
CAR_WORDS = ["white", "white", "gray", "gray", "black", "black", "red", "blue"]
WINDSHIELD_COLOR = np.array([52, 58, 66], f32)


def paint_parking(canvas: Canvas) -> None:
    """Rows of stalls back to back, aisles, marked lines and cars, and what lies beside the lot."""
    rng = canvas.rng
    asphalt_word, asphalt = canvas.pick_color("road")
    canvas.fill(asphalt)
    canvas.add_texture(canvas.noise(3, 4, 0.6), 0.05)
    angle = canvas.survey_angle()
    u, v = canvas.coordinates(angle)
    stall_width = rng.uniform(0.085, 0.115)
    stall_depth = rng.uniform(0.16, 0.2)
    aisle = rng.uniform(0.12, 0.22)
    u = u + f32(rng.uniform(0, 1))
    v = v + f32(rng.uniform(0, 1))

    # A row is two stalls back to back, then an aisle.
    row_depth = 2 * stall_depth + aisle
    row = np.floor(v / f32(row_depth))
    row_v = v - row * f32(row_depth)
    in_stalls = row_v < f32(2 * stall_depth)
    # The rows lie 8 stalls apart, so that each stall has a number of its own.
    stall_v = np.where(in_stalls, row_v, f32(0)) + row * f32(8 * stall_depth)
    offset_u, offset_v, numbers = lattice_cells(rng, u, stall_v, stall_width, stall_depth)

    marking = canvas.color("mark", "white")
    between_stalls = f32(stall_width / 2) - np.abs(offset_u)
    between_rows = np.abs(row_v - f32(stall_depth))
    lines = coverage(np.minimum(between_stalls, between_rows) - f32(0.005), canvas.edge_width)
    canvas.fill(marking, lines * in_stalls * f32(0.75))

    keep = rng.uniform(0.25, 0.95)  # share of the stalls that are taken
    taken = in_stalls & (numbers[3] < keep)
    offset_u = offset_u - (numbers[0] - f32(0.5)) * f32(0.1 * stall_width)
    offset_v = offset_v - (numbers[1] - f32(0.5)) * f32(0.12 * stall_depth)
    half_size = (f32(stall_width * 0.37), f32(stall_depth * 0.42))
    _paint_cars(canvas, offset_u, offset_v, half_size, taken, numbers[2], angle)
    _paint_lot_edge(canvas, angle, marking)

    if keep > 0.75:
        canvas.adjectives.append("full")
    elif keep < 0.5:
        canvas.adjectives.append("half empty")
    else:
        canvas.adjectives.append("busy")
    canvas.adjectives.append(PAVEMENT_WORDS.get(asphalt_word, asphalt_word))
    canvas.details.append("many cars" if keep > 0.6 else "some cars")
    canvas.details.append("rows of cars" if keep > 0.5 else "empty spaces")


def _paint_cars(
    canvas: Canvas,
    u: np.ndarray,
    v: np.ndarray,
    half_size: tuple[np.floating, np.floating],
    taken: np.ndarray,
    numbers: np.ndarray,
    angle: float,
) -> None:
    """Paint cars with windshields and shadows.

    Args:
        canvas: where they are painted.
        u: offset from the center of the nearest car along its width [size, size].
        v: offset along its length [size, size].
        half_size: half a car's width and length.
        taken: whether a pixel's stall holds a car [size, size].
        numbers: a uniform number per stall [size, size]; it chooses the color.
        angle: of the coordinates, in radians.
    """
    half_u, half_v = half_size
    distance = np.where(taken, car_distance(u, v, half_u, half_v), FAR_OUTSIDE)
    cars = coverage(distance, canvas.edge_width)
    sun_u, sun_v = canvas.sun_direction(angle)
    reach = f32(0.018 * canvas.shadow_length)
    shadow_u = u + f32(sun_u) * reach
    shadow_v = v + f32(sun_v) * reach
    shadow_distance = car_distance(shadow_u, shadow_v, half_u, half_v)
    shadows = coverage(np.where(taken, shadow_distance, FAR_OUTSIDE), canvas.edge_width)
    canvas.cast_shadow(shadows * (1 - cars), 0.6)
    colors = np.stack([canvas.color("car", word) for word in CAR_WORDS])  # [colors, 3]
    choice = (numbers * f32(7.99)).astype(np.int32)
    canvas.fill(np.moveaxis(colors[choice], -1, 0), cars)
    # A windshield in front and one behind.
    near_windshield = np.abs(np.abs(v) - half_v * f32(0.5)) < f32(0.014)
    windshields = taken & near_windshield & (np.abs(u) < half_u * f32(0.8))
    canvas.fill(WINDSHIELD_COLOR, windshields * f32(0.5))
    canvas.flatten(cars)


def car_distance(
    u: np.ndarray, v: np.ndarray, half_u: np.floating, half_v: np.floating
) -> np.ndarray:
    """About the distance to a car seen from above: a box with cut corners."""
    corners = np.abs(u) + np.abs(v) - (half_u + half_v) * f32(0.86)
    return np.maximum(box_distance(u, v, half_u, half_v), corners)


def _paint_lot_edge(canvas: Canvas, angle: float, marking: np.ndarray) -> None:
    """Paint what lies beside the lot: nothing, trees, grass, a building or a road."""
    rng = canvas.rng
    kinds = ["none", "trees", "grass", "building", "road"]
    kind = str(rng.choice(kinds, p=[0.3, 0.2, 0.15, 0.2, 0.15]))
    across, along = canvas.coordinates(rng.choice([0, np.pi / 2, np.pi]) + angle)
    edge = coverage(f32(rng.uniform(0.24, 0.34)) - across, canvas.edge_width)
    if kind in ("trees", "grass"):
        canvas.fill(canvas.pick_color("grass")[1], edge)
        canvas.flatten(edge)
        canvas.add_texture(canvas.noise(8, 3) * edge, 0.08)
        if kind == "trees":
            tree = canvas.color("tree", canvas.pick_color("tree")[0])
            draw_canopy(canvas, (tree, tree * f32(1.3)), 0.14, angle, where=edge)
        canvas.neighbors.append("near some trees" if kind == "trees" else "near grass")
    elif kind == "building":
        _, roof = canvas.pick_color("roof")
        shadow = coverage(f32(0.24) - across - f32(0.02), 0.03)
        canvas.cast_shadow(shadow * (1 - edge), 0.4)
        canvas.fill(roof, edge)
        canvas.flatten(edge)
        canvas.neighbors.append("next to a building")
    elif kind == "road":
        canvas.fill(canvas.pick_color("road")[1], edge)
        canvas.flatten(edge)
        center_line = coverage(np.abs(across - f32(0.42)) - f32(0.007), canvas.edge_width)
        canvas.fill(marking, center_line * (np.sin(along * f32(45)) > 0))
        canvas.neighbors.append("next to a road")
