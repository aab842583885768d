"""train_scene -> features -> fid on a small set of rendered tiles, in an empty folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file

from stages.common.artefacts import IMAGE, png, read_rows, write_shards
from stages.embedded.scenes import render

SCENES = ("forest", "lake", "parking")  # easily told apart
SCHEMA = pa.schema([("image", IMAGE), ("filename", pa.string()), ("scene", pa.string())])
LABELLED = pa.schema([("image", IMAGE), ("row", pa.int32()), ("label", pa.string())])
CLASSES = {"forest": "Woody Vegetation", "lake": "Water Body"}


def tile(scene: str, i: int, seed: int = 0) -> dict:
    return {"bytes": png(Image.fromarray(render(scene, seed, i, 32, "domain")[0])), "path": None}


def tiles(start: int, count: int, seed: int = 0) -> list[dict]:
    chosen = [(SCENES[i % 3], i) for i in range(start, start + count)]
    return [{"image": tile(scene, i, seed), "filename": f"{scene}_{i}.png", "scene": scene} for scene, i in chosen]


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
        params(train_scene={"model": "test_byobnet", "resolution": 32, "epochs": 12, "batch_size": 16, "lr": 4e-3},
               features={"extractors": ["scene"], "batch_size": 16},
               fid={"standard_min_n": 20, "paper_n": 20, "paper_draws": 2})
        write_shards("data/imagery/train", tiles(0, 120), SCHEMA)
        write_shards("data/imagery/valid", tiles(120, 30), SCHEMA)
        write_shards("data/imagery/test", tiles(150, 45), SCHEMA)
        write_shards("data/samples/tuned", tiles(150, 45, seed=7), SCHEMA)
        write_shards("data/samples/base", [row | {"image": tile("forest", 9)} for row in tiles(150, 45)], SCHEMA)
        write_shards("data/synthetic", [{"image": tile(scene, i, 9), "row": i, "label": CLASSES[scene]}
                                        for i in range(10) for scene in CLASSES], LABELLED)
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
    return json.loads(Path("metrics/fid.json").read_text())["scene"], json.loads(Path("metrics/agreement.json").read_text())


def test_the_scene_network_learns_and_says_so(here):
    config = json.loads(Path("models/scene/config.json").read_text())
    assert config["scenes"] == sorted(SCENES) and config["valid_accuracy"] > 0.8 and config["n_valid"] == 30


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
    assert standard["fid"] < standard["fid_base"] / 3 and standard["recall_base"] < 0.1 < standard["recall"]
    assert paper["n"] == 20 and paper["fid"] > standard["fid"] and paper["fid_std"] > 0  # fewer images, greater FID
    assert agreement["text_agreement"] > 0.7 and agreement["ceiling"] > 0.7 and agreement["class_agreement"] > 0.7
    assert agreement["text_agreement_base"] == pytest.approx(1 / 3, abs=0.01)  # all forests
    assert set(agreement["per_scene"]) == set(SCENES) and min(agreement["per_scene"].values()) == agreement["per_scene_min"]
    assert Path("metrics/plots/agreement_by_scene.csv").read_text().startswith("scene,tuned,base,real\n")


def test_a_label_shuffle_brings_agreement_to_chance(here, monkeypatch, tmp_path):
    shutil.copytree(here, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    rows = read_rows("data/samples/tuned")
    shifted = [row | {"image": rows[i]["image"]} for row, i in zip(rows, np.random.default_rng(0).permutation(len(rows)))]
    shutil.rmtree("data/samples/tuned")
    write_shards("data/samples/tuned", shifted, SCHEMA)
    features("real", "tuned", "base", "synthetic")
    distances, agreement = scores()
    assert agreement["text_agreement_lo"] < 1 / 3 < agreement["text_agreement_hi"]
    assert distances["standard"]["fid"] < distances["standard"]["fid_base"] / 3  # the images themselves are as good


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
    assert stored["features"].dtype == np.float32 and stored["features"].shape[0] == len(stored["logits"]) == 45


def test_resize_is_antialiased():
    """A pattern finer than the target's pixels becomes grey, not moire (Parmar et al. 2022)."""
    import torch

    from stages.evaluation.networks import resize

    board = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(32, 32).expand(1, 3, 64, 64)
    small = resize(board, 20)
    assert small.std() < 5 and small.mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("name, file", [("inception2048", "model.safetensors"), ("dinov2", "model.safetensors")])
def test_missing_weights_end_in_one_line_that_says_where_to_put_them(here, name, file):
    from stages.evaluation.extractors import extractor

    with pytest.raises(SystemExit) as end:
        extractor(name)
    assert f"models/base/vision/{name}/{file}" in str(end.value) and "fetch_model.vision" in str(end.value)


def test_an_unknown_network_is_named(here):
    from stages.evaluation.networks import create

    with pytest.raises(SystemExit, match="train_scene.model: timm has no model 'resnet19'"):
        create("resnet19", 3, "train_scene.model")


def test_a_transformers_folder_is_an_extractor(here, tmp_path):
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from stages.evaluation.extractors import Transformer

    settings = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(settings).save_pretrained(tmp_path / "dinov2")
    (tmp_path / "dinov2/preprocessor_config.json").write_text(json.dumps(
        {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    with torch.inference_mode():
        output = Transformer("dinov2", tmp_path / "dinov2")(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    assert output["features"].shape == (2, 16)
