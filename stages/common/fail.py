"""Bad input ends a stage in one clear line and exit code 1."""

import sys
from typing import NoReturn

from tqdm import tqdm


def fail(message: str) -> NoReturn:
    """Stop with one line. Name the file or the params key that is at fault and what would be right."""
    for bar in list(getattr(tqdm, "_instances", ())):  # made with the first bar; an open one keeps the log's line open
        bar.close()
    sys.exit(f"error: {' '.join(message.split())}")
