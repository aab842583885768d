"""Fine-tune the base language model on the corpus: LoRA, on a 4-bit base if asked (QLoRA).

    python -m stages.runtime.launch finetune_llm

reads   finetune_llm, seed; data/chunks.parquet, models/base/language
writes  models/llm/                   the LoRA adapter (safetensors)
        metrics/llm.json              perplexity of the tuned and the base model on the same tokens
                                      of held-out papers, if there are any
        metrics/plots/llm_loss.csv    step, loss

A killed run resumes from its last checkpoint, in the resume cache.
QLoRA: Dettmers et al. 2023.
"""

import math
from inspect import getfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.common.artifacts import fingerprint, write_json
from stages.common.csv_files import write_csv
from stages.common.rng import rng
from stages.params import FinetuneLLM, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.pretrained import check_vocabulary, load_tokenizer, max_context
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.runtime.resume_cache import resume_folder
from stages.text import lora, tokens
from stages.text.perplexity import (
    MIN_DOCUMENTS,
    count_text_tokens,
    document_losses,
    perplexity,
    perplexity_metrics,
)

BASE = Path("models/base/language")
CHUNKS = Path("data/chunks.parquet")
OUT = Path("models/llm")


def main() -> None:
    params = load()
    config = params.finetune_llm
    seed = params.seed
    from stages.common.torch_setup import cpu_threads, make_deterministic

    make_deterministic(seed)

    # Tokenize the chunks.
    tokenizer = load_tokenizer(BASE)
    if tokenizer.eos_token_id is None:
        exit_with_error(f"{BASE}: its tokenizer has no end-of-sequence token")
    train_texts, documents = read_chunks()
    train_ids = tokens.encode(train_texts, tokenizer)
    sequences = make_sequences(train_ids, config, seed)
    document_ids = [tokens.encode(texts, tokenizer) for texts in documents]
    start = tokens.start_ids(tokenizer)

    # Load the base model, wrapped in adapters that change nothing until they are trained.
    base = lora.load_base(BASE, config.quantization)
    check_vocabulary(BASE, tokenizer, base)
    refuse_long_context(base, config.context)
    model = lora.add_lora(base, config)
    trainable, total = model.get_nb_trainable_parameters()  # a 4-bit weight counts as one
    log(
        f"finetune_llm: {len(sequences)} sequences, {sum(map(len, sequences))} tokens; "
        f"{trainable} trainable parameters"
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with resume_folder("finetune_llm", run_fingerprint(config, seed)) as folder:
        # Measure, fine-tune, and measure again.
        base_losses = document_losses(
            model, document_ids, config.context, start, folder / "base_losses.json"
        )  # [documents, 2]
        if documents:
            documents, document_ids, base_losses = leave_out_unscored(
                documents, document_ids, base_losses
            )
            refuse_infinite_perplexity(base_losses)
        loss_log = lora.train(model, sequences, pad, config, seed, folder)
        losses = document_losses(
            model, document_ids, config.context, start, folder / "losses.json"
        )  # [documents, 2]

        counts = count_text_tokens(document_ids, start)
        metrics = perplexity_metrics(losses, base_losses, documents, counts) if documents else {}
        metrics |= {
            "tokens_train": sum(map(len, train_ids)),
            "train_loss": mean_of_last_tenth([entry["loss"] for entry in loss_log]),
            "trainable_share": trainable / total,
            "cpu_threads": cpu_threads(model.device),
        }
        if not all(map(math.isfinite, metrics.values())):
            exit_with_error(
                "finetune_llm.lr: the tuned model's perplexity is NaN or inf; try a lower lr than "
                f"{config.lr}"
            )
        save(model, config, loss_log, metrics)


def read_chunks() -> tuple[list[str], list[list[str]]]:
    """Return the training texts, and the texts of each held-out paper.

    Raises:
        SystemExit: a paper is in both splits.
    """
    chunks = pq.read_table(CHUNKS).to_pylist()
    train = [row for row in chunks if row["split"] == "train"]
    test = [row for row in chunks if row["split"] == "test"]
    in_both = {row["paper"] for row in train} & {row["paper"] for row in test}
    if in_both:
        exit_with_error(f"{CHUNKS}: {min(in_both)} is in the training and in the held-out text")
    documents = [
        [row["text"] for row in rows] for _, rows in groupby(test, lambda row: row["paper"])
    ]
    if len(documents) < MIN_DOCUMENTS:
        left_out = "its interval" if documents else "perplexity"
        log(
            f"finetune_llm: {len(documents)} held-out papers without near-duplicates; {left_out} "
            f"is left out (scrape.min_test_papers: an interval needs {MIN_DOCUMENTS})"
        )
    return [row["text"] for row in train], documents


def leave_out_unscored(
    documents: list[list[str]], document_ids: list[list[np.ndarray]], losses: np.ndarray
) -> tuple[list[list[str]], list[list[np.ndarray]], np.ndarray]:
    """Return the held-out papers that have a scored token, their token ids and their losses.

    Args:
        documents: the texts of each paper.
        document_ids: the token ids of each text.
        losses: of the base model, [documents, 2].

    Raises:
        SystemExit: no paper has one.
    """
    scored = np.flatnonzero(losses[:, 1])
    if len(scored) < len(documents):
        log(
            f"finetune_llm: {len(documents) - len(scored)} of {len(documents)} held-out papers "
            "left out: of a single token, which nothing predicts"
        )
    if not len(scored):
        exit_with_error(f"{CHUNKS}: no held-out paper has a token to score")
    return [documents[i] for i in scored], [document_ids[i] for i in scored], losses[scored]


def refuse_infinite_perplexity(base_losses: np.ndarray) -> None:
    """Exit with an error where the base model's perplexity is NaN or inf.

    Args:
        base_losses: [documents, 2].
    """
    if not math.isfinite(perplexity(base_losses)):
        exit_with_error(
            f"{BASE}: its perplexity is NaN or inf before any training: its weights are too large "
            "for float32"
        )


def make_sequences(train_ids: list[np.ndarray], config: FinetuneLLM, seed: int) -> list[np.ndarray]:
    """Return the training sequences of at most `context` tokens, packed if `packing` is true."""
    if config.packing:
        sequences = tokens.pack(train_ids, config.context, rng(seed, "pack"))
    else:
        sequences = tokens.split_long_texts(train_ids, config.context)
    # Nothing follows the token of a sequence of one: a batch of such sequences has no loss.
    sequences = [ids for ids in sequences if len(ids) > 1]
    if not sequences:
        exit_with_error(f"{CHUNKS}: no training text")
    return sequences


def refuse_long_context(base: Any, context: int) -> None:
    """Exit with an error where the base model has fewer positions than `context`."""
    positions = max_context(base)
    if context > positions:
        exit_with_error(
            f"finetune_llm.context: {context} tokens are more than the {positions} that {BASE} "
            "can read"
        )


def run_fingerprint(config: FinetuneLLM, seed: int) -> str:
    """Return the fingerprint of everything that a checkpoint depends on."""
    code = [__file__, lora.__file__, tokens.__file__, getfile(document_losses)]
    return fingerprint({**config.model_dump(), "seed": seed}, [CHUNKS, BASE, *code])


def mean_of_last_tenth(values: list[float]) -> float:
    """Return the mean of the last tenth of the values, of one value at least."""
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last)


def save(model: Any, config: FinetuneLLM, loss_log: list[dict], metrics: dict[str, float]) -> None:
    """Write the adapter, the training losses and the metrics."""
    with atomic_folder(OUT) as folder:
        # peft keeps the names in a set, which would be saved in another order each time.
        model.peft_config["default"].target_modules = sorted(config.target_modules)
        model.save_pretrained(folder)
        follow_umask(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's model card without content
    write_csv("metrics/plots/llm_loss.csv", loss_log, ["step", "loss"])
    write_json("metrics/llm.json", metrics)
    described = []
    for key, name in (("perplexity", "perplexity"), ("perplexity_base", "base")):
        text = f"{name} {metrics[key]:.1f}" if key in metrics else f"{name} not measured"
        if f"{key}_lo" in metrics:
            text += f" [{metrics[f'{key}_lo']:.1f}, {metrics[f'{key}_hi']:.1f}]"
        described.append(text)
    log(f"finetune_llm: {', '.join(described)} on {metrics.get('n', 0)} held-out papers")


if __name__ == "__main__":
    run_stage(main, __doc__)
