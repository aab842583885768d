"""A progress bar with rate and ETA: live in a terminal, a line every half minute in a log. Cannot change a result."""

import os
import sys

from tqdm import tqdm


def progress_bar(items=None, *, total: int | None = None, what: str, unit: str = "it"):
    """Wrap an iterable (or count by hand with `.update`). Only the first of several processes shows it."""
    live = sys.stderr.isatty()
    # Twelve lines a minute would drown a CI log; a rewritten line needs a terminal.
    return tqdm(
        items,
        total=total,
        desc=what,
        unit=unit,
        mininterval=0.2 if live else 30,
        maxinterval=10 if live else 60,
        ascii=None if live else " .:",
        dynamic_ncols=live,
        disable=int(os.environ.get("RANK", "0")) > 0,
    )


def log(*words) -> None:
    """A line of the log, past the bar, from the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        tqdm.write(" ".join(str(word) for word in words), file=sys.stderr)
