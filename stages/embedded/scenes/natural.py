"""Scenes of open ground: soil, dunes, meadow, forest, snow, lake and coast."""

import numpy as np

from .canvas import Canvas
from .ground import WATER, add_bushes, add_road, canopy, ground, neighbors, paint_water
from .noise import cover, smooth, voronoi

f32 = np.float32


def bareland(c: Canvas) -> None:
    """Bare soil: eroded by gullies, cracked, or smooth with stones."""
    word, _ = c.pick("soil")
    c.adjectives.append(word)
    ground(c, "soil", word, 1.3)
    kind = c.rng.choice(["gullies", "cracked", "smooth"], p=[0.5, 0.25, 0.25])
    dark = c.rgb("soil", word) * f32(0.68)
    if kind == "gullies":
        bed = np.abs(c.noise(c.rng.uniform(1.8, 3.2), 4, 0.5))
        c.relief(1 - np.exp(-2 * bed), 0.13)
        c.fill(dark, np.exp(-((bed * f32(5)) ** 2)) * f32(0.6 if c.real else 1))
        c.details.append("some gullies")
        c.adjectives.append("eroded")
    elif kind == "cracked":
        u, v = c.uv(0.3, 0.02, 5)
        _, edge = voronoi(c.rng, u + f32(0.5), v + f32(0.5), int(c.rng.choice([16, 25, 36])))
        crack = cover(edge - f32(c.rng.uniform(0.006, 0.013)), 0.025)
        c.fill(dark * f32(0.8), crack)
        c.relief(np.minimum(edge, 0.05), 0.5)
        c.adjectives.append("cracked")
        c.details.append("some cracks")
    else:
        c.mottle(c.noise(3, 3, 0.6) - f32(0.5), c.pick("soil")[1], 0.7)
        c.adjectives.append("flat")
    if c.chance(0.35):
        add_bushes(c, c.rng.uniform(0.12, 0.3), "few bushes")
    neighbors(c, 0.25, 0.03, 0.05)


def desert(c: Canvas) -> None:
    """Sand with dunes; the crests are sharp on the lee side."""
    word, a = c.pick("sand")
    c.adjectives.append(word)
    c.fill(a)
    c.mottle(c.noise(1.6, 2), c.rgb("sand", word) * f32(0.88), 0.8)
    # dunes lie across the sun more or less, else they could not be seen
    angle = np.arctan2(c.sun[1], c.sun[0]) + c.rng.uniform(-0.7, 0.7) + np.pi * c.chance(0.5)
    u, v = c.uv(angle, c.rng.uniform(0.02, 0.07), c.rng.uniform(1.5, 3.5))
    wave = c.rng.uniform(0.15, 0.42)
    t = (u + f32(c.rng.uniform(0.02, 0.08)) * np.sin(v * f32(c.rng.uniform(4, 10)))) / f32(wave)
    t = t - np.floor(t)
    lee = f32(0.72)
    profile = np.where(t < lee, smooth(t / lee), 1 - smooth((t - lee) / (1 - lee)))
    size = np.clip(0.65 + 0.45 * c.noise(2.5), 0.15, 1.4)  # dunes die out and begin again
    c.relief(profile * size, c.rng.uniform(0.1, 0.2) * wave)
    dark = a * f32(0.78)
    c.fill(dark, np.where(t > lee, np.clip(size, 0, 1), 0) * f32(0.15 if c.real else 0.9))
    c.relief(c.noise(5, 4, 0.6), 0.004)
    c.grain(c.noise(10, 3, 0.7), 0.035)
    c.adjectives.append("wavy")
    c.details.append(
        "many small dunes" if wave < 0.24 else "some large dunes" if wave > 0.32 else "some dunes"
    )
    if c.chance(0.2):
        n = c.noise(2.2, 4, 0.55)
        rock = cover(f32(1.25) - n, 0.25)
        c.fill(c.pick("rock")[1], rock * f32(0.85))
        c.relief(n * rock, 0.05)
        c.grain(c.noise(7, 3, 0.8) * rock, 0.15)
        if rock.mean() > 0.03:
            c.details.append("some rocks")
    elif c.chance(0.2):
        add_bushes(c, 0.15, "few bushes")
    if c.chance(0.12):
        add_road(c)


def meadow(c: Canvas) -> None:
    """Grass with patches, bushes and now and then flowers."""
    word, _ = c.pick("grass")
    ground(c, "grass", word, 0.9)
    c.adjectives.append("yellow" if word == "yellow" else word)
    c.season = "in autumn" if word == "yellow" else "in summer" if c.chance(0.5) else ""
    patch = c.noise(c.rng.uniform(2, 4), 3, 0.55)
    other = c.rng.choice(["green", "dark green", "light green", "yellow"])
    c.mottle(patch - f32(c.rng.uniform(0.2, 0.9)), c.rgb("grass", other), 0.7)
    c.grain(c.noise(12, 3, 0.8), 0.06)
    if c.chance(0.3):
        bare = c.noise(2.5, 3)
        c.mottle(bare - f32(1.1), c.pick("soil")[1], 0.8)
        c.details.append("some bare patches")
    if c.chance(0.55):
        keep = c.rng.uniform(0.08, 0.4)
        add_bushes(c, keep, "some bushes" if keep > 0.22 else "few bushes")
    else:
        c.adjectives.append("smooth")
    neighbors(c, 0.3, 0.1, 0.12)


def forest(c: Canvas) -> None:
    """Closed or open canopy, clumped; autumn leaves in some."""
    autumn = c.chance(0.22)
    material = "autumn" if autumn else "tree"
    word, a = c.pick(material)
    b = c.rgb("autumn" if autumn else "tree", word) * f32(1.3)
    c.adjectives.append(word)
    c.season = "in autumn" if autumn else "in summer" if c.chance(0.3) else ""
    dense = c.chance(0.7)
    floor = a * f32(0.6) if dense else c.pick("grass" if c.chance(0.7) else "soil")[1]
    c.fill(floor)
    c.grain(c.noise(10, 3, 0.7), 0.1)
    c.relief(c.noise(1.5, 3), 0.05)
    clump = c.noise(2.2, 3)
    gap = cover(clump - f32(2.2 if dense else 0.8), 0.5)
    angle = c.rng.uniform(0, np.pi)
    period = c.rng.uniform(0.1, 0.17)
    canopy(
        c, a, b, period, angle, ((1.0, 0.9), (0.8, 0.65), (0.6, 0.4)), 1.0 if dense else 0.8, gap
    )
    c.grain(clump, 0.1)
    c.relief(c.noise(9, 3, 0.7), 0.006)
    c.grain(c.noise(14, 3, 0.8), 0.1)
    c.adjectives.append("dense" if dense else "sparse")
    c.details.append("many trees" if dense else "some trees")
    neighbors(c, 0.15, 0.14, 0.0)


def snowfield(c: Canvas) -> None:
    """Snow over relief: blue shade, wind ridges, and sometimes rock or firs standing out."""
    a = c.rgb("snow", "white")
    dim = f32(c.rng.uniform(0.8, 1.0))
    c.fill(a * dim if c.real else a)
    blue = np.array((176, 196, 224) if c.real else (130, 200, 255), f32)
    c.mottle(c.noise(2, 3), blue, c.rng.uniform(0.2, 0.7))
    c.adjectives.append("white")
    n = c.noise(c.rng.uniform(1.3, 2.6), 5, 0.5)
    steep = c.rng.uniform(0.03, 0.16)
    c.relief(1 - np.abs(n), steep)
    c.season = "in winter"
    if c.chance(0.45):
        low = c.rng.uniform(0.5, 1.0)
        rock = cover((f32(low) - n) * f32(0.5), 0.2)
        c.fill(c.pick("rock")[1], rock)
        c.relief(c.noise(7, 3) * rock, 0.012)
        if rock.mean() > 0.04:
            c.details.append("some rocks")
    if c.chance(0.4):
        u = c.uv(c.rng.uniform(0, 3), 0.05)[0]
        c.relief(np.sin(u * f32(c.rng.uniform(28, 48)) + c.noise(3)), 0.006)
        c.details.append("some wind ridges")
    if c.chance(0.3):
        add_bushes(c, c.rng.uniform(0.2, 0.55), "some trees", "dark green")
    if steep > 0.1:
        c.adjectives.append("steep")
    elif steep < 0.06:
        c.adjectives.append("flat")
    if c.chance(0.12):
        add_road(c)


def lake(c: Canvas) -> None:
    """A lake with an irregular shore in grass, forest or bare ground."""
    word, _ = c.pick("water", WATER)
    bank = c.rng.choice(["grass", "trees", "soil"], p=[0.4, 0.35, 0.25])
    if bank == "soil":
        ground(c, "soil", c.pick("soil")[0], 1.2)
        c.near.append("surrounded by bare land")
    else:
        ground(c, "grass", c.pick("grass")[0])
        if bank == "trees":
            t = c.rgb("tree", c.pick("tree")[0])
            canopy(c, t, t * f32(1.3), c.rng.uniform(0.1, 0.14), c.rng.uniform(0, 3))
            c.near.append("surrounded by trees")
        else:
            c.near.append("surrounded by grass")
    angle = c.rng.uniform(0, np.pi)
    u, v = c.uv(angle, 0.05, 3)
    cx, cy = c.rng.uniform(-0.22, 0.22, 2)
    long, short = c.rng.uniform(0.32, 0.6), c.rng.uniform(0.24, 0.38)
    radius = np.sqrt(((u - f32(cx)) / f32(long)) ** 2 + ((v - f32(cy)) / f32(short)) ** 2)
    d = (radius - 1) * f32(short) + f32(0.045) * c.noise(2.5, 3)
    if c.chance(0.2):  # an island
        ix, iy = c.rng.uniform(-0.12, 0.12, 2)
        island = f32(c.rng.uniform(0.06, 0.1)) - np.sqrt(
            (u - f32(cx + ix)) ** 2 + (v - f32(cy + iy)) ** 2
        )
        d = np.maximum(d, island)
        c.details.append("a small island")
    paint_water(c, "water", word, d, "brown" if c.chance(0.4) else None)
    c.adjectives.append(word)
    if c.chance(0.15):
        # a road clear of the water: along the far edge of the tile
        side = (c.x - f32(0.5)) * f32(-np.sign(cx)) + f32(0.02) * c.noise(1.5)
        band = cover(np.abs(side - f32(0.42)) - f32(0.035), c.soft) * (d > 0.03)
        if band.mean() > 0.03:
            c.fill(c.pick("road")[1], band)
            c.flatten(band)
            c.near.append("next to a road")


def coast(c: Canvas) -> None:
    """Sea, surf and beach, then land."""
    word, _ = c.pick("sea")
    bank = c.rng.choice(["grass", "tree", "soil", "sand"])
    if bank == "tree":
        t = c.rgb("tree", c.pick("tree")[0])
        c.fill(t * f32(0.75))
        c.relief(c.noise(2, 3), 0.04)
        canopy(c, t, t * f32(1.3), 0.12, 0.4)
    elif bank == "grass":
        ground(c, "grass", c.pick("grass")[0])
    else:
        ground(c, bank, c.pick(bank)[0])
    angle = c.rng.uniform(0, 2 * np.pi)
    u, v = c.uv(angle, 0.03, 3)
    bay = np.sin(v * f32(c.rng.uniform(3, 7)) + f32(c.rng.uniform(0, 6)))
    d = u - f32(c.rng.uniform(-0.15, 0.15)) + f32(c.rng.uniform(0, 0.14)) * bay
    d = d + f32(0.03) * c.noise(2.5, 3)  # sea where negative
    sand_word, sand = c.pick("beach")
    width = c.rng.uniform(0.04, 0.2)
    beach = cover(d - f32(width), 0.02)
    c.flatten(beach)
    c.fill(sand, beach)
    c.grain(c.noise(9, 3) * beach, 0.04)
    c.fill(sand * f32(0.8), cover(d - f32(0.025), 0.03))  # wet sand
    sea = cover(d, 0.02)
    deep = c.rgb("sea", word)
    c.fill(deep, sea)
    fade = c.rng.uniform(0.12, 0.4)
    c.fill(c.pick("shallow")[1], sea * smooth(1 + d / f32(fade)) * f32(c.rng.uniform(0.4, 0.95)))
    swell = np.sin(d * f32(c.rng.uniform(45, 70)) + c.noise(3, 2))
    c.grain(swell * sea, 0.035)
    c.grain(c.noise(8, 3, 0.8) * sea, 0.04)
    lines = int(c.rng.integers(1, 4))
    ragged = c.noise(6, 3, 0.6)
    for k in range(lines):
        off = f32(k * c.rng.uniform(0.06, 0.1))
        thick = f32(0.022 / (1 + 0.35 * k)) * (1 + f32(0.6) * ragged) - f32(0.006 * k)
        c.fill(
            np.array([238, 240, 238], f32),
            cover(np.abs(d + off) - thick, 0.025) * f32(0.9 - 0.15 * k),
        )
    c.adjectives.append(word)
    c.details.append("white waves" if lines > 1 else "a white wave")
    c.details.append(f"a {'wide' if width > 0.12 else 'narrow'} {sand_word} beach")
    c.near.append(
        {
            "tree": "near a green forest",
            "grass": "near grass",
            "soil": "near bare land",
            "sand": "near sand",
        }[str(bank)]
    )
