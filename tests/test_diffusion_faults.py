"""Bad input to encode, finetune_sd and sample: one line, exit code 1."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_diffusion import make_imagery, run, write_params

from stages import encode, finetune_sd, sample, train_base
from stages.common.artifacts import read_json, write_json


def remove(path):
    return lambda folder: (folder / path).unlink()


def pickled(folder):
    unet = folder / "models/base/diffusion/unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")


def odd_tiles(folder):
    shutil.rmtree(folder / "data/imagery")
    make_imagery(folder / "data/imagery", {"train": 2, "valid": 2}, size=30)


def no_tiles(folder):
    shutil.rmtree(folder / "data/imagery/train")
    make_imagery(folder / "data/imagery", {"train": 0})


def wide_text(folder):
    path = folder / "models/base/diffusion/unet/config.json"
    write_json(path, read_json(path) | {"cross_attention_dim": 768})


def predicts_noise(folder):
    path = folder / "models/base/diffusion/scheduler/scheduler_config.json"
    write_json(path, read_json(path) | {"prediction_type": "epsilon"})


def beta_sigmas(folder):
    path = folder / "models/base/diffusion/scheduler/scheduler_config.json"
    write_json(path, read_json(path) | {"use_beta_sigmas": True})


def own_latents(folder):
    (folder / "data/latents/mine").mkdir(parents=True)


def empty(folder):
    (folder / "empty").mkdir()


def spoilt(part, tensor, value):
    def spoil(folder):
        path = folder / f"models/base/diffusion/{part}/diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        save_file(weights | {tensor: weights[tensor] * 0 + value}, path, {"format": "pt"})

    return spoil


def lacking(part, tensor):
    """A spoiler that takes one tensor out of the weights of a part."""

    def spoil(folder):
        (path,) = (folder / "models/base/diffusion" / part).glob("*.safetensors")
        save_file(
            {name: value for name, value in load_file(path).items() if name != tensor},
            path,
            {"format": "pt"},
        )

    return spoil


def other_shape(folder):
    path = folder / "models/base/diffusion/vae/config.json"
    write_json(path, read_json(path) | {"latent_channels": 7})


def no_object(folder):
    write_json(folder / "models/base/diffusion/scheduler/scheduler_config.json", [])


def torn_weights(folder):
    path = folder / "models/base/diffusion/vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


BASE = "models/base/diffusion"
FAULTS = [
    (encode, remove(f"{BASE}/vae/config.json"), {}, "vae/config.json: not found"),
    (encode, remove(f"{BASE}/tokenizer/tokenizer.json"), {}, "tokenizer/vocab.json: not found"),
    (encode, torn_weights, {}, "vae: cannot be loaded"),
    (
        encode,
        lacking("text_encoder", "final_layer_norm.weight"),
        {},
        "text_encoder: its weights lack final_layer_norm.weight:",
    ),
    (
        encode,
        lacking("vae", "decoder.conv_in.weight"),
        {},
        "vae: its weights lack decoder.conv_in.weight:",
    ),
    (
        encode,
        other_shape,
        {},
        "vae: decoder.conv_in.weight is [8, 4, 3, 3] in its weights, [8, 7, 3, 3] by its config.json (and",
    ),
    (
        finetune_sd,
        lacking("unet", "conv_out.weight"),
        {},
        "unet: its weights lack conv_out.weight:",
    ),
    (finetune_sd, no_object, {}, "scheduler_config.json: holds no JSON object"),
    (encode, odd_tiles, {}, "fetch_imagery.resolution: 30 px is not a multiple of 4"),
    (encode, no_tiles, {}, "data/imagery/train: no images"),
    (
        encode,
        lambda folder: None,
        {"encode": {"precision": "fp16"}},
        "encode.precision: fp16 needs a GPU",
    ),
    (finetune_sd, pickled, {}, "diffusion_pytorch_model.bin: a pickle"),
    (finetune_sd, wide_text, {}, "text of width 768"),
    (
        finetune_sd,
        remove("data/latents/train.safetensors"),
        {},
        "data/latents/train.safetensors: not found",
    ),
    (
        finetune_sd,
        lambda folder: None,
        {"finetune_sd": {"lr": 1.0e30, "warmup_steps": 0}},
        "finetune_sd.lr: the loss is no",
    ),
    (
        finetune_sd,
        predicts_noise,
        {
            "finetune_sd": {"zero_terminal_snr": True, "min_snr_gamma": None},
            "sampling": {"scheduler": "ddim"},
        },
        "finetune_sd.zero_terminal_snr: at zero signal",
    ),
    (
        encode,
        lambda folder: None,
        {"encode": {"base_domain": "path:none/such"}},
        "encode.base_domain: path:none/such: no such",
    ),
    (
        encode,
        lambda folder: None,
        {"encode": {"base_domain": "path:models"}},
        "encode.base_domain: path:models: a run replaces models",
    ),
    (
        encode,
        own_latents,
        {"encode": {"base_domain": "path:data/latents/mine"}},
        "data/latents/mine: a run replaces data/latents",
    ),
    (
        encode,
        empty,
        {"encode": {"base_domain": "path:empty"}},
        "encode.base_domain: empty: no images in it",
    ),
    (
        sample,
        lambda folder: None,
        {"sampling": {"resolution": 30}},
        "sampling.resolution: 30 px is not a multiple of 4",
    ),
    (sample, beta_sigmas, {}, "scheduler: use_beta_sigmas is not supported"),
    (
        encode,
        spoilt("vae", "encoder.conv_in.bias", float("nan")),
        {},
        "vae: encoder.conv_in.bias holds values that are no numbers",
    ),
    (
        sample,
        spoilt("unet", "conv_out.bias", 3.0e38),
        {},
        "sampling.precision: in fp32 the model's images are no numbers",
    ),
]


@pytest.mark.parametrize(
    "stage, spoil, params, line", FAULTS, ids=[fault[3][:40] for fault in FAULTS]
)
def test_bad_input_ends_in_one_line(workspace, stage, spoil, params, line):
    spoil(workspace)
    write_params(workspace, **params)
    code, log = run(workspace, stage.main, *(["base"] if stage is sample else []))
    errors = [text for text in log.splitlines() if text.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and line in errors[0] and "Traceback" not in log


@pytest.mark.parametrize(
    "steps, part",
    [
        ({"text_steps": 3, "vae_steps": 0}, "text encoder"),
        ({"text_steps": 0, "vae_steps": 1}, "VAE"),
    ],
)
def test_a_base_whose_training_diverges_replaces_nothing(workspace, steps, part):
    before = (workspace / "models/start/start.json").read_text()
    scratch = {
        "source": "scratch",
        "vae_channels": [8, 16],
        "text_width": 32,
        "unet_channels": [16, 32],
        "batch_size": 4,
    }
    write_params(workspace, train_base=scratch | steps | {"lr": 1.0e30})
    code, log = run(workspace, train_base.main)
    assert (
        code == 1
        and f"error: train_base.lr: training the {part} leads to values that are no numbers" in log
        and "Traceback" not in log
    )
    assert (workspace / "models/start/start.json").read_text() == before
    write_params(workspace, train_base=scratch | steps)
    code, log = run(workspace, train_base.main)
    assert code == 0 and read_json(workspace / "models/start/start.json") == {
        "folder": "models/start"
    }
