"""The Hugging Face hub, in and out, against a local server that speaks its API: publishing a run, and `hub:` sources."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import REPOSITORY, shell
from hub_server import serve
from PIL import Image
from safetensors.numpy import save

from stages.common.artifacts import IMAGE, encode_png, write_shards
from stages.params import LULC_CLASSES

EMBEDDED = REPOSITORY / "stages/embedded/models"
TOKEN = "hf_SecretOfTheTest0123456789"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run as a clone holds it: the shipped models as its outputs, a few images, the metrics in git."""
    from transformers import AutoModelForCausalLM

    from stages.params import FinetuneLLM
    from stages.text import lora

    folder = tmp_path_factory.mktemp("run")
    settings = yaml.safe_load((REPOSITORY / "tests/params.yaml").read_text())
    shutil.copyfile(REPOSITORY / "tests/params.yaml", folder / "params.yaml")
    shutil.copytree(
        REPOSITORY / "metrics",
        folder / "metrics",
        ignore=shutil.ignore_patterns("report", "review", "diffusion_grid"),
    )
    shutil.copytree(EMBEDDED / "diffusion", folder / "models/diffusion")
    shutil.copytree(EMBEDDED / "language", folder / "models/base/language")
    lora.adapt(
        AutoModelForCausalLM.from_pretrained(EMBEDDED / "language"),
        FinetuneLLM(**settings["finetune_llm"]),
    ).save_pretrained(folder / "models/llm")
    (folder / "models/classifier/lulc").mkdir(parents=True)
    for name in ("config.json", "context.json", "model.safetensors"):
        (folder / "models/classifier/lulc" / name).write_text("{}")
    for name, source in {
        "data/imagery": {"source": "path:/home/somebody/tiles", "license": None},
        "data/papers": {"source": "hub:owner/papers@abc", "license": "cc-by-4.0"},
        **{
            f"models/base/{role}": {"source": "embedded", "license": None}
            for role in ("diffusion", "language", "embedder")
        },
        **{
            f"models/base/{role}": {"source": "none", "license": None}
            for role in ("writer", "classifier")
        },
    }.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "SOURCE.json").write_text(json.dumps(source))
    rows = [
        {
            "image": {
                "bytes": encode_png(Image.new("RGB", (8, 8), (i, 90, 9))),
                "path": f"{i}.png",
            },
            "label": label,
            "prompt": f"a {label}",
        }
        for i, label in enumerate(LULC_CLASSES * 2)
    ]
    write_shards(
        folder / "data/synthetic",
        rows,
        pa.schema([("image", IMAGE), ("label", pa.string()), ("prompt", pa.string())]),
    )
    (folder / ".gitignore").write_text("/data/imagery\n/data/papers\n/models\n")
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "add", "-q", "data/synthetic"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "run"],
    ):
        assert shell(*command, cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def dry(run, tmp_path_factory, environment) -> Path:
    """What `--dry-run` writes, with no hub to reach."""
    out = tmp_path_factory.mktemp("dry") / "out"
    done = shell(
        sys.executable,
        "-m",
        "tools.export",
        "hub",
        "owner",
        "--dry-run",
        str(out),
        cwd=run,
        env={**environment, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def hub():
    with serve(TOKEN) as server:
        yield server


@pytest.fixture
def client(hub, environment, tmp_path):
    """Runs `python -m <module>` as a user of the local hub, with a hub cache of its own."""
    env = {
        **environment,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(REPOSITORY),
    }
    return lambda *words, cwd, **more: shell(
        sys.executable, "-m", *words, cwd=cwd, env={**env, **more}
    )


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Out -------------------------------------------------------------------------------------------------------------------


def test_the_dry_run_is_what_gets_uploaded_and_loads(run, dry, hub, client, tmp_path):
    from datasets import ClassLabel, load_dataset
    from diffusers import StableDiffusionPipeline

    data = load_dataset(
        str(dry / "lulc-synthetic"), split="train", cache_dir=str(tmp_path / "datasets")
    )
    assert data.features["label"] == ClassLabel(names=list(LULC_CLASSES)) and len(data) == 14
    assert (
        data[3]["label"] == 3
        and data[3]["prompt"] == f"a {LULC_CLASSES[3]}"
        and data[3]["image"].size == (8, 8)
    )
    assert (
        StableDiffusionPipeline.from_pretrained(dry / "remote-diffusion").unet.num_parameters() > 0
    )

    # The same again with a token: byte for byte what the dry run wrote, and a stale file of an earlier upload is gone.
    hub.repositories["datasets/owner/lulc-synthetic"] = {
        "data/train-00000-of-00002.parquet": b"stale"
    }
    done = client("tools.export", "hub", "owner", cwd=run, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories) == {
        "datasets/owner/lulc-synthetic",
        "owner/remote-diffusion",
        "owner/remote-llm",
        "owner/lulc-classifier",
    }
    for name, files in hub.repositories.items():
        assert files == content(dry / name.rpartition("/")[2]), name
    for place in (run, tmp_path):
        holds = [
            path
            for path in place.rglob("*")
            if path.is_file() and TOKEN.encode() in path.read_bytes()
        ]
        assert not holds, "the token is in a file"
    assert TOKEN not in done.stdout + done.stderr

    # And back: the uploaded model is a source of the pipeline, pinned by its commit.
    sha = hub.commit("owner/remote-diffusion")
    place = sources(tmp_path / "next", f"hub:owner/remote-diffusion@{sha}")
    done = client("stages.fetch_model", "diffusion", cwd=place)
    assert done.returncode == 0, done.stderr
    fetched = place / "models/base/diffusion"
    assert json.loads((fetched / "SOURCE.json").read_text())["commit"] == sha
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (fetched / weights).read_bytes() == (run / "models/diffusion" / weights).read_bytes()


def test_a_card_tells_how_what_from_and_how_well(run, dry):
    card = (dry / "lulc-synthetic/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "other" and head["task_categories"] == ["image-classification"]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=run, text=True, capture_output=True
    ).stdout.strip()
    fid = json.loads((run / "metrics/fid.json").read_text())["scene"]["standard"]
    for said in (
        f"commit `{commit}`",
        "## Intended use",
        "## Limitations",
        "no location and no time",
        "guidance_scale: 3.0",
        f"| {fid['fid']:.4g} | {fid['fid_lo']:.4g} to {fid['fid_hi']:.4g} |",
        "| imagery | `path:.../tiles` | not recorded |",
        "| papers | `hub:owner/papers@abc` | cc-by-4.0 |",
    ):
        assert said in card, said
    assert "/home/somebody" not in "".join(path.read_text() for path in dry.rglob("README.md"))


def test_faults_of_publishing_are_one_line(run, hub, client, tmp_path):
    assert "set HF_TOKEN" in one_line(client("tools.export", "hub", "owner", cwd=run))
    assert "data/synthetic is missing" in one_line(
        client("tools.export", "hub", "owner", cwd=tmp_path)
    )
    (run / "params.yaml").write_text((run / "params.yaml").read_text() + "\n")
    try:
        assert "params.yaml is not what the last commit has" in one_line(
            client("tools.export", "hub", "owner", cwd=run, HF_TOKEN=TOKEN)
        )
    finally:
        shell("git", "checkout", "-q", "params.yaml", cwd=run)
    (run / "data/synthetic/stray.parquet").touch()
    try:
        said = one_line(client("tools.export", "hub", "owner", cwd=run, HF_TOKEN=TOKEN))
        assert "data/synthetic is not what the last commit has" in said
    finally:
        (run / "data/synthetic/stray.parquet").unlink()


def test_a_wrong_token_and_no_hub_are_told(run, hub, monkeypatch):
    from tools import export

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for module in (
        "huggingface_hub.constants.ENDPOINT",
        "huggingface_hub.hf_api.constants.ENDPOINT",
    ):
        monkeypatch.setattr(module, hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(
        SystemExit, match="^error: export: owner/x was not uploaded: HF_TOKEN is not valid"
    ):
        export.upload("owner/x", "model", run / "metrics", "abc")
    assert hub.refused == ["/api/repos/create"]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match="^error: export: owner/x was not uploaded: .*[Rr]efused"):
        export.upload("owner/x", "model", run / "metrics", "abc")


# In --------------------------------------------------------------------------------------------------------------------


def sources(folder: Path, diffusion: str) -> Path:
    """A folder to run `fetch_model` in, with this source of the diffusion model."""
    folder.mkdir(exist_ok=True)
    params = yaml.safe_load((REPOSITORY / "tests/params.yaml").read_text())
    params["fetch_model"]["diffusion"] = diffusion
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture
def published(hub):
    """A diffusion model on the local hub."""
    hub.repositories["owner/model"] = content(EMBEDDED / "diffusion")
    return SimpleNamespace(
        files=hub.repositories["owner/model"], weights="unet/diffusion_pytorch_model.safetensors"
    )


def test_a_dropped_connection_is_resumed_where_it_broke_off(hub, client, published, tmp_path):
    # Larger than what huggingface_hub writes at a time (10 MiB): what has come is kept.
    published.files[published.weights] = save({"weight": np.zeros(12 * 2**20, np.float32)})
    hub.cut[published.weights] = 1
    place = sources(tmp_path / "run", "hub:owner/model")
    done = client("stages.fetch_model", "diffusion", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "models/base/diffusion" / published.weights).read_bytes() == published.files[
        published.weights
    ]
    assert [asked for file, asked in hub.served if file == published.weights] == [
        None,
        f"bytes={20 * 2**20}-",
    ]
    source = json.loads((place / "models/base/diffusion/SOURCE.json").read_text())
    assert source["commit"] == hub.commit("owner/model") and source["license"] == "cc-by-4.0"


def test_a_download_that_failed_goes_on_with_the_files_that_are_missing(
    hub, client, published, tmp_path
):
    hub.cut[published.weights] = 1000
    place = sources(tmp_path / "run", "hub:owner/model")
    assert "fetch_model.diffusion" in one_line_of_many(
        client("stages.fetch_model", "diffusion", cwd=place)
    )
    assert not (place / "models/base/diffusion").exists()
    hub.cut.clear()
    before = {file for file, _ in hub.served}
    hub.served.clear()
    done = client("stages.fetch_model", "diffusion", cwd=place)
    assert done.returncode == 0, done.stderr
    again = {file for file, _ in hub.served}
    assert published.weights in again and len(again) < len(before), (
        "what was complete is not downloaded twice"
    )


def one_line_of_many(done: subprocess.CompletedProcess) -> str:
    """huggingface_hub warns of each retry; ours is the last line, and there is no traceback."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_what_cannot_be_fetched_is_told_with_what_to_do(hub, client, published, tmp_path):
    def said(source: str, **more) -> str:
        return one_line(
            client("stages.fetch_model", "diffusion", cwd=sources(tmp_path / "run", source), **more)
        )

    assert "hub:owner/model@nosuch: the hub has no such revision" in said("hub:owner/model@nosuch")
    assert "the hub has no such model" in said("hub:owner/nothing")
    assert "cannot be reached" in said("hub:owner/model", HF_ENDPOINT="http://127.0.0.1:9")
    hub.gated.add("owner/model")
    assert "accept its terms on its hub page, then set HF_TOKEN" in said("hub:owner/model")
    done = client("stages.fetch_model", "diffusion", cwd=tmp_path / "run", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
