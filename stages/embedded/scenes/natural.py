"""Scenes of open ground: soil, dunes, meadow, forest, snow, lake and coast."""

import numpy as np

from .canvas import Canvas
from .ground import (
    WATER_WEIGHTS,
    add_bushes,
    add_neighbor,
    add_road,
    draw_canopy,
    paint_ground,
    paint_water,
)
from .noise import coverage, f32, smoothstep, voronoi_parcels

FOREST_LAYERS = ((1.0, 0.9), (0.8, 0.65), (0.6, 0.4))
SURF_COLOR = np.array([238, 240, 238], f32)
SNOW_SHADE_DOMAIN = np.array((176, 196, 224), f32)
SNOW_SHADE_BASE = np.array((130, 200, 255), f32)
# What lies behind a beach, for the captions.
COAST_NEIGHBORS = {
    "tree": "near a green forest",
    "grass": "near grass",
    "soil": "near bare land",
    "sand": "near sand",
}


def paint_bareland(canvas: Canvas) -> None:
    """Bare soil: eroded by gullies, cracked, or smooth with stones."""
    rng = canvas.rng
    word, _ = canvas.pick_color("soil")
    canvas.adjectives.append(word)
    paint_ground(canvas, "soil", word, 1.3)
    kind = rng.choice(["gullies", "cracked", "smooth"], p=[0.5, 0.25, 0.25])
    dark_soil = canvas.color("soil", word) * f32(0.68)
    if kind == "gullies":
        _paint_gullies(canvas, dark_soil)
    elif kind == "cracked":
        _paint_cracks(canvas, dark_soil)
    else:
        field = canvas.noise(3, 3, 0.6) - f32(0.5)
        canvas.mottle(field, canvas.pick_color("soil")[1], 0.7)
        canvas.adjectives.append("flat")
    if canvas.chance(0.35):
        add_bushes(canvas, rng.uniform(0.12, 0.3), "few bushes")
    add_neighbor(canvas, road=0.25, water=0.03, trees=0.05)


def _paint_gullies(canvas: Canvas, color: np.ndarray) -> None:
    """Erode the ground along the zero lines of a noise."""
    distance = np.abs(canvas.noise(canvas.rng.uniform(1.8, 3.2), 4, 0.5))
    canvas.raise_ground(1 - np.exp(-2 * distance), 0.13)
    strength = f32(0.6 if canvas.is_domain else 1)
    canvas.fill(color, np.exp(-((distance * f32(5)) ** 2)) * strength)
    canvas.details.append("some gullies")
    canvas.adjectives.append("eroded")


def _paint_cracks(canvas: Canvas, color: np.ndarray) -> None:
    """Crack the ground between Voronoi parcels."""
    rng = canvas.rng
    u, v = canvas.coordinates(0.3, 0.02, 5)
    count = int(rng.choice([16, 25, 36]))
    _, edge = voronoi_parcels(rng, u + f32(0.5), v + f32(0.5), count)
    cracks = coverage(edge - f32(rng.uniform(0.006, 0.013)), 0.025)
    canvas.fill(color * f32(0.8), cracks)
    canvas.raise_ground(np.minimum(edge, 0.05), 0.5)
    canvas.adjectives.append("cracked")
    canvas.details.append("some cracks")


def paint_desert(canvas: Canvas) -> None:
    """Sand with dunes, and sometimes rock or bushes."""
    word, sand = canvas.pick_color("sand")
    canvas.adjectives.append(word)
    canvas.fill(sand)
    canvas.mottle(canvas.noise(1.6, 2), canvas.color("sand", word) * f32(0.88), 0.8)
    _paint_dunes(canvas, sand)
    if canvas.chance(0.2):
        height = canvas.noise(2.2, 4, 0.55)
        rock = coverage(f32(1.25) - height, 0.25)
        canvas.fill(canvas.pick_color("rock")[1], rock * f32(0.85))
        canvas.raise_ground(height * rock, 0.05)
        canvas.add_texture(canvas.noise(7, 3, 0.8) * rock, 0.15)
        if rock.mean() > 0.03:
            canvas.details.append("some rocks")
    elif canvas.chance(0.2):
        add_bushes(canvas, 0.15, "few bushes")
    if canvas.chance(0.12):
        add_road(canvas)


def _paint_dunes(canvas: Canvas, sand: np.ndarray) -> None:
    """Raise dunes whose crests are sharp on the lee side."""
    rng = canvas.rng
    # Dunes lie more or less across the sun, else they could not be seen.
    sun_angle = np.arctan2(canvas.sun[1], canvas.sun[0])
    angle = sun_angle + rng.uniform(-0.7, 0.7) + np.pi * canvas.chance(0.5)
    u, v = canvas.coordinates(angle, rng.uniform(0.02, 0.07), rng.uniform(1.5, 3.5))
    wavelength = rng.uniform(0.15, 0.42)
    sway = f32(rng.uniform(0.02, 0.08)) * np.sin(v * f32(rng.uniform(4, 10)))
    phase = (u + sway) / f32(wavelength)
    phase = phase - np.floor(phase)
    crest = f32(0.72)
    windward = smoothstep(phase / crest)
    lee = 1 - smoothstep((phase - crest) / (1 - crest))
    profile = np.where(phase < crest, windward, lee)
    # Dunes die out and begin again.
    size = np.clip(0.65 + 0.45 * canvas.noise(2.5), 0.15, 1.4)
    canvas.raise_ground(profile * size, rng.uniform(0.1, 0.2) * wavelength)
    lee_strength = f32(0.15 if canvas.is_domain else 0.9)
    lee_mask = np.where(phase > crest, np.clip(size, 0, 1), 0) * lee_strength
    canvas.fill(sand * f32(0.78), lee_mask)
    canvas.raise_ground(canvas.noise(5, 4, 0.6), 0.004)
    canvas.add_texture(canvas.noise(10, 3, 0.7), 0.035)
    canvas.adjectives.append("wavy")
    if wavelength < 0.24:
        canvas.details.append("many small dunes")
    elif wavelength > 0.32:
        canvas.details.append("some large dunes")
    else:
        canvas.details.append("some dunes")


def paint_meadow(canvas: Canvas) -> None:
    """Grass with patches, bushes and sometimes bare soil."""
    rng = canvas.rng
    word, _ = canvas.pick_color("grass")
    paint_ground(canvas, "grass", word, 0.9)
    canvas.adjectives.append(word)
    if word == "yellow":
        canvas.season = "in autumn"
    elif canvas.chance(0.5):
        canvas.season = "in summer"
    patches = canvas.noise(rng.uniform(2, 4), 3, 0.55)
    patch_word = str(rng.choice(["green", "dark green", "light green", "yellow"]))
    patches = patches - f32(rng.uniform(0.2, 0.9))
    canvas.mottle(patches, canvas.color("grass", patch_word), 0.7)
    canvas.add_texture(canvas.noise(12, 3, 0.8), 0.06)
    if canvas.chance(0.3):
        bare = canvas.noise(2.5, 3)
        canvas.mottle(bare - f32(1.1), canvas.pick_color("soil")[1], 0.8)
        canvas.details.append("some bare patches")
    if canvas.chance(0.55):
        keep = rng.uniform(0.08, 0.4)
        add_bushes(canvas, keep, "some bushes" if keep > 0.22 else "few bushes")
    else:
        canvas.adjectives.append("smooth")
    add_neighbor(canvas, road=0.3, water=0.1, trees=0.12)


def paint_forest(canvas: Canvas) -> None:
    """Closed or open canopy in clumps; autumn leaves in some."""
    rng = canvas.rng
    autumn = canvas.chance(0.22)
    material = "autumn" if autumn else "tree"
    word, color = canvas.pick_color(material)
    light_color = canvas.color(material, word) * f32(1.3)
    canvas.adjectives.append(word)
    if autumn:
        canvas.season = "in autumn"
    elif canvas.chance(0.3):
        canvas.season = "in summer"
    dense = canvas.chance(0.7)
    if dense:
        floor = color * f32(0.6)
    else:
        floor = canvas.pick_color("grass" if canvas.chance(0.7) else "soil")[1]
    canvas.fill(floor)
    canvas.add_texture(canvas.noise(10, 3, 0.7), 0.1)
    canvas.raise_ground(canvas.noise(1.5, 3), 0.05)
    clumps = canvas.noise(2.2, 3)
    wooded = coverage(clumps - f32(2.2 if dense else 0.8), 0.5)
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(0.1, 0.17)
    keep = 1.0 if dense else 0.8
    draw_canopy(canvas, (color, light_color), period, angle, FOREST_LAYERS, keep, wooded)
    canvas.add_texture(clumps, 0.1)
    canvas.raise_ground(canvas.noise(9, 3, 0.7), 0.006)
    canvas.add_texture(canvas.noise(14, 3, 0.8), 0.1)
    canvas.adjectives.append("dense" if dense else "sparse")
    canvas.details.append("many trees" if dense else "some trees")
    add_neighbor(canvas, road=0.15, water=0.14, trees=0.0)


def paint_snowfield(canvas: Canvas) -> None:
    """Snow over relief: blue shade, wind ridges, and sometimes rock or firs."""
    rng = canvas.rng
    snow = canvas.color("snow", "white")
    brightness = f32(rng.uniform(0.8, 1.0))
    canvas.fill(snow * brightness if canvas.is_domain else snow)
    shade = SNOW_SHADE_DOMAIN if canvas.is_domain else SNOW_SHADE_BASE
    canvas.mottle(canvas.noise(2, 3), shade, rng.uniform(0.2, 0.7))
    canvas.adjectives.append("white")
    field = canvas.noise(rng.uniform(1.3, 2.6), 5, 0.5)
    steepness = rng.uniform(0.03, 0.16)
    canvas.raise_ground(1 - np.abs(field), steepness)
    canvas.season = "in winter"
    if canvas.chance(0.45):
        threshold = f32(rng.uniform(0.5, 1.0))
        rock = coverage((threshold - field) * f32(0.5), 0.2)
        canvas.fill(canvas.pick_color("rock")[1], rock)
        canvas.raise_ground(canvas.noise(7, 3) * rock, 0.012)
        if rock.mean() > 0.04:
            canvas.details.append("some rocks")
    if canvas.chance(0.4):
        u, _ = canvas.coordinates(rng.uniform(0, 3), 0.05)
        ridges = np.sin(u * f32(rng.uniform(28, 48)) + canvas.noise(3))
        canvas.raise_ground(ridges, 0.006)
        canvas.details.append("some wind ridges")
    if canvas.chance(0.3):
        add_bushes(canvas, rng.uniform(0.2, 0.55), "some trees", "dark green")
    if steepness > 0.1:
        canvas.adjectives.append("steep")
    elif steepness < 0.06:
        canvas.adjectives.append("flat")
    if canvas.chance(0.12):
        add_road(canvas)


def paint_lake(canvas: Canvas) -> None:
    """A lake with an irregular shore in grass, forest or bare ground."""
    rng = canvas.rng
    word, _ = canvas.pick_color("water", WATER_WEIGHTS)
    _paint_lake_bank(canvas)

    # The shore: an ellipse bent by noise, at some distance from the tile's center.
    u, v = canvas.coordinates(rng.uniform(0, np.pi), 0.05, 3)
    center_u, center_v = rng.uniform(-0.22, 0.22, 2)
    long_radius = rng.uniform(0.32, 0.6)
    short_radius = rng.uniform(0.24, 0.38)
    relative_u = (u - f32(center_u)) / f32(long_radius)
    relative_v = (v - f32(center_v)) / f32(short_radius)
    radius = np.sqrt(relative_u**2 + relative_v**2)
    distance = (radius - 1) * f32(short_radius) + f32(0.045) * canvas.noise(2.5, 3)
    if canvas.chance(0.2):
        island_u, island_v = rng.uniform(-0.12, 0.12, 2)
        island_radius = f32(rng.uniform(0.06, 0.1))
        squared_u = (u - f32(center_u + island_u)) ** 2
        squared_v = (v - f32(center_v + island_v)) ** 2
        distance = np.maximum(distance, island_radius - np.sqrt(squared_u + squared_v))
        canvas.details.append("a small island")
    paint_water(canvas, word, distance, "brown" if canvas.chance(0.4) else None)
    canvas.adjectives.append(word)
    if canvas.chance(0.15):
        _paint_lakeside_road(canvas, distance, center_u)


def _paint_lake_bank(canvas: Canvas) -> None:
    """Paint the ground around a lake: bare soil, grass, or grass under trees."""
    rng = canvas.rng
    bank = rng.choice(["grass", "trees", "soil"], p=[0.4, 0.35, 0.25])
    if bank == "soil":
        paint_ground(canvas, "soil", canvas.pick_color("soil")[0], 1.2)
        canvas.neighbors.append("surrounded by bare land")
        return
    paint_ground(canvas, "grass", canvas.pick_color("grass")[0])
    if bank == "trees":
        tree = canvas.color("tree", canvas.pick_color("tree")[0])
        period = rng.uniform(0.1, 0.14)
        draw_canopy(canvas, (tree, tree * f32(1.3)), period, rng.uniform(0, 3))
        canvas.neighbors.append("surrounded by trees")
    else:
        canvas.neighbors.append("surrounded by grass")


def _paint_lakeside_road(canvas: Canvas, shore_distance: np.ndarray, center: float) -> None:
    """Draw a road along the tile's left or right edge, clear of the water."""
    across = (canvas.x - f32(0.5)) * f32(-np.sign(center)) + f32(0.02) * canvas.noise(1.5)
    road = coverage(np.abs(across - f32(0.42)) - f32(0.035), canvas.edge_width)
    road = road * (shore_distance > 0.03)
    if road.mean() > 0.03:
        canvas.fill(canvas.pick_color("road")[1], road)
        canvas.flatten(road)
        canvas.neighbors.append("next to a road")


def paint_coast(canvas: Canvas) -> None:
    """Sea, surf and beach, then land."""
    rng = canvas.rng
    sea_word, _ = canvas.pick_color("sea")
    land = str(rng.choice(["grass", "tree", "soil", "sand"]))
    _paint_coastal_land(canvas, land)

    # The distance to the shoreline, which has bays: negative in the sea.
    u, v = canvas.coordinates(rng.uniform(0, 2 * np.pi), 0.03, 3)
    bays = np.sin(v * f32(rng.uniform(3, 7)) + f32(rng.uniform(0, 6)))
    distance = u - f32(rng.uniform(-0.15, 0.15)) + f32(rng.uniform(0, 0.14)) * bays
    distance = distance + f32(0.03) * canvas.noise(2.5, 3)

    sand_word, sand = canvas.pick_color("beach")
    beach_width = rng.uniform(0.04, 0.2)
    beach = coverage(distance - f32(beach_width), 0.02)
    canvas.flatten(beach)
    canvas.fill(sand, beach)
    canvas.add_texture(canvas.noise(9, 3) * beach, 0.04)
    wet_sand = coverage(distance - f32(0.025), 0.03)
    canvas.fill(sand * f32(0.8), wet_sand)
    _paint_sea(canvas, distance, sea_word)
    waves = _paint_surf(canvas, distance)

    canvas.adjectives.append(sea_word)
    canvas.details.append("white waves" if waves > 1 else "a white wave")
    width_word = "wide" if beach_width > 0.12 else "narrow"
    canvas.details.append(f"a {width_word} {sand_word} beach")
    canvas.neighbors.append(COAST_NEIGHBORS[land])


def _paint_coastal_land(canvas: Canvas, land: str) -> None:
    """Paint the land behind a beach: forest ("tree"), grass, soil or sand."""
    if land == "tree":
        tree = canvas.color("tree", canvas.pick_color("tree")[0])
        canvas.fill(tree * f32(0.75))
        canvas.raise_ground(canvas.noise(2, 3), 0.04)
        draw_canopy(canvas, (tree, tree * f32(1.3)), 0.12, 0.4)
    else:
        paint_ground(canvas, land, canvas.pick_color(land)[0])


def _paint_sea(canvas: Canvas, distance: np.ndarray, word: str) -> None:
    """Paint the sea, shallow near the shore, with swell along it."""
    rng = canvas.rng
    sea = coverage(distance, 0.02)
    canvas.fill(canvas.color("sea", word), sea)
    shallow_width = rng.uniform(0.12, 0.4)
    shallow_color = canvas.pick_color("shallow")[1]
    shallow = sea * smoothstep(1 + distance / f32(shallow_width))
    canvas.fill(shallow_color, shallow * f32(rng.uniform(0.4, 0.95)))
    swell = np.sin(distance * f32(rng.uniform(45, 70)) + canvas.noise(3, 2))
    canvas.add_texture(swell * sea, 0.035)
    canvas.add_texture(canvas.noise(8, 3, 0.8) * sea, 0.04)


def _paint_surf(canvas: Canvas, distance: np.ndarray) -> int:
    """Paint lines of surf, thinner and fainter away from the shore; returns how many."""
    rng = canvas.rng
    waves = int(rng.integers(1, 4))
    ragged = canvas.noise(6, 3, 0.6)
    for k in range(waves):
        offset = f32(k * rng.uniform(0.06, 0.1))
        width = f32(0.022 / (1 + 0.35 * k))
        half_width = width * (1 + f32(0.6) * ragged) - f32(0.006 * k)
        surf = coverage(np.abs(distance + offset) - half_width, 0.025)
        canvas.fill(SURF_COLOR, surf * f32(0.9 - 0.15 * k))
    return waves
