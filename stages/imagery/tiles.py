"""From a source's items to finished tiles: which are usable, decoding on all cores, the spool that tiles wait in."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.imagery.decoding import finish, tile
from stages.imagery.readers import Item, Origin, scene_of, sentences
from stages.imagery.splits import share
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import ordered_map
from stages.runtime.progress import progress_bar


class Skipped(dict):
    """reason -> {count, names of the first 20}."""

    def add(self, reason: str, name: str) -> None:
        entry = self.setdefault(reason, {"count": 0, "names": []})
        entry["count"] += 1
        entry["names"] += [name] * (len(entry["names"]) < 20)

    def __str__(self) -> str:
        return (
            "; ".join(
                f"{entry['count']} {reason} ({entry['names'][0]} ...)"
                for reason, entry in self.items()
            )
            or "none"
        )


class Row(NamedTuple):
    """A finished tile in the spool."""

    name: str
    split: str  # train, valid or test so far
    offset: int  # bytes
    head: int  # bytes of JSON {captions, scene}
    png: int  # bytes


def drawn(seed: int, count: int) -> Origin:
    """The embedded scenes; each tile is drawn, with its captions, in the second pass."""
    from stages.embedded.scenes import SCENES

    def items(_: bool) -> Iterator[Item]:
        for index in range(count):
            scene = SCENES[index % len(SCENES)]
            yield Item(None, f"{scene}_{index:05d}.png", [scene], scene, (seed, index))

    return Origin([], items, captioned=True)


def make(image, resolution: int):
    """A tile from encoded bytes, a path, or (seed, index) of the scene renderer. Runs in a process of the pool."""
    if not isinstance(image, tuple):
        return tile(image, resolution)
    from stages.embedded.scenes import tiles

    scene = next(tiles(image[0], image[1], image[1] + 1, resolution, "domain"))
    return finish(Image.fromarray(scene["image"]))._replace(captions=scene["captions"])


def survey(origin: Origin, skipped: Skipped) -> tuple[dict[str | None, list], Counter]:
    """Usable items as {source split: [(share, index)]}, and how many show each scene. Share: a hash of the name."""
    usable, scenes, seen = {}, Counter(), set()
    for index, item in enumerate(origin.items(False)):
        reason = item.fault or ("duplicate file name" if item.name in seen else "")
        if not reason and (origin.captioned or item.scene is None):
            reason = sentences(item.captions)[1]
        if reason:
            skipped.add(reason, item.name)
            continue
        seen.add(item.name)
        scenes[scene_of(item)] += 1
        usable.setdefault(item.split, []).append((share(item.name, "keep"), index))
    return usable, scenes


def read(
    origin: Origin,
    keep: set[int],
    given: dict,
    resolution: int,
    spool,
    skipped: Skipped,
    counts: Counter,
):
    """Decode the kept items into the spool. Returns rows, dhash uint64 [N], thumbs uint8 [N,256], hashes for SOURCE.json."""
    rows, dhash, thumbs, offset, total = [], array("Q"), bytearray(), 0, hashlib.sha256()
    jobs = ((item, item.image) for index, item in enumerate(origin.items(True)) if index in keep)
    for item, made in progress_bar(
        decoded(jobs, resolution), total=len(keep), what="tiles", unit="tile"
    ):
        if isinstance(made, str):
            skipped.add(made, item.name)
            continue
        scene, captions = scene_of(item), made.captions or sentences(item.captions)[0]
        if not captions:
            captions = [f"a satellite image of {words(scene)}"]
            counts["captions_from_class_names"] += 1
        elif isinstance(item.captions, list) and not made.captions:
            counts["captions_dropped"] += len(item.captions) - len(captions)
        if not scene:
            counts["without_scene"] += 1
        counts["captions"] += len(captions)
        if made.mode != "RGB":
            counts[f"converted_from_{made.mode}"] += 1
        head = json.dumps({"captions": captions, "scene": scene}).encode()
        spool.write(head + made.png)
        rows.append(Row(item.name, given[item.split], offset, len(head), len(made.png)))
        offset += len(head) + len(made.png)
        dhash.append(made.dhash)
        thumbs += made.thumb
        total.update(f"{item.name}\0{made.sha256}\n".encode())
    images = {"images": len(rows), "images_sha256": total.hexdigest()}
    return (
        rows,
        np.frombuffer(dhash, np.uint64),
        np.frombuffer(thumbs, np.uint8).reshape(-1, 256),
        images,
    )


def decoded(jobs: Iterator[tuple], resolution: int) -> Iterator[tuple]:
    """(item, its tile or what is wrong with it), on all cores."""
    try:
        yield from ordered_map(partial(make, resolution=resolution), jobs)
    except BrokenProcessPool:
        exit_with_error(
            "fetch_imagery: a process that decodes images was killed, most likely because memory ran out: scale the largest images down"
        )


def words(scene: str) -> str:
    """BareLand, bare_land and bare-land read `bare land`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", scene)
    return " ".join(spaced.lower().split())


def unspool(spool, rows: list[Row]) -> Iterator[dict]:
    """Rows of the imagery schema, from the spool."""
    for row in rows:
        spool.seek(row.offset)
        head = json.loads(spool.read(row.head))
        yield {
            "image": {"bytes": spool.read(row.png), "path": row.name},
            "filename": row.name,
            **head,
        }
