"""The pipeline on a little real input ($RD_DATA): RSICD, papers, the paper's own text corpus."""

import csv
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, copy_repository, shell, smoke_params

from tools.scale import compose

DATA = Path(os.environ.get("RD_DATA", REPOSITORY.parent / "shared/data"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (DATA / "rsicd").is_dir(), reason=f"no real data at RD_DATA ({DATA})"),
]


def test_whole_pipeline_from_scratch_on_rsicd_and_real_papers(tmp_path, warm_environment):
    """`params/rsicd.yaml` with its steps and images cut to what a test can spend."""
    copy = copy_repository(tmp_path)
    params = compose(["rsicd"], copy)[1].model_dump()
    smoke = yaml.safe_load(smoke_params())
    for section in (
        "finetune_llm",
        "finetune_sd",
        "train_scene",
        "classifier",
        "generate",
        "report",
    ):
        params[section] = smoke[section]
    params["train_scene"] |= {"source": "scratch"}
    params["fetch_imagery"] |= {"resolution": 32, "max_images": 120, "valid": 12}
    params["train_base"] |= {
        "vae_channels": [8, 16, 16],
        "vae_steps": 4,
        "text_width": 32,
        "text_steps": 4,
        "unet_channels": [16, 32, 32],
        "batch_size": 8,
    }
    params["sampling"] |= {"steps": 2, "resolution": 32, "precision": "fp32"}
    params["encode"] |= {"precision": "fp32"}
    params["finetune_sd"] |= {"epochs": 0.5}
    params["prompt"] |= {"per_class": 1, "compare": []}
    params["fid"] |= {"standard_min_n": 100, "paper_n": 100}
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    variables = {**warm_environment, "RD_DATA": str(DATA)}
    done = shell("dvc", "repro", cwd=copy, env=variables, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    report = json.loads((copy / "data/imagery/REPORT.json").read_text())
    assert (
        report["kept"]["test"] == 120
        and report["kept"]["valid"] == 12
        and report["kept"]["train"] == 108
    )
    rows = list(csv.DictReader((copy / "data/papers_report.csv").open()))
    assert len(rows) == 25 and all(row["status"] == "ok" for row in rows)
    fid = json.loads((copy / "metrics/fid.json").read_text())["scene"]["standard"]
    assert fid["n"] == 120 and fid["fid"] > 0
    assert "fid_floor" not in fid, "108 training tiles are fewer"
    # RSICD has no snow, and the context of the numbers names that class.
    assert "Snow Ice" in (copy / "models/classifier/lulc/context.json").read_text()


def test_text_half_on_the_papers_own_corpus(tmp_path, warm_environment):
    """A text file replaces the papers; it has no paper boundaries, yet is split by documents."""
    copy = copy_repository(tmp_path)
    params = yaml.safe_load(smoke_params())
    params["fetch_papers"]["source"] = f"path:{DATA / 'corpus/remote_sensing_data.txt'}"
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done = shell("dvc", "repro", "chunk", "index_rag", cwd=copy, env=warm_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    corpus = pq.read_table(copy / "data/corpus.parquet").to_pandas()
    assert len(corpus) > 50_000  # 71,102 less the reference lists
    papers = corpus.groupby("paper")["split"].nunique()
    assert (papers == 1).all() and corpus[corpus.split == "test"].paper.nunique() >= 4
    assert 0.05 <= (corpus.split == "test").mean() <= 0.4
    chunks = pq.read_table(copy / "data/chunks.parquet").to_pandas()
    assert chunks.text.str.len().median() >= 500
