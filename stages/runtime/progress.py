"""A progress bar with rate and remaining time, and log lines. They cannot change a result."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

from stages.runtime.redaction import redact


def progress_bar(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str,
    unit: str = "it",
) -> tqdm:
    """Wrap an iterable in a bar. Without one, the caller counts with `.update()`.

    `initial` counts what an earlier run did; the rate, and with it the remaining time, leaves it
    out.

    A terminal shows a live bar, a log file a line every half minute. Of several processes only
    the first shows it.
    """
    live = sys.stderr.isatty()
    # Twelve lines a minute would fill a CI log, and only a terminal can rewrite a line.
    return tqdm(
        items,
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        mininterval=0.2 if live else 30,
        maxinterval=10 if live else 60,
        ascii=None if live else " .:",
        dynamic_ncols=live,
        disable=not is_first_process(),
    )


def log(line: str) -> None:
    """Write a line to stderr above the progress bar, from the first process, without secrets."""
    if is_first_process():
        tqdm.write(redact(line), file=sys.stderr)


def is_first_process() -> bool:
    """Whether this is the first, or the only, process of its run."""
    return int(os.environ.get("RANK", "0")) == 0
