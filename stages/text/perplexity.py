"""Token-weighted perplexity on held-out documents, with a bootstrap interval over documents."""

import math
from typing import Any

import numpy as np

BOOTSTRAP_DRAWS = 2000
MAX_EXPONENT = 709  # exp of more overflows a float


def document_losses(model: Any, documents: list[list[list[int]]], context: int) -> np.ndarray:
    """Return the sum of next-token losses (nats) and the number of scored tokens per document.

    A document is read in windows of `context` tokens. The first token of a window has no
    prediction. End-of-sequence tokens are not scored, because the base model has never seen where
    our chunks end.

    Args:
        model: a causal language model of transformers; this sets it to evaluation mode.
        documents: the token ids of each document's texts, with the end-of-sequence token last.
        context: tokens per window.

    Returns:
        [documents, 2] float64.
    """
    model.eval()
    return np.array([_score_document(model, texts, context) for texts in documents])


def _score_document(model: Any, texts: list[list[int]], context: int) -> tuple[float, float]:
    """Return the sum of losses and the number of scored tokens of one document."""
    import torch

    device = next(model.parameters()).device
    stream = torch.tensor([token for text in texts for token in text], device=device)  # [tokens]
    is_scored = torch.tensor(
        [position < len(text) - 1 for text in texts for position in range(len(text))],
        device=device,
    )  # [tokens]
    loss_sum = 0.0
    count = 0.0
    for ids, scored in zip(stream.split(context), is_scored.split(context)):  # [T] each
        if len(ids) < 2:
            continue
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].float()  # [T - 1, V]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")  # [T - 1]
        loss_sum += losses[scored[1:]].double().sum().item()
        count += scored[1:].sum().item()
    return loss_sum, count


def perplexity(losses: np.ndarray) -> float:
    """Return exp of the mean loss per token; infinity where the mean is NaN or exp overflows.

    Args:
        losses: of `document_losses`, [documents, 2].
    """
    mean = losses[:, 0].sum() / losses[:, 1].sum()
    return math.exp(mean) if mean < MAX_EXPONENT else math.inf


def perplexity_interval(
    losses: np.ndarray, generator: np.random.Generator, base_losses: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the perplexity from a bootstrap over documents.

    Documents are drawn, not tokens: they are the independent units.

    Args:
        losses: of `document_losses`, [documents, 2].
        generator: draws the documents, with replacement.
        base_losses: of another model, [documents, 2]. With it, the interval is that of the ratio
            perplexity / base perplexity, both on the same drawn documents.
    """
    draws = generator.integers(len(losses), size=(BOOTSTRAP_DRAWS, len(losses)))  # [draws, docs]
    log_perplexity = _mean_losses(losses, draws)
    if base_losses is not None:
        log_perplexity = log_perplexity - _mean_losses(base_losses, draws)
    with np.errstate(over="ignore"):  # finetune_llm refuses an infinite perplexity
        values = np.exp(log_perplexity)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _mean_losses(losses: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return the mean loss per token of each draw of documents: [draws]."""
    return losses[draws, 0].sum(1) / losses[draws, 1].sum(1)
