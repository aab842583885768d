"""Find the running headers and footers, page numbers and stamps of a paper's pages."""

import re
from collections import Counter

from stages.text.references import is_heading

PAGE_NUMBER = re.compile(
    r"^[-–—|\s]*(?:(?:(?i:page)|p\.|S)?\s*\d{1,4}(?:\s*(?:of|/)\s*\d{1,4})?"
    r"|x{0,3}(?:ix|iv|vi{0,3}|i{1,3})|x{1,3})[-–—|\s]*$"
)
# Lines that archives and publishers print on a page or put in front of a paper.
STAMP_START = re.compile(
    r"arXiv:\S+\s+\[[\w.-]+\]\s+\d|Restrictions apply\.?$|"
    r"(?:This content (?:was )?)?[Dd]ownloaded (?:from|by|on) .*\d{4}|"
    r"Your use of (?:the|this) \S+ (?:archive )?indicates|"
    r"See discussions, stats, and author profiles|Electronic copy available at:?|"
    r"(?:Copyright )?(?:©|\([cC]\)) ?(?:19|20)\d\d\b|Copyright (?:19|20)\d\d\b|"
    r"This article has been accepted for publication in "
)
STAMP_INSIDE = re.compile(
    r"Authorized licensed use limited to|use (?:is )?subject to .*\bterms\b|\$\d+\.\d\d ?©|"
    r"(?:bio|med)Rxiv preprint\b.*\bdoi\b|not certified by peer review\b|"
    r"Downloaded from https?:"
)
CAPTION = re.compile(r"^(?:Figure|Fig\.|Table|Tab\.|Algorithm|Listing) ?[A-Z]?\d")
EDGE_LINES = 15  # the first and last so many lines of a page may be running lines
NEAR_PAGES = 2  # a running line changes with the section: it comes back so many pages on
FREQUENT = 0.4  # or it is on this share of the pages; so are page numbers and heights of such lines
MIN_PAGES = 3  # at least so many have page numbers and heights in common
HEIGHT_STEP = 12.0  # points; equal lines at heights that differ by more are text
MAX_OF_TEXT = 2  # lines that are cut where the text itself comes back


def find_running_lines(pages: list[list[str]], heights: list[list[float | None]]) -> list[set[int]]:
    """Return the indices of the running lines, page numbers and stamps of each page.

    Running lines stand at a page's edge. They come back on other pages, but for the page's number;
    or they hold the page's number beside other text; or they stand at the height of such lines of
    other pages (the header of a section of one page). Each is found once per page: the title under
    an equal header stays.

    Args:
        pages: the normalized lines of each page.
        heights: where each line stands, in points; None: unknown.
    """
    keys = list(map(_edge_keys, pages, heights, range(len(pages))))
    offsets = _page_number_offsets(pages)
    running = _repeated_lines(keys)
    for number, page in enumerate(pages):
        with_number = {i for i in keys[number] if not offsets.isdisjoint(_offsets(page[i], number))}
        running[number] |= with_number
    stamps = [{i for i, line in enumerate(page) if _is_stamp(line)} for page in pages]
    found = list(map(_peel, pages, running, stamps))

    slots = _frequent_heights(heights, found)
    for page_heights, edge_lines, indices in zip(heights, keys, running):
        indices |= {index for index in edge_lines if _round(page_heights[index]) in slots}
    return list(map(_peel, pages, running, stamps))


def _is_stamp(line: str) -> bool:
    return bool(STAMP_START.match(line) or STAMP_INSIDE.search(line))


def _round(height: float | None) -> int | None:
    return None if height is None else round(height)


def _edge_keys(page: list[str], heights: list[float | None], number: int) -> dict[int, set[str]]:
    """Return {index of a line at the edge of a page: what equal lines of other pages share}.

    Captions, headings of reference lists and lines without letters are left out.

    Args:
        page: the lines of the page.
        heights: of its lines.
        number: its index.
    """
    indices = range(len(page))
    return {
        index: _keys(page[index], heights[index], number)
        for index in sorted({*indices[:EDGE_LINES], *indices[-EDGE_LINES:]})
        if re.search(r"[^\W\d_]", page[index])
        and not (CAPTION.match(page[index]) or is_heading(page[index]))
    }


def _keys(line: str, height: float | None, number: int) -> set[str]:
    """Return the line with its height, as it is and with its first and its last number by the page.

    A height has two of overlapping steps, so that near ones share one.
    """
    line = line.lower()
    texts = {line}
    for match in re.finditer(r"\d{1,4}", line):
        offset = int(match[0]) - number
        texts.add(f"{line[: match.start()]}<{offset}>{line[match.end() :]}")
    if height is None:
        return texts
    steps = (round(height / HEIGHT_STEP), round(height / HEIGHT_STEP + 0.5) + 0.5)
    return {f"{text} at {step}" for text in texts for step in steps}


def _repeated_lines(keys: list[dict[int, set[str]]]) -> list[set[int]]:
    """Return the indices of the lines of each page that come back on many pages or on near ones."""
    by_page = [set().union(*of_page.values()) for of_page in keys]
    counts = Counter(key for of_page in by_page for key in of_page)
    min_pages = max(2, FREQUENT * len(keys))
    frequent = {key for key, count in counts.items() if count >= min_pages}
    repeated = []
    for number, of_page in enumerate(keys):
        before = by_page[max(0, number - NEAR_PAGES) : number]
        after = by_page[number + 1 : number + 1 + NEAR_PAGES]
        others = frequent.union(*before, *after)
        repeated.append({index for index, key in of_page.items() if not key.isdisjoint(others)})
    return repeated


def _offsets(line: str, page: int) -> set[int]:
    """Return how far the numbers beside a line's text are from the index of its page."""
    numbers = re.findall(r"^\d{1,4}(?= )|(?<= )\d{1,4}$", line)
    return {int(number) - page for number in numbers}


def _page_number_offsets(pages: list[list[str]]) -> set[int]:
    """Return the offsets that the first or last lines of many pages share: their page numbers."""
    counts = Counter(
        offset
        for number, page in enumerate(pages)
        for offset in set().union(*(_offsets(line, number) for line in page[:1] + page[-1:]))
    )
    min_pages = max(MIN_PAGES, FREQUENT * len(pages))
    return {offset for offset, count in counts.items() if count >= min_pages}


def _frequent_heights(heights: list[list[float | None]], lines: list[set[int]]) -> set[int]:
    """Return the heights at which many pages have one of these lines."""
    counts: Counter[int] = Counter()
    for of_page, indices in zip(heights, lines):
        counts.update({round(height) for index in indices if (height := of_page[index])})
    min_pages = max(MIN_PAGES, FREQUENT * len(heights))
    return {height for height, count in counts.items() if count >= min_pages}


def _peel(page: list[str], running: set[int], stamps: set[int]) -> set[int]:
    """Return the indices of running lines and page numbers, from both edges of a page inwards.

    Stamps, wherever they stand, are among them.
    """
    found = set(stamps)
    seen: set[str] = set()
    for indices in (range(len(page)), range(len(page) - 1, -1, -1)):
        block = []
        for index in indices:
            if index in found:
                continue
            is_repeated = index in running and page[index].lower() not in seen
            if not (is_repeated or PAGE_NUMBER.match(page[index])):
                break
            block.append(index)
            seen.add(page[index].lower())
        is_text = len(block) >= EDGE_LINES or len(block) == len(page)
        found.update(block[:MAX_OF_TEXT] if is_text else block)
    return found
