"""Find a file that lists the images of a split, such as test.txt, which no reader knows.

Without it, images of a published test split would be trained on.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import standard_split
from stages.imagery.untrusted_text import parse_json_object, valid_utf8

HEAD = 2**16  # bytes of a text file that are looked at
MAX_ENTRIES = 100  # of a list that are looked at


def find_split_list(files: list[Path], images: list[Path], root: Path) -> str | None:
    """The first file, relative to `root`, that seems to list the images of a split; or None.

    Its name, or a field of its JSON object, names a split, and more than half of its entries hold
    the name of an image.
    """
    stems = {valid_utf8(image.stem).lower() for image in images}
    for file in files:
        if valid_utf8(file.stem).lower() in stems or not os.path.isfile(file):
            continue
        for entries in _lists_of_splits(file):
            if sum(_names_image(entry, stems) for entry in entries) > len(entries) / 2:
                return valid_utf8(file.relative_to(root).as_posix())
    return None


def _lists_of_splits(file: Path) -> Iterator[list[str]]:
    """Yield the beginning of each list of a split: lines of text, or a field of JSON."""
    suffix = file.suffix.lower()
    if suffix == ".json":
        for name, entries in parse_json_object(file.read_bytes()).items():
            if standard_split(name) and isinstance(entries, list):
                yield [str(entry) for entry in entries[:MAX_ENTRIES]]
    elif suffix in (".txt", ".csv", ".tsv"):
        if any(map(standard_split, re.split(r"[-_. ]", file.stem))):
            with open(file, "rb") as stream:
                lines = stream.read(HEAD).decode(errors="replace").splitlines()
            yield list(filter(str.strip, lines))[:MAX_ENTRIES]


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
