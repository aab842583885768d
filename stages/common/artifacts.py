"""The files that stages hand to each other: JSON, Parquet shards of images, content hashes.

Every file is written atomically: it appears complete or not at all.
"""

import hashlib
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# The Hugging Face `Image` feature, which `datasets` decodes to a picture.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# A shard ends at this many rows or image bytes. A million images then make few files, which keeps
# DVC fast, and a shard fits in memory.
SHARD_ROWS = 1024
SHARD_BYTES = 64 * 2**20


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with keys in the given order and a newline at the end."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8.

    Raises:
        OSError: it can't be read, or holds something else, such as the marks of a merge conflict.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise OSError(f"{path}: not valid JSON: {error}") from error


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old file or the new one, never a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write one Parquet file atomically. The same rows give the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as an RGB PNG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(folder: str | Path, number: int, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows to `<folder>/<number, 5 digits>.parquet`.

    `schema` may have `IMAGE` columns, whose values are {bytes, path}.
    """
    features = {field.name: _datasets_feature(field.type) for field in schema}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist(rows, schema.with_metadata(metadata))
    write_table(Path(folder) / f"{number:05d}.parquet", table)


def write_shards(folder: str | Path, rows: Iterable[dict], schema: pa.Schema) -> None:
    """Stream rows into shards. No rows give one empty shard."""
    shard: list[dict] = []
    shard_bytes = 0
    shard_number = 0
    for row in rows:
        shard.append(row)
        if "image" in row:
            shard_bytes += len(row["image"]["bytes"])
        if len(shard) == SHARD_ROWS or shard_bytes >= SHARD_BYTES:
            write_shard(folder, shard_number, shard, schema)
            shard = []
            shard_bytes = 0
            shard_number += 1
    if shard or not shard_number:
        write_shard(folder, shard_number, shard, schema)


def _datasets_feature(data_type: pa.DataType) -> dict:
    """The `datasets` feature of an Arrow type, as its JSON."""
    if data_type == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(data_type):
        return {field.name: _datasets_feature(field.type) for field in data_type}
    if pa.types.is_list(data_type):
        return {"_type": "List", "feature": _datasets_feature(data_type.value_type)}
    return {"_type": "Value", "dtype": str(data_type)}


def shard_paths(folder: str | Path) -> list[Path]:
    """The Parquet shards of a folder, in row order.

    Raises:
        FileNotFoundError: the folder has none.
    """
    shards = sorted(Path(folder).glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder}: no Parquet shards")
    return shards


def read_rows(
    folder: str | Path, columns: list[str] | None = None, optional: Collection[str] = ()
) -> list[dict]:
    """All rows of a folder of shards. With `image` among the columns they may fill the memory.

    Args:
        folder: the shards.
        columns: those to read; None: all.
        optional: further ones that the shards need not have.
    """
    shards = shard_paths(folder)
    if columns is not None:
        columns = columns + [name for name in pq.read_schema(shards[0]).names if name in optional]
    return [row for shard in shards for row in pq.read_table(shard, columns=columns).to_pylist()]


def stream_rows(
    folder: str | Path, columns: list[str] | None = None, batch: int = 64
) -> Iterator[dict]:
    """Yield the rows of a folder of shards, with `batch` rows in memory at a time."""
    for shard in shard_paths(folder):
        for records in pq.ParquetFile(shard).iter_batches(batch, columns=columns):
            yield from records.to_pylist()


def decode_image(cell: dict) -> Image.Image:
    """Decode the `image` cell of a row to an RGB image."""
    return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")


def digest(*paths: str | Path) -> str:
    """A hash (16 hex digits) of the bytes of files, and of the names and bytes of folders' files.

    Args:
        paths: files, whose own names don't count, and folders, with all that is below them.
    """
    sha256 = hashlib.sha256()
    for root in map(Path, paths):
        if root.is_dir():
            files = sorted(path for path in root.rglob("*") if path.is_file())
        else:
            files = [root]
        for file in files:
            sha256.update(str(file.relative_to(root)).encode() + b"\0")
            with open(file, "rb") as stream:
                sha256.update(hashlib.file_digest(stream, "sha256").digest())
    return sha256.hexdigest()[:16]


def fingerprint(settings: dict, inputs: list[str | Path]) -> str:
    """A hash (16 hex digits) of settings and of the input files and folders."""
    text = json.dumps(settings, sort_keys=True, default=str)
    text += "".join(digest(path) for path in inputs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
