"""Adapt the base language model to the corpus: LoRA, on a 4-bit base where asked (QLoRA, Dettmers et al. 2023).

    python -m stages.finetune_llm

reads   finetune_llm, seed; data/chunks.parquet, models/base/language
writes  models/llm/                   the LoRA adapter (safetensors)
        metrics/llm.json              perplexity of the tuned and the base model on identical tokens of held-out papers
        metrics/plots/llm_loss.csv    step, loss

A killed run goes on from its last checkpoint (scratch folder).
"""

import math
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq

from stages.common.artifacts import fingerprint, write_atomically, write_json
from stages.common.rng import rng
from stages.params import load
from stages.runtime import resume_cache
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text import lora, perplexity, tokens

BASE, CHUNKS, OUT = Path("models/base/language"), Path("data/chunks.parquet"), Path("models/llm")
DOCUMENTS = 4  # held-out papers at least: they are what the bootstrap draws


def main() -> None:
    params = load()
    p, seed = params.finetune_llm, params.seed
    from transformers import AutoTokenizer

    from stages.common.torch_setup import make_deterministic

    make_deterministic(seed)

    # Texts -> token ids, each text with its end token.
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    if tokenizer.eos_token_id is None:
        exit_with_error(f"{BASE}: its tokenizer has no end-of-sequence token")
    chunks = pq.read_table(CHUNKS).to_pylist()
    ids = tokens.encode([row["text"] for row in chunks if row["split"] == "train"], tokenizer)
    rows = (
        tokens.pack(ids, p.context, rng(seed, "pack"))
        if p.packing
        else tokens.separate(ids, p.context)
    )
    rows = [
        row for row in rows if len(row) > 1
    ]  # a batch of lone tokens, which nothing follows, would have no loss
    if not rows:
        exit_with_error(f"{CHUNKS}: no training text is in it")
    held = [
        list(group)
        for _, group in groupby(
            (row for row in chunks if row["split"] == "test"), lambda row: row["paper"]
        )
    ]
    documents = [tokens.encode([row["text"] for row in document], tokenizer) for document in held]
    if both := {row["paper"] for document in held for row in document} & {
        row["paper"] for row in chunks if row["split"] == "train"
    }:
        exit_with_error(f"{CHUNKS}: {sorted(both)[0]} is in the training and in the held-out text")
    if len(held) < DOCUMENTS:
        exit_with_error(
            f"scrape.min_test_papers: {len(held)} held-out papers are left after near duplicates went, fewer than the {DOCUMENTS} that "
            "an interval of the perplexity needs"
        )
    characters = sum(len(row["text"]) for document in held for row in document)

    # The base first: before LoRA wraps it.
    base = lora.load_base(BASE, p.quantization)
    limit = getattr(base.config, "max_position_embeddings", None) or math.inf
    if p.context > limit:
        exit_with_error(
            f"finetune_llm.context: {p.context} tokens are more than the {limit} that {BASE} can read"
        )
    before = perplexity.document_losses(base, documents, p.context)
    if not math.isfinite(perplexity.perplexity(before)):
        exit_with_error(
            f"{BASE}: its perplexity is no number before any training: its weights are too large for float32"
        )
    model = lora.adapt(base, p)
    trainable, total = (
        model.get_nb_trainable_parameters()
    )  # counts 4-bit weights as weights, not as bytes
    log(
        f"finetune_llm: {len(rows)} sequences, {sum(map(len, rows))} tokens; {trainable} trainable parameters"
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    mark = fingerprint(
        {**p.model_dump(), "seed": seed}, [CHUNKS, BASE, __file__, lora.__file__, tokens.__file__]
    )
    with resume_cache.resume_folder("finetune_llm", mark) as folder:
        loss_log = lora.train(model, rows, pad, p, seed, folder)
    after = perplexity.document_losses(model, documents, p.context)

    low, high = perplexity.interval(after, rng(seed, "bootstrap"))
    base_low, base_high = perplexity.interval(before, rng(seed, "bootstrap"))
    ratio_low, ratio_high = perplexity.interval(after, rng(seed, "bootstrap"), before)
    tail = [entry["loss"] for entry in loss_log[-max(1, len(loss_log) // 10) :]]
    metrics = {
        "perplexity": perplexity.perplexity(after),
        "perplexity_lo": low,
        "perplexity_hi": high,
        "perplexity_base": perplexity.perplexity(before),
        "perplexity_base_lo": base_low,
        "perplexity_base_hi": base_high,
        "perplexity_ratio": perplexity.perplexity(after) / perplexity.perplexity(before),
        "perplexity_ratio_lo": ratio_low,
        "perplexity_ratio_hi": ratio_high,
        "bits_per_character": after[:, 0].sum() / characters / 0.6931471805599453,
        "bits_per_character_base": before[:, 0].sum() / characters / 0.6931471805599453,
        "n": len(documents),
        "tokens": int(after[:, 1].sum()),
        "tokens_train": sum(map(len, ids)),
        "train_loss": sum(tail) / len(tail),
        "trainable_share": trainable / total,
    }
    if not all(map(math.isfinite, metrics.values())):
        exit_with_error(
            f"finetune_llm.lr: the tuned model's perplexity is no number. Try a lower lr than {p.lr}"
        )

    with atomic_folder(OUT) as part:
        model.peft_config["default"].target_modules = sorted(
            p.target_modules
        )  # a set is saved in no fixed order
        model.save_pretrained(part)
        (part / "README.md").unlink(missing_ok=True)  # peft's empty model card
    write_atomically(
        "metrics/plots/llm_loss.csv",
        ("step,loss\n" + "".join(f"{e['step']},{e['loss']}\n" for e in loss_log)).encode(),
    )
    write_json("metrics/llm.json", metrics)
    log(
        f"finetune_llm: perplexity {metrics['perplexity']:.1f} [{low:.1f}, {high:.1f}], base "
        f"{metrics['perplexity_base']:.1f} [{base_low:.1f}, {base_high:.1f}] on {len(documents)} held-out papers"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
