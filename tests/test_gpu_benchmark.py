"""benchmarks/gpu.py: a row that fails, hangs or finds no time left doesn't cost the others."""

import os
import time

import tiny_diffusion

from benchmarks import gpu
from benchmarks.gpu import Row


def succeed(folder, tiny, images):
    return {"images/s": str(images)}


def fail(folder, tiny):
    raise ValueError("no such card")


def end_the_process(folder, tiny):
    os._exit(7)


def hang(folder, tiny):
    time.sleep(600)


def test_every_row_has_its_own_outcome(tmp_path):
    table = tmp_path / "gpu.md"
    rows = [
        Row("first", 60, succeed, {"images": 12}),
        Row("failing", 60, fail),
        Row("dying", 60, end_the_process),
        Row("hanging", 1, hang),
        Row("last", 60, succeed, {"images": 34}),
    ]
    gpu.run_rows(rows, tmp_path, True, table, time_limit=300)
    lines = {line.split(" | ")[0].strip("| "): line for line in table.read_text().splitlines()}
    assert "images/s 12" in lines["first"] and "images/s 34" in lines["last"]
    assert "ValueError: no such card" in lines["failing"]
    assert "exit code 7" in lines["dying"]
    assert "stopped after 1 s" in lines["hanging"]
    assert "torch " in table.read_text() and "commit" in table.read_text()


def test_rows_without_time_are_named(tmp_path):
    gpu.run_rows([Row("late", 60, succeed, {"images": 1})], tmp_path, True, tmp_path / "t.md", 5)
    assert "| late | not run: no time left | |" in (tmp_path / "t.md").read_text()


def test_training_and_generation_rows_run_at_the_size_of_the_demo(tmp_path, monkeypatch):
    """The measurements themselves, against the engine as it is today."""
    # Without CUDA the rows' processes may be forks of one that has imported the libraries.
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda _: tiny_diffusion.FORKSERVER)
    training = gpu.FULL_512 | {"compile": True}
    rows = [
        Row("tiles", 300, gpu.prepare),
        Row("encode", 300, gpu.measure_encoding, {"resolution": 512}),
        Row("train", 300, gpu.measure_training, training),
        Row("generate", 300, gpu.measure_generation, {"scheduler": "dpm", "steps": 2}),
    ]
    table = tmp_path / "gpu.md"
    gpu.run_rows(rows, tmp_path, True, table, time_limit=600)
    text = table.read_text()
    assert "not measured" not in text and "failed" not in text, text
    assert text.count("images/s") == 2 and "tiles/s" in text
