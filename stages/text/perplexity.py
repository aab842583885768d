"""Token-weighted perplexity over held-out documents, with an interval from a bootstrap over whole documents."""

import math

import numpy as np

DRAWS = 2000


def document_losses(model, documents: list[list[list[int]]], context: int) -> np.ndarray:
    """Sum of next-token losses (nats) and number of scored tokens of each document: [documents, 2] float64.

    `documents` hold texts as token ids with the end token last. A document is read in windows of `context` tokens; a
    window's first token and the end tokens are not scored (the base was never shown where our chunks end).
    """
    import torch

    device, rows = next(model.parameters()).device, []
    model.eval()
    for texts in documents:
        stream = torch.tensor([token for text in texts for token in text], device=device)
        scored = torch.tensor(
            [at < len(text) - 1 for text in texts for at in range(len(text))], device=device
        )
        loss = count = 0.0
        for ids, keep in zip(stream.split(context), scored.split(context)):
            if len(ids) < 2:
                continue
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0, :-1].float()  # [T - 1, V]
            losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")  # [T - 1]
            loss += losses[keep[1:]].double().sum().item()
            count += keep[1:].sum().item()
        rows.append((loss, count))
    return np.array(rows)


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean loss per token of `document_losses`; infinite where that is no number, or beyond what a float holds."""
    mean = losses[:, 0].sum() / losses[:, 1].sum()
    return math.exp(mean) if mean < 709 else math.inf


def interval(
    losses: np.ndarray, generator: np.random.Generator, base: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % percentile interval of the perplexity, documents drawn with replacement (they are the independent units).

    With `base`: of the ratio perplexity / base perplexity, both on the same drawn documents.
    """
    draws = generator.integers(len(losses), size=(DRAWS, len(losses)))  # [draws, documents]

    def logs(rows):
        return rows[draws, 0].sum(1) / rows[draws, 1].sum(1)

    with np.errstate(over="ignore"):  # finetune_llm refuses what is no number
        values = np.exp(logs(losses) - (logs(base) if base is not None else 0.0))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
