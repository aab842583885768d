"""The embedded scenes as an imagery source. Tiles are rendered, not decoded."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from PIL import Image

from stages.imagery.readers.items import ImageSource, SourceItem


class SceneId(NamedTuple):
    """Which scene to render."""

    seed: int
    tile_index: int


def open_embedded_scenes(seed: int, count: int) -> ImageSource:
    """A source of `count` rendered tiles, all scenes in turn."""
    return ImageSource([], partial(_read_items, seed, count), has_captions=True)


def _read_items(seed: int, count: int, with_images: bool) -> Iterator[SourceItem]:
    """Yield an item per tile, whose image is the id of a scene.

    The second pass renders it, with its captions. Until then its name is its only caption.
    """
    from stages.embedded.scenes import SCENES

    for index in range(count):
        scene = SCENES[index % len(SCENES)]
        yield SourceItem(
            split=None,
            name=f"{scene}_{index:05d}.png",
            captions=[scene],
            scene=scene,
            image=SceneId(seed, index),
        )


def render_scene(scene_id: SceneId, size: int) -> tuple[Image.Image, list[str]]:
    """Render a tile of `size` pixels; returns the RGB image and its captions."""
    from stages.embedded.scenes import render_tiles

    index = scene_id.tile_index
    (tile,) = render_tiles(scene_id.seed, index, index + 1, size, "domain")
    return Image.fromarray(tile["image"]), tile["captions"]
