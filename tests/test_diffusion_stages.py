"""encode, finetune_sd, sample and generate on a tiny untrained model: every run is a process of its own."""

import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny_diffusion import make_imagery, make_workspace, run, write_params

from stages import encode, finetune_sd, generate, sample
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
    paths = ("models/diffusion", "metrics/diffusion.json", "metrics/plots/diffusion_loss.csv")
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


def kill_at(step):
    """finetune_sd, killed as the power would at the beginning of an optimiser step."""
    rate = finetune_sd.learning_rate
    finetune_sd.learning_rate = lambda now, *rest: os.kill(os.getpid(), signal.SIGKILL) if now == step else rate(now, *rest)
    finetune_sd.main()


def kill_while_writing(step):
    """finetune_sd, killed when the checkpoint is on disk but not yet in its place."""
    sync = os.fsync
    save = checkpoints.save_step

    def save_step(folder, now, *rest):
        if now == step:
            checkpoints.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        save(folder, now, *rest)
        checkpoints.os.fsync = sync

    checkpoints.save_step = save_step
    finetune_sd.main()


@pytest.mark.parametrize("how, step, resumed", [(kill_at, 8, 6), (kill_while_writing, 9, 6), (kill_at, 1, None)])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(trained, workspace, how, step, resumed):
    assert run(workspace, how, step)[0] == -signal.SIGKILL
    assert not (workspace / "models/diffusion").exists()
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


def test_another_param_never_resumes_a_stale_checkpoint(workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    write_params(workspace, finetune_sd={"lr": 2.0e-3})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "going on" not in log and "unused" in log


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
    from datasets import Dataset
    read = Dataset.from_parquet(str(workspace / "data/synthetic/00000.parquet"), cache_dir=str(workspace / "cache"))
    assert read[0]["image"].size == (32, 32)
