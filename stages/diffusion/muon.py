"""The optimizer Muon (Jordan et al. 2024).

torch.optim.Muon takes matrices alone, no convolutions, and computes in bfloat16, for which most
CPUs have no arithmetic.
"""

from collections.abc import Mapping

import torch

OUTER_LAYERS = ("conv_in", "conv_out", "time_embedding")
MOMENTUM = 0.95
ITERATIONS = 5  # Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial (Jordan et al. 2024)
UPDATE_SIZE = 0.2  # root mean square of an update, as of AdamW's (Liu et al. 2025, 2502.16982)
BETAS = (0.9, 0.999)  # of AdamW
EPSILON = 1e-8


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

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self.muon_update if group["is_hidden"] else self.adam_update
            for weight in (w for w in group["params"] if w.grad is not None):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update(weight, weight.grad), alpha=group["lr"])

    def muon_update(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Nesterov momentum, orthogonalized."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(state["momentum"], MOMENTUM)
        # The order of the columns doesn't matter: this one is how channels_last stores them.
        update = update.movedim(1, -1)
        matrix = orthogonalize(update.flatten(1))
        return UPDATE_SIZE * max(matrix.shape) ** 0.5 * matrix.reshape(update.shape).movedim(-1, 1)

    def adam_update(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Adam's update, with bias correction (Kingma & Ba 2015)."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] = state["step"].cpu() + 1  # of a checkpoint, it may be on the GPU
        state["exp_avg"].lerp_(gradient, 1 - BETAS[0])
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - BETAS[1])
        mean = state["exp_avg"] / (1 - BETAS[0] ** state["step"])
        square = state["exp_avg_sq"] / (1 - BETAS[1] ** state["step"])
        return mean / (square.sqrt() + EPSILON)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [M, N] of the same singular vectors, whose singular values are near 1."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    if x.shape[1] > 2 * x.shape[0]:
        # Each factor is a polynomial of x x^T: their product is small, and is found without x.
        x = product_of_factors(x @ x.T) @ x
    else:
        for _ in range(ITERATIONS):
            x = newton_schulz_factor(x @ x.T) @ x
    return x.T if is_tall else x


def product_of_factors(gram: torch.Tensor) -> torch.Tensor:
    """The product [M, M] of the factors of all iterations, from x x^T [M, M]."""
    factor = newton_schulz_factor(gram)
    product = factor
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = newton_schulz_factor(gram)
        product = factor @ product
    return product


def newton_schulz_factor(gram: torch.Tensor) -> torch.Tensor:
    """a + b G + c G^2 [M, M]: an iteration multiplies it with x, of which G is x x^T [M, M]."""
    a, b, c = COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
