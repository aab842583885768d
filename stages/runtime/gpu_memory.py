"""Running out of GPU memory ends a stage with one line that says which batch size fits."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log


@contextmanager
def report_out_of_memory(
    key: str,
    batch_size: int,
    try_batch: Callable[[int], object] | None,
    advice: str = "",
) -> Iterator[None]:
    """Where the block runs out of GPU memory, exit with an error that names a batch that fits.

    Args:
        key: the params key of the batch size.
        batch_size: its value, in images.
        try_batch: does the block's work on this number of images; None if it cannot be tried.
        advice: appended to the error: what else saves memory.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # their variables hold activations
    too_large = f"{key}: {batch_size} images at a time don't fit into the GPU's memory"
    if try_batch is None:
        exit_with_error(f"{too_large}; try half of them{advice}")
    log(f"{key}: out of GPU memory; looking for a batch that fits")
    largest = largest_batch(try_batch, batch_size)
    if not largest:
        exit_with_error(f"{too_large}, and neither does a single image{advice}")
    exit_with_error(f"{too_large}; {largest} do: set it to {largest}{advice}")


def largest_batch(try_batch: Callable[[int], object], batch_size: int) -> int:
    """The largest of batch_size / 2, / 4, ... 1 that fits into the GPU's memory; 0 if none does."""
    while batch_size > 1:
        batch_size //= 2
        torch.cuda.empty_cache()  # does nothing where no GPU was used
        try:
            try_batch(batch_size)
            return batch_size
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
    return 0
