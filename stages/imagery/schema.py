"""The columns of the Parquet shards that hold captioned images."""

from collections.abc import Iterable

import pyarrow as pa

from stages.common.artifacts import IMAGE

IMAGERY_SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("captions", pa.list_(pa.string())),
        ("scene", pa.string()),
        ("filename", pa.string()),
    ]
)
FURTHER_FIELDS = [
    pa.field("crs", pa.string()),
    pa.field("bounds", pa.list_(pa.float64())),  # left, bottom, right, top
    pa.field("gsd", pa.float64()),  # meters per pixel of the tile
    pa.field("date", pa.string()),  # YYYY-MM-DD
    pa.field("site", pa.string()),  # the ground of a tile cut from a scene: scene_splits.py
    pa.field("label_share", pa.float64()),  # of a label raster's pixels: those of the scene's class
]


def imagery_schema(columns: Iterable[str]) -> pa.Schema:
    """The schema of tiles whose source has these further columns."""
    fields = [field for field in FURTHER_FIELDS if field.name in columns]
    return pa.schema([*IMAGERY_SCHEMA, *fields])
