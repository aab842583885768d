"""Read images that a JSON file of Karpathy's layout captions: RSICD, UCM, Sydney, NWPU captions.

    {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a lake"}]}]}
    {"airport": [{"filename": "airport_1.jpg", "split": "train", "raw": "a plane", "raw_1": "..."}]}
    {"airport_1.jpg": ["a plane", "..."]}

The second is that of NWPU-Captions; a single list may be named `data` or the like, which is no
class. The images lie in any folder below the root.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stages.imagery.captions import caption_fields, count_words, row_captions
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import (
    NAME_FIELDS,
    SEVERAL_LABELS,
    ImageSource,
    SourceItem,
    first_field,
    holds_several_labels,
    label_value,
    misnamed_split,
    row_label,
    skipped_file,
    split_folder,
    split_value,
    split_word,
    standard_split,
)
from stages.imagery.readers.listed_images import ListedImages
from stages.imagery.untrusted_text import posix_path, read_json, valid_utf8
from stages.runtime.errors import exit_with_error

# Names of a single list of images in JSON that are no class.
LIST_NAMES = frozenset(
    "annotations captions data dataset entries examples files images items list records results "
    "root rows samples tiles".split()
)


def find_captions_json(files: list[Path], root: Path, key: str) -> list[Path]:
    """The JSON files that caption images.

    A JSON file that is named as an image describes that image only.

    Raises:
        SystemExit: one holds COCO captions.
    """
    stems = {file.stem for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    found = []
    for file in files:
        is_json = file.suffix.lower() == ".json" and os.path.isfile(file)
        if not is_json or file.stem in stems:
            continue
        value = read_json(file)
        if _is_coco(value):
            exit_with_error(
                f"{key}: {file.relative_to(root)} holds COCO captions: write them as "
                'metadata.jsonl, one {"file_name": ..., "text": ...} per caption, into the folder '
                "of the images (docs/data.md shows how)"
            )
        if _entries(value):
            found.append(file)
    return found


def open_captions_json(
    json_files: list[Path], files: list[Path], root: Path, key: str
) -> ImageSource:
    """A source of images that JSON files caption. Images that none of them names are skipped.

    Raises:
        SystemExit: an entry has several labels.
    """
    entries = []
    for file in json_files:
        of_file = [entry for _, entry in _entries(read_json(file))]
        if any(holds_several_labels(row_label(entry)) for entry in of_file):
            exit_with_error(f"{key}: {file.relative_to(root)}: {SEVERAL_LABELS}")
        entries += of_file
    has_splits = any(first_field(("split",), entry) for entry in entries)
    misnamed = None if has_splits else misnamed_split(entries)
    read_items = partial(_read_items, json_files, files, root)
    return ImageSource(json_files, read_items, has_captions=True, misnamed_split=misnamed)


def _is_coco(value: Any) -> bool:
    """Whether a JSON value has annotations with captions, apart from the images."""
    annotations = value.get("annotations") if isinstance(value, dict) else None
    if not isinstance(annotations, list):
        return False
    return any(
        isinstance(annotation, dict) and "caption" in annotation for annotation in annotations
    )


def _entries(value: Any) -> list[tuple[str | None, dict]]:
    """(class, image) of each captioned image in a JSON value; [] if it has another layout."""
    if _is_captions_of_names(value):
        return [(None, {"file_name": name, "captions": texts}) for name, texts in value.items()]
    lists: list[tuple[str | None, list]] = []
    if isinstance(value, list):
        lists = [(None, value)]
    elif isinstance(value, dict) and isinstance(value.get("images"), list):
        lists = [(None, value["images"])]
    elif isinstance(value, dict):
        lists = [(name, images) for name, images in value.items() if isinstance(images, list)]
        captioned = [name for name, images in lists if name and _are_captioned(images)]
        if len(captioned) == 1 and captioned[0].lower() in LIST_NAMES:
            lists = [(None, value[captioned[0]])]
    entries: list[tuple[str | None, dict]] = []
    for name, images in lists:
        named = [image for image in images if isinstance(image, dict)]
        if name is not None and standard_split(name):
            entries += [(None, {"split": name} | image) for image in named]
        else:
            entries += [(name, image) for image in named]
    return entries if _are_captioned([image for _, image in entries]) else []


def _are_captioned(images: list) -> bool:
    """Whether one of the values of a list is the entry of an image with captions."""
    entries = (image for image in images if isinstance(image, dict))
    return any(_file_name(entry) and caption_fields(entry) for entry in entries)


def _is_captions_of_names(value: Any) -> bool:
    """Whether a JSON value is an object of image names and lists of captions, not of classes."""
    if not isinstance(value, dict):
        return False
    lists = [
        texts
        for name, texts in value.items()
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and isinstance(texts, list)
    ]
    texts = (text for texts in lists for text in texts if isinstance(text, str))
    return any(count_words(text) > 1 for text in texts)


def _file_name(entry: dict) -> Any:
    return entry.get(first_field(NAME_FIELDS, entry) or "")


def _read_items(
    json_files: list[Path], files: list[Path], root: Path, with_images: bool
) -> Iterator[SourceItem]:
    """Yield an item per entry. Images are given as paths, with or without `with_images`.

    Where entries have a class, one without has none, whatever its file is named.
    """
    images = ListedImages(files, root)
    listed = set(json_files)
    entries_of = {json_file: _entries(read_json(json_file)) for json_file in json_files}
    has_classes = any(
        class_name is not None or row_label(entry) is not None
        for entries in entries_of.values()
        for class_name, entry in entries
    )
    for json_file, entries in entries_of.items():
        for number, (class_name, entry) in enumerate(entries, 1):
            item = _item(class_name, entry, number, json_file, root, images)
            if item.image is not None:
                listed.add(item.image)
            yield item._replace(scene="") if has_classes and item.scene is None else item
    list_names = " or ".join(sorted({file.name for file in json_files}))
    for file in files:
        if file not in listed:
            yield skipped_file(file, root, f"not in {list_names}")


def _item(
    class_name: str | None,
    entry: dict,
    number: int,
    json_file: Path,
    root: Path,
    images: ListedImages,
) -> SourceItem:
    """The item of an entry: its image, or why the entry is skipped."""
    file_name = _file_name(entry)
    if not isinstance(file_name, str) or not file_name.strip():
        entry_name = valid_utf8(f"{json_file.relative_to(root).as_posix()}:{number}")
        return SourceItem(None, entry_name, skip_reason="entry without a file name")
    if isinstance(entry.get("filepath"), str):  # the folder, in COCO's variant of this layout
        file_name = f"{entry['filepath']}/{file_name}"
    file, reason = images.find_name(json_file.parent, file_name, class_name)
    if file is None:
        return SourceItem(None, posix_path(file_name), skip_reason=reason)
    return SourceItem(
        split=_split(entry, json_file, file.relative_to(root)),
        name=valid_utf8(file.relative_to(root).as_posix()),
        captions=row_captions(entry),
        scene=label_value(row_label(entry) if class_name is None else class_name),
        image=file,
    )


def _split(entry: dict, json_file: Path, image: Path) -> str | None:
    """The split that the entry, the JSON file's name (captions_val.json) or a folder tells."""
    split = split_value(entry.get(first_field(("split",), entry) or ""))
    if split:
        return split
    return split_word(json_file.stem) or split_folder(image.parts[:-1])
