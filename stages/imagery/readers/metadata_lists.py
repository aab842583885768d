"""Read images that metadata.jsonl or metadata.csv lists, as the `imagefolder` of `datasets` does.

A line holds file_name, text (or captions) and optionally scene and split. There is one list in the
root, or one in each split's folder.
"""

import csv
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from stages.imagery.readers.items import ImageSource, SourceItem, skipped_file, split_folder
from stages.imagery.untrusted_text import parse_json_object, valid_utf8

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_FIELDS = ("captions", "text", "caption")
SCENE_FIELDS = ("scene", "label")


def open_metadata_lists(metadata: list[Path], files: list[Path], root: Path) -> ImageSource:
    """A source of images that metadata lists name.

    Args:
        metadata: the lists.
        files: all files of the source. Images that no list names are skipped.
        root: the folder of the source.
    """
    read_items = partial(_read_items, metadata, files, root)
    return ImageSource(metadata, read_items, has_captions=True)


def _read_items(
    metadata: list[Path], files: list[Path], root: Path, with_images: bool
) -> Iterator[SourceItem]:
    """Yield an item per line. Images are given as paths, with or without `with_images`."""
    listed = set(metadata)
    for metadata_file in metadata:
        for line_number, row in read_metadata(metadata_file):
            item = _item(row, metadata_file, line_number, root)
            if item.image is not None:
                listed.add(item.image)
            yield item
    list_names = " or ".join(sorted({file.name for file in metadata}))
    for file in files:
        if file not in listed:
            yield skipped_file(file, root, f"not in {list_names}")


def read_metadata(metadata_file: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, row). A JSON line that holds no object gives an empty row."""
    with open(metadata_file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        if metadata_file.suffix == ".csv":
            # A quote that never closes makes the rest of the file one field, of any size. The
            # images in it then count as not listed.
            csv.field_size_limit(2**31 - 1)
            yield from enumerate(csv.DictReader(stream), 2)
            return
        for line_number, line in enumerate(stream, 1):
            if line.strip():
                yield line_number, parse_json_object(line)


def _item(row: dict, metadata_file: Path, line_number: int, root: Path) -> SourceItem:
    """The item of a metadata line: its image, or why the line is skipped."""
    folder = metadata_file.parent.relative_to(root)
    line_name = valid_utf8((folder / f"{metadata_file.name}:{line_number}").as_posix())
    file_name = row.get("file_name")
    if "\ufffd" in str(row):
        return SourceItem(None, line_name, skip_reason="metadata line that is not UTF-8")
    if not isinstance(file_name, str) or not file_name.strip():
        return SourceItem(None, line_name, skip_reason="metadata line without a file_name")
    if ".." in PurePosixPath(file_name).parts or file_name.startswith("/"):
        return SourceItem(None, line_name, skip_reason="file_name outside the folder")
    file = metadata_file.parent / valid_utf8(file_name)
    path = file.relative_to(root)
    return SourceItem(
        split=_split(row, path, folder),
        name=valid_utf8(path.as_posix()),
        captions=next((row[field] for field in CAPTION_FIELDS if field in row), None),
        scene=_scene(row),
        image=file,
        skip_reason=None if os.path.isfile(file) else "listed file is missing",
    )


def _split(row: dict, path: Path, metadata_folder: Path) -> str | None:
    """The split that the row names, or the image's split folder, or the metadata's first folder."""
    if isinstance(row.get("split"), str) and row["split"]:
        return row["split"]
    return split_folder(path.parts[:-1]) or next(iter(metadata_folder.parts), None)


def _scene(row: dict) -> str | None:
    for field in SCENE_FIELDS:
        if row.get(field) not in (None, ""):
            return valid_utf8(str(row[field]))
    return None
