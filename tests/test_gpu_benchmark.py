"""benchmarks/gpu.py: a row that fails, hangs or finds no time left doesn't cost the others."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import REPOSITORY, wait_until
from packaging.requirements import Requirement

from benchmarks import finetune, gpu, workspace
from benchmarks.gpu import Row
from stages.common import artifacts
from stages.params import load
from tools.scale import compose

# What the docstring of benchmarks/gpu.py says that it needs.
NEEDED = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pyarrow"),
    *("pydantic", "pillow", "tqdm", "pyyaml", "filelock", "platformdirs"),
)
# A sitecustomize.py: this Python and all that it starts don't find other packages.
ONLY_NEEDED = """
import re
import sys
from importlib.machinery import PathFinder

class NeededFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {others}:
            return None
        return super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        for found in super().find_distributions(*context):
            if re.sub(r"[-_.]+", "-", found.name).lower() in {needed}:
                yield found

sys.meta_path[sys.meta_path.index(PathFinder)] = NeededFinder
"""
MEASURE = """
import json
from pathlib import Path
from benchmarks import gpu

folder = Path.cwd()
gpu.prepare(folder, True)
rows = [
    gpu.measure_encoding(folder, True, 512),
    gpu.measure_training(folder, True, **gpu.FULL_512),
    gpu.measure_generation(folder, True, {"dpm": 2, "pndm": 3}),
]
gpu.measure_checkpoint(folder, True)
print(json.dumps(rows))
"""


def succeed(folder, tiny, images):
    return {"images/s": str(images)}


def fail(folder, tiny):
    raise ValueError("no such card")


def end_the_process(folder, tiny):
    os._exit(7)


def hang(folder, tiny):
    time.sleep(600)


def hang_with_another(folder, tiny):
    """Wait for a process that this one started, with a temporary file."""
    (folder / "temporary").write_text(tempfile.mkdtemp())
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "pid").write_text(str(process.pid))
    process.wait()


def test_a_row_that_is_stopped_ends_what_it_started(tmp_path, monkeypatch):
    # The time is over once the other process runs.
    started = tmp_path / "pid"
    monkeypatch.setattr(
        Connection, "poll", lambda *_: wait_until(lambda: started.exists() and started.read_text())
    )
    stopped = gpu.run_row(Row("hanging", 15, hang_with_another), tmp_path, True, limit=15)
    assert stopped == {"not measured:": "stopped after 15 s"}
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    assert not Path((tmp_path / "temporary").read_text()).exists()


def test_every_row_has_its_own_outcome(tmp_path):
    table = tmp_path / "gpu.md"
    table.write_text("# Runs\n\n| earlier | images/s 56 |\n\nA note.\n", encoding="utf-8")
    rows = [
        Row("first", 300, succeed, {"images": 12}),
        Row("failing", 300, fail),
        Row("dying", 300, end_the_process),
        Row("hanging", 1, hang),
        Row("last", 300, succeed, {"images": 34}),
    ]
    gpu.run_rows(rows, tmp_path, True, table, time_limit=1500)
    lines = {line.split(" | ")[0].strip("| "): line for line in table.read_text().splitlines()}
    assert "images/s 12" in lines["first"] and "images/s 34" in lines["last"]
    assert "ValueError: no such card" in lines["failing"]
    assert "exit code 7" in lines["dying"]
    assert "stopped after 1 s" in lines["hanging"]
    # What the file had stays.
    assert "images/s 56" in lines["earlier"] and "\nA note.\n\n## " in table.read_text()
    assert "torch " in table.read_text() and "commit" in table.read_text()


def test_rows_without_time_are_named(tmp_path):
    gpu.run_rows([Row("late", 60, succeed, {"images": 1})], tmp_path, True, tmp_path / "t.md", 5)
    assert "| late | not run: no time left | |" in (tmp_path / "t.md").read_text()


def with_needs(names):
    """Packages and all that they need, as far as they are installed."""
    found = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        try:
            needs = [] if name in found else requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
    return found


def test_no_other_packages_are_needed(tmp_path):
    """The measurements themselves at the size of the demo, against the engine as it is today."""
    needed = with_needs(NEEDED)
    others = {
        module
        for module, packages in packages_distributions().items()
        if needed.isdisjoint(re.sub(r"[-_.]+", "-", package).lower() for package in packages)
    }
    assert {"ruamel", "dvc", "scipy"} <= others and {"torch", "yaml"}.isdisjoint(others)
    text = ONLY_NEEDED.format(others=sorted(others), needed=sorted(needed))
    (tmp_path / "sitecustomize.py").write_text(text, encoding="utf-8")
    (tmp_path / "rows").mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=tmp_path / "rows",
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr
    encoding, training, generation = json.loads(finished.stdout.splitlines()[-1])
    assert "tiles/s" in encoding and "images/s" in training
    assert generation["dpm, 2 steps:"].endswith("images/s") and "pndm, 3 steps:" in generation


def test_fine_tuning_is_the_papers(tmp_path, monkeypatch):
    """The reference loop's optimizer and no extras; the demo's would be Muon with an average."""
    monkeypatch.chdir(tmp_path)
    gpu.write_training_params(False, {"precision": "bf16"})
    written = load(tmp_path / "params.yaml").finetune_sd.model_dump()
    assert (written["optimizer"], written["ema_decay"]) == ("adamw", 0)
    paper = compose(["paper"], REPOSITORY)[1].finetune_sd.model_dump()
    length = {"epochs", "checkpoint_steps", "validation_images", "grid_captions", "grid_steps"}
    assert {name for name in paper if written[name] != paper[name]} <= length | {"precision"}


def test_both_loops_are_compared_with_one_optimizer(monkeypatch):
    written = []
    monkeypatch.setattr(finetune, "write_params", lambda _, **sections: written.append(sections))
    monkeypatch.setattr(finetune, "run_module", lambda *arguments: "1.0")
    monkeypatch.setattr(finetune, "make_demo", lambda *arguments, **sections: None)
    monkeypatch.setattr(finetune, "make_stable_diffusion", lambda *arguments, **sections: None)
    for size in ("demo", "224", "512"):
        finetune.compare_loops(size)
    assert {sections["finetune_sd"]["optimizer"] for sections in written} == {"adamw"}
    ours, reference = (
        row.options
        for row in gpu.ROWS
        if row.name.endswith(" loop, 512 px, bf16") or row.name == "fine-tuning, 512 px, bf16"
    )
    assert reference == ours | {"reference": True}  # also the batch


@pytest.mark.parametrize("tiny", [True, False])
def test_the_gradient_scaler_is_resumed_on_a_gpu(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(workspace, "run_module", lambda *arguments: "")
    monkeypatch.setattr(gpu, "enter", lambda *arguments: None)
    monkeypatch.setattr(gpu, "run_stage", lambda *arguments, **options: None)
    monkeypatch.setattr(gpu, "read_validation_loss", lambda: 0.5)
    gpu.measure_resuming(tmp_path, tiny)
    written = load(tmp_path / "resuming/params.yaml").finetune_sd
    assert (written.precision == "fp16") == (not tiny)


def test_the_reference_loop_ends_where_tiles_do_not_fill_a_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpu.write_training_params(True, {})
    model = REPOSITORY / "stages/embedded/models/diffusion"
    artifacts.write_json(tmp_path / "models/start/start.json", {"folder": str(model)})
    monkeypatch.setattr(artifacts, "read_rows", lambda _: [{}] * 3)
    with pytest.raises(RuntimeError, match="3 training tiles don't fill a batch of 4"):
        finetune.time_reference_loop()


def test_the_scale_rsicd_has_the_values_of_make_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "run_module", lambda *arguments: "")
    workspace.make_rsicd_scale(tmp_path, 64, vae_steps=10)
    written = yaml.safe_load((tmp_path / "params.yaml").read_text(encoding="utf-8"))
    scale = compose(["rsicd"], REPOSITORY)[1].model_dump()
    scale["train_base"]["vae_steps"] = 10
    scale["finetune_sd"] |= workspace.LITTLE_MEASURING | {"warmup_steps": 0}
    for section in ("train_base", "encode", "finetune_sd"):
        assert written[section] == scale[section]
    assert written["fetch_imagery"]["max_images"] == 64


@pytest.mark.parametrize(("method", "has_mfu"), [("full", True), ("lora", False)])
def test_flops_are_those_of_full_fine_tuning(tmp_path, monkeypatch, method, has_mfu):
    monkeypatch.setattr(gpu, "enter", lambda *arguments: None)
    monkeypatch.setattr(gpu, "write_training_params", lambda *arguments: None)
    monkeypatch.setattr(gpu, "time_stage_loop", lambda: 10.0)
    monkeypatch.setattr(gpu, "describe_mfu", lambda *arguments: "10%")
    results = gpu.measure_training(tmp_path, False, 512, method=method)
    assert ("MFU" in results) == has_mfu


@pytest.mark.parametrize(
    ("device", "mfu"),
    [
        ("NVIDIA H100 80GB HBM3", "10.0% of 989 TFLOP/s"),
        ("NVIDIA H100 PCIe", "13.1% of 756 TFLOP/s"),
        ("NVIDIA H100 NVL", "11.8% of 835 TFLOP/s"),
        ("NVIDIA H200", "10.0% of 989 TFLOP/s"),
        ("NVIDIA L40S", "27.3% of 362 TFLOP/s"),
        ("NVIDIA L40", "unknown: benchmarks/finetune.py has no peak of NVIDIA L40"),
    ],
)
def test_mfu_is_of_the_peak_of_the_very_card(monkeypatch, device, mfu):
    monkeypatch.setattr(finetune, "training_flops", lambda _: {finetune.UNET_TRAINING: 1e12})
    assert finetune.describe_mfu(512, 98.9, device) == mfu
