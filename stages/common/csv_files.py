"""CSV files with a header, in UTF-8."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common.artifacts import write_atomically


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows, with the same bytes for the same rows; without rows, the header alone."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a file, by column."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
