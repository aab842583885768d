"""Read images that metadata.jsonl, .csv or .parquet lists, as the `imagefolder` of `datasets` does.

A line holds file_name, captions (text) or a class (scene), and optionally split. There is one list
in the root, or one in each of several folders, such as train and test. The case of field names
doesn't count. Lines of one image are merged, so that each may hold another caption.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from stages.imagery.captions import CAPTION_FIELDS, caption_fields, misnamed_captions, row_captions
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
    row_label,
    skipped_file,
    split_folder,
    split_value,
)
from stages.imagery.readers.listed_images import ListedImages
from stages.imagery.untrusted_text import parse_json_object, valid_utf8
from stages.runtime.errors import exit_with_error

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Keys of rows that hold no values, but what is wrong with the line.
NOT_JSON = "\0not JSON"
MORE_CELLS = "\0more cells"
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes, as the error handler surrogateescape has them
NO_FILE_NAME = "metadata line without a file_name"
ROWS_LOOKED_AT = 100  # for captions in fields of other names

csv.field_size_limit(2**31 - 1)  # instead of 131,072 characters


def open_metadata_lists(
    metadata: list[Path],
    files: list[Path],
    root: Path,
    key: str,
    images_only: bool,
    label_rasters: bool,
) -> ImageSource:
    """A source of images that metadata lists name.

    Args:
        metadata: the lists.
        files: all files of the source. Images that no list names are skipped.
        root: the folder of the source.
        key: the params key of the source, for error messages.
        images_only: captions and classes may be missing, or have other names.
        label_rasters: these give the classes, so a list of splits needs none.

    Raises:
        SystemExit: a list is not UTF-8, or names no file, or has neither captions nor classes.
    """
    fields = [
        _check_list(file, f"{key}: {file.relative_to(root)}", images_only, label_rasters)
        for file in metadata
    ]
    has_captions = any(caption_fields(names) for names in fields)
    columns = list(dict.fromkeys(name for names in fields for name in names))
    has_classes = first_field(SCENE_FIELDS, columns) is not None and any(
        row_label(row) is not None for row in _all_rows(metadata)
    )
    read_items = partial(_read_items, metadata, files, root, has_classes)
    misnamed = None if "split" in columns else misnamed_split(_all_rows(metadata))
    return ImageSource(
        metadata,
        read_items,
        has_captions,
        columns=columns,
        list_folders=[PurePosixPath(file.parent.relative_to(root)) for file in metadata],
        misnamed_split=misnamed,
    )


def _check_list(file: Path, label: str, images_only: bool, label_rasters: bool) -> list[str]:
    """The fields of a list. Exits with an error if no line of it can be used, and says why."""
    if file.suffix.lower() != ".parquet":
        _refuse_encoding(file, label)
    fields = dict.fromkeys(csv_fields(file, label))  # in order
    for line_number, row in read_metadata(file, label):
        fields |= dict.fromkeys(name for name in row if not name.startswith("\0"))
        if holds_several_labels(row_label(row)):
            exit_with_error(f"{label}:{line_number}: {SEVERAL_LABELS}")
        plural = first_field(PLURAL_SCENE_FIELDS, row)
        if plural and row_label(row) is None:
            if isinstance(row[plural], list) or holds_several_labels(row[plural]):
                exit_with_error(f"{label}:{line_number}: its field {plural!r}: {SEVERAL_LABELS}")
    shown = ", ".join(map(repr, fields)) or "none"
    if file.suffix.lower() == ".jsonl" and (not fields or _is_multiline_json(file)):
        exit_with_error(
            f"{label} must hold one JSON object per line; it holds a JSON array, objects over "
            "several lines, or no JSON"
        )
    has_labels = caption_fields(fields) or first_field(SCENE_FIELDS, fields)
    if not has_labels and (field := first_field(PLURAL_SCENE_FIELDS, fields)):
        exit_with_error(f"{label}: its field {field!r}: {SEVERAL_LABELS}")
    if first_field(NAME_FIELDS, fields) is None:
        exit_with_error(f"{label} has no field file_name; its fields: {shown}")
    if images_only:
        return list(fields)
    rows = [row for _, row in islice(read_metadata(file, label), ROWS_LOOKED_AT)]
    is_one_hot = not has_labels and flag_fields(row for row in rows if NOT_JSON not in row)
    if is_one_hot or not (has_labels or (label_rasters and "split" in fields)):
        advice = f"; {SEVERAL_LABELS}" if is_one_hot else ""
        exit_with_error(
            f"{label} has no captions ({', '.join(CAPTION_FIELDS)}) and no classes "
            f"({', '.join(SCENE_FIELDS)}); its fields: {shown}{advice}"
        )
    if not caption_fields(fields):
        if field := misnamed_captions(rows):
            exit_with_error(f"{label}: its field {field!r} seems to hold captions: name it `text`")
    return list(fields)


def csv_fields(file: Path, label: str) -> list[str]:
    """The fields of a CSV file; [] for other lists.

    Raises:
        SystemExit: two have one name, or no commas are between them.
    """
    if file.suffix.lower() != ".csv":
        return []
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        first_row = next(csv.reader(stream, skipinitialspace=True), [])
    names = [name.strip().lower() for name in first_row]
    if first_field(NAME_FIELDS, names) is None and re.search(r"[;\t|]", "".join(names)):
        shown = ", ".join(map(repr, names))
        exit_with_error(
            f"{label} has no field file_name; its fields: {shown}; separate them by commas"
        )
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            exit_with_error(f"{label} has {count} fields {name!r}: give each its own name")
    return names


def _refuse_encoding(file: Path, label: str) -> None:
    """Exit with an error if the file is UTF-16 or UTF-32, which have zero bytes, or another code.

    A single line that is not UTF-8 is left to its reader.
    """
    with open(file, "rb") as stream:
        head = stream.read(256)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        exit_with_error(f"{label} is not UTF-8 but UTF-16, or no text; save it as UTF-8")
    with open(file, encoding="utf-8", errors="surrogateescape") as stream:
        lines = [number for number, line in enumerate(stream, 1) if NOT_UTF8.search(line)]
    if len(lines) > 1:
        exit_with_error(
            f"{label}:{lines[0]} and {len(lines) - 1} more line(s) are not UTF-8: save the list as "
            "UTF-8 (Excel: CSV UTF-8), or convert it, such as by `iconv -f cp1252 -t utf-8`"
        )


def _is_multiline_json(file: Path) -> bool:
    """Whether the file begins with a JSON value that is no object on one line."""
    with open(file, encoding="utf-8-sig", errors="replace") as stream:
        first_line = next((line for line in stream if line.strip()), "")
        if not first_line.lstrip().startswith(("{", "[")) or parse_json_object(first_line):
            return False
        rest = stream.read()
    try:
        json.JSONDecoder().raw_decode((first_line + rest).strip())
    except (ValueError, RecursionError):
        return False
    return True


def read_metadata(metadata_file: Path, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row), with lower-case field names.

    A row with `NOT_JSON` or `MORE_CELLS` stands for a line that cannot be read.

    Raises:
        SystemExit: a Parquet list is damaged, or a CSV list has a wrong quote. The message starts
            with `label`.
    """
    if metadata_file.suffix.lower() == ".parquet":
        rows: Iterator[dict] = _read_parquet_rows(metadata_file, label)
        yield from enumerate(map(_lower_names, rows), 1)
        return
    with open(metadata_file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        if metadata_file.suffix.lower() == ".csv":
            yield from _read_csv_rows(stream, label)
            return
        for line_number, line in enumerate(stream, 1):
            if line.strip():
                row = parse_json_object(line)
                yield line_number, _lower_names(row) if row else {NOT_JSON: True}


def _read_csv_rows(stream: TextIO, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of its last line, row). Exits with an error where a quote is wrong."""
    spaced = ", " in stream.readline()  # between the names, and so between all cells
    stream.seek(0)
    reader = csv.DictReader(stream, restkey=MORE_CELLS, strict=True, skipinitialspace=spaced)
    last = 1
    try:
        for row in reader:
            yield reader.line_num, _lower_names(row)
            last = reader.line_num
    except csv.Error as error:
        exit_with_error(
            f"{label}: the quotes after line {last} are wrong ({error}): one isn't closed, or "
            'one inside a text is not written ""'
        )


def _all_rows(metadata: list[Path]) -> Iterator[dict[str, Any]]:
    return (row for file in metadata for _, row in read_metadata(file, file.name))


def _lower_names(row: dict) -> dict[str, Any]:
    return {str(name).strip().lower(): value for name, value in row.items()}


def _read_parquet_rows(file: Path, label: str) -> Iterator[dict]:
    """Yield the rows of a Parquet list. Exits with an error if it is damaged."""
    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        exit_with_error(f"{label} is damaged: {str(error).splitlines()[0]}")


def _read_items(
    metadata: list[Path], files: list[Path], root: Path, has_classes: bool, with_images: bool
) -> Iterator[SourceItem]:
    """Yield an item per line. Images are given as paths, with or without `with_images`.

    Where lines have a class, a line without a class has none, whatever its file is named.
    """
    images = ListedImages(files, root)
    listed = set(metadata)
    for metadata_file in metadata:
        for line_number, row in read_metadata(metadata_file, metadata_file.name):
            item = _item(row, metadata_file, line_number, root, images)
            if item.image is not None:
                listed.add(item.image)
            yield item._replace(scene="") if has_classes and item.scene is None else item
    list_names = " or ".join(sorted({file.name for file in metadata}))
    for file in files:
        if file not in listed:
            yield skipped_file(file, root, f"not in {list_names}")


def _item(
    row: dict, metadata_file: Path, line_number: int, root: Path, images: ListedImages
) -> SourceItem:
    """The item of a metadata line: its image, or why the line is skipped."""
    fault = _fault(row)
    if fault:
        line = f"{metadata_file.relative_to(root).as_posix()}:{line_number}"
        if fault == NO_FILE_NAME:
            line += f", fields: {', '.join(row)[:200]}"
        return SourceItem(None, valid_utf8(line), skip_reason=fault)
    file_name = str(row[first_field(NAME_FIELDS, row) or ""])
    file, missing = images.find(metadata_file.parent, file_name)
    folder = metadata_file.parent.relative_to(root)
    if file is None:
        return SourceItem(None, valid_utf8((folder / file_name).as_posix()), skip_reason=missing)
    path = file.relative_to(root)
    return SourceItem(
        split=_split(row, path),
        name=valid_utf8(path.as_posix()),
        captions=row_captions(row),
        scene=label_value(row_label(row)),
        image=file,
    )


def _fault(row: dict) -> str | None:
    """What is wrong with a line, if anything."""
    file_name = row.get(first_field(NAME_FIELDS, row) or "")
    if "\ufffd" in str(row):
        return "metadata line that is not UTF-8"
    if NOT_JSON in row:
        return "metadata line that is no JSON object"
    if MORE_CELLS in row:
        return "metadata line with more cells than fields (quote text with commas)"
    if not isinstance(file_name, str) or not file_name.strip():
        return NO_FILE_NAME
    return None


def _split(row: dict, path: Path) -> str | None:
    """The split that the row names, or the image's split folder."""
    return split_value(row.get("split")) or split_folder(path.parts[:-1])
