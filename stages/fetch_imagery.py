"""Fetch captioned imagery from its source to data/imagery/{train,valid,test}, as Parquet shards.

    python -m stages.fetch_imagery

SOURCE.json records what the source resolved to. REPORT.json counts and names the bad images and
captions, and the files that are no images, which are skipped. Images are never all in memory:
finished tiles wait in an unnamed temporary file until their splits are known.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import sources
from stages.common.artifacts import write_json, write_shards
from stages.imagery.embedded_scenes import open_embedded_scenes
from stages.imagery.near_duplicates import count_near_duplicates, group_near_duplicates
from stages.imagery.readers.items import ImageSource
from stages.imagery.readers.open_source import open_source
from stages.imagery.schema import IMAGERY_SCHEMA
from stages.imagery.skip_report import SkipReport
from stages.imagery.splits import carve_splits, match_splits, name_hash
from stages.imagery.tile_reading import Survey, choose_items, read_tiles, survey_items
from stages.imagery.tile_spool import SpooledTile, TileSpool
from stages.params import FetchImagery, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar

OUT = Path("data/imagery")
SPLITS = ("train", "valid", "test")


def main() -> None:
    params = load()
    config = params.fetch_imagery
    source, resolved = open_configured_source(config, params.seed)
    skipped = SkipReport()

    # First pass, without images: which items are usable, and which of them are kept.
    survey = survey_items(source, skipped)
    check_survey(survey, config.source, skipped)
    splits, missing_splits = match_splits(
        survey.image_counts(), config.splits.model_dump(), "fetch_imagery.splits"
    )
    kept = choose_items(survey, splits, config.max_images)

    with atomic_folder(OUT) as out, tempfile.TemporaryFile(dir=out) as file:
        # Second pass: make tiles of the kept items.
        spool = TileSpool(file)
        statistics = read_tiles(source, kept, splits, config.resolution, spool, skipped)
        tiles = spool.tiles
        if not tiles:
            exit_with_error(f"fetch_imagery.source: {config.source}: no usable image: {skipped}")

        # Splits that keep near-duplicates together.
        groups = group_near_duplicates(statistics.dhashes, statistics.thumbnails)
        carve_missing_splits(tiles, groups, missing_splits, config)
        near_duplicates = count_near_duplicates(groups, [tile.split for tile in tiles])
        if config.exclude_near_duplicates:
            exclude_near_duplicates(tiles, groups)
        near_duplicates["excluded_from_test"] = sum(tile.split == "excluded" for tile in tiles)
        tile_counts = count_tiles(tiles, skipped)

        for split in SPLITS:
            write_split(out, split, spool)
        image_counts = survey.image_counts()
        report = {
            "kept": tile_counts,
            "scenes": len(survey.scenes),
            "skipped": skipped.reasons,
            **dict(sorted(statistics.counts.items())),
            "unused_splits": {
                str(split): count for split, count in image_counts.items() if split not in splits
            },
            "near_duplicates": near_duplicates,
        }
        write_json(out / "REPORT.json", report)
        sources.write_source_json(
            out,
            config.source,
            **resolved,
            images=len(tiles),
            images_sha256=statistics.images_sha256,
        )
    counts = ", ".join(f"{count} {split}" for split, count in tile_counts.items())
    log(f"fetch_imagery: {counts}; skipped: {skipped}")


def open_configured_source(config: FetchImagery, seed: int) -> tuple[ImageSource, dict[str, Any]]:
    """Open the source of the params; also returns what it resolved to, for SOURCE.json."""
    key = "fetch_imagery.source"
    resolved: dict[str, Any] = {"license": None}
    match sources.kind(config.source):
        case "embedded":
            if config.max_images is None:
                exit_with_error(
                    "fetch_imagery.max_images: the embedded renderer has no last tile: write how "
                    "many to render"
                )
            return open_embedded_scenes(seed, config.max_images), resolved | {"seed": seed}
        case "path":
            path = sources.local_path(config.source, key)
        case "hub":
            path, resolved = sources.download_from_hub(config.source, key, "dataset", ["*.parquet"])
            if not any(path.rglob("*.parquet")):
                repository = config.source.partition("@")[0]
                exit_with_error(
                    f"{key}: {config.source} has no Parquet files; try "
                    f"{repository}@refs/convert/parquet"
                )
        case other:
            exit_with_error(
                f"{key}: {other} is not for imagery; write embedded, path:<folder or file> or "
                "hub:<repo>[@revision]"
            )
    source = open_source(path, key)
    root = path if path.is_dir() else path.parent
    return source, resolved | {"files": sources.file_hashes(source.files, root)}


def check_survey(survey: Survey, source: str, skipped: SkipReport) -> None:
    """Exit with an error if there is no usable item, or fewer than two scenes.

    train_scene, and with it the whole evaluation, needs two scenes. Without this check the error
    would come after hours of decoding and training.
    """
    if not survey.usable:
        reasons = skipped if skipped.reasons else "it is empty"
        exit_with_error(
            f"fetch_imagery.source: {source}: no usable captioned image: {reasons} "
            "(layouts: docs/data.md)"
        )
    scenes = sorted(scene for scene in survey.scenes if scene)
    if len(scenes) < 2:
        names = f": {', '.join(scenes)}" if scenes else ""
        exit_with_error(
            f"fetch_imagery.source: {source}: {len(scenes)} scene(s) in "
            f"{survey.scenes.total()} usable image(s){names}; the pipeline classifies scenes: give "
            "class folders, a `scene` column or field, or names such as airport_1.jpg; "
            f"skipped: {skipped}"
        )


def carve_missing_splits(
    tiles: list[SpooledTile], groups: np.ndarray, missing: list[str], config: FetchImagery
) -> None:
    """Move tiles from train to the splits that the source doesn't have, near-duplicates together.

    Args:
        tiles: their `split` is changed in place.
        groups: [N], the group of near-duplicates of each tile.
        missing: which of "valid" and "test" to fill.
        config: the sizes of the splits.
    """
    pool = [i for i, tile in enumerate(tiles) if tile.split == "train"]
    new_splits = carve_splits(
        [tiles[i].name for i in pool],
        groups[pool],
        valid=config.valid if "valid" in missing else 0,
        test=config.test if "test" in missing else 0,
    )
    for i, split in zip(pool, new_splits):
        tiles[i].split = split


def exclude_near_duplicates(tiles: list[SpooledTile], groups: np.ndarray) -> None:
    """Take the tiles out of test that look like a training tile."""
    training_groups = {
        group for tile, group in zip(tiles, groups.tolist()) if tile.split == "train"
    }
    for tile, group in zip(tiles, groups.tolist()):
        if tile.split == "test" and group in training_groups:
            tile.split = "excluded"


def count_tiles(tiles: Iterable[SpooledTile], skipped: SkipReport) -> dict[str, int]:
    """The number of tiles in each split. Exits with an error if one is empty."""
    counts = {split: sum(tile.split == split for tile in tiles) for split in SPLITS}
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        exit_with_error(
            f"fetch_imagery: the {empty[0]} split is empty ({counts}; skipped: {skipped}): change "
            "fetch_imagery.{splits,valid,test}"
        )
    return counts


def write_split(out: Path, split: str, spool: TileSpool) -> None:
    """Write the tiles of a split as shards, in an order that depends only on their names."""
    tiles = [tile for tile in spool.tiles if tile.split == split]
    tiles.sort(key=lambda tile: name_hash(tile.name, "order"))
    rows = progress_bar(spool.read_rows(tiles), total=len(tiles), desc=split, unit="tile")
    write_shards(out / split, rows, IMAGERY_SCHEMA)


if __name__ == "__main__":
    run_stage(main, __doc__)
