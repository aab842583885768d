"""The networks behind the features: their input, their weights, and what is said where those are not what they should be."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


def test_the_frame_has_the_released_scripts_proportions():
    import torch

    from stages.evaluation.networks import framed

    assert framed(torch.full((1, 3, 224, 224), 9, dtype=torch.uint8)).shape == (1, 3, 512, 512)
    small = framed(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8))
    side = small.shape[-1]
    assert side == pytest.approx(32 * 512 / 224, abs=1.5) and small[0, 0, 0].sum() == 0
    edge = (side - 32) // 2
    assert (small[:, :, edge:-edge, edge:-edge] == 9).all() and small.sum() == 3 * 32 * 32 * 9


def test_resize_is_antialiased():
    """A pattern finer than the target's pixels becomes grey, not moire (Parmar et al. 2022)."""
    import torch

    from stages.evaluation.networks import resize

    board = (
        torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(32, 32).expand(1, 3, 64, 64)
    )
    small = resize(board, 20)
    assert small.std() < 5 and small.mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize(
    "name, file", [("inception2048", "model.safetensors"), ("dinov2", "model.safetensors")]
)
def test_missing_weights_end_in_one_line_that_says_where_to_put_them(
    tmp_path, monkeypatch, name, file
):
    monkeypatch.chdir(tmp_path)
    from stages.evaluation.extractors import extractor

    with pytest.raises(SystemExit) as end:
        extractor(name)
    assert f"models/base/vision/{name}/{file}" in str(end.value) and "fetch_model.vision" in str(
        end.value
    )


@pytest.mark.parametrize(
    "model, resolution, line",
    [
        ("resnet19", 32, "train_scene.model: timm has no model 'resnet19'; near: .*resnet18"),
        (
            "resnet18.mine",
            32,
            "train_scene.model: resnet18.mine can't read images of 32 px: Invalid pretrained tag",
        ),
        (
            "inception_v3",
            32,
            "train_scene.model: inception_v3 can't read images of 32 px: .*Kernel size",
        ),
    ],
)
def test_a_network_that_cannot_be_is_named(model, resolution, line):
    from stages.evaluation.networks import create

    with pytest.raises(SystemExit, match=line):
        create(model, 3, resolution, "train_scene.model")


def test_clip_gives_images_and_captions_one_space(tmp_path):
    """A tiny CLIP in the hub's layout: what the extractor and `caption_embeddings` give is what the whole model gives."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    from stages.evaluation.extractors import Transformer, caption_embeddings

    tokenizer = AutoTokenizer.from_pretrained(
        Path(__file__).parent.parent / "stages/embedded/models/diffusion/tokenizer"
    )
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = small | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=small | {"image_size": 28, "patch_size": 14},
            projection_dim=8,
        )
    ).eval()
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip/preprocessor_config.json").write_text(
        json.dumps({"crop_size": 28, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    captions = ["a lake", "a forest beside a lake"]
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    with torch.inference_mode():
        clip = Transformer("clip", tmp_path / "clip")
        seen = clip(images)["features"]
        tokens = tokenizer(
            captions, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
        )
        whole = model(
            pixel_values=(images / 255 - 0.5) / 0.5,
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    found = caption_embeddings(clip, captions, 1, tmp_path / "clip")
    for ours, theirs in ((seen, whole.image_embeds), (found, whole.text_embeds)):
        assert torch.allclose(torch.nn.functional.normalize(ours), theirs, atol=1e-5)


def test_weights_of_another_network_are_not_inceptions(tmp_path):
    from stages.evaluation.extractors import Inception

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        SystemExit,
        match="^error: .*model.safetensors: not the weights of the FID network: .*Conv2d_1a_3x3",
    ):
        Inception(tmp_path / "model.safetensors")


def test_a_transformers_folder_is_an_extractor(tmp_path):
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from stages.evaluation.extractors import Transformer

    settings = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(settings).save_pretrained(tmp_path / "dinov2")
    (tmp_path / "dinov2/preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": {"height": 28, "width": 28},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        )
    )
    with torch.inference_mode():
        output = Transformer("dinov2", tmp_path / "dinov2")(
            torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
        )
    assert output["features"].shape == (2, 16)
    weights = load_file(tmp_path / "dinov2/model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "dinov2/model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match="dinov2: its weights lack layernorm.weight: "):
        Transformer("dinov2", tmp_path / "dinov2")
