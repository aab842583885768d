"""The images of a file or folder as squares of one size, in the order of their hashes."""

import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from PIL import Image

from stages.common.artifacts import IMAGE, write_shards
from stages.evaluation.protocols import MIN_IMAGES
from stages.imagery.captions import usable_captions
from stages.imagery.image_decoding import decode_rgb
from stages.imagery.readers.class_folders import NO_SCENE
from stages.imagery.readers.items import ImageSource, SourceItem, scene_of, standard_split
from stages.imagery.readers.open_source import open_source
from stages.imagery.scale_and_crop import scale_and_crop
from stages.imagery.skip_report import SkipReport
from stages.imagery.unusable_image import NO_BLACK_AND_WHITE, NO_RED, UnusableImage
from stages.params import Params
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log, progress_bar

SCHEMA = pa.schema([("image", IMAGE)])


@dataclass
class ImageSet:
    """The usable images of a file or folder: squares of one size, as shards, in order of hash."""

    path: Path
    shards: Path  # a temporary folder
    side: int = 0  # pixels; 0: of no image yet
    names: list[str] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)  # "": not known
    captions: list[str] = field(default_factory=list)  # "": not known; several are joined
    hashes: list[str] = field(default_factory=list)  # SHA-256 of the pixels
    source_sides: list[int] = field(default_factory=list)  # pixels; the shorter, before scaling
    skipped: SkipReport = field(default_factory=SkipReport)
    unread_captions: str | None = None  # a file that seems to hold captions in another layout


def read_images(path: Path, shards: Path, resolution: int | None, params: Params) -> ImageSet:
    """Write the usable images of a file or folder to the folder `shards`.

    Raises:
        SystemExit: there are too few, or without a resolution they are no squares of one size.
    """
    source = open_source(path, "evaluate", images_only=True)
    images = ImageSet(path, shards, unread_captions=source.unread_captions)
    with tempfile.TemporaryFile(dir=shards.parent) as pixels:
        for tile in square_tiles(source, images, resolution):
            pixels.write(tile.tobytes())
        write_shards(shards, sort_by_hash(images, pixels), SCHEMA)
    count = len(images.names)
    needed = max(params.fid.standard_min_n, MIN_IMAGES)
    if count < needed:
        exit_with_error(
            f"evaluate: {path}: {count} usable image(s); at least {needed} are needed "
            "(fid.standard_min_n in params.yaml): the FID of fewer mostly measures their number; "
            f"skipped: {images.skipped}{advise_on_rasters(images.skipped)}"
        )
    if images.skipped.reasons:
        log(f"evaluate: {path}: {count} images; skipped: {images.skipped}")
    return images


def advise_on_rasters(skipped: SkipReport) -> str:
    """Say what to do about images that a run decodes by its params; "" where none was skipped."""
    if not any(reason.endswith((NO_BLACK_AND_WHITE, NO_RED)) for reason in skipped.reasons):
        return ""
    return (
        "; give the run's data/imagery/test, or export it: python -m tools.export imagefolder "
        "test <folder>"
    )


def square_tiles(
    source: ImageSource, images: ImageSet, resolution: int | None
) -> Iterator[Image.Image]:
    """Yield the usable images as squares, in the order of the source; note them in `images`."""
    seen: set[tuple[str, str]] = set()
    splits: set[str | None] = set()
    total = sum(1 for _ in source.read_items(False))
    items = source.read_items(True)
    for item in progress_bar(items, total=total, desc=str(images.path), unit="image"):
        reason = None if item.skip_reason == NO_SCENE else item.skip_reason
        # Further images of one caption come under its name, as `sample` writes them. In a table,
        # images of two scenes may have one name.
        key = item.name, scene_of(item)
        if not reason and key in seen:
            reason = "duplicate file name"
        if reason:
            images.skipped.add(reason, item.name)
            continue
        seen.add(key)
        splits.add(item.split)
        refuse_mixed_splits(images.path, splits)
        try:
            tile = decode_rgb(item.image).rgb
            source_side = min(tile.size)
            if resolution is not None:
                tile = scale_and_crop(tile, resolution)
        except UnusableImage as error:
            images.skipped.add(str(error), item.name)
            continue
        note_tile(tile, source_side, item, images)
        yield tile


def refuse_mixed_splits(path: Path, splits: set[str | None]) -> None:
    """Exit with an error if a folder holds the train and the test split, for example."""
    known = sorted(split for split in splits if split and standard_split(split))
    if len(known) > 1:
        exit_with_error(
            f"evaluate: {path}: holds the splits {' and '.join(known)}: give the file or folder of "
            "one of them"
        )


def note_tile(tile: Image.Image, source_side: int, item: SourceItem, images: ImageSet) -> None:
    """Note an image in `images`. source_side: its shorter side before scaling.

    Raises:
        SystemExit: it is no square of the same size as the images before it.
    """
    images.side = side = images.side or min(tile.size)
    if tile.size != (side, side):
        width, height = tile.size
        exit_with_error(
            f"evaluate: {images.path}: {item.name} is {width} x {height} px, not {side} x {side}: "
            "--resolution PX scales and crops all images to squares of PX pixels"
        )
    images.names.append(item.name)
    images.scenes.append(scene_of(item))
    images.captions.append(" ".join(usable_captions(item.captions)[0]))
    images.hashes.append(hashlib.sha256(tile.tobytes()).hexdigest())
    images.source_sides.append(source_side)


def sort_by_hash(images: ImageSet, pixels: BinaryIO) -> Iterator[dict[str, dict]]:
    """Bring `images` into the order of its hashes; yield the rows in it, uncompressed.

    Halves and subsets are drawn by the number of a row: they are then of the same images whatever
    their names are, and in whatever order they came.

    Args:
        images: as `square_tiles` noted them.
        pixels: theirs, RGB, in that order.
    """
    order = sorted(range(len(images.names)), key=lambda i: (images.hashes[i], images.names[i]))
    columns: list[list] = [images.names, images.scenes, images.captions, images.hashes]
    for values in [*columns, images.source_sides]:
        values[:] = [values[i] for i in order]
    side = images.side
    size = 3 * side**2  # bytes
    for i in order:
        pixels.seek(i * size)
        encoded = io.BytesIO()
        Image.frombytes("RGB", (side, side), pixels.read(size)).save(encoded, "BMP")
        yield {"image": {"bytes": encoded.getvalue(), "path": None}}
