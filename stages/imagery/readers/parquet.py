"""Read images from Parquet tables, such as those of Hugging Face data sets.

A table has the column `image` ({bytes, path} or bytes) and, by any of their names, columns of
captions, file names and scenes. Rows may be of one image, each with another caption.

`datasets` stores the base name of an image file only, so that images of several folders have the
same name: then their contents tell them apart.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.imagery.captions import caption_fields, misnamed_captions, row_captions
from stages.imagery.readers.items import (
    NAME_FIELDS,
    PLURAL_SCENE_FIELDS,
    SCENE_FIELDS,
    SEVERAL_LABELS,
    ImageSource,
    SourceItem,
    first_field,
    flag_fields,
    holds_several_labels,
    label_value,
    misnamed_split,
    skipped_file,
    split_folder,
    split_value,
    split_word,
    standard_split,
)
from stages.imagery.untrusted_text import parse_json_object, posix_path, valid_utf8
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

# The Arrow types of encoded images. "null": no row has an image.
IMAGE_TYPES = ("binary", "large_binary", "fixed_size_binary", "dictionary<values=binary", "null")
ROWS_LOOKED_AT = 100  # for captions in columns of other names
# The Arrow types of flags, such as one-hot labels.
NUMBERS = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
ROWS_PER_BATCH = 4096
ROWS_PER_BATCH_WITH_IMAGES = 64


class Table(NamedTuple):
    """A Parquet file and its schema."""

    path: Path
    label: str  # the start of error messages
    row_name: str  # what rows without a name are called, before their number
    split: str | None
    caption_columns: list[str]
    name_column: str | None
    scene_column: str | None
    split_column: str | None
    text_columns: list[str]  # of strings, or lists of them
    has_image_path: bool  # `image` is a struct with the field `path`
    class_names: list  # of an integer scene column; [] where the schema has none
    split_names: list  # the same of the split column
    schema: pa.Schema

    def columns(self, with_images: bool) -> list[str]:
        """The columns to read. Without images, `image` is read for its path only, if it has one."""
        columns = [
            *self.caption_columns,
            self.name_column,
            self.scene_column,
            self.split_column,
        ]
        if with_images:
            columns.append("image")
        elif self.has_image_path:
            columns.append("image.path")
        return [column for column in columns if column is not None]


def open_parquet(
    files: list[Path],
    images: list[Path],
    root: Path,
    key: str,
    caption: str | None,
    images_only: bool,
) -> ImageSource:
    """A source of Parquet tables.

    Args:
        files: the tables.
        images: image files and lists beside the tables, which are skipped.
        root: the folder of the source.
        key: the params key of the source, for error messages.
        caption: of the images in tables without captions and scenes; None: these are skipped.
        images_only: captions and classes may be missing, or have other names.

    Raises:
        SystemExit: a table cannot be read, has no column of encoded images, holds the paths of
            images alone, has several labels per tile, or is partitioned by its labels.
    """
    splits = _splits(files, root)
    tables = [_open_table(file, root, key, split) for file, split in zip(files, splits)]
    _refuse_paths(tables[0])
    if not images_only:
        _refuse_label_partitions(tables, root)
    _log_joined_folders(tables, root, key)
    _refuse_lists_in_text(tables)
    has_captions = any(table.caption_columns for table in tables)
    _refuse_label_lists(tables)
    if not has_captions and not images_only:
        if caption is None:
            _refuse_one_hot_labels(tables)
        _refuse_misnamed_captions(tables)
    read_items = partial(_read_items, tables, _shared_names(tables), images, root, caption)
    return ImageSource(
        files,
        read_items,
        has_captions,
        columns=tables[0].schema.names,
        misnamed_split=_find_misnamed_split(tables),
    )


def _open_table(path: Path, root: Path, key: str, split: str | None) -> Table:
    """Read the schema of a table. Exits with an error if it has no column of encoded images."""
    label = f"{key}: {path.relative_to(root)}"
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        # ValueError: the file name is not UTF-8.
        exit_with_error(f"{label} cannot be read: {str(error).splitlines()[0]}")
    if "image" not in schema.names:
        exit_with_error(
            f"{label} has no column `image`; it has {', '.join(schema.names)} (a list of image "
            "files is named metadata.parquet)"
        )
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
    scene_column = first_field(SCENE_FIELDS, schema.names)
    split_column = first_field(("split",), schema.names)
    if scene_column is not None and _is_list(schema.field(scene_column).type):
        exit_with_error(f"{label}: column {scene_column!r}: {SEVERAL_LABELS}")
    return Table(
        path,
        label,
        row_name=valid_utf8(path.relative_to(root).with_suffix("").as_posix()),
        split=split,
        caption_columns=caption_fields(schema.names),
        name_column=first_field(NAME_FIELDS, schema.names),
        scene_column=scene_column,
        split_column=split_column,
        text_columns=[f.name for f in schema if "string" in str(f.type) and f.name != "image"],
        has_image_path="path" in fields,
        class_names=_class_names(schema, scene_column),
        split_names=_class_names(schema, split_column),
        schema=schema,
    )


def _refuse_paths(table: Table) -> None:
    """Exit with an error if the first rows of a table hold the paths of images, not the images.

    `datasets` writes such a table of images that it has not copied (`to_parquet` of an
    `imagefolder`).
    """
    rows = islice(_read_rows(table, ["image"]), ROWS_LOOKED_AT)
    cells = map(_image_cell, rows)
    if {cell.get("bytes") is None and bool(cell.get("path")) for cell in cells} == {True}:
        exit_with_error(
            f"{table.label}: column `image` holds the paths of images, not the images: write "
            "metadata.csv (file_name, text, ...) into their folder in place of the table, or write "
            "the table by `dataset.save_to_disk(folder)` and "
            "`datasets.load_from_disk(folder).to_parquet(file)`"
        )


def _log_joined_folders(tables: list[Table], root: Path, key: str) -> None:
    """Log the folders that hold tables of one split: these may be several versions of a data set.

    On the hub, such folders are configurations, of which `datasets` loads one.
    """
    folders_of: dict[str | None, set[str]] = {}  # of each split
    for table in tables:
        folders = list(table.path.relative_to(root).parts[:-1])
        if split := split_folder(folders):
            folders.remove(split)
        folders_of.setdefault(table.split, set()).add("/".join(folders) or ".")
    joined = sorted(set().union(*(found for found in folders_of.values() if len(found) > 1)))
    if joined:
        log(
            f"{key}: the tables in {', '.join(joined)} are read as one data set; if they are "
            "versions of one (configurations of the hub), name the folder of one by path:"
        )


def _refuse_lists_in_text(tables: list[Table]) -> None:
    """Exit with an error if the scene column holds lists written as text."""
    for table in tables:
        columns = [name for name in table.text_columns if name == table.scene_column]
        for row in islice(_read_rows(table, columns), ROWS_LOOKED_AT):
            if any(map(holds_several_labels, row.values())):
                exit_with_error(f"{table.label}: column {columns[0]!r}: {SEVERAL_LABELS}")


def _is_list(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(type_) for is_kind in kinds)


def _refuse_label_lists(tables: list[Table]) -> None:
    """Exit with an error if a table without scenes has lists of labels."""
    for table in tables:
        plural = first_field(PLURAL_SCENE_FIELDS, table.schema.names)
        is_list = plural is not None and _is_list(table.schema.field(plural).type)
        if table.scene_column is None and is_list:
            exit_with_error(f"{table.label}: column {plural}: {SEVERAL_LABELS}")


def _refuse_label_partitions(tables: list[Table], root: Path) -> None:
    """Exit with an error if folders hold the labels (label=forest/0.parquet), not the tables."""
    for table in tables:
        for folder in table.path.relative_to(root).parts[:-1]:
            name, equals, _ = folder.partition("=")
            if equals and name.lower() in SCENE_FIELDS and table.scene_column is None:
                exit_with_error(
                    f"{table.label}: a table partitioned by {name!r} is not read: write it as a "
                    "file, `pandas.read_parquet(folder).to_parquet(file)`"
                )


def _refuse_one_hot_labels(tables: list[Table]) -> None:
    """Exit with an error if a table without scenes has columns of 0 and 1."""
    for table in tables:
        labels = [] if table.scene_column is not None else _one_hot_columns(table)
        if labels:
            names = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
            exit_with_error(f"{table.label}: column {names}: {SEVERAL_LABELS}")


def _one_hot_columns(table: Table) -> list[str]:
    """The columns that hold 0 and 1, or true and false, alone; [] if there are fewer than two."""
    return flag_fields(islice(_read_rows(table, _number_columns(table)), ROWS_LOOKED_AT))


def _number_columns(table: Table) -> list[str]:
    return [field.name for field in table.schema if any(is_kind(field.type) for is_kind in NUMBERS)]


def _refuse_misnamed_captions(tables: list[Table]) -> None:
    """Exit with an error if a column that isn't called so seems to hold captions."""
    for table in tables:
        known = (table.name_column, table.scene_column)
        columns = [name for name in table.text_columns if name not in known]
        rows = islice(_read_rows(table, columns), ROWS_LOOKED_AT)
        if column := misnamed_captions(rows):
            exit_with_error(
                f"{table.label}: its column {column!r} seems to hold captions: name it `text`"
            )


def _find_misnamed_split(tables: list[Table]) -> str | None:
    """The first column of tables without `split` that seems to hold splits."""
    if any(table.split_column is not None for table in tables):
        return None
    rows: Iterator[dict] = iter(())
    for table in tables:
        known = (*table.caption_columns, table.name_column, table.scene_column)
        columns = [
            name for name in (*table.text_columns, *_number_columns(table)) if name not in known
        ]
        rows = chain(rows, _read_rows(table, columns) if columns else ())
    return misnamed_split(rows)


def _splits(paths: list[Path], root: Path) -> list[str | None]:
    """The split of each table, which its file name or a folder tells.

    It is `train` for train.parquet, data/train-00000-of-00002.parquet, train/part-0.parquet,
    EuroSAT-train-00000-of-00001.parquet and, where a folder of each table has the word of a split,
    EuroSAT_train/00000.parquet: beside site_a, test_site is no split.
    """
    folders_of = [path.relative_to(root).parts[:-1] for path in paths]
    have_words = all(any(map(split_word, folders)) for folders in folders_of)
    only_table = len(paths) == 1
    return [
        _split(path.stem, folders, have_words, only_table)
        for path, folders in zip(paths, folders_of)
    ]


def _split(stem: str, folders: Sequence[str], have_words: bool, only_table: bool) -> str | None:
    """The split of one table: of the beginning of its name, a folder, or a word in its name.

    Else the name up to the first "-" is its split; of a numbered table, the last folder; of the
    only table, there is none.

    Args:
        stem: the file's name without suffix.
        folders: those above the file, from the source's down.
        have_words: a folder of each table has the word of a split: such words count, too.
        only_table: the source has no other.
    """
    name = stem.partition("-")[0]
    if standard_split(name):
        return name
    words = map(split_word, (stem, *folders) if have_words else (stem,))
    if split := split_folder(folders) or next(filter(None, words), None):
        return split
    if name.isdigit():
        return folders[-1] if folders else None
    return None if only_table else name


def _class_names(schema: pa.Schema, column: str | None) -> list:
    """The names of an integer column's values, which `datasets` writes into the schema.

    See its `ClassLabel` feature. [] where the schema has none.
    """
    value: Any = parse_json_object((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", column, "names"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, list) else []


def _read_items(
    tables: list[Table],
    shared: set[str | None],
    images: list[Path],
    root: Path,
    caption: str | None,
    with_images: bool,
) -> Iterator[SourceItem]:
    """Yield an item per row, then one for each image file or list beside the tables.

    Where rows have a class, a row without one has none, whatever its file is named.
    """
    read_bytes = with_images or bool(shared)
    has_classes = any(map(_has_classes, tables))
    for table in tables:
        for row_number, row in enumerate(_read_rows(table, table.columns(read_bytes))):
            item = _item(table, row_number, row, shared)
            if caption is not None and not table.caption_columns and table.scene_column is None:
                item = item._replace(captions=caption, scene="")
            yield item._replace(scene="") if has_classes and item.scene is None else item
    for file in images:
        yield skipped_file(file, root, "image beside Parquet tables")


def _has_classes(table: Table) -> bool:
    """Whether a row of the table has a class."""
    if table.scene_column is None:
        return False
    rows = _read_rows(table, [table.scene_column])
    labels = (_class_name(row[table.scene_column], table.class_names) for row in rows)
    return any(label_value(label) is not None for label in labels)


def _shared_names(tables: list[Table]) -> set[str | None]:
    """The names that several images have; None if some images have no name.

    Reads the images of a name that stands in several rows, because these may be one image's.
    """
    counts: Counter[str | None] = Counter()
    for table in tables:
        rows = _read_rows(table, table.columns(with_images=False))
        counts.update(_row_name(table, row) for row in rows)
    repeated = {name for name, count in counts.items() if count > 1 and name is not None}
    shared: set[str | None] = {None} if None in counts else set()
    if not repeated:
        return shared
    contents: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        for row in _read_rows(table, table.columns(with_images=True)):
            name = _row_name(table, row)
            if name in repeated:
                contents[name].add(_content(row))
    return shared | {name for name, hashes in contents.items() if len(hashes) > 1}


def _read_rows(table: Table, columns: list[str]) -> Iterator[dict]:
    """Yield these columns of a table's rows.

    A damaged page ends the stage, because what was in it can be neither named nor counted.
    """
    batch_size = ROWS_PER_BATCH_WITH_IMAGES if "image" in columns else ROWS_PER_BATCH
    try:
        for batch in pq.ParquetFile(table.path).iter_batches(batch_size, columns=columns):
            yield from batch.to_pylist() if columns else [{}] * len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        exit_with_error(f"{table.label} is damaged: {error}")


def _image_cell(row: dict) -> dict:
    """The image of a row as {bytes, path}, as far as they were read."""
    cell = row.get("image")
    return cell if isinstance(cell, dict) else {"bytes": cell}


def _row_name(table: Table, row: dict) -> str | None:
    """What the table calls the image of a row, if anything."""
    name = row.get(table.name_column) or _image_cell(row).get("path")
    return posix_path(str(name)) if name else None


def _content(row: dict) -> str:
    """The hash of a row's encoded image."""
    return hashlib.sha256(_image_cell(row).get("bytes") or b"").hexdigest()[:16]


def _item(table: Table, row_number: int, row: dict, shared: set[str | None]) -> SourceItem:
    """The item of a row. Where its name is in `shared`, the hash of the image tells it apart."""
    name = _row_name(table, row)
    image = _image_cell(row).get("bytes")
    content_name = None
    if image and name in shared:
        path = PurePosixPath(name or table.row_name)
        content_name = f"{path.with_suffix('')}-{_content(row)}{path.suffix}"
    scene = _class_name(row.get(table.scene_column), table.class_names)
    split = _class_name(row.get(table.split_column), table.split_names)
    return SourceItem(
        split=split_value(split) or table.split,
        name=name or f"{table.row_name}-{row_number:07d}",
        captions=row_captions(row),
        scene=label_value(scene),
        image=image,
        content_name=content_name,
    )


def _class_name(label: Any, class_names: list) -> Any:
    """The name of an integer label, or the label itself where the schema has no name for it."""
    has_name = isinstance(label, int) and 0 <= label < len(class_names)
    return class_names[label] if has_name else label
