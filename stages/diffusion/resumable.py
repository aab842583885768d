"""Checkpoints of a plain training loop, one a minute: what a kill may cost."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from stages.diffusion import checkpoints
from stages.diffusion.checkpoints import TrainingState
from stages.runtime.progress import log

SECONDS = 60.0  # between two checkpoints
KEPT = 2  # the last one may be damaged


class MinuteCheckpoints:
    """The checkpoints of one loop in a folder of the resume cache.

    When they are written cannot change a result: a resumed loop repeats the steps since the last.

    Args:
        folder: holds the checkpoints; created.
        name: of what is trained, for the log.
        weights: the trained parameters by name.
        ema: their moving average by name; empty where there is none.
        optimizer: of these parameters.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        weights: Mapping[str, torch.Tensor],
        ema: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = name
        self.weights = weights
        self.ema = ema
        self.optimizer = optimizer
        self.saved = time.monotonic()

    def resume(self) -> TrainingState:
        """Load the last complete checkpoint; returns how far it is, step 0 where there is none."""
        checkpoint = checkpoints.load_latest(self.folder)
        if checkpoint is None:
            return TrainingState()
        tensors, state = checkpoint
        checkpoints.load_state_dict(tensors, self.weights, self.ema, self.optimizer)
        log(f"{self.name}: resuming from step {state.step}")
        return state

    def save_if_due(self, state: TrainingState, steps: int) -> None:
        """Write a checkpoint after the last of the `steps`, and a minute after the one before."""
        if state.step < steps and time.monotonic() - self.saved < SECONDS:
            return
        tensors = checkpoints.training_tensors(self.weights, self.ema, self.optimizer)
        checkpoints.save_step(self.folder, tensors, state, KEPT)
        self.saved = time.monotonic()
