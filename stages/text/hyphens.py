"""Join the words that are hyphenated at a line's end; a hyphen that belongs to a word stays."""

import re
from collections import Counter

PART = r"[^\W\d_]+"
WORDS = re.compile(PART)
COMPOUNDS = re.compile(rf"(?<![^\W\d_])(?=({PART}-{PART}))")  # of "state-of-the-art", three pairs
HEAD = re.compile(r"(-?)(?<![^\W_])([^\W_]+)-$")  # the last part of a line
TAIL = re.compile(r"([^\W_]+)(\S*)\s?")  # the first word of the next line: first part, rest
SUSPENDED = frozenset(
    "and or nor to versus vs und oder bzw et ou y".split()
)  # "pre- and post-processing"
LINKS = frozenset("of the in on to by and for at".split())  # in "state-of-the-art", "bag-of-words"
ADVERBS = frozenset("here there where".split())  # in "thereafter", "whereby"
MIN_PART_LETTERS = 3  # of each part of a compound that no text shows


def word_counts(lines: list[str]) -> Counter[str]:
    """Count the words and the pairs of hyphenated parts of a text, those at line ends left out."""
    counts: Counter[str] = Counter()
    is_continued = False
    for line in lines:
        line = line.lower()
        inner = re.sub(r"^\S+", "", line) if is_continued else line
        is_continued = HEAD.search(line) is not None
        if is_continued:
            inner = re.sub(r"\S+$", "", inner)
        counts.update(WORDS.findall(inner))
        counts.update(COMPOUNDS.findall(inner))
    return counts


def join_hyphens(lines: list[str], corpus: Counter[str]) -> list[str]:
    """Join each word that is hyphenated at a line's end, on that line.

    The number of lines stays: a line that held only the rest of a word is empty after that.

    Args:
        lines: a text.
        corpus: `word_counts` of all texts, for words that this one shows nowhere else.
    """
    own = word_counts(lines)
    joined = list(lines)
    for index in range(len(joined) - 1):
        head = HEAD.search(joined[index])
        tail = TAIL.match(joined[index + 1])
        if head and tail and (link := _link(head, tail, own, corpus)) is not None:
            joined[index] = joined[index][:-1] + link + tail[1] + tail[2]
            joined[index + 1] = joined[index + 1][tail.end() :]
    return joined


def _link(
    head: re.Match[str], tail: re.Match[str], own: Counter[str], corpus: Counter[str]
) -> str | None:
    """Return what joins two parts: a hyphen that belongs to their word, or ""; None: two words.

    The hyphen belongs to it where the text, or else the corpus, writes the word with it more often
    than without. Where neither shows the word at all, it does beside a digit, in front of a proper
    name, behind an abbreviation, between two equal vowels, and between two parts that are words by
    themselves.
    """
    first, second = head[2], tail[1]
    parts = (first.lower(), second.lower())
    for counts in (own, corpus):
        hyphenated, solid = counts["-".join(parts)], counts["".join(parts)]
        if hyphenated or solid:
            return "-" if hyphenated > solid else ""
    if tail[0].strip().lower() in SUSPENDED:
        return None
    letters = first.lstrip("0123456789")  # the number of a footnote may stand in front
    is_symbol = len(letters) < 2 or letters[-1].isdigit()
    is_name = is_symbol or letters[0].isupper() or corpus[parts[0]]
    if not second.isalpha() or second.istitle():
        return "-" if is_name else None  # not a word, but a number or a caption in its middle
    in_compound = (head[1] and parts[0] in LINKS) or (tail[2][:1] == "-" and parts[1] in LINKS)
    is_abbreviation = is_symbol or first.isupper() > second.isupper()
    has_equal_vowels = first[-1] == second[0] and first[-1] in "aeiou"
    are_words = all(len(part) >= MIN_PART_LETTERS and corpus[part] for part in parts)
    is_compound = are_words and parts[0] not in ADVERBS
    return "-" if in_compound or is_abbreviation or has_equal_vowels or is_compound else ""
