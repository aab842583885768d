"""The blind review: a folder to send to an expert, who tells real from generated tiles without a hint which is which.

    python -m stages.review_page

reads   report.review_tiles, classes, seed; data/imagery/test, data/synthetic
writes  metrics/review/          index.html and tiles/: open it, rate, send the CSV that it saves back
        metrics/review_key.csv   run,tile,truth,label: the answers, which stay here; `python -m stages.review add` reads them

Half of the tiles are real, half generated, spread over the land-cover classes that have both. All go through one scaling and
one JPEG encoder and are padded to the same number of bytes, so that neither name, size, order nor metadata tells.
"""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.artifacts import read_rows, write_atomically
from stages.common.rng import rng
from stages.params import load
from stages.reporting import templates
from stages.reporting.grids import pictures
from stages.reporting.ratings import ARTIFACTS, KEY, KEY_COLUMNS
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

REAL, SYNTHETIC, OUT = Path("data/imagery/test"), Path("data/synthetic"), Path("metrics/review")
LARGEST = 512  # pixels of a tile


def main() -> None:
    p = load()
    class_of = {scene: label for label, scenes in p.classes.items() for scene in scenes}
    labels = {
        "real": [class_of.get(row["scene"]) for row in read_rows(REAL, ["scene"])],
        "generated": [row["label"] for row in read_rows(SYNTHETIC, ["label"])],
    }
    both = [label for label in p.classes if all(label in found for found in labels.values())]
    if not both:
        exit_with_error(
            "report.review_tiles: no land-cover class has both real test tiles and generated images"
        )
    tiles = [
        (truth, place)
        for truth, found in labels.items()
        for place in chosen(found, both, p.report.review_tiles // 2, rng(p.seed, "review", truth))
    ]
    tiles = [tiles[i] for i in rng(p.seed, "review", "order").permutation(len(tiles))]
    files = encoded(tiles)
    # A letter first: a spreadsheet would turn 12e45 into a number.
    run = "r" + hashlib.sha256(b"".join(files)).hexdigest()[:10]
    names = [f"t{number:03d}" for number in range(1, len(files) + 1)]

    with atomic_folder(OUT) as out:
        (out / "tiles").mkdir()
        for name, content in zip(names, files):
            (out / "tiles" / f"{name}.jpg").write_bytes(content)
        text = templates.render(
            "review.html", {}, run=run, tiles=names, classes=list(p.classes), artifacts=ARTIFACTS
        )
        (out / "index.html").write_text(text, encoding="utf-8")
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerows(
        [
            KEY_COLUMNS,
            *(
                (run, name, truth, labels[truth][place])
                for name, (truth, place) in zip(names, tiles)
            ),
        ]
    )
    write_atomically(KEY, sink.getvalue().encode())
    log(f"review_page: {len(names)} tiles of {len(both)} classes in {OUT}, the key in {KEY}")


def chosen(
    labels: list[str], classes: list[str], count: int, draws: np.random.Generator
) -> list[int]:
    """Rows drawn at random, class after class, `count` of them or as many as there are."""
    waiting = {
        label: [
            int(i)
            for i in draws.permutation([i for i, other in enumerate(labels) if other == label])
        ]
        for label in classes
    }
    found = []
    while len(found) < count and any(waiting.values()):
        found += [places.pop() for places in waiting.values() if places][: count - len(found)]
    return found


def encoded(tiles: list[tuple[str, int]]) -> list[bytes]:
    """The tiles as JPEG files of one size in pixels, one quality and one length in bytes."""
    images = {
        truth: pictures(folder, {place for other, place in tiles if other == truth}, LARGEST)
        for truth, folder in (("real", REAL), ("generated", SYNTHETIC))
    }
    side = min(min(image.size) for found in images.values() for image in found.values())
    files = []
    for truth, place in tiles:
        sink = io.BytesIO()
        images[truth][place].resize((side, side), Image.Resampling.LANCZOS).save(
            sink, "JPEG", quality=92, subsampling=0
        )
        files.append(sink.getvalue())
    longest = max(map(len, files))
    return [
        content.ljust(longest, b"\0") for content in files
    ]  # what follows a JPEG's end is ignored


if __name__ == "__main__":
    run_stage(main, __doc__)
