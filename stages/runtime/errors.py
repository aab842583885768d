"""Bad input ends a stage in one clear line and exit code 1."""

import sys
import traceback
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

ROOT = Path(__file__).parents[2]


def exit_with_error(message: str) -> NoReturn:
    """Stop with one line. Name the file or the params key that is at fault and what would be right."""
    sys.exit(_line(message))


def excepthook(kind: type[BaseException], fault: BaseException, trace) -> None:
    """`sys.excepthook`: one line where a file cannot be read or written, or the command has a word too many; else the traceback."""
    frames = traceback.extract_tb(trace)
    module = kind.__module__.partition(".")[0]
    if isinstance(fault, OSError) and fault.filename and fault.strerror:
        message = f"{fault.filename}: {fault.strerror}"
    elif isinstance(fault, OSError) or module in ("pyarrow", "safetensors"):
        message = f"{fault}"
    else:
        return sys.__excepthook__(kind, fault, trace)
    if isinstance(fault, FileNotFoundError):
        message += "; `dvc repro` makes what other stages write"
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "stages")]
    place = f" ({Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno})" if ours else ""
    print(_line(message + place), file=sys.stderr)


def _line(message: str) -> str:
    for bar in list(
        getattr(tqdm, "_instances", ())
    ):  # made with the first bar; an open one keeps the log's line open
        bar.close()
    return f"error: {' '.join(message.split())}"
