"""Find a file that lists splits or classes of images, such as test.txt, which no reader knows.

Without the first, images of a published test split would be trained on.
"""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import (
    PLURAL_SCENE_FIELDS,
    SCENE_FIELDS,
    first_field,
    split_words,
    standard_split,
)
from stages.imagery.untrusted_text import read_json, valid_utf8

HEAD = 2**16  # bytes of a text file that are looked at
MAX_ENTRIES = 100  # of a list that are looked at


def find_split_list(files: list[Path], images: list[Path], root: Path) -> str | None:
    """The first file, relative to `root`, that seems to list the images of a split; or None.

    Its name, or a field of its JSON object, names a split, and more than half of its entries hold
    the name of an image; or these hold the name of a split, too, as those of a JSON object must:
    test.json may hold a label or a prediction of each image.
    """
    stems = {valid_utf8(image.stem).lower() for image in images}
    for file in files:
        if valid_utf8(file.stem).lower() in stems or not os.path.isfile(file):
            continue
        for entries in _lists_of_splits(file):
            if sum(_names_image(entry, stems) for entry in entries) > len(entries) / 2:
                return valid_utf8(file.relative_to(root).as_posix())
    return None


def find_class_list(files: list[Path], images: list[Path], root: Path) -> str | None:
    """The first file, relative to `root`, that seems to list the classes of images; or None.

    It, or a field of its first entry, has the name of a class field (labels.csv), and more than
    half of its entries hold the name of an image.
    """
    stems = {valid_utf8(image.stem).lower() for image in images}
    for file in files:
        if valid_utf8(file.stem).lower() in stems or not os.path.isfile(file):
            continue
        if "submission" in file.stem.lower():  # Kaggle's has the same label for all test images
            continue
        value = _read_list(file)
        first = next(iter(value.values() if isinstance(value, dict) else value), None)
        fields = first if isinstance(first, dict) else re.split(r"[,;\t|]", str(first))
        names = [file.stem, *(field.strip(" \"'") for field in fields)]
        if first_field((*SCENE_FIELDS, *PLURAL_SCENE_FIELDS), names):
            entries = _entries(value)
            if sum(_names_image(entry, stems) for entry in entries) > len(entries) / 2:
                return valid_utf8(file.relative_to(root).as_posix())
    return None


def _lists_of_splits(file: Path) -> Iterator[list[str]]:
    """Yield the beginning of each list: lines of text, a field of a JSON object, or all of JSON.

    Of a list that isn't named as a split, entries that don't name one are blank.
    """
    value = _read_list(file)
    is_object = isinstance(value, dict)
    if isinstance(value, dict):
        for name, listed in value.items():
            if standard_split(name) and isinstance(listed, list):
                yield [str(entry) for entry in listed[:MAX_ENTRIES]]
    is_named = bool(split_words(file.stem)) and not is_object
    yield [entry if is_named or _names_split(entry) else "" for entry in _entries(value)]


def _read_list(file: Path) -> dict | list:
    """The object or array of a JSON file, or the first lines of text; [] of other files."""
    suffix = file.suffix.lower()
    if suffix == ".json":
        value = read_json(file)
        return value if isinstance(value, dict | list) else []
    if suffix not in (".txt", ".csv", ".tsv", ".lst"):
        return []
    with open(file, "rb") as stream:
        lines = stream.read(HEAD).decode("utf-8-sig", errors="replace").splitlines()
    return list(filter(str.strip, lines))


def _entries(value: dict | list) -> list[str]:
    """The first entries of a list as lines of text; of an object, with their names."""
    if isinstance(value, dict):
        value = [
            {"": name} | (entry if isinstance(entry, dict) else {"value": entry})
            for name, entry in islice(value.items(), MAX_ENTRIES)
        ]
    return list(map(_as_line, value[:MAX_ENTRIES]))


def _as_line(entry: Any) -> str:
    """The numbers and texts of an entry of JSON as a line of text has them; "" without a text."""
    values = list(entry.values()) if isinstance(entry, dict) else entry
    cells = values if isinstance(values, list) else [values]
    if not any(isinstance(cell, str) for cell in cells):
        return ""
    return "\t".join(str(cell) for cell in cells if not isinstance(cell, dict | list))


def _names_split(entry: str) -> bool:
    """Whether a cell of an entry is the name of a split. Of a text of two words, each is a cell."""
    words = entry.split()
    cells = re.split(r"[,;|\t]", entry) + (words if len(words) == 2 else [])
    return any(standard_split(cell.strip(" '\"")) for cell in cells)


def _names_image(entry: str, stems: set[str]) -> bool:
    """Whether an entry, or a cell of it, is the name of an image, with or without its suffix."""
    for cell in [entry, *re.split(r"[,;|\t]", entry), *entry.split()]:
        name = re.split(r"[/\\]", cell.strip(" \t'\"[](){}"))[-1].lower()
        stem, suffix = os.path.splitext(name)
        # A number in a cell may be that of a class.
        is_name = suffix in IMAGE_SUFFIXES or cell == entry or any(map(str.isalpha, name))
        if is_name and (name in stems or stem in stems):
            return True
    return False
