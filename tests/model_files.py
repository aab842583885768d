"""Files of small models, and the stage that fetches them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


def write_text(path: Path, content) -> None:
    """Write a string, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_tensors(path: Path, value: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full((4, 4), value, np.float32)}, path)


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of each file, keyed by its path relative to the folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def refused(fetch, role: str, source: str) -> str:
    """The error line of the stage. What an older run wrote is still there."""
    before = files_below(Path("models"))
    with pytest.raises(SystemExit) as stopped:
        fetch(role, source)
    line = str(stopped.value)
    assert line.startswith(("error: ", "params.yaml: ")) and "\n" not in line and role in line
    assert (
        files_below(Path("models")) == before and not Path("models/base", role + ".part").exists()
    )
    return line
