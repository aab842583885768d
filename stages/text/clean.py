"""Turn the lines that pypdf extracts from the pages of a paper into clean lines of prose."""

import re
import unicodedata
from typing import NamedTuple

from stages.text.legibility import MIN_PAGE_WORDS, WORD, count_words
from stages.text.line_numbers import strip_line_numbers
from stages.text.references import reference_lists
from stages.text.running_lines import find_running_lines
from stages.text.sentences import ABBREVIATIONS

# Characters that NFKC keeps: soft hyphens, zero-width characters, byte-order marks, control
# characters and unpaired surrogates. Behind a letter of Arabic or of India, the zero-width joiner
# and non-joiner are part of the spelling.
INVISIBLE = re.compile(
    r"(?<![\u0600-\u109f\u1780-\u17ff])[\u200c\u200d]|"
    r"[\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060\ufeff\ufffd"
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
)

# Accents that stand before their letter, as in PDFs of LaTeX's first font encoding: Fern´andez. A
# grave accent at the start of a word is a quotation mark; an acute one is an apostrophe in
# "world´s" and stands for minutes behind a digit, as a diaeresis does for seconds.
ACCENTS = dict(zip("´`¨ˆ˜¸˚ˇ˝¯", "\u0301\u0300\u0308\u0302\u0303\u0327\u030a\u030c\u030b\u0304"))
ACCENTED = re.compile(
    r"((?<=[^\W\d_])`|(?<![\d´′])(?<!\d')(?:´(?!(?:[sm]|ll|re)\b)|[¨˝])|[ˆ˜¸˚ˇ¯])([A-Za-z\u0131])"
)
# What they stand for where they belong to no letter.
NO_ACCENTS = str.maketrans({"´": "'", "˚": "°", "¨": '"', "˝": '"'})

# Numbers of references or notes right behind a full stop: "above.1,2 The", "above.[3][note 4]".
CITED_NUMBERS = r"\d{1,3}(?:\s?[,–−-]\s?\d{1,3})*"
CITATION = re.compile(
    r"((?<![\w./@])[\w.]*[^\W\d_]{2}|[)\]%])([.!?][\"'”’)]*)"
    rf"(?:{CITED_NUMBERS}|(?:\[[\w ,–-]{{1,20}}\])+)(?=\s+[\"'“‘(]?[A-Z]|$)"
)
# What a number behind a full stop numbers, where it is capitalized: "Figure.2".
NUMBERED = frozenset(
    """
figure table section equation algorithm alg appendix app theorem lemma def chapter supp suppl
""".split()
)

MIN_WORD_SHARE = 1 / 3  # of what stands on a page; tables have less
# A line of prose on such a page, as a caption, has so many words, and so large a share of them.
MIN_LINE_WORDS = 5
MIN_LINE_SHARE = 2 / 3

Lines = list[tuple[int, str]]  # (page, text)


class Cuts(NamedTuple):
    """How many lines were cut out of a paper, and how many line numbers out of its lines."""

    references: int = 0
    running_lines: int = 0
    tables: int = 0
    line_numbers: int = 0

    @property
    def lines(self) -> int:
        """Return the number of lines that were cut out whole."""
        return self.references + self.running_lines + self.tables


class CleanText(NamedTuple):
    """The clean lines of a PDF."""

    lines: Lines  # pages count from 1
    cuts: Cuts
    pages_read: int  # with text besides running lines and stamps


def normalize(line: str) -> str:
    """Return a line in NFKC (no ligatures or full-width forms) with one space between words.

    Invisible characters are removed, but a soft hyphen at the line's end becomes a hyphen.
    """
    line = re.sub("\u00ad\\s*$", "-", line)
    line = INVISIBLE.sub("", line.replace("\x00", ""))
    line = ACCENTED.sub(_compose, line).translate(NO_ACCENTS)
    line = unicodedata.normalize("NFKC", line)
    # NFKC takes the vowel am of Thai and Lao apart, which nobody writes so.
    line = line.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")
    line = line.replace("\u2010", "-").replace("\u2011", "-")
    return " ".join(line.split())


def _compose(match: re.Match) -> str:
    """The letter with the accent before it, as one character where there is one."""
    accent, letter = match.groups()
    letter = letter.replace("\u0131", "i")
    composed = unicodedata.normalize("NFC", letter + ACCENTS[accent])
    return composed if len(composed) == 1 else match[0]


def drop_citations(line: str) -> str:
    """Return a line without the numbers of references behind full stops, which hide these."""
    return CITATION.sub(_without_numbers, line)


def _without_numbers(match: re.Match) -> str:
    """The end of a sentence without its citation; "Fig.2" and "Figure.2" stay."""
    word, stop = match.groups()
    name = word.strip(".").lower()
    is_numbered = name in ABBREVIATIONS or (word[0].isupper() and name in NUMBERED)
    return match[0] if is_numbered else word + stop


def clean_pages(
    pages: list[str], heights: list[list[float | None]], cut_references: bool
) -> CleanText:
    """Clean the lines of a PDF's pages and cut out what is no prose.

    Args:
        pages: the text of each page.
        heights: where each line of it stands, in points; None: unknown.
        cut_references: whether reference lists are cut out.
    """
    bodies, running_lines, line_numbers = page_bodies(pages, heights)
    prose = [prose_lines(body) for body in bodies]
    tables = sum(map(len, bodies)) - sum(map(len, prose))
    lines = [(number, line) for number, page in enumerate(prose, 1) for line in page]
    cut: set[int] = set()
    if cut_references:
        cut = indices_of(reference_lists([line for _, line in lines]))
    lines = [entry for index, entry in enumerate(lines) if index not in cut]
    cuts = Cuts(len(cut), running_lines, tables, line_numbers)
    return CleanText(lines, cuts, pages_read=sum(map(has_text, bodies)))


def page_bodies(
    pages: list[str], heights: list[list[float | None]]
) -> tuple[list[list[str]], int, int]:
    """Return the normalized lines of each page without line numbers and running lines.

    The other values are the numbers of running lines and of line numbers that were removed. The
    arguments are those of `clean_pages`.
    """
    texts = [[normalize(line) for line in page.splitlines()] for page in pages]
    texts, line_numbers = strip_line_numbers(texts)
    kept = [[index for index, line in enumerate(page) if line] for page in texts]
    texts = [[page[index] for index in indices] for page, indices in zip(texts, kept)]
    heights = [[page[index] for index in indices] for page, indices in zip(heights, kept)]
    running = find_running_lines(texts, heights)
    bodies = [
        [line for index, line in enumerate(page) if index not in dropped]
        for page, dropped in zip(texts, running)
    ]
    return bodies, sum(map(len, running)), line_numbers


def has_text(lines: list[str]) -> bool:
    """Whether a page holds as many words or numbers as a page of a paper does."""
    text = " ".join(lines)
    return max(count_words(text), len(text.split())) >= MIN_PAGE_WORDS


def prose_lines(lines: list[str]) -> list[str]:
    """Return the lines of a page; of a page of tables, only those that are prose."""
    if not _is_table(lines, MIN_WORD_SHARE):
        return lines
    return [
        line
        for line in lines
        if count_words(line) >= MIN_LINE_WORDS and not _is_table([line], MIN_LINE_SHARE)
    ]


def _is_table(lines: list[str], min_share: float) -> bool:
    """Whether less than a share of what stands in the lines are words."""
    tokens = " ".join(lines).split()
    return sum(WORD.search(token) is not None for token in tokens) < min_share * len(tokens)


def indices_of(ranges: list[tuple[int, int]]) -> set[int]:
    """Return every index in the [start, end) ranges."""
    return {index for start, end in ranges for index in range(start, end)}
