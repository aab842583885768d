"""Read a classification data set of TorchGeo: its files, with its own splits, classes and bands."""

import inspect
import os
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.common.sources import refuse_output_folders
from stages.imagery.readers.items import SEVERAL_LABELS, ImageSource, SourceItem
from stages.imagery.untrusted_text import refuse_odd_names, valid_utf8
from stages.runtime.errors import exit_with_error

VARIABLE = "TORCHGEO_DATA"
# The data sets that are read: each lists its image files and their classes in `samples`.
DATASETS = (
    "EuroSAT",
    "EuroSAT100",
    "EuroSATSpatial",
    "FireRisk",
    "PatternNet",
    "RESISC45",
    "UCMerced",
)
SEVERAL_LABEL_DATASETS = ("BigEarthNet", "BigEarthNetV2")  # the classes of a tile are a list


def open_torchgeo(source: str, key: str, download: bool) -> tuple[ImageSource, dict[str, Any]]:
    """Open the data set of a `torchgeo:<name>` source in the folder `$TORCHGEO_DATA`.

    Args:
        source: such as `torchgeo:EuroSAT`.
        key: the params key of the source, for error messages.
        download: whether TorchGeo downloads a data set that isn't there.

    Returns:
        The source, and what it resolved to, for SOURCE.json.

    Raises:
        SystemExit: the data set isn't one that is read, isn't there, or is incomplete, or the path
            of an image is not UTF-8.
    """
    name = source.partition(":")[2]
    if name in SEVERAL_LABEL_DATASETS:
        exit_with_error(f"{key}: {source}: {SEVERAL_LABELS}")
    if name not in DATASETS:
        exit_with_error(f"{key}: {source} is not read; those that are: {', '.join(DATASETS)}")
    root = _root(f"{key}: {source}")
    import torchgeo.datasets

    dataset_class = getattr(torchgeo.datasets, name)
    # FireRisk has no test split, PatternNet has no splits.
    has_splits = "split" in inspect.signature(dataset_class).parameters
    samples = []
    for split in dataset_class.splits if has_splits else (None,):
        options = {} if split is None else {"split": split}
        dataset = _open_dataset(dataset_class, root, download, options, f"{key}: {source}")
        samples += [(split, Path(path), dataset.classes[label]) for path, label in dataset.samples]
    refuse_odd_names([path for _, path, _ in samples], root, f"{key}: {source}")
    rgb_bands = None
    if hasattr(dataset_class, "rgb_bands"):
        names = dataset_class.all_band_names
        rgb_bands = [names.index(band) + 1 for band in dataset_class.rgb_bands]
    resolved = {"dataset": name, "torchgeo": version("torchgeo")}
    read_items = partial(_read_items, samples, root)
    return ImageSource([], read_items, has_captions=False, rgb_bands=rgb_bands), resolved


def _root(label: str) -> Path:
    """The folder that holds TorchGeo's data sets."""
    if not os.environ.get(VARIABLE):
        exit_with_error(f"{label}: the environment variable {VARIABLE} (its folder) is not set")
    root = Path(os.environ[VARIABLE]).expanduser()
    refuse_output_folders(root, f"{label}: ${VARIABLE}")
    return root


def _open_dataset(
    dataset_class: Any, root: Path, download: bool, options: dict[str, str], label: str
) -> Any:
    """Make a TorchGeo data set, which unpacks its archive and may download it."""
    from torchgeo.datasets import DatasetNotFoundError

    try:
        return dataset_class(root=os.fspath(root), download=download, checksum=download, **options)
    except DatasetNotFoundError:
        exit_with_error(
            f"{label} is not in {root}; put its files there, or set fetch_imagery.download: true"
        )
    # OSError: no class folder or split file, or no network; RuntimeError: of another checksum.
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        message = " ".join(str(error).split())
        exit_with_error(f"{label} in {root} is incomplete or can't be downloaded: {message}")


def _read_items(
    samples: list[tuple[str | None, Path, str]], root: Path, with_images: bool
) -> Iterator[SourceItem]:
    """Yield an item per image. Images are given as paths, with or without `with_images`."""
    for split, path, class_name in samples:
        yield SourceItem(
            split=split,
            name=valid_utf8(path.relative_to(root).as_posix()),
            scene=valid_utf8(class_name),
            image=path,
        )
