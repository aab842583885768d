"""What checkpoints cost, in training time, at the paper's interval of 500 steps.

    python -m benchmarks.checkpoints              demo size, and the tensors of Stable Diffusion v1.5 (needs 20 GB of memory)
    python -m benchmarks.checkpoints demo         demo size only
Training stops only while the tensors are copied; the files are written beside it, which is shown too.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.workspace import REPOSITORY, UNET
from stages.diffusion import checkpoints

INTERVAL, ROUNDS = 500, 3


def main(size: str = "all") -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(
        REPOSITORY / "stages/embedded/models/diffusion", subfolder="unet"
    )
    print(
        f"| checkpoint, median of {ROUNDS} | GB | training waits | written in | a step | waits / {INTERVAL} steps |"
    )
    print("|---|---|---|---|---|---|")
    show("demo size, with EMA", unet, ema=True, batch=32, side=16)
    if size == "all":
        del unet
        show(
            "SD v1.5's size, the paper's recipe (no EMA)",
            UNet2DConditionModel(**UNET),
            ema=False,
            batch=16,
            side=28,
        )


def show(name: str, unet, ema: bool, batch: int, side: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet.to(device).train()
    names, weights = zip(*unet.named_parameters())
    adamw = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    average = [w.detach().clone() for w in weights] if ema else []
    large = unet.config.cross_attention_dim == UNET["cross_attention_dim"]
    if large and device == "cpu":
        for w in weights:  # a step would take minutes: only its state is wanted
            w.grad = torch.zeros_like(w)
        adamw.step()
        step = float("nan")
    else:
        step = statistics.median(
            seconds(lambda: train(unet, adamw, batch, side, device)) for _ in range(4)
        )
    adamw.zero_grad()
    waits, writes, state = [], [], {"step": 1, "best_step": 1}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            tensors = checkpoints.pack(names, weights, average, adamw)
            waits.append(time.perf_counter() - began)
            writes.append(
                seconds(
                    lambda tensors=tensors: checkpoints.save_step(Path(place), tensors, state, 1)
                )
            )
            size = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e9
            del tensors
    wait = statistics.median(waits)
    print(
        f"| {name}, {device} | {size:.2f} | {wait:.2f} s | {statistics.median(writes):.1f} s | {step:.3f} s | "
        f"{wait / (INTERVAL * step):.2%} |",
        flush=True,
    )


def train(unet, adamw, batch: int, side: int, device: str) -> None:
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        x = torch.randn(batch, 4, side, side, device=device)
        text = torch.randn(batch, 77, unet.config.cross_attention_dim, device=device)
        unet(x, torch.zeros(batch, device=device), text).sample.square().mean().backward()
    adamw.step()
    adamw.zero_grad()


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*sys.argv[1:])
