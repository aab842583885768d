"""Read the text of every paper, clean it and hold whole papers out.

    python -m stages.scrape

reads   scrape; data/papers
writes  data/corpus.parquet         a row per text line: paper, page, line, text, split (train, test)
        data/papers_report.csv      every paper: pages, lines, status (ok, failed), reason
        metrics/corpus.json

A text file holds no papers: it is split behind its reference lists, or into contiguous blocks where it has fewer than
three, and those parts are the "papers" (page 0; `min_papers` counts PDFs only). One that isn't UTF-8 text has failed.
"""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common import artifacts
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text.papers import held_out, read
from stages.text.parquet_writer import parquet_writer

PAPERS, CORPUS, REPORT = (
    Path("data/papers"),
    Path("data/corpus.parquet"),
    Path("data/papers_report.csv"),
)
SCHEMA = pa.schema(
    [
        ("paper", pa.string()),
        ("page", pa.int32()),
        ("line", pa.int32()),
        ("text", pa.string()),
        ("split", pa.string()),
    ]
)


def write_split(unsplit: pq.ParquetFile, test: set[str]) -> None:
    """Write `CORPUS` with its split column, a paper in memory at a time."""
    with parquet_writer(CORPUS, SCHEMA) as writer:
        for group in range(unsplit.num_row_groups):
            table = unsplit.read_row_group(group)
            split = ["test" if name in test else "train" for name in table["paper"].to_pylist()]
            writer.write_table(table.set_column(4, SCHEMA.field("split"), pa.array(split)))


def main() -> None:
    p = load().scrape
    papers = sorted(path for path in PAPERS.iterdir() if path.suffix.lower() in (".pdf", ".txt"))
    if not papers:
        exit_with_error(f"{PAPERS}: no PDF or text file (fetch_papers.source)")

    # Read and clean, a paper in memory at a time.
    report, counts, characters, unsplit = [], {}, 0, CORPUS.with_name("unsplit.parquet")
    with parquet_writer(unsplit, SCHEMA) as writer:
        for paper, pages, lines, status, reason in read(papers, p.cut_references):
            report.append((paper, pages, len(lines), status, reason))
            if status == "ok":
                counts[paper] = len(lines)
                characters += sum(len(text) for _, text in lines)
                writer.write_table(
                    pa.Table.from_pylist(
                        [
                            {"paper": paper, "page": page, "line": n, "text": text}
                            for n, (page, text) in enumerate(lines, 1)
                        ],
                        SCHEMA,
                    )
                )
        failed = [f"{row[0]}: {row[4]}" for row in report if row[3] == "failed"]
        pdfs = any(path.suffix.lower() == ".pdf" for path in papers)
        if (pdfs and len(counts) < p.min_papers) or not counts:
            why = "; ".join(failed)[:1000] or "none failed"
            exit_with_error(
                f"scrape.min_papers: {len(counts)} of {len(report)} papers are readable, fewer than {p.min_papers}: {why}"
            )

        # Hold whole papers out, by their names.
        test = held_out(counts, p.test_fraction, p.min_test_papers)
        if len(test) < p.min_test_papers:
            exit_with_error(
                f"scrape.min_test_papers: only {len(test)} of {len(counts)} papers can be held out with half of the text "
                f"left to train on, not {p.min_test_papers}"
            )
    write_split(pq.ParquetFile(unsplit), test)
    unsplit.unlink()

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("paper", "pages", "lines", "status", "reason"), *report]
    )
    artifacts.write_atomically(REPORT, text.getvalue().encode())
    artifacts.write_json(
        "metrics/corpus.json",
        {
            "papers": len(counts),
            "papers_failed": len(failed),
            "papers_test": len(test),
            "lines": sum(counts.values()),
            "lines_test": sum(counts[name] for name in test),
            "characters": characters,
        },
    )
    log(
        f"scrape: {len(counts)} papers ({len(failed)} failed, {len(test)} held out), {sum(counts.values())} lines "
        f"({sum(counts[name] for name in test) / sum(counts.values()):.0%} held out)"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
