"""Text of unknown origin: names and captions that are not valid UTF-8, lines that are not JSON."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

from stages.runtime.errors import exit_with_error


def valid_utf8(text: str) -> str:
    """Remove what UTF-8 cannot hold (the lone surrogates of broken JSON), and NUL characters.

    The result is in Unicode's composed form (NFC): macOS writes names in the decomposed one, in
    which an accented letter of a class name would not equal that of `classes` in params.yaml.
    """
    return unicodedata.normalize("NFC", text.encode(errors="ignore").decode()).replace("\0", "")


def posix_path(path: str) -> str:
    """A path of any system with `/` between its parts and without a `./` before it."""
    return valid_utf8(path).replace("\\", "/").removeprefix("./")


def refuse_odd_names(files: list[Path], root: Path, label: str) -> None:
    """Exit with an error, which starts with `label`, if a path below `root` is not UTF-8."""
    names = [os.fsencode(file.relative_to(root)) for file in files]
    shown = [name.decode(errors="backslashreplace") for name in names]
    odd = [text for name, text in zip(names, shown) if name != text.encode()]
    if odd:
        exit_with_error(
            f"{label}: {len(odd)} file name(s) not in UTF-8, the first {odd[0]}: "
            "convert them, such as `convmv -r -f latin1 -t utf8 --notest <folder>`"
        )


def parse_json_object(text: str | bytes) -> dict:
    """A JSON object, or {} where the text holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_json(file: Path) -> Any:
    """The value that a JSON file holds; None if it holds none, or can't be read."""
    try:
        return json.loads(file.read_bytes())  # in UTF-8, 16 or 32
    except (ValueError, RecursionError, OSError):
        return None
