"""Captioned imagery as the world stores it: Parquet, class folders, folders with metadata; odd images made RGB.

A reader turns a source into `Item`s, in a fixed order, one at a time, with one for each file that is none of its images;
`Item.fault`, `sentences` and `tile` say what is wrong with a bad one, so that the stage can skip, name and count it.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artifacts import IMAGE
from stages.common.sources import visible
from stages.runtime.errors import exit_with_error

SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("captions", pa.list_(pa.string())),
        ("scene", pa.string()),
        ("filename", pa.string()),
    ]
)
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2"}
METADATA = ("metadata.jsonl", "metadata.csv")
ENCODED = (
    "binary",
    "large_binary",
    "fixed_size_binary",
    "dictionary<values=binary",
    "null",
)  # Arrow types an image comes in
SPLIT_NAMES = {"train", "training", "valid", "val", "validation", "test", "testing"}


class Item(NamedTuple):
    """One image of a source as found: nothing about it is checked yet."""

    split: str | None  # the source's own name of its split
    name: str  # file name
    captions: object = None  # whatever the source holds; None where there is no caption field
    scene: str | None = None  # the class the source gives; None: read it off the file name
    image: object = None  # encoded bytes, a path, or what `draw` of the stage takes
    fault: str | None = None  # why the reader could not read it


class Origin(NamedTuple):
    """An opened source."""

    files: list[Path]  # tables and metadata, for SOURCE.json
    items: Callable[
        [bool], Iterator[Item]
    ]  # items(with_images): the same items in the same order each time
    captioned: bool  # has a caption field at all


def scene_of(item: Item) -> str:
    """The scene the source gives, else the file name up to its last `_` (RSICD: rsicd_images/airport_1.jpg -> airport)."""
    return item.scene or PurePosixPath(item.name).stem.rpartition("_")[0]


def sentences(found) -> tuple[list[str], str]:
    """The usable captions among what a source holds, and, where there is none, why not."""
    values = (
        [found]
        if isinstance(found, str)
        else list(found)
        if isinstance(found, (list, tuple))
        else [found]
    )
    texts = [value for value in values if isinstance(value, str)]
    kept = [
        " ".join(printable(text).split())
        for text in texts
        if any(letter.isalpha() for letter in text)
    ]
    if kept:
        return kept, ""
    if all(value is None or isinstance(value, str) and not value.strip() for value in values):
        return [], "no captions" if found is None or values == [] else "blank captions"
    return [], "captions are not text"


def printable(text: str) -> str:
    """Without what UTF-8 cannot hold (lone surrogates of broken JSON) and without NUL."""
    return text.encode(errors="ignore").decode().replace("\0", "")


# Readers ---------------------------------------------------------------------------------------------------------------


def open_origin(path: Path, key: str) -> Origin:
    """Find out what a file or folder is, and open it. `key` is the params key that named it, for messages."""
    if path.is_file():
        if path.suffix != ".parquet":
            exit_with_error(f"{key}: {path.name} is not a .parquet file (or give a folder)")
        return parquet([path], [], path.parent, key)
    files = sorted(visible(path, key))
    if tables := [file for file in files if file.suffix == ".parquet" and os.path.isfile(file)]:
        return parquet(
            tables, [file for file in files if file.suffix.lower() in SUFFIXES], path, key
        )
    if lists := [file for file in files if file.name in METADATA and os.path.isfile(file)]:
        return image_folder(lists, files, path)
    if not any(file.suffix.lower() in SUFFIXES for file in files):
        exit_with_error(
            f"{key}: {path.name}: no images in it (looked for *.parquet, {', '.join(METADATA)} and {' '.join(sorted(SUFFIXES))})"
        )
    return class_folders(files, path)


def unread(file: Path, root: Path, why: str = "") -> Item:
    """What lies in a source and is none of its images: named and counted, so that nothing is dropped unseen."""
    if not os.path.isfile(file):
        why = "not a file" if os.path.exists(file) else "link to nothing"
    elif file.suffix.lower() not in SUFFIXES:
        why = f"not read: {file.suffix.lower() or 'no suffix'}"
    return Item(None, printable(file.relative_to(root).as_posix()), fault=why)


def split_in(folders: tuple[str, ...]) -> str | None:
    """The first folder named as a split."""
    return next((folder for folder in folders if folder.lower() in SPLIT_NAMES), None)


def parquet(files: list[Path], beside: list[Path], root: Path, key: str) -> Origin:
    """Tables with `image` ({bytes, path} or bytes) and, by any of these names, captions, a file name, a scene."""
    tables = []
    for file in files:
        shown = f"{key}: {file.relative_to(root)}"
        try:
            schema = pq.read_schema(file)
        except (
            pa.ArrowException,
            OSError,
            ValueError,
        ) as fault:  # ValueError: a file name that is no UTF-8
            exit_with_error(f"{shown} cannot be read: {str(fault).splitlines()[0]}")
        column = {
            role: next((name for name in names if name in schema.names), None)
            for role, names in {
                "captions": ("captions", "caption", "text"),
                "name": ("filename", "file_name"),
                "scene": ("scene", "label"),
            }.items()
        }
        if "image" not in schema.names:
            exit_with_error(f"{shown} has no column `image`; it has {', '.join(schema.names)}")
        kind = schema.types[schema.names.index("image")]
        cell = (
            {field.name: str(field.type) for field in kind}
            if pa.types.is_struct(kind)
            else {"bytes": str(kind)}
        )
        if not cell.get("bytes", "").startswith(ENCODED):
            exit_with_error(
                f"{shown}: column `image` holds {kind}, not encoded images (bytes, or a struct {{bytes, path}})"
            )
        light = [name for name in column.values() if name]
        columns = {
            False: light + ["image.path"] * ("path" in cell),
            True: [*light, "image"],
        }  # without and with images
        tables.append(
            (
                file,
                shown,
                split_of(file, root, alone=len(files) == 1),
                column,
                columns,
                label_names(schema, column["scene"]),
            )
        )

    def items(images: bool) -> Iterator[Item]:
        for file, shown, split, column, columns, labels in tables:
            for number, row in enumerate(
                table_rows(file, columns[images], 64 if images else 4096, shown)
            ):
                cell = (
                    row["image"]
                    if isinstance(row.get("image"), dict)
                    else {"bytes": row.get("image")}
                )
                name = row.get(column["name"]) or cell.get("path") or f"{file.stem}-{number:07d}"
                scene = row.get(column["scene"])
                if isinstance(scene, int):
                    scene = (
                        labels[scene] if 0 <= scene < len(labels) else None if scene < 0 else scene
                    )  # -1: the hub's "no label"
                yield Item(
                    split,
                    printable(str(name)),
                    row.get(column["captions"]),
                    None if scene is None else printable(str(scene)),
                    cell.get("bytes"),
                )
        yield from (unread(file, root, "image beside Parquet tables") for file in beside)

    return Origin(files, items, any(column["captions"] for _, _, _, column, _, _ in tables))


def table_rows(file: Path, columns: list[str], batch: int, shown: str) -> Iterator[dict]:
    """The rows of a table. A damaged page ends the stage: what stood there cannot be named or counted."""
    try:
        for rows in pq.ParquetFile(file).iter_batches(batch, columns=columns):
            yield from rows.to_pylist() if columns else [{}] * len(rows)
    except (pa.ArrowException, OSError, ValueError) as fault:
        exit_with_error(f"{shown} is damaged: {fault}")


def split_of(table: Path, root: Path, alone: bool) -> str | None:
    """train.parquet, data/train-00000-of-00002.parquet, train/00000.parquet and train/part-0.parquet are all of split `train`."""
    name, folders = table.stem.partition("-")[0], table.relative_to(root).parts[:-1]
    if name.lower() not in SPLIT_NAMES and (split := split_in(folders)):
        return split
    if name.isdigit():
        return folders[-1] if folders else None
    return None if alone and name not in SPLIT_NAMES else name


def label_names(schema: pa.Schema, column: str | None) -> list[str]:
    """The names behind an integer label column, which `datasets` writes into the schema (ClassLabel); [] where it has none."""
    found = parse((schema.metadata or {}).get(b"huggingface", b"{}"))
    for name in ("info", "features", column, "names"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, list) else []


def class_folders(files: list[Path], root: Path) -> Origin:
    """class/image.jpg, optionally with a split: train/class/image.jpg. No captions: the stage writes one from the class name.

    A folder named as in SPLIT_NAMES is a split, not a class, wherever it stands; of two (train/test/image.jpg) the second is
    a class. An image in a split folder alone shows what its file name says (train/airport_1.jpg), or it is skipped.
    """

    def items(_: bool) -> Iterator[Item]:
        for file in files:
            if file.suffix.lower() not in SUFFIXES or not os.path.isfile(file):
                yield unread(file, root)
                continue
            *folders, name = file.relative_to(root).parts
            if split := split_in(folders):
                folders.remove(split)
            scene = folders[-1] if folders else scene_of(Item(None, name)) if split else ""
            yield Item(
                split,
                printable(file.relative_to(root).as_posix()),
                None,
                printable(scene),
                file,
                None if scene else "no class folder and no captions",
            )

    return Origin([], items, captioned=False)


def image_folder(lists: list[Path], files: list[Path], root: Path) -> Origin:
    """Rows {file_name, text or captions[, scene][, split]} of metadata.jsonl or .csv, in the root or one per split folder."""
    csv.field_size_limit(
        2**31 - 1
    )  # after a quote that never closes the rest is one field: its images count as not listed

    def items(_: bool) -> Iterator[Item]:
        listed = set(lists)
        for path in lists:
            place = path.parent.relative_to(root)
            with open(path, encoding="utf-8-sig", errors="replace", newline="") as text:
                lines = (
                    (number, parse(line)) for number, line in enumerate(text, 1) if line.strip()
                )
                for number, row in (
                    enumerate(csv.DictReader(text), 2) if path.suffix == ".csv" else lines
                ):
                    name, label = (
                        row.get("file_name"),
                        printable((place / f"{path.name}:{number}").as_posix()),
                    )
                    if "\ufffd" in str(row):
                        yield Item(None, label, fault="metadata line that is not UTF-8")
                        continue
                    if not isinstance(name, str) or not name.strip():
                        yield Item(None, label, fault="metadata line without a file_name")
                        continue
                    if ".." in PurePosixPath(name).parts or name.startswith("/"):
                        yield Item(None, label, fault="file_name outside the folder")
                        continue
                    listed.add(file := path.parent / printable(name))
                    shown = file.relative_to(root)
                    captions = next(
                        (row[field] for field in ("captions", "text", "caption") if field in row),
                        None,
                    )
                    scene = next(
                        (
                            str(row[field])
                            for field in ("scene", "label")
                            if row.get(field) not in (None, "")
                        ),
                        None,
                    )
                    split = (
                        row["split"]
                        if isinstance(row.get("split"), str) and row["split"]
                        else split_in(shown.parts[:-1])
                    )
                    yield Item(
                        split or next(iter(place.parts), None),
                        printable(shown.as_posix()),
                        captions,
                        scene and printable(scene),
                        file,
                        None if os.path.isfile(file) else "listed file is missing",
                    )
        names = " or ".join(sorted({path.name for path in lists}))
        yield from (unread(file, root, f"not in {names}") for file in files if file not in listed)

    return Origin(lists, items, captioned=True)


def parse(text: str | bytes) -> dict:
    """A JSON object, or {} where the text is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
