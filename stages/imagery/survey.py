"""The first pass over a source, without images: which items are usable, and which are kept."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stages.common.class_names import slug
from stages.imagery.captions import (
    CAPTION_FIELDS,
    caption_fields,
    caption_from_scene,
    caption_list,
    usable_captions,
)
from stages.imagery.readers.items import (
    NAME_FIELDS,
    SCENE_FIELDS,
    ImageSource,
    SourceItem,
    image_name,
    scene_of,
    split_word,
    standard_split,
)
from stages.imagery.readers.listed_images import NAME_FAULTS
from stages.imagery.skip_report import SkipReport
from stages.imagery.splits import name_hash
from stages.params import FetchImagery
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

MIN_SCENES = 2  # that a scene classifier, and with it the evaluation, needs
NAME_SPLITS = (
    "move the images into train/, valid/ and test/, or give a list (metadata.csv) or table with "
    "the field `split`"
)
NAME_FOLDERS = "name them in fetch_imagery.splits, or "
# Names of classes that don't say what is shown, such as class_1.
SILENT_NAME = re.compile(r"true|false|yes|no|(class|label|category)[\W\d_]*", re.IGNORECASE)
# The number or letter by which names are sorted: 01_Trees, aGrass; not that of "1 storey".
SORT_MARK = re.compile(r"\d+(?![\d ])|[a-z](?=[A-Z])")
CODE = re.compile(r"\d+[_.-]+(\w)")  # such as WorldCover's before a name in capital letters
ONE_CAPTION = "fetch_imagery.caption gives one caption to all images of a flat folder or table"


@dataclass
class Survey:
    """What the first pass found: the usable items of a source.

    Attributes:
        usable: split -> (name hash, item number) of each.
        scenes: scene -> number of usable items; "": no scene.
        further_captions: item number -> captions of further rows of its image.
        given_scenes: by class folders, labels or a field; not by names beside captions.
        folders: in which the images lie: their names, without those above.
        unsplit_folders: of the images in no split, and those above.
        uncaptioned: number of images without a usable caption, and without a class in its place.
    """

    usable: dict[str | None, list[tuple[float, int]]] = field(default_factory=dict)
    scenes: Counter[str] = field(default_factory=Counter)
    further_captions: dict[int, list] = field(default_factory=dict)
    given_scenes: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    unsplit_folders: set[PurePosixPath] = field(default_factory=set)
    uncaptioned: int = 0

    def image_counts(self) -> dict[str | None, int]:
        """The number of usable items in each split of the source."""
        return {split: len(items) for split, items in self.usable.items()}

    def first_folders(self) -> set[str]:
        """The folders of the root that are no classes and hold images in no split."""
        folders = {folder.name for folder in self.unsplit_folders if len(folder.parts) == 1}
        return folders - set(self.scenes)

    def unused_splits(self, used: Container[str | None]) -> dict[str, int]:
        """The number of usable items in the splits that are not used."""
        counts = self.image_counts().items()
        return {str(split): count for split, count in counts if split not in used}


class FirstRow(NamedTuple):
    """The first usable row of an image."""

    number: int  # of the item
    split: str | None
    scene: str
    file: Path | None  # None: the row holds the image


def survey_items(source: ImageSource, skipped: SkipReport) -> Survey:
    """Find the items that have usable captions, one for each image.

    Several rows may be of one image: the first usable one stands for it and gets the captions of
    the others.
    """
    survey = Survey()
    images: dict[str, FirstRow] = {}  # of each name
    unusable: dict[str, tuple[str, list]] = {}  # name -> reason, captions of its rows so far
    for number, item in enumerate(source.read_items(False)):
        if item.skip_reason:
            skipped.add(item.skip_reason, item.name)
            continue
        name, scene = image_name(item), scene_of(item)
        if name in images:
            _add_row(item, images[name], source.has_captions, survey, skipped)
            continue
        # Where a class is given, a source without a caption field gets captions from it.
        if source.has_captions or not item.scene:
            _, reason = usable_captions(item.captions)
            if reason:
                unusable.setdefault(name, (reason, []))[1].extend(caption_list(item.captions))
                continue
        file = item.image if isinstance(item.image, Path) else None
        images[name] = FirstRow(number, item.split, scene, file)
        if file is not None:
            survey.folders.add(file.parent.name.strip())
        if item.split is None:
            survey.unsplit_folders.update(PurePosixPath(item.name).parents)
        if name in unusable:
            survey.further_captions[number] = unusable.pop(name)[1]
        survey.scenes[scene] += 1
        if item.scene:
            survey.given_scenes.add(item.scene)
        survey.usable.setdefault(item.split, []).append((name_hash(name, "keep"), number))
    for name, (reason, _) in unusable.items():
        skipped.add(reason, name)
    survey.uncaptioned = len(unusable)
    return survey


def _add_row(
    item: SourceItem,
    first: FirstRow,
    has_captions: bool,
    survey: Survey,
    skipped: SkipReport,
) -> None:
    """Give the captions of a further row of an image to its first row.

    A row without a split or scene has those of the first. Of files whose names differ in their
    Unicode forms alone, the first is the image of that name.
    """
    if first.file not in (None, item.image) and not os.path.samefile(item.image, first.file):
        skipped.add("another file of the same name", image_name(item))
    elif item.split not in (None, first.split):
        skipped.add("further row of an image, in another split", image_name(item))
    elif item.scene and item.scene != first.scene:
        skipped.add("further row of an image, of another scene", image_name(item))
    elif not has_captions:
        skipped.add("further row of an image", image_name(item))
    else:
        survey.further_captions.setdefault(first.number, []).extend(caption_list(item.captions))


def choose_items(
    survey: Survey, splits: Iterable[str | None], max_images: int | None
) -> dict[int, list]:
    """Choose the items to keep: of each split those with the smallest name hashes.

    Returns:
        Item number -> captions of further rows of its image.
    """
    return {
        number: survey.further_captions.get(number, [])
        for split in splits
        for _, number in sorted(survey.usable[split])[:max_images]
    }


def count_left_out(
    survey: Survey, splits: Collection[str | None], kept: dict[int, list]
) -> dict[str, Any]:
    """Count the usable images that are not kept, for REPORT.json; log those over `max_images`."""
    counts: dict[str, Any] = {"unused_splits": survey.unused_splits(splits)}
    usable = sum(len(survey.usable[split]) for split in splits)
    if usable > len(kept):
        log(f"fetch_imagery.max_images: {len(kept)} of {usable} usable images are kept (null: all)")
        counts["left_out_by_max_images"] = usable - len(kept)
    return counts


def kept_items(source: ImageSource, kept: dict[int, list]) -> Iterator[SourceItem]:
    """Yield the items to keep with their images, unique names and all their captions."""
    for number, item in enumerate(source.read_items(True)):
        if number in kept:
            captions = caption_list(item.captions) + kept[number]
            yield item._replace(name=image_name(item), captions=captions)


def check_survey(
    survey: Survey, source: ImageSource, config: FetchImagery, skipped: SkipReport
) -> None:
    """Exit with an error if there is no usable item, or if nothing says what the images show.

    Captioned images of fewer than two scenes can be trained on, but not evaluated: that is logged.

    Args:
        survey: of the source.
        source: the opened source.
        config: where the source, its splits and `caption` come from.
        skipped: the items that were skipped.

    Raises:
        SystemExit: there is no usable item, captions or splits in an unknown layout would be
            ignored, or all captions would be written from the name of one class.
    """
    key = f"fetch_imagery.source: {config.source}"
    _refuse_unread_files(survey, source, config, key)
    if not any(config.splits.model_dump().values()):
        _check_list_folders(survey, source, key)
    advice = _advise_on_classes(source.unread_classes) or ONE_CAPTION
    if not survey.usable:
        reasons = f"{skipped} (layouts: docs/data.md)" if skipped.reasons else "it is empty"
        # Where a list names no files of the source, neither columns nor a caption would help.
        names_match = survey.uncaptioned > 0 or NAME_FAULTS.isdisjoint(skipped.reasons)
        if source.columns and not source.has_captions and names_match:
            read = ", ".join(CAPTION_FIELDS + SCENE_FIELDS)
            reasons += f"; its columns: {', '.join(source.columns)}; those read: {read}"
        is_list = bool(source.list_folders)  # whose images get no fetch_imagery.caption
        if not (source.has_captions or config.labels or is_list) and names_match:
            reasons += f"; {advice}"
        exit_with_error(f"{key}: no usable captioned image: {reasons}")
    scenes = sorted(scene for scene in survey.scenes if scene)
    _log_unread_columns(survey, source, key)
    if config.caption is not None and (source.has_captions or scenes):
        log(f"{key}: it has captions or classes, so fetch_imagery.caption is not used")
    shown = ", ".join(scenes[:20]) + (" ..." if len(scenes) > 20 else "")
    if len(scenes) >= MIN_SCENES:
        if not source.has_captions:
            log(f"{key}: no captions; they are written from {len(scenes)} class names: {shown}")
            _log_silent_names(scenes, key)
        return
    found = f"{len(scenes)} scene(s) in {survey.scenes.total()} usable image(s)"
    found += f": {shown}" if scenes else ""
    if not source.has_captions and scenes:
        exit_with_error(
            f"{key}: {found}; the pipeline classifies scenes: give class folders, a `scene` column "
            f"or field, captions, or names such as airport_1.jpg; {advice}; skipped: {skipped}"
        )
    if not source.has_captions:
        log(f"{key}: no captions and no classes: all images get fetch_imagery.caption")
    log(
        f"{key}: {found}: the model can be trained on them, but not evaluated: `dvc repro "
        "sample@tuned` trains and samples; train_scene and what depends on it need two scenes"
    )


def _refuse_unread_files(
    survey: Survey, source: ImageSource, config: FetchImagery, key: str
) -> None:
    """Exit with an error if captions or splits in an unknown layout would be ignored."""
    if source.unread_captions is not None:
        exit_with_error(
            f"{key}: {source.unread_captions} seems to hold captions, but not in a layout that is "
            "read: if it holds none, move it away to get captions from the class names; else write "
            "them as metadata.jsonl or metadata.csv with the fields file_name and text "
            "(docs/data.md)"
        )
    named = {standard_split(split) for split in survey.usable if split is not None} - {None}
    if folders := _folders_like_splits(survey.unsplit_folders):
        names = [folder.name for folder in folders]
        # Where fetch_imagery.splits is of no use: below a folder, and where they are the classes.
        is_nested = any(len(folder.parts) > 1 for folder in folders)
        advice = "" if is_nested or not survey.scenes.keys().isdisjoint(names) else NAME_FOLDERS
        exit_with_error(
            f"{key}: the folders {', '.join(names[:20])} seem to be splits: {advice}{NAME_SPLITS}; "
            "if they are classes, rename them"
        )
    has_params = any(config.splits.model_dump().values())
    # One name, such as that of the only table, train-00000-of-00001.parquet, tells no splits apart.
    if source.misnamed_split is not None and len(named) < 2 and not has_params:
        exit_with_error(
            f"{key}: its field {source.misnamed_split!r} seems to hold splits: name it `split`, "
            "with the values train, valid and test, or remove it; if it holds something else, "
            "rename it"
        )
    if source.unread_split is not None and not named and not has_params:
        has_class_folders = not survey.folders.isdisjoint(survey.scenes)
        if source.unread_split == source.unread_classes and not has_class_folders:
            exit_with_error(
                f"{key}: {source.unread_split} seems to list a split and the classes of the images"
                ": write it as metadata.csv with the fields file_name, scene and split"
            )
        exit_with_error(
            f"{key}: {source.unread_split} seems to list a split: {NAME_SPLITS}, or move the file "
            "away"
        )


def _advise_on_classes(class_list: str | None) -> str:
    """What to do with a file that seems to list the classes of the images; "" without one."""
    if class_list is None:
        return ""
    return (
        f"{class_list} seems to list the classes of the images: write it as metadata.csv with the "
        "fields file_name and scene"
    )


def _check_list_folders(survey: Survey, source: ImageSource, key: str) -> None:
    """Log the folders that have a list each and are no splits: they are read as one data set.

    Exits with an error if one is named as a split that others are not: train_new beside holdout.
    """
    folders = {
        next(iter(folder.parts), "the root")
        for folder in source.list_folders
        if folder in survey.unsplit_folders
    }
    if len(folders) < 2:
        return
    named = ", ".join(sorted(folders)[:20])
    splits = {folder: _split_in_name(folder) for folder in sorted(folders)}
    if len(set(splits.values())) > 1:
        like_split = next(folder for folder, split in splits.items() if split)
        exit_with_error(
            f"{key}: of the folders with lists, {named}, {like_split} seems to be a split: "
            f"{NAME_FOLDERS}{NAME_SPLITS}; if it is none, rename it"
        )
    log(
        f"{key}: the lists in {named} are read as one data set; if they are splits, name them in "
        "fetch_imagery.splits"
    )


def _folders_like_splits(folders: set[PurePosixPath]) -> list[PurePosixPath]:
    """The first folders side by side that each have the word of a split, and several in all.

    X_train and X_test seem to be splits; beside forest, train_station and test_site are classes.
    """
    # Of each folder that holds some.
    splits_in: dict[PurePosixPath, dict[PurePosixPath, str | None]] = {}
    for folder in sorted(folder for folder in folders if folder.name):
        splits_in.setdefault(folder.parent, {})[folder] = _split_in_name(folder.name)
    found = (splits for splits in splits_in.values() if None not in splits.values())
    return list(next((splits for splits in found if len(set(splits.values())) > 1), {}))


def _split_in_name(folder: str) -> str | None:
    """Which of train, valid and test a word of a folder's name means, if exactly one does."""
    # Pascal VOC's trainval, which is train and val, is no name of a split elsewhere.
    word = split_word(folder.lower().replace("trainval", "train"))
    return word and standard_split(word)


def _log_unread_columns(survey: Survey, source: ImageSource, key: str) -> None:
    """Log the columns of a table or list that may hold the classes, where none gives one."""
    read = {*NAME_FIELDS, *caption_fields(source.columns), "image", "split"}
    unread = [name for name in source.columns if name.lower() not in read and name not in read]
    if unread and not survey.given_scenes:
        log(
            f"{key}: no field gives a class; not read: {', '.join(unread[:20])} (a class field "
            f"holds names or numbers, and is named {', '.join(SCENE_FIELDS)})"
        )


def _log_silent_names(scenes: list[str], key: str) -> None:
    """Log the class names that say nothing in words: so do the captions written from them.

    These are numbers, `true`, `class_1` and the like, names that are numbered or lettered from the
    first to the last (01_Trees, 02_Water; aGrass, bField), and names that all begin with a code
    (10_Trees, 80_Water; not 2_lane_road): the captions hold the number, too.
    """
    silent = [
        scene
        for scene in scenes
        if not any(map(str.isalpha, scene)) or SILENT_NAME.fullmatch(scene)
    ]
    marks = [mark[0] for scene in scenes if (mark := SORT_MARK.match(scene))]
    places = sorted(int(mark) if mark.isdecimal() else ord(mark) - ord("a") for mark in marks)
    are_places = places in ([*range(len(scenes))], [*range(1, len(scenes) + 1)])
    if are_places or all((code := CODE.match(scene)) and code[1].isupper() for scene in scenes):
        silent = scenes
    if silent:
        log(
            f"{key}: warning: the classes {', '.join(silent[:20])} have no plain names: captions "
            f"such as {caption_from_scene(silent[0])!r} don't say in words what is shown: rename "
            "the classes, or give the images captions"
        )


def check_classes(
    survey: Survey,
    classes: Mapping[str, Sequence[str]],
    class_list: str | None = None,
    has_list: bool = False,
) -> None:
    """Log the scenes of the classes in params.yaml that no image shows.

    Args:
        survey: of the source.
        classes: those in params.yaml.
        class_list: a file that seems to list the classes of the images, but is not read.
        has_list: a list, a JSON file or the like has the captions or classes.

    Raises:
        SystemExit: no image shows a scene of any class, though the source gives scenes; two scenes
            have one name in metrics and files, or a scene has none there.
    """
    scenes = sorted(scene for scene in survey.scenes if scene)
    _check_slugs(scenes)
    mapped = [scene for class_scenes in classes.values() for scene in class_scenes]
    missing = [scene for scene in mapped if scene not in scenes]
    folders = [scene for scene in missing if scene in survey.folders]
    if has_list and folders and len(missing) == len(mapped):
        exit_with_error(
            f"classes: {', '.join(folders)}: these are folders of the images, but where a list or "
            "a JSON file has the captions or classes, folders are no classes: give it a field "
            "`scene`"
        )
    named = ", ".join(_with_hint(scene, scenes) for scene in missing)
    has_digit = not survey.given_scenes and any(re.search(r"\d", scene) for scene in missing)
    if has_digit:
        named += "; a file name with a digit before its last underscore gives no class"
    if len(scenes) < MIN_SCENES:
        if has_digit:
            log(f"classes: no image shows {named}")
        return
    if mapped and len(missing) == len(mapped):
        line = (
            f"classes: no image shows any of their scenes ({named}), which the evaluation needs; "
            f"the imagery has {', '.join(scenes[:60])}"
        )
        are_folders = not survey.folders.isdisjoint(scenes)
        advice = "" if are_folders else _advise_on_classes(class_list)
        if not survey.given_scenes:
            more = f"; {advice}" if advice else ""
            log(f"{line} by its file names: ceiling and classify will fail{more}")
            return
        if not advice:
            advice = "write classes with these"
            if are_folders:
                advice += " (without a label, the innermost folder is a tile's class: docs/data.md)"
        exit_with_error(f"{line}: {advice}")
    elif missing:
        log(f"classes: no image shows {named}")


def log_lost_scenes(
    survey: Survey, kept: Container[str], classes: Mapping[str, Sequence[str]]
) -> None:
    """Log the scenes of the classes in params.yaml of which no image is left.

    Args:
        survey: of the source.
        kept: the scenes of the tiles in train, valid and test.
        classes: those in params.yaml.
    """
    mapped = dict.fromkeys(scene for class_scenes in classes.values() for scene in class_scenes)
    lost = [scene for scene in mapped if survey.scenes[scene] and scene not in kept]
    if lost:
        log(
            f"classes: no image that is kept shows {', '.join(lost)} (fetch_imagery.max_images, "
            "splits that are not used, or skipped images)"
        )


def _check_slugs(scenes: list[str]) -> None:
    """Exit with an error if two scenes have the same slug but for case, or one has none."""
    scene_of: dict[str, str] = {}
    for scene in scenes:
        if not slug(scene):
            exit_with_error(
                f"fetch_imagery: the scene {scene!r} has neither a letter nor a digit, of which "
                "its name in metrics and files is made: rename it"
            )
        twin = scene_of.setdefault(slug(scene).lower(), scene)
        if twin != scene:
            shared = f", {slug(scene)}" if slug(scene) == slug(twin) else " but for case"
            exit_with_error(
                f"fetch_imagery: the scenes {twin!r} and {scene!r} have the same name in metrics "
                f"and files{shared}: rename one"
            )


def _with_hint(missing: str, scenes: list[str]) -> str:
    similar = difflib.get_close_matches(missing, scenes, n=1)
    return f"{missing} (did you mean {similar[0]}?)" if similar else missing
