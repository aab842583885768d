"""Checks of params against a model and the devices.

`finetune_sd` and `sample` make them as they start. `encode` makes them before both, so that no run
ends in one after hours.
"""

from pathlib import Path

import torch

from stages.diffusion import models, schedulers
from stages.params import FinetuneSD, Sampling
from stages.runtime.errors import exit_with_error
from stages.runtime.processes import check_precision


def check_training(config: FinetuneSD, start: Path, device: torch.device, processes: int) -> None:
    """Exit with an error where a model, `start`, can't be fine-tuned by these params."""
    check_precision("finetune_sd.precision", config.precision, device)
    if config.batch_size % processes:
        exit_with_error(
            f"finetune_sd.batch_size: {config.batch_size} images per step cannot be shared evenly "
            f"by {processes} processes"
        )
    schedulers.load_training_schedule(start, config.zero_terminal_snr, config.min_snr_gamma)


def check_sampling(sampling: Sampling, folder: str | Path, device: torch.device) -> None:
    """Exit with an error where the model of a folder can't generate images by these params."""
    check_precision("sampling.precision", sampling.precision, device)
    factor = models.downsampling_factor(folder)
    models.check_resolution("sampling.resolution", sampling.resolution, factor)
    schedulers.check_steps(folder, sampling.scheduler, sampling.steps)
