"""Find out the layout of a source and open it with its reader."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.sources import refuse_lfs_pointers, visible_files
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.rasters import file_of_image
from stages.imagery.readers.caption_files import (
    CAPTION_SUFFIXES,
    find_caption_files,
    open_caption_files,
)
from stages.imagery.readers.captions_json import find_captions_json, open_captions_json
from stages.imagery.readers.class_folders import open_class_folders
from stages.imagery.readers.items import ImageSource, split_folder
from stages.imagery.readers.metadata_lists import METADATA_NAMES, open_metadata_lists
from stages.imagery.readers.parquet import open_parquet
from stages.imagery.readers.split_lists import find_class_list, find_split_list
from stages.imagery.readers.unread_captions import find_unread_captions
from stages.imagery.untrusted_text import refuse_odd_names
from stages.params import Mask
from stages.runtime.errors import exit_with_error

READ_SUFFIXES = {
    *IMAGE_SUFFIXES,
    *CAPTION_SUFFIXES,
    ".parquet",
    *(Path(name).suffix for name in METADATA_NAMES),
    ".json",
}
# What holds data sets in a form that is not read -> what to do with it.
CONVERSIONS = {
    ".tar": "unpack each WebDataset shard into a folder of its own (docs/data.md shows how): the "
    ".txt files beside the images are then read as captions",
    ".arrow": "write each split as Parquet, `for name, split in "
    "datasets.load_from_disk(folder).items(): split.to_parquet(f'{name}.parquet')`, or without "
    "splits `datasets.load_from_disk(folder).to_parquet('train.parquet')`",
    ".vrt": "write the mosaic as a file, `rio convert <file>.vrt <file>.tif`",
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z"), "unpack it"),
    **dict.fromkeys(
        (".h5", ".hdf5", ".nc", ".npy", ".npz", ".mat", ".pkl", ".tfrecord", ".lmdb", ".mdb"),
        "write its images as PNG or GeoTIFF files",
    ),
}


def open_source(
    path: Path,
    key: str,
    caption: str | None = None,
    mask: Mask | None = None,
    images_only: bool = False,
    label_rasters: bool = False,
) -> ImageSource:
    """Open a Parquet file or a list of images, or a folder of any layout of docs/data.md.

    Args:
        path: the file or folder. The root of a list's images is its folder.
        key: the params key that named it, for error messages.
        caption: of the images in a flat folder or table, without captions and classes; None: the
            file names say what is shown.
        mask: where masks are; the folder of their files is no class. None: there are none.
        images_only: captions and classes may be missing, or have other names than docs/data.md's.
        label_rasters: these give the classes, so a list of splits needs none.

    Raises:
        SystemExit: it has none of these layouts, or a table or list cannot be read.
    """
    if path.is_file():
        refuse_lfs_pointers([path], key)
        return _open_file(path, key, caption, images_only, label_rasters)
    files = _list_files(path, key)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    source = _open_folder(path, files, images, key, caption, mask, images_only, label_rasters)
    if not source.has_captions:
        listed = set(source.files)
        beside = [file for file in files if file not in listed]
        source = source._replace(unread_captions=find_unread_captions(beside, images, path))
    if not source.files:
        source = source._replace(unread_classes=find_class_list(files, images, path))
    return _with_split_list(source, files, path)


def _with_split_list(source: ImageSource, files: list[Path], root: Path) -> ImageSource:
    """The source with the file, if any, that seems to list a split and is none of its own lists.

    It counts where neither folders nor the source's own tables and lists give the splits.
    """
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images or any(split_folder(image.relative_to(root).parts[:-1]) for image in images):
        return source
    listed = set(source.files)
    beside = [file for file in files if file not in listed]
    return source._replace(unread_split=find_split_list(beside, images, root))


def _list_files(folder: Path, key: str) -> list[Path]:
    """The visible files below a folder.

    Raises:
        SystemExit: the path of an image, caption file, list or table is not UTF-8, or such a file
            is a Git LFS pointer.
    """
    files = sorted(visible_files(folder, key))
    read = [file for file in files if file.suffix.lower() in READ_SUFFIXES]
    refuse_odd_names(read, folder, f"{key}: {folder.name}")
    refuse_lfs_pointers(read, key)
    return files


def _open_folder(
    path: Path,
    files: list[Path],
    images: list[Path],
    key: str,
    caption: str | None,
    mask: Mask | None,
    images_only: bool,
    label_rasters: bool,
) -> ImageSource:
    """Open a folder with the reader of its layout."""
    tables = [file for file in files if _is_table(file)]
    text_of_image = find_caption_files(files)
    is_packed = not images and any(file.suffix.lower() == ".tar" for file in files)
    # Beside caption files or shards, img2dataset writes tables of what it downloaded.
    if any(map(_holds_images, tables)) or (tables and not text_of_image and not is_packed):
        beside = [file for file in files if _is_metadata(file)]
        return open_parquet(tables, images + beside, path, key, caption, images_only)
    metadata = [file for file in files if _is_metadata(file)]
    if metadata:
        return open_metadata_lists(metadata, files, path, key, images_only, label_rasters)
    if not images:
        _refuse_without_images(path, files, key)
    captions_json = find_captions_json(files, path, key)
    if captions_json:
        return open_captions_json(captions_json, files, path, key)
    if text_of_image:
        source = open_caption_files(text_of_image, files, path, key)
        others = [image for image in images if image not in text_of_image]
        if not others:
            return source
        beside = [file for file in files if file.suffix.lower() not in CAPTION_SUFFIXES]
        return source._replace(unread_captions=find_unread_captions(beside, others, path))
    masks = {file_of_image(image, mask.file) for image in images} if mask and mask.file else set()
    return open_class_folders(files, path, caption, masks)


def _open_file(
    path: Path, key: str, caption: str | None, images_only: bool, label_rasters: bool
) -> ImageSource:
    """Open a Parquet table, or a list whose images are in its folder."""
    if _is_table(path):
        return open_parquet([path], [], path.parent, key, caption, images_only)
    root = path.parent
    if _is_metadata(path):
        files = _list_files(root, key)
        source = open_metadata_lists([path], files, root, key, images_only, label_rasters)
        return _with_split_list(source, files, root)
    if find_captions_json([path], root, key):
        files = _list_files(root, key)
        return _with_split_list(open_captions_json([path], files, root, key), files, root)
    layouts = f"name a folder, a .parquet file, {', '.join(METADATA_NAMES)} or Karpathy's JSON"
    advice = CONVERSIONS.get(path.suffix.lower(), layouts)
    exit_with_error(f"{key}: {path.name} is not read: {advice}")


def _is_metadata(file: Path) -> bool:
    return file.name.lower() in METADATA_NAMES and os.path.isfile(file) and not _is_table(file)


def _is_table(file: Path) -> bool:
    """Whether it is a Parquet file, and not metadata.parquet, a list of image files."""
    is_parquet = file.suffix.lower() == ".parquet" and os.path.isfile(file)
    return is_parquet and (file.name.lower() not in METADATA_NAMES or _holds_images(file))


def _holds_images(table: Path) -> bool:
    """Whether a Parquet file has a column of images, or can't be read."""
    try:
        return "image" in pq.read_schema(table).names
    except (pa.ArrowException, OSError, ValueError):
        return True  # its reader says what is wrong


def _refuse_without_images(path: Path, files: list[Path], key: str) -> None:
    """Exit with an error that says which files there are instead of images."""
    for suffix, advice in CONVERSIONS.items():
        if any(file.suffix.lower() == suffix for file in files):
            exit_with_error(f"{key}: {path.name}: no images in it, but {suffix} files: {advice}")
    found = ", ".join(sorted({file.suffix or file.name for file in files})[:20]) or "no files"
    exit_with_error(
        f"{key}: {path.name}: no images in it (looked for *.parquet, {', '.join(METADATA_NAMES)} "
        f"and {' '.join(sorted(IMAGE_SUFFIXES))}; found {found})"
    )
