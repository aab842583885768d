"""What every stage that uses torch sets first, and where its random numbers come from."""

import os

import torch

from stages.common.rng import rng


def make_deterministic(seed: int) -> None:
    """Same input, same bytes: deterministic kernels and a seed for what draws from the global generator."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS asks for it in deterministic mode
    torch.set_deterministic_debug_mode(
        "error"
    )  # as use_deterministic_algorithms, which also imports the compiler: 2 s a stage
    # Only guards against reading memory never written, and costs a third of a small model's step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)


def torch_generator(seed: int, *item: int | str) -> torch.Generator:
    """`rng` for torch, on the CPU (its numbers don't depend on the device)."""
    return torch.Generator().manual_seed(int(rng(seed, *item).integers(2**63)))
