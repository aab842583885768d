"""The land-use classifier: its splits, its augmentation, what it learns and what it reports."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

from stages.common.artifacts import IMAGE, encode_png, write_json, write_shards
from stages.embedded.scenes import render
from stages.evaluation.classification import (
    SENTINEL2_WHITE,
    Labeled,
    Outcome,
    TilesModule,
    read_labeled,
    split,
    train_and_test,
    train_and_test_all,
)
from stages.evaluation.scores import errors_of, pooled, scores_of, share_of_ceiling
from stages.params import Classifier, load
from stages.runtime.parallel import available_cores

REAL = {"forest": "Woody Vegetation", "lake": "Water Body", "desert": "Bare Land"}
SCHEMA = pa.schema([("image", IMAGE), ("filename", pa.string()), ("scene", pa.string())])
LABELLED = pa.schema([("image", IMAGE), ("row", pa.int32()), ("label", pa.string())])
P = Classifier(
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


def flat(count: int, classes: int = 3, seed: int = 0) -> Labeled:
    """Tiles whose class is their brightness."""
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).integers(-20, 20, (count, 32, 32, 3))
    return Labeled(
        (noise + (60 + 70 * labels)[:, None, None, None]).clip(0, 255).astype(np.uint8), labels
    )


def test_splits_are_disjoint_whole_and_stratified():
    labels = np.repeat(np.arange(7), 50)
    found = split(labels, 0.1, 0.2, np.random.default_rng(0))
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(350))
    for name, each in (("test", 10), ("valid", 5), ("train", 35)):
        counts = np.bincount(labels[found[name]], minlength=7)
        assert abs(counts - each).max() <= 1, (name, counts)
    tiny = split(np.array([0, 1, 1, 0]), 0.1, 0.1, np.random.default_rng(0))
    assert {name: len(places) for name, places in tiny.items()} == {
        "test": 1,
        "valid": 1,
        "train": 2,
    }


def test_only_train_is_augmented():
    data = TilesModule(flat(40), P, [0.5] * 3, [0.25] * 3, 0)
    for tiles, varies in ((data.train, True), (data.valid, False), (data.test, False)):
        views = [tiles[0]["image"] for _ in range(4)]
        assert any((views[0] != view).any() for view in views) == varies
        assert views[0].shape == (3, 32, 32)
    plain = (data.test.tiles.images[0].astype(np.float32) / 255 - 0.5) / 0.25
    assert np.allclose(data.test[0]["image"].numpy(), plain.transpose(2, 0, 1), atol=1e-5)


def test_it_learns_and_gives_the_same_scores_twice():
    outcome = train_and_test(flat(90), flat(30, seed=1), list("abc"), P, 0, None)
    real = outcome.scores["real_test"]
    assert (
        real["overall_accuracy"] > 0.9
        and real["n"] == 30
        and real["f1"] == pytest.approx(real["overall_accuracy"])
    )
    assert (outcome.predicted["real_test"] == flat(30).labels).mean() == pytest.approx(
        real["overall_accuracy"]
    )
    assert (
        train_and_test(flat(90), flat(30, seed=1), list("abc"), P, 0, None).scores == outcome.scores
    )


def test_classifiers_trained_side_by_side_are_those_trained_one_by_one():
    short = P.model_copy(update={"epochs": 2})
    asked = [
        (flat(40), flat(30, seed=1), list("abc"), short, seed, None)
        for seed in range(max(3, available_cores()))
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.ones(10**6).exp_()  # starts OpenMP's threads, which a forked process lacks
    torch.set_num_threads(threads)
    for outcome, arguments in zip(train_and_test_all(asked), asked):
        alone = train_and_test(*arguments)
        assert (outcome.scores, outcome.errors, outcome.config) == (
            alone.scores,
            alone.errors,
            alone.config,
        )
        weights, theirs = outcome.network.state_dict(), alone.network.state_dict()
        assert weights.keys() == theirs.keys() and all(
            (weights[name] == theirs[name]).all() for name in weights
        )


def test_shuffled_labels_bring_it_to_chance():
    source, short = flat(90), P.model_copy(update={"epochs": 3})
    outcomes = []
    for seed in range(6):  # a shuffle may favor a class by luck, six don't
        shuffled = Labeled(source.images, np.random.default_rng(seed).permutation(source.labels))
        outcomes.append(train_and_test(shuffled, flat(60, seed=1), list("abc"), short, seed, None))
    found = pooled(outcomes, "real_test")
    assert found["overall_accuracy_lo"] <= 1 / 3 <= found["overall_accuracy_hi"]
    assert found["overall_accuracy"] < 0.45  # 1.0 with the true labels


def test_weights_are_loaded_and_fed_reflectance(tmp_path):
    import timm
    from safetensors.torch import save_file

    backbone = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(backbone, tmp_path / "model.safetensors")
    short = P.model_copy(update={"epochs": 1})
    outcome = train_and_test(
        flat(30), flat(9), list("abc"), short, 0, tmp_path / "model.safetensors"
    )
    assert outcome.config["std"] == [1 / SENTINEL2_WHITE] * 3
    data = TilesModule(flat(9), P, outcome.config["mean"], outcome.config["std"], 0)
    white = data.plain(image=np.full((32, 32, 3), 255, np.uint8))["image"]
    assert np.allclose(white, 0.3558)  # what ESA draws as white, in units of reflectance
    # Bands B4, B3, B2 are red, green, blue, the order that a PNG is read in: red light is in the first channel alone.
    red = Labeled(np.tile(np.array([200, 0, 0], np.uint8), (9, 32, 32, 1)), np.arange(9) % 3)
    shown = TilesModule(red, P, outcome.config["mean"], outcome.config["std"], 0).test[0]["image"]
    assert np.allclose(shown.mean((1, 2)), [200 / 255 * 0.3558, 0, 0])
    save_file(
        backbone | {"conv1.0.weight": torch.zeros(16, 13, 3, 3)}, tmp_path / "other.safetensors"
    )  # 13 bands
    with pytest.raises(SystemExit, match="fetch_model.classifier: .*conv1.0.weight"):
        train_and_test(flat(30), flat(9), list("abc"), short, 0, tmp_path / "other.safetensors")


def test_several_seeds_widen_the_interval():
    def outcome(accuracy):
        scores = {"loss": 1.0, "overall_accuracy": accuracy, "n": 100}
        return Outcome(
            None,
            {"real_test": scores},
            {"real_test": {"loss": 0.1, "overall_accuracy": 0.05}},
            {},
            {},
        )

    one, same = pooled([outcome(0.7)], "real_test"), pooled([outcome(0.7)] * 3, "real_test")
    apart = pooled([outcome(0.6), outcome(0.7), outcome(0.8)], "real_test")
    assert one["overall_accuracy_lo"] == same["overall_accuracy_lo"] > apart["overall_accuracy_lo"]
    assert apart["overall_accuracy"] == pytest.approx(0.7) and apart[
        "overall_accuracy_std"
    ] == pytest.approx(0.1)
    assert (one["loss_lo"], one["loss_hi"]) == pytest.approx((1 - 0.196, 1 + 0.196))


def test_scores_are_torchgeos_where_every_class_has_images():
    """And the bootstrap's error of an accuracy is the binomial one."""
    from torchgeo.trainers import ClassificationTask

    draws = np.random.default_rng(0)
    labels, guesses = np.arange(200) % 4, draws.integers(0, 4, 200)
    metrics = ClassificationTask(model="test_resnet", num_classes=4).test_metrics
    theirs = metrics(torch.from_numpy(guesses), torch.from_numpy(labels))
    ours = scores_of(labels[None], guesses[None], np.ones((1, 200)), 4)
    for key, name in (
        ("overall_accuracy", "OverallAccuracy"),
        ("average_accuracy", "AverageAccuracy"),
        ("f1", "F1Score"),
        ("jaccard", "JaccardIndex"),
    ):
        assert ours[key][0] == pytest.approx(float(theirs[f"test_{name}"]), abs=1e-6), key
    error = errors_of(labels, guesses, np.ones(200), 4, draws)["overall_accuracy"]
    share = ours["overall_accuracy"][0]
    assert error == pytest.approx(np.sqrt(share * (1 - share) / 200), rel=0.15)
    none = {"overall_accuracy": 0.0, "overall_accuracy_lo": 0.0, "overall_accuracy_hi": 0.1}
    some = {"overall_accuracy": 0.6, "overall_accuracy_lo": 0.5, "overall_accuracy_hi": 0.7}
    top = {"overall_accuracy": 0.8, "overall_accuracy_lo": 0.8, "overall_accuracy_hi": 0.8}
    found = share_of_ceiling(some, top)
    assert (
        list(found.values()) == pytest.approx([0.75, 0.625, 0.875])
        and share_of_ceiling(none, top) == {}
    )
    # A class without test images that is guessed now and then is no zero in the average.
    some = scores_of(np.zeros((1, 10), int), np.array([[0] * 8 + [1] * 2]), np.ones((1, 10)), 3)
    assert some["average_accuracy"][0] == pytest.approx(0.8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Real tiles of four scenes, one of no class; synthetic images of three classes."""
    monkeypatch.chdir(tmp_path)

    def tile(scene, i):
        return {
            "bytes": encode_png(Image.fromarray(render(scene, 0, i, 32, "domain")[0])),
            "path": None,
        }

    values = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())
    values["classifier"] |= P.model_dump() | {"epochs": 2}
    values["generate"]["images_per_prompt"] = 1
    values["prompt"]["per_class"] = dict.fromkeys(values["classes"], 6)
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for name, start, count in (("train", 0, 40), ("test", 40, 16)):
        chosen = [((*REAL, "airport")[i % 4], i) for i in range(start, start + count)]
        rows = [
            {"image": tile(scene, i), "filename": f"{scene}_{i}.png", "scene": scene}
            for scene, i in chosen
        ]
        write_shards(f"data/imagery/{name}", rows, SCHEMA)
    write_shards(
        "data/synthetic",
        [
            {"image": tile(scene, i), "row": i, "label": REAL[scene]}
            for i in range(100, 108)
            for scene in REAL
        ],
        LABELLED,
    )
    write_json("models/base/classifier/SOURCE.json", {"source": "none"})
    return tmp_path


def test_the_stages_report_what_they_did(folder):
    from stages import ceiling, classify

    ceiling.main()
    classify.main("lulc")
    scores = json.loads(Path("metrics/classify_lulc.json").read_text())
    assert {"loss", "average_accuracy", "f1", "jaccard", "overall_accuracy", "n"} <= set(
        scores["synthetic_test"]
    )
    assert scores["real_test"]["n"] == 12
    top = json.loads(Path("metrics/ceiling_lulc.json").read_text())
    assert scores["real_test"]["share_of_ceiling"] == pytest.approx(
        scores["real_test"]["overall_accuracy"] / top["overall_accuracy"]
    )
    assert scores["chance"] == pytest.approx(1 / 7) and scores["majority"] == pytest.approx(1 / 3)
    assert scores["classes_without_real"] == 4
    context = json.loads(Path("models/classifier/lulc/context.json").read_text())
    assert (
        context["scenes_of_no_class"] == {"airport": 4}
        and "Snow Ice" in context["classes_without_real"]
    )
    lines = Path("metrics/plots/confusion_lulc.csv").read_text().splitlines()
    assert lines[0] == "actual,predicted" and len(lines) == 13
    assert json.loads(Path("metrics/ceiling_scenes.json").read_text())["n"] == 16
    assert top["n"] == 12 and top["n_train"] == 12  # 6 of each of 3 classes, less valid and test
    # Nothing but outputs: no logs or checkpoints of Lightning.
    assert {p.name for p in folder.iterdir()} == {"params.yaml", "data", "models", "metrics"}


def test_bad_input_ends_in_one_line(folder):
    from stages import classify

    with pytest.raises(SystemExit, match="lulc or scenes"):
        classify.main("classes")
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["classes"] |= {name: [] for name in values["classes"]} | {"Water Body": ["ocean"]}
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(
        SystemExit, match="classes: none of its scenes is in data/imagery/test, which has airport"
    ):
        classify.main("lulc")


@pytest.mark.parametrize(
    "changed, line",
    [
        ({"model": "resnet99"}, "classifier.model: timm has no model 'resnet99'; near: resnet50, "),
        (
            {"lr": 1.0e30},
            "classifier.lr: the trained classifier's probabilities are no numbers. Try a lower lr than 1e\\+30",
        ),
        (
            {"valid_fraction": 0.5, "test_fraction": 0.49},
            "classifier.valid_fraction, classifier.test_fraction: of 24 images 12 and 12 are",
        ),
    ],
)
def test_a_classifier_that_cannot_be_trained_replaces_nothing(folder, changed, line):
    from stages import classify

    values = yaml.safe_load(Path("params.yaml").read_text())
    values["classifier"] |= changed
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    write_json("metrics/classify_lulc.json", "of an older run")
    with pytest.raises(SystemExit, match=f"^error: {line}"):
        classify.main("lulc")
    assert (
        json.loads(Path("metrics/classify_lulc.json").read_text()) == "of an older run"
        and not Path("models/classifier").exists()
    )


def test_a_network_of_one_size_is_made_for_ours():
    """A vision transformer, published for 160 px, on tiles of 32."""
    vit = P.model_copy(update={"model": "test_vit", "epochs": 1})
    assert (
        train_and_test(flat(30), flat(9), list("abc"), vit, 0, None).scores["real_test"]["n"] == 9
    )


def test_wanted_images_are_drawn_per_class(folder):
    number = {scene: i for i, scene in enumerate(REAL)}
    tiles, left_out = read_labeled(
        "data/imagery/train", "scene", number, 16, {0: 5, 1: 2, 2: 99}, load().seed
    )
    assert np.bincount(tiles.labels).tolist() == [5, 2, 10] and left_out == {"airport": 10}
    assert tiles.images.shape == (17, 16, 16, 3)


def test_scenes_of_classes_that_no_image_shows(tmp_path, monkeypatch, capsys):
    """One is named and left out; none at all is an error that lists what there is."""
    from stages.common.artifacts import write_shards
    from stages.evaluation import labels

    monkeypatch.chdir(tmp_path)
    write_shards(
        "data/imagery/test",
        [{"scene": "lake"}, {"scene": "forest"}],
        pa.schema([("scene", pa.string())]),
    )
    names, of_scene = labels.of_imagery(
        "lulc", {"Water Body": ["lake", "cost"], "Woody Vegetation": ["forests"]}
    )
    assert of_scene == {"lake": 0} and names == ["Water Body", "Woody Vegetation"]
    assert "no test image shows forests (did you mean forest?)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="classes: none of its scenes .* forest, lake"):
        labels.of_imagery("lulc", {"Water Body": ["lak"]})
