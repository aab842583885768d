"""Models of random weights, of the sizes and in the files that the Hugging Face hub has.

`configs/` holds the published configurations, as they are in the repositories. Weights are made one
tensor at a time and written one shard at a time, so that memory stays below a shard.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from stages.common.artifacts import write_json
from stages.runtime.file_modes import follow_umask
from tools.rehearsal import tokenizers

CONFIGS = Path(__file__).parent / "configs"
SENTENCES = Path(__file__).parent / "sentences.txt"
LAYER_KEYS = ("num_hidden_layers", "layers_per_block")
SHARD_BYTES = 5 * 10**9  # the hub's largest file of weights
MISTRAL_SHARD_BYTES = 10**9  # so that few layers come in several shards, too
Tensors = Iterable[tuple[str, torch.Tensor]]

# The parts of a diffusion repository from before diffusers renamed its attention.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def make_model(name: str, folder: Path, text: Path, layers: int | None) -> int:
    """Write a model to a folder.

    Args:
        name: a repository of the hub, or `vision` for the networks of the feature extractors.
        folder: is made.
        text: what tokenizers are trained on.
        layers: at most so many of each kind; None: all. Widths are never cut.

    Returns:
        The bytes of its weights with all layers.
    """
    torch.manual_seed(0)
    return MODELS[name](folder, text, layers)


def make_stable_diffusion(folder: Path, text: Path, layers: int | None) -> int:
    """Stable Diffusion v1.5 in half precision: its weights are `*.fp16.safetensors` only.

    The bytes returned are those of fp32, which the hub has, too, and `fetch_model` prefers.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    makers = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": new_encoder,
    }
    shutil.copytree(CONFIGS / "stable-diffusion-v1-5", folder)
    size = 0
    for part, make in makers.items():
        part_size, network = cut_network(folder / part, make, torch.float32, layers)
        size += part_size
        tensors = [(old_name(part, key), value) for key, value in random_weights(network)]
        if part == "text_encoder":
            tensors.append(("text_model.embeddings.position_ids", torch.arange(77)[None]))
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_shards(folder / part, f"{stem}.fp16", tensors)
    shutil.copytree(CONFIGS / "clip-tokenizer", folder / "tokenizer")
    tokenizers.write_clip_tokenizer(folder / "tokenizer", text, fast=False)
    return size


def old_name(part: str, name: str) -> str:
    """The name that a weight has in the published files."""
    if part == "text_encoder" and not name.startswith("text_model."):
        return f"text_model.{name}"
    if part == "vae" and ".attentions." in name:
        for new, old in OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def make_phi(folder: Path, text: Path, layers: int | None) -> int:
    """Phi-1.5 in half precision."""
    shutil.copytree(CONFIGS / "phi-1_5", folder)
    size, network = cut_network(folder, new_language_model, torch.float16, layers)
    write_shards(folder, "model", random_weights(network))
    tokenizers.write_phi_tokenizer(folder, text)
    return size


def make_mistral(folder: Path, text: Path, layers: int | None) -> int:
    """Mistral-7B-Instruct in shards of bf16. Its answers are lines of `sentences.txt`."""
    shutil.copytree(CONFIGS / "Mistral-7B-Instruct-v0.2", folder)
    size, network = cut_network(folder, new_language_model, torch.bfloat16, layers)
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    answer = tokenizers.write_mistral_tokenizer(folder, text, sentences)
    weights = answering_weights(random_weights(network, torch.bfloat16), **answer)
    write_shards(folder, "model", weights, MISTRAL_SHARD_BYTES)
    return size


def make_minilm(folder: Path, text: Path, layers: int | None) -> int:
    """all-MiniLM-L6-v2, a sentence-transformers folder."""
    shutil.copytree(CONFIGS / "all-MiniLM-L6-v2", folder)
    size, network = cut_network(folder, new_encoder, torch.float32, layers)
    positions = ("embeddings.position_ids", torch.arange(512)[None])
    write_shards(folder, "model", [*random_weights(network, torch.float32), positions])
    tokenizers.write_bert_tokenizer(folder, text)
    return size


def make_resnet18(folder: Path, text: Path, layers: int | None) -> int:
    """TorchGeo's ResNet18 (MoCo, Sentinel-2 RGB). Its pickle is known by its hash: safetensors."""
    import timm

    with torch.device("meta"):
        network = timm.create_model("resnet18", num_classes=0)
    write_shards(folder, "model", random_weights(network, torch.float32))
    return weight_bytes(network, torch.float32)


def make_vision(folder: Path, text: Path, layers: int | None) -> int:
    """The networks of the extractors: torch-fidelity's Inception, DINOv2-B and CLIP-L."""
    shutil.copytree(CONFIGS / "vision", folder)
    inception = make_inception()
    size = weight_bytes(inception, torch.float32)
    write_shards(folder / "inception2048", "model", random_weights(inception, torch.float32))
    for part in ("dinov2", "clip"):
        part_size, network = cut_network(folder / part, new_encoder, torch.float32, layers)
        size += part_size
        write_shards(folder / part, "model", random_weights(network, torch.float32))
    shutil.copytree(CONFIGS / "clip-tokenizer", folder / "clip", dirs_exist_ok=True)
    tokenizers.write_clip_tokenizer(folder / "clip", text, fast=True)
    return size


def make_inception() -> torch.nn.Module:
    """torch-fidelity's Inception on the meta device. Its constructor insists on a weights file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with (
        torch.device("meta"),
        patch("torch.load", return_value={}),
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
        patch("os.path.exists", return_value=True),
    ):
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path="none"
        )


MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": make_stable_diffusion,
    "microsoft/phi-1_5": make_phi,
    "mistralai/Mistral-7B-Instruct-v0.2": make_mistral,
    "sentence-transformers/all-MiniLM-L6-v2": make_minilm,
    "torchgeo/resnet18_sentinel2_rgb_moco": make_resnet18,
    "vision": make_vision,
}


# Configurations.


def new_encoder(config: dict[str, Any]) -> torch.nn.Module:
    """An encoder of transformers, of the kind that its configuration names."""
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(**config))


def new_language_model(config: dict[str, Any]) -> torch.nn.Module:
    """A causal language model of transformers, of the kind that its configuration names."""
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def cut_network(
    folder: Path, make: Any, dtype: torch.dtype, layers: int | None
) -> tuple[int, torch.nn.Module]:
    """Cut the layers in a folder's configuration and make its network on the meta device.

    Returns:
        The bytes of its weights with all layers, and the network with at most `layers`.
    """
    file = folder / "config.json"
    full = on_meta(make, json.loads(file.read_text(encoding="utf-8")))
    return weight_bytes(full, dtype), on_meta(make, cut_layers(file, layers))


def cut_layers(file: Path, layers: int | None) -> dict[str, Any]:
    """Cut the layers in a configuration file; returns what it then holds."""

    def cut(values: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for key, value in values.items():
            if isinstance(value, dict):
                result[key] = cut(value)
            elif key in LAYER_KEYS and layers is not None:
                result[key] = min(value, layers)
            else:
                result[key] = value
        return result

    config = cut(json.loads(file.read_text(encoding="utf-8")))
    write_json(file, config)
    return config


def on_meta(make: Any, config: dict[str, Any]) -> torch.nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return make(config)


def weight_bytes(network: torch.nn.Module, dtype: torch.dtype) -> int:
    return sum(tensor.numel() for tensor in network.state_dict().values()) * dtype.itemsize


# Weights.


def random_weights(
    network: torch.nn.Module, dtype: torch.dtype = torch.float16
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and random tensor of each weight, of a size that keeps activations near 1."""
    modules = network.named_modules()
    tables = {f"{name}.weight" for name, part in modules if isinstance(part, torch.nn.Embedding)}
    for name, like in network.state_dict().items():
        if not like.is_floating_point():
            yield name, torch.zeros(like.shape, dtype=like.dtype)
        elif like.dim() < 2:
            is_one = name.endswith(("weight", "running_var", "lambda1", "logit_scale"))
            yield name, torch.full(like.shape, float(is_one), dtype=dtype)
        else:
            fan_in = 2500 if name in tables else math.prod(like.shape[1:])  # tables: std 0.02
            yield name, torch.empty(like.shape, dtype=dtype).normal_(0, fan_in**-0.5)


def answering_weights(
    tensors: Tensors, sentences: list[int], begin: int, line: int, end: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of a decoder that answers with lines of one sentence each.

    What its blocks compute is multiplied by zero. What is left is a table of what follows what: the
    last layer's row of a token is the sum of the embeddings that it may follow.

    Args:
        tensors: random weights of the decoder.
        sentences: the tokens that are whole sentences.
        begin: the last token of a request.
        line: the token of a new line.
        end: the token that ends an answer.
    """
    embedded = torch.empty(0)
    for name, tensor in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor = torch.zeros_like(tensor)
        elif name.endswith("embed_tokens.weight"):
            embedded = tensor
        elif name == "lm_head.weight":
            unit = torch.nn.functional.normalize(embedded.float(), dim=1)
            scale = unit.shape[1] ** -0.5  # the final norm's output has the length sqrt(width)
            table = torch.zeros(tensor.shape)
            table[sentences] = 30 * scale * (unit[begin] + unit[line])
            table[line] = 30 * scale * unit[sentences].sum(0)
            # An answer has some twelve lines, at temperature 0.7.
            table[end] = (30 + 0.7 * math.log(len(sentences) / 12)) * scale * unit[line]
            tensor = table.to(embedded.dtype)
        yield name, tensor


def write_shards(folder: Path, stem: str, tensors: Tensors, limit: int = SHARD_BYTES) -> None:
    """Write `<stem>.safetensors`, or numbered shards of at most `limit` bytes with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    total = 0

    def write_held() -> None:
        file = folder / f"part{len(shards) + 1}"
        save_file(held, file, {"format": "pt"})
        follow_umask(file)
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > limit:
            write_held()
        held[name] = tensor.contiguous()
        total += tensor.nbytes
    write_held()
    if len(shards) == 1:
        (folder / "part1").rename(folder / f"{stem}.safetensors")
        return
    shard_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part{number}").rename(folder / file)
        shard_of |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": shard_of}
    write_json(folder / f"{stem}.safetensors.index.json", index)
