"""Permissions of weights: as those of any other file, they follow the umask."""

import os
import threading
from pathlib import Path

_UMASK_IS_READ = threading.Lock()


def follow_umask(path: str | Path) -> None:
    """Give a safetensors file, or all of them below a folder, the mode of any new file.

    safetensors writes with mode 0600, whatever the umask: no other account of the machine (a web
    server, a container, a colleague) could read the weights.
    """
    path = Path(path)
    for file in path.rglob("*.safetensors") if path.is_dir() else [path]:
        file.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The umask. It can only be read by setting it, which holds for all threads."""
    with _UMASK_IS_READ:
        umask = os.umask(0o022)
        os.umask(umask)
    return umask
