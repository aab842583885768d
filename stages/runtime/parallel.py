"""Work in other processes or threads, in order, that keeps only a few items in memory."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from stages.runtime.process import end_after

MAX_PROCESSES = 16
BATCHES_AHEAD = 4  # per process

Item = TypeVar("Item")


def available_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter (`itertools.batched` of Python 3.12)."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def ordered_map(
    function: Callable, items: Iterable[tuple], batch: int = 16, processes: int | None = None
) -> Iterator[tuple]:
    """Yield (label, function(argument)) for each (label, argument), in order.

    `Pool.imap` would read all its input at once; this reads `BATCHES_AHEAD` batches per process.

    Args:
        function: called in worker processes, so it can be pickled.
        items: (label, argument) pairs. Labels stay in this process; arguments are sent to workers.
        batch: items per task.
        processes: number of workers; None: one per core, at most `MAX_PROCESSES`.

    Raises:
        BrokenProcessPool: a worker process was killed.
    """
    if processes is None:
        processes = min(available_cores(), MAX_PROCESSES)
    batches = batched(items, batch)
    submitted: deque[tuple[tuple, Future]] = deque()
    with ProcessPoolExecutor(processes, initializer=_exit_with_parent) as pool:
        while True:
            for pairs in islice(batches, BATCHES_AHEAD * processes - len(submitted)):
                labels, arguments = zip(*pairs)
                submitted.append((labels, pool.submit(_call_each, function, arguments)))
            if not submitted:
                return
            labels, future = submitted.popleft()
            yield from zip(labels, future.result())


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, each computed in a thread while the one before it is in use.

    No item may be None.
    """
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


class BackgroundWriter:
    """Calls functions that write files in another thread, one at a time."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Start a call once the one before has ended; raises what that one raised."""
        self.wait()
        self.pending = self.thread.submit(function, *arguments)

    def wait(self) -> None:
        """Return when the last call has ended; raises what it raised."""
        if self.pending:
            self.pending.result()

    def raise_if_failed(self) -> None:
        """Raise what the last call raised, without waiting for its end."""
        if self.pending and self.pending.done():
            self.pending.result()


def _exit_with_parent() -> None:
    """Make this worker process exit when its parent dies, so that a killed stage leaves none."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a tool's handlers are for the tool
        signal.signal(number, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_after(parent.join)


def _call_each(function: Callable, arguments: tuple) -> list:
    return [function(argument) for argument in arguments]
