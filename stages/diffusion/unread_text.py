"""What a text encoder doesn't see of texts: the end of long ones, and words without tokens.

The images of such texts look like any others: only the log tells.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.diffusion import models
from stages.runtime.progress import log

TOKENIZER_BATCH = 4096  # texts


def log_unread_prompts(stage: str, model: Path, prompts: Iterable[str]) -> None:
    """Log what a model doesn't read of the prompts that a stage is about to draw.

    Args:
        stage: its name.
        model: the folder of the diffusion model.
        prompts: repeated ones count once, empty ones don't.
    """
    tokenizer = models.load_tokenizer(model)
    positions = models.read_config(model, "text_encoder").get("max_position_embeddings", 77)
    # `models.context_length`, without the encoder's weights.
    length = min(tokenizer.model_max_length, positions)
    distinct = pa.array([prompt for prompt in dict.fromkeys(prompts) if prompt], pa.string())
    find_truncated(stage, "prompts", distinct, tokenizer, length)
    log_dropped_words(stage, "prompts", distinct, tokenizer)


def text_batches(texts: pa.Array) -> Iterator[list[str]]:
    """The texts as Python strings, a batch at a time: all of them could fill the memory."""
    for begin in range(0, len(texts), TOKENIZER_BATCH):
        yield texts.slice(begin, TOKENIZER_BATCH).to_pylist()


def find_truncated(
    stage: str, kind: str, texts: pa.Array, tokenizer: Any, length: int
) -> np.ndarray:
    """Whether each of N texts is longer than `length` tokens, bool [N]; logs how many are.

    `kind` is what the texts are called: captions or prompts.
    """
    truncated = np.zeros(len(texts), bool)
    begin = 0
    for batch in text_batches(texts):
        tokens = tokenizer(batch, verbose=False)
        truncated[begin : begin + len(batch)] = [len(ids) > length for ids in tokens.input_ids]
        begin += len(batch)
    if truncated.any():
        log(
            f"{stage}: {truncated.sum()} of {len(texts)} distinct {kind} are longer than "
            f"{length} tokens and are cut"
        )
    return truncated


def log_dropped_words(stage: str, kind: str, texts: pa.Array, tokenizer: Any) -> None:
    """Log the words that the tokenizer has no letters for: the text encoder doesn't see them."""
    words = sorted({word for batch in text_batches(texts) for word in " ".join(batch).split()})
    damaged, invisible = set(), set()  # words that lack a letter, and words that lack all
    for begin in range(0, len(words), TOKENIZER_BATCH):
        batch = words[begin : begin + TOKENIZER_BATCH]
        for word, ids in zip(batch, tokenizer(batch, add_special_tokens=False).input_ids):
            if tokenizer.unk_token_id in ids:
                damaged.add(word)
            if set(ids) <= {tokenizer.unk_token_id}:
                invisible.add(word)
    text_count, damaged_count, invisible_count = 0, 0, 0
    for batch in text_batches(texts):
        word_sets = [set(text.split()) for text in batch if text]
        text_count += len(word_sets)
        damaged_count += sum(not word_set.isdisjoint(damaged) for word_set in word_sets)
        invisible_count += sum(word_set <= invisible for word_set in word_sets)
    if damaged:
        log(
            f"{stage}: the tokenizer has no letters for {len(damaged)} words "
            f"({', '.join(sorted(damaged)[:5])} ...) in {damaged_count} of {text_count} "
            f"{kind}; {invisible_count} of these have no other words and equal the empty one "
            "(train_base.source: scratch learns a tokenizer for any text)"
        )
