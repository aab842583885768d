"""train_scene -> features -> fid on a small set of rendered tiles, in an empty folder."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file

from stages.common.artifacts import IMAGE, encode_png, read_rows, write_shards
from stages.embedded.scenes import render

SCENES = ("forest", "lake", "parking")  # easily told apart
SCHEMA = pa.schema([("image", IMAGE), ("filename", pa.string()), ("scene", pa.string())])
LABELLED = pa.schema([("image", IMAGE), ("row", pa.int32()), ("label", pa.string())])
CLASSES = {"forest": "Woody Vegetation", "lake": "Water Body"}


def tile(scene: str, i: int, seed: int = 0) -> dict:
    return {
        "bytes": encode_png(Image.fromarray(render(scene, seed, i, 32, "domain")[0])),
        "path": None,
    }


def tiles(start: int, count: int, seed: int = 0) -> list[dict]:
    chosen = [(SCENES[i % 3], i) for i in range(start, start + count)]
    return [
        {"image": tile(scene, i, seed), "filename": f"{scene}_{i}.png", "scene": scene}
        for scene, i in chosen
    ]


def params(**sections) -> None:
    import yaml

    values = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())
    for name, changes in sections.items():
        values[name] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository with imagery, samples and a trained scene network."""
    place = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        params(
            train_scene={
                "model": "test_byobnet",
                "resolution": 32,
                "epochs": 12,
                "batch_size": 16,
                "lr": 4e-3,
            },
            features={"extractors": ["scene"], "batch_size": 16, "padded": True},
            fid={"standard_min_n": 20, "paper_n": 20, "paper_draws": 2},
        )
        write_shards("data/imagery/train", tiles(0, 120), SCHEMA)
        write_shards("data/imagery/valid", tiles(120, 30), SCHEMA)
        write_shards("data/imagery/test", tiles(150, 45), SCHEMA)
        write_shards("data/samples/tuned", tiles(150, 45, seed=7), SCHEMA)
        write_shards(
            "data/samples/base",
            [row | {"image": tile("forest", 9)} for row in tiles(150, 45)],
            SCHEMA,
        )
        write_shards(
            "data/synthetic",
            [
                {"image": tile(scene, i, 9), "row": i, "label": CLASSES[scene]}
                for i in range(10)
                for scene in CLASSES
            ],
            LABELLED,
        )
        from stages import train_scene

        train_scene.main()
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def features(*sets: str) -> None:
    from stages import features

    for which in sets:
        features.main(which)


def scores() -> tuple[dict, dict]:
    from stages import fid

    fid.main()
    return json.loads(Path("metrics/fid.json").read_text())["scene"], json.loads(
        Path("metrics/caption_agreement.json").read_text()
    )


def test_the_scene_network_learns_and_says_so(here):
    config = json.loads(Path("models/scene/config.json").read_text())
    assert (
        config["scenes"] == sorted(SCENES)
        and config["valid_accuracy"] > 0.8
        and config["n_valid"] == 30
    )


def test_train_scene_gives_the_same_bytes_twice(here):
    from stages import train_scene

    first = Path("models/scene/model.safetensors").read_bytes()
    train_scene.main()
    assert Path("models/scene/model.safetensors").read_bytes() == first


def test_numbers_and_their_floor_base_and_ceiling(here):
    features("real", "tuned", "base", "synthetic")
    distances, agreement = scores()
    standard, paper = distances["standard"], distances["paper"]
    assert standard["n"] == 45 and standard["fid_lo"] <= standard["fid"] <= standard["fid_hi"]
    assert (
        standard["fid"] < standard["fid_base"] / 3
        and standard["recall_base"] < 0.1 < standard["recall"]
    )
    assert (
        paper["n"] == 20 and paper["fid"] > standard["fid"] and paper["fid_std"] > 0
    )  # fewer images, greater FID
    assert (
        agreement["caption_agreement"] > 0.7
        and agreement["ceiling"] > 0.7
        and agreement["class_agreement"] > 0.7
    )
    assert agreement["caption_agreement_base"] == pytest.approx(1 / 3, abs=0.01)  # all forests
    assert (
        set(agreement["per_scene"]) == set(SCENES)
        and min(agreement["per_scene"].values()) == agreement["per_scene_min"]
    )
    assert (
        Path("metrics/plots/caption_agreement_by_scene.csv")
        .read_text()
        .startswith("scene,tuned,base,real\n")
    )
    for name in ("fid_infinity", "sinkhorn"):
        assert (
            standard[f"{name}_lo"] <= standard[name] <= standard[f"{name}_hi"]
            and standard[name] < standard[f"{name}_base"]
        )
    lines = Path("metrics/plots/fid_curve.csv").read_text().splitlines()
    assert lines[0] == "images,one_over_n,tuned,base,floor" and [
        line.split(",")[0] for line in lines[1:]
    ] == ["45", "22", "15", "11"]


def test_a_black_frame_moves_fid_for_a_perfect_generator_too(here):
    """In the released script's protocol even real training tiles are far from the framed test tiles."""
    features("real", "tuned", "base", "synthetic")
    distances, _ = scores()
    plain, padded = distances["paper"], distances["paper_padded"]
    assert padded["fid"] > 2 * plain["fid"] and padded["fid_floor"] > 2 * plain["fid_floor"]


def rewrite(folder: str, change) -> None:
    """The images of a folder of shards, each through `change`."""
    from stages.common.artifacts import decode_image

    rows = read_rows(folder)
    for i, row in enumerate(rows):
        row["image"] = {"bytes": encode_png(change(decode_image(row["image"]), i)), "path": None}
    shutil.rmtree(folder)
    write_shards(folder, rows, SCHEMA)


def test_a_generator_that_copies_training_tiles_is_caught(here, monkeypatch, tmp_path):
    """Copies, some of them turned or mirrored: in pixels and in features."""
    shutil.copytree(here, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    from stages.common.artifacts import decode_image

    train = [decode_image(row["image"]) for row in read_rows("data/imagery/train", ["image"])]
    features("real", "base", "synthetic")
    for change in (lambda image, i: train[i], lambda image, i: train[i].transpose(i % 7)):
        rewrite("data/samples/tuned", change)
        features("tuned")
        scores()
        images = json.loads(Path("metrics/images.json").read_text())
        assert (
            images["pixels"]["tuned"]["memorized"] > 0.9
            and images["pixels"]["synthetic"]["memorized"] < 0.3
        )
    rewrite("data/samples/tuned", lambda image, i: train[i])
    features("tuned")
    scores()
    assert json.loads(Path("metrics/images.json").read_text())["scene"]["tuned"]["memorized"] > 0.9
    first = Path("metrics/plots/nearest_training.csv").read_text().splitlines()[1].split(",")
    assert int(first[0].split("_")[1][:-4]) - 150 == int(
        first[1].split("_")[1][:-4]
    )  # tile i of the samples was training tile i


def test_a_jpeg_or_resize_mismatch_is_warned_of(here, capsys):
    """Every set went through the same renderer; then one is compressed, or scaled down and up again."""
    import io

    from stages.common.artifacts import decode_image
    from stages.evaluation.compression_artifacts import compression_artifacts
    from stages.evaluation.extractors import Pixels
    from stages.evaluation.networks import pixels

    def look(images) -> dict:
        rows = [{"image": {"bytes": encode_png(image), "path": None}} for image in images]
        return {key: value.numpy() for key, value in Pixels()(pixels(rows)).items()}

    def jpeg(image):
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=75)
        return Image.open(sink)

    real, other = (
        [decode_image(row["image"]) for row in read_rows(f"data/imagery/{split}", ["image"])]
        for split in ("train", "test")
    )
    assert (
        compression_artifacts(look(real), look(other), "test")["warned"] == 0
        and not capsys.readouterr().err
    )
    found = compression_artifacts(look(real), look([jpeg(image) for image in other]), "samples")
    assert found["warned"] == 1 and "samples: warning: compressed" in capsys.readouterr().err
    small = [
        image.resize((20, 20), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC)
        for image in other
    ]
    found = compression_artifacts(look(real), look(small), "samples")
    assert found["warned"] == 1 and "samples: warning: 0." in capsys.readouterr().err


def test_of_several_images_per_caption_the_first_is_measured(here, monkeypatch, tmp_path):
    shutil.copytree(here, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    features("tuned")
    before = {path.name: path.read_bytes() for path in Path("data/features/tuned").iterdir()}
    rows = read_rows("data/samples/tuned")
    write_shards(
        "data/samples/tuned", rows + [row | {"image": tile("forest", 3)} for row in rows], SCHEMA
    )
    features("tuned")
    assert {
        path.name: path.read_bytes() for path in Path("data/features/tuned").iterdir()
    } == before


def test_a_label_shuffle_brings_agreement_to_chance(here, monkeypatch, tmp_path):
    shutil.copytree(here, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    rows = read_rows("data/samples/tuned")
    shifted = [
        row | {"image": rows[i]["image"]}
        for row, i in zip(rows, np.random.default_rng(0).permutation(len(rows)))
    ]
    shutil.rmtree("data/samples/tuned")
    write_shards("data/samples/tuned", shifted, SCHEMA)
    features("real", "tuned", "base", "synthetic")
    distances, agreement = scores()
    assert agreement["caption_agreement_lo"] < 1 / 3 < agreement["caption_agreement_hi"]
    assert (
        distances["standard"]["fid"] < distances["standard"]["fid_base"] / 3
    )  # the images themselves are as good


def test_too_few_images_are_refused(here, capsys):
    from stages import fid
    from stages.params import load

    p = load().fid.model_copy(update={"standard_min_n": 200, "paper_n": 250})
    sets = dict.fromkeys(("test", "train", "tuned", "base"), np.zeros((45, 4), np.float32))
    assert fid.standard(sets, p, 0, "scene") == {"refused": 1, "n": 45, "n_needed": 200}
    assert fid.paper(sets, np.arange(45), p, 0)["refused"] == 1
    assert "fid.standard_min_n" in capsys.readouterr().err


def test_features_do_not_depend_on_the_last_groups_size(here):
    """Padded groups: an image gets the same features whatever follows it; another group size changes rounding only."""
    import torch

    from stages.evaluation.extractors import extractor
    from stages.evaluation.networks import pixels

    images = pixels(read_rows("data/imagery/test", ["image"]))
    network = extractor("scene")
    with torch.inference_mode():
        whole, one = network(images), network(images[:1])
    assert torch.allclose(whole["features"][:1], one["features"], rtol=1e-4, atol=1e-4)
    features("tuned")
    stored = load_file("data/features/tuned/scene.safetensors")
    assert (
        stored["features"].dtype == np.float32
        and stored["features"].shape[0] == len(stored["logits"]) == 45
    )


def test_a_network_of_one_size_is_made_for_ours(here, monkeypatch, tmp_path):
    """A vision transformer, published for 160 px, reads tiles of 32."""
    import torch

    from stages import train_scene
    from stages.evaluation.extractors import extractor

    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "data/imagery", "data/imagery")
    params(train_scene={"model": "test_vit", "resolution": 32, "epochs": 1, "batch_size": 16})
    train_scene.main()
    with torch.inference_mode():
        assert extractor("scene")(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))["logits"].shape == (
            2,
            3,
        )


@pytest.mark.parametrize(
    "model, size, line",
    [
        (
            "test_resnet",
            16,
            "train_scene.lr: the loss is no number by epoch 1. Try a lower lr than 1e+30",
        ),
        (
            "test_byobnet",
            120,
            "train_scene.lr: the trained network's answers are no numbers. Try a lower lr than 1e+30",
        ),  # one step
    ],
)
def test_training_that_diverges_replaces_nothing(here, monkeypatch, tmp_path, model, size, line):
    from stages import train_scene

    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "data/imagery", "data/imagery")
    shutil.copytree(here / "models/scene", "models/scene")
    before = Path("models/scene/model.safetensors").read_bytes()
    params(
        train_scene={
            "model": model,
            "resolution": 32,
            "batch_size": size,
            "lr": 1.0e30,
            "epochs": 1,
        }
    )
    with pytest.raises(SystemExit, match=f"^error: {re.escape(line)}"):
        train_scene.main()
    assert Path("models/scene/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("train, test", [(120, 1), (4, 45)])
def test_few_tiles(here, monkeypatch, tmp_path, train, test):
    """A single held-out tile is too few for any distance; fewer training tiles than test tiles shorten the curve."""
    from stages import fid

    shutil.copytree(here, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for split, start, count in (("train", 0, train), ("test", 150, test)):
        shutil.rmtree(f"data/imagery/{split}")
        write_shards(f"data/imagery/{split}", tiles(start, count), SCHEMA)
    for which, seed in (("tuned", 7), ("base", 8)):
        write_shards(f"data/samples/{which}", tiles(150, test, seed), SCHEMA)
    features("real", "tuned", "base", "synthetic")
    if test == 1:
        with pytest.raises(
            SystemExit,
            match="^error: data/features/real/test: 1 image.* needs at least 2 of each .fetch_imagery.test",
        ):
            fid.main()
        shutil.rmtree("data/imagery/test")
        write_shards("data/imagery/test", [], SCHEMA)
        with pytest.raises(SystemExit, match="^error: data/imagery/test: no images in it"):
            features("real")
    else:
        fid.main()
        assert [
            line.split(",")[0]
            for line in Path("metrics/plots/fid_curve.csv").read_text().splitlines()
        ] == ["images", "45", "22"]
