"""Files that stages hand to each other: JSON, Parquet shards of images, digests. Everything appears whole or not at all."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# The Hugging Face `Image` feature: what `datasets` reads back as a picture.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# A shard ends at so many rows or so many image bytes: few files keep DVC and a million images fast, and one fits in memory.
SHARD_ROWS, SHARD_BYTES = 1024, 64 * 2**20


def write_json(path: str | Path, value) -> None:
    """Write JSON for people and for git: indented, keys in the given order, a newline at the end."""
    write_atomically(
        path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    )


def read_json(path: str | Path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write one Parquet file, atomically and with the same bytes for the same rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue())


def encode_png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.convert("RGB").save(sink, "PNG")
    return sink.getvalue()


def write_shard(folder: str | Path, number: int, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows to `folder/00000.parquet`. `schema` may hold `IMAGE` columns, whose values are {bytes, path}."""
    features = {"info": {"features": {f.name: _feature(f.type) for f in schema}}}
    schema = schema.with_metadata({"huggingface": json.dumps(features)})
    write_table(Path(folder) / f"{number:05d}.parquet", pa.Table.from_pylist(rows, schema))


def write_shards(folder: str | Path, rows: Iterable[dict], schema: pa.Schema) -> int:
    """Stream rows into shards; returns how many rows were written (no rows: one empty shard)."""
    batch, size, number, total = [], 0, 0, 0
    for row in rows:
        batch.append(row)
        size += len(row["image"]["bytes"]) if "image" in row else 0
        if len(batch) == SHARD_ROWS or size >= SHARD_BYTES:
            write_shard(folder, number, batch, schema)
            total += len(batch)
            batch, size, number = [], 0, number + 1
    if batch or not total:
        write_shard(folder, number, batch, schema)
    return total + len(batch)


def _feature(kind: pa.DataType) -> dict:
    """The `datasets` feature of an Arrow type."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    return {"_type": "Value", "dtype": str(kind)}


def shard_paths(folder: str | Path) -> list[Path]:
    """The Parquet shards of a folder, in row order. Raises FileNotFoundError where there is none."""
    found = sorted(Path(folder).glob("*.parquet"))
    if not found:
        raise FileNotFoundError(f"{folder}: no Parquet shards")
    return found


def read_rows(folder: str | Path, columns: list[str] | None = None) -> list[dict]:
    """All rows of a folder of shards. Leave out `image` from `columns` to stay small."""
    return [
        row
        for path in shard_paths(folder)
        for row in pq.read_table(path, columns=columns).to_pylist()
    ]


def stream_rows(
    folder: str | Path, columns: list[str] | None = None, batch: int = 64
) -> Iterator[dict]:
    """The rows of a folder of shards, a few in memory at a time."""
    for path in shard_paths(folder):
        for records in pq.ParquetFile(path).iter_batches(batch, columns=columns):
            yield from records.to_pylist()


def decode_image(cell: dict) -> Image.Image:
    """Decode the `image` cell of a row."""
    return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")


def digest(*paths: str | Path) -> str:
    """SHA-256 (16 hex digits) over the names and bytes of files and of everything inside folders."""
    total = hashlib.sha256()
    for root in map(Path, paths):
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for file in files:
            total.update(str(file.relative_to(root)).encode() + b"\0")
            with open(file, "rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def fingerprint(settings: dict, inputs: list[str | Path]) -> str:
    """16 hex digits that change with any setting or with any byte of an input file or folder."""
    text = json.dumps(settings, sort_keys=True, default=str) + "".join(
        digest(path) for path in inputs
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
