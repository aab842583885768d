"""Read images from class folders: class/image.jpg, or train/class/image.jpg."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import (
    ImageSource,
    SourceItem,
    scene_of,
    skipped_file,
    split_folder,
)
from stages.imagery.untrusted_text import valid_utf8

NO_SCENE = "no class folder and no captions"


def open_class_folders(files: list[Path], root: Path) -> ImageSource:
    """A source whose folders are classes, without captions.

    A folder that is named as a split is a split and not a class, at any depth. Of two such
    folders (train/test/image.jpg) the second is a class. The class of an image directly in a
    split's folder is in its file name (train/airport_1.jpg); an image without a class is skipped.
    """
    return ImageSource([], partial(_read_items, files, root), has_captions=False)


def _read_items(files: list[Path], root: Path, with_images: bool) -> Iterator[SourceItem]:
    """Yield an item per file. Images are given as paths, with or without `with_images`."""
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(file):
            yield _image_item(file, root)
        else:
            yield skipped_file(file, root)


def _image_item(file: Path, root: Path) -> SourceItem:
    *folders, file_name = file.relative_to(root).parts
    split = split_folder(folders)
    if split:
        folders.remove(split)
    scene = ""
    if folders:
        scene = folders[-1]
    elif split:
        scene = scene_of(SourceItem(split, file_name))
    return SourceItem(
        split=split,
        name=valid_utf8(file.relative_to(root).as_posix()),
        scene=valid_utf8(scene),
        image=file,
        skip_reason=None if scene else NO_SCENE,
    )
