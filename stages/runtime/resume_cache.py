"""Scratch of long stages: checkpoints and finished shards, in the user's cache folder, so that a killed run goes on.

Keyed by a fingerprint of the stage's params and inputs, hence never picked up after either changed, and found again by
a run in a temporary copy of the repository (`dvc exp run --temp`).
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log


def cache_root() -> Path:
    """`$REMOTE_DIFFUSION_SCRATCH`, else the user's cache folder; made where there is none."""
    path = Path(os.environ.get("REMOTE_DIFFUSION_SCRATCH") or user_cache_path("remote-diffusion"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        exit_with_error(
            f"{path}: {fault.strerror}: set REMOTE_DIFFUSION_SCRATCH to a folder that scratch files can be written to"
        )
    return path


@contextmanager
def resume_folder(stage: str, mark: str, keep: bool = False):
    """A locked folder for one stage at one fingerprint; removed when the block ends well, unless `keep`.

    Left behind by a kill or an error, it is found again by the next run with the same fingerprint. Under several processes
    the first locks it and the others share it; several machines need it on a disk that all see.
    """
    path = cache_root() / stage / mark
    path.mkdir(parents=True, exist_ok=True)
    first = int(os.environ.get("RANK", "0")) == 0
    lock = FileLock(path.with_suffix(".lock"))
    if first:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            exit_with_error(
                f"{stage}: another run is working on the same params and inputs ({path})"
            )
        if others := [p.name for p in path.parent.iterdir() if p.is_dir() and p != path]:
            log(
                f"{stage}: {len(others)} unfinished run(s) of other params or inputs stay in {path.parent}, unused"
            )
    try:
        yield path
        if first and not keep:
            shutil.rmtree(path)
    except (OSError, SafetensorError) as fault:
        if "No space left" not in str(fault):
            raise
        exit_with_error(
            f"{stage}: {fault}. What is finished is kept in {path}: free some space and run again"
        )
    finally:
        if first:
            lock.release()
