"""Extract clean text lines, each with its page, from papers, and choose the held-out papers."""

import hashlib
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stages.runtime.progress import log, progress_bar
from stages.text import clean, formats, legibility, pdf
from stages.text.clean import Cuts, Lines
from stages.text.hyphens import join_hyphens, word_counts
from stages.text.language import find_words
from stages.text.paper_files import PANDOC_FORMATS, decode, name_key, unused_name
from stages.text.reading_order import split_columns
from stages.text.references import reference_lists
from stages.text.running_lines import PAGE_NUMBER

PARAGRAPH_CHARACTERS = 200  # a longer line of a text file is a paragraph
BLOCK_LINES = 1000  # a text file without reference lists is cut into blocks of this length
MIN_REFERENCE_LISTS = 3  # fewer in a text file do not show where its papers end
# The heading of a reference list right behind the last sentence, as pypdf may write it.
GLUED_HEADING = re.compile(
    r"(?<=[A-Za-z)]) ?\. ?(REFERENCES|References|BIBLIOGRAPHY|Bibliography) ?$", re.MULTILINE
)
# The same in the middle of a paragraph, in front of the first entry: "[1] A. Smith", "1. Smith",
# "Smith, A.", "Ann Smith". In capital letters it is a heading in front of any name.
INNER_HEADING = re.compile(
    r"(?: |(?<=[.!?)\]\d]))(R ?EFERENCES|B ?IBLIOGRAPHY) (?=(?:\[\w+\] |1\.? )?[A-ZÀ-Þ])|"
    r"(?<=[.!?)\]\d]) ?(References|Bibliography) "
    r"(?=\[\w+\] [A-ZÀ-Þ]|1\.? [A-ZÀ-Þ]|[A-ZÀ-Þ][\w.'’-]*,? [A-ZÀ-Þ])"
)
FEW_WORDS = f"fewer than {formats.MIN_PROSE_WORDS} words"
NO_CUTS = Cuts()
LARGE_CUT = 0.5  # a paper that loses more of its lines is named in the log


class Paper(NamedTuple):
    """What was read of one paper."""

    name: str
    pages: int
    lines: Lines
    status: str  # ok or failed
    reason: str  # why it failed, what was not read, how it was cut out of a text file; else ""
    pages_read: int = 0  # with words
    cuts: Cuts = NO_CUTS


def read_papers(paths: list[Path], cut_references: bool) -> Iterator[Paper]:
    """Yield every PDF as a paper, then Markdown, LaTeX and the like, then text files.

    A text file that is a corpus is cut into papers. Each name is unique: that of `survey.txt` gets
    a number beside `survey.pdf`. Words that are hyphenated at a line's end are joined as all papers
    write them: the papers wait in a temporary file until the last one is read.
    """
    words: Counter[str] = Counter()
    count = 0
    with tempfile.TemporaryFile() as waiting:
        for paper in _read_files(paths, cut_references):
            words.update(word_counts([text for _, text in paper.lines]))
            pickle.dump(paper, waiting)
            count += 1
        waiting.seek(0)
        for _ in range(count):
            paper = pickle.load(waiting)
            joined = join_hyphens([text for _, text in paper.lines], words)
            texts = map(clean.drop_citations, joined)
            lines = [(page, text) for (page, _), text in zip(paper.lines, texts) if text]
            yield paper._replace(lines=lines)


def is_corpus(paths: list[Path]) -> bool:
    """Return whether the files are a single text file, which may hold many papers."""
    return [path.suffix.lower() for path in paths] == [".txt"]


def _read_files(paths: list[Path], cut_references: bool) -> Iterator[Paper]:
    """Yield the papers of `read_papers` with the line ends of the files."""
    pdfs = [path for path in paths if path.suffix.lower() == ".pdf"]
    results = pdf.read_all(pdfs)
    names = {name_key(path.stem) for path in paths if path.suffix.lower() != ".txt"}
    for path, result in progress_bar(results, total=len(pdfs), desc="scrape", unit="paper"):
        yield _read_pdf(path, result, cut_references)
    for path in paths:
        if path.suffix.lower() in PANDOC_FORMATS:
            yield _read_with_pandoc(path, cut_references)
    for path in paths:
        if path.suffix.lower() == ".txt":
            for paper in read_text_file(path, cut_references, is_corpus(paths)):
                name = unused_name(paper.name, names)
                names.add(name_key(name))
                yield paper._replace(name=name)


def _read_pdf(path: Path, result: dict, cut_references: bool) -> Paper:
    """Clean the pages of a PDF, given as the result of `pdf.Worker.read`."""
    if "reason" in result:
        return _failed(path, result["reason"])
    pages = len(result["pages"])
    lines, cuts, pages_read = clean.clean_pages(result["pages"], result["heights"], cut_references)
    share = f"text on {pages_read} of {pages} pages"
    few = f"fewer than {legibility.MIN_PAGE_WORDS} words"
    reason = ""
    if pages_read < pages / 2:
        reason = f"{share}, {few} on the others (scanned, pictures or slides)"
    elif sum(legibility.count_words(text) for _, text in lines) < legibility.MIN_PAGE_WORDS:
        reason = f"{few} of prose, cut out: {describe_cuts(cuts)}"
    if reason:
        return _failed(path, reason)._replace(pages=pages, pages_read=pages_read, cuts=cuts)
    notes = [share] if pages_read < pages else []
    if result["jumbled"]:
        notes.append(f"mixed columns on {result['jumbled']} pages")
    if notes:
        log(f"scrape: {path.name}: {'; '.join(notes)}")
    paper = Paper(path.stem, pages, lines, "ok", "; ".join(notes), pages_read, cuts)
    _name_large_cut(paper)
    return paper


def _failed(path: Path, reason: str, name: str = "") -> Paper:
    """Log and return a paper without text; `name`: of a part of the file."""
    log(f"scrape: {path.name} skipped: {reason}")
    return Paper(name or path.stem, 0, [], "failed", reason)


def _name_large_cut(paper: Paper) -> None:
    """Log what was cut out of a paper that has lost more than `LARGE_CUT` of its lines."""
    cuts = paper.cuts
    total = len(paper.lines) + cuts.lines
    if cuts.lines > LARGE_CUT * total:
        log(f"scrape: {paper.name}: {cuts.lines} of {total} lines cut out: {describe_cuts(cuts)}")


def describe_cuts(cuts: Cuts) -> str:
    """The number of lines of each kind that were cut out."""
    return (
        f"{cuts.references} lines of reference lists, {cuts.running_lines} of headers, "
        f"footers and stamps, {cuts.tables} of tables"
    )


def _read_with_pandoc(path: Path, cut_references: bool) -> Paper:
    """Read a Markdown, LaTeX, HTML, Word, OpenDocument or EPUB file as one paper."""
    lines, reason = formats.read(path)
    if not lines:
        return _failed(path, reason)
    if reason:
        log(f"scrape: {path.name}: {reason}")
    return _paper_of_lines(path.stem, lines, cut_references, reason)


def _paper_of_lines(
    name: str, lines: list[str], cut_references: bool, reason: str, cuts: Cuts = NO_CUTS
) -> Paper:
    """Return the paper of these lines, without reference lists; `cuts`: what was cut out before."""
    cut = clean.indices_of(reference_lists(lines)) if cut_references else set()
    kept = [(0, line) for index, line in enumerate(lines) if index not in cut]
    paper = Paper(name, 0, kept, "ok", reason, cuts=cuts._replace(references=len(cut)))
    _name_large_cut(paper)
    return paper


def _wrap_paragraphs(page: str) -> str:
    """Return a page with paragraphs of one line wrapped: cleaning goes by the lines of a PDF.

    A heading of references inside a paragraph, as where a paper is one line, gets its own line.
    """
    lines: list[str] = []
    for line in page.splitlines():
        if len(line) > PARAGRAPH_CHARACTERS:
            for part in INNER_HEADING.sub(r"\n\1\2\n", line).split("\n"):
                lines += formats.wrap(part)
        else:
            lines.append(line)
    return "\n".join(lines)


def read_text_file(path: Path, cut_references: bool, is_only_file: bool) -> list[Paper]:
    """Read a text file as one paper, or cut it into papers; one that failed where it has no text.

    It is cut if it has several reference lists, or is the only file. Form feeds divide its pages,
    as in the output of pdftotext; columns that stand side by side are put in order.
    """
    text, reason = decode(path.read_bytes())
    if reason:
        return [_failed(path, reason)]
    text = GLUED_HEADING.sub(r".\n\1", text)
    pages = [_wrap_paragraphs(split_columns(page) or page) for page in text.split("\f")]
    unknown: list[list[float | None]] = [[None] * len(page.splitlines()) for page in pages]
    bodies, running_lines, line_numbers = clean.page_bodies(pages, unknown)
    lines = [line for body in bodies for line in body if not PAGE_NUMBER.match(line)]
    running_lines += sum(map(len, bodies)) - len(lines)
    cuts = Cuts(running_lines=running_lines, line_numbers=line_numbers)
    ranges = reference_lists(lines)
    if is_only_file or len(ranges) >= MIN_REFERENCE_LISTS:
        return _cut_corpus(path, lines, ranges, cut_references, cuts)
    paper = _paper_of_lines(path.stem, lines, cut_references, "", cuts)
    return [paper if _is_prose(paper.lines) else _failed(path, FEW_WORDS)]


def _cut_corpus(
    path: Path, lines: list[str], ranges: list[tuple[int, int]], cut_references: bool, cuts: Cuts
) -> list[Paper]:
    """Cut the lines of a text file into papers; those of few words have failed.

    It is cut behind its reference lists, or into blocks of lines where it has too few lists.
    ranges: of the lists' lines.
    """
    if len(ranges) >= MIN_REFERENCE_LISTS:
        ends = [end for _, end in ranges]
        how = "part of a text file, split behind its reference lists"
    else:
        ends = list(range(BLOCK_LINES, len(lines), BLOCK_LINES))
        how = "contiguous block of a text file"

    references = clean.indices_of(ranges) if cut_references else set()
    parts = []
    for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(lines)]), 1):
        kept = [(0, lines[index]) for index in range(start, end) if index not in references]
        if kept:
            name = f"{path.stem}_{number:03d}"
            if not _is_prose(kept):
                parts.append(_failed(path, f"part {number} has {FEW_WORDS}", name))
                continue
            cut = Cuts(references=end - start - len(kept))
            parts.append(Paper(name, 0, kept, "ok", how, cuts=cut))
            _name_large_cut(parts[-1])
    if not parts:
        return [_failed(path, "no text left after cleaning")]
    log(
        f"scrape: {path.name} cut into {len(parts)}: {how}; without {cuts.running_lines} headers, "
        f"footers, stamps and page numbers, and {cuts.line_numbers} line numbers"
    )
    return parts


def _is_prose(lines: Lines) -> bool:
    """Return whether lines have the words that a paper needs."""
    return len(find_words(" ".join(line for _, line in lines))) >= formats.MIN_PROSE_WORDS


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
