"""sample and generate on a tiny untrained model: every run is a process of its own."""

import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_diffusion import on_threads, run, write_params

from stages import features, generate, sample, train_scene
from stages.common.artifacts import decode_image, digest, read_rows
from stages.diffusion import models, sampler


@pytest.fixture(scope="module")
def sampled(encoded, tmp_path_factory):
    folder = shutil.copytree(encoded, tmp_path_factory.mktemp("sampled") / "work")
    code, log = run(folder, sample.main, "base")
    assert code == 0, log
    return folder


def pictures(folder):
    return np.stack([np.asarray(decode_image(row["image"])) for row in read_rows(folder)])


def test_a_sample_per_real_image_with_its_own_caption(sampled):
    rows = read_rows(sampled / "data/samples/base")
    real = read_rows(sampled / "data/imagery/test")
    assert [row["filename"] for row in rows] == [row["filename"] for row in real]
    assert all(
        row["caption"] in truth["captions"] and row["prompt"] == row["caption"]
        for row, truth in zip(rows, real)
    )
    assert {row["model"] for row in rows} == {
        models.model_digest(sampled / "models/base/diffusion")
    }
    assert len({row["seed"] for row in rows}) == len(rows) and len(
        {row["image"]["bytes"] for row in rows}
    ) == len(rows)
    assert pictures(sampled / "data/samples/base").shape == (7, 32, 32, 3)


def cut_off(group, main, *args):
    """A stage, killed when it has written so many groups."""
    write = sampler.write_shard

    def write_shard(*words):
        write(*words)
        if len(list(words[0].glob("*.parquet"))) == group:
            os.kill(os.getpid(), signal.SIGKILL)

    sampler.write_shard = write_shard
    main(*args)


def test_groups_of_fewer_images_per_caption_are_not_taken_up(workspace):
    """Killed, and run again with another number of images: their rows are dealt out over other groups."""
    shutil.copytree(workspace / "models/base/diffusion", workspace / "models/diffusion")
    write_params(workspace, classifier={"images_per_caption": 2})
    assert run(workspace, cut_off, 3, sample.main, "tuned")[0] == -signal.SIGKILL
    write_params(workspace, classifier={"images_per_caption": 3})
    code, log = run(workspace, sample.main, "tuned")
    assert code == 0 and "are kept" not in log
    assert len({row["seed"] for row in read_rows(workspace / "data/samples/tuned")}) == 21


def test_images_are_the_same_from_two_processes(sampled, workspace):
    assert run(workspace, sample.main, "base", processes=2)[0] == 0
    assert digest(workspace / "data/samples") == digest(sampled / "data/samples")


def test_images_are_the_same_on_more_cores(workspace):
    write_params(workspace, sampling={"batch_size": 32})  # two slices
    outputs = []
    for threads in (1, 2):
        code, log = run(workspace, on_threads, threads, sample.main, "base")
        assert code == 0, log
        outputs.append(digest(workspace / "data/samples"))
        shutil.rmtree(workspace / "data/samples")
    assert outputs[0] == outputs[1]


def test_features_are_the_same_from_two_processes(sampled, tmp_path):
    workspace = shutil.copytree(sampled, tmp_path / "work")
    write_params(
        workspace,
        features={"batch_size": 3},
        train_scene={"model": "test_byobnet", "resolution": 32, "epochs": 1},
    )
    for split in ("train", "valid"):  # two scenes to tell apart
        path = workspace / f"data/imagery/{split}/00000.parquet"
        table = pq.read_table(path)
        scenes = pa.array(["field", "forest"] * len(table), pa.string())[: len(table)]
        pq.write_table(
            table.set_column(table.schema.get_field_index("scene"), "scene", scenes), path
        )
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
    rows, first = (
        read_rows(workspace / "data/samples/tuned"),
        read_rows(sampled / "data/samples/base"),
    )
    names = [(row["filename"], row["caption"]) for row in first]
    assert [(row["filename"], row["caption"]) for row in rows] == 3 * names
    assert [row["seed"] for row in rows[:7]] == [row["seed"] for row in first] and len(
        {row["seed"] for row in rows}
    ) == 21
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


def test_a_restart_keeps_finished_groups(sampled, workspace):
    assert run(workspace, cut_off, 1, sample.main, "base")[0] == -signal.SIGKILL
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
    image = pipe(
        row["prompt"],
        negative_prompt="",
        num_inference_steps=row["steps"],
        guidance_scale=row["guidance_scale"],
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(row["seed"]),
        output_type="np",
    ).images[0]
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
    prompts = [
        {
            "row": i,
            "label": label,
            "prompt": f"satellite image, {label}",
            "negative_prompt": "blurry",
            "tokens": 5,
            "writer": "extractive",
            "technique": "retrieval",
            "passages": [{"paper": "a", "page": 1}],
        }
        for i, label in enumerate(["Snow Ice", "Bare Land"])
    ]
    words = [
        (name, pa.string())
        for name in ("label", "prompt", "negative_prompt", "writer", "technique")
    ]
    schema = pa.schema(
        [("row", pa.int32()), *words, ("passages", passages), ("tokens", pa.int32())]
    )
    pq.write_table(pa.Table.from_pylist(prompts, schema), workspace / "data/prompts.parquet")
    shutil.copytree(workspace / "models/base/diffusion", workspace / "models/diffusion")
    code, log = run(workspace, generate.main)
    assert code == 0, log
    rows = read_rows(workspace / "data/synthetic")
    assert [row["row"] for row in rows] == [0, 0, 1, 1] and rows[2]["label"] == "Bare Land"
    assert rows[0]["passages"] == prompts[0]["passages"]
    assert len({row["image"]["bytes"] for row in rows}) == 4
    for row in rows:
        assert (
            row["prompt"] == f"satellite image, {row['label']}"
            and row["negative_prompt"] == "blurry"
        )
        assert (row["scheduler"], row["steps"], row["guidance_scale"]) == ("pndm", 3, 3.0)
        assert row["model"] == models.model_digest(workspace / "models/diffusion")
    alone = digest(workspace / "data/synthetic")
    assert (
        run(workspace, generate.main, processes=2)[0] == 0
        and digest(workspace / "data/synthetic") == alone
    )
    from datasets import Dataset

    read = Dataset.from_parquet(
        str(workspace / "data/synthetic/00000.parquet"), cache_dir=str(workspace / "cache")
    )
    assert read[0]["image"].size == (32, 32)
