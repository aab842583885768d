"""Bad input to encode, finetune_sd, sample and train_base: one line, exit code 1."""

import re
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_diffusion import make_imagery, run, write_params

from stages import encode, finetune_sd, sample, train_base
from stages.common.artifacts import read_json, write_json

BASE = "models/base/diffusion"


def nothing(folder):
    """Leave the workspace as it is: the params are wrong."""


def remove(path):
    return lambda folder: (folder / path).unlink()


def set_config(part_config, **values):
    """Change values in a JSON file of the base model."""

    def spoil(folder):
        path = folder / BASE / part_config
        write_json(path, read_json(path) | values)

    return spoil


def empty_config(part_config):
    return lambda folder: write_json(folder / BASE / part_config, [])


def truncate_config(part_config):
    return lambda folder: (folder / BASE / part_config).write_text("{")


def pickle_unet(folder):
    unet = folder / BASE / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")


def truncate_vae(folder):
    path = folder / BASE / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def fill_tensor(part, tensor, value):
    """Give all elements of one tensor this value."""

    def spoil(folder):
        (path,) = (folder / BASE / part).glob("*.safetensors")
        weights = load_file(path)
        save_file(weights | {tensor: weights[tensor] * 0 + value}, path, {"format": "pt"})

    return spoil


def remove_tensor(part, tensor):
    def spoil(folder):
        (path,) = (folder / BASE / part).glob("*.safetensors")
        weights = load_file(path)
        del weights[tensor]
        save_file(weights, path, {"format": "pt"})

    return spoil


def add_token(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / BASE / "tokenizer")
    tokenizer.add_tokens(["satx"])
    tokenizer.save_pretrained(folder / BASE / "tokenizer")


def make_tiles_of_30_pixels(folder):
    shutil.rmtree(folder / "data/imagery")
    make_imagery(folder / "data/imagery", {"train": 2, "valid": 2}, size=30)


def remove_training_tiles(folder):
    shutil.rmtree(folder / "data/imagery/train")
    make_imagery(folder / "data/imagery", {"train": 0})


def make_folder(path):
    return lambda folder: (folder / path).mkdir(parents=True)


ZERO_SNR_BASE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ZERO_SNR = {
    "finetune_sd": {"zero_terminal_snr": True, "min_snr_gamma": None},
    "sampling": {"scheduler": "ddim"},
}
# Stage, what is wrong in the workspace and in the params, and what the error line must name.
FAULTS = [
    (encode, remove(f"{BASE}/vae/config.json"), {}, ["vae/config.json: "]),
    (
        encode,
        set_config("scheduler/scheduler_config.json", **ZERO_SNR_BASE),
        {},
        ["sampling.scheduler: pndm", BASE],
    ),
    (
        encode,
        nothing,
        {"sampling": {"steps": 150}},
        ["sampling.steps: 150 ", " 895 ", " 142 or 160 "],
    ),
    (
        encode,
        set_config("scheduler/scheduler_config.json", num_train_timesteps=200),
        {"sampling": {"steps": 200}},
        ["sampling.steps: 200 ", BASE, " 199"],
    ),
    (encode, remove(f"{BASE}/tokenizer/tokenizer.json"), {}, ["tokenizer/vocab.json: "]),
    (encode, truncate_vae, {}, [f"{BASE}/vae: "]),
    (
        encode,
        remove_tensor("text_encoder", "text_model.final_layer_norm.weight"),
        {},
        [f"{BASE}/text_encoder: ", "final_layer_norm.weight"],
    ),
    (
        encode,
        remove_tensor("vae", "decoder.conv_in.weight"),
        {},
        [f"{BASE}/vae: ", "decoder.conv_in.weight"],
    ),
    (
        encode,
        set_config("vae/config.json", latent_channels=7),
        {},
        [f"{BASE}/vae: ", "decoder.conv_in.weight", "[8, 4, 3, 3]", "[8, 7, 3, 3]"],
    ),
    (encode, make_tiles_of_30_pixels, {}, ["fetch_imagery.resolution: 30 ", " 4,"]),
    (encode, nothing, {"sampling": {"resolution": 30}}, ["sampling.resolution: 30 ", " 4,"]),
    (encode, nothing, {"sampling": {"precision": "fp16"}}, ["sampling.precision: fp16"]),
    (encode, remove_training_tiles, {}, ["data/imagery/train: "]),
    (encode, nothing, {"encode": {"precision": "fp16"}}, ["encode.precision: fp16"]),
    (
        encode,
        nothing,
        {"encode": {"base_domain": "path:none/such"}},
        ["encode.base_domain: path:none/such: "],
    ),
    (
        encode,
        nothing,
        {"encode": {"base_domain": "path:models"}},
        ["encode.base_domain: path:models: "],
    ),
    (
        encode,
        make_folder("data/latents/mine"),
        {"encode": {"base_domain": "path:data/latents/mine"}},
        ["encode.base_domain: path:data/latents/mine: "],
    ),
    (
        encode,
        make_folder("empty"),
        {"encode": {"base_domain": "path:empty"}},
        ["encode.base_domain: empty: "],
    ),
    (
        encode,
        fill_tensor("vae", "encoder.conv_in.bias", float("nan")),
        {},
        [f"{BASE}/vae: ", "encoder.conv_in.bias", "NaN"],
    ),
    (
        encode,
        fill_tensor("vae", "encoder.conv_in.bias", 1.0e38),
        {},
        ["data/imagery/train: ", ".png: ", "NaN", "weights of the VAE"],
    ),
    (
        encode,
        fill_tensor("text_encoder", "text_model.final_layer_norm.bias", 1.0e38),
        {},
        [f"{BASE}: ", "caption ''", "NaN", "weights of the text encoder"],
    ),
    (encode, nothing, {"finetune_sd": {"precision": "fp16"}}, ["finetune_sd.precision: fp16"]),
    (
        encode,
        set_config("scheduler/scheduler_config.json", prediction_type="epsilon"),
        ZERO_SNR,
        ["finetune_sd.zero_terminal_snr: ", "v_prediction"],
    ),
    (
        encode,
        set_config("scheduler/scheduler_config.json", **ZERO_SNR_BASE),
        {"finetune_sd": {"min_snr_gamma": 5.0}, "sampling": {"scheduler": "ddim"}},
        ["finetune_sd.min_snr_gamma: ", f"{BASE}/scheduler", "rescale_betas_zero_snr"],
    ),
    (encode, add_token, {}, [f"{BASE}: ", "satx"]),
    (
        encode,
        set_config("scheduler/scheduler_config.json", beta_schedule="sigmoid"),
        {},
        [f"{BASE}/scheduler/scheduler_config.json: ", "PNDMScheduler", "sigmoid"],
    ),
    (sample, add_token, {}, [f"{BASE}: ", "satx"]),
    (
        finetune_sd,
        set_config("scheduler/scheduler_config.json", **ZERO_SNR_BASE),
        {"finetune_sd": {"min_snr_gamma": 5.0}},
        ["finetune_sd.min_snr_gamma: ", f"{BASE}/scheduler", "rescale_betas_zero_snr"],
    ),
    (
        finetune_sd,
        remove_tensor("unet", "conv_out.weight"),
        {},
        [f"{BASE}/unet: ", "conv_out.weight"],
    ),
    (
        finetune_sd,
        empty_config("scheduler/scheduler_config.json"),
        {},
        ["scheduler/scheduler_config.json: "],
    ),
    (
        finetune_sd,
        truncate_config("scheduler/scheduler_config.json"),
        {},
        ["scheduler/scheduler_config.json: "],
    ),
    (finetune_sd, pickle_unet, {}, [f"{BASE}/unet", "diffusion_pytorch_model.safetensors"]),
    (
        finetune_sd,
        set_config("unet/config.json", cross_attention_dim=768),
        {},
        [f"{BASE}/unet: ", " 768", " 16"],
    ),
    (
        finetune_sd,
        remove("data/latents/train.safetensors"),
        {},
        ["data/latents/train.safetensors: "],
    ),
    (
        finetune_sd,
        nothing,
        {"finetune_sd": {"lr": 1.0e30, "warmup_steps": 0}},
        ["finetune_sd.lr: ", "1e+30"],
    ),
    (
        finetune_sd,
        nothing,
        {"finetune_sd": {"warmup_steps": 500}},
        ["finetune_sd.warmup_steps: 500 ", " 10 steps", " 2.0e-05 ", " 1.0e-03"],
    ),
    (finetune_sd, fill_tensor("unet", "conv_out.bias", 3.0e38), {}, [f"{BASE}: ", "NaN"]),
    (
        finetune_sd,
        set_config("scheduler/scheduler_config.json", prediction_type="epsilon"),
        ZERO_SNR,
        ["finetune_sd.zero_terminal_snr: ", "v_prediction"],
    ),
    (
        sample,
        nothing,
        {"sampling": {"resolution": 30}},
        ["sampling.resolution: 30 ", " 4,"],
    ),
    (
        sample,
        fill_tensor("unet", "conv_out.bias", 3.0e38),
        {"sampling": {"precision": "bf16", "guidance_scale": 1.0}},
        [f"{BASE}: ", "NaN", "sampling.precision (try fp32)", "weights"],
    ),
    (
        sample,
        nothing,
        {"sampling": {"scheduler": "ddim", "steps": 400}},
        ["sampling.steps: 400 ", " 799 ", " 333 or 476 "],
    ),
    (
        sample,
        nothing,
        {"sampling": {"guidance_scale": 1.0e38}},
        [f"{BASE}: ", "NaN", "sampling.guidance_scale (try less than 1e+38)"],
    ),
    (
        sample,
        set_config("scheduler/scheduler_config.json", prediction_type="epsilon", **ZERO_SNR_BASE),
        {"sampling": {"scheduler": "ddim"}},
        [f"{BASE}/scheduler: ", "rescale_betas_zero_snr", "v_prediction"],
    ),
]


@pytest.mark.parametrize(
    "stage, spoil, params, named",
    FAULTS,
    ids=[f"{fault[0].__name__.split('.')[-1]}-{' '.join(fault[3])[:40]}" for fault in FAULTS],
)
def test_bad_input_ends_in_one_line(workspace, stage, spoil, params, named):
    spoil(workspace)
    write_params(workspace, **params)
    code, log = run(workspace, stage.main, *(["base"] if stage is sample else []))
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and "Traceback" not in log
    assert all(part in errors[0] for part in named), errors[0]
    # No value that is in use is advised.
    precision = params.get("sampling", params.get("finetune_sd", {})).get("precision", "fp32")
    assert not re.search(rf"(try|precision) [^;]*\b{precision}\b", errors[0]), errors[0]


def test_a_batch_that_processes_cannot_share_ends_before_encoding(workspace):
    write_params(workspace, finetune_sd={"batch_size": 7})
    code, log = run(workspace, encode.main, processes=2)
    assert code == 1 and "error: finetune_sd.batch_size: 7 " in log and "2 processes" in log


def test_params_of_no_fine_tuning_are_not_checked_early(workspace):
    write_params(workspace, finetune_sd={"epochs": 0, "precision": "fp16"})
    code, log = run(workspace, encode.main)
    assert code == 0, log


def test_a_base_whose_training_diverges_replaces_nothing(workspace):
    start_json = workspace / "models/start/start.json"
    before = start_json.read_text()
    from_scratch = {
        "source": "scratch",
        "vae_channels": [8, 16],
        "text_width": 32,
        "unet_channels": [16, 32],
        "batch_size": 4,
        "text_steps": 3,
        "vae_steps": 1,
    }
    write_params(workspace, train_base=from_scratch | {"lr": 1.0e30})
    code, log = run(workspace, train_base.main)
    assert code == 1 and "Traceback" not in log
    assert "error: train_base.lr: " in log and "text encoder" in log
    assert start_json.read_text() == before
    write_params(workspace, train_base=from_scratch)
    code, log = run(workspace, train_base.main)
    assert code == 0 and read_json(start_json) == {"folder": "models/start"}
