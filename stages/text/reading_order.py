"""Read the lines of a PDF's page in reading order: columns drawn row by row are put in order."""

import re
from collections import Counter
from copy import copy
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pypdf import PageObject

SHOW_TEXT = (b"Tj", b"TJ", b"'", b'"')
# Where none of these stands in front of a string, it goes on where the one before it ends.
MOVE_TEXT = (b"BT", b"Td", b"TD", b"Tm", b"T*", b"'", b'"')
MAX_SHIFT = 1  # points, across and up, from a text to its repetition
MAX_LETTER_SHIFT = 0.3  # the same for a single letter: in "ll", the next is near in small type
MIN_ROWS = 6  # of a page whose columns are drawn row by row
MIN_COLUMN_POINTS = 90  # from the left edge of a column to that of the next
MIN_GAP = 2  # characters between two columns
MIN_ROW_SHARE = 0.6  # of the rows of a page that have the gap
# Layout mode leaves turned text and that of forms out; it must find this share of the letters.
MIN_LETTERS = 0.95
MIN_CELL_WORDS = 3  # words in a line of a column of prose; a table has fewer in a cell


class PageText(NamedTuple):
    """The text of a page."""

    text: str
    heights: list[float | None]  # of each line, in points; None: the text was put in order
    is_jumbled: bool = False  # whether its columns are mixed and could not be put in order


class Run(NamedTuple):
    """Strings of a page that are drawn one behind the other."""

    x: float  # of the start, in points
    y: float
    strings: dict[int, bytes]  # as they are encoded, by their numbers in the order of drawing


class Drawing:
    """The text of a page in the order of drawing, as pypdf's visitors see it."""

    def __init__(self, page: "PageObject", dropped: set[int]):
        """Read a page; the strings with the numbers in `dropped` are emptied."""
        self.dropped = dropped
        self.fragments: list[tuple[str, float]] = []  # text, height of its start
        self.starts: list[tuple[float, float]] = []  # x and y of each string
        self.runs: list[Run] = []
        self.forms: list[list[float]] = []  # the matrices outside of the form that is drawn
        self.count = 0  # of the strings
        self.is_moved = True  # since the last string
        self.text = page.extract_text(
            visitor_text=self.see_text,
            visitor_operand_before=self.start_operator,
            visitor_operand_after=self.end_operator,
        )

    def see_text(self, text: str, matrix: list[float], text_matrix: list[float], *_: Any) -> None:
        """Note a fragment of the text."""
        if text.strip():
            self.fragments.append((text, _position(matrix, text_matrix)[1]))
        elif text:
            self.fragments.append((text, 0.0))

    def start_operator(self, operator: bytes, operands: list, matrix: list, *_: Any) -> None:
        """Enter a form; empty a string that is dropped."""
        if operator == b"Do":
            self.forms.append(matrix)
        elif operator in SHOW_TEXT and self.count in self.dropped:
            operands[-1] = type(operands[-1])()

    def end_operator(
        self, operator: bytes, operands: list, matrix: list[float], text_matrix: list[float]
    ) -> None:
        """Leave a form; note where a string was drawn."""
        self.is_moved |= operator in MOVE_TEXT
        if operator == b"Do":
            self.forms.pop()
        if operator not in SHOW_TEXT:
            return
        position = _position(matrix, text_matrix)
        if operands and self.count not in self.dropped:
            self.starts.append(position)
        if self.is_moved:
            for form in reversed(self.forms):
                position = _position(form, [1, 0, 0, 1, *position])
            self.runs.append(Run(*position, {}))
        if operands:
            # TJ shows several parts, with numbers between them.
            parts = operands[-1] if isinstance(operands[-1], list) else operands[-1:]
            shown = b"".join(part for part in parts if isinstance(part, bytes))
            self.runs[-1].strings[self.count] = shown
        self.count += 1
        self.is_moved = False


def read_page(page: "PageObject") -> PageText:
    """Return the text of a page, in reading order and without repetitions."""
    drawing = Drawing(page, set())
    if repeated := _repeated_strings(drawing.runs):
        page = _with_parsed_contents(page)
        drawing = Drawing(page, repeated)
    text = drawing.text
    heights = _line_heights(text, drawing.fragments)
    if _is_drawn_by_rows(drawing.starts):
        ordered = split_columns(page.extract_text(extraction_mode="layout"))
        if ordered and _letters(ordered) >= MIN_LETTERS * _letters(text):
            return PageText(ordered, [None] * len(ordered.splitlines()))
        return PageText(text, heights, is_jumbled=ordered is not None)
    return PageText(text, heights)


def _repeated_strings(runs: list[Run]) -> set[int]:
    """Return the numbers of the strings that a later run draws again, at the same place or beside.

    So do fake bold type, shadows and a second OCR layer. The last one stays: the space that pypdf
    sees in front of the next string is measured from it.
    """
    repeated: set[int] = set()
    latest: dict[tuple[bytes, int, int], Run] = {}  # by the strings and the rounded position
    for run in runs:
        strings = b"".join(run.strings.values())
        # A code of two bytes begins with a control character's.
        is_letter = len(strings) == 1 or len(strings) == 2 and strings[0] < 32
        max_shift = MAX_LETTER_SHIFT if is_letter else MAX_SHIFT
        x, y = round(run.x / max_shift), round(run.y / max_shift)
        for near in product((strings,), (x - 1, x, x + 1), (y - 1, y, y + 1)):
            other = latest.get(near)
            if other and max(abs(run.x - other.x), abs(run.y - other.y)) <= max_shift:
                repeated.update(other.strings)
        latest[strings, x, y] = run
    return repeated


def _with_parsed_contents(page: "PageObject") -> "PageObject":
    """Return a copy of a page of which `extract_text` can change the contents."""
    from pypdf.generic import ContentStream, NameObject

    page = copy(page)
    contents = ContentStream(page["/Contents"].get_object(), page.pdf, "bytes")
    page[NameObject("/Contents")] = contents
    return page


def _position(matrix: list[float], text_matrix: list[float]) -> tuple[float, float]:
    """Return x and y on the page of the origin of a text matrix."""
    x, y = text_matrix[4], text_matrix[5]
    return (
        x * matrix[0] + y * matrix[2] + matrix[4],
        x * matrix[1] + y * matrix[3] + matrix[5],
    )


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _line_heights(text: str, fragments: list[tuple[str, float]]) -> list[float | None]:
    """Return the height of each line of a text: that of its first fragment."""
    heights: list[float | None] = []
    position = 0  # of the end of the fragments that were looked at
    height = None
    remaining = iter(fragments)
    offset = 0
    for line in text.splitlines(keepends=True):
        start = offset + len(line) - len(line.lstrip())
        while position <= start and (fragment := next(remaining, None)):
            position += len(fragment[0])
            height = fragment[1]
        heights.append(height)
        offset += len(line)
    return heights


def _is_drawn_by_rows(starts: list[tuple[float, float]]) -> bool:
    """Whether strings at a left edge and at another one to its right take turns."""
    edges = [round(x / 2) for x, _ in starts]  # in steps of 2 points
    counts = Counter(edges)
    return any(
        counts[right] >= MIN_ROWS
        and (right - left) * 2 >= MIN_COLUMN_POINTS
        and _take_turns(edges, left, right)
        for left, _ in counts.most_common(3)
        for right in counts
    )


def _take_turns(edges: list[int], left: int, right: int) -> bool:
    """Whether most strings at one edge are followed by one at the other."""
    order = [edge == right for edge in edges if edge in (left, right)]
    turns = sum(a < b for a, b in pairwise(order))
    rows = min(sum(order), len(order) - sum(order))
    return turns >= max(MIN_ROWS, MIN_ROW_SHARE * rows)


def split_columns(layout: str) -> str | None:
    """Return the text of a page in reading order; None unless it has columns of prose.

    A line that crosses the gap of two columns, such as a title, stands between the columns above it
    and those below it; so does a header or footer, whose parts stay together. Columns of numbers
    alone (of lines) are kept.

    Args:
        layout: the page as `extract_text` returns it in layout mode: what stands at one height is
            one line, and blanks show where.
    """
    rows = [line.rstrip() for line in layout.strip("\n").splitlines()]
    lines = [row for row in rows if row]
    across = {0} if rows[1:2] == [""] else set()  # a header and a footer of one line
    across |= {len(lines) - 1} if rows[-2:-1] == [""] else set()
    cuts = _column_starts(lines)
    # Between two lines across the page, a block has the cells of each column.
    blocks: list[list[list[str]]] = [[]]
    columns: list[list[str]] = [[] for _ in range(len(cuts) + 1)]
    for index, line in enumerate(lines):
        cells = None if index in across else _split_line(line, cuts)
        if cells is None:
            blocks += [[[line.strip()]], []]
            continue
        blocks[-1] = blocks[-1] or [[] for _ in columns]
        for cell, column, of_block in zip(cells, columns, blocks[-1]):
            if cell:
                column.append(cell)
                of_block.append(cell)
    prose = [column for column in columns if not all(cell.isdigit() for cell in column)]
    if len(prose) < 2 or not all(map(_is_prose, prose)):
        return None
    return "\n".join(cell for block in blocks for column in block for cell in column)


def _column_starts(lines: list[str]) -> list[int]:
    """Return the positions in a layout at which columns start, the first one aside."""
    width = max(map(len, lines), default=0)
    gaps = [0] * (width + 2)  # lines with a gap in front of the position, and text on either side
    texts = [0] * (width + 2)  # lines with text at the position or behind it
    for line in lines:
        for position in range(len(line)):
            texts[position] += 1
        for gap in re.finditer(r"(?<=\S)\s{2,}(?=\S)", line):
            for position in range(gap.start() + MIN_GAP, gap.end() + 1):
                gaps[position] += 1
    is_gap = [n >= max(MIN_ROWS, MIN_ROW_SHARE * of) for n, of in zip(gaps, texts)]
    starts = []
    first = 0
    for position in range(1, width + 2):
        if is_gap[position - 1] and not is_gap[position]:
            most = max(gaps[first:position])
            starts.append(max(p for p in range(first, position) if gaps[p] == most))
        if not is_gap[position]:
            first = position + 1
    return starts


def _split_line(line: str, starts: list[int]) -> list[str] | None:
    """Return the cells of a line; None where text crosses the gap in front of a column."""
    cells = []
    begin = 0
    for start in starts:
        # A cell may start a little before the others of its column.
        spans = [gap.span() for gap in re.finditer(r"\s{2,}|$", line)]
        ends = [
            min(end, start)
            for at, end in spans
            if at < start and end >= start - 2 or at == end <= start
        ]
        if not ends:
            return None
        cells.append(line[begin : ends[-1]].strip())
        begin = ends[-1]
    return [*cells, line[begin:].strip()]


def _is_prose(cells: list[str]) -> bool:
    words = [len(re.findall(r"[^\W\d_]{2,}", cell)) for cell in cells]
    return sum(words) >= MIN_CELL_WORDS * len(cells)
