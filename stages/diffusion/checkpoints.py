"""Training state on disk: one safetensors file per checkpoint, there whole or not at all."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


def save(path: Path, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Write tensors and a JSON state (numbers survive exactly): a kill or a power cut leaves the old file or the new."""
    tensors = dict(
        sorted(tensors.items(), key=lambda item: -item[1].element_size())
    )  # hence all aligned
    header, end = {"__metadata__": {"state": json.dumps(state)}}, 0
    for name, t in tensors.items():
        size = t.numel() * t.element_size()
        header[name] = {
            "dtype": DTYPES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for (
                t
            ) in tensors.values():  # one at a time: safetensors' own writer copies them all first
                file.write(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        where = os.open(path.parent, os.O_RDONLY)
        os.fsync(where)
        os.close(where)
    except OSError as fault:
        part.unlink(missing_ok=True)
        exit_with_error(
            f"{path.parent}: the checkpoint cannot be written ({fault}); the one before is kept. Free some space, or set "
            "REMOTE_DIFFUSION_SCRATCH to a folder on another disk, and run again"
        )


def save_step(folder: Path, tensors: dict, state: dict, keep: int) -> None:
    """Write the checkpoint of `state["step"]`, what `pack` took, and remove all but the last `keep`.

    Before it, where this is `state["best_step"]`, `best.safetensors`: the weights that are published, averaged if they are.
    """
    if state["best_step"] == state["step"]:
        kind = "ema." if any(name.startswith("ema.") for name in tensors) else "weight."
        best = {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
        save(folder / "best.safetensors", best, {"step": state["step"]})
    save(folder / f"step_{state['step']:08d}.safetensors", tensors, state)
    for old in sorted(folder.glob("step_*.safetensors"))[:-keep]:
        old.unlink()


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and state of one file. Raises SafetensorError where the file is torn."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(
            file.metadata()["state"]
        )


def load_latest(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The last whole checkpoint, or None. A torn one is named and passed over."""
    for path in sorted(folder.glob("step_*.safetensors"), reverse=True):
        try:
            return load(path)
        except (SafetensorError, OSError) as fault:
            log(f"{path.name}: torn, using the one before ({fault})")
    return None


def pack(
    names: list[str], weights: list[torch.Tensor], ema: list[torch.Tensor], optimizer
) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, of all tensors that resuming needs: they can be written while training goes on.

    weight.*, ema.* and optimizer.<key>.*. Every process of a sharded run has to call this; only the first gets them.
    """
    tensors = {f"weight.{name}": w for name, w in zip(names, weights)} | {
        f"ema.{name}": w for name, w in zip(names, ema)
    }
    for name, w in zip(names, weights):
        for key, value in optimizer.state[w].items():
            tensors[f"optimizer.{key}.{name}"] = (
                value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.int64)
            )
    packed = {}
    for name, t in tensors.items():
        t = whole(t.detach())
        if int(os.environ.get("RANK", "0")) == 0:
            packed[name] = t.to("cpu", copy=True)
    return packed


@torch.no_grad()
def unpack(
    tensors: dict[str, torch.Tensor],
    names: list[str],
    weights: list[torch.Tensor],
    ema: list[torch.Tensor],
    optimizer,
) -> None:
    """Put what `pack` took back in its place, in the weights' own memory layout and sharding."""
    states = {name: {} for name in names}
    for full, value in tensors.items():
        if full.startswith("optimizer."):
            _, key, name = full.split(".", 2)
            states[name][key] = value
    for i, (name, w) in enumerate(zip(names, weights)):
        w.copy_(sharded(tensors[f"weight.{name}"], w))
        if ema:
            ema[i].copy_(sharded(tensors[f"ema.{name}"], w))
        # A count is a tensor in torch's optimizers, an int in bitsandbytes'.
        optimizer.state[w] = {
            key: torch.empty_like(w, dtype=value.dtype).copy_(sharded(value, w))
            if value.shape == w.shape
            else value.item()
            if value.dtype == torch.int64
            else value.to(w.device)
            for key, value in states[name].items()
        }


def whole(t: torch.Tensor) -> torch.Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def sharded(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor split as `like` is, where that is split."""
    return (
        distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
        if isinstance(like, DTensor)
        else value
    )
