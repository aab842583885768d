"""Find the reference lists of a paper, a thesis or a volume by their headings and entries."""

import re

# The headings of a list in lower case, without spaces, numbers and punctuation.
HEADINGS = frozenset(
    """
references reference referencesandnotes notesandreferences referencescited citedreferences
listofreferences referencelist bibliography bibliographicreferences selectedbibliography
bibliographyandreferences referencesandbibliography workscited worksconsulted literaturecited
citedliterature literaturereferences
literature literatur literaturverzeichnis quellenverzeichnis quellen literaturangaben
références bibliographie référencesbibliographiques referencias bibliografía
referenciasbibliográficas referências bibliografia referênciasbibliográficas riferimenti
riferimentibibliografici referenties literatuur referenser källor referanser kaynaklar kaynakça
литература списоклитературы библиография
参考文献 參考文獻 参考資料 引用文献 참고문헌 المراجع مراجع منابع
""".split()
)
# "8", "8.", "VIII |", "A." in front of a heading.
SECTION_NUMBER = re.compile(r"^(?:[\divxlIVXL]{1,5}|[A-Z])(?:\.\d+)*[\s.|:)\]–-]+(?=\D)")
# "Main references", "Selected bibliography"
LAST_WORD = re.compile(r"(references|bibliography)\W*", re.I)
MAX_HEADING_WORDS = 4
MAX_HEADING_CHARACTERS = 80
# A sign of an entry: a year, an identifier, pages, volume and issue, the number of an entry.
CITATION = re.compile(
    r"(?<!\d)(19|20)\d\d[a-z]?(?!\d)|arXiv|\bProceedings\b|\bdoi\b|\bISSN\b|\bpp?\. ?\d|"
    r"^\s*\[\d+\]|https?:|\d\s?\(\d+\)"
)
# "(Smith et al., 2019; Doe, 2018)" and "as Smith (2019) showed" cite within a text.
CITED_IN_TEXT = re.compile(
    r"\([^()\d]{3,}(19|20)\d\d[^()]*\)|(?<=[a-z.]) \((19|20)\d\d[a-z]?\)(?=,? [a-z])"
)
MIN_NAMES = 3  # commas in a line of authors
MIN_CAPITALS = 0.8  # of its words
# A list starts with signs on this share of its first lines (any of these numbers), and ends where
# so many lines in a row have at most one.
MIN_SIGNS = 0.2
START_LINES = (1, 6, 20)
WINDOW = 12
HEADING_WINDOW = 8  # the same, behind a line that looks like a heading
# Within so many lines behind a list, lines so full of signs belong to it: in 71,000 lines of
# papers, only lists and tables are as full.
MAX_BREAK = 60
RESUME_LINES = 12
MIN_RESUME_SIGNS = 0.6
MAX_TAIL = 3  # lines of an entry behind its last sign
MAX_ENTRY = 5  # lines of the last entry in front of its only sign
APPENDIX_HEADING = re.compile(
    r"^\s*([A-Z][.\s]\s*)?"
    r"(A ?PPENDIX|Appendix|Appendices|A ?PPENDICES|S ?UPPLEMENTARY|Supplementary|Supplemental|"
    r"S ?UPPORTING INFORMATION|Supporting Information)"
    r"\b.{0,60}$|^\s*A\.?\s+[A-Z]\s?[A-Z]{2}[A-Z \-:,]{2,60}$"
)
# What may follow a list: "Methods", "A Details of training", "3 Deserts and dry ground".
SECTION_HEADING = re.compile(
    r"^(?:online |materials and )?methods?(?: summary)?$|^acknowledge?ments?\b.{0,20}$|"
    r"^(?:author|data|code) (?:contributions?|availability)\b.{0,30}$|^funding$|"
    r"^(?:competing|conflicts? of) interests?\b.{0,30}$|^(?:about the authors?|biograph(?:y|ies))$|"
    r"^(?:chapter|part|annex|kapitel) [\divx]+\b.{0,80}$",
    re.I,
)
NUMBERED_HEADING = re.compile(
    r"^(?:[A-Z]|S?\d{1,2})(?:\.\d{1,2}){0,3}\.?\s+[^\W\d_]{2}[^.,;]{0,70}$"
)


def is_heading(line: str) -> bool:
    """Whether a line is the heading of a reference list, numbered or letter-spaced."""
    if len(line) > MAX_HEADING_CHARACTERS:
        return False
    for text in (line, SECTION_NUMBER.sub("", line.strip())):
        name = re.sub(r"[\W_]", "", text)
        words = text.split()
        has_last_word = len(words) <= MAX_HEADING_WORDS and LAST_WORD.fullmatch(words[-1])
        is_name = name.casefold() in HEADINGS or has_last_word
        if is_name and not (name[0].islower() or name[0].isdigit()):
            return True
    return False


def reference_lists(lines: list[str]) -> list[tuple[int, int]]:
    """Return the reference lists of a text as [start, end) line ranges, headings included.

    A heading without entries behind it, as in a table of contents, is none. A list ends at the
    heading of the next section or where its entries end. It goes on behind a figure or a box.
    """
    cites = [CITATION.search(CITED_IN_TEXT.sub("", line)) is not None for line in lines]
    has_sign = [cites[index] or _lists_names(line) for index, line in enumerate(lines)]
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < len(lines):
        is_first = is_heading(lines[start]) and _starts_list(lines, has_sign, start + 1)
        is_near = bool(ranges) and start - ranges[-1][1] <= MAX_BREAK
        if is_first or (is_near and _resumes_list(lines, has_sign, start)):
            end = _list_end(lines, cites, has_sign, start + 1)
            ranges.append((start, end))
            start = end
        else:
            start += 1
    return ranges


def _lists_names(line: str) -> bool:
    """Whether a line lists authors: entries have many such lines in front of their first sign."""
    if line.count(",") < MIN_NAMES:
        return False
    words = re.findall(r"[^\W\d_]+", line)
    return sum(word[0].isupper() for word in words) >= MIN_CAPITALS * len(words)


def _starts_list(lines: list[str], has_sign: list[bool], first: int) -> bool:
    """Whether entries stand from the line `first` to the next heading."""
    for count in START_LINES:
        signs = []
        for index in range(first, min(first + count, len(lines))):
            if _is_next_heading(lines, has_sign, index):
                break
            signs.append(has_sign[index])
        if any(signs) and sum(signs) >= MIN_SIGNS * len(signs):
            return True
    return False


def _resumes_list(lines: list[str], has_sign: list[bool], start: int) -> bool:
    """Whether the lines from `start` to the end of a window are full of entries."""
    signs = has_sign[start : start + RESUME_LINES]
    is_other_list = any(map(is_heading, lines[start : start + RESUME_LINES]))
    return has_sign[start] and sum(signs) >= MIN_RESUME_SIGNS * RESUME_LINES and not is_other_list


def _list_end(lines: list[str], cites: list[bool], has_sign: list[bool], first: int) -> int:
    """Return the end of the reference list whose first entry is line `first`."""
    end = first  # the line behind the last sign of an entry, other than names
    for index in range(first, len(lines)):
        if _is_next_heading(lines, has_sign, index):
            return index
        if cites[index]:
            end = index + 1
        has_few_signs = sum(has_sign[index : index + WINDOW]) <= 1
        if has_few_signs and not any(has_sign[index : index + MAX_ENTRY]):
            break

    # The rest of the last entry.
    if len(lines) - end <= MAX_TAIL:
        return len(lines)
    for last in range(end, end + MAX_TAIL + 1):
        if lines[last - 1].endswith((".", "]")) or _is_next_heading(lines, has_sign, last):
            return last
    return end


def _is_next_heading(lines: list[str], has_sign: list[bool], index: int) -> bool:
    """Whether a line is the heading of the section behind a list."""
    line = lines[index]
    is_section = SECTION_HEADING.match(line) or NUMBERED_HEADING.match(line)
    few_signs = sum(has_sign[index : index + HEADING_WINDOW]) <= 1
    return bool(APPENDIX_HEADING.match(line) or (is_section and few_signs))
