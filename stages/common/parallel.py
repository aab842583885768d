"""An ordered map over processes that holds only a few items at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable, items: Iterable[tuple], batch: int = 16) -> Iterator[tuple]:
    """(label, function(argument)) for each (label, argument), in order; labels stay here, arguments are sent to processes.

    Reads at most 4 batches per process ahead, unlike `Pool.imap`, which reads its whole input at once.
    """
    items, waiting, processes = iter(items), deque(), min(cores(), 16)
    with ProcessPoolExecutor(processes) as pool:
        while True:
            while len(waiting) < 4 * processes and (some := list(islice(items, batch))):
                labels, arguments = zip(*some)
                waiting.append((labels, pool.submit(_all, function, arguments)))
            if not waiting:
                return
            labels, results = waiting.popleft()
            yield from zip(labels, results.result())


def _all(function: Callable, arguments: tuple) -> list:
    return [function(argument) for argument in arguments]
