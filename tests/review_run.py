"""A repository in which the review page can be made, of any classes: noise as images."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from conftest import smoke_params
from PIL import Image

from stages.common.artifacts import IMAGE, encode_png, write_shards
from stages.common.class_names import slug

ODD_NAMES = [
    'The "old" town',
    "Roads, rails; ports",
    "Bare / sparse <b>vegetation</b>",
    "\u6c34\u4f53",
    "For\u00eat \N{EVERGREEN TREE}",
    "Marsh & moor's edge 100%",
    "\u063a\u0627\u0628\u0629",
]


def write_params(root: Path, names: list[str], tiles: int) -> None:
    """Write params.yaml at smoke scale with these classes, of a scene and a prompt each.

    Args:
        root: the repository.
        names: of the classes.
        tiles: that an expert rates.
    """
    params = yaml.safe_load(smoke_params())
    params["classes"] = {name: [f"{slug(name)} tile"] for name in names}
    params["prompt"] |= {"per_class": 1, "words": {}}
    params["report"]["review_tiles"] = tiles
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def make_classes(root: Path, names: list[str], tiles: int, generated: list[str]) -> None:
    """Write what the page reads: a tile per class, an image of each generated class.

    Args:
        root: the repository.
        names: of the classes.
        tiles: that an expert rates.
        generated: classes that have an image.
    """
    generator = np.random.default_rng(0)

    def draw_image() -> dict:
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return {"bytes": encode_png(Image.fromarray(pixels)), "path": None}

    write_params(root, names, tiles)
    scenes = [f"{slug(name)} tile" for name in names]
    for folder, column, values in (
        ("data/imagery/test", "scene", scenes),
        ("data/synthetic", "label", generated),
    ):
        rows = [{"image": draw_image(), column: value} for value in values]
        schema = pa.schema([("image", IMAGE), (column, pa.string())])
        write_shards(root / folder, rows, schema)
