"""Chunks of a batch, computed side by side on the cores of a CPU.

One core for each chunk is faster than all cores for one small operation after another. The chunks
don't depend on the number of cores, so results don't either. On a GPU a batch stays in one chunk.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

CHUNK_IMAGES = 16  # at most

Result = TypeVar("Result")


class CpuChunks:
    """The chunks of a batch of `count` images, and the threads that compute them.

    The threads share torch's own threads evenly.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        number = math.ceil(count / CHUNK_IMAGES) if device.type == "cpu" else 1
        size = math.ceil(count / number)
        self.chunks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        cores = torch.get_num_threads()
        workers = min(len(self.chunks), cores)
        self.pool = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(cores // workers,)
        )

    def map(self, function: Callable[[slice], Result]) -> list[Result]:
        """`function(chunk)` of each chunk, in order.

        A thread starts without inference mode and autocast: the function sets its own.
        """
        if len(self.chunks) == 1:
            return [function(self.chunks[0])]
        return list(self.pool.map(function, self.chunks))

    def backward(
        self,
        loss: Callable[[slice], torch.Tensor],
        weights: Iterable[torch.nn.Parameter],
        scale: float,
    ) -> torch.Tensor:
        """Add `scale` times the gradients of the summed loss to those of `weights`.

        Gradients are always added in the same order, so that the sum has the same bytes in
        any order of the chunks.

        Args:
            loss: the loss [] of a chunk; the batch's loss is the sum over its chunks.
            weights: the parameters to differentiate by.
            scale: of the gradients.

        Returns:
            The batch's loss [], detached.
        """
        weights = list(weights)

        def loss_and_gradients(chunk: slice) -> tuple[torch.Tensor, ...]:
            chunk_loss = loss(chunk)
            gradients = torch.autograd.grad(chunk_loss * scale, weights, materialize_grads=True)
            return chunk_loss.detach(), *gradients

        by_chunk = self.map(loss_and_gradients)
        total_loss, *gradients = (sum(tensors) for tensors in zip(*by_chunk))
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        return total_loss
