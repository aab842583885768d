"""Weights have the mode of any other file: what the umask leaves of 0666."""

import ast
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny_diffusion import make_pipeline

from stages import features
from stages.common.sources import file_hashes
from stages.diffusion import checkpoints, from_scratch, models
from stages.diffusion.normalization import VAE_NORMALIZATION
from stages.diffusion.saved_model import save_finetuned
from stages.evaluation.networks import create_network, save_network
from stages.fetching import model_folder
from stages.runtime.processes import process_state
from stages.text.embedder import LatentSemanticEmbedder


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def mode(request):
    """The mode of a new file under this umask, which holds for one test."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    assert os.umask(before) == request.param, "reading the umask has changed it"


def modes(folder: Path) -> list[int]:
    """The mode of each safetensors file."""
    return [stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*.safetensors")]


def write_everything(folder: Path, monkeypatch) -> None:
    """Call what writes weights, on tensors of a few elements."""
    config = {"model": "test_resnet", "resolution": 32, "classes": ["a", "b"]}
    config |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    save_network(folder / "network", create_network("test_resnet", 2, 32, "test"), config)
    LatentSemanticEmbedder(["a"], np.ones(1), np.ones((1, 1))).save(folder)
    tensors = {"weight.w": torch.zeros(2)}
    (folder / "cache").mkdir()
    state = checkpoints.TrainingState(step=1, best_step=1)
    checkpoints.save_step(folder / "cache", tensors, state, keep=1)
    monkeypatch.setattr(features, "FEATURES", folder)
    features.write_features("set", "scene", {"features": torch.zeros(2, 2)}, process_state())
    torch.save({"w": torch.zeros(2)}, folder / "a.pth")
    sha256 = file_hashes([folder / "a.pth"])["a.pth"]
    monkeypatch.setitem(model_folder.ALLOWED_PICKLES, sha256, "model.safetensors")
    model_folder.copy_model("classifier", folder / "a.pth", folder / "converted", "test")
    start = make_pipeline(folder / "start")
    unet, vae, text_encoder = (models.load(start, p) for p in ("unet", "vae", "text_encoder"))
    save_finetuned(start, folder / "tuned", unet.state_dict(), VAE_NORMALIZATION, 8)
    shutil.copytree(start / "tokenizer", folder / "scratch/tokenizer")
    from_scratch.save_pipeline(folder / "scratch", vae, text_encoder, unet)
    for file in start.rglob("*.safetensors"):  # not written by the code under test
        file.unlink()


def test_weights_have_the_mode_of_any_other_file(mode, tmp_path, monkeypatch):
    write_everything(tmp_path, monkeypatch)
    assert modes(tmp_path) == [mode] * 12


def writers_without_umask(source: str) -> list[str]:
    """The functions that write weights and don't call `follow_umask`."""
    names: list[str] = []
    if not any(word in source for word in ("save_file(", "save_pretrained(")):
        return names
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [ast.unparse(c) for c in ast.walk(function) if isinstance(c, ast.Call)]
        # Tokenizers and schedulers have no weights.
        writes = any(
            call.startswith("save_file(")
            or ".save_pretrained(" in call
            and not any(part in call.lower() for part in ("tokenizer", "scheduler"))
            for call in calls
        )
        if writes and not any(call.startswith("follow_umask(") for call in calls):
            names.append(function.name)
    return names


def test_no_writer_of_weights_forgets_the_umask():
    files = [file for p in ("stages", "tools") for file in (REPOSITORY / p).rglob("*.py")]
    missing = {file.name: writers_without_umask(file.read_text("utf-8")) for file in files}
    assert not {name: functions for name, functions in missing.items() if functions}
    assert writers_without_umask("def f():\n    save_file(x, path)\n") == ["f"]
    assert writers_without_umask("def f():\n    model.save_pretrained(path)\n") == ["f"]
