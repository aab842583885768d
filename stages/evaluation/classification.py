"""The land-use classifier: labeled tiles -> Albumentations -> a LightningDataModule -> TorchGeo's ClassificationTask.

Used twice: trained on generated images (`classify`) and, as the ceiling, on as many real ones (`ceiling`); tested on real.
"""

import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset
from torchgeo.trainers import ClassificationTask

from stages.common.artifacts import read_rows
from stages.common.rng import rng
from stages.common.torch_setup import torch_generator
from stages.evaluation.networks import create, load_images, statistics
from stages.evaluation.scores import errors_of, scores_of
from stages.params import Classifier
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import available_cores, ordered_map

# ESA's 8-bit true-color images reach 255 at a Sentinel-2 reflectance of 0.3558. TorchGeo's weights were trained on
# reflectance (digital numbers / 10,000, bands B4, B3, B2 = R, G, B), so that is what pixels are scaled to for them.
SENTINEL2_WHITE = 0.3558


class Labeled(NamedTuple):
    """Tiles of one size with the numbers of their classes."""

    images: np.ndarray  # uint8 [N, R, R, 3]
    labels: np.ndarray  # int64 [N]

    def take(self, chosen: np.ndarray) -> "Labeled":
        return Labeled(self.images[chosen], self.labels[chosen])


class Outcome(NamedTuple):
    """One trained classifier and what it scored on each test set."""

    network: torch.nn.Module
    scores: dict[str, dict[str, float]]
    errors: dict[str, dict[str, float]]  # their standard errors, from the size of the test set
    predicted: dict[str, np.ndarray]  # class numbers [N]
    config: dict


def read_labeled(
    folder: str,
    column: str,
    number: dict[str, int],
    resolution: int,
    wanted: dict[int, int] | None = None,
    seed: int = 0,
) -> tuple[Labeled, Counter]:
    """The images of a folder of shards whose `column` has a class number, resized, and how many rows had none, by value.

    `wanted`: at most so many images of each class, drawn at random.
    """
    values = [row[column] for row in read_rows(folder, [column])]
    left_out = Counter(value for value in values if value not in number)
    places = [i for i, value in enumerate(values) if value in number]
    if wanted is not None:
        order = rng(seed, "ceiling").permutation(places).tolist()
        taken: Counter = Counter()
        places = sorted(
            i
            for i in order
            if (label := number[values[i]]) in wanted
            and taken[label] < wanted[label]
            and not taken.update([label])
        )
    images = load_images(folder, resolution, places).permute(0, 2, 3, 1).contiguous().numpy()
    return Labeled(images, np.array([number[values[i]] for i in places], dtype=np.int64)), left_out


def split(
    labels: np.ndarray, valid: float, test: float, draws: np.random.Generator
) -> dict[str, np.ndarray]:
    """Places of train, valid and test [.], disjoint and stratified: each class is shared out evenly; none is empty."""
    order = draws.permutation(len(labels))
    spread = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        spread[members] = (np.arange(len(members)) + draws.random()) / len(
            members
        )  # a class fills [0, 1) evenly
    order = np.argsort(spread, kind="stable")
    tested, validated = max(round(test * len(labels)), 1), max(round(valid * len(labels)), 1)
    return {
        "test": order[:tested],
        "valid": order[tested : tested + validated],
        "train": order[tested + validated :],
    }


class Tiles(Dataset):
    """Batches for TorchGeo: {image: float [3, R, R], label}."""

    def __init__(self, tiles: Labeled, transform: A.Compose):
        self.tiles, self.transform = tiles, transform

    def __len__(self) -> int:
        return len(self.tiles.labels)

    def __getitem__(self, i: int) -> dict:
        image = self.transform(image=self.tiles.images[i])["image"]  # float32 [R, R, 3]
        return {
            "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
            "label": int(self.tiles.labels[i]),
        }


class TilesModule(LightningDataModule):
    """Three separate splits of the training source. Only train is augmented: the others are measured as they are."""

    def __init__(
        self, source: Labeled, p: Classifier, mean: list[float], std: list[float], seed: int
    ):
        super().__init__()
        places = split(
            source.labels, p.valid_fraction, p.test_fraction, rng(seed, "classifier splits")
        )
        if len(places["train"]) < 2:  # batch normalization needs two
            exit_with_error(
                f"classifier.valid_fraction, classifier.test_fraction: of {len(source.labels)} images {len(places['valid'])} and "
                f"{len(places['test'])} are held out; {len(places['train'])} left to train on is not enough"
            )
        plain = A.Compose([A.Normalize(mean, std)])
        margin = p.resolution // 8
        augmented = A.Compose(
            [
                A.Pad(margin, border_mode=2),  # 2: mirrored, so that a crop never shows a frame
                A.RandomCrop(p.resolution, p.resolution),
                A.HorizontalFlip(),
                A.VerticalFlip(),
                A.RandomRotate90(),
                A.RandomBrightnessContrast(),
                A.GaussNoise(
                    std_range=(0.01, 0.06)
                ),  # generated images have no sensor noise, real ones do
                A.Normalize(mean, std),
            ],
            seed=seed,
        )
        self.size = p.batch_size
        self.generator = torch_generator(seed, "classifier")
        self.plain = plain
        self.train = Tiles(source.take(places["train"]), augmented)
        self.valid, self.test = (
            Tiles(source.take(places["valid"]), plain),
            Tiles(source.take(places["test"]), plain),
        )

    def train_dataloader(self) -> DataLoader:
        # A last batch of one image would leave batch normalization nothing to normalize.
        return DataLoader(
            self.train,
            self.size,
            shuffle=True,
            generator=self.generator,
            drop_last=len(self.train) > self.size,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.valid, self.size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.size)


class Task(ClassificationTask):
    """TorchGeo's, with a network for images of our size: some networks know but the size they were published at."""

    def __init__(self, resolution: int, **options):
        super().__init__(**options)

    def configure_models(self) -> None:
        self.model = create(
            self.hparams["model"],
            self.hparams["num_classes"],
            self.hparams["resolution"],
            "classifier.model",
        )


def train_and_test_all(asked: list[tuple]) -> list[Outcome]:
    """`train_and_test` of each of these arguments: side by side where they would have a core each at most, else one by one.

    Much of a small network's step is Python, which leaves other cores idle. Processes are forked, and a fork of a process whose
    OpenMP threads have started hangs as soon as it uses more than one: hence one thread each, and none on a GPU.
    """
    if torch.cuda.is_available() or not 1 < available_cores() <= len(asked):
        return [train_and_test(*arguments) for arguments in asked]
    return [
        outcome
        for _, outcome in ordered_map(
            _on_one_thread, enumerate(asked), 1, min(len(asked), 2 * available_cores())
        )
    ]


def _on_one_thread(arguments: tuple) -> Outcome:
    torch.set_num_threads(1)
    return train_and_test(*arguments)


def train_and_test(
    source: Labeled,
    real: Labeled,
    names: list[str],
    p: Classifier,
    seed: int,
    weights: Path | None,
) -> Outcome:
    """Train one classifier on its part of `source`; test it on the part of `source` held back, and on `real`.

    weights: a TorchGeo backbone as safetensors, or None for random weights. Scores: as TorchGeo's own metrics have them
    where every class has test images (`scores.scores_of` says what is averaged where one has none).
    """
    quiet()
    torch.manual_seed(seed)
    mean, std = (
        ([0.0] * 3, [1 / SENTINEL2_WHITE] * 3)
        if weights
        else statistics(torch.from_numpy(source.images).permute(0, 3, 1, 2))
    )
    data = TilesModule(source, p, mean, std, seed)
    task = Task(p.resolution, model=p.model, num_classes=len(names), lr=p.lr)
    task.model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    if weights:
        start_from(task, weights)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            max_epochs=p.epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic=True,
            default_root_dir=scratch,
        )
        trainer.fit(task, data)
        loaders = {
            "synthetic_test": data.test_dataloader(),
            "real_test": DataLoader(Tiles(real, data.plain), p.batch_size),
        }
        scores, errors, predicted = {}, {}, {}
        for name, loader in loaders.items():
            likely = torch.cat(trainer.predict(task, loader))  # [N, K], probabilities
            if not likely.isfinite().all():
                exit_with_error(
                    f"classifier.lr: the trained classifier's probabilities are no numbers. Try a lower lr than {p.lr}"
                )
            labels = loader.dataset.tiles.labels
            losses = (
                -likely[torch.arange(len(labels)), torch.from_numpy(labels)]
                .clamp_min(1e-30)
                .log()
                .double()
                .numpy()
            )
            predicted[name] = likely.argmax(1).numpy()
            found = scores_of(labels[None], predicted[name][None], losses[None], len(names))
            scores[name] = {score: float(value[0]) for score, value in found.items()} | {
                "n": len(labels)
            }
            errors[name] = errors_of(
                labels, predicted[name], losses, len(names), rng(seed, "classifier errors")
            )
    scores["train"] = {"n": len(data.train)}
    config = {
        "model": p.model,
        "resolution": p.resolution,
        "classes": names,
        "mean": mean,
        "std": std,
    }
    return Outcome(task.model, scores, errors, predicted, config)


def start_from(task: Task, weights: Path) -> None:
    """Load a backbone in timm's names (TorchGeo's layout); everything but the last layer must be in it and fit."""
    from safetensors.torch import load_file

    found, head = load_file(weights), task.model.get_classifier()
    last = tuple(f"{name}." for name, module in task.model.named_modules() if module is head)
    wanted = {
        name: value for name, value in task.model.state_dict().items() if not name.startswith(last)
    }
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            exit_with_error(
                f"fetch_model.classifier: {weights}: {name} is missing or of another shape: these are not weights of "
                f"classifier.model {task.hparams['model']} for 3 bands"
            )
    task.model.load_state_dict({name: found[name] for name in wanted}, strict=False)


def quiet() -> None:
    """Lightning talks about devices and workers on every call."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)
