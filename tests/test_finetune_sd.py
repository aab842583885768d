"""finetune_sd on a tiny untrained model. Each run is a new process."""

import csv
import os
import re
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusion import IMAGERY, on_threads, run, write_params

from stages import encode, fetch_model, finetune_sd, sample
from stages.common.artifacts import digest, encode_png, read_json, write_json, write_shards
from stages.diffusion import models, schedulers, trainer
from stages.diffusion.caption_embeddings import CachedEmbeddings, load_embeddings
from stages.diffusion.latents import Latents, memory_map
from stages.diffusion.loss import denoising_loss
from stages.diffusion.validation import validation_loss
from stages.embedded.scenes.render import render
from stages.params import load

SPLITS = ("train", "valid", "base")
# The validation loss falls, then rises.
OVERSHOOTS = {"lr": 1.0, "lr_schedule": "constant", "warmup_steps": 10, "ema_decay": 0.0}


def read_curve(folder) -> dict[int, dict[str, float | None]]:
    """The rows of diffusion_loss.csv by their step; None where a cell is empty."""
    with open(folder / "metrics/plots/diffusion_loss.csv", newline="") as file:
        return {
            int(row["step"]): {name: float(cell) if cell else None for name, cell in row.items()}
            for row in csv.DictReader(file)
        }


def test_training_learns_and_saves_a_pipeline_that_diffusers_reads(trained):
    from diffusers import StableDiffusionPipeline

    metrics = read_json(trained / "metrics/diffusion.json")
    assert metrics["steps"] == 10 and metrics["best_step"] in (3, 6, 9, 10)
    assert metrics["validation_loss"] < metrics["validation_loss_base"]
    assert metrics["validation_loss"] <= metrics["validation_loss_last"]
    assert list(read_curve(trained)) == [0, 3, 6, 9, 10]
    pipe = StableDiffusionPipeline.from_pretrained(
        trained / "models/diffusion", local_files_only=True
    )
    assert pipe.unet.dtype == torch.float32
    assert not list((trained / "scratch/finetune_sd").glob("*/"))  # the checkpoints are removed


def test_the_saved_weights_have_the_measured_losses(trained):
    """They are the averaged weights of the best step."""
    folder = trained / "models/diffusion"
    finetune_sd_params = load(trained / "params.yaml").finetune_sd
    assert finetune_sd_params.ema_decay > 0
    schedule = schedulers.load_scheduler(folder, "ddpm")
    latents = trained / "data/latents"
    one_process = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        reduce=lambda tensor, _: tensor,
    )
    trainer = SimpleNamespace(
        accelerator=one_process,
        batch_size=finetune_sd_params.batch_size,
        alphas_cumprod=schedule.alphas_cumprod,
    )
    unet = models.load(folder, "unet")
    metrics = read_json(trained / "metrics/diffusion.json")
    for split, name in (("valid", "validation_loss"), ("base", "base_domain_loss")):
        scale = models.scaling_factor(folder)
        data = Latents(latents, split, scale, CachedEmbeddings(latents))
        images = finetune_sd_params.validation_images  # more than `base` has
        loss = validation_loss(trainer, unet, data, images, schedule.config.prediction_type)
        assert loss == pytest.approx(metrics[name], rel=1e-5)
    assert metrics["validation_loss"] == pytest.approx(
        min(row["validation_loss"] for row in read_curve(trained).values()), rel=1e-6
    )


def test_training_begins_with_the_loss_of_the_base_model_under_the_params(trained):
    base = trained / "models/base/diffusion"
    latents = trained / "data/latents"
    params = load(trained / "params.yaml")
    config = params.finetune_sd
    schedule = schedulers.load_scheduler(base, "ddpm")
    data = Latents(latents, "train", models.scaling_factor(base), CachedEmbeddings(latents))
    batch = data.training_batch(
        range(config.batch_size),
        params.seed,
        len(schedule.alphas_cumprod),
        config.caption_dropout,
        config.latent == "sample",
    )
    unet = models.load(base, "unet")
    kind = schedule.config.prediction_type
    with torch.no_grad():
        losses = denoising_loss(unet, batch, schedule.alphas_cumprod, kind, config.min_snr_gamma)
    assert read_curve(trained)[0]["train_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_the_best_checkpoint_is_saved_not_the_last(workspace):
    write_params(workspace, finetune_sd=OVERSHOOTS)
    code, log = run(workspace, finetune_sd.main)
    assert code == 0, log
    metrics = read_json(workspace / "metrics/diffusion.json")
    curve = {step: row["validation_loss"] for step, row in read_curve(workspace).items()}
    best = min((step for step in curve if step), key=curve.get)
    assert metrics["best_step"] == best < metrics["steps"]
    assert metrics["validation_loss"] == pytest.approx(curve[best], rel=1e-6)
    assert metrics["validation_loss"] < metrics["validation_loss_last"]
    # Even the best one is worse than the base model, which is said.
    assert metrics["validation_loss_base"] < metrics["validation_loss"]
    assert f"({curve[best]:.3g} at step {best}) than the base model ({curve[0]:.3g})" in log


def test_gradients_are_clipped(trained, workspace):
    write_params(workspace, finetune_sd={"max_grad_norm": 1.0e-6})
    assert run(workspace, finetune_sd.main)[0] == 0
    clipped = read_curve(workspace)
    unclipped = read_curve(trained)
    assert clipped[0]["validation_loss"] == unclipped[0]["validation_loss"]
    assert clipped[10]["validation_loss"] != unclipped[10]["validation_loss"]


def test_forgetting_is_measured_at_every_checkpoint(trained):
    metrics = read_json(trained / "metrics/diffusion.json")
    curve = read_curve(trained)
    assert metrics["base_domain_loss_base"] == curve[0]["base_domain_loss"]
    assert (
        metrics["base_domain_loss"]
        == curve[metrics["best_step"]]["base_domain_loss"]
        != metrics["base_domain_loss_base"]
    )
    assert metrics["diversity"] > 0 and metrics["diversity_base"] == curve[0]["diversity"]
    grids = {
        path.stem: Image.open(path) for path in (trained / "metrics/plots/diffusion_grid").iterdir()
    }
    assert sorted(map(int, grids)) == sorted(curve)
    assert {grid.size for grid in grids.values()} == {(4 * 32, 2 * 32)}
    assert len({grid.tobytes() for grid in grids.values()}) == len(grids)


def test_dvclive_follows_training_outside_the_outputs(trained):
    live = trained / "dvclive/finetune_sd"
    lines = (live / "plots/metrics/validation_loss.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["step", "3", "6", "9", "10"]
    assert len(list((live / "plots/images").iterdir())) == 4
    assert not (trained / "dvc.yaml").exists()


def test_captions_embedded_in_training_give_the_same_run(trained, workspace):
    latents = workspace / "data/latents"
    cached = CachedEmbeddings(latents)
    latents_bytes = sum((latents / f"{split}.safetensors").stat().st_size for split in SPLITS)
    for processes in (2, 1):
        write_params(workspace, encode={"cache_gb": latents_bytes / 1e9})
        code, log = run(workspace, encode.main, processes=processes)
        assert code == 0 and re.search("^encode: .* pass encode.cache_gb .*finetune_sd", log, re.M)
    assert not (latents / "captions.safetensors").exists()
    computed = load_embeddings(latents, workspace / "models/base/diffusion", torch.device("cpu"))
    ids = np.random.default_rng(0).integers(len(cached.embeddings), size=50)
    assert torch.equal(computed(ids), cached(ids)) and computed.width == cached.width

    code, log = run(workspace, finetune_sd.main)
    assert code == 0, log
    assert read_curve(workspace) == read_curve(trained)
    assert digest(workspace / "models/diffusion") == digest(trained / "models/diffusion")


def test_measurements_do_not_change_training(trained, workspace):
    write_params(workspace, finetune_sd={"grid_captions": 1}, encode={"base_domain": "none"})
    assert run(workspace, encode.main)[0] == 0
    assert not list((workspace / "data/latents").glob("*base*"))
    assert run(workspace, finetune_sd.main)[0] == 0
    assert digest(workspace / "models/diffusion") == digest(trained / "models/diffusion")
    assert "base_domain_loss" not in read_json(workspace / "metrics/diffusion.json")
    assert read_curve(workspace)[0]["base_domain_loss"] is None


class Activations:
    """Stands for what a graph of these images holds in GPU memory."""

    alive = weakref.WeakSet()

    def __init__(self, images: int):
        self.images = images
        self.alive.add(self)


class HoldActivations(torch.autograd.Function):
    """The identity, on a GPU with memory for three images, which the backward pass finds full."""

    @staticmethod
    def forward(ctx, x, activations):
        ctx.activations = activations
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if sum(each.images for each in Activations.alive) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient, None


def finetune_on_a_small_gpu():
    denoising_loss = trainer.denoising_loss

    def loss_that_holds_activations(unet, batch, *rest):
        loss = denoising_loss(unet, batch, *rest)
        if not torch.is_grad_enabled():
            return loss
        return HoldActivations.apply(loss, Activations(len(batch["latents"])))

    trainer.denoising_loss = loss_that_holds_activations
    finetune_sd.main()


def test_out_of_gpu_memory_names_a_batch_that_fits(workspace):
    code, log = run(workspace, finetune_on_a_small_gpu)
    assert code == 1 and "Traceback" not in log
    (error,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: finetune_sd.batch_size: 8 ")
    assert re.search(r"\b2\b", error) and "gradient_accumulation" in error


def test_zero_terminal_snr_is_saved_and_sampled(workspace):
    zero = {"epochs": 0.5, "zero_terminal_snr": True, "min_snr_gamma": None}
    weighted = zero | {"min_snr_gamma": 5.0}
    for sections, key in (
        ({"finetune_sd": zero}, "sampling.scheduler"),
        (
            {"finetune_sd": weighted, "sampling": {"scheduler": "ddim"}},
            "finetune_sd.min_snr_gamma",
        ),
    ):
        write_params(workspace, **sections)
        code, log = run(workspace, finetune_sd.main)
        assert code == 1 and f"params.yaml: {key}: " in log
    write_params(workspace, finetune_sd=zero, sampling={"scheduler": "ddim"})
    assert run(workspace, finetune_sd.main)[0] == 0
    saved = workspace / "models/diffusion"
    assert models.read_config(saved, "scheduler")["rescale_betas_zero_snr"] is True
    assert schedulers.load_scheduler(saved, "ddpm").alphas_cumprod[-1] == 0
    assert run(workspace, sample.main, "tuned")[0] == 0
    write_params(workspace)
    code, log = run(workspace, sample.main, "tuned")
    assert code == 1 and "error: sampling.scheduler: pndm" in log


def test_two_processes_with_the_same_global_batch_learn_the_same(trained, workspace):
    code, log = run(workspace, finetune_sd.main, processes=2)
    assert code == 0, log
    one, two = (read_json(folder / "metrics/diffusion.json") for folder in (trained, workspace))
    assert one["steps"] == two["steps"]
    # The gradient is summed in another order: rounding in float32.
    np.testing.assert_allclose([two[key] for key in one], [one[key] for key in one], rtol=1e-4)


def finetune_with(variables):
    os.environ |= variables
    finetune_sd.main()


def test_variables_of_accelerate_change_nothing(trained, workspace):
    variables = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER",
    }
    code, log = run(workspace, finetune_with, variables)
    assert code == 0, log
    assert digest(workspace / "models/diffusion") == digest(trained / "models/diffusion")
    assert read_curve(workspace) == read_curve(trained)


def test_accumulation_equals_the_bigger_batch(trained, workspace):
    write_params(workspace, finetune_sd={"batch_size": 4, "gradient_accumulation": 2})
    assert run(workspace, finetune_sd.main)[0] == 0
    one, two = (read_json(folder / "metrics/diffusion.json") for folder in (trained, workspace))
    np.testing.assert_allclose(two["validation_loss_last"], one["validation_loss_last"], rtol=1e-4)


def test_chunks_on_several_cores_equal_the_whole_batch(workspace):
    losses = []
    two_chunks = {"batch_size": 32}
    one_chunk_twice = {"batch_size": 16, "gradient_accumulation": 2}
    for finetune_sd_params in (two_chunks, one_chunk_twice):
        write_params(workspace, finetune_sd=finetune_sd_params)
        code, log = run(workspace, on_threads, 2, finetune_sd.main)
        assert code == 0, log
        losses.append(read_json(workspace / "metrics/diffusion.json")["validation_loss_last"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A workspace with latents of the shipped model, which predicts the velocity."""
    folder = tmp_path_factory.mktemp("shipped")
    shutil.copytree(fetch_model.EMBEDDED / "diffusion", folder / "models/base/diffusion")
    write_json(folder / "models/start/start.json", {"folder": "models/base/diffusion"})
    scenes = ["forest", "lake", "desert", "airport"] * 2
    for split in ("train", "valid"):
        rows = []
        for i, scene in enumerate(scenes):
            pixels, captions = render(scene, 0, i, 64, "domain")
            image = {"bytes": encode_png(Image.fromarray(pixels)), "path": None}
            row = {"image": image, "captions": captions, "scene": scene, "filename": f"{i}.png"}
            rows.append(row)
        write_shards(folder / "data/imagery" / split, rows, IMAGERY)
    write_params(
        folder,
        encode={"base_domain": "none"},
        finetune_sd={"epochs": 0, "grid_captions": 1, "validation_images": 8},
    )
    assert run(folder, encode.main)[0] == 0
    return folder


@pytest.mark.parametrize("prediction_type", ["v_prediction", None])
def test_a_base_that_is_worse_than_predicting_nothing_is_named(shipped, prediction_type):
    scheduler = shipped / "models/base/diffusion/scheduler/scheduler_config.json"
    config = read_json(scheduler)
    config["prediction_type"] = prediction_type
    write_json(scheduler, {key: value for key, value in config.items() if value is not None})
    code, log = run(shipped, finetune_sd.main)
    assert code == 0, log
    said = [line for line in log.splitlines() if "prediction_type" in line]
    loss = read_json(shipped / "metrics/diffusion.json")["validation_loss_base"]
    if prediction_type == "v_prediction":
        assert not said and loss < 0.8
        return
    (line,) = said
    numbers = [float(number) for number in re.findall(r"(?:is|has) ([\d.]+)", line)]
    assert numbers[0] == pytest.approx(loss, rel=0.01) and loss > 1
    assert numbers[1] == pytest.approx(1, abs=0.05)  # the mean square of the noise
    assert numbers[2] < 0.8 and "v_prediction" in line


@pytest.mark.parametrize("trained, is_said", [(["decoder"], True), (["vae"], False)])
def test_a_base_of_another_decoder_still_knows_its_latents(shipped, tmp_path, trained, is_said):
    work = shutil.copytree(shipped, tmp_path / "work")
    shutil.copytree(work / "models/base/diffusion", work / "models/start", dirs_exist_ok=True)
    start = {"folder": "models/start", "base": "models/base/diffusion", "trained": trained}
    write_json(work / "models/start/start.json", start)
    scheduler = work / "models/start/scheduler/scheduler_config.json"
    config = read_json(scheduler)
    config.pop("prediction_type", None)
    write_json(scheduler, config)
    code, log = run(work, finetune_sd.main)
    assert code == 0, log
    assert ("prediction_type" in log) == is_said


def test_a_validation_split_of_equal_tiles_is_trained_on_without_diversity(workspace):
    """No-data tiles or blank sea."""
    file = workspace / "data/latents/valid.safetensors"
    arrays = memory_map(file, "r+")
    for array in arrays.values():
        array[:] = array[:1]
        array.flush()
    code, log = run(workspace, finetune_sd.main)
    assert code == 0, log
    metrics = read_json(workspace / "metrics/diffusion.json")
    assert metrics["validation_loss"] < metrics["validation_loss_base"]
    assert not [key for key in metrics if key.startswith("diversity")]
    assert {row["diversity"] for row in read_curve(workspace).values()} == {None}


def test_zero_epochs_save_the_base_model_as_it_is(workspace):
    write_params(workspace, finetune_sd={"epochs": 0})
    assert run(workspace, finetune_sd.main)[0] == 0
    metrics = read_json(workspace / "metrics/diffusion.json")
    assert (
        metrics["validation_loss"]
        == metrics["validation_loss_base"]
        == metrics["validation_loss_last"]
    )
    assert metrics["best_step"] == 0
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        saved = workspace / "models/diffusion" / part
        assert digest(saved) == digest(workspace / "models/base/diffusion" / part)


def test_lora_is_merged_into_the_saved_unet(workspace):
    write_params(workspace, finetune_sd={"method": "lora"})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0, log
    name = "unet/diffusion_pytorch_model.safetensors"
    before = load_file(workspace / "models/base/diffusion" / name)
    after = load_file(workspace / "models/diffusion" / name)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".to_")[0].rsplit(".", 1)[1] for name in changed} == {"attn1", "attn2"}
