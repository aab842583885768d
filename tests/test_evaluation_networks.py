"""The networks behind the features: their input, and errors about their weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


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


@pytest.mark.parametrize("name", ["inception2048", "dinov2"])
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
