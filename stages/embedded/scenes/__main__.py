"""Draw a contact sheet of the scenes.

    python -m stages.embedded.scenes sheet.png --size 64 --look domain

Rows are scenes, columns are tiles.
"""

import argparse

import numpy as np
from PIL import Image

from .canvas import LOOKS
from .render import SCENES, render

SHOWN_SIZE = 192  # pixels per side that small tiles are enlarged to
MARGIN = 4  # pixels between tiles


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.embedded.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the picture to write")
    parser.add_argument("--size", type=int, default=64, help="pixels per side of a tile")
    parser.add_argument("--look", default="domain", choices=LOOKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=10, help="tiles per scene")
    parser.add_argument("--scenes", nargs="*", default=list(SCENES), choices=SCENES)
    options = parser.parse_args()
    sheet = contact_sheet(options.size, options.look, options.seed, options.columns, options.scenes)
    sheet.save(options.file)


def contact_sheet(size: int, look: str, seed: int, columns: int, scenes: list[str]) -> Image.Image:
    """The first tiles of each scene, enlarged by whole factors."""
    zoom = max(1, SHOWN_SIZE // size)
    shown = size * zoom
    cell = shown + MARGIN
    sheet = np.full((cell * len(scenes), cell * columns, 3), 255, np.uint8)
    for row, scene in enumerate(scenes):
        for column in range(columns):
            tile, _ = render(scene, seed, column, size, look)  # [size, size, 3]
            top = row * cell
            left = column * cell
            sheet[top : top + shown, left : left + shown] = tile.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(sheet)


if __name__ == "__main__":
    main()
