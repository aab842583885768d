"""Checkpoints of training: tensors and state in one safetensors file each, complete or absent.

`step_<step>.safetensors` holds all that resuming needs; `best.safetensors` the weights of the best
step so far, which are those of models/diffusion in the end.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from stages.runtime.errors import exit_with_error
from stages.runtime.memory import available_memory
from stages.runtime.progress import is_first_process, log
from stages.runtime.tensor_files import Tensors, load_undamaged, save

MEMORY_SHARE = 0.8  # of the free memory, what a copy of the training state may take


@dataclass
class TrainingState:
    """How far training is: what resuming needs besides tensors, as JSON.

    Attributes:
        step: optimizer steps done.
        best_step: the checkpoint with the lowest validation loss.
        best_loss: that validation loss.
        curve: the measurements of the base model (step 0) and of each checkpoint, by column of the
            training log.
        scaler: state of the gradient scaler; None except in fp16.
        measuring: the params by which the curve was measured.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    curve: list[dict[str, float]] = field(default_factory=list)
    scaler: dict | None = None
    measuring: dict[str, int] = field(default_factory=dict)

    def record(self, measurements: dict[str, float]) -> None:
        """Add the measurements of the checkpoint at `step`."""
        self.curve.append(measurements)
        if measurements["validation_loss"] < self.best_loss:
            self.best_loss = measurements["validation_loss"]
            self.best_step = self.step


def save_step(folder: Path, tensors: Tensors, state: TrainingState, keep: int) -> None:
    """Write the checkpoint of `state.step`, and its weights as the best ones where they are.

    Then remove all but the last `keep`, and those of later steps, which could not be resumed from.
    """
    for unfinished in folder.glob("*.part"):  # left by a kill
        unfinished.unlink()
    path = step_file(folder, state.step)
    save(path, tensors, asdict(state))
    if state.best_step == state.step:
        save_best(folder, tensors, state.step)
    for other in folder.glob("step_*.safetensors"):
        if other > path:
            other.unlink()
    for old in sorted(folder.glob("step_*.safetensors"))[:-keep]:
        old.unlink()


def step_file(folder: Path, step: int) -> Path:
    """The file of the checkpoint of a step."""
    return folder / f"step_{step:08d}.safetensors"


def save_best(folder: Path, tensors: Tensors, step: int) -> None:
    """Write the weights among `training_tensors` as the best ones."""
    save(folder / "best.safetensors", select_weights(tensors), {"step": step})


def select_weights(tensors: Tensors) -> Tensors:
    """The weights among `training_tensors`: the averaged ones, if there are any."""
    prefix = "ema." if any(name.startswith("ema.") for name in tensors) else "weight."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def load_best(folder: Path, state: TrainingState) -> Tensors:
    """The weights of the best step. Where they are gone, `best_step` becomes the best step kept.

    A run that resumed before the best step of a killed one, and measures at other steps, may not
    come to it again.
    """
    best = load_undamaged(folder / "best.safetensors")
    if best and best[1]["step"] == state.best_step:
        return best[0]
    for row in sorted(state.curve, key=lambda row: row["validation_loss"]):
        step = int(row["step"])
        path = step_file(folder, step)
        if path.exists() and (checkpoint := load_undamaged(path)):
            log(
                f"{folder}: the weights of the best step, {state.best_step}, are gone: those of "
                f"step {step} are taken, validation loss {row['validation_loss']:.4g}"
            )
            state.best_step = step
            state.best_loss = row["validation_loss"]
            return select_weights(checkpoint[0])
    exit_with_error(
        f"{folder}: the weights of the best step, {state.best_step}, are gone, and no checkpoint "
        "can be used: remove this folder and run again"
    )


def load_latest(folder: Path) -> tuple[Tensors, TrainingState] | None:
    """The last checkpoint that can be used, or None. Damaged ones are named in the log."""
    paths = sorted(folder.glob("step_*.safetensors"), reverse=True)
    for path in paths:
        checkpoint = load_undamaged(path)
        if checkpoint is None:
            continue
        tensors, state = checkpoint[0], TrainingState(**checkpoint[1])
        if has_best(folder, tensors, state):
            return tensors, state
        log(f"{path.name}: not used: the weights of its best step {state.best_step} are missing")
    if paths:
        log(f"{folder}: no checkpoint can be used; training starts again")
    return None


def has_best(folder: Path, tensors: Tensors, state: TrainingState) -> bool:
    """Whether the best weights of a checkpoint can be saved as the model in the end.

    Where `best.safetensors` is missing or older, it is written again if the checkpoint itself is
    the best. One of a step after the checkpoint's will do: training reaches that step again.
    """
    if not state.best_step:
        return True
    best = load_undamaged(folder / "best.safetensors")
    best_step = best[1]["step"] if best else 0
    if best_step == state.best_step:
        return True
    if state.best_step == state.step:
        if is_first_process():
            save_best(folder, tensors, state.step)
        return True
    return best_step > state.step


def training_tensors(
    weights: Mapping[str, torch.Tensor],
    ema: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> Tensors:
    """All tensors that resuming needs. They are no copies: training changes them.

    Args:
        weights: the trained parameters by name.
        ema: their moving average by name; empty where there is none.
        optimizer: of these parameters.

    Returns:
        weight.<name>, ema.<name> and optimizer.<key>.<name>.
    """
    tensors = {f"weight.{name}": weight for name, weight in weights.items()}
    tensors |= {f"ema.{name}": average for name, average in ema.items()}
    for name, weight in weights.items():
        for key, value in optimizer.state[weight].items():
            if not torch.is_tensor(value):  # bitsandbytes counts its steps in an int
                value = torch.tensor(value, dtype=torch.int64)
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def copies_fit(tensors: Tensors) -> bool:
    """Whether copies of the tensors fit into the free memory; in a sharded run they have to."""
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return True
    return count_bytes(tensors) <= MEMORY_SHARE * available_memory()


def count_bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def copy_tensors(tensors: Tensors) -> Tensors:
    """Copies on the CPU, unsharded and contiguous; training may go on at once.

    Every process of a sharded run must call this; only the first gets the copies.
    """
    copies = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if is_first_process():
            copies[name] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copies


@torch.no_grad()
def load_state_dict(
    tensors: Tensors,
    weights: Mapping[str, torch.Tensor],
    ema: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Restore `training_tensors`, in the memory layout and sharding of the weights."""
    optimizer_tensors: dict[str, Tensors] = {name: {} for name in weights}
    for full_name, value in tensors.items():
        if full_name.startswith("optimizer."):
            _, key, name = full_name.split(".", 2)
            optimizer_tensors[name][key] = value
    for name, weight in weights.items():
        weight.copy_(shard_like(tensors[f"weight.{name}"], weight))
        if ema:
            ema[name].copy_(shard_like(tensors[f"ema.{name}"], weight))
        optimizer.state[weight] = {
            key: optimizer_value(value, weight) for key, value in optimizer_tensors[name].items()
        }


def optimizer_value(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | int:
    """A value of the optimizer's state of one weight, as the optimizer keeps it."""
    if value.shape == weight.shape:  # a moment of the gradient
        return torch.empty_like(weight, dtype=value.dtype).copy_(shard_like(value, weight))
    if value.dtype == torch.int64:  # the step count of bitsandbytes, an int
        return int(value.item())
    return value.to(weight.device)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor unsharded, where it is sharded. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A full tensor sharded as `like` is, where that is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
