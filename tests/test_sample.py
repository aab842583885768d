"""sample and generate on a tiny untrained model: every run is a new process."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY, replace_in_params
from PIL import Image
from tiny_diffusion import make_imagery, on_threads, resume_key, run, save_unet, write_params

from stages import features, generate, sample, train_scene
from stages.common.artifacts import decode_image, digest, read_json, read_rows, write_json
from stages.diffusion import models, sampler
from stages.diffusion.marked_png import SETTINGS
from stages.publishing.folders import write_labeled_shards
from stages.runtime import resume_cache


@pytest.fixture(scope="module")
def sampled(encoded, tmp_path_factory):
    folder = shutil.copytree(encoded, tmp_path_factory.mktemp("sampled") / "work")
    code, log = run(folder, sample.main, "base")
    assert code == 0, log
    return folder


def read_pixels(folder):
    """The images of a folder of shards, uint8 [N, H, W, 3]."""
    return np.stack([np.asarray(decode_image(row["image"])) for row in read_rows(folder)])


def test_a_sample_per_real_image_with_its_own_caption(sampled):
    rows = read_rows(sampled / "data/samples/base")
    real = read_rows(sampled / "data/imagery/test")
    assert [row["filename"] for row in rows] == [row["filename"] for row in real]
    for row, real_row in zip(rows, real):
        assert row["caption"] in real_row["captions"]
        assert row["prompt"] == row["caption"]
    model = models.model_digest(sampled / "models/base/diffusion")
    assert {row["model"] for row in rows} == {model}
    assert len({row["seed"] for row in rows}) == len(rows)
    assert len({row["image"]["bytes"] for row in rows}) == len(rows)
    assert read_pixels(sampled / "data/samples/base").shape == (7, 32, 32, 3)


def test_the_base_is_the_fetched_model_where_train_base_adapted_it(sampled, tmp_path):
    """Its UNet with a new VAE or text encoder, not fine-tuned, is no model that anybody uses."""
    work = shutil.copytree(sampled, tmp_path / "work")
    start = {"folder": "models/start", "base": "models/base/diffusion", "trained": ["vae"]}
    write_json(work / "models/start/start.json", start)
    shutil.rmtree(work / "data/samples/base")
    code, log = run(work, sample.main, "base")
    assert code == 0, log
    assert digest(work / "data/samples/base") == digest(sampled / "data/samples/base")


def test_another_seed_gives_other_captions_and_noise(sampled, workspace):
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("seed: 0\n", "seed: 1\n"))
    code, log = run(workspace, sample.main, "base")
    assert code == 0, log
    of_seeds = [read_rows(folder / "data/samples/base") for folder in (sampled, workspace)]
    for column in ("caption", "seed"):
        first, second = ([row[column] for row in rows] for rows in of_seeds)
        assert first != second, column


def kill_after_groups(count, main, *args):
    """Run a stage and kill it when it has written this number of groups."""
    write_shard = sampler.write_shard

    def write_shard_then_kill(cache, *args):
        write_shard(cache, *args)
        if len(list(cache.glob("*.parquet"))) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sampler.write_shard = write_shard_then_kill
    main(*args)


def count_written_groups(main, *args):
    """Run a stage and write the number of groups that it generated to `written.txt`."""
    write_shard = sampler.write_shard
    written = []

    def write_shard_and_count(cache, number, *args):
        write_shard(cache, number, *args)
        written.append(number)

    sampler.write_shard = write_shard_and_count
    main(*args)
    Path("written.txt").write_text(str(len(written)))


def test_groups_of_other_params_are_not_resumed(workspace):
    """With another number of images per caption, the rows are spread over other groups."""
    shutil.copytree(workspace / "models/base/diffusion", workspace / "models/diffusion")
    write_params(workspace, classifier={"images_per_caption": 2})
    assert run(workspace, kill_after_groups, 3, sample.main, "tuned")[0] == -signal.SIGKILL
    write_params(workspace, classifier={"images_per_caption": 3})
    code, log = run(workspace, count_written_groups, sample.main, "tuned")
    assert code == 0, log
    assert (workspace / "written.txt").read_text() == "6"  # 21 images, 4 in a group
    assert len({row["seed"] for row in read_rows(workspace / "data/samples/tuned")}) == 21


def test_groups_of_another_seed_model_or_captions_are_not_resumed(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    keys = [resume_key(monkeypatch, resume_cache, sample.main, "base")]
    replace_in_params(workspace, "seed: 0\n", "seed: 1\n")
    keys.append(resume_key(monkeypatch, resume_cache, sample.main, "base"))
    save_unet(workspace / "models/base/diffusion/unet", (8, 16, 16), 16, 8)  # other weights
    keys.append(resume_key(monkeypatch, resume_cache, sample.main, "base"))
    make_imagery(workspace / "data/imagery", {"test": 7}, size=16)
    keys.append(resume_key(monkeypatch, resume_cache, sample.main, "base"))
    assert len(set(keys)) == 4
    assert resume_key(monkeypatch, resume_cache, sample.main, "base") == keys[-1]


def test_images_are_the_same_from_two_processes(sampled, workspace):
    assert run(workspace, sample.main, "base", processes=2)[0] == 0
    assert digest(workspace / "data/samples") == digest(sampled / "data/samples")


def test_images_are_the_same_on_more_cores(workspace):
    write_params(workspace, sampling={"batch_size": 32})  # two chunks
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
        features={"batch_size": 3, "extractors": ["scene"]},
        train_scene={
            "source": "scratch",
            "model": "test_byobnet",
            "resolution": 32,
            "epochs": 1,
        },
    )
    for split in ("train", "valid"):  # two scenes to tell apart
        path = workspace / f"data/imagery/{split}/00000.parquet"
        table = pq.read_table(path)
        scenes = pa.array(["field", "forest"] * len(table), pa.string())[: len(table)]
        column = table.schema.get_field_index("scene")
        pq.write_table(table.set_column(column, "scene", scenes), path)
    assert run(workspace, train_scene.main)[0] == 0
    digests = []
    for count in (1, 2):
        code, log = run(workspace, features.main, "base", processes=count)
        assert code == 0, log
        digests.append(digest(workspace / "data/features"))
    assert digests[0] == digests[1]


def test_captions_that_the_model_does_not_read_are_counted(workspace):
    path = workspace / "data/imagery/test/00000.parquet"
    table = pq.read_table(path)
    texts = ["лес", "水体 озеро", "a lake 水体", "long " * 40, "a lake", "a lake"]
    captions = pa.array([*([text] for text in texts), []], pa.list_(pa.string()))
    column = table.schema.get_field_index("captions")
    pq.write_table(table.set_column(column, "captions", captions), path)
    code, log = run(workspace, sample.main, "base")
    assert code == 0, log
    (dropped,) = [line for line in log.splitlines() if "лес" in line]
    assert dropped.startswith("sample@base: ") and " 3 words" in dropped
    assert " 3 of 5 prompts; 2 of these" in dropped
    assert re.search(r"sample@base: 1 of 5 .*\b77\b", log)

    start = workspace / "models/base/diffusion"
    embedded = models.embed_text(
        models.load_tokenizer(start), models.load(start, "text_encoder"), ["", *texts]
    )
    equal = [torch.equal(text, embedded[0]) for text in embedded[1:]]
    assert equal == [True, True, False, False, False, False]


def test_further_images_of_a_caption_come_after_all_first_ones(sampled, workspace):
    """The first images equal those of a run with one image per caption.

    The further ones have the same captions and other noise.
    """
    shutil.copytree(workspace / "models/base/diffusion", workspace / "models/diffusion")
    write_params(workspace, classifier={"images_per_caption": 3})
    assert run(workspace, sample.main, "tuned")[0] == 0
    rows = read_rows(workspace / "data/samples/tuned")
    first = read_rows(sampled / "data/samples/base")
    names = [(row["filename"], row["caption"]) for row in first]
    assert [(row["filename"], row["caption"]) for row in rows] == 3 * names
    assert [row["seed"] for row in rows[:7]] == [row["seed"] for row in first]
    assert len({row["seed"] for row in rows}) == 21
    assert run(workspace, sample.main, "base")[0] == 0
    assert digest(workspace / "data/samples/base") == digest(sampled / "data/samples/base")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_batch_size_differs_by_rounding(workspace, precision):
    outputs = []
    for batch_size in (4, 7):
        write_params(workspace, sampling={"batch_size": batch_size, "precision": precision})
        assert run(workspace, sample.main, "base")[0] == 0
        outputs.append(read_pixels(workspace / "data/samples/base").astype(int))
    assert np.abs(outputs[0] - outputs[1]).max() <= 2


def test_a_restart_keeps_finished_groups(sampled, workspace):
    assert run(workspace, kill_after_groups, 1, sample.main, "base")[0] == -signal.SIGKILL
    assert not (workspace / "data/samples/base").exists()
    code, log = run(workspace, count_written_groups, sample.main, "base")
    assert code == 0 and " 4/7 [00:00<?" in log, log  # the bar's rate leaves out the first group
    assert (workspace / "written.txt").read_text() == "1"  # of two groups
    assert digest(workspace / "data/samples") == digest(sampled / "data/samples")


@pytest.mark.parametrize("damage", ["cut", "one byte of an image", "fewer rows"])
def test_a_damaged_group_is_named_and_generated_again(sampled, workspace, damage):
    assert run(workspace, kill_after_groups, 1, sample.main, "base")[0] == -signal.SIGKILL
    (group,) = (workspace / "scratch/sample_base").glob("*/*.parquet")
    content = group.read_bytes()
    if damage == "cut":
        group.write_bytes(content[:1000])
    elif damage == "fewer rows":
        pq.write_table(pq.read_table(group).slice(1), group)
    else:
        place = len(content) // 4
        group.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    code, log = run(workspace, count_written_groups, sample.main, "base")
    assert code == 0 and f"{group}: damaged" in log, log
    assert (workspace / "written.txt").read_text() == "2"
    assert digest(workspace / "data/samples") == digest(sampled / "data/samples")


def generate_with_diffusers(folder):
    """Generate one of the sampled images with diffusers' own pipeline."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        "models/base/diffusion", local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    row = read_rows(folder / "data/samples/base")[2]
    image = pipeline(
        row["prompt"],
        negative_prompt="",
        num_inference_steps=row["steps"],
        guidance_scale=row["guidance_scale"],
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(row["seed"]),
        output_type="np",
    ).images[0]
    np.save("diffusers.npy", image)


def test_the_sampler_equals_the_diffusers_pipeline(sampled):
    assert run(sampled, generate_with_diffusers, sampled)[0] == 0
    expected = np.load(sampled / "diffusers.npy") * 255
    assert np.abs(expected - read_pixels(sampled / "data/samples/base")[2]).max() <= 2


@pytest.mark.parametrize(
    "scheduler, scheduler_config",
    [("ddim", {}), ("dpm", {}), ("dpm", {"use_beta_sigmas": True})],
)
def test_the_other_schedulers_work(workspace, scheduler, scheduler_config):
    path = workspace / "models/base/diffusion/scheduler/scheduler_config.json"
    write_json(path, read_json(path) | scheduler_config)
    write_params(workspace, sampling={"scheduler": scheduler, "guidance_scale": 1.0})
    code, log = run(workspace, sample.main, "base")
    assert code == 0, log
    assert read_pixels(workspace / "data/samples/base").std() > 1
    assert log.count("sampling.steps: 3 of ddim start at timestep 667 ") == (scheduler == "ddim")


def check_that_files_say_what_they_are(workspace, rows):
    """Rows of data/generated and the PNGs of an export: the same bytes, with their settings."""
    shutil.copytree(workspace / "data/generated", workspace / "data/synthetic")
    write_labeled_shards(workspace / "data/synthetic", workspace / "hub", ["Bare Land", "Snow Ice"])
    published = read_rows(workspace / "hub")
    command = [sys.executable, "-m", "tools.export", "imagefolder", "synthetic", "out"]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=workspace, env=variables, check=True)
    lines = (workspace / "out/metadata.jsonl").read_text().splitlines()
    for row, copy, line in zip(rows, published, map(json.loads, lines), strict=True):
        content = (workspace / "out" / line["file_name"]).read_bytes()
        assert content == row["image"]["bytes"] == copy["image"]["bytes"]
        assert (line["text"], line["label"]) == (row["prompt"], row["label"])
        with Image.open(io.BytesIO(content)) as image:
            packet = image.getxmp()["xmpmeta"]["RDF"]["Description"]
            said = dict(image.text)
        assert packet["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
        assert said["Description"].startswith("Synthetic")
        assert {name: said[name] for name in SETTINGS} == {
            name: str(row[name]) for name in SETTINGS
        }


def test_generate_makes_several_images_of_each_prompt(workspace):
    passages = pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))
    prompts = [
        {
            "row": i,
            "label": label,
            "prompt": f"satellite image, {label}",
            "negative_prompt": "blurry " * 20,
            "tokens": 5,
            "writer": "extractive",
            "technique": "retrieval",
            "passages": [{"paper": "a", "page": 1}],
        }
        for i, label in enumerate(["Snow Ice", "Bare Land"])
    ]
    names = ("label", "prompt", "negative_prompt", "writer", "technique")
    text_columns = [(name, pa.string()) for name in names]
    schema = pa.schema(
        [("row", pa.int32()), *text_columns, ("passages", passages), ("tokens", pa.int32())]
    )
    pq.write_table(pa.Table.from_pylist(prompts, schema), workspace / "data/prompts.parquet")
    (workspace / "data/images_per_prompt.csv").write_text("row,images\n0,2\n1,2\n")
    shutil.copytree(workspace / "models/base/diffusion", workspace / "models/diffusion")
    code, log = run(workspace, generate.main)
    assert code == 0, log
    rows = read_rows(workspace / "data/generated")
    assert [row["row"] for row in rows] == [0, 0, 1, 1]
    assert rows[2]["label"] == "Bare Land"
    assert rows[0]["passages"] == prompts[0]["passages"]
    assert len({row["image"]["bytes"] for row in rows}) == 4
    assert re.search(r"generate: 1 of 3 .*\b77\b", log)  # the negative prompt
    for row in rows:
        assert row["prompt"] == f"satellite image, {row['label']}"
        assert row["negative_prompt"] == "blurry " * 20
        assert (row["scheduler"], row["steps"], row["guidance_scale"]) == ("pndm", 3, 3.0)
        assert row["model"] == models.model_digest(workspace / "models/diffusion")
    from_one_process = digest(workspace / "data/generated")
    assert run(workspace, generate.main, processes=2)[0] == 0
    assert digest(workspace / "data/generated") == from_one_process

    check_that_files_say_what_they_are(workspace, rows)

    from datasets import Dataset

    shard = str(workspace / "data/generated/00000.parquet")
    dataset = Dataset.from_parquet(shard, cache_dir=str(workspace / "cache"))
    assert dataset[0]["image"].size == (32, 32)
