"""Deterministic torch, its number formats, and torch generators that are seeded per item."""

import os

import torch

from stages.common.rng import rng

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_deterministic(seed: int) -> None:
    """Use deterministic kernels only and seed torch's global generator."""
    # cuBLAS needs this in deterministic mode.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # The same as use_deterministic_algorithms(True), which also imports the compiler: 2 s a stage.
    torch.set_deterministic_debug_mode("error")
    # Filling guards only against reads of uninitialized memory, and costs a third of a small
    # model's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)


def device_type() -> str:
    """Where networks run: `cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_threads(device: torch.device) -> int:
    """Threads of this process on a CPU; 0 on a GPU. Another number gives other bytes."""
    return torch.get_num_threads() if device.type == "cpu" else 0


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Compute in this number format, a key of `DTYPES`, within the block."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def torch_generator(seed: int, *item: int | str) -> torch.Generator:
    """`rng` for torch. It is on the CPU, so that its numbers don't depend on the device."""
    return torch.Generator().manual_seed(int(rng(seed, *item).integers(2**63)))
