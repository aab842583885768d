"""Arrays on disk that one process or several fill, a group of rows at a time, despite kills."""

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from accelerate import PartialState

from stages.common.artifacts import write_atomically
from stages.diffusion.latents import allocate, memory_map

FLUSH_SECONDS = 30  # between two writes to the disk: what a kill may cost


class GroupedArrays:
    """A safetensors file of float16 arrays. A file beside it, `<name>.npy`, notes finished groups.

    Attributes:
        arrays: the arrays by name, memory-mapped.
        group_size: rows of a group; the last one may have fewer.
        finished: whether each group is on disk, bool [G], memory-mapped.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        group_size: int,
        state: PartialState,
    ) -> None:
        """Open the file, or write one of zeros.

        Args:
            path: the file.
            shapes: of the arrays by name, whose rows are equally many.
            group_size: rows of a group.
            state: this process among those that fill the file. They take turns at the groups.
        """
        self.group_size = group_size
        self.state = state
        self.unwritten: list[int] = []
        self.flushed = time.monotonic()
        notes = path.with_suffix(".npy")
        if state.is_main_process and not (path.exists() and notes.exists()):
            notes.unlink(missing_ok=True)  # of arrays that are no longer there
            allocate(path, shapes)
            rows = next(iter(shapes.values()))[0]
            none_finished = io.BytesIO()
            np.save(none_finished, np.zeros(math.ceil(rows / group_size), bool))
            write_atomically(notes, none_finished.getvalue())
        state.wait_for_everyone()
        self.arrays = memory_map(path, "r+")
        self.finished = np.load(notes, mmap_mode="r+")

    def is_mine(self, begin: int) -> bool:
        """Whether this process is to fill the group that begins at this row."""
        group = begin // self.group_size
        turn = group % self.state.num_processes
        return turn == self.state.process_index and not self.finished[group]

    def write(self, begin: int, values: dict[str, np.ndarray]) -> None:
        """Fill rows from `begin` on, which are a group, with the values of each array."""
        for name, array in self.arrays.items():
            array[begin : begin + len(values[name])] = values[name]
        self.unwritten.append(begin // self.group_size)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was filled to the disk, and then note it."""
        for array in self.arrays.values():
            array.flush()
        self.finished[self.unwritten] = True
        self.finished.flush()
        self.unwritten.clear()
        self.flushed = time.monotonic()
