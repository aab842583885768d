"""Bad input ends a stage in one clear line and exit code 1."""

import sys
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Stop with one line. Name the file or the params key that is at fault and what would be right."""
    sys.exit(f"error: {' '.join(message.split())}")
