"""Papers to clean lines, each with its page, and which papers are held out."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from stages.runtime.progress import log, progress_bar
from stages.text import clean, pdf

BLOCK = 1000  # lines per block of a text file without reference lists

Lines = list[tuple[int, str]]  # (page, text)


def read_paper(pages: list[str], cut_references: bool) -> Lines:
    """The clean lines of a PDF's raw page texts, each with its page (from 1)."""
    cleaned = clean.body(
        [[line for raw in page.splitlines() if (line := clean.normalize(raw))] for page in pages]
    )
    numbers = [number for number, page in enumerate(cleaned, 1) for _ in page]
    lines = [line for page in cleaned for line in page]
    cut = (
        {at for a, b in clean.references(lines, True) for at in range(a, b)}
        if cut_references
        else set()
    )
    kept = [at for at in range(len(lines)) if at not in cut]
    joined = clean.join_hyphens([lines[at] for at in kept])
    return [(numbers[at], line) for at, line in zip(kept, joined) if line]


def read_text(path: Path, cut_references: bool) -> tuple[list[tuple[str, Lines]], str]:
    """The parts of a text file as (name, lines), and how they were cut; or no parts, and why."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        return [], f"not UTF-8 text (byte {fault.start} on); iconv converts it"
    # Some: extraction from PDFs leaves NULs and the like, which cleaning removes.
    if sum(not letter.isprintable() and not letter.isspace() for letter in text) > len(text) / 20:
        return [], "not text: control characters in it"
    raw = text.splitlines()
    lines = [
        line for text in raw if (line := clean.normalize(text)) and not clean.NUMBER.match(line)
    ]
    lists = clean.references(lines, False)
    ends = [end for _, end in lists] if len(lists) >= 3 else list(range(BLOCK, len(lines), BLOCK))
    how = (
        "part of a text file, split behind its reference lists"
        if len(lists) >= 3
        else "contiguous block of a text file"
    )
    cut = {at for a, b in lists for at in range(a, b)} if cut_references else set()
    parts = []
    for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(lines)]), 1):
        joined = clean.join_hyphens([lines[at] for at in range(start, end) if at not in cut])
        if part := [(0, line) for line in joined if line]:
            parts.append((f"{path.stem}_{number:03d}", part))
    return parts, how if parts else "no text left after cleaning"


def read(papers: list[Path], cut_references: bool) -> Iterator[tuple[str, int, Lines, str, str]]:
    """Yield (paper, pages, lines, status, reason) for every PDF, then for every part of every text file."""
    pdfs = [path for path in papers if path.suffix.lower() == ".pdf"]
    for path, answer in progress_bar(
        pdf.read_all(pdfs), total=len(pdfs), what="scrape", unit="paper"
    ):
        lines = read_paper(answer["pages"], cut_references) if "pages" in answer else []
        reason = answer.get("reason", "" if lines else "no text left after cleaning")
        if reason:
            log(f"scrape: {path.name} skipped: {reason}")
        yield path.stem, len(answer.get("pages", [])), lines, "failed" if reason else "ok", reason
    for path in papers:
        if path.suffix.lower() == ".txt":
            parts, how = read_text(path, cut_references)
            log(
                f"scrape: {path.name} "
                + (f"cut into {len(parts)}: {how}" if parts else f"skipped: {how}")
            )
            if not parts:
                yield path.stem, 0, [], "failed", how
            for name, lines in parts:
                yield name, 0, lines, "ok", how


def held_out(lines: dict[str, int], fraction: float, least: int) -> set[str]:
    """Papers for the test split: in the order of their names' hashes, until both shares are met.

    A paper that would leave less than half of the lines to train on is passed over (a book among leaflets).
    """
    chosen, total, taken = set(), sum(lines.values()), 0
    for paper in sorted(lines, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) >= least and taken >= fraction * total:
            break
        if taken + lines[paper] <= total / 2:
            chosen.add(paper)
            taken += lines[paper]
    return chosen
