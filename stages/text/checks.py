"""Which prompts an image model is given: one plain sentence about one class, short enough for CLIP."""

import re
from pathlib import Path

from stages.text import lexicon
from stages.text.duplicates import alike
from stages.text.sentences import sentences

LIMIT = 75  # CLIP's 77 positions less start and end
LEAST = 5  # words
ALIKE = 0.75  # Jaccard similarity of the words of two near duplicates
# Talk to or about a model or a reader. Scraped text is data: a sentence that gives orders never becomes a prompt.
INSTRUCTION = re.compile(
    r"\b(ignore|disregard|instructions?|prompts?|system|assistant|respond|reply|answer|write|print|output|repeat|translate|"
    r"pretend|please|must|should|you|your|yours|i|we|our|let us|do not|don't|describe|generate|imagine|note that|sorry|"
    r"as an ai)\b",
    re.I,
)
# A sentence with one of these speaks to a model that reads it: it is cut out of a passage before any writer sees it.
ORDER = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,40}\b(instructions?|prompts?|rules?|above|previous|everything)\b|"
    r"\b(instructions?|prompts?) (is|are|to|for)\b|\bsystem prompt\b|\bas an ai\b|\byou (are|must|should|will|shall) (now\b|an? |"
    r"write|answer|reply|respond|say|output|print|describe|generate|always|only)|\bthe (assistant|language model|chatbot) (must|should|"
    r"shall|will|has to)\b|</?(excerpt|system|user|assistant|inst)\b|\[/?inst\]|<\|",
    re.I,
)
MARKUP = re.compile(r"[<>{}\[\]#*_|\\^~=$@`]|https?:|www\.")
CITATION = re.compile(
    r"\bet al\b|\(\s*\d{4}|\b(19|20)\d\d\b|\[\d|\b(fig|figs|eq|tab|sec)\.|"
    r"\b(figure|table|section|equation) \d",
    re.I,
)
STOP = re.compile(r"[.!?]\s")  # written small, the next sentence would not be seen
RUN_IN = re.compile(
    r"(?<=[a-z] )(A|[A-Z][a-z])\b"
)  # "stony plains A desert is": a heading has run into its text
# A capital inside a sentence is a name; months and the class names of our own legend are not.
NAME = re.compile(r"(?<=[a-z0-9,;:'\"] )[A-Z][a-z]{2,}")
COMMON = re.compile(
    r"^(January|February|March|April|May|June|July|August|September|October|November|December)$"
)


class Counter:
    """CLIP tokens of a text, with the diffusion model's own tokenizer."""

    def __init__(self, folder: Path):
        """`folder` holds tokenizer.json (the library `tokenizers` alone reads it), or vocab.json and merges.txt."""
        if (folder / "tokenizer.json").exists():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        else:
            from transformers import CLIPTokenizer

            tokenizer = CLIPTokenizer.from_pretrained(folder)
            self._ids = lambda text: tokenizer(text, add_special_tokens=False, truncation=False)[
                "input_ids"
            ]

    def __call__(self, text: str) -> int:
        return len(self._ids(text))


def disarm(passage: dict) -> dict:
    """A passage without the sentences that give a model orders (scraped text is data, whoever wrote it)."""
    return {
        **passage,
        "text": " ".join(part for part in sentences(passage["text"]) if not ORDER.search(part)),
    }


def fault(text: str, label: str, others: list[str], tokens: int) -> str | None:
    """Why a prompt for a class is refused, in one word; None if it is good.

    `others` are the prompts already kept, `tokens` its CLIP tokens together with the positive cues.
    """
    if len(text.split()) < LEAST:
        return "too_short"
    if tokens > LIMIT:
        return "too_long"
    if MARKUP.search(text):
        return "markup"
    if INSTRUCTION.search(text):
        return "instruction"
    if CITATION.search(text):
        return "citation"
    if len(sentences(text)) != 1 or STOP.search(text) or RUN_IN.search(text):
        return "not_one_sentence"
    names = [
        name for name in NAME.findall(text) if not COMMON.match(name) and not lexicon.named(name)
    ]
    if names and not all(re.search(rf"\b{name}\b", " ".join(lexicon.LEXICON)) for name in names):
        return "proper_name"
    found = lexicon.named(text)
    if label not in found:
        return "no_class"
    if len(found) > 1:
        return "other_class"
    if lexicon.CLOSE_UP.search(text):
        return "close_up"
    if any(alike(text, other) >= ALIKE for other in others):
        return "near_duplicate"
    return None
