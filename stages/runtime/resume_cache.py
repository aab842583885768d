"""Checkpoints and finished shards of long stages, kept so that a killed run can resume.

They lie in the user's cache folder, where a run in a temporary copy of the repository
(`dvc exp run --temp`) finds them too. Each folder is named by a fingerprint of the stage's params
and inputs, so that a run with other params or inputs never reads it. Of several runs with the same
params and inputs one works; the others wait, and then take what it has finished.

The locks are the kernel's (flock): they end with the process that holds one, however it ends. On a
shared disk the file server ends those of a host that vanished, if it passes locks on between hosts:
NFS 4 does, Lustre where it is mounted with `flock`.
"""

import os
import shlex
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import is_first_process, log

POLL = 1.0  # seconds between two looks at a lock that another process holds
REMIND = 60.0  # seconds between two log lines of a run that waits
SIDE_FILES = ("origin", "hash")  # kinds of files that go with their folder
# In the errors of a full disk. The last is of `torch.save`, which does not say why a file is short.
DISK_FULL = ("No space left", "Disk quota exceeded", "unexpected pos")


def cache_root() -> Path:
    """`$REMOTE_DIFFUSION_SCRATCH`, else the user's cache folder; created if needed."""
    path = Path(os.environ.get("REMOTE_DIFFUSION_SCRATCH") or user_cache_path("remote-diffusion"))
    try:
        # No shell expands the ~ of a `.env` file, a Dockerfile or a service.
        path = path.expanduser()
        if not path.is_absolute():
            exit_with_error(
                f"REMOTE_DIFFUSION_SCRATCH={path}: write an absolute path: else each temporary "
                "copy of an experiment has another such folder, and resumes nothing"
            )
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        exit_with_error(
            f"{path}: {reason}: set REMOTE_DIFFUSION_SCRATCH to a folder where checkpoints and "
            "other temporary files can be written"
        )
    return path


@contextmanager
def resume_folder(stage: str, fingerprint: str) -> Iterator[Path]:
    """A locked folder for one stage and one fingerprint of its params and inputs.

    If another run holds it, this one waits. The folder is removed when the block succeeds and no
    other run waits for it. After a kill or an error it stays, and the next run with the same
    fingerprint gets it. Of several processes of one run the first locks the folder and all share
    it; several machines need it on a disk that all of them see.

    Args:
        stage: the name of the stage.
        fingerprint: of everything that decides the result.
    """
    path = cache_root() / stage / fingerprint
    try:
        with lock_folder(path, stage):
            log_unused_folders(stage, path)
            yield path
            if is_first_process() and not is_awaited(path):
                remove(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not any(words in str(error) for words in DISK_FULL):
            raise
        exit_with_error(
            f"{stage}: the disk is full ({error}). Finished work is kept in {path}: "
            f"{advise_on_full_disk()}"
        )


def advise_on_full_disk() -> str:
    """What to do where the cache's disk may be full. The cache may lie anywhere: a run goes on."""
    root = cache_root()
    return (
        "free some space (`python -m tools.cache` lists what lies there) and run again; or copy "
        f"all of it to a folder on another disk, `cp -a {shlex.quote(str(root))}/. NEW/`, and run "
        "again with REMOTE_DIFFUSION_SCRATCH=NEW: it goes on from there"
    )


def remove(path: Path) -> None:
    """Remove a folder of the cache, which this process has locked, and what lies beside it.

    It is renamed first: where this process is killed meanwhile, no later run takes the rest for
    finished work. The next folder that is removed takes the rest with it.
    """
    path.rename(side_file(path, f"{uuid.uuid4().hex}.removed"))
    for removed in path.parent.glob("*.removed"):
        shutil.rmtree(removed, ignore_errors=True)  # another run may be removing it, too
    for kind in SIDE_FILES:
        side_file(path, kind).unlink(missing_ok=True)


@contextmanager
def lock_folder(path: Path, stage: str) -> Iterator[None]:
    """Create and lock a folder; while another run holds the lock, wait, and say for whom.

    All processes of a run return together, when the first of them has the lock. Beside the folder
    lie `<folder>.lock`, `<folder>.owner`, which names the process that has the lock,
    `<folder>.origin`, which names the folder that the process works in, and a file
    `<folder>.waits-<id>` for each run that waits.

    Args:
        path: the folder.
        stage: the name of the stage, for the log.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(side_file(path, "lock"))
    try:
        if not try_lock(lock, timeout=0):
            wait_for_lock(lock, path, stage)
        path.mkdir(exist_ok=True)
        if is_first_process():
            process = f"process {os.getpid()} on {socket.gethostname()}"
            side_file(path, "owner").write_text(process, encoding="utf-8")
            side_file(path, "origin").write_text(str(Path.cwd()), encoding="utf-8")
        yield
    finally:
        if lock.is_locked:
            side_file(path, "owner").unlink(missing_ok=True)
            lock.release()


def wait_for_lock(lock: FileLock, path: Path, stage: str) -> None:
    """Return when this run has the lock of a folder. A locked file tells others that it waits."""
    waits = FileLock(side_file(path, f"waits-{uuid.uuid4().hex}"))
    if is_first_process():
        waits.acquire()
    log(f"{stage}: waits for {owner(path)}, which works in {path}")
    minutes = 0.0
    try:
        while not try_lock(lock, timeout=REMIND):
            minutes += REMIND / 60
            log(f"{stage}: has waited {minutes:.0f} min for {owner(path)}")
    finally:
        if waits.is_locked:
            Path(waits.lock_file).unlink(missing_ok=True)
            waits.release()


def try_lock(lock: FileLock, timeout: float) -> bool:
    """Let the first process of this run try to get a lock; tell all of them whether it has it.

    Args:
        lock: to acquire.
        timeout: seconds to try for, fewer than processes wait for each other (`processes.TIMEOUT`).
    """
    acquired = [False]
    if is_first_process():
        try:
            lock.acquire(timeout, poll_interval=POLL)
            acquired = [True]
        except Timeout:
            pass
        except PermissionError:
            exit_with_error(
                f"{lock.lock_file}: Permission denied: it belongs to another account: set "
                "REMOTE_DIFFUSION_SCRATCH to a folder of your own"
            )
        except OSError as error:
            exit_with_error(
                f"{lock.lock_file}: {error.strerror}: set REMOTE_DIFFUSION_SCRATCH to a folder on "
                "a disk that can lock files"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(acquired)
    return acquired[0]


def is_awaited(path: Path) -> bool:
    """Whether another run waits for a folder. What runs left that were killed is removed."""
    for file in path.parent.glob(f"{path.name}.waits-*"):
        lock = FileLock(file)
        try:
            with lock.acquire(timeout=0):
                file.unlink(missing_ok=True)
        except Timeout:
            return True
    return False


def owner(path: Path) -> str:
    """Who holds the lock of a folder: `process <id> on <host>`."""
    with suppress(FileNotFoundError):  # it has just ended, or has not yet written its name
        return side_file(path, "owner").read_text("utf-8") or "another run"
    return "another run"


def side_file(path: Path, kind: str) -> Path:
    """The file `<folder>.<kind>`."""
    return path.with_name(f"{path.name}.{kind}")


def log_unused_folders(stage: str, used: Path) -> None:
    """Log the number of folders, of runs with other params or inputs, beside the used one."""
    folders = [path for path in used.parent.iterdir() if path.is_dir() and not path.suffix]
    unused = [path for path in folders if path != used]
    if unused:
        log(
            f"{stage}: {len(unused)} run(s) with other params or inputs, unfinished or at work, "
            f"have their folders in {used.parent} (`python -m tools.cache` lists and empties them)"
        )
