"""Extract clean text lines, each with its page, from papers, and choose the held-out papers."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stages.runtime.progress import log, progress_bar
from stages.text import clean, pdf

BLOCK_LINES = 1000  # a text file without reference lists is cut into blocks of this length
MIN_REFERENCE_LISTS = 3  # fewer in a text file do not show where its papers end

Lines = list[tuple[int, str]]  # (page, text)


class Paper(NamedTuple):
    """What was read of one paper."""

    name: str
    pages: int
    lines: Lines
    status: str  # ok or failed
    reason: str  # why it failed, or how it was cut out of a text file; else ""


def read_papers(paths: list[Path], cut_references: bool) -> Iterator[Paper]:
    """Yield every PDF as a paper, then every part of every text file."""
    pdfs = [path for path in paths if path.suffix.lower() == ".pdf"]
    results = pdf.read_all(pdfs)
    for path, result in progress_bar(results, total=len(pdfs), desc="scrape", unit="paper"):
        yield _read_pdf(path, result, cut_references)
    for path in paths:
        if path.suffix.lower() == ".txt":
            yield from _read_text_parts(path, cut_references)


def _read_pdf(path: Path, result: dict, cut_references: bool) -> Paper:
    """Clean the pages of a PDF, given as the result of `pdf.Worker.read`."""
    pages = result.get("pages", [])
    lines = clean_pages(pages, cut_references)
    reason = result.get("reason", "" if lines else "no text left after cleaning")
    if reason:
        log(f"scrape: {path.name} skipped: {reason}")
    return Paper(path.stem, len(pages), lines, "failed" if reason else "ok", reason)


def _read_text_parts(path: Path, cut_references: bool) -> Iterator[Paper]:
    """Yield the parts of a text file as papers; a failed one where it has no text."""
    parts, reason = read_text_file(path, cut_references)
    if not parts:
        log(f"scrape: {path.name} skipped: {reason}")
        yield Paper(path.stem, 0, [], "failed", reason)
        return
    log(f"scrape: {path.name} cut into {len(parts)}: {reason}")
    for name, lines in parts:
        yield Paper(name, 0, lines, "ok", reason)


def clean_pages(pages: list[str], cut_references: bool) -> Lines:
    """Return the clean lines of a PDF's extracted pages, each with its page (from 1)."""
    normalized = [_normalize_lines(page) for page in pages]
    numbered = [
        (number, line)
        for number, page in enumerate(clean.strip_running_lines(normalized), 1)
        for line in page
    ]
    if cut_references:
        ranges = clean.reference_lists([line for _, line in numbered], to_the_end=True)
        references = _indices(ranges)
        numbered = [entry for index, entry in enumerate(numbered) if index not in references]
    joined = clean.join_hyphens([line for _, line in numbered])
    return [(number, line) for (number, _), line in zip(numbered, joined) if line]


def read_text_file(path: Path, cut_references: bool) -> tuple[list[tuple[str, Lines]], str]:
    """Return the parts of a text file as (name, lines), and how the file was cut.

    It is cut behind its reference lists, or into blocks of lines where it has too few lists. An
    unreadable file has no parts; the second value is then the reason.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return [], f"not UTF-8 text (byte {error.start} on); iconv converts it"
    # Text extracted from PDFs has a few NULs, which cleaning removes.
    unprintable = sum(not character.isprintable() and not character.isspace() for character in text)
    if unprintable > len(text) / 20:
        return [], "not text: control characters in it"

    lines = [line for line in _normalize_lines(text) if not clean.PAGE_NUMBER.match(line)]
    ranges = clean.reference_lists(lines, to_the_end=False)
    if len(ranges) >= MIN_REFERENCE_LISTS:
        cuts = [end for _, end in ranges]
        how = "part of a text file, split behind its reference lists"
    else:
        cuts = list(range(BLOCK_LINES, len(lines), BLOCK_LINES))
        how = "contiguous block of a text file"

    references = _indices(ranges) if cut_references else set()
    parts = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(lines)]), 1):
        kept = [lines[index] for index in range(start, end) if index not in references]
        part = [(0, line) for line in clean.join_hyphens(kept) if line]
        if part:
            parts.append((f"{path.stem}_{number:03d}", part))
    return parts, how if parts else "no text left after cleaning"


def _normalize_lines(text: str) -> list[str]:
    """Return the normalized lines of a text without the empty ones."""
    normalized = (clean.normalize(line) for line in text.splitlines())
    return [line for line in normalized if line]


def _indices(ranges: list[tuple[int, int]]) -> set[int]:
    """Return every index in the [start, end) ranges."""
    return {index for start, end in ranges for index in range(start, end)}


def choose_test_papers(line_counts: dict[str, int], fraction: float, min_papers: int) -> set[str]:
    """Choose whole papers for the test split, in the order of their names' SHA-256.

    A paper that would leave less than half of the lines for training is passed over.

    Args:
        line_counts: lines of each paper.
        fraction: share of all lines to reach.
        min_papers: papers to reach; fewer are returned where the training half allows no more.
    """
    total = sum(line_counts.values())
    chosen: set[str] = set()
    test_lines = 0
    for name in sorted(line_counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) >= min_papers and test_lines >= fraction * total:
            break
        if test_lines + line_counts[name] <= total / 2:
            chosen.add(name)
            test_lines += line_counts[name]
    return chosen
