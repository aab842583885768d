"""Fine-tuning the language model: the end token is learned, perplexity is what its definition says, a killed run goes on."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.common.rng import rng
from stages.text import perplexity, tokens

EOS = 0


def tiny(vocabulary: int = 32):
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


def test_end_is_learnt_and_padding_is_not():
    batch = tokens.collate([{"input_ids": [5, 6, EOS]}, {"input_ids": [7, EOS]}], pad=EOS)
    assert batch["labels"].tolist() == [[5, 6, EOS], [7, EOS, tokens.IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_packing_loses_nothing_and_fills():
    texts = [[n] * (5 + n) + [EOS] for n in range(1, 12)]
    rows = tokens.pack(texts, 16, rng(0, "pack"))
    assert all(len(row) == 16 for row in rows[:-1])
    assert rows == tokens.pack(texts, 16, rng(0, "pack"))
    assert sum(row.count(EOS) for row in rows) >= len(texts) - 1
    assert [token for row in tokens.separate(texts, 4) for token in row] == [
        token for text in texts for token in text
    ]


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    import torch

    model = tiny(32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
    documents = [[[3, 4, 5, 6, 7, EOS], [8, 9, EOS]], [[1] * 40 + [EOS]]]
    losses = perplexity.document_losses(model, documents, 16)
    assert perplexity.perplexity(losses) == pytest.approx(32, rel=1e-5)
    # The first token of each window and the end tokens are not scored: 9 - 1 - 2, and 41 - 3 - 1.
    assert losses[:, 1].tolist() == [6, 37]


def test_interval_covers_and_shrinks():
    generator, hits = np.random.default_rng(0), 0
    for trial in range(100):
        counts = np.full(20, 1000.0)
        losses = np.stack([counts * generator.normal(4, 0.2, 20), counts], axis=1)
        low, high = perplexity.interval(losses, rng(trial))
        hits += low <= np.exp(4) <= high
    assert 85 <= hits <= 99
    same = np.stack([np.full(5, 400.0), np.full(5, 100.0)], axis=1)
    assert perplexity.interval(same, rng(0)) == pytest.approx((np.exp(4), np.exp(4)))
    assert perplexity.interval(same, rng(0), same) == pytest.approx((1, 1))


def settings(**changed):
    from stages.params import FinetuneLLM

    return FinetuneLLM(
        **{
            **dict(
                quantization="none",
                rank=8,
                alpha=16,
                dropout=0.0,
                lr=3e-2,
                target_modules=["q_proj", "fc1", "fc2"],
                weight_decay=0.0,
                batch_size=4,
                steps=60,
                context=16,
                packing=False,
            ),
            **changed,
        }
    )


def test_tuned_model_stops_and_a_killed_run_goes_on(tmp_path):
    import torch

    from stages.text import lora

    p, rows = settings(), [[5, 6, 7, 8, EOS], [9, 10, 11, EOS]] * 4
    model = lora.adapt(tiny(), p)
    lora.train(model, rows, EOS, p, 0, tmp_path / "whole")
    model.eval()
    answer = model.generate(
        input_ids=torch.tensor([[5, 6]]),
        attention_mask=torch.ones(1, 2, dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=EOS,
    )
    assert answer[0].tolist() == [5, 6, 7, 8, EOS]

    # Killed after 30 of 60 steps: the checkpoint of step 30 is there, later ones are not.
    half = lora.adapt(tiny(), p)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    left = sorted(
        (tmp_path / "killed").glob("checkpoint-*"),
        key=lambda path: int(path.name.partition("-")[2]),
    )
    shutil.rmtree(left[-1])
    lora.train(half, rows, EOS, p, 0, tmp_path / "killed")
    for a, b in zip(model.state_dict().values(), half.state_dict().values()):
        assert torch.equal(a, b)


def test_wrong_target_module_is_named():
    from stages.text import lora

    for name in (
        "query",
        "self_attn",
        "input_layernorm",
    ):  # none at all; a block of layers; no matrix
        with pytest.raises(
            SystemExit,
            match=f"finetune_llm.target_modules: the base model has no {name} to adapt; it has .*fc1",
        ):
            lora.adapt(tiny(), settings(target_modules=[name]))


def test_four_bit_on_this_machine(tmp_path):
    """nf4: an evaluation between training steps must not break them (bitsandbytes on CPUs with AVX512-BF16)."""
    from stages.text import lora

    tiny(64).save_pretrained(tmp_path / "base")
    p = settings(quantization="nf4", steps=3)
    base = lora.load_base(tmp_path / "base", "nf4")
    before = perplexity.document_losses(base, [[[5, 6, 7, EOS]]], 16)
    model = lora.adapt(base, p)
    log = lora.train(model, [[5, 6, 7, EOS]] * 4, EOS, p, 0, tmp_path / "run")
    after = perplexity.document_losses(model, [[[5, 6, 7, EOS]]], 16)
    assert len(log) == 3 and np.isfinite(before).all() and np.isfinite(after).all()


@pytest.fixture
def finetune(tmp_path, monkeypatch):
    """finetune(papers, text, **params): the stage in a folder of its own that has an older run's outputs.

    -> the line that it ends in, the outputs being as they were; empty where it ends well.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from stages import finetune_llm

    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    for folder in ("models/base", "models/llm", "metrics", "data"):
        Path(folder).mkdir(parents=True)
    shutil.copytree(root / "stages/embedded/models/language", "models/base/language")
    old = [Path("models/llm/adapter_model.safetensors"), Path("metrics/llm.json")]

    def run(
        papers: list[tuple[str, str]] = (("a", "train"), *((name, "test") for name in "bcde")),
        text: str = "A green field.",
        **changed,
    ) -> str:
        values = yaml.safe_load((root / "params.yaml").read_text())
        values["finetune_llm"] |= {"context": 16, "steps": 3} | changed
        Path("params.yaml").write_text(yaml.safe_dump(values))
        rows = [{"paper": name, "chunk": 0, "text": text, "split": split} for name, split in papers]
        pq.write_table(pa.Table.from_pylist(rows), "data/chunks.parquet")
        for path in old:
            path.write_text("of an older run")
        try:
            finetune_llm.main()
        except SystemExit as end:
            assert all(path.read_text() == "of an older run" for path in old)
            return str(end)
        return ""

    return run


@pytest.mark.parametrize(
    "papers, message",
    [
        (
            [("a", "train"), ("b", "test"), ("c", "test")],
            "scrape.min_test_papers: 2 held-out papers are left",
        ),
        (
            [("a", "train"), *((name, "test") for name in "abcde")],
            "data/chunks.parquet: a is in the training and in the held-out text",
        ),
        ([(name, "test") for name in "abcde"], "data/chunks.parquet: no training text"),
    ],
)
def test_a_perplexity_without_footing_is_refused(finetune, papers, message):
    assert finetune(papers).startswith(f"error: {message}")


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"lr": 1.0e30},
            "finetune_llm.lr: the loss is no number by step 2. Try a lower lr than 1e+30",
        ),
        (
            {"lr": 1.0e30, "steps": 1},
            "finetune_llm.lr: the tuned model's perplexity is no number. Try a lower lr than 1e+30",
        ),
        (
            {"context": 257},
            "finetune_llm.context: 257 tokens are more than the 256 that models/base/language can read",
        ),
    ],
)
def test_a_run_that_leads_nowhere_replaces_nothing(finetune, changed, message):
    assert finetune(**changed) == f"error: {message}"


def test_a_base_model_without_all_its_weights_is_refused(finetune):
    """By whatever loads it: the fine-tuning, the writer of prompts, the export."""
    from safetensors.torch import load_file, save_file

    from stages.text.writers import Domain
    from tools import export

    file = Path("models/base/language/model.safetensors")
    weights = load_file(file)
    del weights["model.layers.1.mlp.fc1.weight"]
    save_file(weights, file, {"format": "pt"})
    line = "error: models/base/language: its weights lack model.layers.1.mlp.fc1.weight"
    assert finetune().startswith(line)
    with pytest.raises(SystemExit, match=line):
        Domain(file.parent, Path("models/llm"), "zero_shot", 0)
    Path("models/llm/adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match=line):
        export.main("llm", "out")
    for value, line in (
        (float("nan"), "model.layers.1.mlp.fc1.weight holds values that are no numbers"),
        (3.0e38, "its perplexity is no number before any training"),
    ):
        weights["model.layers.1.mlp.fc1.weight"] = (
            weights["model.layers.0.mlp.fc1.weight"].float() * 0 + value
        )
        save_file(weights, file, {"format": "pt"})
        assert finetune().startswith(f"error: models/base/language: {line}")


def test_a_lone_token_is_not_learnt_from(finetune):
    """Cut into sequences of 16, a text of 17 tokens leaves one: alone in a batch, its loss would be no number."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("models/base/language")
    text = tokenizer.decode(tokenizer("A green field lies by a lake. " * 3)["input_ids"][:16])
    assert [len(row) for row in tokens.separate(tokens.encode([text], tokenizer), 16)] == [16, 1]
    assert finetune(text=text, packing=False, batch_size=1) == ""


def test_a_loss_beyond_all_numbers_is_an_infinite_perplexity():
    losses = np.array([[1e6, 10.0]])
    assert (
        perplexity.perplexity(losses)
        == perplexity.perplexity(losses * float("nan"))
        == float("inf")
    )
    assert not np.isfinite(perplexity.interval(losses, rng(0))).any()


def test_four_bit_without_bitsandbytes_is_one_line(tmp_path):
    """The library is kept from loading in a process of its own, as on a machine it does not support."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['bitsandbytes'] = None\nfrom pathlib import Path\nfrom stages.text import lora\n"
        "lora.load_base(Path('nowhere'), 'nf4')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: finetune_llm.quantization: nf4 needs bitsandbytes, which does not load"
    )


def test_export_merges_the_adapter(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.text import lora
    from tools import export

    shipped = Path(__file__).parents[1] / "stages/embedded/models/language"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match="^error: export: no adapter in models/llm; run `dvc repro finetune_llm`"
    ):
        export.main("llm", "out")
    Path("models/base").mkdir(parents=True)
    Path("models/base/language").symlink_to(shipped)
    model = lora.adapt(AutoModelForCausalLM.from_pretrained(shipped), settings())
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    model.eval().save_pretrained("models/llm")
    export.main("llm", "out")
    ids = AutoTokenizer.from_pretrained("out")("a green field", return_tensors="pt")
    with torch.no_grad():
        merged, adapted = (
            m(**ids).logits.float() for m in (AutoModelForCausalLM.from_pretrained("out"), model)
        )
        base = AutoModelForCausalLM.from_pretrained(shipped)(**ids).logits.float()
    assert torch.allclose(merged, adapted, atol=0.02) and not torch.allclose(merged, base, atol=0.2)
    with pytest.raises(SystemExit, match="^error: export: out exists and is not an empty folder"):
        export.main("llm", "out")


def test_shipped_model_speaks_english():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(__file__).parents[1] / "stages/embedded/models/language"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6 << 20
    text = "This function returns the number of items in the list."
    losses = [
        perplexity.document_losses(model, [tokens.encode([words], tokenizer)], 256)
        for words in (text, " ".join(reversed(text.split())))
    ]
    assert (
        perplexity.perplexity(losses[0])
        < perplexity.perplexity(losses[1])
        < 5 * tokenizer.vocab_size
    )
