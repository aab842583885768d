"""The second pass over a source: make tiles of the items that are kept."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import compress
from typing import NamedTuple

import numpy as np

from stages.imagery.bands import ParamsMisfit
from stages.imagery.captions import caption_from_scene, usable_captions
from stages.imagery.near_duplicates import THUMBNAIL_VALUES
from stages.imagery.rasters import RasterWindow
from stages.imagery.readers.items import ImageSource, SourceItem, scene_of
from stages.imagery.skip_report import SkipReport
from stages.imagery.source_rasters import SourceRasters, refuse_band_files
from stages.imagery.survey import kept_items
from stages.imagery.tile_making import (
    TOO_FEW_VALID,
    Finish,
    Reading,
    Tile,
    finish_raw_tile,
    has_too_few_valid,
    make_tile,
    raw_thumbnail,
)
from stages.imagery.tile_spool import SpooledTile, TileSpool
from stages.imagery.unusable_image import UnusableImage
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import ordered_map
from stages.runtime.progress import log, progress_bar

# Images that a process reads at once, and bytes of raw tiles that it finishes at once. There may be
# four times as many per process in memory.
BATCH = 2
BATCH_BYTES = 2**20


class TileStatistics(NamedTuple):
    """What the second pass collects besides the tiles."""

    thumbnails: np.ndarray  # uint16 [N, 192]
    counts: Counter[str]  # for REPORT.json
    # For SOURCE.json: the hash of all images' names, contents, masks and classes of label rasters.
    images_sha256: str


def read_tiles(
    source: ImageSource,
    kept: dict[int, list],
    splits: dict[str | None, str],
    reading: Reading,
    spool: TileSpool,
    skipped: SkipReport,
) -> tuple[TileStatistics, SourceRasters]:
    """Second pass: make tiles of the kept items, on all cores, and append them to the spool.

    Args:
        source: the opened source.
        kept: the items to keep, as `choose_items` returns them.
        splits: the source's split -> train, valid or test.
        reading: how images are read.
        spool: gets the tiles; those that need the stretch of the whole data set are raw.
        skipped: gets the items whose image is unusable.

    Returns:
        The statistics, in which the thumbnails of raw tiles are still 0, and how rasters were read.

    Raises:
        SystemExit: images differ in their bands or type, each file seems to hold one band of an
            image, or it isn't clear which bands to read.
    """
    thumbnails = bytearray()
    counts: Counter[str] = Counter()
    images_sha256 = hashlib.sha256()
    rasters = SourceRasters()
    gray: list[str] = []  # the names of the files of gray tiles
    blank = bytes(2 * THUMBNAIL_VALUES)
    items = kept_items(source, kept)
    tiles = progress_bar(_make_tiles(items, reading), total=len(kept), desc="tiles", unit="tile")
    for item, tile in tiles:
        if isinstance(tile, UnusableImage):
            skipped.add(str(tile), item.name)
            continue
        tile = rasters.check(item.name, tile)
        if tile.mode == "L" or len(tile.bands) == 1:
            gray.append(item.image.path.name if isinstance(item.image, RasterWindow) else item.name)
        scene = scene_of(item)
        captions = _captions_of(item, tile, scene, counts)
        _count(tile, captions, scene, counts)
        spool.add(item, splits[item.split], captions, scene, tile)
        thumbnails += tile.thumbnail or blank
        images_sha256.update(f"{item.name}\0{tile.sha256}\n".encode())
        if item.label_share is not None:
            images_sha256.update(f"{scene}\0{item.label_share}\n".encode())
    if reading.bands is None:
        refuse_band_files(gray, len(spool.tiles), bool(rasters.bands))
    _log_counts(counts, len(spool.tiles), reading.size)
    statistics = TileStatistics(
        np.frombuffer(thumbnails, "<u2").reshape(-1, THUMBNAIL_VALUES),
        counts,
        images_sha256.hexdigest(),
    )
    if rasters.alpha.is_mask:
        statistics = _apply_alpha(spool, statistics, reading.min_valid, skipped)
    return statistics, rasters


def _count(tile: Tile, captions: list[str], scene: str, counts: Counter[str]) -> None:
    """Count what REPORT.json tells of a tile."""
    counts["captions"] += len(captions)
    if not scene:
        counts["without_scene"] += 1
    if tile.mode != "RGB":
        counts[f"converted_from_{tile.mode}"] += 1
    if tile.is_enlarged:
        counts["enlarged"] += 1


def _log_counts(counts: Counter[str], tiles: int, size: int) -> None:
    """Log what users may not expect of their tiles; size: pixels per side of a tile."""
    if counts["enlarged"]:
        log(
            f"fetch_imagery.resolution: {counts['enlarged']} of {tiles} images are smaller than "
            f"{size} pixels and are enlarged: the model learns their blur"
        )
    if 0 < counts["without_scene"] < tiles:
        log(
            f"fetch_imagery: {counts['without_scene']} of {tiles} images have captions and no "
            "class: no classifier learns or judges them"
        )


def _apply_alpha(
    spool: TileSpool, statistics: TileStatistics, min_valid: float, skipped: SkipReport
) -> TileStatistics:
    """Mask the raw tiles by their alpha bands; leave those out that have too few pixels then.

    Args:
        spool: its tiles are changed.
        statistics: of all its tiles.
        min_valid: the least share of valid pixels.
        skipped: gets the tiles that are left out.

    Returns:
        The statistics of the tiles that are left.
    """
    keep = []
    for tile in spool.tiles:
        tile.masked += tile.masked_by_alpha
        is_kept = not has_too_few_valid(tile.pixel_count, tile.masked, min_valid)
        keep.append(is_kept)
        if not is_kept:
            skipped.add(TOO_FEW_VALID, tile.name)
    spool.tiles = list(compress(spool.tiles, keep))
    return statistics._replace(thumbnails=statistics.thumbnails[keep])


def count_masked_pixels(tiles: Iterable[SpooledTile]) -> dict[str, dict[str, int]]:
    """Log the masked pixels; return them for REPORT.json; {} without any."""
    masked = [tile.masked for tile in tiles if tile.masked]
    if not masked:
        return {}
    log(f"fetch_imagery: {sum(masked)} pixels of {len(masked)} tiles are masked: they are black")
    return {"masked": {"tiles": len(masked), "pixels": sum(masked)}}


def summarize_label_shares(tiles: Iterable[SpooledTile]) -> dict[str, dict]:
    """Log how much of the tiles their classes cover, for REPORT.json; {} without label rasters."""
    shares = [tile.label_share for tile in tiles if tile.label_share is not None]
    if not shares:
        return {}
    median = float(np.median(shares))
    mixed = sum(share < 0.5 for share in shares)
    log(
        f"fetch_imagery.labels: a tile's class covers {median:.0%} of its labeled pixels (median); "
        f"less than half in {mixed} of {len(shares)} tiles, which count like any other"
    )
    return {"label_share": {"median": median, "tiles_below_half": mixed}}


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
    items: Iterator[SourceItem], reading: Reading
) -> Iterator[tuple[SourceItem, Tile | UnusableImage | ParamsMisfit]]:
    """Yield each item with its tile, or with the reason why its image is unusable."""
    jobs = ((item, (item.image, item.name)) for item in items)
    try:
        yield from ordered_map(partial(make_tile, reading=reading), jobs, BATCH)
    except BrokenProcessPool:
        exit_with_error(
            "fetch_imagery: a process that decodes images was killed, most likely because memory "
            "ran out: scale the largest images down"
        )


def fill_in_thumbnails(spool: TileSpool, statistics: TileStatistics, finish: Finish) -> None:
    """Put the thumbnails of raw tiles into the statistics."""
    raw = [(i, tile) for i, tile in enumerate(spool.tiles) if tile.raw is not None]
    jobs = ((i, (spool.read(tile)[1], tile.raw)) for i, tile in raw)
    batch = _batch_size(tile for _, tile in raw)
    for i, thumbnail in ordered_map(partial(raw_thumbnail, finish=finish), jobs, batch):
        statistics.thumbnails[i] = np.frombuffer(thumbnail, "<u2")


def finished_rows(spool: TileSpool, tiles: list[SpooledTile], finish: Finish) -> Iterator[dict]:
    """Yield spooled tiles as rows of the imagery schema; raw ones are finished on all cores."""
    contents = ((spool.read(tile), tile) for tile in tiles)
    jobs = ((row, (pixels, tile.raw)) for (row, pixels), tile in contents)
    if any(tile.raw for tile in tiles):
        batch = _batch_size(tiles)
        finished = ordered_map(partial(finish_raw_tile, finish=finish), jobs, batch)
    else:
        finished = ((row, pixels) for row, (pixels, _) in jobs)
    for row, png in finished:
        yield {"image": {"bytes": png, "path": row["filename"]}, **row}


def _batch_size(tiles: Iterable[SpooledTile]) -> int:
    """How many tiles to send to a process at once: many small ones, or one large one."""
    largest = max((tile.pixels_size for tile in tiles), default=1)
    return min(max(BATCH_BYTES // largest, 1), 16)
