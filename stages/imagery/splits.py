"""Train, validation and test splits: the source's own, and missing ones carved out of train."""

import hashlib
import re
from collections.abc import Collection, Iterator
from functools import partial

import numpy as np

from stages.imagery.readers.items import ImageSource, SourceItem, standard_split
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log


def name_hash(name: str, purpose: str = "split") -> float:
    """A uniform number in [0, 1) that depends only on the name and on what it is used for."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def carve_splits(names: list[str], groups: np.ndarray, valid: float, test: float) -> list[str]:
    """Assign images to splits by the hash of their names.

    With fractions, the split of an image depends only on its own name (in a group: on the group's
    first name), so it stays the same when other images are added. Test takes the smallest hashes
    and valid the largest, so neither changes with the size of the other.

    Args:
        names: file names [N].
        groups: [N]; images with the same value get the same split.
        valid: size of the split: a fraction (< 1), a count (>= 1), or 0.
        test: likewise.

    Returns:
        "train", "valid" or "test" for each image.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(i)
    hashed = sorted((name_hash(min(names[i] for i in group)), group) for group in members.values())
    from_largest = [(1 - group_hash, group) for group_hash, group in reversed(hashed)]
    splits = ["train"] * len(names)
    _take_groups(hashed, "test", test, splits)
    _take_groups(from_largest, "valid", valid, splits)
    return splits


def _take_groups(
    hashed: list[tuple[float, list[int]]], split: str, size: float, splits: list[str]
) -> None:
    """Change the first groups that are still in train to `split`, as far as its size allows.

    A fraction takes one group at least.

    Args:
        hashed: (hash, image indices) of each group, in the order in which groups are taken.
        split: "valid" or "test".
        size: a fraction (< 1), a count (>= 1), or 0.
        splits: the split of each image; changed in place.
    """
    if not size:
        return
    taken = 0
    for group_hash, group in hashed:
        if size < 1:
            fits = group_hash < size or not taken
        else:
            fits = taken + len(group) <= size
        if fits and splits[group[0]] == "train":
            taken += len(group)
            for i in group:
                splits[i] = split


def take_named_folders(source: ImageSource, requested: dict[str, str | None]) -> ImageSource:
    """The source in which requested folders of its root are splits, whatever they are named.

    An image in no split is of the split that its first folder is, unless that is its class.

    Args:
        source: an opened source.
        requested: "train", "valid" and "test" -> the name of the source's split, or None.
    """
    folders = {name.rstrip("/") for name in requested.values() if name is not None}
    return source._replace(read_items=partial(_read_items, source, folders)) if folders else source


def _read_items(source: ImageSource, folders: set[str], with_images: bool) -> Iterator[SourceItem]:
    for item in source.read_items(with_images):
        folder = item.name.partition("/")[0]
        is_split = item.split is None and folder in folders and folder != item.scene
        yield item._replace(split=folder) if is_split else item


def match_splits(
    image_counts: dict[str | None, int],
    requested: dict[str, str | None],
    key: str,
    folders: Collection[str] = (),
) -> tuple[dict[str | None, str], list[str]]:
    """Match the source's own splits with train, valid and test.

    Where none is requested, splits whose names say which is which (train, val, test) are matched.

    Args:
        image_counts: split of the source -> number of usable images; None: those in no split.
        requested: "train", "valid" and "test" -> the name of the source's split, or None.
        key: the params key of `requested`, for error messages.
        folders: those of the source that may be requested, too, for error messages.

    Returns:
        The source's split -> "train", "valid" or "test", and the names of the splits that have to
        be carved out of train.

    Raises:
        SystemExit: a requested split doesn't exist, or it isn't clear which split is which.
    """
    names = [name for name in image_counts if name is not None]
    available = f"the source has {', '.join(sorted(names)) if names else 'none'}"
    if names and None in image_counts:
        available += " and images in no split"
    own = {split: name.rstrip("/") for split, name in requested.items() if name is not None}
    for split, name in own.items():
        if name not in names:
            more = f", and the folders {', '.join(sorted(folders)[:20])}" if folders else ""
            exit_with_error(f"{key}.{split}: no split {name!r} in the imagery; {available}{more}")
        if list(own.values()).count(name) > 1:
            exit_with_error(f"{key}: {name} is named twice; {available}")
    matched: dict[str | None, str] = {name: split for split, name in own.items()}
    if not own and len(image_counts) > 1 and None not in image_counts:
        matched = _splits_by_name(names)
    # Numbered parts, data_1.parquet and data_2.parquet, are one table.
    parts_of = {re.sub(r"[ _.-]\d+$", "", name) for name in names}
    if not matched and len(image_counts) > 1 and (len(parts_of) > 1 or None in image_counts):
        exit_with_error(
            f"{key}: {available}: name its train, valid and test split (train: null takes the "
            "others; valid or test: null is carved out of train)"
        )
    matched |= _further_parts(names, matched)
    if "train" not in own:
        # Nothing is trained on that is called as a split that another name was given for, or as
        # one that stands for another split.
        taken = {*matched.values(), *map(standard_split, own.values())} - {"train", None}
        others = [name for name in image_counts if name not in matched]
        train = [name for name in others if name is None or standard_split(name) not in taken]
        if not train:
            exit_with_error(f"{key}.train: nothing is left for it: name its split; {available}")
        matched |= dict.fromkeys(train, "train")
    for unused, count in image_counts.items():
        if unused not in matched:
            where = "in no split" if unused is None else f"of the source's split {unused}"
            log(f"{key}: {count} images {where} are not used")
    missing = [split for split in ("valid", "test") if split not in matched.values()]
    return matched, missing


def _splits_by_name(names: list[str]) -> dict[str | None, str]:
    """Which of the source's splits are valid and test by their names; the others are train.

    {} if a name doesn't say which split it is, or two say the same and are no numbered parts.
    """
    roles = {name: standard_split(name) for name in names}
    own: dict[str | None, str] = {
        name: role for name, role in roles.items() if role in ("valid", "test")
    }
    others = {role for name, role in roles.items() if name not in own}
    bases = {_without_number(name) for name in names if name in own}
    is_clear = others == {"train"} and len(bases) == len(set(own.values()))
    return own if is_clear else {}


def _further_parts(names: list[str], matched: dict[str | None, str]) -> dict[str | None, str]:
    """The other numbered parts (test_2) of the splits that are matched (test_1)."""
    bases = {(_without_number(name), split) for name, split in matched.items() if name is not None}
    roles = {name: standard_split(name) for name in names if name not in matched}
    return {
        name: role
        for name, role in roles.items()
        if role and (_without_number(name), role) in bases
    }


def _without_number(name: str) -> str:
    return re.sub(r"[ _.-]?\d+$", "", name)
