"""Read images whose captions lie beside them, in a text file of the same name (a.txt, a.png.txt).

The file is UTF-8; each of its lines is a caption. Diffusion trainers and unpacked WebDatasets
have this layout.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.imagery.captions import holds_boxes
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.class_folders import class_folder, folder_in_name
from stages.imagery.readers.items import ImageSource, SourceItem, skipped_file, split_folder
from stages.imagery.untrusted_text import valid_utf8
from stages.runtime.errors import exit_with_error

CAPTION_SUFFIXES = (".txt", ".caption")


def find_caption_files(files: list[Path]) -> dict[Path, Path]:
    """image -> its caption file, for the images that have one; {} if all hold boxes or numbers.

    That of a.png is a.txt or a.png.txt. If there is none, it may be one whose name is in another
    Unicode form, and of no other image: macOS writes names in a form of its own.
    """
    texts = {file.with_suffix(""): file for file in files if _is_caption_file(file)}
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    found = {image: text for image in images if (text := _text_of(image, texts))}
    taken = set(found.values())
    others = {_composed(base): text for base, text in texts.items() if text not in taken}
    for image in images:
        if others and image not in found and (text := _text_of(_composed(image), others)):
            found[image] = text
    return found if any(_may_hold_captions(text) for text in found.values()) else {}


def _text_of(image: Path, texts: dict[Path, Path]) -> Path | None:
    return texts.get(image.with_suffix("")) or texts.get(image)


def _composed(path: Path) -> Path:
    """The path in Unicode's composed form."""
    return Path(valid_utf8(str(path)))


def _may_hold_captions(file: Path) -> bool:
    """Whether a caption file is no label file of an object detector: of letters, but no boxes."""
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    return any(letter.isalpha() for letter in text) and not holds_boxes(text)


def _is_caption_file(file: Path) -> bool:
    return file.suffix.lower() in CAPTION_SUFFIXES and os.path.isfile(file)


def open_caption_files(
    text_of_image: dict[Path, Path], files: list[Path], root: Path, key: str
) -> ImageSource:
    """A source of images with caption files. An image without one is skipped.

    If the images lie in several folders, these are their classes, and an image outside has none,
    unless its name begins with that of one. Folders that are numbers alone are none: img2dataset
    names the parts of a data set so.

    Raises:
        SystemExit: more than one caption file is not UTF-8. The message starts with `key`.
    """
    odd = [text for text in text_of_image.values() if not _is_utf8(text)]
    if len(odd) > 1:
        code = "utf-16" if b"\0" in odd[0].read_bytes() else "cp1252"
        exit_with_error(
            f"{key}: {odd[0].relative_to(root)} and {len(odd) - 1} more caption file(s) are not "
            f"UTF-8: convert them, such as by `iconv -f {code} -t utf-8`"
        )
    folders = {class_folder(image, root) for image in text_of_image} - {""}
    is_parts = all(folder.isdigit() for folder in folders)
    classes = folders if len(folders) > 1 and not is_parts else None
    read_items = partial(_read_items, text_of_image, files, root, classes)
    return ImageSource([], read_items, has_captions=True)


def _is_utf8(file: Path) -> bool:
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read_items(
    text_of_image: dict[Path, Path],
    files: list[Path],
    root: Path,
    classes: set[str] | None,
    with_images: bool,
) -> Iterator[SourceItem]:
    """Yield an item per image. Images are given as paths, with or without `with_images`.

    `classes` are the class folders; None: the file names tell the classes.
    """
    texts = set(text_of_image.values())
    for file in files:
        if file in text_of_image and os.path.isfile(file):
            yield _item(file, text_of_image[file], root, classes)
        elif _is_caption_file(file) and file not in texts:
            name = valid_utf8(file.relative_to(root).as_posix())
            yield SourceItem(None, name, skip_reason="caption file without an image")
        elif file not in texts:
            yield skipped_file(file, root, "no caption file beside it")


def _item(image: Path, text: Path, root: Path, classes: set[str] | None) -> SourceItem:
    scene = None
    if classes is not None:
        scene = class_folder(image, root) or folder_in_name(image, classes)
    item = SourceItem(
        split=split_folder(image.relative_to(root).parts[:-1]),
        name=valid_utf8(image.relative_to(root).as_posix()),
        scene=scene,
        image=image,
    )
    try:
        captions = text.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return item._replace(skip_reason="caption file that is not UTF-8")
    if holds_boxes(captions):
        return item._replace(skip_reason="caption file that holds boxes")
    return item._replace(captions=captions.splitlines())
