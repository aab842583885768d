"""The processes that run a stage together, and their devices."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState

from stages.runtime.errors import exit_with_error
from stages.runtime.process import PROCESSES

# How long processes wait for each other. NCCL's ten minutes would end a run in which the first one
# merges shards, moves files or saves a model, or in which one GPU is slower.
TIMEOUT = timedelta(days=1)


def process_state() -> PartialState:
    """This process among those that run the stage: its number, its device, their count.

    Exits with an error where fewer processes came up than were launched.
    """
    # Without this argument `PartialState` ignores the variable: each process would work alone.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # Where there is no CUDA, `PartialState` would take the GPU of a Mac, which lacks float64.
    state = PartialState(cpu=on_cpu or not torch.cuda.is_available(), timeout=TIMEOUT)
    launched = int(os.environ.get(PROCESSES) or os.environ.get("WORLD_SIZE") or 1)
    if state.num_processes != launched:
        exit_with_error(
            f"accelerate config: of {launched} processes {state.num_processes} came up; "
            "without GPUs set use_cpu: true"
        )
    return state


def once(state: PartialState, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in the first process, while the others wait until it returns."""
    if state.is_main_process:
        function(*arguments)
    state.wait_for_everyone()


def check_precision(key: str, precision: str, device: torch.device) -> None:
    """Exit with an error where a device can't compute in a number format, the value of a key."""
    if precision == "fp16" and device.type != "cuda":
        exit_with_error(f"{key}: fp16 needs a GPU; use bf16 or fp32")
