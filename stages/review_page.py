"""The blind review: a page on which an expert rates real and generated tiles.

    python -m stages.review_page

reads   report.review_tiles, classes, seed; data/imagery/test, data/synthetic
writes  metrics/review/         index.html and tiles/: an expert opens the page, rates, and sends
                                the CSV that it saves back
        metrics/review_key.csv  run, tile, truth, label: the answers, which stay here;
                                `python -m tools.review add` reads them. Rows without a tile name
                                the classes that the page offers, but that none of its tiles shows

Half of the tiles are real, half generated, in each of the classes that have both; the page offers
every class that has generated images. All tiles are scaled and JPEG-encoded in the same way and
padded to the same number of bytes, so that neither class, name, size, order nor metadata gives the
answer away.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.artifacts import read_rows
from stages.common.csv_files import write_csv
from stages.common.rng import rng
from stages.params import load
from stages.reporting import templates
from stages.reporting.grids import load_scaled_images
from stages.reporting.ratings import ARTIFACTS, CANNOT_TELL, KEY, KEY_COLUMNS
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

FOLDERS = {"real": Path("data/imagery/test"), "generated": Path("data/synthetic")}
OUT = Path("metrics/review")
MAX_SIDE = 512  # pixels of a tile
# Letters that choose a class, from the keyboard's bottom row up; the page uses the others.
CLASS_KEYS = "zxcvbnmasdfhjlqwety"


def main() -> None:
    params = load()
    class_of = {scene: label for label, scenes in params.classes.items() for scene in scenes}
    scenes = [row["scene"] for row in read_rows(FOLDERS["real"], ["scene"])]
    labels: dict[str, list[str | None]] = {
        "real": [class_of.get(scene) for scene in scenes],
        "generated": [row["label"] for row in read_rows(FOLDERS["generated"], ["label"])],
    }
    offered = [label for label in params.classes if label in labels["generated"]]
    classes = [label for label in offered if label in labels["real"]]
    if not classes:
        exit_with_error(
            "report.review_tiles: no class has both real test tiles and generated images"
        )

    # Draw the tiles and their order: (truth, row number in its folder).
    tiles = []
    count = params.report.review_tiles // 2  # of each truth
    classes = draw_classes(classes, count, rng(params.seed, "review", "classes"))
    limits = {label: min(labels[truth].count(label) for truth in FOLDERS) for label in classes}
    for truth in FOLDERS:
        generator = rng(params.seed, "review", truth)
        rows = draw_rows(labels[truth], limits, count, generator)
        tiles += [(truth, row) for row in rows]
    if len(tiles) < 2 * count:
        log(
            f"review_page: {len(tiles)} tiles, not {2 * count}: of each class, as many real test "
            "tiles as generated images are shown, and there are too few of one of them"
        )
    order = rng(params.seed, "review", "order").permutation(len(tiles))
    tiles = [tiles[i] for i in order]
    files = encode_tiles(tiles)

    # A letter first: a spreadsheet would turn 12e45 into a number. Answers that name the classes of
    # another label set are another run's.
    run = "r" + hashlib.sha256(b"".join([*files, *map(str.encode, offered)])).hexdigest()[:10]
    names = [f"t{number:03d}" for number in range(1, len(files) + 1)]
    with atomic_folder(OUT) as out:
        (out / "tiles").mkdir()
        for name, content in zip(names, files):
            (out / "tiles" / f"{name}.jpg").write_bytes(content)
        page = templates.render(
            "review.html",
            {},
            run=run,
            tiles=names,
            classes=list(zip(offered, class_keys(len(offered)))),
            artifacts=ARTIFACTS,
            cannot_tell=CANNOT_TELL,
        )
        (out / "index.html").write_text(page, encoding="utf-8")
    key = [(run, name, truth, labels[truth][row]) for name, (truth, row) in zip(names, tiles)]
    shown = {label for *_, label in key}
    key += [(run, "", "", label) for label in offered if label not in shown]
    write_csv(KEY, [dict(zip(KEY_COLUMNS, row)) for row in key], KEY_COLUMNS)
    log(f"review_page: {len(names)} tiles of {len(classes)} classes in {OUT}, the key in {KEY}")


def class_keys(count: int) -> list[str]:
    """Return the keys that choose each class: a letter or, for many, a letter and then a digit."""
    if count <= len(CLASS_KEYS):
        return list(CLASS_KEYS[:count])
    return [letter + digit for letter in sorted(CLASS_KEYS) for digit in "1234567890"][:count]


def draw_classes(classes: list[str], count: int, generator: np.random.Generator) -> list[str]:
    """Draw `count` classes at random, in their order, where there are more than that."""
    if len(classes) <= count:
        return classes
    return [classes[i] for i in sorted(generator.permutation(len(classes))[:count])]


def draw_rows(
    labels: list[str | None], limits: dict[str, int], count: int, generator: np.random.Generator
) -> list[int]:
    """Draw up to `count` row numbers at random, from each class in turn.

    Args:
        labels: class of each row; rows of no class are not drawn.
        limits: class to draw from -> how many rows of it, at most.
        count: how many, where there are as many.
        generator: of the random numbers.
    """
    remaining = {}
    for label, limit in limits.items():
        rows = [number for number, other in enumerate(labels) if other == label]
        remaining[label] = [int(number) for number in generator.permutation(rows)][-limit:]
    drawn: list[int] = []
    while len(drawn) < count and any(remaining.values()):
        drawn += [rows.pop() for rows in remaining.values() if rows]
    return drawn[:count]


def encode_tiles(tiles: list[tuple[str, int]]) -> list[bytes]:
    """Encode tiles as JPEG files of the same size in pixels, quality and length in bytes.

    Args:
        tiles: (truth, row number in its folder).
    """
    images = {}
    for truth, folder in FOLDERS.items():
        rows = {row for other, row in tiles if other == truth}
        for row, image in load_scaled_images(folder, rows, MAX_SIDE).items():
            images[truth, row] = image
    side = min(min(image.size) for image in images.values())
    files = []
    for tile in tiles:
        sink = io.BytesIO()
        image = images[tile].resize((side, side), Image.Resampling.LANCZOS)
        image.save(sink, "JPEG", quality=92, subsampling=0)
        files.append(sink.getvalue())
    length = max(map(len, files))
    # Image readers ignore what follows the end of a JPEG.
    return [content.ljust(length, b"\0") for content in files]


if __name__ == "__main__":
    run_stage(main, __doc__)
