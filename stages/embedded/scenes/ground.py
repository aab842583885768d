"""Ground cover and neighbors that several scenes share: soil and grass, roads, trees, water."""

import numpy as np

from .canvas import Canvas
from .noise import cover, smooth

f32 = np.float32
WATER = [0.26, 0.28, 0.24, 0.16, 0.06]  # brown water is easily taken for soil: keep it rare


def ground(c: Canvas, material: str, word: str, rough: float = 1.0) -> None:
    """Mottled, gently rolling ground in one color."""
    a, b = c.rgb(material, word), c.rgb(material, word)
    c.fill(a)
    c.mottle(c.noise(2.5, 2), b * f32(0.86), 0.9)
    hills = c.noise(c.rng.uniform(1.5, 3), 5, 0.5)
    c.relief(hills, 0.03 * rough)
    c.grain(c.noise(7, 4, 0.7), 0.06 * rough)


def curve(c: Canvas, bend: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Distance to a random bent line through the tile, signed, and the coordinate along it."""
    u, v = c.uv(c.rng.uniform(0, np.pi))
    at = c.rng.uniform(-0.3, 0.3)
    k, p = c.rng.uniform(2, 6), c.rng.uniform(0, 6.28)
    return v - f32(at) - f32(bend) * np.sin(f32(k) * u + f32(p)), u


def canopy(
    c: Canvas,
    a: np.ndarray,
    b: np.ndarray,
    period: float,
    angle: float,
    layers: tuple[tuple[float, float], ...] = ((1.0, 0.9), (0.7, 0.7)),
    keep: float = 1.0,
    where: np.ndarray | None = None,
) -> None:
    """Overlapping layers (share of the period, share of cells kept) of wild trees, colored a..b."""
    for share, kept in layers:
        # bent and turned coordinates hide the lattices the crowns stand on
        turn = angle + 2 * share
        u, v = c.uv(turn, 0.022, 5)
        tone = f32(c.rng.uniform(0.85, 1.15))
        c.crowns(
            u,
            v,
            turn,
            period * share,
            (0.28, 0.52),
            kept * keep,
            (a * tone, b * tone),
            rough=0.5,
            where=where,
        )


def add_road(c: Canvas, wide: float | None = None, paved: bool | None = None) -> None:
    """A road or a dirt track across the tile."""
    d, along = curve(c, c.rng.uniform(0, 0.1))
    paved = c.chance(0.6) if paved is None else paved
    half = wide or (c.rng.uniform(0.035, 0.06) if paved else c.rng.uniform(0.025, 0.04))
    if paved:
        color = c.pick("road")[1]
    else:
        color = c.pick("track")[1]
    verge = cover(np.abs(d) - f32(half * 1.5), 0.03)
    c.fill(c.img * f32(1.06), verge)
    mask = cover(np.abs(d) - f32(half), c.soft)
    c.flatten(mask)
    c.fill(color, mask)
    if paved and half > 0.045:
        dash = cover(np.abs(d) - f32(0.007), c.soft) * (np.sin(along * f32(60)) > 0)
        c.fill(c.rgb("mark", "white"), dash * f32(0.6))
    c.near.append("next to a road" if paved else "crossed by a path")


def add_water(c: Canvas) -> None:
    """A strip of lake in one corner."""
    u, _ = c.uv(c.rng.uniform(0, 2 * np.pi), 0.05, 2)
    paint_water(c, "water", c.pick("water", WATER)[0], f32(c.rng.uniform(0.22, 0.34)) - u)
    c.near.append("beside a lake")


def add_trees(c: Canvas, word: str | None = None) -> None:
    """A patch of trees along one side."""
    angle = c.rng.uniform(0, 2 * np.pi)
    u = c.uv(angle, 0.03, 3)[0]
    word = word or c.pick("tree")[0]
    a = c.rgb("tree", word)
    where = cover(f32(c.rng.uniform(0.22, 0.32)) - u, 0.02)
    c.fill(a * f32(0.7), where)
    canopy(c, a, a * f32(1.25), 0.12, angle, where=where)
    c.near.append("near some trees")


def add_bushes(c: Canvas, keep: float, detail: str, word: str | None = None) -> None:
    """Scattered bushes, told as `detail` if any fell inside the tile."""
    word = word or c.pick("tree")[0]
    a = c.rgb("tree", word)
    u, v = c.uv(0.7, 0.02, 3)
    period = c.rng.uniform(0.13, 0.22)
    mask = c.crowns(u, v, 0.7, period, (0.14, 0.36), keep, (a, a * f32(1.3)), rough=0.4)
    if mask.mean() > 0.004:
        c.details.append(detail)


def neighbors(c: Canvas, road: float, water: float, trees: float) -> None:
    """At most one neighbor, with the given chances."""
    roll = c.rng.random()
    if roll < road:
        add_road(c)
    elif roll < road + water:
        add_water(c)
    elif roll < road + water + trees:
        add_trees(c)


def paint_water(
    c: Canvas, material: str, word: str, d: np.ndarray, shore: str | None = None
) -> np.ndarray:
    """Water where the distance field d is negative, with a wet rim and a shallow margin."""
    deep = c.rgb(material, word)
    rim = cover(np.abs(d - f32(0.012)) - f32(0.012) * (1 + c.noise(4, 2)), 0.03)
    c.fill(c.rgb("beach", shore) if shore else c.img * f32(0.75), rim * f32(0.7))
    mask = cover(d, c.soft)
    c.flatten(mask)
    c.fill(deep, mask)
    shallow = mask * smooth(1 + d / f32(c.rng.uniform(0.06, 0.16)))
    c.fill(np.clip(deep * f32(1.2) + f32(10), 0, 255), shallow * f32(c.rng.uniform(0.1, 0.7)))
    c.grain(mask * c.noise(3, 4, 0.7), c.rng.uniform(0.02, 0.07))
    glint = smooth(c.noise(2, 2) * f32(0.6)) * mask * f32(c.rng.uniform(0.1, 0.4))
    if c.chance(0.3) and c.real:  # the sun mirrored by part of the water
        c.fill(np.array([196, 204, 206], f32), glint)
    return mask
