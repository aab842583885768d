"""Fine-tuning the language model: end-of-sequence tokens, perplexity, resumed runs, bad input."""

import dataclasses
import os
import re
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from stages.common.artifacts import read_json
from stages.common.rng import rng
from stages.runtime.pretrained import load_pretrained, max_context
from stages.text import perplexity, tokens

EOS = 0
ROOT = Path(__file__).parents[1]
SHIPPED_MODEL = ROOT / "stages/embedded/models/language"


def tiny_phi(vocabulary: int = 32):
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return PhiForCausalLM(
        PhiConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=EOS,
            eos_token_id=EOS,
        )
    )


def test_end_token_is_learned_and_padding_is_not():
    batch = tokens.collate([{"input_ids": [5, 6, EOS]}, {"input_ids": [7, EOS]}], pad=EOS)
    assert batch["labels"].tolist() == [[5, 6, EOS], [7, EOS, tokens.IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_packed_sequences_are_full_and_keep_the_tokens():
    texts = [np.array([n] * (5 + n) + [EOS], np.int32) for n in range(1, 12)]
    packed = tokens.pack(texts, 16, rng(0, "pack"))
    assert all(len(sequence) == 16 for sequence in packed[:-1])
    again = tokens.pack(texts, 16, rng(0, "pack"))
    assert np.array_equal(np.concatenate(packed), np.concatenate(again))
    assert sum((sequence == EOS).sum() for sequence in packed) >= len(texts) - 1
    split = tokens.split_long_texts(texts, 4)
    assert np.array_equal(np.concatenate(split), np.concatenate(texts))
    assert tokens.pack([], 16, rng(0, "pack")) == []


def test_perplexity_of_a_uniform_model_is_its_number_of_words():
    import torch

    model = tiny_phi(32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[EOS] = -40  # a loss of 40 where an end token is scored
    documents = [[[3, 4, 5, 6, 7, EOS], [8, 9, EOS]], [[1] * 40 + [EOS]]]
    losses = perplexity.document_losses(model, documents, 16)
    assert perplexity.perplexity(losses) == pytest.approx(31, rel=1e-5)
    # The first token of each window and the end tokens are not scored: 9 - 1 - 2, and 41 - 3 - 1.
    assert losses[:, 1].tolist() == [6, 37]


def test_the_papers_that_a_killed_run_has_scored_are_not_scored_again(
    tmp_path, monkeypatch, capsys
):
    documents = [[[3, 4, 5, EOS]], [[6, 7, EOS]], [[8, 9, 3, EOS]]]
    model = tiny_phi()
    whole = perplexity.document_losses(model, documents, 16)
    monkeypatch.setattr(perplexity, "SAVE_SECONDS", 0)
    scored = []
    score = perplexity._score_document

    def score_until_killed(model, texts, *options):
        if len(scored) == 2:
            scored.append("killed")
            raise KeyboardInterrupt
        scored.append(texts)
        return score(model, texts, *options)

    monkeypatch.setattr(perplexity, "_score_document", score_until_killed)
    with pytest.raises(KeyboardInterrupt):
        perplexity.document_losses(model, documents, 16, (), tmp_path / "losses.json")
    resumed = perplexity.document_losses(model, documents, 16, (), tmp_path / "losses.json")
    assert np.array_equal(resumed, whole)
    assert scored == [documents[0], documents[1], "killed", documents[2]]
    (tmp_path / "losses.json").write_text("[[1.5, 2")
    again = perplexity.document_losses(model, documents, 16, (), tmp_path / "losses.json")
    assert np.array_equal(again, whole) and "losses.json: damaged" in capsys.readouterr().err


def test_a_tokenizer_that_begins_texts_with_a_token_does_so_in_training_and_scoring(monkeypatch):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["</s>", "<s>", "a", "lake"])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "a"}
    plain = PreTrainedTokenizerFast(tokenizer_object=fast, **names)
    (encoded,) = tokens.encode(["a lake"], plain)
    assert encoded.tolist() == [2, 3, 0] and tokens.start_ids(plain) == []
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **names)
    assert tokens.start_ids(tokenizer) == [1]
    monkeypatch.setattr(tokens, "BATCH", 2)
    encoded = tokens.encode(["a lake", "a", "lake"], tokenizer)
    assert [ids.tolist() for ids in encoded] == [[1, 2, 3, 0], [1, 2, 0], [1, 3, 0]]
    assert {ids.dtype for ids in encoded} == {np.dtype(np.int32)}

    # All tokens but these are scored, each behind the start or another one: 40 and 2.
    seen = []
    model = tiny_phi(32)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"][0]), with_kwargs=True
    )
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
    documents = [[[1] + [5] * 40 + [EOS]], [[1, 5, 6, EOS]]]
    losses = perplexity.document_losses(model, documents, 16, [1])
    assert losses[:, 1].tolist() == [40, 2]
    assert all(len(window) <= 16 and window[0] == 1 for window in seen)


def test_the_batch_does_not_grow_with_the_number_of_gpus(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    from stages.params import load
    from stages.text import lora

    config = load(REPOSITORY / "params.yaml").finetune_llm
    monkeypatch.setattr(TrainingArguments, "_n_gpu", 4, raising=False)  # of a process that sees 4
    assert lora._training_arguments(config, 0, tmp_path).train_batch_size == config.batch_size


def test_params_and_seed_reach_the_training(tmp_path):
    from stages.text import lora

    config = make_config(dropout=0.2, weight_decay=0.3)
    arguments = lora._training_arguments(config, 7, tmp_path)
    assert (arguments.seed, arguments.data_seed, arguments.weight_decay) == (7, 7, 0.3)
    assert lora.add_lora(tiny_phi(), config).peft_config["default"].lora_dropout == 0.2


def test_texts_are_packed_in_an_order_of_the_seed():
    from stages import finetune_llm

    texts = [np.full(6, n, np.int32) for n in range(1, 12)]
    config = make_config(packing=True)
    first, again, other = (
        np.concatenate(finetune_llm.make_sequences(texts, config, seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_run_of_other_params_seed_text_or_base_has_its_own_checkpoints(tmp_path, monkeypatch):
    from stages import finetune_llm

    monkeypatch.chdir(tmp_path)
    finetune_llm.BASE.mkdir(parents=True)
    finetune_llm.CHUNKS.parent.mkdir()
    inputs = [finetune_llm.BASE / "model.safetensors", finetune_llm.CHUNKS]
    for file in inputs:
        file.write_text("")
    runs = [finetune_llm.run_fingerprint(make_config(), 0)]
    runs.append(finetune_llm.run_fingerprint(make_config(lr=1e-2), 0))
    runs.append(finetune_llm.run_fingerprint(make_config(), 1))
    for file in inputs:
        file.write_text("other")
        runs.append(finetune_llm.run_fingerprint(make_config(), 0))
    assert len(set(runs)) == 5


def test_interval_of_equally_long_documents_is_students():
    log_perplexity = np.array([4.0, 4.2, 4.1, 4.5])
    losses = np.stack([100 * log_perplexity, np.full(4, 100.0)], axis=1)
    margin = 3.182446 * log_perplexity.std(ddof=1) / 2  # Student's t with 3 degrees of freedom
    expected = np.exp([4.2 - margin, 4.2 + margin])
    assert perplexity.perplexity_interval(losses) == pytest.approx(expected, rel=1e-6)
    base = losses + np.array([[50.0, 0.0]])  # each document is worse by the same factor
    assert perplexity.perplexity_interval(losses, base) is None
    base[0, 0] += 10
    low, high = perplexity.perplexity_interval(losses, base)
    assert low < np.exp(-0.525) < high < 1


def test_interval_of_uneven_documents_counts_their_tokens():
    """The weights w of 4 documents have the sum of squares 0.52; t is 3.182."""
    weights, log_perplexity = np.array([0.7, 0.1, 0.1, 0.1]), np.array([4.0, 4.4, 3.7, 4.2])
    mean = weights @ log_perplexity
    variance = weights @ (log_perplexity - mean) ** 2 / (1 - 0.52) * 0.52
    losses = np.stack([1000 * weights * log_perplexity, 1000 * weights], axis=1)
    expected = np.exp(mean + np.array([-1, 1]) * 3.182446 * variance**0.5)
    assert perplexity.perplexity_interval(losses) == pytest.approx(expected, rel=1e-6)


def test_documents_that_do_not_differ_have_no_interval():
    same = np.stack([np.full(5, 400.0), np.full(5, 100.0)], axis=1)
    assert perplexity.perplexity_interval(same) is None
    assert perplexity.perplexity_interval(same[:1]) is None


def make_config(**changed):
    """The section finetune_llm, with some values changed."""
    from stages.params import FinetuneLLM

    values = {
        "quantization": "none",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.0,
        "lr": 3e-2,
        "target_modules": ["q_proj", "fc1", "fc2"],
        "weight_decay": 0.0,
        "batch_size": 4,
        "steps": 60,
        "context": 16,
        "packing": False,
    }
    return FinetuneLLM(**values | changed)


def test_tuned_model_stops_and_a_killed_run_resumes(tmp_path, capsys):
    import torch

    from stages.text import lora

    config = make_config(steps=110)  # logged every second step, saved every tenth
    sequences = [[5, 6, 7, 8, EOS], [9, 10, 11, EOS]] * 4
    model = lora.add_lora(tiny_phi(), config)
    loss_log = lora.train(model, sequences, EOS, config, 0, tmp_path / "whole")
    model.eval()
    generated = model.generate(
        input_ids=torch.tensor([[5, 6]]),
        attention_mask=torch.ones(1, 2, dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=EOS,
    )
    assert generated[0].tolist() == [5, 6, 7, 8, EOS]

    # As after a kill while the last checkpoint was written: it is incomplete.
    resumed = lora.add_lora(tiny_phi(), config)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    checkpoints = (tmp_path / "killed").glob("checkpoint-*")
    last = max(checkpoints, key=lambda path: int(path.name.partition("-")[2]))
    (last / "trainer_state.json").unlink()
    assert re.search(r"finetune_llm: +0%.* 0/110 .*110/110 .*loss=", capsys.readouterr().err, re.S)
    assert lora.train(resumed, sequences, EOS, config, 0, tmp_path / "killed") == loss_log
    captured = capsys.readouterr()
    assert re.search(r"finetune_llm: +91%.* 100/110 .*110/110 .*loss=", captured.err, re.S)
    assert captured.out == ""
    # As another run would take it: the last checkpoint is there. The steps end inside an epoch.
    finished = lora.add_lora(tiny_phi(), config)
    assert lora.train(finished, sequences, EOS, config, 0, tmp_path / "whole") == loss_log
    for weights in zip(*(each.state_dict().values() for each in (model, resumed, finished))):
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_the_tuned_model_is_measured_in_the_arithmetic_of_the_base(tmp_path, monkeypatch):
    """On a GPU `Trainer` computes in bfloat16; without a learning rate it changes no weight."""
    from stages.text import lora

    arguments_of = lora._training_arguments

    def in_bfloat16(*given):
        return dataclasses.replace(arguments_of(*given), bf16=True)

    monkeypatch.setattr(lora, "_training_arguments", in_bfloat16)
    config = make_config(steps=2).model_copy(update={"lr": 0.0})
    model = lora.add_lora(tiny_phi(), config)
    documents = [[[5, 6, 7, 8, 9, 10, EOS]]]
    before = perplexity.document_losses(model, documents, 16)
    lora.train(model, [[5, 6, 7, 8, EOS]] * 4, EOS, config, 0, tmp_path)
    assert np.array_equal(perplexity.document_losses(model, documents, 16), before)


def train_and_save(folder: Path) -> None:
    """Train a tiny model, or resume; then write its adapter."""
    from stages.text import lora

    config = make_config(steps=8)  # a checkpoint after each step
    model = lora.add_lora(tiny_phi(), config)
    lora.train(model, [[5, 6, 7, 8, EOS], [9, 10, 11, EOS]] * 4, EOS, config, 0, folder)
    model.save_pretrained(folder / "adapter")


def keep_three(folder: Path) -> None:
    """Write three more checkpoints as `Trainer` does, file by file, and keep them."""
    import torch

    from stages.text import lora

    _, state = lora.last_checkpoint(folder)
    first = state.global_step + 1 if state else 1
    for step in range(first, first + 3):
        written = folder / f"unfinished/checkpoint-{step}"
        shutil.rmtree(written.parent, ignore_errors=True)
        written.mkdir(parents=True)
        for name in ("adapter_model", "optimizer.pt", "rng_state.pth"):
            torch.save(torch.full((5_000,), step), written / name)
        (written / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        lora.keep_checkpoint(written, folder)


def kill_at_random_moments() -> None:
    """While checkpoints are written, once in each part of the time; then in a resumed training.

    Children are forked from this process, which has done what they would import and collect.
    """
    import gc
    import random

    import dvc.repo
    import dvclive
    import transformers.integrations
    from transformers import Trainer

    from stages.text import lora

    assert all((dvc.repo, dvclive, transformers.integrations, Trainer))
    lora.add_lora(tiny_phi(), make_config())
    gc.freeze()
    moments = random.Random(0)

    def start(function, folder: Path) -> int:
        pid = os.fork()
        if pid == 0:
            function(folder)
            os._exit(0)
        return pid

    def kill(pid: int, first: float, last: float) -> None:
        """Kill a process after a number of seconds between the two."""
        time.sleep(moments.uniform(first, last))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def measure(function, folder: Path) -> float:
        started = time.monotonic()
        assert os.waitpid(start(function, folder), 0)[1] == 0
        return time.monotonic() - started

    seconds = measure(keep_three, Path("kept"))
    part = seconds / 15
    for i in range(15):
        kill(start(keep_three, Path("kept")), i * part, (i + 1) * part)
        for checkpoint in lora.list_checkpoints(Path("kept")):
            assert lora.read_json(checkpoint / lora.DIGESTS) == lora.file_digests(checkpoint)
    _, state = lora.last_checkpoint(Path("kept"))
    assert state.global_step >= 3

    seconds = measure(train_and_save, Path("whole"))
    for _ in range(2):
        kill(start(train_and_save, Path("killed")), 0, seconds)
    measure(train_and_save, Path("killed"))
    assert read_adapter(Path("killed")) == read_adapter(Path("whole"))


def read_adapter(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def test_kills_leave_whole_checkpoints_and_damaged_ones_are_passed_over(tmp_path, capfd):
    import subprocess
    import sys

    from stages.text import lora

    code = "import test_text_language; test_text_language.kill_at_random_moments()"
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | paths, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]

    # Each file of the last checkpoint, cut in half and with one other byte.
    before, last = lora.list_checkpoints(tmp_path / "whole")
    for file in sorted(last.iterdir()):
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (content[:middle], b"", flipped):
            file.write_bytes(damaged)
            assert lora.last_checkpoint(tmp_path / "whole")[0] == str(before), file.name
        assert last.name in capfd.readouterr().err
        file.write_bytes(content)
    assert lora.last_checkpoint(tmp_path / "whole")[0] == str(last)
    # An empty one, as a kill left it when they were written in place.
    shutil.rmtree(last)
    last.mkdir()
    assert lora.last_checkpoint(tmp_path / "whole")[0] == str(before)
    # Two damaged ones: training starts again, and what it writes is kept.
    (before / "optimizer.pt").unlink()
    capfd.readouterr()
    assert lora.last_checkpoint(tmp_path / "whole")[0] is None
    assert f"{tmp_path / 'whole'} can be used" in capfd.readouterr().err
    keep_three(tmp_path / "whole")
    names = [path.name for path in lora.list_checkpoints(tmp_path / "whole")]
    assert names == ["checkpoint-2", "checkpoint-3"]


def test_a_disk_that_is_full_while_torch_saves_is_named(tmp_path, monkeypatch):
    import torch

    from stages.runtime.resume_cache import resume_folder

    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped, resume_folder("finetune_llm", "run"):
        torch.save(torch.zeros(50_000), "/dev/full")
    assert re.match(f"error: finetune_llm: .*{tmp_path}/finetune_llm/run", str(stopped.value))


# No such name; a block of layers; a layer without a matrix.
@pytest.mark.parametrize("name", ["query", "self_attn", "input_layernorm"])
def test_wrong_target_module_is_named(name):
    from stages.text import lora

    with pytest.raises(SystemExit, match=f"finetune_llm.target_modules: .*{name}.*fc1"):
        lora.add_lora(tiny_phi(), make_config(target_modules=[name]))


@pytest.mark.parametrize(
    "model_type, cause, refused",
    [
        ("opt", "shares its weight", ["lm_head", "embed_tokens"]),
        ("opt", "no embed_positions", ["embed_positions"]),
        ("gpt2", "shares its weight", ["wte"]),
        ("qwen3_moe", "no gate", ["gate"]),  # the router of the experts
    ],
)
def test_layers_offered_as_target_modules_can_be_adapted_and_merged(model_type, cause, refused):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.text import lora

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 40, "intermediate_size": 32, "word_embed_proj_dim": 32}
    sizes |= {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "ffn_dim": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    for name in refused:
        expected = f"^error: finetune_llm.target_modules: .*{cause}.*; names to choose from: "
        with pytest.raises(SystemExit, match=expected) as stopped:
            lora.add_lora(model, make_config(target_modules=[name]))
        offered = str(stopped.value).rpartition(": ")[2].split(", ")
        assert name not in offered
    adapted = lora.add_lora(model, make_config(target_modules=offered)).eval()
    for name, weights in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected_logits = adapted(ids).logits
        merged_logits = adapted.merge_and_unload()(ids).logits
    assert torch.allclose(merged_logits, expected_logits, atol=1e-4)


def test_of_a_model_that_reads_images_the_text_model_alone_is_adapted(tmp_path):
    from transformers import AutoModelForCausalLM, Gemma4Config, Gemma4ForConditionalGeneration

    from stages.text import lora

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    text = sizes | {
        "vocab_size": 40,
        "vocab_size_per_layer_input": 40,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"],
    }
    config = Gemma4Config(text_config=text, vision_config=sizes, audio_config=None)
    Gemma4ForConditionalGeneration(config).save_pretrained(tmp_path)
    gemma = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert gemma.get_submodule("model.vision_tower.encoder.layers.0.self_attn.q_proj.linear")
    with pytest.raises(SystemExit, match="finetune_llm.target_modules: .*no linear"):
        lora.add_lora(gemma, make_config(target_modules=["linear"]))
    model = lora.add_lora(gemma, make_config(target_modules=["q_proj"]))
    trained = [name for name, weights in model.named_parameters() if weights.requires_grad]
    assert len(trained) == 2 and all("language_model" in name for name in trained)


def test_four_bit_training_after_an_evaluation(tmp_path):
    """On CPUs with AVX512-BF16, bitsandbytes would repack the weights in the evaluation."""
    from stages.text import lora

    tiny_phi(64).save_pretrained(tmp_path / "base")
    config = make_config(quantization="nf4", steps=3)
    base = lora.load_base(tmp_path / "base", "nf4")
    before = perplexity.document_losses(base, [[[5, 6, 7, EOS]]], 16)
    model = lora.add_lora(base, config)
    log = lora.train(model, [[5, 6, 7, EOS]] * 4, EOS, config, 0, tmp_path / "run")
    after = perplexity.document_losses(model, [[[5, 6, 7, EOS]]], 16)
    assert len(log) == 3 and np.isfinite(before).all() and np.isfinite(after).all()


TRAIN_AND_TEST_PAPERS = [("a", "train"), *((name, "test") for name in "bcde")]


def run_finetune_llm(papers=TRAIN_AND_TEST_PAPERS, text="A green field.", **changed) -> str:
    """Run the stage over the outputs of an older run, with a text for each (paper, split).

    `text` is that of all papers, or {paper: text}.
    -> the error, after a check that the older outputs are unchanged; "" where the stage succeeds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from stages import finetune_llm

    values = yaml.safe_load((ROOT / "params/demo.yaml").read_text())
    values["finetune_llm"] |= {"context": 16, "steps": 3} | changed
    Path("params.yaml").write_text(yaml.safe_dump(values))
    rows = [
        {
            "paper": name,
            "chunk": 0,
            "text": text[name] if isinstance(text, dict) else text,
            "split": split,
        }
        for name, split in papers
    ]
    pq.write_table(pa.Table.from_pylist(rows), "data/chunks.parquet")
    outputs = [Path("models/llm/adapter_model.safetensors"), Path("metrics/llm.json")]
    for path in outputs:
        path.write_text("of an older run")
    try:
        finetune_llm.main()
    except SystemExit as error:
        assert all(path.read_text() == "of an older run" for path in outputs)
        return str(error)
    return ""


@pytest.fixture
def finetune(tmp_path, monkeypatch):
    """`run_finetune_llm`, in a folder with the embedded base model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    for folder in ("models/base", "models/llm", "metrics", "data"):
        Path(folder).mkdir(parents=True)
    shutil.copytree(SHIPPED_MODEL, "models/base/language")
    return run_finetune_llm


@pytest.mark.parametrize(
    "papers, error",
    [
        ([("a", "train"), *((name, "test") for name in "abcde")], "data/chunks.parquet: a "),
        ([(name, "test") for name in "abcde"], "data/chunks.parquet: .*training"),
    ],
)
def test_unusable_chunks_are_refused(finetune, papers, error):
    assert re.match(f"error: {error}", finetune(papers))


@pytest.mark.parametrize("held_out", ["", "b", "bcd"])
def test_few_held_out_papers_give_no_interval_and_none_no_perplexity(finetune, held_out):
    assert finetune([("a", "train"), *((name, "test") for name in held_out)]) == ""
    metrics = read_json("metrics/llm.json")
    assert "train_loss" in metrics and metrics.get("n", 0) == len(held_out)
    assert ("perplexity" in metrics) == bool(held_out) and "perplexity_lo" not in metrics


def test_the_training_loss_is_of_the_last_tenth():
    from stages import finetune_llm

    assert finetune_llm.mean_of_last_tenth(list(range(30))) == 28
    assert finetune_llm.mean_of_last_tenth([3, 5]) == 5


def test_bits_per_character_count_the_tokens_at_the_start_of_windows_too():
    """A model that gives each token 2 bits, and texts of 3 characters a token: 2 / 3, not less."""
    documents = [["abc" * 60], ["abc" * 8, "abc" * 5]]
    document_ids = [[np.array([1] * 60 + [EOS])], [np.array([1] * n + [EOS]) for n in (8, 5)]]
    assert perplexity.count_text_tokens(document_ids, []).tolist() == [60, 13]
    losses = np.array([[56, 56], [12, 12]]) * [2 * np.log(2), 1]
    metrics = perplexity.perplexity_metrics(losses, 2 * losses * [1, 0.5], documents, [60, 13])
    assert metrics["bits_per_character"] == pytest.approx(2 / 3)
    assert metrics["bits_per_character_base"] == pytest.approx(4 / 3)


def test_held_out_papers_without_a_scored_token_are_left_out_before_training(finetune, capsys):
    """Nothing precedes the only token of "error": it has no loss."""
    texts = {"a": 3 * "A green field. ", "b": "A lake.", "c": "e", "d": "e"}
    papers = [("a", "train"), *((name, "test") for name in "bcd")]
    assert finetune(papers, text=texts) == ""
    metrics = read_json("metrics/llm.json")
    assert metrics["n"] == 1 and 1 < metrics["perplexity"] < 1e5
    assert metrics["tokens_train"] == 20  # of the text, of which 16 are packed
    assert "2 of 3 held-out papers left out" in capsys.readouterr().err
    error = finetune([("a", "train"), ("c", "test")], text=texts)
    assert error == "error: data/chunks.parquet: no held-out paper has a token to score"


@pytest.mark.parametrize(
    "model_type, values, expected",
    [
        ("phi", {"max_position_embeddings": 64}, 64),
        ("gemma3", {"text_config": {"max_position_embeddings": 8192}}, 8192),
        ("mpt", {"max_seq_len": 256}, 256),
        ("mamba", {}, np.inf),
    ],
)
def test_the_context_of_a_language_model_is_read_under_each_name(model_type, values, expected):
    from types import SimpleNamespace

    from transformers import AutoConfig

    model = SimpleNamespace(config=AutoConfig.for_model(model_type, **values))
    assert max_context(model) == expected


@pytest.mark.parametrize(
    "changed, error",
    [
        ({"lr": 1.0e30}, "finetune_llm.lr: .*step 2.* 1e\\+30"),  # during training
        ({"lr": 1.0e30, "steps": 1}, "finetune_llm.lr: .*perplexity.* 1e\\+30"),  # after it
        ({"context": 257}, "finetune_llm.context: 257 .* 256 .*models/base/language"),
    ],
)
def test_failed_run_keeps_the_old_outputs(finetune, changed, error):
    assert re.match(f"error: {error}", finetune(**changed))


def test_base_model_with_missing_or_bad_weights_is_refused(finetune):
    """By all that load it: the fine-tuning, the domain writer, the export."""
    import torch
    from safetensors.torch import load_file, save_file

    from stages.params import load
    from stages.text.class_words import ClassLexicon, complete_words
    from stages.text.writers.domain import DomainWriter
    from tools import export

    file = Path("models/base/language/model.safetensors")
    name = "model.layers.1.mlp.fc1.weight"
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    error = f"^error: models/base/language: .*{name}"
    assert re.match(error, finetune())
    params = load()
    classes = ClassLexicon(complete_words(params.classes, params.prompt.words))
    with pytest.raises(SystemExit, match=error):
        DomainWriter(file.parent, Path("models/llm"), params.prompt, "zero_shot", classes, 0)
    Path("models/llm/adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match=error):
        export.export_language_model(Path("out"))
    weight = torch.zeros_like(weights["model.layers.0.mlp.fc1.weight"], dtype=torch.float32)
    save_file(weights | {name: weight + float("nan")}, file, {"format": "pt"})
    assert re.match(error, finetune())
    # Finite weights whose activations overflow.
    save_file(weights | {name: weight + 3.0e38}, file, {"format": "pt"})
    assert re.match("^error: models/base/language: .*perplexity", finetune())


def test_tokenizer_with_more_entries_than_the_embedding_is_refused(finetune):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("models/base/language")
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained("models/base/language")
    added = tokenizer.eos_token_id
    error = f"error: models/base/language: .*\\b{added}\\b.*im_end.*\\b{added} tokens"
    assert re.match(error, finetune())


def test_sequence_of_one_token_is_not_trained_on(finetune):
    """A text of 17 tokens is cut into 16 and 1; the loss of one token in a batch would be NaN."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("models/base/language")
    text = tokenizer.decode(tokenizer("A green field lies by a lake. " * 3)["input_ids"][:16])
    sequences = tokens.split_long_texts(tokens.encode([text], tokenizer), 16)
    assert [len(sequence) for sequence in sequences] == [16, 1]
    assert finetune(text=text, packing=False, batch_size=1) == ""


def test_perplexity_of_an_overflowing_or_nan_loss_is_infinite():
    losses = np.array([[1e6, 10.0]])
    assert perplexity.perplexity(losses) == float("inf")
    assert perplexity.perplexity(losses * float("nan")) == float("inf")
    several = np.array([[1e6, 10.0], [1e7, 10.0]])
    assert not np.isfinite(perplexity.perplexity_interval(several)).all()


def test_four_bit_without_bitsandbytes_is_refused():
    """A process in which the library cannot be imported stands for an unsupported machine."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "from pathlib import Path\n"
        "from stages.text import lora\n"
        "lora.load_base(Path('nowhere'), 'nf4')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.match("error: finetune_llm.quantization: nf4 .*bitsandbytes", done.stderr)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_bitsandbytes_quantized_is_loaded_in_its_own_dtype(tmp_path, dtype):
    import torch
    from transformers import BitsAndBytesConfig, PhiForCausalLM

    from stages.runtime.pretrained import load_pretrained

    tiny_phi(64).save_pretrained(tmp_path / "full")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    model = PhiForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=four_bit, dtype=dtype
    )
    model.save_pretrained(tmp_path / "quantized")
    for asked in (torch.float32, torch.bfloat16):  # on a CPU, on a GPU
        loaded = load_pretrained(PhiForCausalLM, tmp_path / "quantized", dtype=asked)
        assert loaded(torch.tensor([[5, 6]])).logits.dtype == getattr(torch, dtype)


def test_export_merges_the_adapter(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.text import lora
    from tools import export

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^error: export: .*finetune_llm.*dvc pull models/llm"):
        export.export_language_model(Path("out"))
    Path("models/base").mkdir(parents=True)
    Path("models/base/language").symlink_to(SHIPPED_MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = lora.add_lora(load_pretrained(AutoModelForCausalLM, SHIPPED_MODEL), make_config())
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    model.eval().save_pretrained("models/llm")
    export.export_language_model(Path("out"))
    ids = AutoTokenizer.from_pretrained("out")("a green field", return_tensors="pt")
    with torch.no_grad():
        adapted = model(**ids).logits.float()
        merged = AutoModelForCausalLM.from_pretrained("out")(**ids).logits.float()
        base = AutoModelForCausalLM.from_pretrained(SHIPPED_MODEL)(**ids).logits.float()
    assert torch.allclose(merged, adapted, atol=0.02)
    assert not torch.allclose(merged, base, atol=0.2)
    with pytest.raises(SystemExit, match="^error: export: out "):
        export.export_language_model(Path("out"))


def test_shipped_model_prefers_english_to_reversed_words():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    model = AutoModelForCausalLM.from_pretrained(SHIPPED_MODEL, dtype=torch.float32)
    assert sum(file.stat().st_size for file in SHIPPED_MODEL.iterdir()) < 6 << 20
    text = "This function returns the number of items in the list."
    english, reversed_words = (
        perplexity.perplexity(
            perplexity.document_losses(model, [tokens.encode([words], tokenizer)], 256)
        )
        for words in (text, " ".join(reversed(text.split())))
    )
    assert english < reversed_words < 5 * tokenizer.vocab_size
