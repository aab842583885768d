"""Bad input to encode, finetune_sd and sample: one line, exit code 1."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_diffusion import make_imagery, run, write_params

from stages import encode, finetune_sd, sample
from stages.common.artefacts import read_json, write_json


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


def not_numbers(folder):
    path = folder / "models/base/diffusion/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"conv_out.bias": weights["conv_out.bias"] * float("nan")}, path, {"format": "pt"})


def torn_weights(folder):
    path = folder / "models/base/diffusion/vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


BASE = "models/base/diffusion"
FAULTS = [
    (encode, remove(f"{BASE}/vae/config.json"), {}, "vae/config.json: not found"),
    (encode, remove(f"{BASE}/tokenizer/tokenizer.json"), {}, "tokenizer/vocab.json: not found"),
    (encode, torn_weights, {}, "vae: cannot be loaded"),
    (encode, odd_tiles, {}, "fetch_imagery.resolution: 30 px is not a multiple of 4"),
    (encode, no_tiles, {}, "data/imagery/train: no images"),
    (encode, lambda folder: None, {"encode": {"precision": "fp16"}}, "encode.precision: fp16 needs a GPU"),
    (finetune_sd, pickled, {}, "diffusion_pytorch_model.bin: a pickle"),
    (finetune_sd, wide_text, {}, "text of width 768"),
    (finetune_sd, remove("data/latents/train.safetensors"), {}, "data/latents/train.safetensors: not found"),
    (finetune_sd, lambda folder: None, {"finetune_sd": {"lr": 1.0e30, "warmup_steps": 0}}, "finetune_sd.lr: the loss is no"),
    (finetune_sd, predicts_noise, {"finetune_sd": {"zero_terminal_snr": True, "min_snr_gamma": None}, "sampling": {"scheduler": "ddim"}},
     "finetune_sd.zero_terminal_snr: at zero signal"),
    (encode, lambda folder: None, {"encode": {"base_domain": "path:none/such"}}, "encode.base_domain: path:none/such: no such"),
    (encode, lambda folder: None, {"encode": {"base_domain": "path:models"}}, "encode.base_domain: models: no images in it"),
    (sample, lambda folder: None, {"sampling": {"resolution": 30}}, "sampling.resolution: 30 px is not a multiple of 4"),
    (sample, beta_sigmas, {}, "scheduler: use_beta_sigmas is not supported"),
    (sample, not_numbers, {}, "sampling.precision: in fp32 the model's images are no numbers"),
]


@pytest.mark.parametrize("stage, spoil, params, line", FAULTS, ids=[fault[3][:40] for fault in FAULTS])
def test_bad_input_ends_in_one_line(workspace, stage, spoil, params, line):
    spoil(workspace)
    write_params(workspace, **params)
    code, log = run(workspace, stage.main, *(["base"] if stage is sample else []))
    errors = [text for text in log.splitlines() if text.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and line in errors[0] and "Traceback" not in log
