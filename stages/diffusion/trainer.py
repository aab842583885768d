"""The UNet in training, with its optimizer and the moving average of its weights.

It runs on the devices that `accelerate` sets up: one, several with a copy of the model each (DDP),
or several with a shard each (FSDP2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import GradientAccumulationPlugin

from stages.diffusion import checkpoints, models, schedulers
from stages.diffusion.batches import Batch
from stages.diffusion.checkpoints import TrainingState
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.ema import update_ema
from stages.diffusion.latents import Latents
from stages.diffusion.loss import denoising_loss
from stages.diffusion.muon import Muon
from stages.params import FinetuneSD
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import BackgroundWriter
from stages.runtime.processes import process_state
from stages.runtime.progress import log


def create_accelerator(config: FinetuneSD) -> Accelerator:
    """The devices to train on."""
    process_state()  # exits where fewer processes came up than were launched
    # Explicit where accelerate would otherwise look into the environment.
    return Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation),
        dynamo_backend="no",
    )


def check_shapes(train: Latents, text_width: int, start: Path) -> None:
    """Exit with an error where the UNet of `start` reads latents or text of other shapes."""
    unet_config = models.read_config(start, "unet")
    channels = train.shape[0]
    unet_channels = unet_config["in_channels"]
    unet_text_width = unet_config.get("cross_attention_dim", 1280)
    # A list: one for each of the UNet's levels.
    widths = unet_text_width if isinstance(unet_text_width, list) else [unet_text_width]
    if unet_channels != channels or any(width != text_width for width in widths):
        exit_with_error(
            f"{start}/unet: reads latents of {unet_channels} channels and text of width "
            f"{unet_text_width}; data/latents holds {channels} and {text_width}"
        )


def trained_weights(unet: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name: all, or those of a LoRA adapter."""
    return {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}


def create_optimizer(
    weights: dict[str, torch.nn.Parameter], config: FinetuneSD
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or its variant with 8-bit state (Dettmers et al. 2022), or
    Muon (Jordan et al. 2024). weights: `trained_weights`."""
    if config.optimizer == "muon":
        return Muon(weights, config.lr, config.weight_decay)
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(weights.values(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        weights.values(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )


class Trainer:
    """What is trained, and the computations of a training step.

    Attributes:
        unet: the UNet.
        model: the UNet as accelerate wraps it, so that processes exchange gradients or shards.
        unwrapped_optimizer: the optimizer.
        optimizer: the optimizer as accelerate wraps it, for accumulation and fp16.
        weights: the trained parameters by name.
        ema: their exponential moving average by name; empty where `ema_decay` is 0.
        alphas_cumprod: the noise schedule [T].
        prediction_type: what the UNet predicts, `epsilon` or `v_prediction`.
        batch_size: images of this process in a micro-batch; `config.batch_size` is that of all.
        chunked: whether a micro-batch is computed in chunks, side by side on the cores of a CPU.
    """

    def __init__(
        self, start: Path, config: FinetuneSD, seed: int, accelerator: Accelerator
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.batch_size = config.batch_size // accelerator.num_processes

        schedule = schedulers.load_training_schedule(
            start, config.zero_terminal_snr, config.min_snr_gamma
        )
        self.prediction_type = schedule.config.prediction_type
        self.alphas_cumprod = schedule.alphas_cumprod.to(accelerator.device)

        self.unet = models.load_trainable_unet(start, config.method, seed)
        self.unet.to(accelerator.device, memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if config.compile:
            self.unet.compile()
        if config.optimizer == "muon" and self.sharded:
            exit_with_error(
                "finetune_sd.optimizer: muon needs whole matrices, and each process holds a shard "
                "of them (FSDP): use adamw"
            )
        self.unwrapped_optimizer = create_optimizer(trained_weights(self.unet), config)
        self.model, self.optimizer = accelerator.prepare(self.unet, self.unwrapped_optimizer)

        # Collected after `prepare`, in which FSDP2 replaces the parameters by shards.
        self.weights = trained_weights(self.unet)
        self.ema = {}
        if config.ema_decay:
            self.ema = {name: weight.detach().clone() for name, weight in self.weights.items()}

        # Several processes exchange gradients in hooks, which the chunks' `autograd.grad` skips.
        self.chunks = CpuChunks(self.batch_size, accelerator.device)
        one_process = accelerator.num_processes == 1
        self.chunked = len(self.chunks.chunks) > 1 and one_process and not config.compile

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a shard of the weights (FSDP)."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    def losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The training loss of each image [B]. Its backward pass reaches the weights.

        `model` is `self.model`; or `self.unet`, which waits for no other process.
        """
        return denoising_loss(
            model, batch, self.alphas_cumprod, self.prediction_type, self.config.min_snr_gamma
        )

    def backward(self, batch: Batch) -> torch.Tensor:
        """Add the gradients of a micro-batch; returns its mean loss [], detached."""

        def chunk_loss(chunk: slice) -> torch.Tensor:
            images = {name: tensor[chunk] for name, tensor in batch.items()}
            return self.losses(self.model, images).sum() / self.batch_size

        if self.chunked:
            scale = 1 / self.config.gradient_accumulation
            return self.chunks.backward(chunk_loss, self.weights.values(), scale)
        loss = chunk_loss(slice(None))
        self.accelerator.backward(loss)
        return loss.detach()

    def trial_step(self, batch: Batch) -> None:
        """Do this process's part of a step alone, to see whether it fits into memory."""
        with self.accelerator.no_sync(self.model):
            self.losses(self.unet, batch).mean().backward()
        self.unwrapped_optimizer.step()
        self.unwrapped_optimizer.zero_grad()

    def update_ema(self, step: int) -> None:
        """Move the average toward the weights after the optimizer step of this index."""
        if self.ema:
            update_ema(self.ema, self.weights, step, self.config.ema_decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block the model has the averaged weights, where there are any."""
        self.swap_weights()
        yield
        self.swap_weights()

    @torch.no_grad()
    def swap_weights(self) -> None:
        """Exchange the weights and their average, a tensor at a time to save memory."""
        for name, average in self.ema.items():
            weight = self.weights[name]
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def resume(self, folder: Path) -> TrainingState | None:
        """Load the last complete checkpoint of the folder; None where there is none."""
        tensors, state = checkpoints.load_latest(folder) or ({}, None)
        step = state.step if state else 0
        steps = self.accelerator.gather(torch.tensor([step], device=self.accelerator.device))
        if steps.min() != steps.max():
            exit_with_error(
                f"{folder}: not all processes see the same checkpoints: set "
                "REMOTE_DIFFUSION_SCRATCH to a folder that all machines see"
            )
        if state is None:
            return None
        checkpoints.load_state_dict(tensors, self.weights, self.ema, self.unwrapped_optimizer)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        log(f"finetune_sd: resuming from step {state.step}")
        return state

    def save_checkpoint(self, writer: BackgroundWriter, folder: Path, state: TrainingState) -> None:
        """Copy all that resuming needs; the copy is written to `folder` while training goes on.

        Where a copy doesn't fit the free memory, training waits instead.
        """
        writer.wait()  # the copy of the last checkpoint is freed before this one is made
        scaler = self.accelerator.scaler
        state.scaler = scaler.state_dict() if scaler else None
        tensors = checkpoints.training_tensors(self.weights, self.ema, self.unwrapped_optimizer)
        copied = checkpoints.copies_fit(tensors)
        if copied:
            tensors = checkpoints.copy_tensors(tensors)
        if self.accelerator.is_main_process:
            keep = self.config.keep_checkpoints
            writer.submit(checkpoints.save_step, folder, tensors, deepcopy(state), keep)
        if not copied:
            size = checkpoints.count_bytes(tensors) / 1e9
            log(
                f"finetune_sd: step {state.step}: no free memory for a copy of the training state "
                f"({size:.1f} GB): training waits for its checkpoint"
            )
            writer.wait()
