"""`python -m stages.embedded.scenes out.png --size 64 --look domain`: a contact sheet."""

import argparse

import numpy as np
from PIL import Image

from . import SCENES, render


def sheet(
    size: int, look: str, seed: int, columns: int, scenes: tuple[str, ...], zoom: int
) -> Image.Image:
    """Rows are scenes, columns are indices."""
    cell = size * zoom + 4
    page = np.full((cell * len(scenes), cell * columns, 3), 255, np.uint8)
    for row, scene in enumerate(scenes):
        for col in range(columns):
            image = render(scene, seed, col, size, look)[0].repeat(zoom, 0).repeat(zoom, 1)
            page[row * cell : row * cell + size * zoom, col * cell : col * cell + size * zoom] = (
                image
            )
    return Image.fromarray(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--look", default="domain", choices=["domain", "base"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--scenes", nargs="*", default=list(SCENES))
    args = parser.parse_args()
    zoom = max(1, 192 // args.size)
    sheet(args.size, args.look, args.seed, args.columns, tuple(args.scenes), zoom).save(args.out)


if __name__ == "__main__":
    main()
