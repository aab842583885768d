"""The classifier of tiles: Albumentations, Lightning and TorchGeo's ClassificationTask.

It is trained on generated images (`classify`) and, as the ceiling, on as many real ones
(`ceiling`); both are tested on real tiles.
"""

import hashlib
import logging
import random
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple, cast

import albumentations as A
import numpy as np
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from torchgeo.trainers import ClassificationTask
from torchmetrics import MetricCollection

from stages.common.artifacts import fingerprint, read_json
from stages.common.rng import rng
from stages.common.torch_setup import cpu_threads, torch_generator
from stages.evaluation.classifier_results import ClassifierResult, read_result, write_result
from stages.evaluation.intervals import count_units
from stages.evaluation.labeled_images import LabeledImages, stratified_split
from stages.evaluation.networks import channel_statistics, create_network
from stages.evaluation.scores import (
    accuracy_by_class,
    average_over_seeds,
    bootstrap_scores,
    classification_scores,
)
from stages.params import Classifier
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import available_cores, ordered_map
from stages.runtime.progress import log

# ESA's 8-bit true-color images reach 255 at a Sentinel-2 reflectance of 0.3558. TorchGeo's weights
# were trained on reflectance (digital numbers / 10,000 of bands B4, B3, B2 = R, G, B), so pixels
# are scaled to reflectance for weights without a config.json that says otherwise.
SENTINEL2_WHITE = 0.3558
BACKBONE = Path("models/base/classifier/model.safetensors")


class TrainingJob(NamedTuple):
    """What one classifier is trained and tested on."""

    source: LabeledImages  # split into train, valid and test
    real: LabeledImages  # the test set of real tiles
    class_names: list[str]
    config: Classifier
    seed: int
    weights: Path | None  # a TorchGeo backbone as safetensors; None: random weights


class LabeledImageDataset(Dataset):
    """Samples for TorchGeo: {image: float32 [3, R, R], label}."""

    def __init__(self, samples: LabeledImages, transform: A.Compose):
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitem__(self, i: int) -> dict:
        image = self.transform(image=self.samples.images[i])["image"]  # float32 [R, R, 3]
        return {
            "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
            "label": int(self.samples.labels[i]),
        }


def split_source(
    source: LabeledImages, config: Classifier, mean: list[float], std: list[float], seed: int
) -> dict[str, LabeledImageDataset]:
    """Train, valid and test of one source; only train is augmented."""
    split = stratified_split(
        source.labels,
        source.units,
        config.valid_fraction,
        config.test_fraction,
        rng(seed, "classifier splits"),
    )
    if len(split["train"]) < 2:  # batch normalization needs two
        exit_with_error(
            f"classifier: of {len(source.labels)} images, some are held out to validate and "
            "test on; fewer than two are left to train on"
        )
    transforms = {
        "train": augmentation(config.resolution, mean, std, seed),
        "valid": normalization(mean, std),
        "test": normalization(mean, std),
    }
    return {
        name: LabeledImageDataset(source.take(split[name]), transform)
        for name, transform in transforms.items()
    }


def train_loader(train: LabeledImageDataset, batch_size: int, seed: int) -> DataLoader:
    """Batches of the training images, in another order each epoch."""
    return DataLoader(
        train,
        batch_size,
        shuffle=True,
        generator=torch_generator(seed, "classifier"),
        # Batch normalization can't train on a last batch of one image.
        drop_last=len(train) > batch_size,
    )


def normalization(mean: list[float], std: list[float]) -> A.Compose:
    """Pixels in [0, 1] to zero mean and unit variance, per channel."""
    return A.Compose([A.Normalize(mean, std)])


def augmentation(resolution: int, mean: list[float], std: list[float], seed: int) -> A.Compose:
    """Random crops, flips, rotations, brightness, contrast and noise, then normalization."""
    transforms = A.Compose(
        [
            # Border mode 2 mirrors the image, so that a crop never shows a frame.
            A.Pad(resolution // 8, border_mode=2),
            A.RandomCrop(resolution, resolution),
            A.HorizontalFlip(),
            A.VerticalFlip(),
            A.RandomRotate90(),
            A.RandomBrightnessContrast(),
            # Real tiles have sensor noise, generated images have none.
            A.GaussNoise(std_range=(0.01, 0.06)),
            A.Normalize(mean, std),
        ]
    )
    # One generator for all: by `seed=` each transform would get its own, of the same seed, and an
    # image would be flipped left to right where it is flipped upside down, and nowhere else.
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transforms


class SizedClassificationTask(ClassificationTask):
    """TorchGeo's task with a network built for the images' size, which some networks fix."""

    def __init__(self, resolution: int, **options):
        super().__init__(**options)

    def configure_models(self) -> None:
        self.model = create_network(
            self.hparams["model"],
            self.hparams["num_classes"],
            self.hparams["resolution"],
            "classifier.model",
        )

    def configure_metrics(self) -> None:
        """None: they would take a tenth of the time, and the scores come from the predictions."""
        self.train_metrics = self.val_metrics = MetricCollection({})


def jobs_per_seed(
    source: LabeledImages,
    real: LabeledImages,
    class_names: list[str],
    config: Classifier,
    seed: int,
) -> list[TrainingJob]:
    """A job for each of `config.seeds` seeds from `seed` on, with the base weights if there are."""
    weights = BACKBONE if BACKBONE.exists() else None
    return [
        TrainingJob(source, real, class_names, config, seed + i, weights)
        for i in range(config.seeds)
    ]


def jobs_fingerprint(jobs: list[TrainingJob]) -> str:
    """`fingerprint` of all that decides the results: images, params, weights and this code."""
    settings = [
        {
            "images": [
                hashlib.sha256(array.data).hexdigest() for array in (*job.source, *job.real)
            ],
            "classes": job.class_names,
            "classifier": job.config.model_dump(),
            "seed": job.seed,
        }
        for job in jobs
    ]
    weights = sorted({job.weights.parent for job in jobs if job.weights})
    code = sorted(Path(__file__).parent.glob("*.py"))
    return fingerprint({"jobs": settings}, [*weights, *code])


def train_and_test_all(jobs: list[TrainingJob], folder: Path) -> list[ClassifierResult]:
    """`train_and_test` of each job, in parallel where there is a job for every core.

    Much of a small network's step is Python, which leaves other cores idle. Processes are forked,
    and a fork of a process whose OpenMP threads have started hangs as soon as it uses more than
    one: hence one thread each, and one job after another on a GPU.

    Args:
        jobs: to do.
        folder: keeps the result of each. Those that a killed run left there are not trained again.
    """
    files = [folder / f"{number}.safetensors" for number in range(len(jobs))]
    finished = {file: result for file in files if (result := read_result(file))}
    unfinished = [(file, (job, file)) for file, job in zip(files, jobs) if file not in finished]
    if finished:
        log(f"classifier: {len(finished)} of {len(jobs)} trained by an earlier run are kept")
    # Not by what is left to do: a resumed run trains on as many threads as the killed one.
    if torch.cuda.is_available() or not 1 < available_cores() <= len(jobs):
        finished |= {file: _train_and_keep(task) for file, task in unfinished}
    elif unfinished:
        processes = min(len(unfinished), 2 * available_cores())
        finished |= ordered_map(_train_and_keep_on_one_thread, unfinished, 1, processes)
    return [finished[file] for file in files]


def _train_and_keep_on_one_thread(task: tuple[TrainingJob, Path]) -> ClassifierResult:
    torch.set_num_threads(1)
    return _train_and_keep(task)


def _train_and_keep(task: tuple[TrainingJob, Path]) -> ClassifierResult:
    job, file = task
    result = train_and_test(job)
    write_result(file, result)
    return result


def train_and_test(job: TrainingJob) -> ClassifierResult:
    """Train a classifier on part of `job.source`; test it on another part and on `job.real`.

    The scores are TorchGeo's own metrics where every class has test images
    (`scores.classification_scores` says what is averaged where one has none).
    """
    config = job.config
    silence_lightning()
    torch.manual_seed(job.seed)
    if job.weights:
        mean, std = read_normalization(job.weights.with_name("config.json"))
    else:
        mean, std = channel_statistics(torch.from_numpy(job.source.images).permute(0, 3, 1, 2))
    splits = split_source(job.source, config, mean, std, job.seed)
    train = train_loader(splits["train"], config.batch_size, job.seed)
    task = SizedClassificationTask(
        config.resolution, model=config.model, num_classes=len(job.class_names), lr=config.lr
    )
    task.model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    if job.weights:
        load_backbone(task, job.weights)

    test_sets = {
        "synthetic_test": splits["test"],
        "real_test": LabeledImageDataset(job.real, normalization(mean, std)),
    }
    probabilities = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = create_trainer(config.epochs, folder)
        trainer.fit(task, train, DataLoader(splits["valid"], config.batch_size))
        for name, test_set in test_sets.items():
            batches = trainer.predict(task, DataLoader(test_set, config.batch_size))
            probabilities[name] = torch.cat(cast(list[torch.Tensor], batches))  # [N, K]

    scores = {}
    bootstrapped = {}
    predictions = {}
    by_class = {}
    for name, test_set in test_sets.items():
        refuse_nan(probabilities[name], config.lr)
        predictions[name] = probabilities[name].argmax(1).numpy()
        scores[name], bootstrapped[name], by_class[name] = score_predictions(
            test_set.samples, probabilities[name]
        )
    network_config = {
        "model": config.model,
        "resolution": config.resolution,
        "classes": job.class_names,
        "mean": mean,
        "std": std,
    }
    threads = cpu_threads(trainer.strategy.root_device)
    n_train = len(splits["train"])
    return ClassifierResult(
        task.model, n_train, threads, scores, bootstrapped, by_class, predictions, network_config
    )


def read_normalization(config: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel that a backbone expects of pixels in [0, 1].

    They are those of its config.json, as timm writes it, or Sentinel-2's where it has none.

    Raises:
        SystemExit: they are not three numbers each, or a deviation isn't above 0.
    """
    values = read_json(config) if config.exists() else {}
    if isinstance(values, dict):
        values = values.get("pretrained_cfg") or values
    if not isinstance(values, dict) or not {"mean", "std"} <= values.keys():
        return [0.0] * 3, [1 / SENTINEL2_WHITE] * 3
    wrong = f"fetch_model.classifier: {config}: mean or std is not 3 numbers (std: above 0)"
    try:
        mean, std = np.array(values["mean"], float), np.array(values["std"], float)
    except (TypeError, ValueError):
        exit_with_error(wrong)
    if not (mean.shape == std.shape == (3,) and np.isfinite(mean + std).all() and (std > 0).all()):
        exit_with_error(wrong)
    return mean.tolist(), std.tolist()


def refuse_nan(probabilities: torch.Tensor, lr: float) -> None:
    """Exit with an error if a classifier's training has diverged."""
    if not probabilities.isfinite().all():
        exit_with_error(
            "classifier.lr: the trained classifier's probabilities are NaN or inf. "
            f"Try a lower lr than {lr}"
        )


def create_trainer(epochs: int, folder: str) -> Trainer:
    """A deterministic, silent Lightning trainer on one device that keeps nothing in `folder`."""
    return Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True,
        default_root_dir=folder,
    )


def score_predictions(
    samples: LabeledImages, probabilities: torch.Tensor
) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """Judge probabilities [N, K] of images.

    Returns:
        Scores, with `n` and `n_units`; `bootstrap_scores`; `accuracy_by_class`.
    """
    n, class_count = probabilities.shape
    labels = samples.labels
    predictions = probabilities.argmax(1).numpy()  # [N]
    likelihoods = probabilities[torch.arange(n), torch.from_numpy(labels)]  # [N]
    losses = -likelihoods.clamp_min(1e-30).log().double().numpy()  # [N]
    scores = classification_scores(labels[None], predictions[None], losses[None], class_count)
    draws = rng(0, "classifier errors")  # the same for every classifier
    bootstrapped = bootstrap_scores(labels, predictions, losses, class_count, draws, samples.units)
    sizes = {"n": n, "n_units": round(count_units(samples.units))}
    by_class = accuracy_by_class(labels, predictions, class_count, samples.units)
    averages = {name: float(values[0]) for name, values in scores.items()}
    return averages | sizes, bootstrapped, by_class


def average_results(results: list[ClassifierResult], test_set: str) -> dict[str, float]:
    """`average_over_seeds` of classifiers on `synthetic_test` or `real_test`."""
    return average_over_seeds(
        [result.scores[test_set] for result in results],
        [result.bootstrapped[test_set] for result in results],
        [result.by_class[test_set] for result in results],
    )


def load_backbone(task: ClassificationTask, weights: Path) -> None:
    """Load a backbone in timm's names (TorchGeo's layout) into all layers but the last.

    Raises:
        SystemExit: a weight is missing or of another shape.
    """
    stored = load_file(weights)
    head = task.model.get_classifier()
    head_prefixes = tuple(
        f"{name}." for name, module in task.model.named_modules() if module is head
    )
    backbone = {}
    for name, value in task.model.state_dict().items():
        if name.startswith(head_prefixes):
            continue
        if name not in stored or stored[name].shape != value.shape:
            exit_with_error(
                f"fetch_model.classifier: {weights}: {name} is missing or of another shape: these "
                f"are not weights of classifier.model {task.hparams['model']} for 3 bands"
            )
        backbone[name] = stored[name]
    task.model.load_state_dict(backbone, strict=False)


def silence_lightning() -> None:
    """Hide what Lightning logs about devices and workers on every call."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)
