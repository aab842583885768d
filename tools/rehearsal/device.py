"""What this machine computes with."""

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
        gpu_memory: of the first GPU, bytes; None: there is no GPU.
        precisions: those that it computes with, the best stand-in for another one first.
    """

    name: str
    memory: int
    gpu_memory: int | None
    precisions: tuple[str, ...]


def find_device() -> Device:
    """The first NVIDIA GPU, or else the CPU."""
    memory = psutil.virtual_memory().total
    if shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        finished = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True)
        if finished.returncode == 0 and finished.stdout.strip():
            name, mebibytes = finished.stdout.splitlines()[0].rsplit(",", 1)
            return Device(name, memory, int(mebibytes) * 2**20, ("bf16", "fp16", "fp32"))
    # fp16 is for GPUs. Without bf16 arithmetic bf16 is some ten times slower than fp32.
    flags = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.exists() else []
    has_bf16 = any(flag in flags for flag in BF16_FLAGS)
    precisions = ("bf16", "fp32") if has_bf16 else ("fp32",)
    return Device(f"CPU, {psutil.cpu_count()} cores", memory, None, precisions)
