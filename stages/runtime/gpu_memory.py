"""Running out of GPU memory ends a stage in one line that says which batch size fits."""

import traceback
from collections.abc import Callable
from contextlib import contextmanager

import torch

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log


@contextmanager
def report_out_of_memory(
    key: str, size: int, attempt: Callable[[int], object] | None, advice: str = ""
):
    """Where the block runs out of GPU memory, fail with the largest batch for which `attempt(n)`, its work on n images, doesn't.

    `key`: the params key that says `size`, images at a time. `attempt` None: nothing is tried. `advice`: what else would help.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as fault:
        traceback.clear_frames(fault.__traceback__)  # they hold on to activations
    if attempt is None:
        exit_with_error(
            f"{key}: {size} images at a time don't fit into the GPU's memory; try half of them{advice}"
        )
    log(f"{key}: out of GPU memory; looking for a batch that fits")
    fits = largest_batch(attempt, size)
    least = f"{fits} do: set it to {fits}" if fits else "nor does the smallest batch"
    exit_with_error(
        f"{key}: {size} images at a time don't fit into the GPU's memory; {least}{advice}"
    )


def largest_batch(attempt: Callable[[int], object], size: int) -> int:
    """The largest of size/2, size/4, ... 1 for which `attempt` does not run out of memory; 0: none."""
    while size > 1:
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError as fault:
            traceback.clear_frames(fault.__traceback__)
    return 0
