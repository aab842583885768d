"""Read the items of a source in two passes: find the usable ones, then make tiles of those kept."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from stages.common.artifacts import encode_png
from stages.imagery.captions import caption_from_scene, usable_captions
from stages.imagery.embedded_scenes import SceneId, render_scene
from stages.imagery.image_decoding import UnusableImage, decode_rgb
from stages.imagery.near_duplicates import Fingerprint, fingerprint
from stages.imagery.readers.items import ImageSource, SourceItem, scene_of
from stages.imagery.scale_and_crop import scale_and_crop
from stages.imagery.skip_report import SkipReport
from stages.imagery.splits import name_hash
from stages.imagery.tile_spool import TileSpool
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import ordered_map
from stages.runtime.progress import progress_bar


class Survey(NamedTuple):
    """What the first pass found: the usable items of a source."""

    usable: dict[str | None, list[tuple[float, int]]]  # split -> (name hash, item number) of each
    scenes: Counter[str]  # scene -> number of usable items; "": no scene

    def image_counts(self) -> dict[str | None, int]:
        """The number of usable items in each split of the source."""
        return {split: len(items) for split, items in self.usable.items()}


class Tile(NamedTuple):
    """A finished tile."""

    png: bytes
    fingerprint: Fingerprint
    mode: str  # Pillow mode of the source image
    sha256: str  # of the encoded source image; "" if rendered
    captions: list[str] | None = None  # of a rendered tile


class TileStatistics(NamedTuple):
    """What the second pass collects besides the tiles."""

    dhashes: np.ndarray  # uint64 [N]
    thumbnails: np.ndarray  # uint8 [N, 256]
    counts: Counter[str]  # for REPORT.json
    images_sha256: str  # hash of the names and contents of all source images, for SOURCE.json


def survey_items(source: ImageSource, skipped: SkipReport) -> Survey:
    """First pass, without images: find the items that have a new name and usable captions."""
    survey = Survey({}, Counter())
    names: set[str] = set()
    for item_number, item in enumerate(source.read_items(False)):
        reason = item.skip_reason
        if not reason and item.name in names:
            reason = "duplicate file name"
        # Where classes are given, a source without a caption field gets captions from them.
        if not reason and (source.has_captions or item.scene is None):
            _, reason = usable_captions(item.captions)
        if reason:
            skipped.add(reason, item.name)
            continue
        names.add(item.name)
        survey.scenes[scene_of(item)] += 1
        survey.usable.setdefault(item.split, []).append((name_hash(item.name, "keep"), item_number))
    return survey


def choose_items(survey: Survey, splits: Iterable[str | None], max_images: int | None) -> set[int]:
    """The numbers of the items to keep: of each split those with the smallest name hashes."""
    return {
        item_number
        for split in splits
        for _, item_number in sorted(survey.usable[split])[:max_images]
    }


def read_tiles(
    source: ImageSource,
    kept: set[int],
    splits: dict[str | None, str],
    size: int,
    spool: TileSpool,
    skipped: SkipReport,
) -> TileStatistics:
    """Second pass: make tiles of the kept items, on all cores, and append them to the spool.

    Args:
        source: the opened source.
        kept: the numbers of the items to keep.
        splits: the source's split -> train, valid or test.
        size: pixels along a side of a tile.
        spool: gets the tiles.
        skipped: gets the items whose image is unusable.
    """
    dhashes = array("Q")
    thumbnails = bytearray()
    counts: Counter[str] = Counter()
    images_sha256 = hashlib.sha256()
    items = (item for number, item in enumerate(source.read_items(True)) if number in kept)
    tiles = progress_bar(_make_tiles(items, size), total=len(kept), desc="tiles", unit="tile")
    for item, tile in tiles:
        if isinstance(tile, UnusableImage):
            skipped.add(str(tile), item.name)
            continue
        scene = scene_of(item)
        captions = _captions_of(item, tile, scene, counts)
        counts["captions"] += len(captions)
        if not scene:
            counts["without_scene"] += 1
        if tile.mode != "RGB":
            counts[f"converted_from_{tile.mode}"] += 1
        spool.add(item.name, splits[item.split], captions, scene, tile.png)
        dhashes.append(tile.fingerprint.dhash)
        thumbnails += tile.fingerprint.thumbnail
        images_sha256.update(f"{item.name}\0{tile.sha256}\n".encode())
    return TileStatistics(
        np.frombuffer(dhashes, np.uint64),
        np.frombuffer(thumbnails, np.uint8).reshape(-1, 256),
        counts,
        images_sha256.hexdigest(),
    )


def _captions_of(item: SourceItem, tile: Tile, scene: str, counts: Counter[str]) -> list[str]:
    """The captions of a tile; without any, one from its class name. Counts what was changed."""
    if tile.captions:
        return tile.captions
    captions, _ = usable_captions(item.captions)
    if not captions:
        counts["captions_from_class_names"] += 1
        return [caption_from_scene(scene)]
    if isinstance(item.captions, list):
        counts["captions_dropped"] += len(item.captions) - len(captions)
    return captions


def _make_tiles(
    items: Iterator[SourceItem], size: int
) -> Iterator[tuple[SourceItem, Tile | UnusableImage]]:
    """Yield each item with its tile, or with the reason why its image is unusable."""
    jobs = ((item, item.image) for item in items)
    try:
        yield from ordered_map(partial(_make_tile, size=size), jobs)
    except BrokenProcessPool:
        exit_with_error(
            "fetch_imagery: a process that decodes images was killed, most likely because memory "
            "ran out: scale the largest images down"
        )


def _make_tile(image: Any, size: int) -> Tile | UnusableImage:
    """Make a tile of encoded bytes, a path or a SceneId. Runs in a worker process."""
    if isinstance(image, SceneId):
        rendered, captions = render_scene(image, size)
        return Tile(encode_png(rendered), fingerprint(rendered), "RGB", "", captions)
    try:
        decoded = decode_rgb(image)
        square = scale_and_crop(decoded.rgb, size)
    except UnusableImage as error:
        return error
    return Tile(encode_png(square), fingerprint(square), decoded.mode, decoded.sha256)
