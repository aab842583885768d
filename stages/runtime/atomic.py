"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.runtime.errors import exit_with_error


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Build `<out>.part`, which becomes `out` when the block ends well and is removed when it fails; replaces an old `out`.

    A kill leaves `.part`, which nothing reads and the next run removes; the old `out` stays until the new one is whole.
    """
    if os.path.ismount(out) or out.is_symlink():
        exit_with_error(
            f"{out}: a mount point or a link can't be replaced; mount or link a folder above it"
        )
    part, old = out.with_name(out.name + ".part"), out.with_name(out.name + ".old")
    if old.exists() and not out.exists():  # killed between the two renames
        old.rename(out)
    for folder in (part, old):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
