"""What git says of this repository."""

import subprocess


def git(*words: str) -> str | None:
    """What git prints, or None where it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None
