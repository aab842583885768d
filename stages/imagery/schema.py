"""The columns of the Parquet shards that hold captioned images."""

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
