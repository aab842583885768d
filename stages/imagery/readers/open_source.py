"""Find out the layout of a source and open it with its reader."""

import os
from pathlib import Path

from stages.common.sources import visible_files
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.class_folders import open_class_folders
from stages.imagery.readers.items import ImageSource
from stages.imagery.readers.metadata_lists import METADATA_NAMES, open_metadata_lists
from stages.imagery.readers.parquet import open_parquet
from stages.runtime.errors import exit_with_error


def open_source(path: Path, key: str) -> ImageSource:
    """Open a Parquet file, or a folder of Parquet tables, metadata lists or class folders.

    Args:
        path: the file or folder.
        key: the params key that named it, for error messages.

    Raises:
        SystemExit: it has none of these layouts, or a table cannot be read.
    """
    if path.is_file():
        if path.suffix != ".parquet":
            exit_with_error(f"{key}: {path.name} is not a .parquet file (or give a folder)")
        return open_parquet([path], [], path.parent, key)
    files = sorted(visible_files(path, key))
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    tables = [file for file in files if file.suffix == ".parquet" and os.path.isfile(file)]
    if tables:
        return open_parquet(tables, images, path, key)
    metadata = [file for file in files if file.name in METADATA_NAMES and os.path.isfile(file)]
    if metadata:
        return open_metadata_lists(metadata, files, path)
    if not images:
        exit_with_error(
            f"{key}: {path.name}: no images in it (looked for *.parquet, "
            f"{', '.join(METADATA_NAMES)} and {' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return open_class_folders(files, path)
