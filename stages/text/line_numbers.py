"""Remove the line numbers in the margins of review copies and preprints."""

import re
from itertools import pairwise
from statistics import mode

AT_START = re.compile(r"^(\d{1,4})(?!\d|[.,:)\]%])\s*")
AT_END = re.compile(r"\s*(?<![\d.,])(\d{1,4})$")
STEPS = (1, 2, 5, 10)  # a number at every line, every second, ...
MIN_NUMBERS = 4  # in a row
MIN_PAGES = 1 / 3  # of the pages have them: charts and lists stand on single pages
MIN_SHARE = 0.5  # of the lines of a page that its numbers count
MIN_BARE_NUMBERS = 20  # in a row, on lines of their own, whatever else is on the page
MAX_CAPITAL_SHARE = 0.75  # of the lines that start with a capital; more are items of a list
SLACK = 4  # further lines between two numbers: headers, formulas


def strip_line_numbers(pages: list[list[str]]) -> tuple[list[list[str]], int]:
    """Return the lines of the pages without line numbers, and how many numbers were removed.

    Line numbers count up line by line, over all pages or anew on each page or column. The lines
    keep their order and number: those that held a number alone are empty. Numbers on either side,
    and on both, are removed.
    """
    total = 0
    for pattern in (AT_START, AT_END):
        pages, removed = _strip_side(pages, pattern)
        total += removed
    return pages, total


def _strip_side(pages: list[list[str]], pattern: re.Pattern[str]) -> tuple[list[list[str]], int]:
    """Remove the line numbers that `pattern` finds at one end of the lines."""
    numbers = [_numbers(page, pattern) for page in pages]
    by_step = [
        [_line_numbers(page, _chains(of_page, step), step) for page, of_page in zip(pages, numbers)]
        for step in STEPS
    ]
    numbered_pages = [sum(map(bool, counting)) for counting in by_step]
    best = numbered_pages.index(max(numbered_pages))
    counting = by_step[best]
    if not any(counting) or numbered_pages[best] < MIN_PAGES * len(pages):
        return pages, 0
    _add_short_pages(pages, counting, numbers)
    stripped = [
        [pattern.sub("", line) if i in indices else line for i, line in enumerate(page)]
        for page, indices in zip(pages, counting)
    ]
    return stripped, sum(map(len, counting))


def _numbers(page: list[str], pattern: re.Pattern[str]) -> dict[int, int]:
    """Return {line index: number at the end of the line that `pattern` looks at}."""
    matches = [pattern.search(line) for line in page]
    return {index: int(match[1]) for index, match in enumerate(matches) if match}


def _chains(numbers: dict[int, int], step: int) -> list[list[int]]:
    """Return the runs of `MIN_NUMBERS` or more indices whose numbers rise by one or two steps.

    Args:
        numbers: line index -> number, in the order of the lines.
        step: difference of two numbers; their lines lie at most as far apart, and `SLACK` more.
    """
    length = {index: 1 for index in numbers}
    before: dict[int, int] = {}
    for index, number in numbers.items():
        for earlier in range(max(0, index - 2 * step - SLACK), index):
            rise = number - numbers.get(earlier, number)
            is_next = rise in (step, 2 * step) and index - earlier <= rise + SLACK
            if is_next and length[earlier] >= length[index]:
                length[index] = length[earlier] + 1
                before[index] = earlier
    chains = []
    used: set[int] = set()
    for end in sorted(length, key=length.__getitem__, reverse=True):
        chain: list[int] = []
        link: int | None = end
        while link is not None and link not in used:
            chain.append(link)
            link = before.get(link)
        if len(chain) >= MIN_NUMBERS:
            chains.append(chain)
            used.update(chain)
    return chains


def _line_numbers(page: list[str], chains: list[list[int]], step: int) -> set[int]:
    """Return the indices in the chains of a page, where they count its lines; else none."""
    indices = {index for chain in chains for index in chain}
    if _are_line_numbers(indices, page, step):
        return indices
    bare_chains = [chain for chain in chains if all(_is_bare(page[index]) for index in chain)]
    return {index for chain in bare_chains if len(chain) >= MIN_BARE_NUMBERS for index in chain}


def _are_line_numbers(indices: set[int], page: list[str], step: int) -> bool:
    """Whether numbers at these indices count most lines of a page, and not items of a list."""
    starts = [line.lstrip("0123456789 ")[0] for line in page if line and not _is_bare(line)]
    capitals = sum(map(str.isupper, starts))
    is_list = capitals > MAX_CAPITAL_SHARE * len(starts)
    return bool(indices) and not is_list and len(indices) * step >= MIN_SHARE * len(starts)


def _is_bare(line: str) -> bool:
    return line.replace(" ", "").isdigit()


def _add_short_pages(
    pages: list[list[str]], counting: list[set[int]], numbers: list[dict[int, int]]
) -> None:
    """Add the numbers of pages of few lines: they go on from the page before, or start anew."""
    rises = [
        of_page[index] - of_page[earlier]
        for indices, of_page in zip(counting, numbers)
        for earlier, index in pairwise(sorted(indices))
    ]
    step = mode(rises)
    last = 0
    for index, (page, of_page) in enumerate(zip(pages, numbers)):
        if not counting[index]:
            found = _count_from({last + step, step}, of_page, step)
            counting[index] = found if _are_line_numbers(found, page, step) else set()
        if counting[index]:
            last = of_page[max(counting[index])]


def _count_from(starts: set[int], numbers: dict[int, int], step: int) -> set[int]:
    """Return the indices of the first number among `starts` and of those that follow it."""
    found = set()
    for index, number in numbers.items():
        if number in starts:
            found.add(index)
            starts = {number + step}
    return found
