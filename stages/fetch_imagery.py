"""Captioned imagery from any source -> data/imagery/{train,valid,test}/NNNNN.parquet, SOURCE.json, REPORT.json.

    python -m stages.fetch_imagery

Bad images and captions, and files that are no images, are skipped, named and counted in REPORT.json. Images are never all in
memory: finished tiles wait in an unnamed temporary file until the splits are known.
"""

import tempfile
from collections import Counter
from pathlib import Path

from stages.common import sources
from stages.common.artifacts import write_json, write_shards
from stages.imagery.readers import SCHEMA, Origin, open_origin
from stages.imagery.splits import carve, duplicates, near_duplicates, own_splits, share
from stages.imagery.tiles import Skipped, drawn, read, survey, unspool
from stages.params import FetchImagery, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar

OUT = Path("data/imagery")
SPLITS = ("train", "valid", "test")


def main() -> None:
    p = load()
    settings, seed = p.fetch_imagery, p.seed
    origin, found = resolve(settings, seed)
    skipped, counts = Skipped(), Counter()

    # First pass, without images: what is there and which of it is usable.
    usable, scenes = survey(origin, skipped)
    if not usable:
        exit_with_error(
            f"fetch_imagery.source: {settings.source}: no usable captioned image: {skipped or 'it is empty'} (layouts: docs/data.md)"
        )
    # train_scene, and with it the whole evaluation, needs scenes to tell apart; better said before hours of decoding and training.
    if len(shown := sorted(filter(None, scenes))) < 2:
        exit_with_error(
            f"fetch_imagery.source: {settings.source}: {len(shown)} scene(s) in {sum(scenes.values())} usable image(s)"
            f"{': ' * bool(shown)}{', '.join(shown)}; the pipeline classifies scenes: give class folders, a `scene` column or field, "
            f"or names such as airport_1.jpg; skipped: {skipped}"
        )
    splits = settings.splits.model_dump()
    given, missing = own_splits(
        {name: len(pairs) for name, pairs in usable.items()}, splits, "fetch_imagery.splits"
    )
    keep = {index for name in given for _, index in sorted(usable[name])[: settings.max_images]}

    with atomic_folder(OUT) as part, tempfile.TemporaryFile(dir=part) as spool:
        # Second pass: decode on all cores, spool finished tiles with their captions.
        rows, dhash, thumbs, images = read(
            origin, keep, given, settings.resolution, spool, skipped, counts
        )
        if not rows:
            exit_with_error(f"fetch_imagery.source: {settings.source}: no usable image: {skipped}")

        # Carve the missing splits out of train, near-duplicates together.
        groups = near_duplicates(dhash, thumbs)
        pool = [i for i, row in enumerate(rows) if row.split == "train"]
        carved = carve(
            [rows[i].name for i in pool],
            groups[pool],
            settings.valid * ("valid" in missing),
            settings.test * ("test" in missing),
        )
        for i, split in zip(pool, carved):
            rows[i] = rows[i]._replace(split=split)
        alike = duplicates(groups, [row.split for row in rows])
        if settings.exclude_near_duplicates:
            seen = {group for row, group in zip(rows, groups.tolist()) if row.split == "train"}
            rows = [
                row._replace(split="excluded") if row.split == "test" and group in seen else row
                for row, group in zip(rows, groups.tolist())
            ]
        kept = {split: sum(row.split == split for row in rows) for split in SPLITS}
        if empty := [split for split in SPLITS if not kept[split]]:
            exit_with_error(
                f"fetch_imagery: the {empty[0]} split is empty ({kept}; skipped: {skipped}): change fetch_imagery.{{splits,valid,test}}"
            )
        for split in SPLITS:
            ordered = sorted(
                (row for row in rows if row.split == split),
                key=lambda row: share(row.name, "order"),
            )
            tiles = progress_bar(
                unspool(spool, ordered), total=len(ordered), what=split, unit="tile"
            )
            write_shards(part / split, tiles, SCHEMA)

        report = {
            "kept": kept,
            "scenes": len(scenes),
            "skipped": skipped,
            **dict(sorted(counts.items())),
            "unused_splits": {
                str(name): len(pairs) for name, pairs in usable.items() if name not in given
            },
            "near_duplicates": alike
            | {"excluded_from_test": sum(row.split == "excluded" for row in rows)},
        }
        write_json(part / "REPORT.json", report)
        sources.record(part, settings.source, **found, **images)
    log(
        f"fetch_imagery: {', '.join(f'{n} {split}' for split, n in kept.items())}; skipped: {skipped}"
    )


def resolve(settings: FetchImagery, seed: int) -> tuple[Origin, dict]:
    """Open the source; also what it resolved to, for SOURCE.json."""
    key, source = "fetch_imagery.source", settings.source
    match sources.kind(source):
        case "embedded":
            if settings.max_images is None:
                exit_with_error(
                    "fetch_imagery.max_images: the embedded renderer never ends: say how many tiles"
                )
            return drawn(seed, settings.max_images), {"license": None, "seed": seed}
        case "path":
            root, found = sources.local(source, key), {"license": None}
        case "hub":
            root, found = sources.hub(source, key, "dataset", ["*.parquet"])
            if not any(root.rglob("*.parquet")):
                exit_with_error(
                    f"{key}: {source} holds no Parquet; try {source.partition('@')[0]}@refs/convert/parquet"
                )
        case other:
            exit_with_error(
                f"{key}: {other} is not for imagery; it is embedded, path:<folder or file> or hub:<repo>[@revision]"
            )
    origin = open_origin(root, key)
    below = root if root.is_dir() else root.parent
    return origin, found | {"files": sources.hashes(origin.files, below)}


if __name__ == "__main__":
    run_stage(main, __doc__)
