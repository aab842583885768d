"""Clean text lines out of what pypdf reads from a page: the dirt is regular, so the rules are few."""

import re
import unicodedata
from collections import Counter

NUMBER = re.compile(r"^[-–—|\s]*(page\s*)?\d{1,4}(\s*(of|/)\s*\d{1,4})?[-–—|\s]*$", re.I)
ARXIV = re.compile(r"^arXiv:\S+\s+\[[\w.-]+\]\s+\d")
REFERENCES = re.compile(
    r"^\s*([\dIVX]+[.\s]\s*)?(R ?EFERENCES|R ?eferences|B ?IBLIOGRAPHY|Bibliography|LITERATURE CITED|"
    r"Literature Cited)\s*[:.]?\s*$"
)
APPENDIX = re.compile(
    r"^\s*([A-Z][.\s]\s*)?(A ?PPENDIX|Appendix|Appendices|A ?PPENDICES|S ?UPPLEMENTARY|Supplementary|"
    r"Supplemental)\b.{0,60}$|^\s*A\.?\s+[A-Z]\s?[A-Z]{2}[A-Z \-:,]{2,60}$"
)
CITATION = re.compile(
    r"\b(19|20)\d\d[a-z]?\b|arXiv|Proceedings|\bdoi\b|\bpp?\. ?\d|^\s*\[\d+\]|https?:"
)
# Lines without any sign of a citation after which a reference list has ended.
QUIET = 12
# What NFKC leaves: soft hyphens, zero-width characters, byte-order marks, control characters and unpaired surrogates.
JUNK = re.compile(
    r"[\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
)


def normalize(line: str) -> str:
    """NFKC (ligatures, full-width forms, odd blanks), one blank between words; a soft hyphen at the end stays a hyphen."""
    line = re.sub("\u00ad\\s*$", "-", line)
    line = unicodedata.normalize("NFKC", JUNK.sub("", line.replace("\x00", "")))
    return " ".join(line.replace("\u2010", "-").replace("\u2011", "-").split())


def body(pages: list[list[str]]) -> list[list[str]]:
    """Drop page numbers, running headers and footers from normalized pages: edge lines that come back on other pages."""
    masked = [Counter({_mask(line) for line in _edges(page)}) for page in pages]
    counts = sum(masked, Counter())
    often = max(2, 0.4 * len(pages))
    repeated = {line for line, count in counts.items() if count >= often and line.strip("# ")}
    return [_strip(page, repeated) for page in pages]


def _mask(line: str) -> str:
    return re.sub(r"\d+", "#", line).lower()


def _edges(page: list[str]) -> list[str]:
    return page[:2] + page[-2:]


def _strip(page: list[str], repeated: set[str]) -> list[str]:
    page, done = [line for line in page if not ARXIV.match(line)], set()
    for at in (0, 0, -1, -1):
        if not page:
            break
        mask = _mask(page[at])
        # Each running line goes once per page: the title under a running title stays.
        if NUMBER.match(page[at]) or (mask in repeated and mask not in done):
            done.add(mask)
            page = page[1:] if at == 0 else page[:-1]
    return page


def join_hyphens(lines: list[str]) -> list[str]:
    """Give a word hyphenated at a line's end back to that line, whole.

    The hyphen stays where the text writes the word with it more often than without ("self-supervised"). As many lines
    come back; one that held nothing but a word's tail is empty.
    """
    words = Counter(
        word for line in lines for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line.lower())
    )
    out = list(lines)
    for at in range(len(out) - 1):
        head = re.search(r"([^\W\d_]+)-$", out[at])
        tail = re.match(r"([^\W\d_]+)(\S*)\s?", out[at + 1])
        if head and tail and tail[1][0].islower():
            whole, kept = (head[1] + tail[1]).lower(), f"{head[1]}-{tail[1]}".lower()
            hyphen = "-" if words[kept] > words[whole] else ""
            out[at] = out[at][:-1] + hyphen + tail[1] + tail[2]
            out[at + 1] = out[at + 1][tail.end() :]
    return out


def references(lines: list[str], to_the_end: bool) -> list[tuple[int, int]]:
    """The reference lists of a text as [start, end) line ranges.

    A list ends at an appendix; else at the text's end, or (`to_the_end` False: several papers in one text) where
    `QUIET` lines in a row show no sign of a citation.
    """
    found, at = [], 0
    while at < len(lines):
        if not REFERENCES.match(lines[at]):
            at += 1
            continue
        end = last = at + 1
        while end < len(lines) and not APPENDIX.match(lines[end]):
            if CITATION.search(lines[end]):
                last = end + 1
            elif not to_the_end and end - last >= QUIET:
                end = last
                break
            end += 1
        found.append((at, end))
        at = max(end, at + 1)
    return found
