"""encode, finetune_sd, sample and generate on a tiny untrained model: every run is a process of its own."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusion import make_imagery, make_workspace, run, write_params

from stages import encode, features, finetune_sd, generate, sample, train_scene
from stages.common.artefacts import digest, open_image, read_json, read_rows, write_json
from stages.diffusion import checkpoints, models
from stages.diffusion.latents import dihedral


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A workspace with latents in it."""
    folder = make_workspace(tmp_path_factory.mktemp("encoded"))
    write_params(folder)
    assert run(folder, encode.main) == (0, (folder / "stderr0.txt").read_text())
    return folder


@pytest.fixture
def workspace(encoded, tmp_path):
    """A copy of it."""
    return shutil.copytree(encoded, tmp_path / "work")


def outputs(folder):
    paths = ("models/diffusion", "metrics/diffusion.json", "metrics/plots/diffusion_loss.csv", "metrics/plots/diffusion_grid")
    return {path: digest(folder / path) for path in paths}


# --- encode

def test_encoding_once_equals_encoding_directly(encoded):
    start = encoded / "models/base/diffusion"
    vae = models.load(start, "vae")
    found = load_file(encoded / "data/latents/train.safetensors")
    assert found["mean"].shape == (20, 8, 4, 8, 8) and found["mean"].dtype == torch.float16
    assert load_file(encoded / "data/latents/valid.safetensors")["mean"].shape == (6, 1, 4, 8, 8)
    row = read_rows(encoded / "data/imagery/train")[17]
    x = torch.from_numpy(np.asarray(open_image(row["image"])).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    for variant in range(8):
        posterior = vae.encode(dihedral(x, variant)).latent_dist
        torch.testing.assert_close(found["mean"][17, variant].float(), posterior.mean[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found["logvar"][17, variant].float(), posterior.logvar[0], atol=2e-2, rtol=2e-3)
    captions = pq.read_table(encoded / "data/latents/captions.parquet").to_pylist()
    assert captions[0] == {"id": 0, "caption": "", "truncated": False}
    rows = pq.read_table(encoded / "data/latents/rows_train.parquet").to_pylist()
    assert [captions[i]["caption"] for i in rows[17]["caption_ids"]] == row["captions"]
    direct = models.embed(models.load_tokenizer(start), models.load(start, "text_encoder"), [row["captions"][1]])
    embeddings = load_file(encoded / "data/latents/captions.safetensors")["embeddings"]
    torch.testing.assert_close(embeddings[rows[17]["caption_ids"][1]].float(), direct[0], atol=2e-3, rtol=2e-3)


def test_the_bases_own_domain_comes_from_any_source(encoded, workspace):
    def captions(folder):
        texts = pq.read_table(folder / "data/latents/captions.parquet")["caption"].to_pylist()
        return [texts[row[0]] for row in pq.read_table(folder / "data/latents/rows_base.parquet")["caption_ids"].to_pylist()]

    assert len(captions(encoded)) == 4 and read_json(encoded / "data/latents/SOURCE_base.json")["source"] == "embedded"
    make_imagery(workspace / "photographs", {"test": 9}, size=50)
    write_params(workspace, encode={"base_domain": "path:photographs"})
    code, log = run(workspace, encode.main)
    assert code == 0, log
    assert captions(workspace) == [f"a field number {i}" for i in range(4)]
    assert load_file(workspace / "data/latents/base.safetensors")["mean"].shape == (4, 1, 4, 8, 8)
    assert not (workspace / "data/latents/base_images").exists()


def test_encoding_by_two_processes_gives_the_same_bytes(encoded, workspace):
    assert run(workspace, encode.main, processes=2)[0] == 0
    assert digest(workspace / "data/latents") == digest(encoded / "data/latents")


def test_long_captions_are_counted_and_images_without_any_are_kept(workspace):
    shutil.rmtree(workspace / "data/imagery/valid")
    make_imagery(workspace / "data/imagery", {"valid": 3})
    path = workspace / "data/imagery/valid/00000.parquet"
    table = pq.read_table(path)
    captions = pa.array([["long " * 40, "long"], [], ["short"]], pa.list_(pa.string()))
    pq.write_table(table.set_column(table.schema.get_field_index("captions"), "captions", captions), path)
    code, log = run(workspace, encode.main)
    assert code == 0 and "1 of" in log and "longer than 77 tokens" in log
    assert pq.read_table(workspace / "data/latents/rows_valid.parquet")["caption_ids"].to_pylist()[1] == [0]
    write_params(workspace, finetune_sd={"epochs": 0})
    assert run(workspace, finetune_sd.main)[0] == 0
    assert read_json(workspace / "metrics/diffusion.json")["truncated_captions"] == 1


def test_the_data_sets_own_normalisation_is_undone_when_drawing(workspace):
    write_params(workspace, encode={"normalisation": "dataset"}, finetune_sd={"epochs": 0.5})
    assert run(workspace, encode.main)[0] == 0
    statistics = read_json(workspace / "data/latents/normalisation.json")
    pixels = np.stack([np.asarray(open_image(row["image"])) for row in read_rows(workspace / "data/imagery/train")]) / 255
    np.testing.assert_allclose(statistics["mean"], pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(statistics["std"], pixels.std((0, 1, 2)))
    x = ((pixels[0] - statistics["mean"]) / statistics["std"]).transpose(2, 0, 1)[None]
    assert np.array_equal(models.to_pixels(x.astype(np.float32), statistics)[0], np.round(pixels[0] * 255))
    assert run(workspace, finetune_sd.main)[0] == 0
    assert models.pixel_statistics(workspace / "models/diffusion") == statistics


# --- finetune_sd

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


def run_out_of_memory():
    """finetune_sd on a GPU that holds two images."""
    loss = finetune_sd.denoising_loss

    def denoising_loss(unet, batch, *rest):
        if unet.training and torch.is_grad_enabled() and len(batch["latents"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(unet, batch, *rest)

    finetune_sd.denoising_loss = denoising_loss
    finetune_sd.main()


def test_out_of_gpu_memory_says_which_batch_fits(workspace):
    code, log = run(workspace, run_out_of_memory)
    assert code == 1 and "Traceback" not in log
    assert "finetune_sd.batch_size: 8 images at a time don't fit into the GPU's memory; 2 do: set it to 2; a bigger" in log


def test_zero_terminal_snr_is_published_and_sampled(workspace):
    write_params(workspace, finetune_sd={"epochs": 0.5, "zero_terminal_snr": True})
    assert run(workspace, finetune_sd.main)[0] == 0
    assert models.config(workspace / "models/diffusion", "scheduler")["rescale_betas_zero_snr"] is True
    assert models.load_scheduler(workspace / "models/diffusion", "ddpm").alphas_cumprod[-1] == 0
    code, log = run(workspace, sample.main, "tuned")
    assert code == 1 and "sampling.scheduler: pndm can't start from pure noise" in log
    write_params(workspace, sampling={"scheduler": "ddim"})
    assert run(workspace, sample.main, "tuned")[0] == 0


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
    before, after = load_file(workspace / BASE / name), load_file(workspace / "models/diffusion" / name)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".to_")[0].rsplit(".", 1)[1] for name in changed} == {"attn1", "attn2"}


# --- bad input

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
    (finetune_sd, predicts_noise, {"finetune_sd": {"zero_terminal_snr": True}}, "finetune_sd.zero_terminal_snr: at zero signal"),
    (encode, lambda folder: None, {"encode": {"base_domain": "path:none/such"}}, "encode.base_domain: path:none/such: no such"),
    (encode, lambda folder: None, {"encode": {"base_domain": "path:models"}}, "encode.base_domain: models: no images in it"),
    (sample, lambda folder: None, {"sampling": {"resolution": 30}}, "sampling.resolution: 30 px is not a multiple of 4"),
]


@pytest.mark.parametrize("stage, spoil, params, line", FAULTS, ids=[fault[3][:40] for fault in FAULTS])
def test_bad_input_ends_in_one_line(workspace, stage, spoil, params, line):
    spoil(workspace)
    write_params(workspace, **params)
    code, log = run(workspace, stage.main, *(["base"] if stage is sample else []))
    errors = [text for text in log.splitlines() if text.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and line in errors[0] and "Traceback" not in log


# --- sample and generate

@pytest.fixture(scope="module")
def sampled(encoded, tmp_path_factory):
    folder = shutil.copytree(encoded, tmp_path_factory.mktemp("sampled") / "work")
    code, log = run(folder, sample.main, "base")
    assert code == 0, log
    return folder


def pictures(folder):
    return np.stack([np.asarray(open_image(row["image"])) for row in read_rows(folder)])


def test_a_sample_per_real_image_with_its_own_caption(sampled):
    rows = read_rows(sampled / "data/samples/base")
    real = read_rows(sampled / "data/imagery/test")
    assert [row["filename"] for row in rows] == [row["filename"] for row in real]
    assert all(row["caption"] in truth["captions"] and row["prompt"] == row["caption"] for row, truth in zip(rows, real))
    assert {row["model"] for row in rows} == {models.model_digest(sampled / "models/base/diffusion")}
    assert len({row["seed"] for row in rows}) == len(rows) and len({row["image"]["bytes"] for row in rows}) == len(rows)
    assert pictures(sampled / "data/samples/base").shape == (7, 32, 32, 3)


def test_images_are_the_same_from_two_processes(sampled, workspace):
    assert run(workspace, sample.main, "base", processes=2)[0] == 0
    assert digest(workspace / "data/samples") == digest(sampled / "data/samples")


def test_features_are_the_same_from_two_processes(sampled, tmp_path):
    workspace = shutil.copytree(sampled, tmp_path / "work")
    write_params(workspace, features={"batch_size": 3}, train_scene={"model": "test_byobnet", "resolution": 32, "epochs": 1})
    for split in ("train", "valid"):  # two scenes to tell apart
        path = workspace / f"data/imagery/{split}/00000.parquet"
        table = pq.read_table(path)
        scenes = pa.array(["field", "forest"] * len(table), pa.string())[:len(table)]
        pq.write_table(table.set_column(table.schema.get_field_index("scene"), "scene", scenes), path)
    assert run(workspace, train_scene.main)[0] == 0
    found = []
    for count in (1, 2):
        code, log = run(workspace, features.main, "base", processes=count)
        assert code == 0, log
        found.append(digest(workspace / "data/features"))
    assert found[0] == found[1]


def test_further_images_of_a_caption_come_after_all_first_ones(sampled, workspace):
    """Three of each: the first are those that one of each gives; the others are of the same captions, from other noise."""
    shutil.copytree(workspace / "models/base/diffusion", workspace / "models/diffusion")
    write_params(workspace, classifier={"images_per_caption": 3})
    assert run(workspace, sample.main, "tuned")[0] == 0
    rows, first = read_rows(workspace / "data/samples/tuned"), read_rows(sampled / "data/samples/base")
    names = [(row["filename"], row["caption"]) for row in first]
    assert [(row["filename"], row["caption"]) for row in rows] == 3 * names
    assert [row["seed"] for row in rows[:7]] == [row["seed"] for row in first] and len({row["seed"] for row in rows}) == 21
    assert run(workspace, sample.main, "base")[0] == 0
    assert digest(workspace / "data/samples/base") == digest(sampled / "data/samples/base")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_batch_size_differs_by_rounding(workspace, precision):
    drawn = []
    for size in (4, 7):
        write_params(workspace, sampling={"batch_size": size, "precision": precision})
        assert run(workspace, sample.main, "base")[0] == 0
        drawn.append(pictures(workspace / "data/samples/base").astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 2


def kill_in_second_group():
    from stages.diffusion import sampler

    write = sampler.write_shard

    def write_shard(cache, number, *rest):
        if number == sampler.FIRST_GROUP + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(cache, number, *rest)

    sampler.write_shard = write_shard
    sample.main("base")


def test_a_restart_keeps_finished_groups(sampled, workspace):
    assert run(workspace, kill_in_second_group)[0] == -signal.SIGKILL
    assert not (workspace / "data/samples/base").exists()
    code, log = run(workspace, sample.main, "base")
    assert code == 0 and "1 finished groups of an earlier run are kept" in log
    assert digest(workspace / "data/samples") == digest(sampled / "data/samples")


def draw_like_diffusers(folder):
    """The same image by diffusers' own pipeline."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained("models/base/diffusion", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    row = read_rows(folder / "data/samples/base")[2]
    image = pipe(row["prompt"], negative_prompt="", num_inference_steps=row["steps"], guidance_scale=row["guidance_scale"],
                 height=32, width=32, generator=torch.Generator().manual_seed(row["seed"]), output_type="np").images[0]
    np.save("theirs.npy", image)


def test_the_sampler_draws_what_the_diffusers_pipeline_draws(sampled):
    assert run(sampled, draw_like_diffusers, sampled)[0] == 0
    theirs = np.load(sampled / "theirs.npy") * 255
    assert np.abs(theirs - pictures(sampled / "data/samples/base")[2]).max() <= 2


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_other_schedulers_draw_too(workspace, scheduler):
    write_params(workspace, sampling={"scheduler": scheduler, "guidance_scale": 1.0})
    assert run(workspace, sample.main, "base")[0] == 0
    assert pictures(workspace / "data/samples/base").std() > 1


def test_generate_draws_each_prompt_several_times(workspace):
    passages = pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))
    prompts = [{"row": i, "label": label, "prompt": f"satellite image, {label}", "negative_prompt": "blurry", "tokens": 5,
                "writer": "extractive", "technique": "retrieval", "passages": [{"paper": "a", "page": 1}]}
               for i, label in enumerate(["Snow Ice", "Bare Land"])]
    words = [(name, pa.string()) for name in ("label", "prompt", "negative_prompt", "writer", "technique")]
    schema = pa.schema([("row", pa.int32()), *words, ("passages", passages), ("tokens", pa.int32())])
    pq.write_table(pa.Table.from_pylist(prompts, schema), workspace / "data/prompts.parquet")
    shutil.copytree(workspace / BASE, workspace / "models/diffusion")
    code, log = run(workspace, generate.main)
    assert code == 0, log
    rows = read_rows(workspace / "data/synthetic")
    assert [row["row"] for row in rows] == [0, 0, 1, 1] and rows[2]["label"] == "Bare Land"
    assert rows[0]["passages"] == prompts[0]["passages"]
    assert len({row["image"]["bytes"] for row in rows}) == 4
    for row in rows:
        assert row["prompt"] == f"satellite image, {row['label']}" and row["negative_prompt"] == "blurry"
        assert (row["scheduler"], row["steps"], row["guidance_scale"]) == ("pndm", 3, 3.0)
        assert row["model"] == models.model_digest(workspace / "models/diffusion")
    alone = digest(workspace / "data/synthetic")
    assert run(workspace, generate.main, processes=2)[0] == 0 and digest(workspace / "data/synthetic") == alone
    from datasets import Dataset
    read = Dataset.from_parquet(str(workspace / "data/synthetic/00000.parquet"), cache_dir=str(workspace / "cache"))
    assert read[0]["image"].size == (32, 32)
