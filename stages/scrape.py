"""Extract the text of every paper, clean it and hold whole papers out.

    python -m stages.scrape

reads   scrape; data/papers
writes  data/corpus.parquet         one row per text line: paper, page, line, text, split
        data/papers_report.csv      every file: pages, lines, status, reason, what was cut out
        metrics/corpus.json

The status is ok; failed (no text could be read); copy (another paper has the same text, or is a
newer version); skipped (`fetch_papers` found no paper in it). Only papers that are ok are counted,
held out and written.

A file is a paper. But a text file with three or more reference lists is cut behind these, and one
without, if it is the only file, into blocks of lines; each part counts as a paper (page 0).
`min_papers` does not apply to a text file that is the only file. One that is not UTF-8 has failed.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.common import artifacts
from stages.common.csv_files import write_csv
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text.clean import Cuts
from stages.text.duplicates import find_copies, sketch
from stages.text.language import is_english
from stages.text.paper_files import SUFFIXES
from stages.text.papers import Paper, choose_test_papers, describe_cuts, is_corpus, read_papers
from stages.text.parquet_writer import parquet_writer
from stages.text.sentences import join_lines

PAPERS = Path("data/papers")
CORPUS = Path("data/corpus.parquet")
UNSPLIT = Path("data/unsplit.parquet")  # the corpus until the test papers are chosen
REPORT = Path("data/papers_report.csv")
NOT_ENGLISH = "not in English"
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
    status: str  # ok, failed, copy or skipped
    reason: str
    pages_read: int = 0  # pages of a PDF with readable words
    references: int = 0  # lines of reference lists that were cut out
    running_lines: int = 0  # headers, footers, page numbers and stamps that were cut out
    tables: int = 0  # lines of pages of tables that were cut out
    line_numbers: int = 0  # numbers of lines that were removed from them


def main() -> None:
    params = load()
    config = params.scrape
    paths = sorted(path for path in PAPERS.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        exit_with_error(f"{PAPERS}: no paper (fetch_papers.source)")

    # Read and clean, with one paper in memory at a time.
    report = []
    sketches = {}  # of the readable papers
    characters = {}  # ditto
    with parquet_writer(UNSPLIT, SCHEMA) as writer:
        for paper in read_papers(paths, config.cut_references):
            text = join_lines([text for _, text in paper.lines])
            report.append(report_row(paper, text))
            if paper.status == "ok":
                sketches[paper.name] = sketch(text)
                characters[paper.name] = sum(len(text) for _, text in paper.lines)
                writer.write_table(paper_table(paper))
        report = [*mark_copies(report, sketches, characters), *skipped_files()]
        counts = Counter(row.status for row in report)
        refuse_few_papers(report, paths, config.min_papers)

        # Hold whole papers out, by the hashes of their names.
        line_counts = {row.paper: row.lines for row in report if row.status == "ok"}
        test = choose_test_papers(line_counts, config.test_fraction, config.min_test_papers)
        refuse_few_test_papers(len(test), config.min_test_papers, counts)
    write_corpus(set(line_counts), test)
    write_csv(REPORT, [row._asdict() for row in report], ReportRow._fields)
    log_cuts(report)
    foreign = [row.paper for row in report if NOT_ENGLISH in row.reason]
    if foreign:
        log(f"scrape: {len(foreign)} papers {NOT_ENGLISH}, as prompts are: {foreign[0]}, ...")

    lines = sum(line_counts.values())
    test_lines = sum(line_counts[name] for name in test)
    artifacts.write_json(
        "metrics/corpus.json",
        {
            "papers": counts["ok"],
            "papers_failed": counts["failed"],
            "papers_copies": counts["copy"],
            "files_skipped": counts["skipped"],
            "papers_test": len(test),
            "lines": lines,
            "lines_test": test_lines,
            "characters": sum(characters[name] for name in line_counts),
        },
    )
    log(
        f"scrape: {counts['ok']} papers ({counts['failed']} failed, {counts['copy']} copies and "
        f"{counts['skipped']} other files left out, {len(test)} held out), {lines} lines "
        f"({test_lines / lines:.0%} held out)"
    )


def report_row(paper: Paper, text: str) -> ReportRow:
    """Return the row of a paper, which says where its text is not in English."""
    reason = paper.reason
    if paper.status == "ok" and not is_english(text):
        reason = f"{reason}; {NOT_ENGLISH}".removeprefix("; ")
    row = ReportRow(paper.name, paper.pages, len(paper.lines), paper.status, reason)
    return row._replace(pages_read=paper.pages_read, **paper.cuts._asdict())


def mark_copies(
    report: list[ReportRow], sketches: dict[str, np.ndarray], characters: dict[str, int]
) -> list[ReportRow]:
    """Return the rows, with the status `copy` for papers that another one repeats."""
    copies = find_copies(sketches, characters)
    rows = []
    for row in report:
        if row.paper in copies:
            reason = f"the text of {copies[row.paper]}, or an older version of it"
            log(f"scrape: {row.paper} left out: {reason}")
            row = row._replace(status="copy", reason=reason)
        rows.append(row)
    return rows


def skipped_files() -> list[ReportRow]:
    """Return the rows of the source's files that `fetch_papers` has not copied."""
    source = PAPERS / "SOURCE.json"
    skipped = artifacts.read_json(source).get("skipped", {}) if source.exists() else {}
    return [ReportRow(name, 0, 0, "skipped", reason) for name, reason in skipped.items()]


def paper_table(paper: Paper) -> pa.Table:
    """Return the rows of one paper, without a split."""
    rows = [
        {"paper": paper.name, "page": page, "line": number, "text": text}
        for number, (page, text) in enumerate(paper.lines, 1)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def refuse_few_papers(report: list[ReportRow], paths: list[Path], min_papers: int) -> None:
    """Exit with an error that lists the unusable papers, where too few are readable.

    One paper of a corpus (`is_corpus`) is enough.
    """
    papers = [row for row in report if row.status != "skipped"]
    unusable = [row for row in papers if row.status != "ok"]
    readable = len(papers) - len(unusable)
    if readable < (1 if is_corpus(paths) else min_papers):
        message = f"scrape.min_papers: {readable} of {len(papers)} papers are readable and no "
        message += f"copies, fewer than {min_papers}"
        reasons = "; ".join(f"{row.paper}: {row.reason}" for row in unusable)
        if reasons:
            message += f": {reasons[:1000]}"
        if any(path.suffix.lower() == ".txt" for path in paths):
            message += (
                "; a text file without reference lists is cut into papers only if it is the only "
                "file"
            )
        remedy = "lower scrape.min_papers and scrape.min_test_papers, or " if readable else ""
        exit_with_error(f"{message}; {remedy}add papers")


def refuse_few_test_papers(count: int, min_papers: int, counts: Counter[str]) -> None:
    """Exit with an error where `count` papers can be held out, fewer than `min_papers`.

    `counts` are the papers by their status.
    """
    if count < min_papers:
        copies = f" ({counts['copy']} copies left out)" if counts["copy"] else ""
        exit_with_error(
            f"scrape.min_test_papers: {min_papers} papers cannot be held out: half of the text "
            f"must be left for training, which allows {count} of {counts['ok']}{copies}; write "
            f"{count}, or add papers"
        )


def write_corpus(papers: set[str], test: set[str]) -> None:
    """Write these papers of `UNSPLIT` to `CORPUS`, with the column `split`.

    One row group is in memory at a time.
    """
    unsplit = pq.ParquetFile(UNSPLIT)
    position = SCHEMA.get_field_index("split")
    with parquet_writer(CORPUS, SCHEMA) as writer:
        for group in range(unsplit.num_row_groups):
            table = unsplit.read_row_group(group)
            table = table.filter(pa.array([name in papers for name in table["paper"].to_pylist()]))
            splits = ["test" if name in test else "train" for name in table["paper"].to_pylist()]
            column = pa.array(splits, pa.string())
            writer.write_table(table.set_column(position, SCHEMA.field("split"), column))
    UNSPLIT.unlink()


def log_cuts(report: list[ReportRow]) -> None:
    """Log how much was cut out of all papers."""
    cuts = Cuts(*(sum(getattr(row, name) for row in report) for name in Cuts._fields))
    log(f"scrape: cut out {describe_cuts(cuts)}, and {cuts.line_numbers} line numbers ({REPORT})")


if __name__ == "__main__":
    run_stage(main, __doc__)
