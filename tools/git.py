"""Reads from the repository's git."""

import subprocess


def git(*arguments: str) -> str | None:
    """Run git; return what it prints, or None where it fails."""
    finished = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return finished.stdout if finished.returncode == 0 else None
