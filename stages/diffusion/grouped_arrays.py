"""Arrays on disk that one process or several fill, a group of rows at a time, despite kills."""

import io
import math
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from stages.common.artifacts import write_atomically
from stages.diffusion.latents import allocate, is_allocated, memory_map
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

FLUSH_SECONDS = 30  # between two writes to the disk: what a kill may cost
UNFINISHED = -1  # in place of a group's checksum


class GroupedArrays:
    """A safetensors file of float16 arrays. A file beside it, `<name>.npy`, notes finished groups.

    Attributes:
        arrays: the arrays by name, memory-mapped.
        group_size: rows of a group; the last one may have fewer.
        checksums: the CRC-32 of each group that is on disk, else `UNFINISHED`: int64 [G],
            memory-mapped.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        group_size: int,
        state: PartialState,
    ) -> None:
        """Open the file, or write one of zeros where there is none, or a damaged one.

        Args:
            path: the file.
            shapes: of the arrays by name, all with the same number of rows.
            group_size: rows of a group.
            state: this process among those that fill the file. They take turns at the groups.
        """
        self.path = path
        self.group_size = group_size
        self.state = state
        self.unwritten: dict[int, int] = {}  # checksums by group
        self.flushed = time.monotonic()
        notes = path.with_suffix(".npy")
        group_count = math.ceil(next(iter(shapes.values()))[0] / group_size)
        if state.is_main_process and not _can_resume(path, shapes, notes, group_count):
            for file in (notes, path):
                file.unlink(missing_ok=True)
            allocate(path, shapes)
            none_finished = io.BytesIO()
            np.save(none_finished, np.full(group_count, UNFINISHED, np.int64))
            write_atomically(notes, none_finished.getvalue())
        if not state.is_main_process:
            state.wait_for_everyone()
        self.arrays = memory_map(path, "r+")
        self.checksums = np.load(notes, mmap_mode="r+")
        if state.is_main_process:
            self._drop_damaged_groups()
            state.wait_for_everyone()
        self.expected = np.array(self.checksums)  # as this process knows them

    def _drop_damaged_groups(self) -> None:
        """Note groups whose values aren't those that were written as unfinished."""
        finished, damaged = self._find_damaged(self.checksums)
        if damaged:
            log(f"{self.path}: {len(damaged)} of {finished} groups damaged: encoded again")
            self.checksums[damaged] = UNFINISHED
            self.checksums.flush()

    def _find_damaged(self, checksums: np.ndarray) -> tuple[int, list[int]]:
        """The number of finished groups, and those whose values have other checksums."""
        finished = np.flatnonzero(checksums != UNFINISHED).tolist()
        return len(finished), [g for g in finished if self._checksum(g) != checksums[g]]

    def _checksum(self, group: int) -> int:
        """The CRC-32 of a group's values in the file."""
        begin = group * self.group_size
        return _crc32(array[begin : begin + self.group_size] for array in self.arrays.values())

    def is_mine(self, begin: int) -> bool:
        """Whether this process is to fill the group that begins at this row."""
        group = begin // self.group_size
        turn = group % self.state.num_processes
        return turn == self.state.process_index and self.checksums[group] == UNFINISHED

    def write(self, begin: int, values: dict[str, np.ndarray]) -> None:
        """Fill rows from `begin` on, which are a group, with the values of each array."""
        for name, array in self.arrays.items():
            array[begin : begin + len(values[name])] = values[name]
        self.unwritten[begin // self.group_size] = _crc32(values[name] for name in self.arrays)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was filled to the disk, and then note the groups as finished."""
        for array in self.arrays.values():
            array.flush()
        for group, checksum in self.unwritten.items():
            self.checksums[group] = self.expected[group] = checksum
        self.checksums.flush()
        self.unwritten.clear()
        self.flushed = time.monotonic()

    def finish(self) -> None:
        """Flush, wait for the other processes, and check what they all have written.

        NFS clients write whole pages of memory. In one at the border of two groups, one machine
        writes its old bytes over those of the other.
        """
        self.flush()
        expected = np.max(gather_object([self.expected]), 0)  # [G]; a checksum is never negative
        if self.state.is_main_process and self.state.num_processes > 1:
            self.arrays = memory_map(self.path)  # as it is on the disk
            finished, damaged = self._find_damaged(expected)
            if damaged:
                exit_with_error(
                    f"{self.path}: {len(damaged)} of {finished} groups are not as they were "
                    "written: on a disk shared by NFS, run encode on one machine (docs/scale.md)"
                )
        self.state.wait_for_everyone()


def _can_resume(
    path: Path, shapes: Mapping[str, tuple[int, ...]], notes: Path, group_count: int
) -> bool:
    """Whether arrays and notes of an earlier run are there; damaged ones are named in the log."""
    if not (path.exists() and notes.exists()):
        return False
    damaged = None
    if not is_allocated(path, shapes):
        damaged = path
    try:
        if len(np.load(notes)) != group_count:
            damaged = notes
    except (ValueError, EOFError):
        damaged = notes
    if damaged:
        log(f"{damaged}: damaged: encoded again")
    return damaged is None


def _crc32(arrays: Iterable[np.ndarray]) -> int:
    """The CRC-32 of the values of arrays, one after the other."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array, np.float16).data, checksum)
    return checksum
