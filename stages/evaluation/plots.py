"""Tables that DVC plots: CSV in git."""

import csv
import io

from stages.common.artifacts import write_atomically


def write_csv(path: str, rows: list[dict], columns: list[str]) -> None:
    """Rows as CSV, the same bytes for the same rows; without rows, the header alone."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, sink.getvalue().encode())
