"""Split text into sentences: no split at "e.g.", "Fig. 2", "et al." or "J. Smith".

The rules are for English, and know the stops of other scripts and text without spaces.
"""

import re

from stages.text.scripts import UNSPACED

# Written with a full stop that does not end a sentence.
ABBREVIATIONS = frozenset(
    """
e.g i.e cf vs viz al fig figs eq eqs eqn sec secs sect ch chap tab tabs ref refs no nos vol pp p
ed eds approx resp ca dr prof mr mrs ms st dept univ inc ltd w.r.t a.k.a
jan feb mar apr jun jul aug sep sept oct nov dec
""".split()
)
# Stops that mean nothing else: of Chinese, Arabic, Hindi, Armenian, Ethiopic, Tibetan, Burmese,
# Khmer.
PLAIN_STOPS = "。！？｡؟۔।॥։።།။។"
CLOSING_MARKS = r"\"'”’)\]»』」》"
# A full stop, exclamation or question mark, closing quotes or brackets, then whitespace or the end.
# The stops in "3.5" and "arxiv.org" are not followed by whitespace and never match. In text without
# spaces, any stop ends a sentence.
STOP = re.compile(
    rf"[.!?]+[{CLOSING_MARKS}]*(?=\s|$)"
    rf"|[{PLAIN_STOPS}]+[{CLOSING_MARKS}]*"
    rf"|(?<=[{UNSPACED}])[.!?]+(?=[{UNSPACED}])"
)
LAST_WORD = re.compile(r"[\w.]+$")
OPENING_MARKS = "\"'“‘([-•"
# The last character of a line and the first of the next, where no space separates words.
UNSPACED_BREAK = re.compile(rf"[{UNSPACED}{PLAIN_STOPS}、，][{UNSPACED}{PLAIN_STOPS}、，」』]")


def sentence_ends(text: str) -> list[int]:
    """Return the offset just past the last character of each sentence.

    In a text without capitals that has a space before its stops, as some corpora have ("fig . 2
    shows it . here is ..."), any letter starts a sentence.
    """
    is_lower = text.islower()
    ends = []
    for match in STOP.finditer(text):
        before = text[max(0, match.start() - 30) : match.start()]
        is_spaced = is_lower and before[-1:].isspace()
        before = before.rstrip() if is_spaced else before
        after = text[match.end() : match.end() + 40].lstrip()
        if after and match[0][0] not in PLAIN_STOPS:
            starts = is_spaced and after[0].isalpha() or _starts_block(after)
            if not (starts or after[0] in OPENING_MARKS):
                continue  # no sentence starts with such a character
            if match[0] == "." and not _full_stop_ends_sentence(before):
                continue
        ends.append(match.end())
    return ends


def _full_stop_ends_sentence(before: str) -> bool:
    """Whether a full stop after the text `before` ends a sentence."""
    match = LAST_WORD.search(before)
    if not match:
        return True
    word = match[0].strip(".").lower() if match[0] != "." else "."
    if word in ABBREVIATIONS:
        return False
    # An initial, as in "J. Smith". The end of "class A. The next" is missed with it.
    if len(word) == 1 and before[-1].isupper():
        return False
    # The number of an item opens its sentence, as in "2. Method".
    if word.isdigit() and len(word) <= 2:
        return before.rstrip("0123456789").strip()[-1:] not in ("", ".", "!", "?")
    return True


def split_losslessly(text: str) -> list[str]:
    """Split a text into sentences that join back to it exactly.

    A line break ends a sentence too: `join_lines` leaves one on either side of a heading.
    """
    line_breaks = [match.start() for match in re.finditer("\n", text)]
    parts = []
    start = 0
    for end in sorted({*sentence_ends(text), *line_breaks}):
        while end < len(text) and text[end].isspace():
            end += 1
        if end > start:
            parts.append(text[start:end])
            start = end
    if start < len(text):
        parts.append(text[start:])
    return parts


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text without surrounding whitespace."""
    return [part.strip() for part in split_losslessly(text) if part.strip()]


def join_lines(lines: list[str]) -> str:
    """Join the lines of a paper to running text; a heading stays a separate line.

    A heading is a short line without punctuation at its end. It starts, and the line after it
    starts, with a capital or a digit; the line before it is complete.
    """
    median_length = sorted(map(len, lines))[len(lines) // 2] if lines else 0
    parts: list[str] = []
    for line, next_line in zip(lines, [*lines[1:], ""]):
        looks_like_heading = (
            len(line) < 0.6 * median_length
            and line[-1] not in ".,;:-、，" + PLAIN_STOPS
            and _starts_block(line)
            and (not next_line or _starts_block(next_line))
        )
        if looks_like_heading and (not parts or _ends_block(parts[-1])):
            if parts and not parts[-1].endswith("\n"):
                parts.append("\n")
            parts += [line, "\n"]
        else:
            is_unspaced = UNSPACED_BREAK.match(line[-1] + next_line[:1])
            parts.append(line if is_unspaced else line + " ")
    return re.sub(r" *\n", "\n", "".join(parts)).strip()


def _starts_block(line: str) -> bool:
    """Whether a line starts with a digit or a letter that is not in lower case."""
    return line[0].isdigit() or line[0].isalpha() and not line[0].islower()


def _ends_block(part: str) -> bool:
    return part.endswith("\n") or part.rstrip()[-1:] in ".!?:" + PLAIN_STOPS
