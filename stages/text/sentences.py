"""Where sentences end in scientific English: not at "e.g.", "Fig. 2", "et al.", "J. Smith" or "3.5"."""

import re

# Written with a full stop that does not end a sentence.
ABBREVIATIONS = frozenset(
    """
e.g i.e cf vs viz al fig figs eq eqs eqn sec secs sect ch chap tab tabs ref refs no nos vol pp p ed eds approx resp ca
dr prof mr mrs ms st dept univ inc ltd w.r.t a.k.a jan feb mar apr jun jul aug sep sept oct nov dec
""".split()
)
# A stop, closing quotes or brackets, then a blank or the end. "3.5" and "arxiv.org" have no blank and never match.
STOP = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
WORD = re.compile(r"[\w.]+$")


def ends(text: str) -> list[int]:
    """Offsets just past each sentence's last character."""
    found = []
    for match in STOP.finditer(text):
        after = text[match.end() : match.end() + 40].lstrip()
        # A sentence starts with a capital, a digit, a quote or a bracket.
        if after and not (after[0].isupper() or after[0].isdigit() or after[0] in "\"'“‘([-•"):
            continue
        if (
            match[0] == "."
            and after
            and not _stops(text[max(0, match.start() - 30) : match.start()], after)
        ):
            continue
        found.append(match.end())
    return found


def _stops(before: str, after: str) -> bool:
    """Whether a lone full stop between `before` and `after` ends a sentence."""
    word = WORD.search(before)
    if not word:
        return True
    word = word[0].strip(".").lower() if word[0] != "." else word[0]
    if word in ABBREVIATIONS:
        return False
    if (
        len(word) == 1 and before[-1].isupper()
    ):  # an initial: "J. Smith"; "class A. The next" is lost with it
        return False
    # A numbered item, "2. Method": the number opens the sentence.
    return not (
        word.isdigit()
        and len(word) <= 2
        and before.rstrip("0123456789").strip()[-1:] in ("", ".", "!", "?")
    )


def spans(text: str) -> list[str]:
    """Split text into sentences that join back to it exactly. A line break ends one too (see `flow`)."""
    cuts, start = [], 0
    for end in sorted({*ends(text), *(match.start() for match in re.finditer("\n", text))}):
        while end < len(text) and text[end].isspace():
            end += 1
        if end > start:
            cuts.append(text[start:end])
            start = end
    return cuts + [text[start:]] if start < len(text) else cuts


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped."""
    return [part.strip() for part in spans(text) if part.strip()]


def flow(lines: list[str]) -> str:
    """Lines of a page as flowing text; what looks like a heading (short, no stop, a capital after it) keeps its line."""
    usual = sorted(map(len, lines))[len(lines) // 2] if lines else 0
    parts = []
    for line, after in zip(lines, [*lines[1:], ""]):
        heading = (
            len(line) < 0.6 * usual
            and line[-1] not in ".,;:-"
            and line[:1].isupper() | line[:1].isdigit()
            and (not after or after[0].isupper() or after[0].isdigit())
        )
        ahead = bool(parts) and (parts[-1].rstrip()[-1:] in ".!?:" or parts[-1].endswith("\n"))
        if heading and (ahead or not parts):
            parts += ["\n" if parts and not parts[-1].endswith("\n") else "", line, "\n"]
        else:
            parts.append(line + " ")
    return re.sub(r" *\n", "\n", "".join(parts)).strip()
