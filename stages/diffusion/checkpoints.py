"""Training state on disk: one safetensors file per checkpoint, there whole or not at all."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.common.fail import fail
from stages.common.progress import say


def save(path: Path, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Write tensors and a JSON state (numbers survive exactly): a kill or a power cut leaves the old file or the new."""
    part = path.with_suffix(".part")
    try:
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, part, {"state": json.dumps(state)})
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        where = os.open(path.parent, os.O_RDONLY)
        os.fsync(where)
        os.close(where)
    except (OSError, SafetensorError) as fault:
        part.unlink(missing_ok=True)
        fail(f"{path.parent}: the checkpoint cannot be written ({fault}); the one before is kept. Free some space, or set "
             "REMOTE_DIFFUSION_SCRATCH to a folder on another disk, and run again")


def save_step(folder: Path, step: int, tensors: dict, state: dict, keep: int) -> None:
    """Write the checkpoint of an optimiser step and remove all but the last `keep`."""
    save(folder / f"step_{step:08d}.safetensors", tensors, state | {"step": step})
    for old in sorted(folder.glob("step_*.safetensors"))[:-keep]:
        old.unlink()


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and state of one file. Raises SafetensorError where the file is torn."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])


def load_latest(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The last whole checkpoint, or None. A torn one is named and passed over."""
    for path in sorted(folder.glob("step_*.safetensors"), reverse=True):
        try:
            return load(path)
        except (SafetensorError, OSError) as fault:
            say(f"{path.name}: torn, using the one before ({fault})")
    return None
