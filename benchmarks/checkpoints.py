"""What checkpoints cost in training time, at the paper's interval of 500 steps.

    python -m benchmarks.checkpoints            demo size, and Stable Diffusion v1.5's size, which
                                                needs 20 GB of memory
    python -m benchmarks.checkpoints demo       demo size only

Training waits only while the tensors are copied. The files are written while it goes on; how long
that takes is shown too.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.workspace import REPOSITORY, UNET, build_part
from stages.common.torch_setup import device_type
from stages.diffusion import checkpoints
from stages.diffusion.checkpoints import TrainingState
from stages.runtime.process import make_parser

INTERVAL = 500  # optimizer steps between checkpoints
ROUNDS = 3


def main() -> None:
    from diffusers import UNet2DConditionModel

    parser = make_parser("benchmarks.checkpoints", __doc__)
    parser.add_argument("size", nargs="?", choices=["all", "demo"], default="all")
    size = parser.parse_args().size
    print(
        f"| checkpoint, median of {ROUNDS} | GB | training waits | written in | a step "
        f"| waits / {INTERVAL} steps |"
    )
    print("|---|---|---|---|---|---|")
    unet = UNet2DConditionModel.from_pretrained(
        REPOSITORY / "stages/embedded/models/diffusion", subfolder="unet"
    )
    measure("demo size, with EMA", unet, with_ema=True, batch_size=32, latent_size=16)
    if size == "all":
        del unet
        unet = build_part("unet")
        name = "SD v1.5's size, the paper's recipe (no EMA)"
        measure(name, unet, with_ema=False, batch_size=16, latent_size=28)


def measure(name: str, unet: Any, with_ema: bool, batch_size: int, latent_size: int) -> None:
    """Print a row of the table."""
    device = device_type()
    unet.to(device).train()
    adamw = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)
    if device == "cpu" and unet.config.cross_attention_dim == UNET["cross_attention_dim"]:
        # A step would take minutes; only the optimizer's state is needed.
        fill_state(adamw)
        step_seconds = float("nan")
    else:
        step_seconds = statistics.median(
            seconds(lambda: train_step(unet, adamw, batch_size, latent_size, device))
            for _ in range(4)
        )
    size, wait, write = time_checkpoint(unet, adamw, with_ema)
    print(
        f"| {name}, {device} | {size:.2f} | {wait:.2f} s | {write:.1f} s | {step_seconds:.3f} s "
        f"| {wait / (INTERVAL * step_seconds):.2%} |",
        flush=True,
    )


def fill_state(adamw: torch.optim.Optimizer) -> None:
    """Give the optimizer its state without a forward and a backward pass."""
    for group in adamw.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    adamw.step()


def time_checkpoint(
    unet: Any, adamw: torch.optim.Optimizer, with_ema: bool, rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Size in GB, and the median seconds in which a checkpoint is copied and then written."""
    adamw.zero_grad()
    weights = dict(unet.named_parameters())
    ema = {}
    if with_ema:
        ema = {name: weight.detach().clone() for name, weight in weights.items()}
    copy_seconds = []
    write_seconds = []
    state = TrainingState(step=1, best_step=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in range(rounds):
            started = time.perf_counter()
            tensors = checkpoints.copy_tensors(checkpoints.training_tensors(weights, ema, adamw))
            copied = time.perf_counter()
            checkpoints.save_step(folder, tensors, state, keep=1)
            copy_seconds.append(copied - started)
            write_seconds.append(time.perf_counter() - copied)
            size = checkpoints.count_bytes(tensors) / 1e9
            del tensors  # before the next copy is made
    return size, statistics.median(copy_seconds), statistics.median(write_seconds)


def train_step(
    unet: Any, adamw: torch.optim.Optimizer, batch_size: int, latent_size: int, device: str
) -> None:
    """A step of about the cost of a real one, on random latents and text."""
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        x = torch.randn(batch_size, 4, latent_size, latent_size, device=device)
        t = torch.zeros(batch_size, device=device)
        text = torch.randn(batch_size, 77, unet.config.cross_attention_dim, device=device)
        unet(x, t, text).sample.square().mean().backward()
    adamw.step()
    adamw.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes, the GPU's work included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
