"""One tile of a scene, from its seed and index alone."""

import zlib
from collections.abc import Iterator

import numpy as np

from . import built, natural
from .canvas import LOOKS, Canvas
from .captions import captions

_PAINT = {
    "bareland": natural.bareland,
    "desert": natural.desert,
    "farmland": built.farmland,
    "orchard": built.orchard,
    "meadow": natural.meadow,
    "forest": natural.forest,
    "snowfield": natural.snowfield,
    "lake": natural.lake,
    "coast": natural.coast,
    "residential": built.residential,
    "airport": built.airport,
    "parking": built.parking,
}
SCENES: tuple[str, ...] = tuple(_PAINT)


def render(scene: str, seed: int, index: int, size: int, look: str) -> tuple[np.ndarray, list[str]]:
    """A tile, uint8 (size, size, 3), and its five captions.

    Depends on its arguments only: tiles can be drawn in any order, process or number. The two looks
    of one (seed, scene, index) share their layout and captions.
    """
    if scene not in _PAINT:
        raise ValueError(f"unknown scene {scene!r}; there are {', '.join(SCENES)}")
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}; there are {', '.join(LOOKS)}")
    if size < 16:
        raise ValueError(f"size {size} is too small, 16 is the least")
    entropy = np.random.SeedSequence([seed, zlib.crc32(scene.encode()), index])
    rng = np.random.Generator(np.random.Philox(entropy))
    # captions have a stream of their own, so that what is painted cannot shift their wording
    words = np.random.Generator(np.random.Philox(entropy.spawn(1)[0]))
    canvas = Canvas(rng, size, look)
    _PAINT[scene](canvas)
    text = captions(words, scene, canvas.adjectives, canvas.details, canvas.near, canvas.season)
    return canvas.develop(), text


def tiles(
    seed: int, start: int, stop: int, size: int, look: str, scenes: tuple[str, ...] = SCENES
) -> Iterator[dict]:
    """Tiles start..stop-1 as {image, captions, scene, index}; index i shows scenes[i % len(scenes)]."""
    for index in range(start, stop):
        scene = scenes[index % len(scenes)]
        image, text = render(scene, seed, index, size, look)
        yield {"image": image, "captions": text, "scene": scene, "index": index}
