"""Texts as token sequences for a causal language model.

The model learns the end-of-sequence token behind each text; it never learns padding. Where its
tokenizer begins texts with a token (`<s>`, as of Llama, Mistral and Gemma), each text has that too.
"""

from typing import Any

import numpy as np

from stages.runtime.parallel import batched

IGNORE_INDEX = -100  # torch's cross entropy skips positions with this label
BATCH = 1000  # texts that are tokenized at once


def start_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: its beginning-of-sequence token, or nothing."""
    ids = tokenizer("", verbose=False)["input_ids"]
    return [token for token in ids if token == tokenizer.bos_token_id][:1]


def encode(texts: list[str], tokenizer: Any) -> list[np.ndarray]:
    """Return the token ids of each text: `start_ids`, the text, one end-of-sequence token.

    A special token's name in a text, such as `<|endoftext|>`, is text.

    Returns:
        [tokens] int32 for each text.
    """
    start = start_ids(tokenizer)
    encoded = []
    for batch in batched(texts, BATCH):
        ids_of_batch = tokenizer(
            batch, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        encoded += [
            np.array([*start, *ids, tokenizer.eos_token_id], np.int32) for ids in ids_of_batch
        ]
    return encoded


def pack(texts: list[np.ndarray], context: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Shuffle and concatenate texts, then cut them into sequences of exactly `context` tokens.

    Attention crosses the texts in a sequence, as in GPT-2's pretraining. A remainder shorter than
    half of `context` is dropped, unless there is nothing else.
    """
    if not texts:
        return []
    stream = np.concatenate([texts[index] for index in generator.permutation(len(texts))])
    sequences = [stream[start : start + context] for start in range(0, len(stream), context)]
    return [ids for ids in sequences if 2 * len(ids) >= context] or sequences


def split_long_texts(texts: list[np.ndarray], context: int) -> list[np.ndarray]:
    """Return one sequence per text; a text of more than `context` tokens is cut into several.

    Only the last sequence of a text has its end-of-sequence token.
    """
    return [ids[start : start + context] for ids in texts for start in range(0, len(ids), context)]


def collate(rows: list[dict], pad: int) -> dict:
    """Pad the `input_ids` of rows on the right to the longest row.

    Labels are masked by position, not by token. Where the pad token is the end-of-sequence token,
    masking every `pad` would hide the end of each text, and the model would never learn to stop.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each [B, T] int64.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), pad)  # [B, T]
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        labels[index, :length] = ids[index, :length]
        mask[index, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
