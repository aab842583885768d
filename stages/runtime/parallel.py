"""An ordered map over processes that holds only a few items at a time."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable, items: Iterable[tuple], batch: int = 16, processes: int | None = None
) -> Iterator[tuple]:
    """(label, function(argument)) for each (label, argument), in order; labels stay here, arguments are sent to processes.

    processes: None for one a core, 16 at most. Reads at most 4 batches per process ahead, unlike `Pool.imap`, which reads its
    whole input at once.
    """
    items, waiting, processes = iter(items), deque(), processes or min(available_cores(), 16)
    with ProcessPoolExecutor(processes, initializer=_end_with_parent) as pool:
        while True:
            while len(waiting) < 4 * processes and (some := list(islice(items, batch))):
                labels, arguments = zip(*some)
                waiting.append((labels, pool.submit(_all, function, arguments)))
            if not waiting:
                return
            labels, results = waiting.popleft()
            yield from zip(labels, results.result())


def _end_with_parent() -> None:
    """A killed stage leaves no process behind that waits for work."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _all(function: Callable, arguments: tuple) -> list:
    return [function(argument) for argument in arguments]
