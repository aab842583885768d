"""Errors that a user can mend end the process with one line and exit code 1."""

import errno
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from stages.runtime.damage import explain_damage, note_changed_file
from stages.runtime.redaction import redact

REPOSITORY = Path(__file__).parents[2]


def exit_with_error(message: str) -> NoReturn:
    """End the process with exit code 1 and one line on stderr.

    The message names the file or the params key that is wrong, and says what would be right.
    """
    sys.exit(_error_line(message))


def excepthook(
    error_type: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print one line for a file that cannot be read or written, a command that is not installed,
    too little memory, another process that ended, and Ctrl-C.

    Any other error gets its traceback. `start_process` installs it as `sys.excepthook`.
    """
    # Python itself ends with the signal. A library may answer it by an error of its own.
    if KeyboardInterrupt in (error_type, type(error.__context__)):
        if "LOCAL_RANK" not in os.environ:  # of several processes: stages.runtime.supervise says it
            print("interrupted", file=sys.stderr)
        return
    library = error_type.__module__.partition(".")[0]
    missing_file = isinstance(error, FileNotFoundError) and not _raised_by_subprocess(trace)
    is_of_content = _is_of_content(error)
    damage = explain_damage() if is_of_content else None
    changed = note_changed_file() if is_of_content else ""
    if damage:
        message = f"{damage}: {error}"
    elif isinstance(error, FileNotFoundError) and not missing_file:
        message = f"{error.filename}: command not found; install it or put it on PATH"
    elif isinstance(error, OSError) and error.filename and error.strerror:
        # Of a copy onto a full disk, the second file is the one that could not be written.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = f"{(full and error.filename2) or error.filename}: {error.strerror}"
    elif error_type.__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # of torch
        message = f"out of memory: {str(error)[:200]}: a smaller batch, context or model needs less"
    elif "logs of the remote worker" in str(error):  # of gloo, which connects processes on CPUs
        message = "another process of the stage has ended; its own line says why"
    elif missing_file and " " not in str(error):  # pyarrow names the file and nothing else
        message = f"{error}: No such file or directory"
    elif isinstance(error, OSError) or library in ("pyarrow", "safetensors"):
        message = f"{error}"
    else:
        lines = traceback.format_exception(error_type, error, trace)
        lines += [f"{changed}\n"] if changed else []
        print(redact("".join(lines)), end="", file=sys.stderr)
        return
    if missing_file:
        message += "; `dvc repro` makes what other stages write"
    message += _project_location(trace)
    print(_error_line(f"{message}; {changed}" if changed else message), file=sys.stderr)


def _is_of_content(error: BaseException) -> bool:
    """Whether an error may say that a file was opened and then could not be understood."""
    if isinstance(error, OSError):
        return error.errno is None
    # A ValueError: no JSON, no UTF-8, or too short for the array that is mapped into memory.
    if isinstance(error, ValueError | EOFError):
        return True
    return type(error).__module__.partition(".")[0] in ("PIL", "pyarrow", "safetensors")


def _raised_by_subprocess(trace: TracebackType | None) -> bool:
    """Whether an error was raised by starting a command."""
    frames = traceback.extract_tb(trace)
    return bool(frames) and frames[-1].filename == subprocess.__file__


def _project_location(trace: TracebackType | None) -> str:
    """The innermost line of project code in a traceback, as ` (stages/fid.py:12)`; "" if none."""
    for frame in reversed(traceback.extract_tb(trace)):
        file = Path(frame.filename)
        if any(file.is_relative_to(REPOSITORY / folder) for folder in ("stages", "tools")):
            return f" ({file.relative_to(REPOSITORY)}:{frame.lineno})"
    return ""


def _error_line(message: str) -> str:
    """`error: <message>` on one line, without secrets.

    Closes open progress bars, which share the terminal.
    """
    # tqdm creates the attribute with the first bar.
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    return f"error: {redact(' '.join(message.split()))}"
