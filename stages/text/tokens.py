"""Chunks as token sequences for a causal language model: the end-of-sequence token is learned, padding is not."""

import numpy as np

IGNORED = -100  # the label that torch's cross entropy skips


def encode(texts: list[str], tokenizer) -> list[list[int]]:
    """Token ids of each text with one end-of-sequence token behind it."""
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return [[*ids, tokenizer.eos_token_id] for ids in found]


def pack(
    sequences: list[list[int]], context: int, generator: np.random.Generator
) -> list[list[int]]:
    """Shuffle the texts, string them together and cut the string into sequences of exactly `context` tokens.

    Attention crosses the texts in a sequence, as in GPT-2's pretraining; a remainder shorter than half is dropped.
    """
    order = generator.permutation(len(sequences))
    stream = [token for at in order for token in sequences[at]]
    parts = [stream[at : at + context] for at in range(0, len(stream), context)]
    return [part for part in parts if 2 * len(part) >= context] or parts


def separate(sequences: list[list[int]], context: int) -> list[list[int]]:
    """One text per sequence; a longer one goes on in the next (only its real end carries the end-of-sequence token)."""
    return [ids[at : at + context] for ids in sequences for at in range(0, len(ids), context)]


def collate(rows: list[dict], pad: int) -> dict:
    """Pad on the right to the longest row: input_ids, attention_mask and labels, each [B, T] int64.

    Labels are masked by position, not by token: masking every `pad` would hide the end of each text where the pad token
    is the end-of-sequence token, and the model would never learn to stop.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[at, :length] = labels[at, :length] = torch.tensor(row["input_ids"])
        mask[at, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
