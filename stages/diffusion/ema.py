"""The exponential moving average of weights in training."""

from collections.abc import Mapping

import torch


@torch.no_grad()
def update_ema(
    ema: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], step: int, decay: float
) -> None:
    """Move the average toward the weights after the optimizer step of this index, in place.

    The decay is warmed up from 0.1: at its full value the average would consist of the first
    weights for the first 1 / (1 - decay) steps.

    Args:
        ema: the average by name.
        weights: the weights, in the same order.
        step: index of the optimizer step, from 0.
        decay: the full decay.
    """
    decay = min(decay, (step + 1) / (step + 10))
    detached = [weight.detach() for weight in weights.values()]
    torch._foreach_lerp_(list(ema.values()), detached, 1 - decay)
