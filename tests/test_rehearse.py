"""`python -m tools.rehearse`: every fault in one run, and nothing of the user's is touched."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, copy_repository
from model_files import files_below, write_text
from safetensors.numpy import save_file
from test_imagery_rasters import write_raster

from stages.params import load_yaml
from tools import rehearse
from tools.rehearsal import copying, cuts, inputs, stages
from tools.rehearsal.copying import Stage
from tools.rehearsal.device import Device, find_device
from tools.rehearsal.measuring import (
    Measurement,
    bar_seconds,
    error_line,
    folder_size,
    watch_gpus,
)
from tools.rehearsal.stages import (
    INTERRUPTED,
    Rehearsal,
    count_images_and_cut_epochs,
    count_work,
    encode_ratio,
    note_cache,
)
from tools.rehearsal.table import Row, render
from tools.scale import compose

FILE_LIMIT = 10_000_000  # bytes of a file: the embedded models are smaller


def write_large_writer(folder: Path) -> None:
    """A language model whose weights are larger than the disk takes."""
    write_text(folder / "config.json", {"model_type": "llama"})
    write_text(folder / "tokenizer.json", {"model": {}})
    save_file({"weight": np.zeros(FILE_LIMIT // 2, np.float32)}, folder / "model.safetensors")


def write_imagery(file: Path) -> None:
    """Captioned images whose column of captions has a name that is not known."""
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (32, 32)).save(encoded, "PNG")
    rows = [
        {"image": encoded.getvalue(), "legend": ["a lake"], "filename": f"tile_{i}.png"}
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.fixture
def faulty(tmp_path) -> Path:
    """A copy of the repository with outputs, and a scale with a fault in each of five stages."""
    folder = copy_repository(tmp_path / "repository")
    for name in ("data/imagery", "models/start", "metrics"):
        write_text(folder / name / "mine.json", {"mine": 1})
    write_text(folder / "dvc.lock", "schema: '2.0'\n")
    write_large_writer(tmp_path / "writer")
    write_text(tmp_path / "pickle/pytorch_model.bin", "a pickle")
    write_imagery(tmp_path / "train.parquet")
    scale = {
        "fetch_papers": {"source": f"path:{tmp_path}/no_papers"},
        "fetch_imagery": {"source": "path:../train.parquet"},  # from the repository
        "train_scene": {"source": "scratch"},
        "fetch_model": {
            "writer": f"path:{tmp_path}/writer",
            "classifier": f"path:{tmp_path}/pickle",
        },
    }
    (tmp_path / "faulty.yaml").write_text(yaml.safe_dump(scale))
    return folder


def limit_files() -> None:
    """Refuse what is longer than FILE_LIMIT: to a program a full disk looks the same."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def test_five_faults_give_five_rows(faulty, environment):
    before = files_below(faulty)
    command = [sys.executable, "-m", "tools.rehearse", "tests/params.yaml", "../faulty.yaml"]
    finished = subprocess.run(
        [*command, "--card-gb", "0.01"],
        cwd=faulty,
        env={**environment, "PATH": "/usr/bin:/bin", "TMPDIR": str(faulty.parent)},
        preexec_fn=limit_files,
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    lines = [line.split(" | ") for line in finished.stdout.splitlines() if line.startswith("| ")]
    fault_of = {cells[0].strip("| "): cells[2].strip("* |") for cells in lines if "**" in cells[2]}
    own = {name: fault for name, fault in fault_of.items() if "not rehearsed" not in fault}
    assert own.keys() == {
        "fetch_papers",
        "fetch_imagery",
        "fetch_model@writer",
        "fetch_model@classifier",
        "finetune_sd",
    }, finished.stdout + finished.stderr
    assert "no_papers: no such file or folder" in own["fetch_papers"]
    assert "train.parquet: no usable captioned image" in own["fetch_imagery"]
    assert "its columns: " in own["fetch_imagery"]
    assert "File too large" in own["fetch_model@writer"]
    assert "pickle" in own["fetch_model@classifier"]
    assert "the card has 10 MB" in own["finetune_sd"]
    # What doesn't need them was run, the rest was not.
    assert "fetch_model@diffusion" not in fault_of and "fetch_model@language" not in fault_of
    assert fault_of["encode"] == "not rehearsed: needs fetch_imagery, train_base"
    assert fault_of["scrape"] == "not rehearsed: needs fetch_papers"
    assert "cannot run it" in finished.stdout.splitlines()[-1]

    after = files_below(faulty)
    ignored = {name for name in after if "__pycache__" in name}
    assert {name: after[name] for name in after.keys() - ignored} == before
    assert [path.name for path in faulty.parent.glob("rehearsal-*")] == []


def test_a_log_and_what_is_made_of_it():
    log = (
        "tiles:   0%|          | 0/4 [00:00<?, ?tile/s]\r"
        "tiles: 100%|.....| 4/4 [00:08<00:00,  2.00s/tile]\n"
        "test: 100%|.....| 8/8 [00:01<00:00,  8.00tile/s]\n"
    )
    without_total = "scene: 1batch [00:04,  4.00s/batch]\rscene: 2batch [00:06,  3.00s/batch]\n"
    whole = "perplexity: 100%|.....| 5/5 [00:10<00:00,  2.00s/paper]\n"
    whole += "scenes: 100%|.....| 24/24 [00:45<00:00,  1.88s/file]\n"
    whole += "retrieval: 100%|.....| 50/50 [00:05<00:00, 10.00passage/s]\n"
    assert bar_seconds(log + whole + without_total) == 4 * 2 + 8 / 8 + 2 * 3
    slow = "epoch: 100%|.....| 2/2 [01:20<00:00, 40.00s/epoch]"
    assert bar_seconds(f"{slow}\r{slow}\n") == bar_seconds(f"{slow}\r   \rsaved\n\r{slow}\n") == 80
    assert error_line(log + "ValueError: no\n" + log, 1) == "ValueError: no"
    measured = Measurement(
        seconds=20, bar_seconds=9, memory=1, gpu_memory=None, cache=0, error="", log=log
    )
    row = Row("encode", measured, disk=100, done=4, full=40, unit_seconds=2, disk_ratio=7)
    assert row.full_seconds == 20 + 36 * 2
    assert row.full_disk == 700


@pytest.mark.parametrize(
    ("cache_gb", "variants", "note", "fault"),
    [
        (20, 8, "finetune_sd would embed captions while it trains", ""),
        (30, 8, "", ""),
        (11, 8, "finetune_sd would embed captions while it trains", ""),
        (10.9, 8, "", "encode.variants: 7 fits"),
        (5, 8, "", "encode.variants: 3 fits"),
        (5, 1, "", "encode.variants: 1 takes 11.0 GB"),
    ],
)
def test_a_rehearsal_says_what_fits_the_cache(tmp_path, cache_gb, variants, note, fault):
    """The full run has 10 GB of training latents, 1 GB of others and 10 GB of embeddings."""
    file = tmp_path / "data/latents/train.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(10_240_000))
    size = folder_size(file)
    per_gb = 1e9 / size * variants  # images whose latents in one variant take 1 GB
    config = {"cache_gb": cache_gb, "variants": variants, "base_domain": "none"}
    rehearsal = SimpleNamespace(
        folder=tmp_path,
        full={"encode": config},
        params={"encode": {"variants": variants}},
        full_images={"train": 10 * per_gb / variants, "valid": per_gb},
        images={"train": 1},
    )
    row = Row("encode", disk=size, disk_ratio=21e9 / size)
    note_cache(rehearsal, row)
    assert [line.partition(": ")[2] for line in row.notes] == ([note] if note else [])
    assert row.full_fault.partition("): ")[2] == fault


# The work of both runs.

RSICD = {"train": 8734, "valid": 1094, "test": 1093, "figures": 28}
REHEARSED = {"train": 4, "valid": 4, "test": 4, "figures": 4}


def params_of(*scales: str) -> dict:
    """The values of params.yaml at these scales."""
    return load_yaml(compose(list(scales), REPOSITORY)[0])


def make_rehearsal(folder: Path, full: dict, large_on_cpu: bool) -> Rehearsal:
    """A rehearsal of 4 images of each split."""
    device = Device("CPU", 10**12, None, ("fp32",))
    params = cuts.cut_params(full, large_on_cpu, device.precisions)
    cuts.fit_training(params, REHEARSED, large_on_cpu)
    rehearsal = Rehearsal(folder, full, params, device, None, large_on_cpu, "", {}, {})
    rehearsal.full_images, rehearsal.images = RSICD, REHEARSED
    return rehearsal


def paper_rehearsal(folder: Path = Path()) -> Rehearsal:
    """The scale `paper` on a CPU: 50 guided steps are cut to 1, a batch of 16 to 1 image."""
    return make_rehearsal(folder, params_of("paper"), True)


def measured(seconds: float = 20, cache: int = 0) -> Measurement:
    return Measurement(seconds, seconds, 1, None, cache, error="", log="")


@pytest.mark.parametrize(
    ("stage", "images", "full_images"),
    [
        ("fetch_imagery", 12, 10_921),
        ("sample@base", 4, 1093),
        ("sample@tuned", 4, 10_930),  # ten images of each caption, one in the rehearsal
        ("sample@figures", 4, 28),
        ("generate", 4, 388),  # two prompts of two classes
        ("select", 4, 388),
        ("features@real", 12, 10_920),  # train, test, and test in a frame
        ("features@tuned", 4, 1093),  # the first of each caption
        ("features@synthetic", 4, 388),
        ("finetune_sd", 1, 1),
    ],
)
def test_disk_grows_with_images_whatever_steps_are_cut(tmp_path, stage, images, full_images):
    row = Row(stage, disk=400_000 * images)
    count_work(paper_rehearsal(tmp_path), row)
    assert row.full_disk == pytest.approx(400_000 * full_images)
    assert row.full > row.done


def test_text_embeddings_do_not_grow_with_the_variants(tmp_path):
    """4 + 4 tiles rehearsed in 2 of 8 variants: latents of 12 encodings, embeddings of 8 tiles."""
    rehearsal = paper_rehearsal(tmp_path)
    folder = tmp_path / "data/latents"
    folder.mkdir(parents=True)
    (folder / "train.safetensors").write_bytes(bytes(600_000))
    (folder / "captions.safetensors").write_bytes(bytes(400_000))
    sizes = [folder_size(folder / f"{name}.safetensors") for name in ("train", "captions")]
    encodings, tiles = 8 * 8734 + 1094, 8734 + 1094
    full = sizes[0] * encodings / 12 + sizes[1] * tiles / 8
    assert encode_ratio(rehearsal) == pytest.approx(full / sum(sizes), rel=0.01)


def test_encode_has_the_variants_of_training_images_only(tmp_path):
    file = tmp_path / "data/latents/train.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(1_024_000))
    rehearsal = paper_rehearsal(tmp_path)
    rehearsal.full["encode"]["cache_gb"] = 1
    row = Row("encode", disk=12_000_000)
    count_work(rehearsal, row)
    assert (row.unit, row.done, row.full) == ("encodings", 2 * 4 + 4, 8 * 8736 + 1104)
    assert row.full_disk == pytest.approx((8 * 8734 + 1094) * 1e6)
    # The validation tiles' latents included.
    assert row.notes == [] and row.full_fault.startswith("latents of 9.1 GB would pass")


def test_work_is_what_the_progress_bars_count():
    params = params_of("demo")
    params["encode"] |= {"variants": 2, "batch_size": 4, "base_domain": "none", "base_images": 6}
    params["features"] |= {"batch_size": 4, "padded": False}
    images = {"train": 10, "valid": 3, "test": 5, "figures": 4}
    assert cuts.work("encode", params, images) == ("encodings", 2 * 12 + 4)
    assert cuts.work("features@real", params, images) == ("images", 12 + 8)
    params["encode"]["base_domain"] = "embedded"
    params["features"]["padded"] = True
    assert cuts.work("encode", params, images) == ("encodings", 2 * 12 + 4 + 8)
    assert cuts.work("features@real", params, images) == ("images", 12 + 2 * 8)

    params["classes"] = {"a": ["desert"], "b": ["lake"], "c": ["forest"]}
    compare = [{"writer": "template", "technique": "zero_shot"}] * 2
    params["prompt"] |= {"compare": compare, "compare_count": 5}
    params["prompt"]["per_class"] = {"a": 7, "b": 2, "c": 0}
    assert cuts.work("prompt", params, images) == ("prompts", 7 + 2 + 2 * 5 * 2)


def test_the_work_of_each_stage():
    params = params_of("demo")
    for section, values in {
        "sampling": {"steps": 10, "batch_size": 8},
        "finetune_sd": {"batch_size": 4, "gradient_accumulation": 1, "epochs": 2},
        "train_base": {"source": "scratch", "vae_steps": 10, "decoder_steps": 5, "text_steps": 7},
        "train_scene": {"source": "scratch", "epochs": 4},
        "finetune_llm": {"steps": 6, "batch_size": 2},
        "fid": {"subsets": 4, "paper_draws": 2},
        "classifier": {"images_per_caption": 2, "seeds": 3, "epochs": 5, "batch_size": 8},
        "encode": {"base_domain": "embedded", "base_images": 6},
        "prompt": {"per_class": {"a": 1, "b": 2}},
        "generate": {"images_per_prompt": 3, "balance": None, "keep": {"draw": 2, "by": "clip"}},
    }.items():
        params[section] |= values
    # The grid and the 3 + 6 held-out images are measured after every second step and at first.
    grid = {"validation_images": 100, "grid_captions": 2, "grid_steps": 3, "checkpoint_steps": 2}
    params["finetune_sd"] |= grid
    params["classes"] = {"a": ["desert"], "b": ["lake"]}
    images = {"train": 10, "valid": 3, "test": 5, "figures": 4}
    work = {
        "finetune_sd": 5 * 4 * 3 + (1 + 3) * (3 + 6 + 2 * 3 * 8),
        "train_base": 8 * (10 + 5) + 7,
        "train_scene": 4 * 10,
        "finetune_llm": 6 * 2,
        "fid": 4 + 2,
        "sample@base": 8 * 11.5,
        "sample@tuned": 16 * 11.5,
        "generate": 24 * 11.5,  # of twice the 9 images that are kept
        "classify@lulc": 3 * 5 * 16,
        "classify@scenes": 3 * 5 * 16,
    }
    assert {stage: cuts.work(stage, params, images)[1] for stage in work} == work


def test_a_second_run_tells_the_seconds_of_a_unit(tmp_path, monkeypatch):
    rehearsal = make_rehearsal(tmp_path, params_of("demo"), False)
    rehearsal.images = {"train": 10, "valid": 3, "test": 5, "figures": 4}
    row = Row("classify@scenes", measured=measured(seconds=10))
    row.unit, row.done = cuts.work(row.stage, rehearsal.params, rehearsal.images)
    monkeypatch.setattr(stages, "measure_stage", lambda *_: measured(seconds=50))
    seconds = stages.measure_second_run(rehearsal, SimpleNamespace(name=row.stage), row)
    assert seconds == pytest.approx((50 - 10) / (2 * row.done))  # three times as many epochs


# The resume cache and the disk of the full run.


def write_unet(folder: Path, weights: int) -> None:
    """A published UNet of so many weights, in half precision."""
    folder.mkdir(parents=True)
    save_file({"weight": np.zeros(weights, np.float16)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "bytes_per_weight"),
    [
        # The checkpoints kept, one more, and two that are the best.
        ({"keep_checkpoints": 2}, 3 * 12 + 2 * 4),
        ({"keep_checkpoints": 1, "ema_decay": 0.999}, 2 * 16 + 2 * 4),
        ({"keep_checkpoints": 2, "optimizer": "adamw8bit"}, 3 * 6 + 2 * 4),
        ({"keep_checkpoints": 2, "optimizer": "muon"}, 3 * 8 + 2 * 4),
        ({"keep_checkpoints": 2, "checkpoint_steps": 10**6}, 12 + 4),
        ({"keep_checkpoints": 2, "epochs": 0}, 0),
    ],
)
def test_the_checkpoints_of_the_full_run_are_computed(tmp_path, changes, bytes_per_weight):
    full = params_of("paper")
    full["finetune_sd"] |= {"ema_decay": 0, "optimizer": "adamw"} | changes
    rehearsal = make_rehearsal(tmp_path, full, True)
    rehearsal.params["finetune_sd"]["method"] = "lora"  # stands in
    write_unet(tmp_path / "models/diffusion/unet", 1000)
    row = Row("finetune_sd", measured(), full_cache=5)
    count_work(rehearsal, row)
    assert row.full_cache == 1000 * bytes_per_weight


@pytest.mark.parametrize(
    "method, ema_decay, optimizer, bytes_per_weight",
    [
        ("full", 0, "adamw", 16),
        ("full", 0.9, "muon", 16),
        ("full", 0.9, "adamw", 20),
        ("lora", 0.9, "adamw", 4),
    ],
)
def test_what_training_holds_must_fit_the_card(
    tmp_path, method, ema_decay, optimizer, bytes_per_weight
):
    full = params_of("paper")
    full["finetune_sd"] |= {"method": method, "ema_decay": ema_decay, "optimizer": optimizer}
    rehearsal = make_rehearsal(tmp_path, full, True)
    write_unet(rehearsal.folder / "models/base/diffusion/unet", 1000)
    rehearsal.card = 1000 * bytes_per_weight
    assert stages.check_card(rehearsal) == ""
    rehearsal.card -= 1
    assert "finetune_sd.method" in stages.check_card(rehearsal)


def test_the_cache_of_lora_and_of_images_is_scaled(tmp_path):
    full = params_of("paper")
    full["finetune_sd"] |= {"method": "lora", "ema_decay": 0, "keep_checkpoints": 3}
    rehearsal = make_rehearsal(tmp_path, full, True)
    assert cuts.count_checkpoints(rehearsal.params, REHEARSED) == 1
    lora = Row("finetune_sd", measured(), full_cache=16_000)  # 12 and 4 bytes of 1000 weights
    count_work(rehearsal, lora)
    assert lora.full_cache == pytest.approx(1000 * (4 * 12 + 2 * 4))
    for stage, ratio in (("sample@base", 1093 / 4), ("generate", 388 / 4), ("finetune_llm", 1)):
        row = Row(stage, measured(), full_cache=1000)
        count_work(rehearsal, row)
        assert row.full_cache == pytest.approx(1000 * ratio)


def print_report(
    rehearsal: Rehearsal,
    rows: list[Row],
    capsys,
    free: float = 1e15,
    others: float | None = None,
    cached: float = 0,
) -> list[str]:
    """The lines that are printed of a run without a hint that no GPU was used.

    `others` is what the disks of the two caches have, where these are others.
    """
    hub, resume = (
        rehearse.Disk(Path(name), 1, free)
        if others is None
        else rehearse.Disk(Path(name), i, others)
        for i, name in enumerate(("/hub", "/resume"), 2)
    )
    disks = rehearse.Disks(rehearse.Disk(Path("/here"), 1, free), hub, resume)
    rehearsal.full["sampling"]["precision"] = rehearsal.full["finetune_sd"]["precision"] = "fp32"
    rehearsal.full["encode"]["precision"] = "fp32"
    arguments = SimpleNamespace(scale=["paper"], layers=None, usd_per_hour=2)
    rehearse.report(arguments, rehearsal, rows, disks, cached)
    return capsys.readouterr().out.splitlines()


def test_outputs_models_of_the_hub_and_the_largest_cache_need_disk(tmp_path, capsys):
    rehearsal = paper_rehearsal(tmp_path)
    rehearsal.full["fetch_model"] = {"diffusion": "hub:a/b", "vision": "path:vision"}
    rehearsal.model_bytes = {"diffusion": 4_000_000_000, "vision": 10**9}
    rows = [
        Row("finetune_sd", measured(), disk=10**9, full_cache=40e9),
        Row("generate", measured(), disk=10**9, disk_ratio=19, full_cache=19e9),
        Row("failed", measured(), fault="", full_cache=1),
    ]
    assert print_report(rehearsal, rows, capsys, 84e9)[-1] == "This machine can run it."
    printed = print_report(rehearsal, rows, capsys, 60e9)
    assert "- resume cache: 40.0 GB at most, of finetune_sd" in printed
    assert "- downloads of models: diffusion 4.0 GB" in printed
    (disk,) = [line for line in printed if line.startswith("- disk: 44.0 GB: ")]
    assert "and 4.0 GB in the hub's;" in disk
    assert "the disk lacks 24.0 GB" in printed[-1]

    # The caches are on disks of their own.
    assert print_report(rehearsal, rows, capsys, 40e9, 40e9)[-1] == "This machine can run it."
    printed = print_report(rehearsal, rows, capsys, 39e9, 3e9)
    assert any(line.startswith("- disk: 40.0 GB: ") for line in printed)
    assert any("of finetune_sd (in /resume, another disk: 3.0 GB are free)" in x for x in printed)
    lacks = (
        "the disk lacks 1.0 GB; the disk of /hub lacks 1.0 GB; the disk of /resume lacks 37.0 GB"
    )
    assert printed[-1] == f"This machine cannot run it: {lacks}."


def test_models_that_the_cache_of_the_hub_has_are_not_counted_again(tmp_path, capsys):
    rehearsal = paper_rehearsal(tmp_path)
    rehearsal.full["fetch_model"] = {"diffusion": "hub:a/b"}
    folder = rehearsal.folder / "models/base/diffusion"
    write_text(folder / "weights", "w" * 40_000_000)
    for cached, expected in ((50e6, "and 40 MB in the hub's; "), (10e6, "and 10 MB"), (0, "")):
        printed = print_report(rehearsal, [Row("encode", measured())], capsys, cached=cached)
        (disk,) = [line for line in printed if line.startswith("- disk: ")]
        assert expected in disk and ("in the hub's" in disk) == bool(expected)
        assert "- downloads of models: diffusion 40 MB" in printed


def test_a_folder_that_the_full_run_refuses_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rehearse", "tests/params.yaml"])
    monkeypatch.setattr(rehearse, "prepare", MagicMock(side_effect=AssertionError))
    monkeypatch.setattr(rehearse, "interrupt_on_signals", lambda: None)
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "file").touch()
    for value in ("relative", str(tmp_path / "file/scratch")):
        monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", value)
        with pytest.raises(SystemExit, match="REMOTE_DIFFUSION_SCRATCH"):
            rehearse.main()
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path))
    monkeypatch.setattr(rehearse.os, "access", lambda *_: False)
    with pytest.raises(SystemExit, match=f"{tmp_path}: cannot be written"):
        rehearse.main()


def test_a_sum_says_what_it_leaves_out(tmp_path, capsys):
    rows = [Row("scrape", measured(1800)), Row("encode", measured(1800), done=1, full=2)]
    printed = print_report(paper_rehearsal(tmp_path), rows, capsys)
    assert "- time of the full run: 60 min" in printed and "- cost: 2.00 USD" in printed
    rows += [Row("select", measured(1800), lacks_time=True), Row("fid", fault="no")]
    printed = print_report(paper_rehearsal(tmp_path), rows, capsys)
    without = "without what is unknown of select, fid"
    assert f"- time of the full run: at least 90 min, {without}" in printed
    assert "- cost: at least 3.00 USD" in printed


def test_models_that_could_not_be_fetched_are_missing_from_the_sums(tmp_path, capsys):
    rehearsal = paper_rehearsal(tmp_path)
    rehearsal.full["fetch_model"] = {"writer": "hub:a/b", "embedder": "hub:c/d"}
    (tmp_path / "models/base/embedder").mkdir(parents=True)
    rows = [
        Row("fetch_model@writer", measured(), disk=10**9, fault="gated"),
        Row("generate", measured(), disk=10**9, full_cache=19e9),
    ]
    printed = print_report(rehearsal, rows, capsys, 10e9)
    assert "- downloads of models: writer unknown, embedder 0 B" in printed
    without = "without what is unknown of fetch_model@writer"
    assert [line for line in printed if line.startswith(f"- disk: at least 2.0 GB, {without}: ")]
    assert "- resume cache: at least 19.0 GB, of generate" in printed
    assert printed[-1].endswith("; the disk lacks at least 11.0 GB.")


def test_an_interrupted_rehearsal_has_found_no_fault(tmp_path, capsys):
    rows = [Row("scrape", measured()), Row("fid", fault=INTERRUPTED)]
    last = print_report(paper_rehearsal(tmp_path), rows, capsys)[-1]
    assert last.startswith("Interrupted: 1 ") and "cannot" not in last
    rows.append(Row("chunk", fault="no"))
    last = print_report(paper_rehearsal(tmp_path), rows, capsys)[-1]
    assert last.startswith("This machine cannot run it: 1 ")


def test_what_stops_the_full_run_is_in_table_and_verdict(tmp_path, capsys):
    rows = [Row("encode", measured(), full_fault="too many"), Row("select", measured())]
    printed = print_report(paper_rehearsal(tmp_path), rows, capsys)
    assert "- encode: **too many**" in printed
    (line,) = [line for line in printed if line.startswith("| encode")]
    assert "**stops**" in line
    assert printed[-1] == "This machine cannot run it: encode: too many."
    assert "- activations are not counted: docs/scale.md has what fits a card" in printed


def test_the_full_run_stops_where_its_warm_up_is_longer_than_its_training(tmp_path):
    """The rehearsal has no warm-up. 5 epochs of 8734 images, 16 a step, are 2730 steps."""
    full = params_of("paper")
    for warmup, fault in ((2730, ""), (2731, "2731 are more than the 2730 steps of the training")):
        full["finetune_sd"] |= {"warmup_steps": warmup, "method": "lora"}
        row = Row("finetune_sd", measured())
        count_work(make_rehearsal(tmp_path, full, True), row)
        assert row.full_fault.partition(": ")[2] == fault


@pytest.mark.parametrize(("card", "noted"), [(None, False), (20e9, False), (19e9, True)])
def test_more_memory_than_the_card_has_is_noted(tmp_path, monkeypatch, card, noted):
    rehearsal = paper_rehearsal(tmp_path)
    rehearsal.card = card
    taken = Measurement(1, 1, 1, 20 * 10**9, 0, error="", log="")
    monkeypatch.setattr(stages, "measure_stage", lambda *arguments: taken)
    row = Row("generate")
    stages.run_stage(rehearsal, Stage("generate", "", (), ()), row)
    assert row.full_fault == "" and any("has 19.0 GB" in note for note in row.notes) == noted


def test_field_notes_in_place_of_papers_are_said(tmp_path, monkeypatch):
    rehearsal = paper_rehearsal(tmp_path)
    monkeypatch.setattr(stages, "measure_stage", lambda *arguments: measured())
    for source, notes in ((rehearsal.full["fetch_papers"]["source"], 0), ("embedded", 1)):
        rehearsal.params["fetch_papers"]["source"] = source
        row = Row("chunk")
        stages.run_stage(rehearsal, Stage("chunk", "", (), ()), row)
        assert len(row.notes) == notes


def test_models_have_all_their_layers_in_the_full_run(tmp_path, monkeypatch):
    rehearsal = paper_rehearsal(tmp_path)
    rehearsal.model_bytes = {"writer": 14_000_000, "embedder": 1}
    monkeypatch.setattr(stages, "measure_stage", lambda *arguments: measured())
    for role, expected in (("writer", 14_000_000), ("embedder", 1_400_000)):
        out = tmp_path / role
        out.write_bytes(bytes(1_400_000))
        row = Row(f"fetch_model@{role}")
        stages.run_stage(rehearsal, Stage(row.stage, "", (), (role,)), row)
        assert row.full_disk == pytest.approx(expected, rel=0.01)


def test_the_download_of_stable_diffusion_is_forecast_in_full_precision(tmp_path, monkeypatch):
    """The hub has both precisions, and `fetch_model` takes the full one: 4 bytes a weight."""
    for library in ("diffusers", "transformers"):  # no network is made
        monkeypatch.setitem(sys.modules, library, MagicMock())
    from tools.rehearsal import models

    def cut_network(folder, make, dtype, layers):
        return 1000 * dtype.itemsize, None

    monkeypatch.setattr(models, "cut_network", cut_network)
    monkeypatch.setattr(models, "random_weights", lambda network: [])
    monkeypatch.setattr(models, "write_shards", lambda *arguments: None)
    monkeypatch.setattr(models.tokenizers, "write_clip_tokenizer", lambda *arguments, fast: None)
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    size = models.make_model(name, tmp_path / "model", tmp_path / "text.txt", 1)
    assert size == 3 * 4000  # of UNet, VAE and text encoder


def test_the_ceiling_draws_training_tiles_only():
    params = params_of("demo")
    params["classifier"] |= {"seeds": 2, "epochs": 3, "batch_size": 4, "images_per_caption": 10}
    images = {"train": 10, "valid": 20, "test": 5, "figures": 4}
    # 350 images of classes and 50 of scenes: of both, three batches of training tiles.
    assert cuts.work("ceiling", params, images) == ("images", 2 * 3 * (12 + 12))


def test_a_full_run_of_too_few_tiles_for_the_fid_is_announced():
    rehearsal = paper_rehearsal()
    rehearsal.full_images = {**RSICD, "test": 249}
    row = Row("fid")
    count_work(rehearsal, row)
    assert row.notes[:2] == [
        "no FID: 249 test tiles, fid.standard_min_n needs 1000",
        "no FID of the paper's kind: 249 test tiles, fid.paper_n needs 250",
    ]


def test_fid_says_that_its_images_are_cut():
    rehearsal = paper_rehearsal()
    cut, whole = Row("fid"), Row("fid")
    count_work(rehearsal, cut)
    rehearsal.params, rehearsal.images = rehearsal.full, rehearsal.full_images
    count_work(rehearsal, whole)
    assert cut.notes == ["its images are cut, too: the forecast is of the images rehearsed"]
    assert whole.notes == []


@pytest.mark.parametrize(
    ("balance", "draw", "counts", "kept", "drawn"),
    [
        (None, None, (10, 4, 0), 70, 70),
        (None, 3, (10, 4, 0), 70, 210),
        ("equal", None, (10, 4, 0), 100, 100),
        ({"to": 500}, None, (10, 4, 0), 1000, 1000),
        ({"to": 7}, 1.1, (2, 3, 0), 14, 19),  # 4 + 3 and 3 + 2 + 2 of the prompts: 5 + 4, 4 + 3 + 3
        ({"like": "real"}, 2, (10, 4, 0), 70, 140),
    ],
)
def test_balanced_images_are_counted(balance, draw, counts, kept, drawn):
    params = params_of("demo")
    params["classes"] = {"a": ["desert"], "b": ["lake"], "c": ["forest"]}
    params["prompt"]["per_class"] = dict(zip("abc", counts))
    params["generate"] |= {"balance": balance, "keep": {"draw": draw} if draw else None}
    assert params["generate"]["images_per_prompt"] == 5
    assert (cuts.count_kept(params), cuts.count_drawn(params)) == (kept, drawn)


def test_balanced_images_are_cut():
    params = params_of("demo")
    params["generate"]["balance"] = {"to": 500}
    cut = cuts.cut_params(params, False, ("fp32",))
    assert (cuts.count_drawn(params), cuts.count_drawn(cut)) == (7 * 500, 7 * 3 * 2)
    changed = cuts.changes(params, cut)
    assert changed["generate.balance"] == "500 of each class -> 6 of each class"
    on_cpu = cuts.cut_params(params, True, ("fp32",))
    assert cuts.count_drawn(on_cpu) == 2 * 2


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ((2, 2, 2, 2), "bc"),  # a has no scenes
        ((2, 0, 2, 2), "cd"),
        ((2, 0, 0, 2), "ad"),
        ((2, 0, 0, 0), "a"),
    ],
)
def test_few_classes_are_of_those_that_get_prompts(counts, chosen):
    params = params_of("demo")
    params["classes"] = {"a": [], "b": ["lake"], "c": ["forest"], "d": ["desert"]}
    params["prompt"]["per_class"] = dict(zip("abcd", counts))
    few = cuts.few_classes(params)
    assert few == {name: 2 if name in chosen else 0 for name in "abcd"}


# Stages.


def test_no_steps_of_fine_tuning_take_no_time(tmp_path, monkeypatch):
    full = params_of("paper")
    full["finetune_sd"] |= {"epochs": 0, "method": "lora"}
    rehearsal = make_rehearsal(tmp_path, full, True)
    monkeypatch.setattr(stages, "measure_stage", lambda *arguments: measured())
    row = Row("finetune_sd")
    stages.run_stage(rehearsal, Stage("finetune_sd", "", (), ()), row)
    assert (row.fault, row.full_seconds) == ("", 20)


@pytest.mark.parametrize("error", [SystemExit("error: no\nsplit"), OSError("error: no split")])
def test_the_table_is_printed_where_a_stage_is_not_counted(tmp_path, monkeypatch, error):
    def fail(rehearsal, row):
        if row.stage == "encode":
            raise error

    rehearsal = paper_rehearsal(tmp_path)
    monkeypatch.setattr(stages, "measure_stage", lambda *arguments: measured())
    monkeypatch.setattr(stages, "count_work", fail)
    names = {"scrape": (), "encode": (), "select": ("encode",), "report": ()}
    rows = stages.run_stages(rehearsal, [Stage(name, "", names[name], ()) for name in names])
    faults = {row.stage: row.fault for row in rows}
    assert faults == {
        "scrape": "",
        "encode": "error: no split",
        "select": "not rehearsed: needs encode",
        "report": "",
    }
    assert "**error: no split**" in render(rows, "")


def test_a_stage_has_its_own_environment(tmp_path, monkeypatch):
    """Not that of a run of the project, nor one that names other folders in the copy."""
    full = params_of("paper")
    full["fetch_papers"]["source"] = "path:$MY_DATA/papers"
    rehearsal = make_rehearsal(tmp_path / "copy", full, True)
    (tmp_path / "copy").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    variables = {"MY_DATA": "data", "WANDB_PROJECT": "mine", "GIT_DIR": "/other", "PYTHONPATH": "."}
    variables["TORCHGEO_DATA"] = "sets"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = "echo [$MY_DATA $TORCHGEO_DATA] [$WANDB_PROJECT$GIT_DIR$PYTHONPATH]"
    printed = stages.measure_stage(rehearsal, Stage("prompt", command, (), ())).log
    assert printed == f"[{tmp_path}/home/data {tmp_path}/home/sets] []\n"


# Imagery.


def test_splits_that_are_carved_on_a_cpu_leave_images_to_train_on(tmp_path):
    full = params_of("paper")
    own = cuts.cut_params(full, True, ("fp32",))["fetch_imagery"]
    assert (own["max_images"], own["valid"], own["test"]) == (4, 0.1, 500)

    write_table(tmp_path / "tiles.parquet", ["lake", "desert"] * 500)
    sizes = [(160, 256, 4, 4), (0.1, 0.5, 1, 3), (2, 0.25, 2, 3)]
    for valid, test, cut_valid, cut_test in sizes:
        full["fetch_imagery"] |= {"splits": dict.fromkeys(["train", "valid", "test"])}
        full["fetch_imagery"] |= {"valid": valid, "test": test}
        cut = cuts.cut_params(full, True, ("fp32",))
        counts = inputs.count_images(cut, f"path:{tmp_path}")
        train = 12 - cut_valid - cut_test
        assert counts == {"train": train, "valid": cut_valid, "test": cut_test}
    full["fetch_imagery"]["splits"]["test"] = "test"
    full["fetch_imagery"]["max_images"] = None
    assert cuts.cut_params(full, True, ("fp32",))["fetch_imagery"]["max_images"] == 8


def test_splits_that_leave_nothing_to_train_on_stop_the_full_run_alone(tmp_path, monkeypatch):
    """160 and 256 of 300 images are held out; what is rehearsed has images to train on."""
    write_table(tmp_path / "tiles/tiles.parquet", ["lake", "desert"] * 150)
    full = params_of("demo")
    full["fetch_imagery"] |= {"source": f"path:{tmp_path}/tiles", "max_images": None}
    with pytest.raises(SystemExit, match="fetch_imagery.valid, fetch_imagery.test: .* 416 of 300 "):
        inputs.count_images(full, f"path:{tmp_path}/tiles")

    rehearsal = make_rehearsal(tmp_path, full, False)
    rehearsal.imagery = full["fetch_imagery"]["source"]
    kept = {"train": 56, "valid": 16, "test": 24}
    write_text(tmp_path / "data/imagery/REPORT.json", {"kept": kept})
    write_text(tmp_path / stages.FIGURES, "a\nb\n")
    monkeypatch.setattr(stages, "measure_stage", lambda *arguments: measured())
    row = Row("fetch_imagery")
    stages.run_stage(rehearsal, Stage("fetch_imagery", "", (), ()), row)
    assert row.fault == "" and row.full_fault.startswith("fetch_imagery.valid, fetch_imagery.test")
    assert rehearsal.full_images.items() >= kept.items()


def write_scenes(folder: Path) -> None:
    """Two rasters of two by three tiles of 32 px in each of two classes, with masks and labels.

    Of the labels, those of the upper half are Trees, the others in no class.
    """
    labels = np.full((1, 64, 96), 99, np.uint8)
    labels[:, :32] = 10
    for name in ("forest/a", "forest/b", "lake/c", "lake/d"):
        write_raster(folder / f"tiles/{name}.tif", np.ones((3, 64, 96), np.uint8))
        write_raster(folder / f"tiles/{name}_mask.tif", np.ones((1, 64, 96), np.uint8))
        write_raster(folder / "labels" / f"{Path(name).name}.tif", labels)


def test_tiles_are_counted_and_not_rasters_or_masks(tmp_path):
    write_scenes(tmp_path)
    params = params_of("demo")
    params["fetch_imagery"] |= {
        "tile": {"size": 32, "stride": 32, "min_valid": 0.9},
        "mask": {"file": "{stem}_mask.tif", "valid": [1]},
        "valid": 3,
        "test": 0.25,
        "max_images": None,
    }
    source = f"path:{tmp_path}/tiles"
    counts = {"train": 24 - 3 - 6, "valid": 3, "test": 6}
    assert inputs.count_images(params, source) == counts

    labels = {"file": "../../labels/{stem}.tif", "classes": {10: "Trees"}}
    params["fetch_imagery"]["labels"] = labels
    counts = {"train": 12 - 3 - 3, "valid": 3, "test": 3}
    assert inputs.count_images(params, source) == counts

    params["fetch_imagery"]["max_images"] = 8
    assert inputs.count_images(params, source) == {"train": 8 - 3 - 2, "valid": 3, "test": 2}


def test_folders_that_are_named_as_splits_are_counted(tmp_path):
    params = params_of("demo")
    splits = {"train": "siteA", "valid": "siteB", "test": "siteC/"}
    params["fetch_imagery"] |= {"splits": splits, "max_images": None}
    for name in ("siteA/lake/", "siteA/desert/", "siteB/lake/", "siteC/lake/"):
        write_text(tmp_path / f"sites/{name}1.png", "")
    counts = {"train": 2, "valid": 1, "test": 1}
    assert inputs.count_images(params, f"path:{tmp_path}/sites") == counts


def test_tiles_are_of_the_classes_that_get_prompts_and_of_each_as_many():
    """At the scale paper on a CPU, four tiles have to do for a classifier of two classes."""
    params = params_of("paper")
    cut = cuts.cut_params(params, True, ("fp32",))
    scenes = inputs.scenes_in_turn(cut)
    classes = [name for name, count in cut["prompt"]["per_class"].items() if count]
    assert len(classes) == 2
    of_tiles = [next(c for c in classes if scene in params["classes"][c]) for scene in scenes[:4]]
    assert of_tiles == classes * 2
    rows = [scene for shown in params["classes"].values() for scene in shown for _ in range(3)]
    chosen = [rows[number] for number in inputs.choose_rows(rows, scenes, 4)]
    assert sorted(chosen) == sorted(scenes[:4])


def write_table(file: Path, scenes: list[str], first: int = 0) -> None:
    """A table as the hub converts it: an image's name is in its column `image` alone.

    Its images are numbered from `first`.
    """
    rows = [
        {
            "image": {"bytes": f"{i}".encode(), "path": f"{scene}_{i}.jpg"},
            "captions": [f"a {scene}"],
        }
        for i, scene in enumerate(scenes, first)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_imagery_may_lack_a_split_and_file_names(tmp_path):
    write_table(tmp_path / "hub/train/0000.parquet", ["airport"] * 9 + ["lake", "desert"])
    write_table(tmp_path / "hub/train/0001.parquet", ["forest"] * 5)
    write_table(tmp_path / "hub/test/0000.parquet", ["lake"] * 6 + ["desert"])
    params = params_of("demo")
    params["classes"] = {"a": ["desert"], "b": ["lake"]}
    params["fetch_imagery"] |= {"valid": 2, "max_images": None}
    source = f"path:{tmp_path}/hub"
    assert inputs.count_images(params, source) == {"train": 16 - 2, "valid": 2, "test": 7}
    params["fetch_imagery"]["max_images"] = 10
    assert inputs.count_images(params, source) == {"train": 10 - 2, "valid": 2, "test": 7}

    inputs.copy_first_rows(params, tmp_path / "hub", tmp_path / "copy", 3)
    copied = {}
    for file in (tmp_path / "copy").rglob("*.parquet"):
        images = pq.read_table(file)["image"].to_pylist()
        copied[file.relative_to(tmp_path / "copy").as_posix()] = [image["path"] for image in images]
    assert copied == {
        "train/0000.parquet": ["airport_0.jpg", "lake_9.jpg", "desert_10.jpg"],
        "train/0001.parquet": [],
        "test/0000.parquet": ["lake_0.jpg", "lake_1.jpg", "desert_6.jpg"],
    }
    copy = f"path:{tmp_path}/copy"
    assert inputs.count_images(params, copy) == {"train": 3 - 2, "valid": 2, "test": 3}


def test_a_folder_of_imagery_is_counted_for_the_full_run(tmp_path):
    write_table(tmp_path / "hub/train-00000.parquet", ["lake", "desert"] * 8)
    write_table(tmp_path / "hub/test-00000.parquet", ["lake", "desert"] * 3, first=16)
    full = params_of("paper")
    full["fetch_imagery"]["splits"]["valid"] = None
    full["fetch_imagery"]["valid"] = 0.25
    arguments = SimpleNamespace(imagery=tmp_path / "hub", random_weights=False, card_gb=None)
    device = Device("CPU", 1, None, ("fp32",))
    rehearsal = rehearse.prepare(arguments, full, device, tmp_path / "root")
    source = f"path:{tmp_path}/root/imagery"
    assert rehearsal.params["fetch_imagery"]["source"] == source
    assert pq.read_table(tmp_path / "root/imagery/train-00000.parquet").num_rows == 8

    kept = {"train": 3, "valid": 1, "test": 4}
    write_text(rehearsal.folder / "data/imagery/REPORT.json", {"kept": kept})
    count_images_and_cut_epochs(rehearsal)
    figures = rehearsal.full_images.pop("figures")
    assert rehearsal.full_images == {"train": 12, "valid": 4, "test": 6}
    assert rehearsal.images == kept | {"figures": 4} and figures > 4


def test_rendered_tiles_are_counted_as_the_scale_splits_them(tmp_path):
    full = params_of("rsicd")
    full["fetch_imagery"] |= {"source": "hub:arampacha/rsicd@main", "max_images": 8000}
    rehearsal = make_rehearsal(tmp_path, full, True)
    rehearsal.hub_images = rehearse.hub_counts(full["fetch_imagery"]["source"])
    kept = {"train": 4, "valid": 4, "test": 8}
    write_text(tmp_path / "data/imagery/REPORT.json", {"kept": kept})
    write_text(tmp_path / stages.FIGURES, "a\nb\n")
    count_images_and_cut_epochs(rehearsal)
    # Of the hub's splits, valid serves as test, and test isn't used.
    assert rehearsal.full_images.items() >= {"train": 7500, "valid": 500, "test": 1094}.items()


def test_unknown_imagery_of_the_hub_is_not_rendered(tmp_path):
    full = params_of("paper")
    full["fetch_imagery"]["source"] = "hub:me/tiles"
    arguments = SimpleNamespace(imagery=None, random_weights=True)
    device = Device("CPU", 1, None, ("fp32",))
    with pytest.raises(SystemExit, match="^error: fetch_imagery.source: hub:me/tiles.*--imagery$"):
        rehearse.prepare(arguments, full, device, tmp_path)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_without_tables_is_one_line(tmp_path, is_there):
    folder = tmp_path / "hub"
    if is_there:
        folder.mkdir()
    with pytest.raises(SystemExit, match="^error: --imagery: .*(no Parquet|no such file)"):
        inputs.copy_first_rows(params_of("demo"), folder, tmp_path / "copy", 3)


def test_options_that_change_nothing_are_refused(tmp_path, monkeypatch, capsys):
    arguments = SimpleNamespace(imagery=tmp_path)
    device = Device("CPU", 1, None, ("fp32",))
    with pytest.raises(SystemExit, match="^error: --imagery: .* is embedded$"):
        rehearse.prepare(arguments, params_of("demo"), device, tmp_path)

    monkeypatch.setattr(sys, "argv", ["rehearse", "paper", "--layers", "2"])
    with pytest.raises(SystemExit) as stopped:
        rehearse.parse_arguments()
    assert stopped.value.code == 2
    assert "--layers: only the models of --random-weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--layers", "0"),
        ("--layers", "1.5"),
        ("--card-gb", "0"),
        ("--card-gb", "-24"),
        ("--usd-per-hour", "-1"),
        ("--usd-per-hour", "inf"),
    ],
)
def test_numbers_that_cannot_be_are_refused(monkeypatch, capsys, option, value):
    arguments = ["rehearse", "paper", "--random-weights", f"{option}={value}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        rehearse.parse_arguments()
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert option in line and value in line


# The device.


@pytest.mark.parametrize(
    ("visible", "memory", "gpu", "expected"),
    [
        (None, "1024", "0", 2**30),
        ("3,1", "1024", "3", 2**30),
        ("GPU-5c8f", "1024", "GPU-5c8f", 2**30),
        ("1", "[N/A]", "1", psutil.virtual_memory().total),  # it shares the machine's
        ("", "1024", None, None),
        ("-1", "1024", None, None),
    ],
)
def test_the_gpu_is_the_first_that_stages_see(
    tmp_path, monkeypatch, visible, memory, gpu, expected
):
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "Some GPU, {memory}"\n'
    write_text(tmp_path / "bin/nvidia-smi", script)
    write_text(tmp_path / "calls", "")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = find_device()
    assert device.gpu_memory == expected
    assert device.name.startswith("Some GPU" if gpu else "CPU")
    with watch_gpus() as gpus:
        time.sleep(0.2)
    assert gpus.peak() == (0 if gpu and memory.isdigit() else None)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == (2 if gpu else 0)
    assert all(f"--id={gpu}" in call.split() for call in calls)


# Sources in the repository.


def test_relative_sources_are_read_where_they_are(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    for name in ("tiles/lake/a.jpg", "stages/new.py", "lists/papers.csv", "writer/config.json"):
        write_text(repository / name, "mine")
    for name in ("mine/vision/model", "home/classifier/model"):
        write_text(repository / name, "mine")
    monkeypatch.chdir(repository)
    monkeypatch.setenv("RD_VISION", "mine")
    monkeypatch.setenv("HOME", str(repository / "home"))
    for command in (["init", "-q"], ["add", "lists"]):
        subprocess.run(["git", *command], check=True)
    params = params_of("demo")
    params["fetch_imagery"]["source"] = "path:./tiles"
    params["fetch_papers"]["source"] = "arxiv:lists/papers.csv"
    params["encode"]["base_domain"] = "path:../photographs"
    params["fetch_model"] |= {
        "writer": f"path:{repository}/writer",
        "language": "path:/models/language",
        "vision": "path:$RD_VISION/vision",
        "classifier": "path:~/classifier",
        "embedder": "hub:owner/name",
    }

    data = inputs.resolve_paths(params)
    assert params["fetch_imagery"]["source"] == f"path:{repository}/tiles"
    assert params["fetch_papers"]["source"] == f"arxiv:{repository}/lists/papers.csv"
    assert params["encode"]["base_domain"] == f"path:{tmp_path}/photographs"
    assert params["fetch_model"] == {
        "diffusion": "embedded",
        "writer": f"path:{repository}/writer",
        "language": "path:/models/language",
        "vision": "path:$RD_VISION/vision",
        "classifier": "path:~/classifier",
        "embedder": "hub:owner/name",
    }

    # What git tracks may be code that stages need; the user's data are not copied.
    copying.copy_repository(tmp_path / "copy", data)
    copied = {name for name in files_below(tmp_path / "copy") if not name.startswith(".git/")}
    assert copied == {"lists/papers.csv", "stages/new.py"}


@pytest.mark.parametrize(
    "source", ["path:data/imagery/mine", "path:$MINE/mine", "path:${MINE}/mine"]
)
def test_a_source_that_a_run_replaces_is_refused(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", "data/imagery")
    params = params_of("demo")
    params["fetch_imagery"]["source"] = source
    with pytest.raises(SystemExit, match="fetch_imagery.source: path:.* replaces data/imagery"):
        inputs.resolve_paths(params)


def test_the_copy_is_made_whatever_the_settings_of_git_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for setting in ("commit.gpgsign true", "gpg.program false", f"core.hooksPath {tmp_path}/hooks"):
        subprocess.run(["git", "config", "--global", *setting.split()], check=True)
    write_text(tmp_path / "hooks/pre-commit", "#!/bin/sh\nexit 1\n")
    (tmp_path / "hooks/pre-commit").chmod(0o755)
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    copying.copy_repository(tmp_path / "copy", [])
    logged = subprocess.run(
        ["git", "--git-dir", "copy/.git", "log", "--format=%s"], capture_output=True, text=True
    )
    assert logged.stdout == "copy\n"
