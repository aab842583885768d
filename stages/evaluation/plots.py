"""Tables that DVC plots: CSV in git."""

import csv
import io

from stages.common.artifacts import replace


def write_csv(path: str, rows: list[dict], columns: list[str]) -> None:
    """Rows as CSV, the same bytes for the same rows; without rows, the header alone."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(path, sink.getvalue().encode())
