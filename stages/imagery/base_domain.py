"""Captioned images of the base model's own domain.

The loss of fine-tuning on them measures what the model forgets.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from stages.common import sources
from stages.common.artifacts import encode_png, write_shards
from stages.imagery.captions import usable_captions
from stages.imagery.image_decoding import decode_rgb
from stages.imagery.readers.items import ImageSource, image_name
from stages.imagery.readers.open_source import open_source
from stages.imagery.scale_and_crop import scale_and_crop
from stages.imagery.schema import IMAGERY_SCHEMA
from stages.imagery.skip_report import SkipReport
from stages.imagery.unusable_image import UnusableImage
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

KEY = "encode.base_domain"
# The embedded base was trained on tiles of another seed, in stages/embedded/train_diffusion.py.
SEED = 20260103
# The embedded base never saw these scenes, so it cannot forget them.
UNSEEN_SCENES = ("snowfield", "airport")


def fetch(source: str, count: int, size: int, out: Path) -> None:
    """Write the first usable images of a source as Parquet shards, with SOURCE.json.

    Args:
        source: `embedded`, `path:` or `hub:`.
        count: the largest number of tiles.
        size: pixels along a side of a tile.
        out: the folder of the shards.

    Raises:
        SystemExit: the source is not available or has no usable image.
    """
    skipped = SkipReport()
    resolved: dict[str, Any] = {"license": None}
    if sources.kind(source) == "embedded":
        rows = list(_render_rows(count, size))
    else:
        if sources.kind(source) == "hub":
            path, resolved, _ = sources.download_from_hub(source, KEY, "dataset", ["*.parquet"])
        else:
            path = sources.local_path(source, KEY)
        image_source = open_source(path, KEY)
        rows = list(_read_rows(image_source, count, size, skipped))
        root = path if path.is_dir() else path.parent
        resolved["files"] = sources.file_hashes(image_source.files, root)
    if not rows:
        exit_with_error(f"{KEY}: {source}: no usable image with a caption; skipped: {skipped}")
    log(f"{KEY}: {len(rows)} images; skipped: {skipped}")
    write_shards(out, rows, IMAGERY_SCHEMA)
    sources.write_source_json(out, source, **resolved)


def _render_rows(count: int, size: int) -> Iterator[dict]:
    """Render tiles in the style, and of the scenes, that the embedded base was trained on."""
    from stages.embedded.scenes import SCENES, render_tiles

    seen_scenes = tuple(scene for scene in SCENES if scene not in UNSEEN_SCENES)
    for tile in render_tiles(SEED, 0, count, size, "base", seen_scenes):
        png = encode_png(Image.fromarray(tile["image"]))
        name = f"{tile['scene']}_{tile['index']}.png"
        yield _row(png, tile["captions"], tile["scene"], name)


def _read_rows(
    image_source: ImageSource, count: int, size: int, skipped: SkipReport
) -> Iterator[dict]:
    """Yield the first `count` usable captioned images; earlier unusable ones go to `skipped`."""
    names: set[str] = set()
    for item in image_source.read_items(True):
        captions, caption_reason = usable_captions(item.captions)
        reason = item.skip_reason
        if not reason and image_name(item) in names:
            reason = "further row of an image"
        reason = reason or caption_reason
        if reason:
            skipped.add(reason, item.name)
            continue
        try:
            tile = scale_and_crop(decode_rgb(item.image).rgb, size)
        except UnusableImage as error:
            skipped.add(str(error), item.name)
            continue
        names.add(image_name(item))
        yield _row(encode_png(tile), captions, item.scene or "", image_name(item))
        if len(names) == count:
            return


def _row(png: bytes, captions: list[str], scene: str, filename: str) -> dict:
    image = {"bytes": png, "path": None}
    return {"image": image, "captions": captions, "scene": scene, "filename": filename}
