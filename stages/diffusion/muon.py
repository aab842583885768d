"""The optimizer Muon (Jordan et al. 2024).

torch.optim.Muon takes matrices alone, no convolutions, and computes in bfloat16, for which most
CPUs have no arithmetic.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

OUTER_LAYERS = ("conv_in", "conv_out", "time_embedding")
MOMENTUM = 0.95
ITERATIONS = 5  # Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial (Jordan et al. 2024)
UPDATE_SIZE = 0.2  # root mean square of an update, as of AdamW's (Liu et al. 2025, 2502.16982)
BETAS = (0.9, 0.999)  # of AdamW
EPSILON = 1e-8
# Elements of the matrices that are made orthogonal together. One by one, a small model's many small
# matrices would leave a GPU waiting.
STACKED = 2**22
STACKED_ON_CPU = 2**18  # so that every core has some


class Muon(torch.optim.Optimizer):
    """Muon for the weights of hidden layers, AdamW for all others; both decay weights.

    The update of a convolution [O, I, h, w] is that of the matrix [O, I * h * w].

    Args:
        weights: all trained parameters of a UNet by name. Its first and last layers get AdamW, as
            vectors do.
        lr: learning rate of both.
        weight_decay: of both.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.nn.Parameter],
        lr: float,
        weight_decay: float,
    ) -> None:
        hidden: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, weight in weights.items():
            is_hidden = weight.ndim > 1 and not any(part in name for part in OUTER_LAYERS)
            (hidden if is_hidden else others).append(weight)
        groups = [{"params": hidden, "is_hidden": True}, {"params": others, "is_hidden": False}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        # On a CPU, small products take longer on two cores than on one. A core for each stack takes
        # two thirds of the time, and the update doesn't depend on the number of cores.
        self.cores = ThreadPoolExecutor(
            torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            on_gpu = any(weight.is_cuda for weight in weights)
            run, limit = (map, STACKED) if on_gpu else (self.cores.map, STACKED_ON_CPU)
            list(run(partial(self.update_stack, group), stacks(weights, limit)))

    @torch.no_grad()  # a thread of `cores` starts with gradients
    def update_stack(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        """Update weights of one shape, of a group."""
        update = self.muon_update if group["is_hidden"] else self.adam_update
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, update(weights), alpha=-group["lr"])

    def muon_update(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """Nesterov momentum, orthogonalized, of weights of one shape."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM))
        # The order of the columns doesn't matter: this one is how channels_last stores them.
        updates = updates.movedim(2, -1)
        matrices = orthogonalize(updates.flatten(2))
        size = UPDATE_SIZE * max(matrices.shape[1:]) ** 0.5
        return list((size * matrices).reshape(updates.shape).movedim(-1, 2))

    def adam_update(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adam's update, with bias correction (Kingma & Ba 2015), of weights of one shape."""
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            state["step"] = state["step"].cpu() + 1  # of a checkpoint, it may be on the GPU
        steps = [self.state[weight]["step"].item() for weight in weights]
        means = [self.state[weight]["exp_avg"] for weight in weights]
        squares = [self.state[weight]["exp_avg_sq"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_lerp_(squares, torch._foreach_pow(gradients, 2), 1 - BETAS[1])
        roots = torch._foreach_sqrt(
            torch._foreach_div(squares, [1 - BETAS[1] ** step for step in steps])
        )
        torch._foreach_add_(roots, EPSILON)
        updates = torch._foreach_div(means, [1 - BETAS[0] ** step for step in steps])
        return list(torch._foreach_div(updates, roots))


def stacks(weights: Sequence[torch.Tensor], limit: int) -> Iterator[list[torch.Tensor]]:
    """Groups of weights of one shape, of at most `limit` elements or of one weight."""
    by_shape = defaultdict(list)
    for weight in weights:
        by_shape[weight.shape].append(weight)
    for shape, group in by_shape.items():
        count = max(1, limit // shape.numel())
        for begin in range(0, len(group), count):
            yield group[begin : begin + count]


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices [K, M, N] of the same singular vectors, whose singular values are near 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.shape[2] > 2 * x.shape[1]:
        # Each factor is a polynomial of x x^T: their product is small, and is found without x.
        x = product_of_factors(x @ x.mT) @ x
    else:
        for _ in range(ITERATIONS):
            x = newton_schulz_factor(x @ x.mT) @ x
    return x.mT if is_tall else x


def product_of_factors(gram: torch.Tensor) -> torch.Tensor:
    """The product [K, M, M] of the factors of all iterations, from x x^T [K, M, M]."""
    factor = newton_schulz_factor(gram)
    product = factor
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = newton_schulz_factor(gram)
        product = factor @ product
    return product


def newton_schulz_factor(gram: torch.Tensor) -> torch.Tensor:
    """a + b G + c G^2 [K, M, M]: an iteration multiplies it with x, of which G is x x^T."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
