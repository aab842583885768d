"""What every reader yields: the items of a source, unchecked and in a fixed order."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.untrusted_text import valid_utf8

SPLIT_NAMES = {"train", "training", "valid", "val", "validation", "test", "testing"}


class SourceItem(NamedTuple):
    """An image of a source, or a file or metadata line of it that is no image.

    Nothing but `skip_reason` is checked yet: captions and image may be unusable.
    """

    split: str | None  # the source's own name of the split
    name: str  # file name
    captions: Any = None  # as the source holds them; None: it has no caption field
    scene: str | None = None  # the class that the source gives; None: the file name tells it
    image: Any = None  # encoded bytes, a path, or a SceneId of the embedded scenes
    skip_reason: str | None = None  # why the reader could not read it


class ImageSource(NamedTuple):
    """An opened source."""

    files: list[Path]  # Parquet tables and metadata lists, whose hashes SOURCE.json records
    # read_items(with_images) yields the same items in the same order each time.
    read_items: Callable[[bool], Iterator[SourceItem]]
    has_captions: bool  # it has a caption field


def scene_of(item: SourceItem) -> str:
    """The scene that the source gives, or else the file name up to its last underscore.

    The second is RSICD's convention: rsicd_images/airport_1.jpg shows an airport.
    """
    return item.scene or PurePosixPath(item.name).stem.rpartition("_")[0]


def skipped_file(file: Path, root: Path, reason: str = "") -> SourceItem:
    """An item for a file below `root` that the reader does not use, so that it is counted.

    `reason` says why an image file is not used; for other files the reason is found here.
    """
    suffix = file.suffix.lower()
    if not os.path.exists(file):
        reason = "link to nothing"
    elif not os.path.isfile(file):
        reason = "not a file"
    elif suffix not in IMAGE_SUFFIXES:
        reason = f"not read: {suffix or 'no suffix'}"
    return SourceItem(None, valid_utf8(file.relative_to(root).as_posix()), skip_reason=reason)


def split_folder(folders: Sequence[str]) -> str | None:
    """The first folder that is named as a split, if any."""
    return next((folder for folder in folders if folder.lower() in SPLIT_NAMES), None)
