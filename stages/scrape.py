"""Extract the text of every paper, clean it and hold whole papers out.

    python -m stages.scrape

reads   scrape; data/papers
writes  data/corpus.parquet         one row per text line: paper, page, line, text, split
        data/papers_report.csv      every paper: pages, lines, status (ok, failed), reason
        metrics/corpus.json

A text file does not list the papers in it. It is cut behind its reference lists, or into blocks
of lines where it has fewer than three, and each part counts as a paper (page 0; `min_papers`
applies only where there are PDFs). A file that is not UTF-8 text has failed.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common import artifacts
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text.papers import Paper, choose_test_papers, read_papers
from stages.text.parquet_writer import parquet_writer

PAPERS = Path("data/papers")
CORPUS = Path("data/corpus.parquet")
UNSPLIT = Path("data/unsplit.parquet")  # the corpus until the test papers are chosen
REPORT = Path("data/papers_report.csv")
SCHEMA = pa.schema(
    [
        ("paper", pa.string()),
        ("page", pa.int32()),
        ("line", pa.int32()),
        ("text", pa.string()),
        ("split", pa.string()),  # train or test; null in UNSPLIT
    ]
)


class ReportRow(NamedTuple):
    """A row of `REPORT`."""

    paper: str
    pages: int
    lines: int
    status: str  # ok or failed
    reason: str


def main() -> None:
    params = load()
    config = params.scrape
    paths = sorted(path for path in PAPERS.iterdir() if path.suffix.lower() in (".pdf", ".txt"))
    if not paths:
        exit_with_error(f"{PAPERS}: no PDF or text file (fetch_papers.source)")

    # Read and clean, with one paper in memory at a time.
    report = []
    line_counts = {}  # of the readable papers
    characters = 0
    with parquet_writer(UNSPLIT, SCHEMA) as writer:
        for paper in read_papers(paths, config.cut_references):
            report.append(
                ReportRow(paper.name, paper.pages, len(paper.lines), paper.status, paper.reason)
            )
            if paper.status == "ok":
                line_counts[paper.name] = len(paper.lines)
                characters += sum(len(text) for _, text in paper.lines)
                writer.write_table(paper_table(paper))
        has_pdfs = any(path.suffix.lower() == ".pdf" for path in paths)
        refuse_few_papers(report, config.min_papers if has_pdfs else 1)

        # Hold whole papers out, by the hashes of their names.
        test = choose_test_papers(line_counts, config.test_fraction, config.min_test_papers)
        if len(test) < config.min_test_papers:
            exit_with_error(
                f"scrape.min_test_papers: {config.min_test_papers} papers cannot be held out: only "
                f"{len(test)} of {len(line_counts)} leave half of the text for training"
            )
    write_corpus(test)
    write_report(report)

    lines = sum(line_counts.values())
    test_lines = sum(line_counts[name] for name in test)
    failed = len(report) - len(line_counts)
    artifacts.write_json(
        "metrics/corpus.json",
        {
            "papers": len(line_counts),
            "papers_failed": failed,
            "papers_test": len(test),
            "lines": lines,
            "lines_test": test_lines,
            "characters": characters,
        },
    )
    log(
        f"scrape: {len(line_counts)} papers ({failed} failed, {len(test)} held out), {lines} lines "
        f"({test_lines / lines:.0%} held out)"
    )


def paper_table(paper: Paper) -> pa.Table:
    """Return the rows of one paper, without a split."""
    rows = [
        {"paper": paper.name, "page": page, "line": number, "text": text}
        for number, (page, text) in enumerate(paper.lines, 1)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def refuse_few_papers(report: list[ReportRow], min_papers: int) -> None:
    """Exit with an error that lists the failed papers, where too few are readable."""
    failed = [row for row in report if row.status == "failed"]
    readable = len(report) - len(failed)
    if readable < min_papers:
        reasons = "; ".join(f"{row.paper}: {row.reason}" for row in failed)
        exit_with_error(
            f"scrape.min_papers: {readable} of {len(report)} papers are readable, fewer than "
            f"{min_papers}: {reasons[:1000] or 'none failed'}"
        )


def write_corpus(test: set[str]) -> None:
    """Write `CORPUS` from `UNSPLIT` with its column `split`, with one paper in memory at a time."""
    unsplit = pq.ParquetFile(UNSPLIT)
    position = SCHEMA.get_field_index("split")
    with parquet_writer(CORPUS, SCHEMA) as writer:
        for group in range(unsplit.num_row_groups):
            table = unsplit.read_row_group(group)
            split = ["test" if name in test else "train" for name in table["paper"].to_pylist()]
            column = pa.array(split)
            writer.write_table(table.set_column(position, SCHEMA.field("split"), column))
    UNSPLIT.unlink()


def write_report(report: list[ReportRow]) -> None:
    """Write `REPORT`, a CSV file with a row per paper."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([ReportRow._fields, *report])
    artifacts.write_atomically(REPORT, text.getvalue().encode())


if __name__ == "__main__":
    run_stage(main, __doc__)
