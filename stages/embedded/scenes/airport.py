"""A runway and what belongs to it."""

import numpy as np

from .canvas import FAR_OUTSIDE, Canvas
from .ground import PAVEMENT_WORDS, paint_ground
from .noise import coverage, distance_to_multiple, f32, lattice_cells


def paint_airport(canvas: Canvas) -> None:
    """A runway with markings, taxiways, and often an apron with planes and a terminal."""
    rng = canvas.rng
    ground = "grass" if canvas.chance(0.6) else "soil"
    paint_ground(canvas, ground, canvas.pick_color(ground)[0], 0.5)
    angle = canvas.survey_angle()
    # The center line of the runway is v = 0.
    u, v = canvas.coordinates(angle)
    v = v + f32(rng.uniform(-0.05, 0.2))
    u = u + f32(rng.uniform(-0.25, 0.25))
    asphalt_word, asphalt = canvas.pick_color("road")
    concrete = canvas.color("road", canvas.pick_color("road")[0])
    marking = canvas.color("mark", "white")
    half_width = rng.uniform(0.055, 0.095)
    gap = rng.uniform(0.13, 0.2)
    taxiway_v = v + f32(half_width + gap)
    taxiway_half_width = f32(rng.uniform(0.028, 0.04))

    taxiways = _taxiways(canvas, u, v, taxiway_v, taxiway_half_width)
    canvas.fill(concrete, taxiways)
    runway = coverage(np.abs(v) - f32(half_width), canvas.edge_width)
    canvas.fill(asphalt, runway)
    canvas.add_texture(canvas.noise(3, 2) * runway, 0.03)
    tire_marks = runway * coverage(np.abs(v) - f32(half_width * 0.45), half_width * 0.6)
    canvas.fill(asphalt * f32(0.75), tire_marks * f32(0.35))
    _mark_runway(canvas, u, v, half_width, marking)
    pavement = np.maximum(taxiways, runway)
    word = PAVEMENT_WORDS.get(asphalt_word, asphalt_word)
    if canvas.chance(0.25):
        _, second_v = canvas.coordinates(angle + rng.uniform(0.6, 1.2))
        second_v = second_v - f32(rng.uniform(-0.2, 0.2))
        second_runway = coverage(np.abs(second_v) - f32(half_width * 0.8), canvas.edge_width)
        second_runway = second_runway * (1 - runway)
        canvas.fill(asphalt, second_runway)
        pavement = np.maximum(pavement, second_runway)
        canvas.details += ["two crossed runways", f"{word} runways"]
    else:
        canvas.details += ["a long runway", f"a {word} runway"]
    canvas.flatten(pavement)
    if canvas.chance(0.75):
        # The apron begins at the taxiway's far edge, where `apron_v` is 0.
        apron_v = taxiway_v + taxiway_half_width
        _paint_apron(canvas, u, apron_v, concrete, canvas.sun_direction(angle))
    canvas.neighbors.append("on grass" if ground == "grass" else "on bare soil")


def _taxiways(
    canvas: Canvas, u: np.ndarray, v: np.ndarray, taxiway_v: np.ndarray, half_width: np.floating
) -> np.ndarray:
    """The mask of a taxiway beside the runway and of oblique links to it, [size, size]."""
    rng = canvas.rng
    period = f32(rng.uniform(0.35, 0.6))
    link_u = u - np.round(u / period) * period
    across_links = np.abs(link_u + f32(rng.uniform(-0.6, 0.6)) * v) - half_width
    links = np.maximum(across_links, np.maximum(v, -taxiway_v))
    return coverage(np.minimum(np.abs(taxiway_v) - half_width, links), canvas.edge_width)


def _mark_runway(
    canvas: Canvas, u: np.ndarray, v: np.ndarray, half_width: float, color: np.ndarray
) -> None:
    """Paint the dashed center line, the side lines and, on some runways, threshold bars."""
    rng = canvas.rng
    across = np.abs(v)
    dash_length = f32(0.14)
    dash = (distance_to_multiple(u, dash_length) - f32(0.3)) * dash_length
    center_line = coverage(np.maximum(across - f32(0.009), dash), canvas.edge_width)
    canvas.fill(color, center_line * f32(0.9))
    side_lines = coverage(np.abs(across - f32(half_width * 0.9)) - f32(0.004), canvas.edge_width)
    canvas.fill(color, side_lines * f32(0.7))
    if canvas.chance(0.5):
        threshold_u = f32(rng.uniform(-0.3, 0.3))
        period = f32(half_width * 0.36)
        stripes = distance_to_multiple(v, period) * period - f32(half_width * 0.1)
        bars = np.maximum(np.abs(u - threshold_u) - f32(0.05), stripes)
        bars = np.maximum(bars, across - f32(half_width * 0.85))
        canvas.fill(color, coverage(bars, canvas.edge_width) * f32(0.9))


def _paint_apron(
    canvas: Canvas,
    u: np.ndarray,
    apron_v: np.ndarray,
    concrete: np.ndarray,
    sun: tuple[float, float],
) -> None:
    """Paint an apron of concrete slabs, planes on their stands, and a terminal behind it.

    Args:
        canvas: where it is painted.
        u: coordinate along the runway [size, size].
        apron_v: coordinate across it [size, size]; the apron reaches from 0 to minus its depth.
        concrete: RGB [3].
        sun: the direction of the sun in these coordinates.
    """
    rng = canvas.rng
    depth = rng.uniform(0.18, 0.3)
    apron = coverage(np.maximum(apron_v, -apron_v - f32(depth)), canvas.edge_width)
    canvas.fill(concrete * f32(1.06), apron)
    canvas.flatten(apron)
    joints = np.abs(np.sin(u * f32(40))) < 0.12
    canvas.add_texture(joints * apron * f32(-1.0), 0.06)

    # One row of stands along the middle of the apron.
    stand_width = 0.19
    stand_depth = 0.16
    row_v = apron_v + f32(depth / 2 + stand_depth / 2)
    stand_u, stand_v, numbers = lattice_cells(rng, u, row_v, stand_width, stand_depth)
    taken = (np.floor(row_v / f32(stand_depth)) == 0) & (numbers[3] < 0.7)
    planes = np.where(taken, plane_distance(stand_u, stand_v), FAR_OUTSIDE)
    shadow_u = stand_u + f32(sun[0] * 0.015)
    shadow_v = stand_v + f32(sun[1] * 0.015)
    shadows = np.where(taken, plane_distance(shadow_u, shadow_v), FAR_OUTSIDE)
    shadow_color = canvas.image * f32(0.6 if canvas.is_domain else 1.0)
    canvas.fill(shadow_color, coverage(shadows, canvas.edge_width))
    planes = coverage(planes, canvas.edge_width)
    canvas.fill(canvas.color("car", "white"), planes)
    if planes.mean() > 0.005:
        canvas.details.append("some planes")

    terminal_u = np.abs(u - f32(rng.uniform(-0.1, 0.1))) - f32(rng.uniform(0.2, 0.45))
    terminal_v = np.abs(apron_v + f32(depth + 0.07)) - f32(0.055)
    distance = np.maximum(terminal_v, terminal_u)
    shadow = coverage(distance - f32(0.03 * canvas.shadow_length), 0.03)
    canvas.cast_shadow(shadow * (1 - apron), 0.4)
    terminal = coverage(distance, canvas.edge_width)
    canvas.fill(canvas.pick_color("roof")[1], terminal)
    if terminal.mean() > 0.03:
        canvas.details.append("a terminal building")


def plane_distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About the distance to an airliner seen from above, 0.14 long, its nose toward -v."""
    side = np.abs(u)
    body = np.maximum(side - f32(0.013), np.abs(v) - f32(0.068))
    wings_v = np.abs(v - f32(0.55) * side + f32(0.008)) - f32(0.014)
    wings = np.maximum(wings_v, side - f32(0.07))
    tail_v = np.abs(v - f32(0.052) - f32(0.4) * side) - f32(0.009)
    tail = np.maximum(tail_v, side - f32(0.03))
    return np.minimum(np.minimum(body, wings), tail)
