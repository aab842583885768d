"""What every reader yields: the items of a source, unchecked and in a fixed order."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stages.imagery.captions import MISSING_VALUES
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.untrusted_text import valid_utf8

# What splits are named, as `datasets` has it (restval: Karpathy's JSON), and which split that is.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}

# The names of fields and columns, the first that a source has, in lower case.
NAME_FIELDS = ("file_name", "filename")
SCENE_FIELDS = ("scene", "class_name", "classname", "class", "category", "label")
# The names of fields that hold several classes of a tile.
PLURAL_SCENE_FIELDS = ("scenes", "class_names", "classes", "categories", "labels")
SEVERAL_LABELS = (
    "several labels per tile, or one-hot labels, are not read: keep one label per tile in a field "
    "`scene` (such as the class of most of its area), or give a label raster: fetch_imagery.labels"
)
# What one-hot labels hold, as text in lower case.
FLAGS = {"0", "1", "0.0", "1.0", "false", "true"}
# A list written as text: "['a', 'b']" of pandas, "['a' 'b']" of numpy, "[a, b]".
LIST_IN_TEXT = re.compile(r"[\[(].*[,'\"].*[\])]", re.DOTALL)
# What may stand after the name of a split: val2017, test_set.
SPLIT_ENDING = re.compile(r"[ _-]?(set|data|images|\d+)$")
# The name of a field of 0 and 1 that tells a split: is_valid, isTest, is_training_image, val_split.
SPLIT_FLAG = re.compile(
    r"(?:is[ _-]?|in[ _-])(.+?)(?:[ _-](?:image|split))?|(.+)[ _-]split", re.IGNORECASE
)


class SourceItem(NamedTuple):
    """An image of a source, or a file or metadata line of it that is no image.

    Nothing but `skip_reason` is checked yet: captions and image may be unusable.
    """

    split: str | None  # the source's own name of the split
    name: str  # its path below the root of the source, or what a table calls it
    captions: Any = None  # as the source holds them; None: it has no caption field
    scene: str | None = None  # the class, "" for none; None: the file name tells it
    # encoded bytes, a path, a RasterWindow of a scene, or a SceneId of the embedded scenes
    image: Any = None
    skip_reason: str | None = None  # why the reader could not read it
    content_name: str | None = None  # from the image's bytes, where `name` doesn't tell it apart
    label_share: float | None = None  # of a label raster's valid pixels: those of its class


class ImageSource(NamedTuple):
    """An opened source."""

    files: list[Path]  # tables and lists, whose hashes SOURCE.json records
    # read_items(with_images) yields the same items in the same order each time.
    read_items: Callable[[bool], Iterator[SourceItem]]
    has_captions: bool  # it has a caption field
    unread_captions: str | None = None  # a file that seems to hold captions in another layout
    columns: Sequence[str] = ()  # of its first table
    list_folders: Sequence[PurePosixPath] = ()  # of its metadata lists, below its root
    unread_split: str | None = None  # a file that seems to list the images of a split
    unread_classes: str | None = None  # a file that seems to list the classes of the images
    misnamed_split: str | None = None  # a field of another name that seems to hold splits
    # Of its rasters, if it says so; see fetch_imagery.bands.
    rgb_bands: list[int | str] | None = None


def first_field(fields: tuple[str, ...], names: Iterable[str]) -> str | None:
    """The first of the fields that is among the names, in any case, as it is written there."""
    by_lower_case = {name.lower(): name for name in names}
    return next((by_lower_case[field] for field in fields if field in by_lower_case), None)


def holds_several_labels(value: Any) -> bool:
    """Whether the class of a tile is a list of several, or a list written as text."""
    if isinstance(value, str):
        return bool(LIST_IN_TEXT.fullmatch(value.strip()))
    is_list = isinstance(value, (list, tuple))
    return is_list and (len(value) > 1 or any(map(holds_several_labels, value)))


def label_value(value: Any) -> str | None:
    """The class that a field names; None: it is empty, a missing value, or -1 (the hub's none).

    A number that pandas made a float, where rows lack it, is that number: 2.0 is "2". The class in
    a list of one is that class. An object, such as COCO's {"id": 0, "name": "lake"}, names none.
    """
    if isinstance(value, (list, tuple)) and len(value) < 2:
        value = value[0] if value else None
    if isinstance(value, dict):
        return None
    text = valid_utf8("" if value is None else str(value)).strip()
    text = re.sub(r"^(-?\d+)\.0$", r"\1", text)
    is_missing = text.lower() in MISSING_VALUES - {"none"} or re.fullmatch(r"-\d+", text)
    return text if text and not is_missing else None


def row_label(row: dict) -> Any:
    """The value of the first class field of a row that has one; None: the row has no class."""
    by_lower_case = {name.lower(): value for name, value in row.items()}
    values = (by_lower_case.get(field) for field in SCENE_FIELDS)
    return next((value for value in values if label_value(value) is not None), None)


def split_value(value: Any) -> str | None:
    """The split that a field names; numbers, which name none, are asked about like other names."""
    is_given = isinstance(value, str | int | float) and not isinstance(value, bool)
    return label_value(value) if is_given else None


def flag_fields(rows: Iterable[dict]) -> list[str]:
    """The fields that hold 0 and 1, or true and false, alone, as text too; [] if fewer than two."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, set()).add(str(value).strip().lower())
    fields = [name for name, found in values.items() if found <= FLAGS]
    return fields if len(fields) > 1 else []


def image_name(item: SourceItem) -> str:
    """The name that no other image of the source has. Rows with the same are of one image."""
    return item.content_name or item.name


def scene_of(item: SourceItem) -> str:
    """The scene that the source gives, or else the one in the file name."""
    return scene_in_name(item.name) if item.scene is None else item.scene


def scene_in_name(name: str) -> str:
    """What stands before the last underscore of a file name, or "" if that holds a digit.

    It is RSICD's convention: rsicd_images/airport_1.jpg shows an airport. A tile's coordinates or
    date (T32UMD_20200101_3.tif) are no class.
    """
    scene = PurePosixPath(name).stem.rpartition("_")[0]
    return "" if re.search(r"\d", scene) else scene


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


def standard_split(name: str) -> str | None:
    """Which of train, valid and test a name means (Train, dev, val2017, test_set), if any.

    split=test is a folder of a table that is partitioned by `split`.
    """
    name = name.strip().lower().removeprefix("split=")
    return SPLIT_NAMES.get(SPLIT_ENDING.sub("", name))


def split_words(name: str) -> list[str]:
    """The words of a name that mean a split: `test` of EuroSAT-test-2 and of subset=test."""
    return [word for word in re.split("[ _.=-]", name) if standard_split(word)]


def split_word(name: str) -> str | None:
    """The word of a name that means a split, if exactly one does."""
    words = split_words(name)
    return words[0] if len(words) == 1 else None


def _is_split_flag(name: str, flags: Collection[str]) -> bool:
    """Whether a field of 0 and 1 of this name tells which rows are of a split: is_valid, test.

    Alone, `valid` may be a flag of quality, and `train` a class; beside other `flags`, `test` too.
    """
    if found := SPLIT_FLAG.fullmatch(name):
        return standard_split(found[1] or found[2]) is not None
    return name.lower() == "test" and len(flags) == 1


def misnamed_split(rows: Iterable[dict]) -> str | None:
    """The first field that names a split in each row that has it, and several in all; or None.

    A field that is named as a split (is_test) may also hold 0 and 1, or true and false.
    """
    read = {*NAME_FIELDS, *SCENE_FIELDS, "split"}
    found: dict[str, set[str | None]] = {}  # the splits or flags of each field; None: other values
    for row in rows:
        for name, value in row.items():
            values = found.setdefault(name, set())
            if None in values or name.lower() in read or not isinstance(value, str | int | float):
                continue
            if (flag := str(value).strip().lower()) in FLAGS:
                values.add(flag)
            elif (text := split_value(value)) is not None:
                values.add(standard_split(text))
    flags = [name for name, values in found.items() if values and values <= FLAGS]
    for name, values in found.items():
        is_split = _is_split_flag(name, flags) if name in flags else FLAGS.isdisjoint(values)
        if is_split and len(values) > 1 and None not in values:
            return name
    return None


def split_folder(folders: Sequence[str]) -> str | None:
    """The first folder that is named as a split, if any."""
    return next((folder for folder in folders if standard_split(folder)), None)
