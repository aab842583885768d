"""Start the process of a script: arguments, environment, speed, readable errors, its wall time."""

import argparse
import ctypes
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path

import psutil

from stages.runtime.environment import clear_variables
from stages.runtime.errors import excepthook

PROCESSES = "REMOTE_DIFFUSION_PROCESSES"  # the variable with the number that was launched
TIMED_BY = "REMOTE_DIFFUSION_TIMED_BY"  # the variable with the id of a stage's first process
POLL = 0.5  # seconds between two looks at the parents of this process
GRACE = 10.0  # seconds between SIGTERM and the end of a process


def run_stage(main: Callable[..., None], doc: str | None, **choices: Iterable[str]) -> None:
    """Run the `main` of a stage script, after `--help` and wrong arguments were answered.

    Args:
        main: takes one positional argument per keyword in `choices`, in that order.
        doc: the script's docstring, shown by `--help`.
        choices: the values that each argument allows.

    Raises:
        SystemExit: code 0 after `--help`, code 2 after a usage line for an unknown argument.
    """
    parser = make_parser(f"stages.{Path(sys.argv[0]).stem}", doc)
    for name, values in choices.items():
        parser.add_argument(name, choices=list(values))
    arguments = parser.parse_args()
    start_process()
    main(*(getattr(arguments, name) for name in choices))
    note_time()


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments of `python -m module`, whose help shows `doc` as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def start_process() -> None:
    """Set what makes a process fast and its errors readable. None of it can change a result."""
    sys.excepthook = excepthook
    _use_utf8()
    clear_variables()
    # Containers often forbid Python to keep compiled modules. Without them torch and its
    # libraries take 3 to 10 s longer to import, in each of about 30 stages.
    sys.dont_write_bytecode = False
    # Importing torch and its libraries creates millions of objects and no garbage. At the default
    # threshold of 700 objects the garbage collector takes a sixth of the start-up time.
    gc.set_threshold(50_000)
    # Read when torch loads. OpenMP threads spin while they wait, by default for milliseconds: with
    # anything else on the machine, each small parallel region then costs a scheduler slice (two
    # cores, one of them busy: 21 s a step). Spinning for some 20 microseconds bridges the gaps
    # inside a small model: 8 % faster than no spinning on quiet cores, 15 % where one is busy.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # diffusers imports bitsandbytes if it is installed. On a CPU it then warns about optional
    # kernels that nothing here uses.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    _keep_freed_memory()
    if "DVC_STAGE" in os.environ:
        os.environ.setdefault(TIMED_BY, str(os.getpid()))
    _end_with_parents()


def note_time() -> None:
    """Leave the wall time of a stage that DVC runs in `.dvc/tmp/stage_times/<stage>`, in seconds.

    DVC keeps no times; the report's table of stages shows these. Called where a stage has done its
    work, so that a run that fails leaves the time of the one before. Only the first process of a
    stage leaves its time, not those that it starts.
    """
    if os.environ.get(TIMED_BY) != str(os.getpid()):
        return
    started = psutil.Process().create_time()  # before the imports, s since the epoch
    file = Path(os.environ["DVC_ROOT"]) / ".dvc/tmp/stage_times" / os.environ["DVC_STAGE"]
    with suppress(OSError):  # the disk may be full, with the outputs complete
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{time.time() - started:.2f}\n", "utf-8")


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on SIGINT, SIGTERM and SIGHUP, so that temporary files are removed.

    SIGINT too, where a shell started it in the background and has it ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup`
            signal.signal(number, signal.default_int_handler)


def end_after(wait: Callable[[], object]) -> None:
    """End this process with SIGTERM, or by force if that doesn't, when `wait` returns."""

    def end() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@cache  # the launcher and the stage in its process both start it
def _end_with_parents() -> None:
    """End a stage when DVC or the launcher, which runs it, was killed.

    It would keep the GPU, and overwrite a later run's outputs.
    """
    if not _is_of_a_stage(dict(os.environ)):
        return
    # A shell may stand between, and launchers: what was started has the variable.
    process = psutil.Process()
    started = [process, *takewhile(_was_started, process.parents())]

    def parents() -> list[int]:
        return [each.ppid() for each in started]

    before = parents()

    def wait() -> None:
        with suppress(psutil.NoSuchProcess):  # one between this process and DVC
            while parents() == before:
                time.sleep(POLL)

    end_after(wait)


def _was_started(process: psutil.Process) -> bool:
    """Whether DVC or the launcher started a process."""
    with suppress(psutil.Error):  # of another user
        return _is_of_a_stage(process.environ())
    return False


def _is_of_a_stage(environment: dict[str, str]) -> bool:
    """Whether an environment has DVC's variable, or the launcher's."""
    return "DVC_STAGE" in environment or PROCESSES in environment


def _use_utf8() -> None:
    """Make texts and file names UTF-8 in every locale, and printing never fail."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # A scene in the folder `forêt` would be read as `fort`. Only a new start changes this.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    # What the encoding of the terminal lacks is shown as \xe9 or \u25b2.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # pytest's are not
            stream.reconfigure(errors="backslashreplace")


def _keep_freed_memory() -> None:
    """Let glibc keep freed activations: faulting them in anew is an eighth of `encode`'s time."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc only
        m_trim_threshold = -1
        m_mmap_threshold = -3
        libc.mallopt(m_mmap_threshold, 32 << 20)
        libc.mallopt(m_trim_threshold, 256 << 20)
