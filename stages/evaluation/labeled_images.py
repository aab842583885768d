"""Labeled images of classifiers: read from shards, drawn by class, split by prompt or site."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from stages.common.artifacts import read_rows
from stages.common.rng import rng
from stages.evaluation.networks import load_images
from stages.evaluation.sites import sites_of_tiles

SPLITS = 3  # train, valid, test


class LabeledImages(NamedTuple):
    """Images of one size with their class numbers."""

    images: np.ndarray  # uint8 [N, R, R, 3]
    labels: np.ndarray  # int64 [N]
    # Number of each image's unit (prompt or site), int64 [N]: images of one unit are alike.
    units: np.ndarray

    def take(self, indices: np.ndarray) -> "LabeledImages":
        return LabeledImages(self.images[indices], self.labels[indices], self.units[indices])


def read_labeled_images(
    folder: str,
    column: str,
    class_of: dict[str, int],
    resolution: int,
    max_per_class: dict[int, int] | None = None,
    seed: int = 0,
    unit_column: str | None = None,
) -> tuple[LabeledImages, Counter]:
    """Resized images of a folder of shards, and how many rows have no class, by their value.

    Args:
        folder: the shards.
        column: holds the scene or the label of each row.
        class_of: class number of each value of that column; other rows are left out.
        resolution: pixels per side.
        max_per_class: images drawn at random of each class, at most; None = all.
        seed: of that draw.
        unit_column: says which unit an image belongs to, such as its prompt; images of one unit
            are alike. None: real tiles, whose unit is the site that they were cut from.
    """
    rows = read_rows(folder, [column, unit_column or "filename"], optional=["site"])
    values = [row[column] for row in rows]
    unlabeled = Counter(value for value in values if value not in class_of)
    indices = [i for i, value in enumerate(values) if value in class_of]
    if max_per_class is not None:
        labels = {i: class_of[values[i]] for i in indices}
        shuffled = rng(seed, "ceiling").permutation(indices).tolist()
        indices = sorted(take_per_class(shuffled, labels, max_per_class))
    images = load_images(folder, resolution, indices).permute(0, 2, 3, 1).contiguous().numpy()
    class_numbers = np.array([class_of[values[i]] for i in indices], dtype=np.int64)
    if unit_column:
        units = [rows[i][unit_column] for i in indices]
    else:
        units = sites_of_tiles(rows[i] for i in indices)
    _, numbers = np.unique(units, return_inverse=True)
    return LabeledImages(images, class_numbers, numbers), unlabeled


def take_per_class(
    indices: list[int], labels: dict[int, int], max_per_class: dict[int, int]
) -> list[int]:
    """The first indices of each class, as many as `max_per_class` allows; no entry means none."""
    taken = []
    counts: Counter = Counter()
    for i in indices:
        if counts[labels[i]] < max_per_class.get(labels[i], 0):
            counts[labels[i]] += 1
            taken.append(i)
    return taken


def stratified_split(
    labels: np.ndarray,
    units: np.ndarray,
    valid_fraction: float,
    test_fraction: float,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Disjoint indices of train, valid and test, with each class spread evenly over them.

    The images of a unit, a prompt for example, are in one split: those of a prompt seen in training
    are easier. The images of a class with fewer units than splits are drawn one by one.
    valid and test hold at least one image each; train has one of each class, where there are more.

    Args:
        labels: class numbers [N].
        units: number [N] of the unit of each image.
        valid_fraction, test_fraction: of the images, met as closely as whole units allow.
        generator: draws.
    """
    groups: list[tuple[float, np.ndarray]] = []  # a position in [0, 1), and the images there
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        numbers = np.unique(units[members], return_inverse=True)[1]
        if numbers.max() + 1 < SPLITS:
            numbers = np.arange(len(members))
        # The groups of a class lie at equal distances in [0, 1).
        count = numbers.max() + 1
        positions = (generator.permutation(count) + generator.random()) / count
        groups += [(positions[i], members[numbers == i]) for i in range(count)]
    groups.sort(key=lambda group: group[0])

    split: dict[str, list[int]] = {"test": [], "valid": [], "train": []}
    wanted = {"test": test_fraction * len(labels), "valid": valid_fraction * len(labels)}
    not_held_out = Counter(labels.tolist())  # images of each class
    for _, group in groups:
        label = int(labels[group[0]])
        name = "train"
        if len(group) < not_held_out[label]:
            # The first split that the group brings closer to the number wanted.
            half = len(group) / 2
            short = [s for s in wanted if not split[s] or len(split[s]) + half < wanted[s]]
            name = short[0] if short else "train"
        if name != "train":
            not_held_out[label] -= len(group)
        split[name] += group.tolist()
    for name in wanted:  # of a few images, none may be left by then
        if not split[name] and split["train"]:
            split[name].append(split["train"].pop())
    return {name: np.array(indices, dtype=int) for name, indices in split.items()}
