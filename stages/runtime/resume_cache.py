"""Checkpoints and finished shards of long stages, kept so that a killed run can resume.

They lie in the user's cache folder, where a run in a temporary copy of the repository
(`dvc exp run --temp`) finds them too. Each folder is named by a fingerprint of the stage's params
and inputs, so that a run with other params or inputs never reads it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log


def cache_root() -> Path:
    """`$REMOTE_DIFFUSION_SCRATCH`, else the user's cache folder; created if needed."""
    path = Path(os.environ.get("REMOTE_DIFFUSION_SCRATCH") or user_cache_path("remote-diffusion"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        exit_with_error(
            f"{path}: {error.strerror}: set REMOTE_DIFFUSION_SCRATCH to a folder where checkpoints "
            "and other temporary files can be written"
        )
    return path


@contextmanager
def resume_folder(stage: str, fingerprint: str) -> Iterator[Path]:
    """A locked folder for one stage and one fingerprint of its params and inputs.

    It is removed when the block succeeds. After a kill or an error it stays, and the next run with
    the same fingerprint gets it again. Of several processes the first locks the folder and all
    share it; several machines need it on a disk that all of them see.

    Args:
        stage: the name of the stage.
        fingerprint: of everything that decides the result.
    """
    path = cache_root() / stage / fingerprint
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    first_process = int(os.environ.get("RANK", "0")) == 0
    if first_process:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            exit_with_error(
                f"{stage}: another run is working on the same params and inputs ({path})"
            )
        log_unused_folders(stage, path)
    try:
        yield path
        if first_process:
            shutil.rmtree(path)
    except (OSError, SafetensorError) as error:
        if "No space left" not in str(error):
            raise
        exit_with_error(
            f"{stage}: {error}. Finished work is kept in {path}: free some space and run again"
        )
    finally:
        if first_process:
            lock.release()


def log_unused_folders(stage: str, used: Path) -> None:
    """Log the number of folders, of runs with other params or inputs, beside the used one."""
    unused = [path for path in used.parent.iterdir() if path.is_dir() and path != used]
    if unused:
        log(
            f"{stage}: {len(unused)} unfinished run(s) with other params or inputs stay in "
            f"{used.parent}, unused"
        )
