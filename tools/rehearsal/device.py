"""What this machine computes with."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last: of ARM


@dataclass(frozen=True)
class Device:
    """The device that stages run on.

    Attributes:
        name: for people.
        memory: of the machine, bytes.
        gpu_memory: of the GPU, bytes; that of the machine where the GPU has none of its own; None:
            there is no GPU.
        precisions: those that it can compute with; the first replaces those that it can't.
    """

    name: str
    memory: int
    gpu_memory: int | None
    precisions: tuple[str, ...]


def visible_gpu() -> str | None:
    """The first GPU that stages see, as `nvidia-smi --id` names it; None: they see none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.partition(",")[0].strip()
    return None if first in ("", "-1") or not shutil.which("nvidia-smi") else first


def find_device() -> Device:
    """The first NVIDIA GPU that stages see, or else the CPU."""
    memory = psutil.virtual_memory().total
    gpu = visible_gpu()
    if gpu is not None:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        finished = subprocess.run([*query, f"--id={gpu}"], capture_output=True, text=True)
        if finished.returncode:  # it takes no id of a part of a GPU (MIG)
            finished = subprocess.run(query, capture_output=True, text=True)
        if finished.returncode == 0 and finished.stdout.strip():
            name, mebibytes = finished.stdout.splitlines()[0].rsplit(",", 1)
            # "[N/A]" where the GPU has no memory of its own.
            own = int(mebibytes) * 2**20 if mebibytes.strip().isdigit() else memory
            return Device(name, memory, own, ("bf16", "fp16", "fp32"))
    # fp16 is for GPUs. Without bf16 arithmetic bf16 is some ten times slower than fp32.
    flags = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.exists() else []
    has_bf16 = any(flag in flags for flag in BF16_FLAGS)
    precisions = ("bf16", "fp32") if has_bf16 else ("fp32",)
    return Device(f"CPU, {psutil.cpu_count()} cores", memory, None, precisions)
