"""Masks in files of their own, which lie among the images that they belong to."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from stages.imagery.image_decoding import is_raster
from stages.imagery.rasters import file_of_image
from stages.imagery.readers.items import ImageSource, SourceItem
from stages.imagery.unusable_image import UnusableImage
from stages.params import Mask
from stages.runtime.errors import exit_with_error

IS_MASK = "mask of another image"
# Words of names, in lower case, of masks and labels, and of the images beside them.
WORD = "(?:^|[ ._-])(?:{})(?=$|[ ._-])"
MASK_WORD = WORD.format(
    "masks?|msks?|labels?|gt|ground[ _-]?truth|annotations?|"
    "segmentation(?:class|object)?"  # Pascal VOC's folders
)
# Elsewhere in a name, these words are of classes: target_1.jpg, `ground target`, `lab`.
MASK_FOLDER = re.compile(f"{MASK_WORD}|^targets$")  # xBD's folder
MASK_STEM = re.compile(
    f"{MASK_WORD}|(?:^|[ ._-])(?:lab|targets?"  # FloodNet's and xBD's files
    "|nir|ir|thermal|ds?m|dem|ndsm|depth)$"  # other bands, and heights
)
IMAGE_WORD = re.compile(WORD.format("images?|imgs?|rgb|co|tci|sat|jpegimages"))  # co: VEDAI's


def skip_mask_files(source: ImageSource, mask: Mask | None) -> ImageSource:
    """The source without the files that are masks of its images: they are skipped and counted."""
    if mask is None or mask.file is None:
        return source
    items = source.read_items(False)
    images = (item.image for item in items if isinstance(item.image, Path))
    files = {file_of_image(image, mask.file) for image in images}
    return source._replace(read_items=partial(_read_items, source, files))


def _read_items(source: ImageSource, files: set[Path], with_images: bool) -> Iterator[SourceItem]:
    for item in source.read_items(with_images):
        if isinstance(item.image, Path) and item.image in files:
            item = item._replace(image=None, skip_reason=IS_MASK)
        yield item


def refuse_unnamed_masks(source: ImageSource, label: str) -> None:
    """Exit with an error if images seem to be masks, labels or other bands of other images.

    Such an image, or a folder above it, has a word for these in its name, and another image has its
    name without that word, in the same place or in a folder of images beside that of the masks.
    Images that a list names, or that have captions, are not looked at.

    Args:
        source: without the files that params name as masks.
        label: the start of the error message.
    """
    if source.has_captions or source.files:
        return
    masks_of_key = defaultdict(list)
    for name, _ in _read_images(source):
        for key in _mask_keys(name):
            masks_of_key[key].append(name)
    if not masks_of_key:
        return
    image_of_mask: dict[str, tuple[str, Path]] = {}
    for name, file in _read_images(source):
        for key in _image_keys(name):
            image_of_mask |= dict.fromkeys(masks_of_key.get(key, []), (name, file))
    if image_of_mask:
        mask, (image, file) = min(image_of_mask.items())
        params = ""
        with suppress(UnusableImage):
            if is_raster(file):  # which alone may have a mask or labels in params
                params = ", or name them by fetch_imagery.mask or fetch_imagery.labels"
        exit_with_error(
            f"{label}: {len(image_of_mask)} image(s) seem to be masks, labels or other bands of "
            f"others, such as {mask} of {image}: move them elsewhere{params}; if "
            "they show classes, list the images in metadata.csv"
        )


def _read_images(source: ImageSource) -> Iterator[tuple[str, Path]]:
    """Yield the names and paths of the files that would be read as images."""
    for item in source.read_items(False):
        if isinstance(item.image, Path) and not item.skip_reason:
            yield item.name, item.image


def _image_keys(name: str) -> Iterator[tuple[str, ...]]:
    """Yield what the keys of an image's mask may be."""
    *folders, stem = PurePosixPath(name.lower()).with_suffix("").parts
    stem = _without(IMAGE_WORD, stem)
    yield (*folders, stem)
    yield from _keys_without(IMAGE_WORD, folders, stem)


def _mask_keys(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the keys of the image of which a file is the mask; none if it isn't named so."""
    *folders, stem = PurePosixPath(name.lower()).with_suffix("").parts
    base = _without(IMAGE_WORD, _without(MASK_STEM, stem))
    if MASK_STEM.search(stem):
        yield (*folders, base)
    yield from _keys_without(MASK_FOLDER, folders, base)


def _keys_without(word: re.Pattern, folders: list[str], stem: str) -> Iterator[tuple[str, ...]]:
    """Yield the path without each folder whose name has such a word, and without the word alone.

    Then the stem at the place of the folder, which is the same for images and masks beside them. A
    folder with words of both kinds, such as rgb_masks, holds masks.
    """
    for depth, folder in enumerate(folders):
        if word.search(folder) and (word is MASK_FOLDER or not MASK_FOLDER.search(folder)):
            yield (*folders[:depth], *folders[depth + 1 :], stem)
            yield (*folders[:depth], _without(word, folder), *folders[depth + 1 :], stem)
            yield (*folders[:depth], "/", stem)


def _without(word: re.Pattern, name: str) -> str:
    return word.sub("", name).strip(" ._-")
