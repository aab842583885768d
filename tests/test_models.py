"""fetch_model: every role's layout, refusals in one line, no pickles, same bytes."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from stages import fetch_model
from stages.common import model_folder, sources
from stages.common.artifacts import read_json

REPO = Path(__file__).parents[1]


def text(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def tensors(path: Path, value: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full((4, 4), value, np.float32)}, path)


def diffusion(folder: Path) -> Path:
    """The layout of stable-diffusion-v1-5, weights and all that we leave out included."""
    text(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "safety_checker": ["x", "Y"],
            "requires_safety_checker": True,
            **{part: ["a", "B"] for part in model_folder.DIFFUSION},
        },
    )
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("safety_checker", "model"),
    ):
        text(
            folder / part / "config.json",
            {"_class_name": part, "model_type": part, "in_channels": 4, "block_out_channels": [4]},
        )
        tensors(folder / part / f"{stem}.safetensors")
        tensors(folder / part / f"{stem}.fp16.safetensors", 16)
        text(folder / part / f"{stem}.bin", "a pickle")
    tensors(folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
    tensors(folder / "v1-5-pruned.safetensors")
    text(folder / "v1-5-pruned.ckpt", "a pickle")
    text(
        folder / "scheduler/scheduler_config.json",
        {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000},
    )
    text(folder / "tokenizer/vocab.json", {})
    text(folder / "tokenizer/merges.txt", "#version: 0.2\n")
    text(folder / "evil.py", "raise SystemExit")
    return folder


def language(folder: Path) -> Path:
    text(folder / "config.json", {"model_type": "phi", "auto_map": {"AutoModel": "evil.Model"}})
    text(folder / "tokenizer.json", {"model": {}})
    tensors(folder / "model.safetensors")
    text(folder / "evil.py", "raise SystemExit")
    return folder


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """fetch(role, source) -> the files made; the stage run in a folder of its own."""
    place = tmp_path / "run"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(role: str, source: str) -> dict[str, bytes]:
        params = yaml.safe_load((REPO / "params.yaml").read_text())
        params["fetch_model"][role] = source
        params["train_base"]["source"] = "scratch"
        Path("params.yaml").write_text(yaml.safe_dump(params))
        fetch_model.main(role)
        out = Path("models/base") / role
        return {
            file.relative_to(out).as_posix(): file.read_bytes()
            for file in sorted(out.rglob("*"))
            if file.is_file()
        }

    return run


def refused(fetch, role: str, source: str) -> str:
    """The line that the stage ends in; what an older run made is as it was."""

    def made() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("models").rglob("*") if path.is_file()}

    before = made()
    with pytest.raises(SystemExit) as end:
        fetch(role, source)
    line = str(end.value)
    assert line.startswith(("error: ", "params.yaml: ")) and "\n" not in line and role in line
    assert made() == before and not Path("models/base", role + ".part").exists()
    return line


def test_diffusion_takes_only_what_the_pipeline_reads(fetch, tmp_path):
    found = fetch("diffusion", f"path:{diffusion(tmp_path / 'sd')}")
    assert set(found) == {
        "SOURCE.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index, source = json.loads(found["model_index.json"]), json.loads(found["SOURCE.json"])
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False
    assert index["unet"] == ["a", "B"]
    del found["SOURCE.json"]
    assert source["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items()
    }
    assert fetch("diffusion", f"path:{tmp_path}/sd").items() > found.items()


def test_half_precision_is_taken_where_there_is_no_other(fetch, tmp_path):
    (diffusion(tmp_path / "sd") / "unet/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "sd/unet/diffusion_pytorch_model.non_ema.safetensors").unlink()
    fetch("diffusion", f"path:{tmp_path}/sd")
    assert (
        load_file("models/base/diffusion/unet/diffusion_pytorch_model.safetensors")["weight"][0, 0]
        == 16
    )
    assert (
        load_file("models/base/diffusion/vae/diffusion_pytorch_model.safetensors")["weight"][0, 0]
        == 1
    )


@pytest.mark.parametrize(
    "gone",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/model.safetensors",
    ],
)
def test_missing_file_is_named(fetch, tmp_path, gone):
    folder = diffusion(tmp_path / "sd")
    (folder / gone).unlink()
    for extra in folder.rglob("*fp16*"):
        extra.unlink()
    line = refused(fetch, "diffusion", f"path:{folder}")
    assert gone in line and "is missing" in line
    if "safetensors" in gone:
        assert "model.bin" in line and "pickle" in line


def test_language_in_shards_no_code_no_pickles(fetch, tmp_path):
    folder = language(tmp_path / "phi")
    assert set(fetch("language", f"path:{folder}")) == {
        "SOURCE.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    (folder / "model.safetensors").unlink()
    text(
        folder / "model.safetensors.index.json",
        {
            "weight_map": {
                "a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
            }
        },
    )
    tensors(folder / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors is missing" in refused(
        fetch, "writer", f"path:{folder}"
    )
    tensors(folder / "model-00002-of-00002.safetensors")
    assert len(fetch("writer", f"path:{folder}")) == 6
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json or" in refused(fetch, "language", f"path:{folder}")


def test_truncated_weights_and_broken_json_are_named(fetch, tmp_path):
    folder = language(tmp_path / "phi")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    assert "model.safetensors is not whole" in refused(fetch, "language", f"path:{folder}")
    (folder / "model.safetensors").write_bytes(whole)
    text(folder / "config.json", "{")
    assert "config.json is not readable JSON" in refused(fetch, "language", f"path:{folder}")


def test_embedder_with_its_modules(fetch, tmp_path):
    folder = language(tmp_path / "minilm")
    text(folder / "modules.json", [{"path": "1_Pooling"}])
    text(folder / "1_Pooling/config.json", {})
    text(folder / "onnx/config.json", {})
    assert set(fetch("embedder", f"path:{folder}")) == {
        "1_Pooling/config.json",
        "SOURCE.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    }


def test_none_and_embedded(fetch):
    for role in ("writer", "classifier", "vision"):
        assert f"no embedded {role}" in refused(fetch, role, "embedded")
    for role in ("diffusion", "writer", "classifier", "vision"):
        assert json.loads(fetch(role, "none")["SOURCE.json"]) == {
            "source": "none",
            "license": None,
            "files": {},
        }
    for role in ("language", "embedder"):
        assert "the pipeline needs one" in refused(fetch, role, "none")
    assert set(fetch("embedder", "embedded")) == {"SOURCE.json"}
    assert "no such file or folder" in refused(fetch, "language", "path:/nowhere/at/all")
    assert "arxiv: is for papers" in refused(fetch, "language", "arxiv:list.csv")
    with pytest.raises(SystemExit, match="say which"):
        fetch_model.main("difusion")


@pytest.mark.parametrize("role", ["diffusion", "language"])
def test_embedded_models_are_whole(fetch, role):
    assert fetch(role, "embedded") == fetch(role, "embedded")


def test_embedded_models_are_small_half_precision_safetensors():
    from safetensors import safe_open

    files = [file for file in fetch_model.EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}


def test_only_listed_pickles_are_read(fetch, tmp_path, monkeypatch):
    import torch

    path = tmp_path / "moco" / "resnet18-abc.pth"
    path.parent.mkdir()
    torch.save({"conv1.weight": torch.arange(6.0).reshape(2, 3).T, "epoch": 3}, path)
    assert "not on the allow-list" in refused(fetch, "classifier", f"path:{path}")
    monkeypatch.setitem(
        model_folder.PICKLES, hashlib.sha256(path.read_bytes()).hexdigest(), "model.safetensors"
    )
    for source in (path, path.parent):
        assert set(fetch("classifier", f"path:{source}")) == {"SOURCE.json", "model.safetensors"}
        assert load_file("models/base/classifier/model.safetensors")["conv1.weight"].tolist() == [
            [0, 3],
            [1, 4],
            [2, 5],
        ]
    assert "is a file" in refused(fetch, "language", f"path:{path}")

    class Evil:
        def __reduce__(self):
            return exec, ("raise RuntimeError('ran')",)

    torch.save(Evil(), path)
    monkeypatch.setitem(
        model_folder.PICKLES, hashlib.sha256(path.read_bytes()).hexdigest(), "model.safetensors"
    )
    assert "not plain tensors" in refused(fetch, "classifier", f"path:{path}")


def test_vision_folder(fetch, tmp_path):
    tensors(tmp_path / "eyes/inception2048/model.safetensors")
    text(
        tmp_path / "eyes" / model_folder.INCEPTION, "the pickle beside its conversion is not needed"
    )
    for part in ("dinov2", "clip"):
        language(tmp_path / "eyes" / part)
    assert {name.partition("/")[0] for name in fetch("vision", f"path:{tmp_path}/eyes")} == {
        "SOURCE.json",
        "inception2048",
        "dinov2",
        "clip",
    }
    (tmp_path / "none").mkdir()
    assert "inception2048" in refused(fetch, "vision", f"path:{tmp_path}/none")


def test_hub_records_the_commit(fetch, tmp_path, monkeypatch):
    snapshot = language(tmp_path / "snapshot")
    monkeypatch.setattr(
        sources, "hub", lambda *_: (snapshot, {"repo": "a/b", "commit": "c0ffee", "license": "mit"})
    )
    fetch("language", "hub:a/b@v1")
    source = read_json("models/base/language/SOURCE.json")
    assert (source["source"], source["commit"], source["license"]) == (
        "hub:a/b@v1",
        "c0ffee",
        "mit",
    )


def test_hub_without_a_network_is_one_line(fetch, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refused(fetch, "language", "hub:nobody/nothing")


def test_what_a_library_leaves_out_itself_is_not_missing(tmp_path):
    """Tied weights are stored once; older files name things otherwise and hold buffers that are no weights."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, CLIPTextModel, GPT2Config, GPT2LMHeadModel

    from stages.runtime.pretrained import load_pretrained

    settings = GPT2Config(
        n_embd=8, n_layer=1, n_head=1, vocab_size=16, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(settings).save_pretrained(tmp_path / "gpt2")
    assert "lm_head.weight" not in load_file(tmp_path / "gpt2/model.safetensors")
    load_pretrained(AutoModelForCausalLM, tmp_path / "gpt2")

    shutil.copytree(fetch_model.EMBEDDED / "diffusion/text_encoder", tmp_path / "old/text_encoder")
    now = load_pretrained(CLIPTextModel, tmp_path / "old", "text_encoder").state_dict()
    older = {f"text_model.{name}": value.clone() for name, value in now.items()}
    older["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(older, tmp_path / "old/text_encoder/model.safetensors", {"format": "pt"})
    old = load_pretrained(CLIPTextModel, tmp_path / "old", "text_encoder").state_dict()
    assert all(torch.equal(value, old[name]) for name, value in now.items())


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"num_hidden_layers": 4}, "its weights lack model.layers.3.input_layernorm.bias (and "),
        (
            {"vocab_size": 100},
            "lm_head.bias is [2560] in its weights, [100] by its config.json (and 1 more)",
        ),
        (
            {"model_type": "nosuch"},
            "cannot be loaded: The checkpoint you are trying to load has model type `nosuch`",
        ),
        ({"hidden_size": "wide"}, "cannot be loaded: Validation error for field 'hidden_size'"),
    ],
)
def test_a_config_that_is_not_the_weights_ends_in_one_line(tmp_path, wrong, line):
    from transformers import AutoModelForCausalLM

    from stages.runtime.pretrained import load_pretrained

    folder = shutil.copytree(fetch_model.EMBEDDED / "language", tmp_path / "language")
    text(folder / "config.json", read_json(folder / "config.json") | wrong)
    with pytest.raises(SystemExit) as end:
        load_pretrained(AutoModelForCausalLM, folder)
    assert str(end.value).startswith(f"error: {folder}: {line}") and "\n" not in str(end.value)


def test_a_neural_embedder_that_lacks_weights_is_refused_and_one_without_a_pooler_is_not(tmp_path):
    from safetensors.torch import load_file as read
    from safetensors.torch import save_file as write
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from stages.text.embedder import Neural

    folder = tmp_path / "embedder"
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nland\nwater\nforest\n")
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = read(file)
    write(
        {name: value for name, value in weights.items() if not name.startswith("pooler.")},
        file,
        {"format": "pt"},
    )
    first, second = (Neural(folder).embed(["land", "water forest"]) for _ in range(2))
    assert np.array_equal(first, second) and np.allclose(np.linalg.norm(first, axis=1), 1)
    write(
        {name: value for name, value in weights.items() if "attention.self.query" not in name},
        file,
        {"format": "pt"},
    )
    with pytest.raises(
        SystemExit, match="its weights lack encoder.layer.0.attention.self.query.bias .and 1 more"
    ):
        Neural(folder)


@pytest.mark.parametrize(
    "file, content, entry",
    [
        ("model_index.json", {}, "_class_name"),
        ("model_index.json", [], "_class_name"),
        ("scheduler/scheduler_config.json", {}, "_class_name"),
        ("unet/config.json", {}, "_class_name"),
        ("vae/config.json", {"_class_name": "x"}, "block_out_channels"),
        ("tokenizer/tokenizer.json", {}, "model"),
    ],
)
def test_a_config_that_says_nothing_is_named(fetch, tmp_path, file, content, entry):
    folder = diffusion(tmp_path / "sd")
    text(folder / file, content)
    assert f"{file} does not say {entry}" in refused(fetch, "diffusion", f"path:{folder}")
