"""Read images from Parquet tables, such as those of Hugging Face data sets.

A table has the column `image` ({bytes, path} or bytes) and, by any of the names below, columns of
captions, file names and scenes.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.imagery.readers.items import (
    SPLIT_NAMES,
    ImageSource,
    SourceItem,
    skipped_file,
    split_folder,
)
from stages.imagery.untrusted_text import parse_json_object, valid_utf8
from stages.runtime.errors import exit_with_error

CAPTION_COLUMNS = ("captions", "caption", "text")
NAME_COLUMNS = ("filename", "file_name")
SCENE_COLUMNS = ("scene", "label")
# The Arrow types of encoded images. "null": no row has an image.
IMAGE_TYPES = ("binary", "large_binary", "fixed_size_binary", "dictionary<values=binary", "null")
ROWS_PER_BATCH = 4096
ROWS_PER_BATCH_WITH_IMAGES = 64


class Table(NamedTuple):
    """A Parquet file and its schema."""

    path: Path
    label: str  # the start of error messages
    split: str | None
    caption_column: str | None
    name_column: str | None
    scene_column: str | None
    has_image_path: bool  # `image` is a struct with the field `path`
    class_names: list  # of an integer scene column; [] where the schema has none

    def columns(self, with_images: bool) -> list[str]:
        """The columns to read. Without images, `image` is read for its path only, if it has one."""
        columns = [self.caption_column, self.name_column, self.scene_column]
        if with_images:
            columns.append("image")
        elif self.has_image_path:
            columns.append("image.path")
        return [column for column in columns if column is not None]


def open_parquet(files: list[Path], images: list[Path], root: Path, key: str) -> ImageSource:
    """A source of Parquet tables.

    Args:
        files: the tables.
        images: image files beside the tables, which are skipped.
        root: the folder of the source.
        key: the params key of the source, for error messages.

    Raises:
        SystemExit: a table cannot be read, or has no column of encoded images.
    """
    tables = [_open_table(file, root, key, only_table=len(files) == 1) for file in files]
    has_captions = any(table.caption_column for table in tables)
    return ImageSource(files, partial(_read_items, tables, images, root), has_captions)


def _open_table(path: Path, root: Path, key: str, only_table: bool) -> Table:
    """Read the schema of a table. Exits with an error if it has no column of encoded images."""
    label = f"{key}: {path.relative_to(root)}"
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        # ValueError: the file name is not UTF-8.
        exit_with_error(f"{label} cannot be read: {str(error).splitlines()[0]}")
    if "image" not in schema.names:
        exit_with_error(f"{label} has no column `image`; it has {', '.join(schema.names)}")
    image_type = schema.types[schema.names.index("image")]
    if pa.types.is_struct(image_type):
        fields = {field.name: str(field.type) for field in image_type}
    else:
        fields = {"bytes": str(image_type)}
    if not fields.get("bytes", "").startswith(IMAGE_TYPES):
        exit_with_error(
            f"{label}: column `image` holds {image_type}, not encoded images (bytes, or a struct "
            "{bytes, path})"
        )
    scene_column = _first_column(SCENE_COLUMNS, schema)
    return Table(
        path,
        label,
        split=_split(path, root, only_table),
        caption_column=_first_column(CAPTION_COLUMNS, schema),
        name_column=_first_column(NAME_COLUMNS, schema),
        scene_column=scene_column,
        has_image_path="path" in fields,
        class_names=_class_names(schema, scene_column),
    )


def _first_column(names: tuple[str, ...], schema: pa.Schema) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _split(path: Path, root: Path, only_table: bool) -> str | None:
    """The split of a table, which its file name or a folder tells.

    It is `train` for train.parquet, data/train-00000-of-00002.parquet, train/00000.parquet and
    train/part-0.parquet.
    """
    name = path.stem.partition("-")[0]
    folders = path.relative_to(root).parts[:-1]
    if name.lower() not in SPLIT_NAMES and split_folder(folders):
        return split_folder(folders)
    if name.isdigit():
        return folders[-1] if folders else None
    if only_table and name not in SPLIT_NAMES:
        return None
    return name


def _class_names(schema: pa.Schema, column: str | None) -> list:
    """The names of an integer column's values, which `datasets` writes into the schema.

    See its `ClassLabel` feature. [] where the schema has none.
    """
    value: Any = parse_json_object((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", column, "names"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, list) else []


def _read_items(
    tables: list[Table], images: list[Path], root: Path, with_images: bool
) -> Iterator[SourceItem]:
    """Yield an item per row, then one for each image file beside the tables."""
    for table in tables:
        for row_number, row in enumerate(_read_rows(table, with_images)):
            yield _item(table, row_number, row)
    for file in images:
        yield skipped_file(file, root, "image beside Parquet tables")


def _read_rows(table: Table, with_images: bool) -> Iterator[dict]:
    """Yield the rows of a table.

    A damaged page ends the stage, because what was in it can be neither named nor counted.
    """
    columns = table.columns(with_images)
    batch_size = ROWS_PER_BATCH_WITH_IMAGES if with_images else ROWS_PER_BATCH
    try:
        for batch in pq.ParquetFile(table.path).iter_batches(batch_size, columns=columns):
            yield from batch.to_pylist() if columns else [{}] * len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        exit_with_error(f"{table.label} is damaged: {error}")


def _item(table: Table, row_number: int, row: dict) -> SourceItem:
    cell = row.get("image")
    if not isinstance(cell, dict):
        cell = {"bytes": cell}
    name = row.get(table.name_column) or cell.get("path") or f"{table.path.stem}-{row_number:07d}"
    scene = row.get(table.scene_column)
    if isinstance(scene, int):
        scene = _class_name(scene, table.class_names)
    return SourceItem(
        split=table.split,
        name=valid_utf8(str(name)),
        captions=row.get(table.caption_column),
        scene=None if scene is None else valid_utf8(str(scene)),
        image=cell.get("bytes"),
    )


def _class_name(label: int, class_names: list) -> Any:
    """The name of an integer label, or the label itself where the schema has no name for it."""
    if label < 0:  # -1 is the hub's "no label"
        return None
    return class_names[label] if label < len(class_names) else label
