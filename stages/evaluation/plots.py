"""Tables that DVC plots: CSV files in git."""

import csv
import io

from stages.common.artifacts import write_atomically


def write_csv(path: str, rows: list[dict], columns: list[str]) -> None:
    """Write rows as CSV, with the same bytes for the same rows; without rows, the header alone."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
