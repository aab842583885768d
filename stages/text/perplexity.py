"""Token-weighted perplexity on held-out documents, with Student's interval over documents."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from stages.common.artifacts import read_json, write_atomically
from stages.runtime.progress import log, progress_bar

MAX_EXPONENT = 709  # exp of more overflows a float
SAVE_SECONDS = 10  # between two times that the losses are kept
MIN_DOCUMENTS = 4  # fewer give no useful interval, and none is written


def document_losses(
    model: Any,
    documents: list[list[np.ndarray]],
    context: int,
    start: Sequence[int] = (),
    kept: Path | None = None,
) -> np.ndarray:
    """Return the sum of next-token losses (nats) and the number of scored tokens per document.

    A document is read in windows of `context` tokens. The first token of a window has no
    prediction, unless `start` is put before it. Neither these tokens nor end-of-sequence tokens are
    scored: the base model has never seen where our chunks end.

    Args:
        model: a causal language model of transformers; this sets it to evaluation mode.
        documents: the token ids of each document's texts, with the end-of-sequence token last.
        context: tokens per window.
        start: the ids with which each text begins, of `tokens.start_ids`.
        kept: a JSON file of losses, to which a run after a kill adds those that it lacks.

    Returns:
        [documents, 2] float64.
    """
    model.eval()
    losses = []
    if kept and kept.exists():
        try:
            losses = read_json(kept)
        except OSError:
            log(f"{kept}: damaged: scoring all papers again")
    saved = time.monotonic()
    unscored = documents[len(losses) :]
    total = len(documents)
    for texts in progress_bar(
        unscored, total=total, initial=len(losses), desc="perplexity", unit="paper"
    ):
        losses.append(_score_document(model, texts, context, list(start)))
        is_last = len(losses) == total
        if kept and (is_last or time.monotonic() - saved > SAVE_SECONDS):
            write_atomically(kept, json.dumps(losses).encode())  # NaN may be among them
            saved = time.monotonic()
    return np.array(losses)


def _score_document(
    model: Any, texts: list[np.ndarray], context: int, start: list[int]
) -> tuple[float, float]:
    """Return the sum of losses and the number of scored tokens of one document."""
    import torch

    device = next(model.parameters()).device
    stream = torch.tensor(np.concatenate(texts), dtype=torch.int64, device=device)  # [tokens]
    is_scored = torch.tensor(
        [len(start) <= i < len(text) - 1 for text in texts for i in range(len(text))],
        device=device,
    )  # [tokens]
    before = torch.tensor(start, dtype=stream.dtype, device=device)
    size = context - len(start)
    loss_sum = 0.0
    count = 0.0
    for ids, scored in zip(stream.split(size), is_scored.split(size)):  # [T] each
        if ids[: len(start)].tolist() != start:  # the window begins within a text
            ids = torch.cat([before, ids])
            scored = torch.cat([torch.zeros_like(before, dtype=torch.bool), scored])
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
    losses: np.ndarray, base_losses: np.ndarray | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of the perplexity: Student's, of the log perplexity of documents.

    Documents are the independent units, not tokens. Each counts as in the corpus perplexity, by its
    tokens: the more uneven they are, the more their mean varies.

    Args:
        losses: of `document_losses`, [documents, 2].
        base_losses: of another model, [documents, 2]. With it, the interval is that of the ratio
            perplexity / base perplexity, on the same documents.

    Returns:
        The interval; None where documents don't differ, or there is one alone: nothing then tells
        of the spread.
    """
    count = len(losses)
    tokens = losses[:, 1]
    weights = tokens / tokens.sum()  # [documents]
    with np.errstate(over="ignore", invalid="ignore"):  # finetune_llm refuses what is not finite
        sums = losses[:, 0] if base_losses is None else losses[:, 0] - base_losses[:, 0]
        log_perplexity = sums.sum() / tokens.sum()
        deviations = sums / tokens - log_perplexity
        if count < 2 or np.abs(deviations).max() < 1e-9:
            return None
        # Variance of one document, unbiased where it doesn't depend on the length; of the mean.
        of_one = (weights * deviations**2).sum() / (1 - (weights**2).sum())
        margin = stdtrit(count - 1, 0.975) * np.sqrt(of_one * (weights**2).sum())
        return float(np.exp(log_perplexity - margin)), float(np.exp(log_perplexity + margin))


def count_text_tokens(document_ids: list[list[np.ndarray]], start: list[int]) -> np.ndarray:
    """Return the number of tokens of each document, without start and end tokens, [documents]."""
    added = len(start) + 1
    return np.array([sum(len(ids) - added for ids in texts) for texts in document_ids])


def perplexity_metrics(
    losses: np.ndarray,
    base_losses: np.ndarray,
    documents: list[list[str]],
    text_tokens: np.ndarray,
) -> dict[str, float]:
    """Return the metrics of held-out documents, with 95 % intervals over enough documents.

    Args:
        losses: of the tuned model, [documents, 2].
        base_losses: of the base model, [documents, 2].
        documents: the texts of each document.
        text_tokens: the number of tokens of each document's texts, [documents].
    """
    values = {
        "perplexity": (perplexity(losses), perplexity_interval(losses)),
        "perplexity_base": (perplexity(base_losses), perplexity_interval(base_losses)),
        "perplexity_ratio": (
            perplexity(losses) / perplexity(base_losses),
            perplexity_interval(losses, base_losses),
        ),
    }
    metrics: dict[str, float] = {}
    for key, (value, interval) in values.items():
        metrics[key] = value
        if interval is not None and len(documents) >= MIN_DOCUMENTS:
            metrics[f"{key}_lo"], metrics[f"{key}_hi"] = interval
    characters = sum(len(text) for texts in documents for text in texts)
    # Where windows begin, tokens are not scored: they count as the others of their document do.
    weights = text_tokens / losses[:, 1] / characters / math.log(2)  # [documents]
    return metrics | {
        "bits_per_character": float(losses[:, 0] @ weights),
        "bits_per_character_base": float(base_losses[:, 0] @ weights),
        "n": len(documents),
        "tokens": int(losses[:, 1].sum()),
    }
