"""Write a Parquet file a part at a time, atomically, in row groups of useful size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 4096  # with a row group per paper, half of a file of short texts would be metadata
GROUP_BYTES = 16 << 20


class RowGroupWriter:
    """Gathers tables, in order, into row groups of `GROUP_ROWS` or `GROUP_BYTES` and more."""

    def __init__(self, writer: pq.ParquetWriter):
        self.writer = writer
        self.waiting: list[pa.Table] = []
        self.rows = 0
        self.bytes = 0

    def write_table(self, table: pa.Table) -> None:
        """Write the rows of a table, now or with later ones."""
        self.waiting.append(table)
        self.rows += len(table)
        self.bytes += table.nbytes
        if self.rows >= GROUP_ROWS or self.bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one row group."""
        if self.rows:
            self.writer.write_table(pa.concat_tables(self.waiting))
        self.waiting, self.rows, self.bytes = [], 0, 0


@contextmanager
def parquet_writer(path: str | Path, schema: pa.Schema) -> Iterator[RowGroupWriter]:
    """Yield a writer whose file replaces `path` when the block ends without an error.

    After an error the new file is removed and the old one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            gathering = RowGroupWriter(writer)
            yield gathering
            gathering.flush()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
