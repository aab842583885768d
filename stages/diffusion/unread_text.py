"""What a text encoder doesn't see of texts: the end of long ones, and words without tokens.

A diffusion model draws such texts all the same, so that nothing else would tell.
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
    length = min(tokenizer.model_max_length, positions)
    distinct = pa.array([prompt for prompt in dict.fromkeys(prompts) if prompt], pa.string())
    log_truncated(stage, "prompts", distinct, tokenizer, length)
    log_dropped_words(stage, "prompts", distinct, tokenizer)


def text_batches(texts: pa.Array, size: int = TOKENIZER_BATCH) -> Iterator[list[str]]:
    """The texts as Python strings, `size` at a time: all of them could fill the memory."""
    for begin in range(0, len(texts), size):
        yield texts.slice(begin, size).to_pylist()


def log_truncated(
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


def log_dropped_words(stage: str, kind: str, texts: pa.Array, tokenizer: Any) -> tuple[int, int]:
    """Log the words that the tokenizer has no letters for: the text encoder doesn't see them.

    Returns:
        How many of the texts have such words, and how many have no other.
    """
    words = sorted({word for batch in text_batches(texts) for word in " ".join(batch).split()})
    dropped, unseen = set(), set()
    for begin in range(0, len(words), TOKENIZER_BATCH):
        batch = words[begin : begin + TOKENIZER_BATCH]
        for word, ids in zip(batch, tokenizer(batch, add_special_tokens=False).input_ids):
            if tokenizer.unk_token_id in ids:
                dropped.add(word)
            if set(ids) <= {tokenizer.unk_token_id}:
                unseen.add(word)
    text_count, with_dropped, without_seen = 0, 0, 0
    for batch in text_batches(texts):
        word_sets = [set(text.split()) for text in batch if text]
        text_count += len(word_sets)
        with_dropped += sum(not word_set.isdisjoint(dropped) for word_set in word_sets)
        without_seen += sum(word_set <= unseen for word_set in word_sets)
    if dropped:
        log(
            f"{stage}: the tokenizer has no letters for {len(dropped)} words "
            f"({', '.join(sorted(dropped)[:5])} ...) in {with_dropped} of {text_count} "
            f"{kind}; {without_seen} of these have no other words and equal the empty one "
            "(train_base.source: scratch learns a tokenizer for any text)"
        )
    return with_dropped, without_seen
