"""The stages of the pipeline: `dvc.yaml` runs them, one script each."""

import ctypes
import gc
import os
import sys

# libgomp's threads spin while they wait, by default for milliseconds: with anything else on the machine, each small parallel
# region then costs a scheduler slice (2 cores, one taken: 21 s a step). Some 20 microseconds bridge the gaps between the regions of
# a small model: 8 % off its step on quiet cores, 15 % more where one is taken, against not spinning. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Containers often forbid Python to keep compiled modules. With torch's kin that costs each of some thirty stages 3 to 10 seconds.
sys.dont_write_bytecode = False

# Importing torch and its kin makes millions of objects and no garbage: looked for every 700 of them, it takes a sixth of the start.
gc.set_threshold(50_000)

# glibc hands every freed activation back to the system, and the next one is faulted in anew: an eighth of `encode`'s time.
if sys.platform == "linux" and hasattr(_libc := ctypes.CDLL(None), "mallopt"):
    _libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes
    _libc.mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


def _explain(kind, fault, trace) -> None:
    from stages.runtime.errors import excepthook

    excepthook(kind, fault, trace)


sys.excepthook = (
    _explain  # of whatever ends a process; a debugger or a test sees the exception itself
)


def _note_time() -> None:
    """Leave the wall time of a stage that DVC runs in `.dvc/tmp/stage_times`: DVC keeps none, and the report shows them.

    The stage's first process does, not those that it starts. Nothing but the page's diagram reads them.
    """
    import atexit
    import time
    from contextlib import suppress
    from pathlib import Path

    stage, root = os.environ.get("DVC_STAGE"), os.environ.get("DVC_ROOT")
    if (
        not stage
        or not root
        or os.environ.setdefault("REMOTE_DIFFUSION_TIMED_BY", str(os.getpid())) != str(os.getpid())
    ):
        return
    started = time.monotonic()

    def note() -> None:
        folder = Path(root) / ".dvc/tmp/stage_times"
        with suppress(OSError):  # a full disk has been told of
            folder.mkdir(parents=True, exist_ok=True)
            (folder / stage).write_text(f"{time.monotonic() - started:.2f}\n")

    atexit.register(note)


_note_time()
