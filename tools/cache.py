"""List or empty the resume cache: the finished work of killed runs, downloaded papers, search
indexes, answers.

    python -m tools.cache                        list it
    python -m tools.cache empty                  remove all that no run is using
    python -m tools.cache empty finetune_sd      only of this stage, or one entry by its name

The cache is $REMOTE_DIFFUSION_SCRATCH, or else a folder of the user's. A stage that ends removes
what it kept there. `empty` leaves the entries that a run is using; a stage makes the others again
where it needs them.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.process import make_parser, start_process

# Folders that hold something else than unfinished runs of a stage.
KINDS = {
    "arxiv": "downloaded papers",
    "chroma": "search index of passages",
    "prompt": "answers of a language model",
}


def main() -> None:
    parser = make_parser("tools.cache", __doc__)
    parser.add_argument("action", nargs="?", choices=["empty"], help="remove entries")
    parser.add_argument("names", nargs="*", help="stages or entries; default: all")
    options = parser.parse_args()
    start_process()
    root = resume_cache.cache_root()
    entries = list_entries(root)
    if options.action is None:
        show(root, entries)
    else:
        empty(root, choose(root, entries, options.names))


def list_entries(root: Path) -> list[Path]:
    """The folders of the cache. Each has a lock beside it: other folders are not the cache's.

    Of one that was removed, a kill may have left a part: `<name>.<id>.removed`.
    """
    folders = [*root.glob("*/"), *root.glob("*/*/")]
    return sorted(path for path in folders if lock_file(path).exists())


def lock_file(path: Path) -> Path:
    """The lock of an entry, which what is left of a removed one has in common with it."""
    return path.with_name(path.name.partition(".")[0] + ".lock")


def choose(root: Path, entries: list[Path], names: list[str]) -> list[Path]:
    """The entries with these names, or of the stages with these names; all where none is given."""
    chosen = []
    for name in names:
        folder = root / name.replace("@", "_")  # features@tuned keeps features_tuned
        named = [path for path in entries if folder in (path, path.parent)]
        if not named:
            exit_with_error(f"{name}: {root} holds no such stage or entry; `python -m tools.cache`")
        chosen += named
    return list(dict.fromkeys(chosen)) if names else entries


def show(root: Path, entries: list[Path]) -> None:
    """Print size, age, name and origin of each entry."""
    print(f"{root}: {len(entries)} entries, {format_size(sum(map(measure_size, entries)))}")
    for path in entries:
        size = format_size(measure_size(path))
        name = path.relative_to(root).as_posix()
        print(f"{size:>9}  {format_age(path):>8}  {name}  {describe(root, path)}")


def describe(root: Path, path: Path) -> str:
    """What an entry is, where its run worked, and which process is using it."""
    stage = path.relative_to(root).parts[0]
    words = KINDS.get(stage, "unfinished run")
    if path.suffix == ".removed":
        words = "rest of a removed entry"
    origin = resume_cache.side_file(path, "origin")
    with suppress(FileNotFoundError):
        folder = origin.read_text(encoding="utf-8")
        words += f" of {folder}" + ("" if Path(folder).is_dir() else " (which is gone)")
    with locked(path) as is_free:
        return words if is_free else f"{words}, in use by {resume_cache.owner(path)}"


def empty(root: Path, entries: list[Path]) -> None:
    """Remove entries that no run is using, and say what came of each."""
    for path in entries:
        name = path.relative_to(root).as_posix()
        with locked(path) as is_free:
            if not is_free:
                print(f"{name}: kept, in use by {resume_cache.owner(path)}")
                continue
            size = format_size(measure_size(path))
            resume_cache.remove(path)
            print(f"{name}: removed, {size}")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of an entry in the block, if it is free; yields whether it is."""
    lock = FileLock(lock_file(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def read_stats(path: Path) -> Iterator[os.stat_result]:
    """Of a folder and all below it; a running stage may remove files meanwhile."""
    for root, _, names in os.walk(path):
        for name in ("", *names):  # "": the folder itself
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(root, name))


def measure_size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(info.st_size for info in read_stats(path) if stat.S_ISREG(info.st_mode))


def format_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def format_age(path: Path) -> str:
    """Time since a file of the folder was last written."""
    written = max((info.st_mtime for info in read_stats(path)), default=time.time())
    hours = max(0, time.time() - written) / 3600  # another machine's clock may be ahead
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


if __name__ == "__main__":
    main()
