"""Captioned images of the base model's own domain: fine-tuning's loss on them says what the model forgets."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from stages.common import sources
from stages.common.artifacts import encode_png, write_shards
from stages.imagery.decoding import tile
from stages.imagery.readers import SCHEMA, open_origin, sentences
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

KEY = "encode.base_domain"
SEED = 20260103  # tiles of its own: stages/embedded/train_diffusion.py trained on others
UNSEEN = (
    "snowfield",
    "airport",
)  # scenes the embedded base never saw: they are no part of what it could forget


def fetch(source: str, count: int, size: int, out: Path) -> None:
    """Write at most `count` tiles of `size` px as Parquet shards into `out`, with SOURCE.json. The first usable ones are taken;
    what is skipped on the way to them is named and counted in the log.
    """
    skipped: dict[str, list[str]] = {}
    if sources.kind(source) == "embedded":
        rows, found = embedded(count, size), {"license": None}
    else:
        root, found = (
            sources.hub(source, KEY, "dataset", ["*.parquet"])
            if sources.kind(source) == "hub"
            else (sources.local(source, KEY), {"license": None})
        )
        origin = open_origin(root, KEY)
        rows, below = external(origin, count, size, skipped), root if root.is_dir() else root.parent
        found = found | {"files": sources.hashes(origin.files, below)}
    rows = list(rows)
    told = (
        "; ".join(f"{len(names)} {reason} ({names[0]} ...)" for reason, names in skipped.items())
        or "none"
    )
    if not rows:
        exit_with_error(f"{KEY}: {source}: no usable image with a caption; skipped: {told}")
    log(f"{KEY}: {len(rows)} images; skipped: {told}")
    write_shards(out, rows, SCHEMA)
    sources.record(out, source, **found)


def embedded(count: int, size: int) -> Iterator[dict]:
    """The rendered scenes in the look, and of the kinds, that the embedded base was trained on."""
    from stages.embedded.scenes import SCENES, tiles

    known = tuple(scene for scene in SCENES if scene not in UNSEEN)
    for scene in tiles(SEED, 0, count, size, "base", known):
        yield row(
            encode_png(Image.fromarray(scene["image"])),
            scene["captions"],
            scene["scene"],
            f"{scene['scene']}_{scene['index']}.png",
        )


def external(origin, count: int, size: int, skipped: dict[str, list[str]]) -> Iterator[dict]:
    """The first usable captioned images of an opened source; into `skipped` go the others on the way: reason -> names."""
    seen = set()
    for item in origin.items(True):
        captions, reason = sentences(item.captions)
        found = (
            item.fault
            or ("duplicate file name" if item.name in seen else "")
            or reason
            or tile(item.image, size)
        )
        if isinstance(found, str):
            skipped.setdefault(found, []).append(item.name)
            continue
        seen.add(item.name)
        yield row(found.png, captions, item.scene or "", item.name)
        count -= 1
        if not count:
            return


def row(image: bytes, captions: list[str], scene: str, filename: str) -> dict:
    return {
        "image": {"bytes": image, "path": None},
        "captions": captions,
        "scene": scene,
        "filename": filename,
    }
