"""The micro-batches of fine-tuning: this process's part of each, drawn ahead of use."""

import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from stages.diffusion.latents import Latents
from stages.params import FinetuneSD
from stages.runtime.parallel import read_ahead

Batch = dict[str, torch.Tensor]


class BatchLoader:
    """Draws micro-batches of `batch_size` images, shared evenly by the processes.

    A micro-batch is determined by the seed and its index: the same for any number of
    processes, and after a restart. It holds latents [B, C, h, w], noise [B, C, h, w],
    timesteps int64 [B] and text [B, L, D], with B the images of this process.

    Args:
        train: the images to train on.
        config: the section `finetune_sd`.
        seed: of the run.
        schedule_length: T; timesteps are drawn from 0 .. T - 1.
        accelerator: the processes.
    """

    def __init__(
        self,
        train: Latents,
        config: FinetuneSD,
        seed: int,
        schedule_length: int,
        accelerator: Accelerator,
    ) -> None:
        self.train = train
        self.config = config
        self.seed = seed
        self.schedule_length = schedule_length
        self.accelerator = accelerator

    def batch(self, index: int) -> Batch:
        """This process's part of one micro-batch, on the CPU."""
        images = self.config.batch_size // self.accelerator.num_processes
        first = index * self.config.batch_size + self.accelerator.process_index * images
        return self.train.training_batch(
            range(first, first + images),
            self.seed,
            self.schedule_length,
            self.config.caption_dropout,
            sample=self.config.latent == "sample",
        )

    def batches(self, indices: range) -> Iterator[Batch]:
        """These micro-batches on the device; each is drawn while the one before it is in use."""
        for batch in read_ahead(map(self.batch, indices)):
            yield self.on_device(batch)

    def trial_batch(self, images: int) -> Batch:
        """This process's part of a batch of `images` images, to see whether it fits into memory."""
        positions = range(math.ceil(images / self.accelerator.num_processes))
        batch = self.train.training_batch(
            positions, self.seed, self.schedule_length, caption_dropout=0.0, sample=False
        )
        return self.on_device(batch)

    def on_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
