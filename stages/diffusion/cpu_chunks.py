"""A group of images on a CPU, worked on in slices at once: a core each is faster than all cores on one small operation after another.

The slices don't depend on the number of cores. On a GPU a group stays whole.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SLICE = 16  # images at most


class CpuChunks:
    """The slices of a group of `count` images, and the threads that work on them; they share torch's threads evenly."""

    def __init__(self, count: int, device: torch.device):
        pieces = math.ceil(count / SLICE) if device.type == "cpu" else 1
        size = math.ceil(count / pieces)
        self.slices = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        cores = torch.get_num_threads()
        workers = min(len(self.slices), cores)
        self.pool = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(cores // workers,)
        )

    def map(self, work: Callable[[slice], object]) -> list:
        """`work` of each slice, in order. It sets its own inference mode and autocast: a thread starts without."""
        if len(self.slices) == 1:
            return [work(self.slices[0])]
        return list(self.pool.map(work, self.slices))

    def backward(
        self, loss: Callable[[slice], torch.Tensor], weights: list[torch.Tensor], scale: float
    ) -> torch.Tensor:
        """The sum of the slices' losses; `scale` times its gradients are added to those of `weights`, always in the same order."""

        def learn(part: slice) -> tuple[torch.Tensor, ...]:
            of_part = loss(part)
            return of_part.detach(), *torch.autograd.grad(
                of_part * scale, weights, materialize_grads=True
            )

        total, *gradients = map(sum, zip(*self.map(learn)))
        for w, gradient in zip(weights, gradients):
            w.grad = gradient if w.grad is None else w.grad + gradient
        return total
