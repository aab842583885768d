"""Render one tile of a scene from its seed and index alone."""

import zlib
from collections.abc import Iterator

import numpy as np

from . import airport, cultivated, natural, parking, residential
from .canvas import LOOKS, Canvas
from .captions import write_captions

# Scene -> the function that paints it.
PAINTERS = {
    "bareland": natural.paint_bareland,
    "desert": natural.paint_desert,
    "farmland": cultivated.paint_farmland,
    "orchard": cultivated.paint_orchard,
    "meadow": natural.paint_meadow,
    "forest": natural.paint_forest,
    "snowfield": natural.paint_snowfield,
    "lake": natural.paint_lake,
    "coast": natural.paint_coast,
    "residential": residential.paint_residential,
    "airport": airport.paint_airport,
    "parking": parking.paint_parking,
}
SCENES: tuple[str, ...] = tuple(PAINTERS)


def render(scene: str, seed: int, index: int, size: int, look: str) -> tuple[np.ndarray, list[str]]:
    """Render a tile and its captions.

    The result depends on the arguments only: tiles can be rendered in any order, process or number.
    The two looks of one (scene, seed, index) share their layout and captions.

    Args:
        scene: one of `SCENES`.
        seed: of the data set.
        index: of the tile in the data set.
        size: pixels per side, at least 16.
        look: "domain" or "base".

    Returns:
        The image, uint8 [size, size, 3], and five captions.

    Raises:
        ValueError: the scene, the size or the look is not one of these.
    """
    if scene not in PAINTERS:
        raise ValueError(f"unknown scene {scene!r}; there are {', '.join(SCENES)}")
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}; there are {', '.join(LOOKS)}")
    if size < 16:
        raise ValueError(f"size {size} is too small, 16 is the least")
    tile_seed = np.random.SeedSequence([seed, zlib.crc32(scene.encode()), index])
    # Captions draw from a stream of their own: a change of the painting keeps their wording.
    caption_seed = tile_seed.spawn(1)[0]
    canvas = Canvas(np.random.Generator(np.random.Philox(tile_seed)), size, look)
    PAINTERS[scene](canvas)
    captions = write_captions(
        np.random.Generator(np.random.Philox(caption_seed)),
        scene,
        canvas.adjectives,
        canvas.details,
        canvas.neighbors,
        canvas.season,
    )
    return canvas.develop(), captions


def render_tiles(
    seed: int, start: int, stop: int, size: int, look: str, scenes: tuple[str, ...] = SCENES
) -> Iterator[dict]:
    """Render the tiles start to stop - 1 as {image, captions, scene, index} (see `render`).

    The scenes take turns: the tile with index i shows scenes[i % len(scenes)].
    """
    for index in range(start, stop):
        scene = scenes[index % len(scenes)]
        image, captions = render(scene, seed, index, size, look)
        yield {"image": image, "captions": captions, "scene": scene, "index": index}
