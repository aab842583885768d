"""Scenes that farmers made: fields and orchards."""

import numpy as np

from .canvas import Canvas
from .ground import add_neighbor, paint_ground
from .noise import coverage, f32, split_parcels, voronoi_parcels

TWO_PI = 6.2832


def paint_farmland(canvas: Canvas) -> None:
    """Parcels, each with its own crop and furrows; rectangular, irregular or pivot-irrigated."""
    rng = canvas.rng
    shape = str(rng.choice(["rectangular", "irregular", "circular"], p=[0.5, 0.32, 0.18]))
    angle = canvas.survey_angle()
    if shape == "rectangular":
        u, v = canvas.coordinates(angle, rng.uniform(0, 0.02))
        depth = int(rng.integers(1, 5))
        count = 2**depth
        parcel, edge = split_parcels(rng, u, v, depth, rng.uniform(0, 0.25))
    elif shape == "irregular":
        count = 16
        u, v = canvas.coordinates(angle, 0.05, 2)
        squeezed_v = v * f32(rng.uniform(0.6, 1))
        points = int(rng.choice([4, 9, 16]))
        parcel, edge = voronoi_parcels(rng, u + f32(0.5), squeezed_v + f32(0.5), points)
    else:
        count = 16
        parcel, edge = _circular_parcels(canvas, angle)

    crops, colors = _pick_crops(canvas, count)
    canvas.image[:] = np.moveaxis(colors[parcel], -1, 0)
    _paint_furrows(canvas, parcel, count, angle)
    canvas.add_texture(canvas.noise(3, 4, 0.6), 0.07)
    canvas.raise_ground(canvas.noise(1.2, 3), 0.02)
    _paint_parcel_borders(canvas, edge, shape == "circular")

    canvas.adjectives.append(shape)
    _describe_fields(canvas, np.bincount(parcel.ravel(), minlength=count), crops, shape)
    add_neighbor(canvas, road=0.25, water=0.05, trees=0.08)


def _circular_parcels(canvas: Canvas, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Circles on a lattice: parcel ids and the distance to the circle's edge, positive inside."""
    rng = canvas.rng
    period = rng.uniform(0.5, 0.9)
    u, v = canvas.coordinates(angle)
    u = u + f32(rng.uniform(0, period))
    v = v + f32(rng.uniform(0, period))
    column = np.floor(u / f32(period))
    row = np.floor(v / f32(period))
    offset_u = u - (column + f32(0.5)) * f32(period)
    offset_v = v - (row + f32(0.5)) * f32(period)
    edge = f32(0.48 * period) - np.sqrt(offset_u * offset_u + offset_v * offset_v)
    circle = ((column + 3 * row).astype(np.int32)) % 8
    # One half of a circle may bear another crop.
    second_half = (offset_u > 0) & canvas.chance(0.4)
    return circle * 2 + second_half, edge


def _pick_crops(canvas: Canvas, count: int) -> tuple[list[str], np.ndarray]:
    """Draw the crops of the parcels: their color words and their RGB [count, 3]."""
    crops = [canvas.pick_color("crop") for _ in range(count)]
    # One crop covers most of some landscapes.
    if canvas.chance(0.3):
        common_word = crops[0][0]
        for i in range(count):
            if not canvas.chance(0.25):
                crops[i] = (common_word, canvas.color("crop", common_word, 0.12))
    words = [word for word, _ in crops]
    colors = np.stack([color for _, color in crops]).astype(f32)
    return words, colors


def _paint_furrows(canvas: Canvas, parcel: np.ndarray, count: int, angle: float) -> None:
    """Darken and brighten furrows: along the common direction in most parcels, across in some."""
    rng = canvas.rng
    turn = np.where(rng.random(count) < 0.65, 0, np.pi / 2)
    direction = turn + angle + rng.normal(0, 0.05, count)
    period = rng.uniform(0.045, 0.13, count)
    frequency_x = (np.cos(direction) * TWO_PI / period).astype(f32)
    frequency_y = (np.sin(direction) * TWO_PI / period).astype(f32)
    furrows = np.sin(frequency_x[parcel] * canvas.x + frequency_y[parcel] * canvas.y)
    depth = rng.uniform(0.0, 0.16, count)
    furrowed = rng.random(count) < 0.75
    depth = (depth * furrowed).astype(f32)[parcel]
    if canvas.is_domain:
        canvas.image *= 1 + depth * furrows
    else:
        canvas.image *= 1 + f32(0.16) * (depth > 0.06) * (furrows > 0)


def _paint_parcel_borders(canvas: Canvas, edge: np.ndarray, circular: bool) -> None:
    """Paint the soil between circles, or hedges or tracks between other parcels."""
    half_width = canvas.rng.uniform(0.004, 0.016)
    border = coverage(edge - f32(half_width), 0.016)
    if circular:
        _, soil = canvas.pick_color("soil")
        canvas.fill(soil, coverage(edge, canvas.edge_width))
        canvas.add_texture(canvas.noise(6, 3), 0.05)
    elif canvas.chance(0.35):
        canvas.fill(canvas.color("tree", "dark green"), border)
        canvas.raise_ground(border, 0.02)
        canvas.details.append("dark hedges")
    else:
        canvas.fill(canvas.color("track", "brown"), border * f32(0.8))


def _describe_fields(canvas: Canvas, areas: np.ndarray, crops: list[str], shape: str) -> None:
    """Note the crops and how many fields there are; `areas` [parcels] are in pixels."""
    pixels = int(areas.sum())
    crop_area: dict[str, int] = {}
    for crop, area in zip(crops, areas):
        crop_area[crop] = crop_area.get(crop, 0) + int(area)
    if shape == "circular":
        # The ground between the circles belongs to parcels too, so the areas tell nothing.
        canvas.details.append("round fields")
    else:
        largest = sorted(crop_area, key=lambda crop: crop_area[crop], reverse=True)
        if crop_area[largest[0]] > 0.5 * pixels:
            canvas.adjectives.insert(0, largest[0])
        elif crop_area[largest[1]] > 0.15 * pixels:
            canvas.details.append(f"{largest[0]} and {largest[1]} fields")
    visible = int((areas > 0.01 * pixels).sum())
    if visible > 6:
        canvas.details.append("many fields")
    elif visible > 2:
        canvas.details.append("several fields")
    else:
        canvas.details.append("a large field")


def paint_orchard(canvas: Canvas) -> None:
    """Trees planted on a regular lattice over grass or soil."""
    rng = canvas.rng
    floor = "grass" if canvas.chance(0.55) else "soil"
    paint_ground(canvas, floor, canvas.pick_color(floor)[0], 0.6)
    bloom = canvas.chance(0.18)
    word, color = canvas.pick_color("blossom" if bloom else "tree")
    angle = canvas.survey_angle()
    u, v = canvas.coordinates(angle, rng.uniform(0, 0.012))
    period = rng.uniform(0.115, 0.19)
    aspect = rng.uniform(1.0, 1.35)
    # Mown or plowed lanes run between the rows.
    canvas.add_texture(np.cos(v / f32(period) * f32(TWO_PI)), 0.05)
    if aspect > 1.2:
        v = v / f32(aspect)
    least_radius = rng.uniform(0.26, 0.4)
    keep = rng.uniform(0.8, 1.0)
    canvas.draw_crowns(
        u,
        v,
        angle,
        period,
        radius=(least_radius, min(least_radius + 0.08, 0.48)),
        keep=keep,
        colors=(color, color * f32(1.22)),
        jitter=0.25,
    )
    canvas.add_texture(canvas.noise(12, 3, 0.8), 0.05)
    canvas.adjectives.append(word)
    canvas.adjectives.append("regular" if canvas.chance(0.5) else "neat")
    if bloom:
        canvas.season = "in spring"
    canvas.details.append("many rows of trees" if period < 0.14 else "rows of trees")
    if least_radius > 0.35:
        canvas.adjectives.append("dense")
    elif least_radius < 0.3 or keep < 0.86:
        canvas.adjectives.append("sparse")
    else:
        canvas.adjectives.append("neat")
    canvas.neighbors.append("on grass" if floor == "grass" else "on bare soil")
    add_neighbor(canvas, road=0.22, water=0.05, trees=0.0)
