"""`python -m tools.rehearse`: every fault in one run, and nothing of the user's is touched."""

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import copy_repository
from model_files import files_below, write_text
from safetensors.numpy import save_file

from tools.rehearsal.measuring import Measurement, bar_seconds, error_line, folder_size
from tools.rehearsal.stages import note_cache
from tools.rehearsal.table import Row

FILE_LIMIT = 10_000_000  # bytes of a file: the embedded models are smaller


def write_large_writer(folder: Path) -> None:
    """A language model whose weights are larger than the disk takes."""
    write_text(folder / "config.json", {"model_type": "llama"})
    write_text(folder / "tokenizer.json", {"model": {}})
    save_file({"weight": np.zeros(FILE_LIMIT // 2, np.float32)}, folder / "model.safetensors")


def write_imagery(file: Path) -> None:
    """Captioned images whose column of captions has a name that is not known."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
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
        "fetch_imagery": {"source": f"path:{tmp_path}/train.parquet"},
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
    assert "no usable captioned image" in own["fetch_imagery"]
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
    assert bar_seconds(log + without_total) == 4 * 2 + 8 / 8 + 2 * 3
    assert error_line(log + "ValueError: no\n" + log, 1) == "ValueError: no"
    measured = Measurement(
        seconds=20, bar_seconds=9, memory=1, gpu_memory=None, cache=0, error="", log=log
    )
    row = Row("encode", measured, disk=100, done=4, full=40, unit_seconds=2)
    assert row.full_seconds == 20 + 36 * 2
    assert row.full_disk == 1000


@pytest.mark.parametrize(
    ("cache_gb", "variants", "note"),
    [
        (20, 8, ""),
        (15, 8, "finetune_sd would embed captions while it trains"),
        (5, 8, "it would stop; encode.variants: 4 fits"),
        (5, 1, "it would stop; encode.variants: 1 takes 10.0 GB"),
    ],
)
def test_a_rehearsal_says_what_fits_the_cache(tmp_path, cache_gb, variants, note):
    file = tmp_path / "data/latents/train.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(10_240_000))
    size = folder_size(file)
    rehearsal = SimpleNamespace(
        folder=tmp_path, full={"encode": {"cache_gb": cache_gb, "variants": variants}}
    )
    # The full run has latents of 10 GB and embeddings of 8 GB.
    row = Row("encode", disk=round(1.8 * size), done=1, full=10e9 / size)
    note_cache(rehearsal, row)
    assert [line.partition(": ")[2] for line in row.notes] == ([note] if note else [])
