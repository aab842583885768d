"""Masks in files of their own, which lie among the images that they belong to."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.imagery.rasters import Mask, mask_file
from stages.imagery.readers.items import ImageSource, SourceItem

IS_MASK = "mask of another image"


def skip_mask_files(source: ImageSource, mask: Mask | None) -> ImageSource:
    """The source without the files that are masks of its images: they are skipped and counted."""
    if mask is None or mask.file is None:
        return source
    items = source.read_items(False)
    files = {mask_file(item.image, mask) for item in items if isinstance(item.image, Path)}
    return source._replace(read_items=partial(_read_items, source, files))


def _read_items(source: ImageSource, files: set[Path], with_images: bool) -> Iterator[SourceItem]:
    for item in source.read_items(with_images):
        if isinstance(item.image, Path) and item.image in files:
            item = item._replace(image=None, skip_reason=IS_MASK)
        yield item
