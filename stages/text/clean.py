"""Rules that turn the lines pypdf extracts from a page into clean text lines."""

import re
import unicodedata
from collections import Counter

PAGE_NUMBER = re.compile(r"^[-–—|\s]*(page\s*)?\d{1,4}(\s*(of|/)\s*\d{1,4})?[-–—|\s]*$", re.I)
ARXIV_STAMP = re.compile(r"^arXiv:\S+\s+\[[\w.-]+\]\s+\d")
REFERENCES_HEADING = re.compile(
    r"^\s*([\dIVX]+[.\s]\s*)?"
    r"(R ?EFERENCES|R ?eferences|B ?IBLIOGRAPHY|Bibliography|LITERATURE CITED|Literature Cited)"
    r"\s*[:.]?\s*$"
)
APPENDIX_HEADING = re.compile(
    r"^\s*([A-Z][.\s]\s*)?"
    r"(A ?PPENDIX|Appendix|Appendices|A ?PPENDICES|S ?UPPLEMENTARY|Supplementary|Supplemental)"
    r"\b.{0,60}$|^\s*A\.?\s+[A-Z]\s?[A-Z]{2}[A-Z \-:,]{2,60}$"
)
CITATION = re.compile(
    r"\b(19|20)\d\d[a-z]?\b|arXiv|Proceedings|\bdoi\b|\bpp?\. ?\d|^\s*\[\d+\]|https?:"
)
# A reference list has ended after this many lines in a row without a sign of a citation.
MAX_LINES_WITHOUT_CITATION = 12
# Characters that NFKC keeps: soft hyphens, zero-width characters, byte-order marks, control
# characters and unpaired surrogates.
INVISIBLE = re.compile(
    r"[\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff\ufffd"
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
)


def normalize(line: str) -> str:
    """Return a line in NFKC (no ligatures or full-width forms) with one space between words.

    Invisible characters are removed, but a soft hyphen at the line's end becomes a hyphen.
    """
    line = re.sub("\u00ad\\s*$", "-", line)
    line = INVISIBLE.sub("", line.replace("\x00", ""))
    line = unicodedata.normalize("NFKC", line)
    line = line.replace("\u2010", "-").replace("\u2011", "-")
    return " ".join(line.split())


def strip_running_lines(pages: list[list[str]]) -> list[list[str]]:
    """Drop page numbers, running headers and footers from normalized pages.

    A running line is one of the first or last two of a page and comes back on other pages, its
    numbers aside.
    """
    page_counts: Counter[str] = Counter()
    for page in pages:
        page_counts.update({_mask_numbers(line) for line in page[:2] + page[-2:]})
    min_pages = max(2, 0.4 * len(pages))
    running = {
        line for line, count in page_counts.items() if count >= min_pages and line.strip("# ")
    }
    return [_strip_page(page, running) for page in pages]


def _mask_numbers(line: str) -> str:
    return re.sub(r"\d+", "#", line).lower()


def _strip_page(page: list[str], running: set[str]) -> list[str]:
    page = [line for line in page if not ARXIV_STAMP.match(line)]
    dropped = set()
    for edge in (0, 0, -1, -1):
        if not page:
            break
        masked = _mask_numbers(page[edge])
        # Each running line is dropped once per page: the title under an equal header stays.
        if PAGE_NUMBER.match(page[edge]) or (masked in running and masked not in dropped):
            dropped.add(masked)
            del page[edge]
    return page


def join_hyphens(lines: list[str]) -> list[str]:
    """Join each word that is hyphenated at a line's end, on that line.

    The hyphen stays where the text writes the word with it more often than without
    ("self-supervised"). The number of lines stays: a line that held only the rest of a word is
    empty after that.
    """
    word_counts = Counter(
        word for line in lines for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line.lower())
    )
    joined = list(lines)
    for index in range(len(joined) - 1):
        head = re.search(r"([^\W\d_]+)-$", joined[index])
        tail = re.match(r"([^\W\d_]+)(\S*)\s?", joined[index + 1])
        if head and tail and tail[1][0].islower():
            solid = f"{head[1]}{tail[1]}".lower()
            hyphenated = f"{head[1]}-{tail[1]}".lower()
            hyphen = "-" if word_counts[hyphenated] > word_counts[solid] else ""
            joined[index] = joined[index][:-1] + hyphen + tail[1] + tail[2]
            joined[index + 1] = joined[index + 1][tail.end() :]
    return joined


def reference_lists(lines: list[str], to_the_end: bool) -> list[tuple[int, int]]:
    """Return the reference lists of a text as [start, end) line ranges.

    A list ends at an appendix, else at the end of the text. A text of several papers
    (`to_the_end` is False) goes on after a list: there it also ends where
    `MAX_LINES_WITHOUT_CITATION` lines in a row show no sign of a citation.
    """
    ranges = []
    start = 0
    while start < len(lines):
        if not REFERENCES_HEADING.match(lines[start]):
            start += 1
            continue
        end = _list_end(lines, start + 1, to_the_end)
        ranges.append((start, end))
        start = max(end, start + 1)
    return ranges


def _list_end(lines: list[str], first: int, to_the_end: bool) -> int:
    """Return the end of the reference list whose first entry is line `first`."""
    end = first
    after_citation = first  # the line behind the last citation
    while end < len(lines) and not APPENDIX_HEADING.match(lines[end]):
        if CITATION.search(lines[end]):
            after_citation = end + 1
        elif not to_the_end and end - after_citation >= MAX_LINES_WITHOUT_CITATION:
            return after_citation
        end += 1
    return end
