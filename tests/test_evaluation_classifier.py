"""The classifier of tiles: its splits, augmentation, training, scores, and its two stages."""

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
import yaml
from conftest import change_params
from PIL import Image

from stages.common.artifacts import (
    IMAGE,
    digest,
    encode_png,
    read_json,
    read_rows,
    write_json,
    write_shards,
)
from stages.common.class_names import slug
from stages.embedded.scenes import render
from stages.evaluation.classification import (
    SENTINEL2_WHITE,
    LabeledImageDataset,
    TrainingJob,
    augmentation,
    jobs_fingerprint,
    jobs_per_seed,
    normalization,
    score_predictions,
    split_source,
    train_and_test,
    train_and_test_all,
    train_loader,
)
from stages.evaluation.intervals import wilson_interval
from stages.evaluation.label_sets import read_label_set
from stages.evaluation.labeled_images import (
    LabeledImages,
    read_labeled_images,
    stratified_split,
)
from stages.evaluation.scores import (
    accuracy_by_class,
    average_by_class,
    average_over_seeds,
    bootstrap_scores,
    class_accuracy,
    classification_scores,
    share_of_ceiling,
)
from stages.evaluation.sites import source_file
from stages.params import Classifier, load
from stages.runtime.parallel import available_cores

CLASSES = {"forest": "Woody Vegetation", "lake": "Water Body", "desert": "Bare Land"}
SCHEMA = pa.schema([("image", IMAGE), ("filename", pa.string()), ("scene", pa.string())])
LABELED_SCHEMA = pa.schema([("image", IMAGE), ("row", pa.int32()), ("label", pa.string())])
CONFIG = Classifier(
    model="test_resnet",
    resolution=32,
    epochs=8,
    batch_size=8,
    lr=4e-3,
    seeds=1,
    valid_fraction=0.1,
    test_fraction=0.2,
    images_per_caption=1,
)


def brightness_images(count: int, seed: int = 0) -> LabeledImages:
    """Noise of three brightnesses, which are the classes."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(seed).integers(-20, 20, (count, 32, 32, 3))
    brightness = (60 + 70 * labels)[:, None, None, None]
    images = (noise + brightness).clip(0, 255).astype(np.uint8)
    return LabeledImages(images, labels, np.arange(count))


def brightness_job(
    train: int = 30, test: int = 9, seed: int = 0, weights: Path | None = None, **config
) -> TrainingJob:
    """Classify this number of `brightness_images`; `config` replaces values of `CONFIG`."""
    return TrainingJob(
        brightness_images(train),
        brightness_images(test, seed=1),
        list("abc"),
        CONFIG.model_copy(update=config),
        seed,
        weights,
    )


def test_splits_are_disjoint_complete_and_stratified():
    labels = np.repeat(np.arange(7), 50)
    split = stratified_split(labels, np.arange(350), 0.1, 0.2, np.random.default_rng(0))
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(350))
    for name, expected in (("test", 10), ("valid", 5), ("train", 35)):
        counts = np.bincount(labels[split[name]], minlength=7)
        assert abs(counts - expected).max() <= 1, (name, counts)
    tiny = np.array([0, 1, 1, 0])
    split = stratified_split(tiny, np.arange(4), 0.1, 0.1, np.random.default_rng(0))
    sizes = {name: len(indices) for name, indices in split.items()}
    assert sizes == {"test": 1, "valid": 1, "train": 2}


def test_the_images_of_a_prompt_are_in_one_split():
    """Those of a class with fewer prompts than splits are drawn one by one."""
    labels = np.repeat(np.arange(8), 50)
    prompts = np.repeat(np.arange(80), 5)
    prompts[350:] = 70  # the last class has one prompt
    split = stratified_split(labels, prompts, 0.1, 0.2, np.random.default_rng(0))
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(400))
    assert abs(len(split["test"]) - 80) <= 2 and abs(len(split["valid"]) - 40) <= 2
    of_splits = [set(prompts[indices][labels[indices] < 7]) for indices in split.values()]
    assert len(set.union(*of_splits)) == sum(len(of_split) for of_split in of_splits) == 70
    assert [len(set(labels[indices])) for indices in split.values()] == [8, 8, 8]


def test_a_class_of_one_image_is_trained_on():
    labels = np.array([0] * 60 + [1])
    for seed in range(30):
        split = stratified_split(labels, np.arange(61), 0.1, 0.2, np.random.default_rng(seed))
        assert 60 in split["train"]


def test_only_train_is_augmented():
    splits = split_source(brightness_images(40), CONFIG, [0.5] * 3, [0.25] * 3, 0)
    for name, dataset in splits.items():
        views = [dataset[0]["image"] for _ in range(4)]
        assert any((views[0] != view).any() for view in views) == (name == "train")
        assert views[0].shape == (3, 32, 32)
    test = splits["test"]
    normalized = (test.samples.images[0].astype(np.float32) / 255 - 0.5) / 0.25
    assert np.allclose(test[0]["image"].numpy(), normalized.transpose(2, 0, 1), atol=1e-5)
    of_other_seed = split_source(brightness_images(40), CONFIG, [0.5] * 3, [0.25] * 3, 1)
    assert not np.array_equal(of_other_seed["test"].samples.images, test.samples.images)


def test_training_images_are_shuffled_each_epoch():
    """They are sorted by class."""
    train = split_source(brightness_images(40), CONFIG, [0.5] * 3, [0.25] * 3, 0)["train"]
    loader = train_loader(train, CONFIG.batch_size, 0)
    epochs = [torch.cat([batch["label"] for batch in loader]) for _ in range(2)]
    assert not torch.equal(*epochs)


def test_augmentation_flips_and_turns_images_in_all_eight_ways():
    """The order of four corners by their brightness tells which."""
    corners = np.array([[0, 80], [160, 240]], np.uint8)
    image = np.kron(corners[..., None], np.ones((16, 16, 3), np.uint8))
    transform = augmentation(32, [0] * 3, [1] * 3, seed=0)
    seen = set()
    for _ in range(100):
        means = transform(image=image)["image"].reshape(2, 16, 2, 16, 3).mean((1, 3, 4))  # [2, 2]
        seen.add(tuple(means.ravel().argsort()))
    turned = [np.rot90(image, k) for image in (corners, corners.T) for k in range(4)]
    assert {tuple(image.ravel().argsort()) for image in turned} == seen


def test_each_classifier_has_its_own_seed():
    config = CONFIG.model_copy(update={"seeds": 3})
    images = brightness_images(3)
    jobs = jobs_per_seed(images, images, list("abc"), config, 5)
    assert [job.seed for job in jobs] == [5, 6, 7]


def test_the_loss_of_a_sure_mistake_is_not_limited():
    probabilities = torch.full((6, 3), np.exp(-40))
    scores, *_ = score_predictions(brightness_images(6), probabilities)
    assert scores["loss"] == pytest.approx(40)


def test_it_learns_and_gives_the_same_scores_twice():
    job = brightness_job(train=90, test=30)
    result = train_and_test(job)
    scores = result.scores["real_test"]
    assert scores["overall_accuracy"] > 0.9
    assert scores["n"] == 30
    assert scores["f1"] == pytest.approx(scores["overall_accuracy"])
    correct = result.predictions["real_test"] == job.real.labels
    assert correct.mean() == pytest.approx(scores["overall_accuracy"])
    assert train_and_test(job).scores == result.scores


def test_classifiers_trained_in_parallel_equal_those_trained_one_by_one(tmp_path):
    jobs = [
        brightness_job(train=40, test=30, seed=seed, epochs=2)
        for seed in range(max(3, available_cores()))
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.ones(10**6).exp_()  # starts OpenMP's threads, which a forked process lacks
    torch.set_num_threads(threads)
    for in_parallel, job in zip(train_and_test_all(jobs, tmp_path), jobs):
        alone = train_and_test(job)
        assert in_parallel.scores == alone.scores
        for test_set, samples in in_parallel.bootstrapped.items():
            for name, values in samples.items():
                assert (values == alone.bootstrapped[test_set][name]).all()
        assert in_parallel.config == alone.config
        weights = in_parallel.network.state_dict()
        expected = alone.network.state_dict()
        assert weights.keys() == expected.keys()
        assert all((weights[name] == expected[name]).all() for name in expected)


def test_shuffled_labels_bring_the_accuracy_to_chance():
    job = brightness_job(train=90, test=60, epochs=3)
    results = []
    for seed in range(6):  # one shuffle may favor a class by luck, six don't
        labels = np.random.default_rng(seed).permutation(job.source.labels)
        shuffled = job.source._replace(labels=labels)
        results.append(train_and_test(job._replace(source=shuffled, seed=seed)))
    scores = average_over_seeds(
        [result.scores["real_test"] for result in results],
        [result.bootstrapped["real_test"] for result in results],
        [result.by_class["real_test"] for result in results],
    )
    assert scores["overall_accuracy_lo"] <= 1 / 3 <= scores["overall_accuracy_hi"]
    assert scores["overall_accuracy"] < 0.45  # 1.0 with the true labels


def test_weights_are_loaded_and_images_scaled_to_reflectance(tmp_path):
    import timm
    from safetensors.torch import save_file

    backbone = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(backbone, tmp_path / "model.safetensors")
    config = train_and_test(brightness_job(epochs=1, weights=tmp_path / "model.safetensors")).config
    assert config["std"] == [1 / SENTINEL2_WHITE] * 3
    transform = normalization(config["mean"], config["std"])
    white = transform(image=np.full((32, 32, 3), 255, np.uint8))["image"]
    assert np.allclose(white, 0.3558)  # what ESA draws as white, in units of reflectance
    # Bands B4, B3, B2 are red, green, blue, the order of a PNG: red is in the first channel alone.
    pixels = np.tile(np.array([200, 0, 0], np.uint8), (9, 32, 32, 1))
    red = LabeledImageDataset(LabeledImages(pixels, np.arange(9), np.arange(9)), transform)
    channel_means = red[0]["image"].mean((1, 2))
    assert np.allclose(channel_means, [200 / 255 * 0.3558, 0, 0])

    of_13_bands = backbone | {"conv1.0.weight": torch.zeros(16, 13, 3, 3)}
    save_file(of_13_bands, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match="fetch_model.classifier: .*conv1.0.weight"):
        train_and_test(brightness_job(epochs=1, weights=tmp_path / "other.safetensors"))


def test_pixels_are_normalized_as_the_config_of_the_weights_says(tmp_path):
    """ImageNet's weights expect other pixels than Sentinel-2's."""
    from safetensors.torch import save_file

    backbone = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(backbone, tmp_path / "model.safetensors")
    facts = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    job = brightness_job(epochs=1, weights=tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"architecture": "test_resnet", "pretrained_cfg": facts})
    config = train_and_test(job).config
    assert {key: config[key] for key in facts} == facts
    for wrong in ([0.2], "gray", [0.2, 0.2, 0.0]):
        write_json(tmp_path / "config.json", facts | {"std": wrong})
        with pytest.raises(SystemExit, match=r"fetch_model\.classifier: .*config\.json: mean or"):
            train_and_test(job)


def test_sizes_of_test_sets_that_differ_are_those_of_all_classifiers():
    """Each seed splits the prompts anew."""
    generator = np.random.default_rng(0)
    scores, samples, by_class = [], [], []
    for n, units in ((40, 20), (50, 10), (45, 15)):
        labels = np.arange(n) % 4
        prompts = np.arange(n) % units
        predictions = np.where(np.arange(n) % 3, labels, 0)
        losses = np.ones(n)
        values = classification_scores(labels[None], predictions[None], losses[None], 4)
        of_set = {name: float(value[0]) for name, value in values.items()}
        scores.append(of_set | {"n": n, "n_units": units})
        samples.append(bootstrap_scores(labels, predictions, losses, 4, generator, prompts))
        by_class.append(accuracy_by_class(labels, predictions, 4, prompts))
    for order in ([0, 1, 2], [2, 0, 1]):
        averages = average_over_seeds(
            [scores[i] for i in order], [samples[i] for i in order], [by_class[i] for i in order]
        )
        assert (averages["n"], averages["n_units"]) == (45, 10)
        assert averages["overall_accuracy_hi"] < 1


def average_scores(
    predictions: np.ndarray, labels: np.ndarray, prompts: np.ndarray | None = None
) -> dict[str, float]:
    """Average over classifiers with these predictions [S, N] for labels [N], and a loss of 1."""
    losses = np.ones(len(labels))
    prompts = np.arange(len(labels)) if prompts is None else prompts
    sizes = {"n": len(labels), "n_units": len(np.unique(prompts))}
    scores = []
    samples = []
    by_class = []
    for predicted in predictions:
        values = classification_scores(labels[None], predicted[None], losses[None], 4)
        scores.append({name: float(value[0]) for name, value in values.items()} | sizes)
        generator = np.random.default_rng(0)
        samples.append(bootstrap_scores(labels, predicted, losses, 4, generator, prompts))
        by_class.append(accuracy_by_class(labels, predicted, 4, prompts))
    return average_over_seeds(scores, samples, by_class)


def width(scores: dict[str, float], name: str = "overall_accuracy") -> float:
    return scores[f"{name}_hi"] - scores[f"{name}_lo"]


def test_the_spread_over_seeds_widens_the_interval():
    labels = np.arange(100) % 4
    wrong = np.array([labels + (np.arange(100) >= right) for right in (60, 70, 80)]) % 4
    one = average_scores(wrong[1:2], labels)
    equal = average_scores(wrong[[1, 1, 1]], labels)
    different = average_scores(wrong, labels)
    assert width(one) == pytest.approx(width(equal))
    assert width(different) > 1.5 * width(equal)
    assert different["overall_accuracy"] == pytest.approx(0.7)
    assert different["overall_accuracy_std"] == pytest.approx(0.1)
    # Other errors of equally good classifiers are noise of the test set, of which a mean has less.
    moved = np.array([np.roll(right, shift) for right, shift in zip(wrong[[1, 1, 1]], (0, 32, 64))])
    assert width(average_scores(moved, labels)) < width(one)


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_classifiers_that_agree_by_chance_leave_the_interval_wide(seeds):
    """The accuracy on 1,000 images, over trainings whose accuracies have a deviation of 0.03."""
    rng = np.random.default_rng(0)
    accuracy, n, repetitions = 0.7, 1000, 1000
    noise = np.sqrt(accuracy * (1 - accuracy) / n / 2)  # what is shared and what isn't, each
    samples = accuracy + noise * (rng.normal(size=500) + rng.normal(size=(seeds, 500)))
    bootstrapped = [{"average_accuracy": sample, "overall_accuracy": sample} for sample in samples]
    by_class = [np.array([[accuracy], [n]])] * seeds
    held = 0
    for _ in range(repetitions):
        found = accuracy + 0.03 * rng.normal(size=seeds)
        found += noise * (rng.normal() + rng.normal(size=seeds))
        scores = [
            {"average_accuracy": value, "overall_accuracy": value, "n": n, "n_units": n}
            for value in found
        ]
        averages = average_over_seeds(scores, bootstrapped, by_class)
        held += averages["overall_accuracy_lo"] <= accuracy <= averages["overall_accuracy_hi"]
    assert 0.935 < held / repetitions < 0.97


def test_intervals_have_a_width_where_every_image_is_right():
    """7 of 7 right once gave the average accuracy, jaccard and f1_macro the interval [1, 1]."""
    labels = np.arange(7) % 4
    scores = average_scores(labels[None], labels)
    for name in ("average_accuracy", "jaccard", "f1_macro", "overall_accuracy"):
        assert scores[f"{name}_hi"] == pytest.approx(1)
        assert 0.5 < scores[f"{name}_lo"] < 0.75, name  # Wilson's: 0.646
    assert width(scores, "loss") > 0.1


def test_images_of_one_prompt_count_as_one():
    """Five images of each of 40 prompts that are alike: the interval of 40 images."""
    labels = np.arange(40) % 4
    predictions = (labels + (np.arange(40) % 5 == 0)) % 4
    alone = average_scores(predictions[None], labels)
    repeated = np.repeat(predictions, 5)[None]
    clustered = average_scores(repeated, np.repeat(labels, 5), np.repeat(np.arange(40), 5))
    assert width(clustered) == pytest.approx(width(alone), rel=0.15)
    assert width(average_scores(repeated, np.repeat(labels, 5))) < 0.6 * width(alone)


def test_scores_are_torchgeos_where_every_class_has_images():
    from torchgeo.trainers import ClassificationTask

    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    predictions = rng.integers(0, 4, 200)
    metrics = ClassificationTask(model="test_resnet", num_classes=4).test_metrics
    expected = metrics(torch.from_numpy(predictions), torch.from_numpy(labels))
    scores = classification_scores(labels[None], predictions[None], np.ones((1, 200)), 4)
    for key, name in (
        ("overall_accuracy", "OverallAccuracy"),
        ("average_accuracy", "AverageAccuracy"),
        ("f1", "F1Score"),
        ("jaccard", "JaccardIndex"),
    ):
        assert scores[key][0] == pytest.approx(float(expected[f"test_{name}"]), abs=1e-6), key


def test_a_class_without_test_images_is_no_zero_in_the_average_accuracy():
    labels = np.zeros((1, 10), int)
    predictions = np.array([[0] * 8 + [1] * 2])
    scores = classification_scores(labels, predictions, np.ones((1, 10)), 3)
    assert scores["average_accuracy"][0] == pytest.approx(0.8)


def test_interval_of_an_accuracy_is_wilsons():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    predictions = rng.integers(0, 4, 200)
    scores = average_scores(predictions[None], labels)
    low, high = wilson_interval((labels == predictions).sum(), 200)
    assert width(scores) == pytest.approx(high - low, rel=0.1)
    assert (scores["overall_accuracy_lo"] + scores["overall_accuracy_hi"]) == pytest.approx(
        low + high, abs=0.01
    )


def test_one_image_of_a_class_leaves_its_accuracy_open():
    """The mean over classes is (p + q) / 2, of q only one image is known, classified rightly."""
    labels = np.array([0] * 150 + [1])
    predictions = labels.copy()
    predictions[:8] = 1  # 142 of 150 right
    scores = average_scores(predictions[None], labels)
    assert scores["average_accuracy"] == pytest.approx((142 / 150 + 1) / 2)
    lowest = wilson_interval(1, 1)[0]  # of q
    assert scores["average_accuracy_lo"] == pytest.approx((142 / 150 + lowest) / 2, abs=0.005)
    assert width(scores, "overall_accuracy") < 0.1 < width(scores, "jaccard")


def test_the_accuracy_of_a_class_is_the_mean_over_the_classifiers_that_it_tested():
    """Whatever their effective numbers of images, [accuracies, numbers] of two classes each."""
    by_class = [
        np.array(pair) for pair in ([[1, 1], [2, 4]], [[0.5, 0.5], [5, 4]], [[0, 0], [0, 4]])
    ]
    accuracies, sizes = average_by_class(by_class)
    assert accuracies.tolist() == [0.75, 0.5]
    assert sizes == pytest.approx([7 / 3, 4])


def test_the_interval_of_a_class_is_of_its_tiles_and_of_other_classifiers():
    """Three classifiers that are right about 17, 26 and 31 of 49 tiles, as three of the demo's."""
    each = np.arange(49)
    correct = each < np.array([[17], [26], [31]])
    found = class_accuracy(correct, each)
    assert found["accuracy"] == pytest.approx(74 / 147)
    assert found["accuracy_lo"] < 0.25 and found["accuracy_hi"] > 0.75  # of tiles alone: 0.37, 0.64
    alike = class_accuracy(each < np.full((3, 1), 26), each)
    assert alike["accuracy_hi"] - alike["accuracy_lo"] < 0.3
    low, high = wilson_interval(26, 49)
    single = class_accuracy(correct[1:2], each)
    assert (single["accuracy_lo"], single["accuracy_hi"]) == pytest.approx((low, high))
    of_scenes = class_accuracy(correct[1:2], each // 7)
    assert of_scenes["accuracy_lo"] < low - 0.1


def test_tiles_of_one_scene_count_as_one():
    """Eight scenes of 20 tiles, half of them classified rightly as a whole."""
    labels = np.zeros(160, int)
    scenes = np.repeat(np.arange(8), 20)
    predictions = (scenes % 2)[None]
    assert width(average_scores(predictions, labels)) < 0.17
    scores = average_scores(predictions, labels, scenes)
    low, high = wilson_interval(4, 8)
    assert width(scores) == pytest.approx(high - low, rel=0.25)
    assert scores["n_units"] == 8
    assert accuracy_by_class(labels, predictions[0], 2, scenes)[1, 0] < 10


def test_share_of_ceiling_and_its_interval():
    def accuracy(value: float) -> dict[str, float]:
        return {"overall_accuracy": value, "n": 100, "n_units": 100}

    draws = np.random.default_rng(0).normal(0, 0.04, (2, 1, 500))
    samples = 0.6 + draws[0]
    share = share_of_ceiling(accuracy(0.6), accuracy(0.8), samples, 0.8 + draws[1])
    margin = 1.96 * np.hypot(0.04 / 0.6, 0.04 / 0.8)
    expected = [0.75, 0.75 * np.exp(-margin), 0.75 * np.exp(margin)]
    assert list(share.values()) == pytest.approx(expected, rel=0.03)
    # Images that are hard for both cancel; that none is hard for one alone may be luck.
    alike = share_of_ceiling(accuracy(0.6), accuracy(0.8), samples, 0.8 + draws[0] * 0.8 / 0.6)
    assert 0.76 < alike["share_of_ceiling_hi"] < 0.78
    every = accuracy(1.0) | {"n": 35, "n_units": 7}  # all right by both once gave [1, 1]
    right = share_of_ceiling(every, every, np.ones((1, 500)), np.ones((1, 500)))
    assert 0.65 < right["share_of_ceiling_lo"] < 0.85
    # The spread of two classifiers, of one degree of freedom: t is 12.7.
    many = accuracy(0.6) | {"overall_accuracy_std": 0.1, "n": 1000, "n_units": 1000}
    two = share_of_ceiling(many, accuracy(0.8), np.full((2, 500), 0.6), np.full((1, 500), 0.8))
    ratio = two["share_of_ceiling_hi"] / two["share_of_ceiling"]
    assert np.log(ratio) == pytest.approx(12.7 * 0.1 / 0.6 / 2**0.5, rel=0.01)
    assert share_of_ceiling(accuracy(0), accuracy(0.8), samples, samples) == {}


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """Real tiles of four scenes, one of no class; synthetic images of three classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path_factory.mktemp("scratch")))

    def render_cell(scene: str, i: int) -> dict:
        pixels, *_ = render(scene, 0, i, 32, "domain")
        return {"bytes": encode_png(Image.fromarray(pixels)), "path": None}

    params = yaml.safe_load((Path(__file__).parent.parent / "params/demo.yaml").read_text())
    params["classifier"] |= CONFIG.model_dump() | {"epochs": 2}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    kept = {slug(name): {"kept": 5, "missing": 1} for name in params["classes"]}
    write_json("metrics/select.json", {"per_class": kept})
    for split, start, count in (("train", 0, 40), ("test", 40, 16)):
        rows = []
        for i in range(start, start + count):
            scene = (*CLASSES, "airport")[i % 4]
            image = render_cell(scene, i)
            # The test tiles of a scene were cut from one site.
            name = f"{scene}_r{i}_c0.png" if split == "test" else f"{scene}_{i}.png"
            rows.append({"image": image, "filename": name, "scene": scene})
        write_shards(f"data/imagery/{split}", rows, SCHEMA)
    synthetic_rows = [  # two images of each of four prompts of a class
        {"image": render_cell(scene, 100 + i), "row": 4 * number + i // 2, "label": CLASSES[scene]}
        for i in range(8)
        for number, scene in enumerate(CLASSES)
    ]
    write_shards("data/synthetic", synthetic_rows, LABELED_SCHEMA)
    write_json("models/base/classifier/SOURCE.json", {"source": "none"})
    return tmp_path


def test_metrics_and_plots_of_the_stages(folder):
    from stages import ceiling, classify

    change_params("classifier", {"seeds": 2, "images_per_caption": 2})
    ceiling.main()
    classify.main("lulc")
    metrics = read_json("metrics/classify_lulc.json")
    expected = {"loss", "average_accuracy", "f1", "jaccard", "overall_accuracy", "n"}
    assert expected <= set(metrics["synthetic_test"])
    assert metrics["real_test"]["n"] == 12 and metrics["real_test"]["n_units"] == 3
    # The two images of a prompt are in one split.
    assert metrics["synthetic_test"]["n"] == 2 * metrics["synthetic_test"]["n_units"] > 0
    ceiling_metrics = read_json("metrics/ceiling_lulc.json")
    share = metrics["real_test"]["overall_accuracy"] / ceiling_metrics["overall_accuracy"]
    assert metrics["real_test"]["share_of_ceiling"] == pytest.approx(share)
    assert metrics["chance"] == pytest.approx(1 / 7)
    assert metrics["majority"] == pytest.approx(1 / 3)
    assert metrics["classes_without_real"] == 4
    published = timm.create_model("local-dir:models/classifier/lulc", pretrained=True)
    assert published.pretrained_cfg["label_names"] == list(load().classes)
    context = read_json("models/classifier/lulc/context.json")
    assert context["scenes_of_no_class"] == {"airport": 4}
    assert "Snow Ice" in context["classes_without_real"]
    assert context["classes_without_images"] == context["classes_without_real"]
    header, *lines = Path("metrics/plots/confusion_lulc.csv").read_text().splitlines()
    assert header == "actual,predicted"
    assert len(lines) == 12 * 2, "the tiles of the classifiers of both seeds"
    share = pairs_that_agree(lines) / len(lines)
    assert share == pytest.approx(metrics["real_test"]["overall_accuracy"])
    actual = Counter(actual for actual, _ in csv.reader(lines))
    assert actual == dict.fromkeys(CLASSES.values(), 4 * 2)
    # Four tiles of each class, of one site: they tell nothing of other sites.
    with open("metrics/plots/accuracy_by_class_lulc.csv", newline="") as file:
        rows = [(row["n"], row["accuracy_lo"], row["accuracy_hi"]) for row in csv.DictReader(file)]
    assert rows == [("4", "0.0", "1.0")] * 3

    of_scenes = read_json("metrics/ceiling_scenes.json")
    assert of_scenes["n"] == 16
    assert of_scenes["n_wanted"] == of_scenes["n_tiles"] == 16 * 2  # images per caption
    assert ceiling_metrics["n"] == 12
    # 6 tiles of each of 3 classes, less valid and test.
    assert ceiling_metrics["n_train"] == 12
    # Nothing but outputs: no logs or checkpoints of Lightning.
    assert {path.name for path in folder.iterdir()} == {"params.yaml", "data", "models", "metrics"}


def pairs_that_agree(lines: list[str]) -> int:
    return sum(actual == predicted for actual, predicted in csv.reader(lines))


def run_stage(stage: str, cores: int, kill_at: int | None = None) -> tuple[int | None, list[int]]:
    """Run `ceiling` or `classify` of land cover in a new process.

    Args:
        stage: ceiling or classify.
        cores: that the stage may use; with two, it trains in processes of its own.
        kill_at: the seed at whose training the stage is killed, once another one is finished.

    Returns:
        The exit code, and the seeds whose classifiers it began to train.
    """
    from stages import ceiling, classify
    from stages.evaluation import classification

    Path("trained").write_text("")

    def run() -> None:
        stage_process = os.getpid()

        def train(job: TrainingJob):
            with open("trained", "a") as file:
                file.write(f"{job.seed}\n")
            if job.seed == kill_at:
                scratch = Path(os.environ["REMOTE_DIFFUSION_SCRATCH"])
                while not list(scratch.rglob("*.safetensors")):
                    time.sleep(0.02)
                os.kill(stage_process, signal.SIGKILL)
                time.sleep(60)  # this process ends with the stage
            return train_and_test(job)

        torch.set_num_threads(1)
        classification.available_cores = lambda: cores
        classification.train_and_test = train
        if stage == "ceiling":
            ceiling.main()
        else:
            classify.main("lulc")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(600)
    process.kill()
    seeds = [int(line) for line in Path("trained").read_text().splitlines()]
    Path("trained").unlink()
    return process.exitcode, seeds


@pytest.mark.parametrize(("stage", "cores"), [("ceiling", 2), ("classify", 1)])
def test_a_killed_stage_trains_no_finished_classifier_again(folder, stage, cores):
    change_params("classifier", {"seeds": 2, "epochs": 1})
    first = load().seed
    assert run_stage("ceiling", 1)[0] == 0  # `classify` reads it

    def outputs() -> list[str]:
        return [digest("models/ceiling"), digest("models"), digest("metrics")]

    code, seeds = run_stage(stage, cores)
    expected = outputs()
    runs = 2 if stage == "ceiling" else 1  # label sets
    assert code == 0 and sorted(seeds) == sorted([first, first + 1] * runs)

    assert run_stage(stage, cores, kill_at=first + 1)[0] == -signal.SIGKILL
    finished = list(Path(os.environ["REMOTE_DIFFUSION_SCRATCH"]).rglob("*.safetensors"))
    assert finished
    code, seeds = run_stage(stage, cores)
    assert code == 0 and outputs() == expected
    assert len(seeds) <= 2 * runs - len(finished)
    assert not list(Path(os.environ["REMOTE_DIFFUSION_SCRATCH"]).rglob("*.safetensors"))


def test_a_damaged_result_is_trained_again_and_one_of_other_inputs_is_not_used(folder):
    change_params("classifier", {"seeds": 2, "epochs": 1})
    first = load().seed
    assert run_stage("ceiling", 1)[0] == run_stage("classify", 1)[0] == 0
    expected = digest("models"), digest("metrics")

    def kill() -> Path:
        """Kill `classify` in its second training; the file of its first result."""
        assert run_stage("classify", 1, kill_at=first + 1)[0] == -signal.SIGKILL
        (result,) = Path(os.environ["REMOTE_DIFFUSION_SCRATCH"]).rglob("*.safetensors")
        return result

    for damage in (
        lambda content: content[:-100],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ):
        result = kill()
        result.write_bytes(damage(result.read_bytes()))
        assert run_stage("classify", 1) == (0, [first, first + 1])
        assert (digest("models"), digest("metrics")) == expected

    kill()
    change_params("classifier", {"lr": 3e-3})
    assert run_stage("classify", 1) == (0, [first, first + 1])


def test_results_of_other_inputs_have_another_fingerprint(tmp_path):
    images = brightness_images(9)
    changed = [
        images._replace(images=255 - images.images),
        images._replace(labels=2 - images.labels),
        images._replace(units=images.units // 2),
    ]
    job = brightness_job()
    jobs = [job._replace(**{name: other}) for name in ("source", "real") for other in changed]
    jobs += [
        job._replace(class_names=list("abd")),
        job._replace(config=CONFIG.model_copy(update={"lr": 3e-3})),
        job._replace(seed=1),
    ]
    for number in range(2):
        weights = tmp_path / str(number) / "model.safetensors"
        weights.parent.mkdir()
        weights.write_bytes(bytes([number]))
        jobs.append(job._replace(weights=weights))
    fingerprints = [jobs_fingerprint([each]) for each in (job, *jobs)]
    assert len(set(fingerprints)) == 1 + len(jobs)
    assert jobs_fingerprint([brightness_job()]) == fingerprints[0]


def test_a_class_of_0_prompts_is_left_out_with_its_real_tiles(folder, capsys):
    from stages import ceiling, classify

    counts = dict.fromkeys(yaml.safe_load(Path("params.yaml").read_text())["classes"], 6)
    change_params("prompt", {"per_class": counts | {"Woody Vegetation": 0}})
    selected = read_json("metrics/select.json")
    del selected["per_class"]["Woody-Vegetation"]
    write_json("metrics/select.json", selected)
    rows = [row for row in read_rows("data/synthetic") if row["label"] != "Woody Vegetation"]
    shutil.rmtree("data/synthetic")
    write_shards("data/synthetic", rows, LABELED_SCHEMA)
    ceiling.main()
    classify.main("lulc")
    assert "0 prompts are left out: Woody Vegetation" in capsys.readouterr().err
    metrics = read_json("metrics/classify_lulc.json")
    assert metrics["classes"] == 6 and metrics["chance"] == pytest.approx(1 / 6)
    assert metrics["real_test"]["n"] == read_json("metrics/ceiling_lulc.json")["n"] == 8
    assert "Woody Vegetation" not in read_json("models/classifier/lulc/config.json")["classes"]
    context = read_json("models/classifier/lulc/context.json")
    assert context["scenes_of_no_class"] == {"airport": 4, "forest": 4}


def test_the_ceiling_trains_on_scenes_that_no_test_tile_shows(folder):
    """Generated images show them; without them, the ceiling would be lower than it should be."""
    from stages import ceiling

    rows = [row for row in read_rows("data/imagery/test") if row["scene"] != "desert"]
    shutil.rmtree("data/imagery/test")
    write_shards("data/imagery/test", rows, SCHEMA)
    ceiling.main()
    metrics = read_json("metrics/ceiling_lulc.json")
    assert metrics["n_tiles"] == 18, "6 of each of 3 classes"
    assert metrics["n"] == 8, "tiles of two classes are tested on"


def test_an_unknown_label_set_is_a_usage_error(folder):
    result = subprocess.run(
        [sys.executable, "-m", "stages.classify", "classes"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "lulc" in result.stderr and "scenes" in result.stderr


def test_classes_without_any_scene_of_the_imagery_exit_with_an_error_that_names_them(folder):
    from stages import classify

    params = yaml.safe_load(Path("params.yaml").read_text())
    without_scenes = dict.fromkeys(params["classes"], [])
    change_params("classes", without_scenes | {"Water Body": ["ocean"]})
    with pytest.raises(SystemExit, match="^error: classes: .*data/imagery/test.*airport"):
        classify.main("lulc")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model": "resnet99"}, "classifier.model: .*'resnet99'.*resnet50"),  # a similar name
        ({"lr": 1.0e30}, "classifier.lr: .*1e\\+30"),
    ],
)
def test_a_classifier_that_cannot_be_trained_replaces_nothing(folder, changes, named):
    from stages import classify

    change_params("classifier", changes)
    write_json("metrics/classify_lulc.json", "of an older run")
    with pytest.raises(SystemExit, match=f"^error: {named}"):
        classify.main("lulc")
    assert read_json("metrics/classify_lulc.json") == "of an older run"
    assert not Path("models/classifier").exists()


def test_too_few_images_to_hold_any_out_are_one_line():
    with pytest.raises(SystemExit, match="^error: classifier: of 3 images"):
        train_and_test(brightness_job(train=3))


def test_a_network_of_one_fixed_size_is_built_for_the_resolution():
    """A vision transformer, published for 160 px, on images of 32."""
    result = train_and_test(brightness_job(model="test_vit", epochs=1))
    assert result.scores["real_test"]["n"] == 9


def test_the_number_of_images_per_class_is_limited(folder):
    """They are drawn: the first ones may be of one place."""
    class_of = {scene: i for i, scene in enumerate(CLASSES)}
    limited = ("data/imagery/train", "scene", class_of, 16, {0: 5, 1: 2, 2: 99})
    images, unlabeled = read_labeled_images(*limited, load().seed)
    assert np.bincount(images.labels).tolist() == [5, 2, 10]
    assert unlabeled == {"airport": 10}
    assert images.images.shape == (17, 16, 16, 3)
    assert len(set(images.units)) == 17
    of_other_seed, _ = read_labeled_images(*limited, load().seed + 1)
    assert not np.array_equal(of_other_seed.images, images.images)


def test_tiles_that_were_cut_from_one_scene_are_told_by_their_names():
    names = ["a_r0_c0.tif", "a_r0_c256.tif", "a_b.tif", "b_r12_c0", "b.v2_r1_c3.png", "r1_c3.png"]
    scenes = ["a.tif", "a.tif", "a_b.tif", "b", "b.v2.png", "r1_c3.png"]
    assert [source_file(name) for name in names] == scenes


def test_tiles_of_one_place_at_several_dates_are_one_unit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"day{day}_r0_c{column}.tif" for day in range(3) for column in range(2)] + ["a.tif"]
    site_of = {"day0": "day0.tif", "day1": "day1.tif", "day2": "day0.tif"}
    rows = [
        {
            "image": {"bytes": encode_png(Image.new("RGB", (16, 16))), "path": None},
            "scene": "lake",
            "filename": name,
            "site": site_of.get(name[:4]),
        }
        for name in names
    ]
    schema = pa.schema([("image", IMAGE), *((key, pa.string()) for key in list(rows[0])[1:])])
    write_shards("data/imagery/test", rows, schema)
    images, _ = read_labeled_images("data/imagery/test", "scene", {"lake": 0}, 16)
    assert images.units.tolist() == [1, 1, 2, 2, 1, 1, 0]


def test_tiles_without_a_scene_are_of_no_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"scene": "lake"}, {"scene": ""}, {"scene": "forest"}]
    write_shards("data/imagery/test", rows, pa.schema([("scene", pa.string())]))
    assert read_label_set("scenes", {}) == (["forest", "lake"], {"forest": 0, "lake": 1})


def test_scenes_of_classes_that_no_test_tile_shows(tmp_path, monkeypatch, capsys):
    """Some are logged and left out; if none is shown, an error lists the scenes of the imagery."""
    monkeypatch.chdir(tmp_path)
    rows = [{"scene": "lake"}, {"scene": "forest"}]
    write_shards("data/imagery/test", rows, pa.schema([("scene", pa.string())]))
    classes = {"Water Body": ["lake", "cost"], "Woody Vegetation": ["forests"]}
    class_names, class_of_scene = read_label_set("lulc", classes)
    assert class_of_scene == {"lake": 0}
    assert class_names == ["Water Body", "Woody Vegetation"]
    log = capsys.readouterr().err
    assert "forests" in log and "forest?" in log  # the similar name
    with pytest.raises(SystemExit, match="classes: .*forest, lake"):
        read_label_set("lulc", {"Water Body": ["lak"]})
