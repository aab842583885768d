"""Ground cover and neighbors that several scenes share: soil and grass, roads, trees, water."""

import numpy as np

from .canvas import Canvas
from .noise import coverage, f32, smoothstep

# Probabilities of the water's color words, in the palette's order. Brown water is easily taken for
# soil, hence rare.
WATER_WEIGHTS = [0.26, 0.28, 0.24, 0.16, 0.06]
# What captions call the color words of pavement, where it is not the same word.
PAVEMENT_WORDS = {"white": "light"}
# Layers of a canopy: relative size of the trees, share of the lattice cells that hold one.
CANOPY_LAYERS = ((1.0, 0.9), (0.7, 0.7))


def paint_ground(canvas: Canvas, material: str, word: str, roughness: float = 1.0) -> None:
    """Paint mottled, gently rolling ground in one color."""
    color = canvas.color(material, word)
    patch_color = canvas.color(material, word)
    canvas.fill(color)
    canvas.mottle(canvas.noise(2.5, 2), patch_color * f32(0.86), 0.9)
    hills = canvas.noise(canvas.rng.uniform(1.5, 3), 5, 0.5)
    canvas.raise_ground(hills, 0.03 * roughness)
    canvas.add_texture(canvas.noise(7, 4, 0.7), 0.06 * roughness)


def draw_curve(canvas: Canvas, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a random bent line through the tile.

    Returns:
        The signed distance to the line and the coordinate along it, each [size, size].
    """
    rng = canvas.rng
    u, v = canvas.coordinates(rng.uniform(0, np.pi))
    shift = rng.uniform(-0.3, 0.3)
    frequency = rng.uniform(2, 6)
    phase = rng.uniform(0, 6.28)
    distance = v - f32(shift) - f32(bend) * np.sin(f32(frequency) * u + f32(phase))
    return distance, u


def draw_canopy(
    canvas: Canvas,
    colors: tuple[np.ndarray, np.ndarray],
    period: float,
    angle: float,
    layers: tuple[tuple[float, float], ...] = CANOPY_LAYERS,
    keep: float = 1.0,
    where: np.ndarray | None = None,
) -> None:
    """Draw overlapping layers of wild trees.

    Args:
        canvas: where they are drawn.
        colors: the two RGB [3] that crowns lie between.
        period: of the first layer's lattice, in tile widths.
        angle: of the lattices, in radians.
        layers: each its share of the period, and the share of its lattice cells that hold a tree.
        keep: factor of the second.
        where: mask [size, size] outside of which no tree is drawn.
    """
    for scale, layer_keep in layers:
        # Rotated and bent coordinates hide the lattices that the trees stand on.
        layer_angle = angle + 2 * scale
        u, v = canvas.coordinates(layer_angle, 0.022, 5)
        tone = f32(canvas.rng.uniform(0.85, 1.15))
        canvas.draw_crowns(
            u,
            v,
            layer_angle,
            period * scale,
            radius=(0.28, 0.52),
            keep=layer_keep * keep,
            colors=(colors[0] * tone, colors[1] * tone),
            roughness=0.5,
            where=where,
        )


def add_road(canvas: Canvas) -> None:
    """Draw a road or a dirt track across the tile."""
    rng = canvas.rng
    distance, along = draw_curve(canvas, rng.uniform(0, 0.1))
    paved = canvas.chance(0.6)
    half_width = rng.uniform(0.035, 0.06) if paved else rng.uniform(0.025, 0.04)
    color = canvas.pick_color("road" if paved else "track")[1]
    verge = coverage(np.abs(distance) - f32(half_width * 1.5), 0.03)
    canvas.fill(canvas.image * f32(1.06), verge)
    road = coverage(np.abs(distance) - f32(half_width), canvas.edge_width)
    canvas.flatten(road)
    canvas.fill(color, road)
    if paved and half_width > 0.045:
        center_line = coverage(np.abs(distance) - f32(0.007), canvas.edge_width)
        dashes = center_line * (np.sin(along * f32(60)) > 0)
        canvas.fill(canvas.color("mark", "white"), dashes * f32(0.6))
    canvas.neighbors.append("next to a road" if paved else "crossed by a path")


def add_water(canvas: Canvas) -> None:
    """Paint a part of a lake over one side."""
    rng = canvas.rng
    u, _ = canvas.coordinates(rng.uniform(0, 2 * np.pi), 0.05, 2)
    word, _ = canvas.pick_color("water", WATER_WEIGHTS)
    paint_water(canvas, word, f32(rng.uniform(0.22, 0.34)) - u)
    canvas.neighbors.append("beside a lake")


def add_trees(canvas: Canvas) -> None:
    """Draw trees along one side."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    u, _ = canvas.coordinates(angle, 0.03, 3)
    word, _ = canvas.pick_color("tree")
    color = canvas.color("tree", word)
    wood = coverage(f32(rng.uniform(0.22, 0.32)) - u, 0.02)
    canvas.fill(color * f32(0.7), wood)
    draw_canopy(canvas, (color, color * f32(1.25)), 0.12, angle, where=wood)
    canvas.neighbors.append("near some trees")


def add_bushes(canvas: Canvas, keep: float, detail: str, word: str | None = None) -> None:
    """Draw scattered bushes, and note the detail if any of them lies inside the tile.

    Args:
        canvas: where they are drawn.
        keep: share of the lattice cells that hold a bush.
        detail: noun phrase for the captions.
        word: color word of the bushes; None draws one.
    """
    word = word or canvas.pick_color("tree")[0]
    color = canvas.color("tree", word)
    angle = 0.7
    u, v = canvas.coordinates(angle, 0.02, 3)
    bushes = canvas.draw_crowns(
        u,
        v,
        angle,
        period=canvas.rng.uniform(0.13, 0.22),
        radius=(0.14, 0.36),
        keep=keep,
        colors=(color, color * f32(1.3)),
        roughness=0.4,
    )
    if bushes.mean() > 0.004:
        canvas.details.append(detail)


def add_neighbor(canvas: Canvas, road: float, water: float, trees: float) -> None:
    """Add at most one neighbor; the arguments are the probabilities."""
    draw = canvas.rng.random()
    if draw < road:
        add_road(canvas)
    elif draw < road + water:
        add_water(canvas)
    elif draw < road + water + trees:
        add_trees(canvas)


def paint_water(
    canvas: Canvas, word: str, distance: np.ndarray, shore_word: str | None = None
) -> None:
    """Paint a lake with a wet rim and a shallow margin.

    Args:
        canvas: where it is painted.
        word: color word of the water.
        distance: signed distance to the shore [size, size], negative in the water.
        shore_word: color word of a beach; None leaves the ground, only darker.
    """
    rng = canvas.rng
    color = canvas.color("water", word)
    ragged = 1 + canvas.noise(4, 2)
    rim = coverage(np.abs(distance - f32(0.012)) - f32(0.012) * ragged, 0.03)
    if shore_word:
        shore_color = canvas.color("beach", shore_word)
    else:
        shore_color = canvas.image * f32(0.75)
    canvas.fill(shore_color, rim * f32(0.7))
    water = coverage(distance, canvas.edge_width)
    canvas.flatten(water)
    canvas.fill(color, water)
    shallow = water * smoothstep(1 + distance / f32(rng.uniform(0.06, 0.16)))
    shallow_color = np.clip(color * f32(1.2) + f32(10), 0, 255)
    canvas.fill(shallow_color, shallow * f32(rng.uniform(0.1, 0.7)))
    canvas.add_texture(water * canvas.noise(3, 4, 0.7), rng.uniform(0.02, 0.07))
    glint = smoothstep(canvas.noise(2, 2) * f32(0.6)) * water * f32(rng.uniform(0.1, 0.4))
    # Part of the water mirrors the sun.
    if canvas.chance(0.3) and canvas.is_domain:
        canvas.fill(np.array([196, 204, 206], f32), glint)
