"""finetune_sd on a tiny untrained model: every run is a process of its own."""

import os
import shutil
import signal
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusion import run, write_params

from stages import encode, finetune_sd, sample
from stages.common.artefacts import digest, read_json
from stages.diffusion import checkpoints, models
from stages.diffusion.latents import Latents
from stages.diffusion.validation import validation_loss
from stages.params import load

WORSENS = {"lr": 1.0, "lr_schedule": "constant", "warmup_steps": 10, "ema_decay": 0.0}  # better, then worse


def outputs(folder):
    paths = ("models/diffusion", "metrics/diffusion.json", "metrics/plots/diffusion_loss.csv", "metrics/plots/diffusion_grid")
    return {path: digest(folder / path) for path in paths}


@pytest.fixture(scope="module")
def trained(encoded, tmp_path_factory):
    """A workspace in which fine-tuning ran without a stop: 10 steps, checkpoints at 3, 6, 9 and 10."""
    folder = shutil.copytree(encoded, tmp_path_factory.mktemp("trained") / "work")
    code, log = run(folder, finetune_sd.main)
    assert code == 0, log
    return folder


def test_training_learns_and_publishes_a_pipeline_that_diffusers_reads(trained):
    from diffusers import StableDiffusionPipeline

    metrics = read_json(trained / "metrics/diffusion.json")
    assert metrics["steps"] == 10 and metrics["best_step"] in (3, 6, 9, 10)
    assert metrics["validation_loss"] < metrics["validation_loss_base"]
    assert metrics["validation_loss"] <= metrics["validation_loss_last"]
    lines = (trained / "metrics/plots/diffusion_loss.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "3", "6", "9", "10"]
    pipe = StableDiffusionPipeline.from_pretrained(trained / "models/diffusion", local_files_only=True)
    assert pipe.unet.dtype == torch.float32
    assert not list((trained / "scratch/finetune_sd").glob("*/"))  # nothing is left of the checkpoints


def curve_of(folder) -> dict[int, float]:
    """Step -> validation loss."""
    lines = [line.split(",") for line in (folder / "metrics/plots/diffusion_loss.csv").read_text().splitlines()]
    return {int(line[0]): float(line[lines[0].index("validation_loss")]) for line in lines[1:]}


def test_what_is_published_is_what_was_measured(trained):
    """The averaged weights: they are what the validation loss of the best step was measured on."""
    folder, p = trained / "models/diffusion", load(trained / "params.yaml").finetune_sd
    assert p.ema_decay > 0
    schedule = models.load_scheduler(folder, "ddpm")
    here = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0, reduce=lambda tensor, _: tensor)
    data = Latents(trained / "data/latents", "valid", models.latent_scale(folder))
    found = validation_loss(models.load(folder, "unet"), data, p.validation_images, p.batch_size, here, schedule.alphas_cumprod,
                            schedule.config.prediction_type)
    metrics = read_json(trained / "metrics/diffusion.json")
    assert found == pytest.approx(metrics["validation_loss"], rel=1e-5)
    assert metrics["validation_loss"] == pytest.approx(min(curve_of(trained).values()), rel=1e-6)


def test_the_best_checkpoint_is_published_not_the_last(workspace):
    write_params(workspace, finetune_sd=WORSENS)
    assert run(workspace, finetune_sd.main)[0] == 0
    metrics, curve = read_json(workspace / "metrics/diffusion.json"), curve_of(workspace)
    best = min((step for step in curve if step), key=curve.get)
    assert metrics["best_step"] == best < metrics["steps"]
    assert metrics["validation_loss"] == pytest.approx(curve[best], rel=1e-6)
    assert metrics["validation_loss"] < metrics["validation_loss_last"]


def test_gradients_are_clipped(trained, workspace):
    write_params(workspace, finetune_sd={"max_grad_norm": 1.0e-6})
    assert run(workspace, finetune_sd.main)[0] == 0
    assert curve_of(workspace)[0] == curve_of(trained)[0] and curve_of(workspace)[10] != curve_of(trained)[10]


def test_forgetting_is_measured_at_every_checkpoint(trained):
    curve = [dict(zip(lines[0], line)) for lines in [[text.split(",") for text in
             (trained / "metrics/plots/diffusion_loss.csv").read_text().splitlines()]] for line in lines[1:]]
    metrics = read_json(trained / "metrics/diffusion.json")
    by_step = {int(row["step"]): row for row in curve}
    assert metrics["base_domain_loss_base"] == float(by_step[0]["base_domain_loss"])
    assert metrics["base_domain_loss"] == float(by_step[metrics["best_step"]]["base_domain_loss"]) != metrics["base_domain_loss_base"]
    assert metrics["diversity"] > 0 and metrics["diversity_base"] == float(by_step[0]["diversity"])
    grids = {path.stem: Image.open(path) for path in (trained / "metrics/plots/diffusion_grid").iterdir()}
    assert sorted(map(int, grids)) == sorted(by_step)
    assert {grid.size for grid in grids.values()} == {(4 * 32, 2 * 32)}
    assert len({grid.tobytes() for grid in grids.values()}) == len(grids)


def test_the_course_of_training_is_tracked_outside_of_the_outputs(trained):
    live = trained / "dvclive/finetune_sd"
    lines = (live / "plots/metrics/validation_loss.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["step", "3", "6", "9", "10"]
    assert len(list((live / "plots/images").iterdir())) == 4
    assert not (trained / "dvc.yaml").exists()


def test_what_is_watched_changes_nothing_in_training(trained, workspace):
    write_params(workspace, finetune_sd={"grid_captions": 1}, encode={"base_domain": "none"})
    assert run(workspace, encode.main)[0] == 0
    assert not list((workspace / "data/latents").glob("*base*"))
    assert run(workspace, finetune_sd.main)[0] == 0
    assert digest(workspace / "models/diffusion") == digest(trained / "models/diffusion")
    assert "base_domain_loss" not in read_json(workspace / "metrics/diffusion.json")
    assert (workspace / "metrics/plots/diffusion_loss.csv").read_text().splitlines()[1].split(",")[3] == ""


def kill_at(step):
    """finetune_sd, killed as the power would at the beginning of an optimiser step, the checkpoint before it being on disk."""
    rate = finetune_sd.learning_rate

    def learning_rate(now, *rest):
        if now == step:
            while step >= 3 and not list(Path("scratch/finetune_sd").glob(f"*/step_{step // 3 * 3:08d}.safetensors")):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return rate(now, *rest)

    finetune_sd.learning_rate = learning_rate
    finetune_sd.main()


def kill_while_writing(step):
    """finetune_sd, killed when the checkpoint is on disk but not yet in its place."""
    sync = os.fsync
    save = checkpoints.save_step

    def save_step(folder, tensors, state, keep):
        if state["step"] == step:
            checkpoints.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        save(folder, tensors, state, keep)
        checkpoints.os.fsync = sync

    checkpoints.save_step = save_step
    finetune_sd.main()


@pytest.mark.parametrize("how, step, resumed", [(kill_at, 8, 6), (kill_while_writing, 9, 6), (kill_at, 1, None)])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(trained, workspace, how, step, resumed):
    assert run(workspace, how, step)[0] == -signal.SIGKILL
    assert not (workspace / "models/diffusion").exists()
    if resumed:
        (workspace / "dvclive/finetune_sd/metrics.json").write_text("")  # torn by the kill
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and (f"going on from step {resumed}" in log) == (resumed is not None)
    assert outputs(workspace) == outputs(trained)


def test_a_torn_checkpoint_costs_steps_but_changes_nothing(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    last = sorted((workspace / "scratch/finetune_sd").glob("*/step_*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "torn" in log and "going on from step 3" in log
    assert outputs(workspace) == outputs(trained)


def test_a_disk_that_fills_up_at_the_end_costs_nothing(trained, workspace):
    (workspace / "metrics/plots").mkdir(parents=True)
    full = workspace / "metrics/plots/diffusion_loss.csv.part"
    full.symlink_to("/dev/full")
    code, log = run(workspace, finetune_sd.main)
    assert code == 1 and "No space left" in log and "is kept in" in log and "Traceback" not in log
    full.unlink()
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "going on from step 10" in log
    assert outputs(workspace) == outputs(trained)


def test_another_param_never_resumes_a_stale_checkpoint(workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    write_params(workspace, finetune_sd={"lr": 2.0e-3})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "going on" not in log and "unused" in log


def test_small_memory_options_learn_and_resume_too(workspace, tmp_path):
    options = {"epochs": 2, "optimiser": "adamw8bit", "gradient_checkpointing": True}
    write_params(workspace, finetune_sd=options)
    copy = shutil.copytree(workspace, tmp_path / "copy")
    assert run(workspace, finetune_sd.main)[0] == 0
    assert run(copy, kill_at, 4)[0] == -signal.SIGKILL
    code, log = run(copy, finetune_sd.main)
    assert code == 0 and "going on from step 3" in log
    assert outputs(copy) == outputs(workspace)
    metrics = read_json(copy / "metrics/diffusion.json")
    assert metrics["validation_loss"] < metrics["validation_loss_base"]


class Activations:
    """What a graph holds: the activations of so many images."""

    alive = weakref.WeakSet()

    def __init__(self, images: int):
        self.images = images
        self.alive.add(self)


class Held(torch.autograd.Function):
    """The identity, on a GPU that holds the activations of three images and learns so in the backward pass."""

    @staticmethod
    def forward(ctx, x, activations):
        ctx.activations = activations
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if sum(each.images for each in Activations.alive) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient, None


def run_out_of_memory():
    loss = finetune_sd.denoising_loss

    def denoising_loss(unet, batch, *rest):
        found = loss(unet, batch, *rest)
        return Held.apply(found, Activations(len(batch["latents"]))) if torch.is_grad_enabled() else found

    finetune_sd.denoising_loss = denoising_loss
    finetune_sd.main()


def test_out_of_gpu_memory_says_which_batch_fits(workspace):
    code, log = run(workspace, run_out_of_memory)
    assert code == 1 and "Traceback" not in log
    assert "finetune_sd.batch_size: 8 images at a time don't fit into the GPU's memory; 2 do: set it to 2; a bigger" in log


def test_zero_terminal_snr_is_published_and_sampled(workspace):
    zero = {"epochs": 0.5, "zero_terminal_snr": True, "min_snr_gamma": None}
    for wrong, key in (({"finetune_sd": zero}, "sampling.scheduler"), ({"finetune_sd": zero | {"min_snr_gamma": 5.0},
                        "sampling": {"scheduler": "ddim"}}, "finetune_sd.min_snr_gamma")):
        write_params(workspace, **wrong)
        code, log = run(workspace, finetune_sd.main)
        assert code == 1 and f"params.yaml: {key}: " in log
    write_params(workspace, finetune_sd=zero, sampling={"scheduler": "ddim"})
    assert run(workspace, finetune_sd.main)[0] == 0
    assert models.config(workspace / "models/diffusion", "scheduler")["rescale_betas_zero_snr"] is True
    assert models.load_scheduler(workspace / "models/diffusion", "ddpm").alphas_cumprod[-1] == 0
    assert run(workspace, sample.main, "tuned")[0] == 0
    write_params(workspace)
    code, log = run(workspace, sample.main, "tuned")
    assert code == 1 and "sampling.scheduler: pndm can't start from pure noise" in log


def sharded_checkpoint(workspace):
    """Two steps of a model sharded by FSDP2, its checkpoint taken after the first, then taken up by another."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
        names, weights = zip(*model.named_parameters())
        adamw = torch.optim.AdamW(weights, lr=0.1)
        ema = [w.detach().clone() for w in weights]
        if resumed:
            checkpoints.unpack(checkpoints.load_latest(workspace / "sharded")[0], names, weights, ema, adamw)
        for step in range(1 if resumed else 0, 2):
            model(torch.full((3, 4), 1.0 + step)).square().sum().backward()
            adamw.step()
            adamw.zero_grad()
            torch._foreach_lerp_(ema, [w.detach() for w in weights], 0.5)
            if step == 0:
                tensors = checkpoints.pack(names, weights, ema, adamw)
                if torch.distributed.get_rank() == 0:
                    checkpoints.save_step(workspace / "sharded", tensors, {"step": 1, "best_step": 0}, 2)
                torch.distributed.barrier()
        results.append([checkpoints.whole(w.detach()) for w in [*weights, *ema]])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_sharded_model_is_checkpointed_whole(tmp_path):
    (tmp_path / "sharded").mkdir()
    code, log = run(tmp_path, sharded_checkpoint, tmp_path, processes=2)
    assert code == 0, log
    assert load_file(tmp_path / "sharded/step_00000001.safetensors")["weight.0.weight"].shape == (6, 4)


def test_two_processes_with_the_same_global_batch_learn_the_same(trained, workspace):
    code, log = run(workspace, finetune_sd.main, processes=2)
    assert code == 0, log
    one, two = (read_json(folder / "metrics/diffusion.json") for folder in (trained, workspace))
    assert one["steps"] == two["steps"]
    # The gradient is summed in another order: rounding in float32.
    np.testing.assert_allclose([two[key] for key in one], [one[key] for key in one], rtol=1e-4)


def test_accumulation_equals_the_bigger_batch(trained, workspace):
    write_params(workspace, finetune_sd={"batch_size": 4, "gradient_accumulation": 2})
    assert run(workspace, finetune_sd.main)[0] == 0
    one, two = (read_json(folder / "metrics/diffusion.json") for folder in (trained, workspace))
    np.testing.assert_allclose(two["validation_loss_last"], one["validation_loss_last"], rtol=1e-4)


def test_no_epochs_publish_the_base_as_it_is(workspace):
    write_params(workspace, finetune_sd={"epochs": 0})
    assert run(workspace, finetune_sd.main)[0] == 0
    metrics = read_json(workspace / "metrics/diffusion.json")
    assert metrics["validation_loss"] == metrics["validation_loss_base"] == metrics["validation_loss_last"]
    assert metrics["best_step"] == 0
    assert models.model_digest(workspace / "models/diffusion") == models.model_digest(workspace / "models/base/diffusion")


def test_lora_is_merged_into_the_published_unet(workspace):
    write_params(workspace, finetune_sd={"method": "lora"})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0, log
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(workspace / "models/base/diffusion" / name), load_file(workspace / "models/diffusion" / name)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".to_")[0].rsplit(".", 1)[1] for name in changed} == {"attn1", "attn2"}
