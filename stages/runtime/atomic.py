"""Put files in their place: a folder atomically, complete or not at all; a file as a link."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.runtime.errors import exit_with_error


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield the folder `<out>.part` to write to; it replaces `out` when the block succeeds.

    When the block raises, `<out>.part` is removed and an old `out` stays. After a kill, the next
    run removes what was left of `<out>.part`.
    """
    if os.path.ismount(out) or out.is_symlink():
        exit_with_error(
            f"{out}: a mount point or a link can't be replaced; mount or link a folder above it"
        )
    unfinished = out.with_name(out.name + ".part")
    previous = out.with_name(out.name + ".old")
    if previous.exists() and not out.exists():
        # The last run was killed between the two renames below.
        previous.rename(out)
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if out.exists():
            out.rename(previous)
        unfinished.rename(out)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` another name of a file; a copy of it where the file system can't."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sync_to_disk(path: Path) -> None:
    """Return when the file's data, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
