"""Read images from class folders: class/image.jpg, or train/class/image.jpg."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import (
    ImageSource,
    SourceItem,
    scene_in_name,
    skipped_file,
    split_folder,
)
from stages.imagery.untrusted_text import valid_utf8

NO_SCENE = "no class folder and no captions"


def open_class_folders(
    files: list[Path], root: Path, caption: str | None, masks: set[Path]
) -> ImageSource:
    """A source whose folders are classes, without captions.

    A folder that is named as a split is a split and not a class, at any depth. Of two such
    folders (train/test/image.jpg) the second is a class. An image in no class folder is skipped,
    unless its name begins with that of one (train/airport/1.jpg, test/airport_2.jpg).

    A source with fewer than two class folders is flat: where `caption` is given, its images are of
    no class and get that caption; else their class is in their file names (airport_1.jpg), or is
    the one folder's name, or they are skipped.
    The files `masks` don't count.
    """
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    folders = {class_folder(file, root) for file in images if file not in masks} - {""}
    is_flat = len(folders) < 2
    classes = None if is_flat else folders
    read_items = partial(_read_items, files, root, classes, caption if is_flat else None)
    return ImageSource([], read_items, has_captions=False)


def class_folder(file: Path, root: Path) -> str:
    """The last folder above a file that is not its split's, or "". Stripped, as labels are."""
    *folders, _ = file.relative_to(root).parts
    split = split_folder(folders)
    if split:
        folders.remove(split)
    return valid_utf8(folders[-1]).strip() if folders else ""


def _read_items(
    files: list[Path],
    root: Path,
    classes: set[str] | None,
    caption: str | None,
    with_images: bool,
) -> Iterator[SourceItem]:
    """Yield an item per file. Images are given as paths, with or without `with_images`.

    `classes` are the class folders; None: the source is flat.
    """
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(file):
            yield _image_item(file, root, classes, caption)
        else:
            yield skipped_file(file, root)


def _image_item(
    file: Path, root: Path, classes: set[str] | None, caption: str | None
) -> SourceItem:
    folder = class_folder(file, root)
    item = SourceItem(
        split=split_folder(file.relative_to(root).parts[:-1]),
        name=valid_utf8(file.relative_to(root).as_posix()),
        scene=folder,
        image=file,
    )
    if caption is not None:
        return item._replace(scene="", captions=caption)
    if classes is None:
        scene = scene_in_name(item.name) or folder
    else:
        scene = folder or folder_in_name(file, classes)
    return item._replace(scene=scene, skip_reason=None if scene else NO_SCENE)


def folder_in_name(file: Path, folders: set[str]) -> str:
    """The class folder that stands before the number of the name of a file outside, or ""."""
    scene = valid_utf8(file.stem).rpartition("_")[0]
    return scene if scene in folders else ""
