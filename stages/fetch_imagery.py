"""Fetch captioned imagery from its source to data/imagery/{train,valid,test}, as Parquet shards.

    python -m stages.fetch_imagery

reads   fetch_imagery, classes, seed; the source; $TORCHGEO_DATA (torchgeo)
writes  data/imagery/: {train,valid,test}/*.parquet, REPORT.json, SOURCE.json

SOURCE.json records what the source resolved to. REPORT.json counts and names the bad images and
captions, and the files that are no images, which are skipped. Images are never all in memory:
finished tiles wait in an unnamed temporary file until their splits are known.

The modules of stages/imagery, in the order of the data:

    readers/, embedded_scenes, torchgeo_datasets  the items of a source
    mask_files                                    files that are masks of others
    scene_tiles, label_rasters                    windows of scenes, and the class of each
    survey                                        first pass: which items are usable and kept
    tile_reading, tile_making                     second pass: tiles of the items that are kept
    rasters, bands, georeference                  pixels of a raster, its place and date
    image_decoding, scale_and_crop                pixels of another image; the square of a tile
    tile_spool, raw_tiles                         where tiles wait for their splits
    source_rasters, stretch                       what rasters have in common; bytes of raw values
    near_duplicates                               tiles that must be in one split
    tile_splits, splits, scene_splits             train, valid and test; by ground, of scenes
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.common import sources
from stages.common.artifacts import write_json, write_shards
from stages.imagery.embedded_scenes import open_embedded_scenes
from stages.imagery.georeference import log_systems
from stages.imagery.mask_files import refuse_unnamed_masks, skip_mask_files
from stages.imagery.near_duplicates import group_near_duplicates
from stages.imagery.readers.items import ImageSource
from stages.imagery.readers.open_source import open_source
from stages.imagery.scene_tiles import cut_scenes
from stages.imagery.schema import imagery_schema
from stages.imagery.skip_report import SkipReport
from stages.imagery.source_rasters import choose_stretch, describe_pixels
from stages.imagery.splits import match_splits, name_hash, take_named_folders
from stages.imagery.stretch import fixed_stretch
from stages.imagery.survey import (
    check_classes,
    check_survey,
    choose_items,
    count_left_out,
    log_lost_scenes,
    survey_items,
)
from stages.imagery.tile_making import Finish, Reading
from stages.imagery.tile_reading import (
    count_masked_pixels,
    fill_in_thumbnails,
    finished_rows,
    read_tiles,
    summarize_label_shares,
)
from stages.imagery.tile_splits import has_windows, split_tiles
from stages.imagery.tile_spool import SpooledTile, TileSpool
from stages.params import FetchImagery, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar

OUT = Path("data/imagery")
SPLITS = ("train", "valid", "test")
MIN_VALID = 0.5  # share of a raster's pixels; a tile with fewer valid ones is left out


def main() -> None:
    params = load()
    config = params.fetch_imagery
    source, resolved = open_configured_source(config, params.seed)
    reading = configured_reading(config, source)
    requested = config.splits.model_dump()
    source = take_named_folders(skip_mask_files(source, config.mask), requested)
    source = cut_scenes(source, config.tile, config.labels, reading)
    skipped = SkipReport()

    # First pass, without images: which items are usable, and which of them are kept.
    survey = survey_items(source, skipped)
    check_survey(survey, source, config, skipped)
    has_list = config.labels is None and (source.has_captions or bool(source.files))
    check_classes(survey, params.classes, source.unread_classes, has_list)
    splits, missing_splits = match_splits(
        survey.image_counts(), requested, "fetch_imagery.splits", survey.first_folders()
    )
    kept = choose_items(survey, splits, config.max_images)

    with atomic_folder(OUT) as out, tempfile.TemporaryFile(dir=out) as file:
        # Second pass: make tiles of the kept items.
        spool = TileSpool(file)
        statistics, rasters = read_tiles(source, kept, splits, reading, spool, skipped)
        if not (tiles := spool.tiles):
            exit_with_error(f"fetch_imagery.source: {config.source}: no usable image: {skipped}")

        # Splits that keep near-duplicates together. To find these, raw tiles are stretched by the
        # percentiles of all of them; the stretch of the training tiles needs the splits.
        log_systems(tile.georeference for tile in tiles if tile.pixel_count)
        stretch_of_all = choose_stretch(config.stretch, spool, rasters)
        finish = Finish(config.resolution, stretch_of_all, rasters.alpha.is_mask)
        fill_in_thumbnails(spool, statistics, finish)
        groups = group_near_duplicates(statistics.thumbnails)
        split_counts = split_tiles(tiles, groups, missing_splits, config)
        tile_counts = count_tiles(tiles, skipped)
        scenes = {tile.scene for tile in tiles if tile.split in SPLITS} - {""}
        log_lost_scenes(survey, scenes, params.classes)

        finish = finish._replace(stretch=choose_stretch(config.stretch, spool, rasters, "train"))
        for split in SPLITS:
            write_split(out, split, spool, finish)
        report = {
            "kept": tile_counts,
            "scenes": len(scenes),
            "skipped": skipped.reasons,
            **dict(sorted(statistics.counts.items())),
            **count_left_out(survey, splits, kept),
            **split_counts,
            **count_masked_pixels(tiles),
            **summarize_label_shares(tiles),
        }
        write_json(out / "REPORT.json", report)
        facts = describe_pixels(reading.bands, rasters, finish.stretch)
        facts |= {"images": len(tiles), "images_sha256": statistics.images_sha256}
        sources.write_source_json(out, config.source, **resolved, **facts)
    counts = ", ".join(f"{count} {split}" for split, count in tile_counts.items())
    if split_counts.get("buffer"):
        counts += f"; {split_counts['buffer']} left out between the splits"
    log(f"fetch_imagery: {counts}; skipped: {skipped}")


def configured_reading(config: FetchImagery, source: ImageSource) -> Reading:
    """How the params, or else the source, want images to be read."""
    return Reading(
        config.resolution,
        config.bands or source.rgb_bands,
        config.mask,
        keeps_bytes=fixed_stretch(config.stretch) is None,
        needs_bytes=config.stretch == "none",
        min_valid=MIN_VALID if config.tile is None else config.tile.min_valid,
    )


def open_configured_source(config: FetchImagery, seed: int) -> tuple[ImageSource, dict[str, Any]]:
    """Open the source of the params; also returns what it resolved to, for SOURCE.json."""
    key = "fetch_imagery.source"
    resolved: dict[str, Any] = {"license": None}
    match sources.kind(config.source):
        case "embedded":
            assert config.max_images is not None  # as stages/params.py demands
            return open_embedded_scenes(seed, config.max_images), resolved | {"seed": seed}
        case "path":
            path = sources.local_path(config.source, key)
        case "hub":
            path, resolved, _ = sources.download_from_hub(
                config.source, key, "dataset", ["*.parquet"]
            )
            if not any(path.rglob("*.parquet")):
                repository = config.source.partition("@")[0]
                exit_with_error(
                    f"{key}: {config.source} has no Parquet files; try "
                    f"{repository}@refs/convert/parquet"
                )
        case _:  # torchgeo
            # Imported late: TorchGeo needs seconds to load.
            from stages.imagery.torchgeo_datasets import open_torchgeo

            source, of_dataset = open_torchgeo(config.source, key, config.download)
            return source, resolved | of_dataset
    label_rasters = config.labels is not None
    source = open_source(path, key, config.caption, config.mask, label_rasters=label_rasters)
    if not label_rasters:
        refuse_unnamed_masks(skip_mask_files(source, config.mask), f"{key}: {config.source}")
    root = path if path.is_dir() else path.parent
    return source, resolved | {"files": sources.file_hashes(source.files, root)}


def count_tiles(tiles: list[SpooledTile], skipped: SkipReport) -> dict[str, int]:
    """The number of tiles in each split. Exits with an error if one is empty."""
    counts = {split: sum(tile.split == split for tile in tiles) for split in SPLITS}
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        left_out = Counter(tile.split for tile in tiles if tile.split not in SPLITS)
        further = "".join(f"; {split}: {count}" for split, count in sorted(left_out.items()))
        keys = "splits,valid,test"
        if left_out["excluded"]:
            further += " as near-duplicates of training tiles"
            keys += ",exclude_near_duplicates"
        more_tiles = ", give more scenes, or smaller tiles" if has_windows(tiles) else ""
        exit_with_error(
            f"fetch_imagery: the {empty[0]} split is empty ({counts}{further}; skipped: "
            f"{skipped}): change fetch_imagery.{{{keys}}}{more_tiles}"
        )
    return counts


def write_split(out: Path, split: str, spool: TileSpool, finish: Finish) -> None:
    """Write the tiles of a split as shards, in an order that depends only on their names."""
    tiles = [tile for tile in spool.tiles if tile.split == split]
    tiles.sort(key=lambda tile: name_hash(tile.name, "order"))
    finished = finished_rows(spool, tiles, finish)
    rows = progress_bar(finished, total=len(tiles), desc=split, unit="tile")
    write_shards(out / split, rows, imagery_schema(spool.columns))
    # Else the processes that finish the next split's tiles would hold on to it.
    pa.default_memory_pool().release_unused()


if __name__ == "__main__":
    run_stage(main, __doc__)
