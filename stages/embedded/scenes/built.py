"""Scenes people made: fields, orchards, houses, runways and car parks."""

import numpy as np

from .canvas import Canvas
from .ground import canopy, ground, neighbors
from .noise import box, cells, cover, splits, voronoi

f32 = np.float32


def farmland(c: Canvas) -> None:
    """Parcels, each with its own crop and furrows; rectangular, irregular or pivot-irrigated."""
    kind = str(c.rng.choice(["rectangular", "irregular", "circular"], p=[0.5, 0.32, 0.18]))
    angle = c.bearing()
    if kind == "rectangular":
        u, v = c.uv(angle, c.rng.uniform(0, 0.02))
        depth = int(c.rng.integers(1, 5))
        ids, edge = splits(c.rng, u, v, depth, c.rng.uniform(0, 0.25))
        count = 2**depth
    elif kind == "irregular":
        u, v = c.uv(angle, 0.05, 2)
        squeeze = c.rng.uniform(0.6, 1)
        ids, edge = voronoi(
            c.rng, u + f32(0.5), v * f32(squeeze) + f32(0.5), int(c.rng.choice([4, 9, 16]))
        )
        count = 16
    else:
        period = c.rng.uniform(0.5, 0.9)
        u, v = c.uv(angle)
        cu, cv = u + f32(c.rng.uniform(0, period)), v + f32(c.rng.uniform(0, period))
        iu, iv = np.floor(cu / f32(period)), np.floor(cv / f32(period))
        lu, lv = cu - (iu + f32(0.5)) * f32(period), cv - (iv + f32(0.5)) * f32(period)
        edge = f32(0.48 * period) - np.sqrt(lu * lu + lv * lv)
        ids = ((iu + 3 * iv).astype(np.int32)) % 8
        # half or quarter of a circle may bear another crop
        ids = ids * 2 + ((lu > 0) if c.chance(0.4) else (lu > 9))
        count = 16
    picks = [c.pick("crop") for _ in range(count)]
    if c.chance(0.3):  # one crop for miles
        word = picks[0][0]
        picks = [p if c.chance(0.25) else (word, c.rgb("crop", word, 0.12)) for p in picks]
    colors = np.stack([p[1] for p in picks]).astype(f32)
    c.img[:] = np.moveaxis(colors[ids], -1, 0)
    # furrows: most parcels follow the common direction, some are turned
    turn = np.where(c.rng.random(count) < 0.65, 0, np.pi / 2) + angle + c.rng.normal(0, 0.05, count)
    period = c.rng.uniform(0.045, 0.13, count)
    wave = (np.cos(turn) * 6.2832 / period).astype(f32)[ids] * c.x + (
        np.sin(turn) * 6.2832 / period
    ).astype(f32)[ids] * c.y
    depth = (c.rng.uniform(0.0, 0.16, count) * (c.rng.random(count) < 0.75)).astype(f32)[ids]
    rows = np.sin(wave)
    c.img *= 1 + (depth * rows if c.real else f32(0.16) * (depth > 0.06) * (rows > 0))
    c.grain(c.noise(3, 4, 0.6), 0.07)
    c.relief(c.noise(1.2, 3), 0.02)
    half = c.rng.uniform(0.004, 0.016)
    border = cover(edge - f32(half), 0.016)
    if kind == "circular":
        between = c.pick("soil")[1]
        c.fill(between, cover(edge, c.soft))
        c.grain(c.noise(6, 3), 0.05)
    elif c.chance(0.35):
        c.fill(c.rgb("tree", "dark green"), border)
        c.relief(border, 0.02)
        c.details.append("dark hedges")
    else:
        c.fill(c.rgb("track", "brown"), border * f32(0.8))
    c.adjectives.append(kind)
    share = np.bincount(ids.ravel(), minlength=count)
    by_word: dict[str, int] = {}
    for pick, n in zip(picks, share):
        by_word[pick[0]] = by_word.get(pick[0], 0) + int(n)
    if kind != "circular":  # the ground between circles would spoil the shares
        top = sorted(by_word, key=by_word.get, reverse=True)
        if by_word[top[0]] > 0.5 * ids.size:
            c.adjectives.insert(0, top[0])
        elif by_word[top[1]] > 0.15 * ids.size:
            c.details.append(f"{top[0]} and {top[1]} fields")
    else:
        c.details.append("round fields")
    seen = int((share > 0.01 * ids.size).sum())
    c.details.append(
        "many fields" if seen > 6 else "several fields" if seen > 2 else "a large field"
    )
    neighbors(c, 0.25, 0.05, 0.08)


def orchard(c: Canvas) -> None:
    """Crowns planted on a regular lattice over grass or soil."""
    under = "grass" if c.chance(0.55) else "soil"
    ground(c, under, c.pick(under)[0], 0.6)
    bloom = c.chance(0.18)
    word, a = c.pick("blossom" if bloom else "tree")
    angle = c.bearing()
    u, v = c.uv(angle, c.rng.uniform(0, 0.012))
    period = c.rng.uniform(0.115, 0.19)
    aspect = c.rng.uniform(1.0, 1.35)
    # mown or ploughed lanes between the rows
    c.grain(np.cos(v / f32(period) * f32(6.2832)), 0.05)
    if aspect > 1.2:
        v = v / f32(aspect)
    low = c.rng.uniform(0.26, 0.4)
    keep = c.rng.uniform(0.8, 1.0)
    c.crowns(
        u, v, angle, period, (low, min(low + 0.08, 0.48)), keep, (a, a * f32(1.22)), jitter=0.25
    )
    c.grain(c.noise(12, 3, 0.8), 0.05)
    c.adjectives.append(word)
    c.adjectives.append("regular" if c.chance(0.5) else "neat")
    if bloom:
        c.season = "in spring"
    small = period < 0.14
    c.details.append("many rows of trees" if small else "rows of trees")
    c.adjectives.append("dense" if low > 0.35 else "sparse" if low < 0.3 or keep < 0.86 else "neat")
    c.near.append("on grass" if under == "grass" else "on bare soil")
    neighbors(c, 0.22, 0.05, 0.0)


def residential(c: Canvas) -> None:
    """Houses in lots along a turned street grid, with gardens and trees."""
    under = "grass" if c.chance(0.65) else "soil"
    ground(c, under, c.pick(under)[0], 0.5)
    angle = c.bearing()
    u, v = c.uv(angle, c.rng.uniform(0, 0.04), 1.2)
    lot_u, lot_v = c.rng.uniform(0.17, 0.27), c.rng.uniform(0.2, 0.3)
    street = c.rng.uniform(0.07, 0.1)
    v = v + f32(c.rng.uniform(0, 1))
    u = u + f32(c.rng.uniform(0, 1))
    # a block is two lots deep and `long` lots wide, with streets around
    bv, bu = 2 * lot_v + street, c.rng.integers(3, 7) * lot_u + street
    dv = v - np.floor(v / f32(bv)) * f32(bv) - f32(street)
    du = u - np.floor(u / f32(bu)) * f32(bu) - f32(street)
    # dv, du < 0 is street, and so is beyond the block's end: distance to the nearer street, both sides
    road = np.maximum(
        cover(np.minimum(np.maximum(dv, -street - dv), f32(bv - street) - dv), c.soft),
        cover(np.minimum(np.maximum(du, -street - du), f32(bu - street) - du), c.soft),
    )
    keep = c.rng.uniform(0.55, 1.0)
    words = list(c.rng.permutation(["red", "gray", "white", "blue", "brown"]))
    mixed = c.chance(0.5)
    n_words = 3 if mixed else 1
    # lot numbers are constant per lot: cells on the running lot coordinate
    lu, lv, r = cells(
        c.rng,
        du + np.floor(u / f32(bu)) * f32(40 * lot_u),
        dv + np.floor(v / f32(bv)) * f32(40 * lot_v),
        lot_u,
        lot_v,
    )
    hu = f32(lot_u) * (f32(0.28) + f32(0.17) * r[0])
    hv = f32(lot_v) * (f32(0.26) + f32(0.16) * r[1])
    absent = np.where((r[3] < keep) & (road < 0.01), f32(0), f32(9))
    su, sv = c.sun_in(angle)
    k = f32(0.05 * c.sun_length)
    green = c.rgb("tree", c.pick("tree")[0])
    tree_keep = c.rng.uniform(0.2, 0.75)
    tu, tv = c.uv(angle + 0.6)
    c.crowns(
        tu,
        tv,
        angle + 0.6,
        0.125,
        (0.28, 0.48),
        tree_keep,
        (green, green * f32(1.3)),
        where=1 - road,
    )
    house = cover(box(lu, lv, hu, hv) + absent, c.soft)
    c.cast(cover(box(lu + su * k, lv + sv * k, hu, hv) + absent, c.soft) * (1 - house), 0.62)
    palette = np.stack([c.rgb("roof", words[i % n_words], 0.12) for i in range(6)])
    roof = np.moveaxis(palette[(r[2] * f32(5.99)).astype(np.int32)], -1, 0)
    c.flatten(np.maximum(road, house))
    # gabled roofs: the half that faces the sun is brighter
    along = r[0] > 0.45
    face = np.where(along, np.sign(lv) * f32(sv), np.sign(lu) * f32(su))
    if c.real:
        roof = roof * (1 + f32(0.16) * face)
    c.fill(c.pick("road")[1], road)
    c.fill(roof, house)
    c.grain(c.noise(14, 3, 0.8), 0.04)
    dense = keep > 0.8 and lot_u * lot_v < 0.062
    c.adjectives += ["dense"] if dense else ["sparse"] if keep < 0.68 else []
    roofs = f"{words[0]} roofs" if not mixed else "colorful roofs"
    c.details += ["many houses" if dense else "some houses", f"houses with {roofs}"]
    c.details.append("many green trees" if tree_keep > 0.5 else "some green trees")
    c.near.append("with some roads")


def airport(c: Canvas) -> None:
    """A runway with markings, taxiway, apron, terminal and planes."""
    under = "grass" if c.chance(0.6) else "soil"
    ground(c, under, c.pick(under)[0], 0.5)
    angle = c.bearing()
    u, v = c.uv(angle)
    v = v + f32(c.rng.uniform(-0.05, 0.2))
    u = u + f32(c.rng.uniform(-0.25, 0.25))
    road_word, tar = c.pick("road")
    light = c.rgb("road", c.pick("road")[0])
    mark = c.rgb("mark", "white")
    half = c.rng.uniform(0.055, 0.095)
    gap = c.rng.uniform(0.13, 0.2)
    taxi = v + f32(half + gap)  # taxiway center line
    th = f32(c.rng.uniform(0.028, 0.04))
    su, sv = c.sun_in(angle)
    # taxiway and connectors
    pitch = c.rng.uniform(0.35, 0.6)
    cu = u - np.round(u / f32(pitch)) * f32(pitch)
    link = np.maximum(np.abs(cu + f32(c.rng.uniform(-0.6, 0.6)) * v) - th, np.maximum(v, -taxi))
    paved = cover(np.minimum(np.abs(taxi) - th, link), c.soft)
    c.fill(light, paved)
    # runway
    runway = cover(np.abs(v) - f32(half), c.soft)
    c.fill(tar, runway)
    c.grain(c.noise(3, 2) * runway, 0.03)
    c.fill(
        tar * f32(0.75), runway * cover(np.abs(v) - f32(half * 0.45), half * 0.6) * f32(0.35)
    )  # tyre rubber
    dash = np.abs(u / f32(0.14) - np.round(u / f32(0.14))) - f32(0.3)
    c.fill(mark, cover(np.maximum(np.abs(v) - f32(0.009), dash * f32(0.14)), c.soft) * f32(0.9))
    c.fill(mark, cover(np.abs(np.abs(v) - f32(half * 0.9)) - f32(0.004), c.soft) * f32(0.7))
    if c.chance(0.5):  # threshold bars
        at = c.rng.uniform(-0.3, 0.3)
        pitch = f32(half * 0.36)
        across = np.abs(v / pitch - np.round(v / pitch)) * pitch - f32(half * 0.1)
        bars = np.maximum(np.abs(u - f32(at)) - f32(0.05), across)
        c.fill(mark, cover(np.maximum(bars, np.abs(v) - f32(half * 0.85)), c.soft) * f32(0.9))
    second, shade = c.chance(0.25), {"white": "light"}.get(road_word, road_word)
    pavement = np.maximum(paved, runway)
    if second:
        v2 = c.uv(angle + c.rng.uniform(0.6, 1.2))[1]
        cross = cover(np.abs(v2 - f32(c.rng.uniform(-0.2, 0.2))) - f32(half * 0.8), c.soft) * (
            1 - runway
        )
        c.fill(tar, cross)
        pavement = np.maximum(pavement, cross)
        c.details += ["two crossed runways", f"{shade} runways"]
    else:
        c.details += ["a long runway", f"a {shade} runway"]
    c.flatten(pavement)
    # apron beyond the taxiway, with planes on stands and a terminal
    apron_at = taxi + th
    if c.chance(0.75):
        depth = c.rng.uniform(0.18, 0.3)
        apron = cover(np.maximum(apron_at, -apron_at - f32(depth)), c.soft)
        c.fill(light * f32(1.06), apron)
        c.flatten(apron)
        joint = np.abs(np.sin(u * f32(40)))
        c.grain((joint < 0.12) * apron * f32(-1.0), 0.06)
        lu, lv, r = cells(c.rng, u, apron_at + f32(depth / 2 + 0.5 * 0.16), 0.19, 0.16)
        here = np.floor((apron_at + f32(depth / 2 + 0.08)) / f32(0.16)) == 0
        plane = np.where(here & (r[3] < 0.7), plane_shape(lu, lv), f32(9))
        shadow = np.where(
            here & (r[3] < 0.7), plane_shape(lu + f32(su * 0.015), lv + f32(sv * 0.015)), f32(9)
        )
        c.fill(c.img * f32(0.6 if c.real else 1.0), cover(shadow, c.soft))
        body = cover(plane, c.soft)
        c.fill(c.rgb("car", "white"), body)
        if body.mean() > 0.005:
            c.details.append("some planes")
        along = np.abs(u - f32(c.rng.uniform(-0.1, 0.1))) - f32(c.rng.uniform(0.2, 0.45))
        hall = np.maximum(np.abs(apron_at + f32(depth + 0.07)) - f32(0.055), along)
        c.cast(cover(hall - f32(0.03 * c.sun_length), 0.03) * (1 - apron), 0.4)
        c.fill(c.pick("roof")[1], cover(hall, c.soft))
        if cover(hall, c.soft).mean() > 0.03:
            c.details.append("a terminal building")
    c.near.append("on grass" if under == "grass" else "on bare soil")


def plane_shape(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance-like field of an airliner seen from above, nose toward -v, about 0.14 long."""
    a = np.abs(u)
    body = np.maximum(a - f32(0.013), np.abs(v) - f32(0.068))
    wing = np.maximum(np.abs(v - f32(0.55) * a + f32(0.008)) - f32(0.014), a - f32(0.07))
    tail = np.maximum(np.abs(v - f32(0.052) - f32(0.4) * a) - f32(0.009), a - f32(0.03))
    return np.minimum(np.minimum(body, wing), tail)


def parking(c: Canvas) -> None:
    """Rows of stalls back to back, aisles, marked lines, cars, and islands with trees."""
    word, tar = c.pick("road")
    c.fill(tar)
    c.grain(c.noise(3, 4, 0.6), 0.05)
    angle = c.bearing()
    u, v = c.uv(angle)
    wide, deep, aisle = (
        c.rng.uniform(0.085, 0.115),
        c.rng.uniform(0.16, 0.2),
        c.rng.uniform(0.12, 0.22),
    )
    u, v = u + f32(c.rng.uniform(0, 1)), v + f32(c.rng.uniform(0, 1))
    row = 2 * deep + aisle
    iv = np.floor(v / f32(row))
    dv = v - iv * f32(row)
    in_row = dv < f32(2 * deep)
    # dv in [0, 2 deep) holds two stalls back to back; beyond is the aisle
    lu, lv, r = cells(c.rng, u, np.where(in_row, dv, f32(0)) + iv * f32(8 * deep), wide, deep)
    mark = c.rgb("mark", "white")
    line = cover(
        np.minimum(f32(wide / 2) - np.abs(lu), np.abs(dv - f32(deep))) - f32(0.005), c.soft
    )
    c.fill(mark, line * in_row * f32(0.75))
    keep = c.rng.uniform(0.25, 0.95)
    here = in_row & (r[3] < keep)
    hu, hv = f32(wide * 0.37), f32(deep * 0.42)
    ju, jv = (r[0] - f32(0.5)) * f32(0.1 * wide), (r[1] - f32(0.5)) * f32(0.12 * deep)
    lu, lv = lu - ju, lv - jv
    su, sv = c.sun_in(angle)
    k = f32(0.018 * c.sun_length)

    def shape(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(
            here,
            np.maximum(box(a, b, hu, hv), np.abs(a) + np.abs(b) - (hu + hv) * f32(0.86)),
            f32(9),
        )

    car = cover(shape(lu, lv), c.soft)
    c.cast(cover(shape(lu + f32(su) * k, lv + f32(sv) * k), c.soft) * (1 - car), 0.6)
    words = ["white", "white", "gray", "gray", "black", "black", "red", "blue"]
    palette = np.stack([c.rgb("car", w) for w in words])
    paint = np.moveaxis(palette[(r[2] * f32(7.99)).astype(np.int32)], -1, 0)
    c.fill(paint, car)
    glass = here & (np.abs(np.abs(lv) - hv * f32(0.5)) < f32(0.014)) & (np.abs(lu) < hu * f32(0.8))
    c.fill(np.array([52, 58, 66], f32), glass * f32(0.5))
    c.flatten(car)
    edge = str(
        c.rng.choice(["none", "trees", "grass", "building", "road"], p=[0.3, 0.2, 0.15, 0.2, 0.15])
    )
    side, along = c.uv(c.rng.choice([0, np.pi / 2, np.pi]) + angle)
    border = cover(f32(c.rng.uniform(0.24, 0.34)) - side, c.soft)
    if edge in ("trees", "grass"):
        c.fill(c.pick("grass")[1], border)
        c.flatten(border)
        c.grain(c.noise(8, 3) * border, 0.08)
        if edge == "trees":
            t = c.rgb("tree", c.pick("tree")[0])
            canopy(c, t, t * f32(1.3), 0.14, angle, where=border)
        c.near.append("near some trees" if edge == "trees" else "near grass")
    elif edge == "building":
        roof = c.pick("roof")[1]
        c.cast(cover(f32(0.24) - side - f32(0.02), 0.03) * (1 - border), 0.4)
        c.fill(roof, border)
        c.flatten(border)
        c.near.append("next to a building")
    elif edge == "road":
        c.fill(c.pick("road")[1], border)
        c.flatten(border)
        c.fill(
            mark,
            cover(np.abs(side - f32(0.42)) - f32(0.007), c.soft) * (np.sin(along * f32(45)) > 0),
        )
        c.near.append("next to a road")
    c.adjectives += [
        "full" if keep > 0.75 else "half empty" if keep < 0.5 else "busy",
        {"white": "light"}.get(word, word),
    ]
    c.details.append("many cars" if keep > 0.6 else "some cars")
    c.details.append("rows of cars" if keep > 0.5 else "empty spaces")
