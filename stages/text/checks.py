"""The checks that a prompt must pass: one plain sentence about one class, short enough for CLIP."""

import re
import unicodedata
from pathlib import Path

from stages.text import lexicon
from stages.text.class_words import ClassLexicon
from stages.text.duplicates import jaccard_similarity, words
from stages.text.retrieval import Passage
from stages.text.sentences import split_sentences

MAX_TOKENS = 75  # CLIP has 77 positions, two of them for the start and end tokens
MIN_PROMPT_WORDS = 5
NEAR_DUPLICATE_SIMILARITY = 0.75  # Jaccard similarity of the sets of words of two prompts
# Words that address a model or a reader, or that speak of the author. Scraped text is data: a
# sentence with one of these words never becomes a prompt.
ADDRESSES_READER = re.compile(
    r"\b(ignore|disregard|instructions?|prompts?|assistant|respond|reply|answer|write|print|"
    r"output|repeat|translate|pretend|please|must|should|you|your|yours|i|we|our|let us|do not|"
    r"don't|describe|generate|imagine|note that|sorry|as an ai)\b",
    re.I,
)
# Phrases of prompt injection. A sentence with one of these is cut out of a passage before any
# writer reads it.
INJECTED_INSTRUCTION = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,40}"
    r"\b(instructions?|prompts?|rules?|above|previous|everything)\b|"
    r"\b(instructions?|prompts?) (is|are|to|for)\b|\bsystem prompt\b|\bas an ai\b|"
    r"\byou (are|must|should|will|shall) (now\b|an? |write|answer|reply|respond|say|output|print|"
    r"describe|generate|always|only)|"
    r"\bthe (assistant|language model|chatbot) (must|should|shall|will|has to)\b|"
    r"</?(excerpt|system|user|assistant|inst)\b|\[/?inst\]|<\|",
    re.I,
)
# Frequent words of other languages that English lacks, and of English prompts. Few sentences of ten
# words do without the words of one of the two sets.
FOREIGN_WORDS = frozenset(
    """
ich nicht kann für der das und mit ein eine einen einem einer dem den des von auf im ist sind
zwischen durch neben
je ne pas pour cette le la les une du et avec dans sur entre est sont aux de
el los las un una con del en y por desde sobre para que
não isso posso um uma com em da dos das na os
non che questa il lo gli di della dei delle tra nel nella sono su
het een van met op tussen langs naar bij zijn
och ett med av det som og til fra er
nie tym z na w oraz przez się pod nad
ve bir ile dan yang dengan di dari pada ja az egy cu din pe
""".split()
)
PROMPT_WORDS = frozenset(
    """
the of and to for with that by from its it are is at as in on between beside across along around
into over near some many where which
""".split()
)
MAX_FOREIGN_LETTERS = 0.05  # of all letters; an English sentence may name a café
# The last word of half a sentence.
UNFINISHED = re.compile(
    r"\b(and|or|but|with|of|the|an?|from|between|beside|its|their|which|into|is|are|as)$|[,;:(–—-]$",
    re.I,
)
# Signs that no plain sentence has: brackets, symbols, emoji, foreign quotes.
MARKUP = re.compile(r"[^\w\s,;:.!?'’\"“”‘()%&/°×+…–—‑-]|_|\s/\s|https?:|www\.|\":|&\w+;")
# Between two descriptions: `", "`, "2) ".
SEVERAL = re.compile(r"[\"”]\s*[,;]\s*[\"“]|^[^(]*\s\d{1,2}\)\s")
CITATION = re.compile(
    r"\bet al\b|\(\s*\d{4}|\b(19|20)\d\d\b|\[\d|\b(fig|figs|eq|tab|sec)\.|"
    r"\b(figure|table|section|equation) \d",
    re.I,
)
# The sentence splitter does not see a sentence that starts in lower case.
SENTENCE_END = re.compile(r"[.!?]\s")
# A heading that has run into its text: "stony plains A desert is".
HEADING_RUN_IN = re.compile(r"(?<=[a-z] )(A|[A-Z][a-z])\b")
# What stands before and after the name of a class that such a heading has run into: "lake ice Sea
# ice is". The name in "a Forest is" is inside its sentence.
BEFORE_NAME = re.compile(r"(?<!\ba)(?<!\ban)(?<!\bthe)(?<!\bof)(?<=[a-z]) $")
AFTER_NAME = re.compile(r"\s+(is|are|has|have)\b")
# What stands before and after the name of a class that is not there: "no dense forest", "ice-free";
# but "not only forest", "no two forests" and "without doubt forest" are there.
ABSENT_BEFORE = re.compile(
    r"\b((no|without|lacks?|lacking|lost|(absence|devoid|free|instead) of)( (?!(two|doubt)\b)\w+)?|"
    r"not( any| an?| the| much| many)?) $",
    re.I,
)
ABSENT_AFTER = re.compile(r"[-\u2010\u2011]free\b", re.I)
# Inside a sentence, a capitalized word is a proper name, unless it is a month or part of the name
# of a class.
CAPITALIZED_WORD = re.compile(r"(?<=[a-z0-9,;:'\"] )[A-Z][a-z]{2,}")
MONTH = re.compile(
    r"^(January|February|March|April|May|June|July|August|September|October|November|December)$"
)


class ClipTokenCounter:
    """Counts the CLIP tokens of a text with the diffusion model's own tokenizer."""

    def __init__(self, folder: Path):
        """Load the tokenizer of a folder with tokenizer.json, or with vocab.json and merges.txt."""
        if (folder / "tokenizer.json").exists():
            # `tokenizers` reads this file by itself, so torch need not be imported.
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        else:
            from transformers import CLIPTokenizer

            clip_tokenizer = CLIPTokenizer.from_pretrained(folder)
            self._encode = lambda text: clip_tokenizer(
                text, add_special_tokens=False, truncation=False
            )["input_ids"]

    def __call__(self, text: str) -> int:
        """Count the tokens of a text, without the start and end tokens."""
        return len(self._encode(text))


def remove_injected_instructions(passage: Passage) -> Passage:
    """Return a passage without the sentences that give orders to a model."""
    kept = [
        part for part in split_sentences(passage["text"]) if not INJECTED_INSTRUCTION.search(part)
    ]
    return {**passage, "text": " ".join(kept)}


def rejection_reason(
    text: str, label: str, classes: ClassLexicon, kept: list[str], tokens: int
) -> str | None:
    """Return in one word why a prompt for a class is rejected, or None if it passes.

    The class's own words are no fault: they may be foreign, hold signs, or be "cars".

    Args:
        text: the prompt without the positive cues.
        label: the class.
        classes: the words of all classes.
        kept: the prompts of the class that were kept before.
        tokens: the number of CLIP tokens of the prompt with the positive cues.
    """
    nameless = classes.hide_names(text, label)
    other_words = classes.hide_words(text, label)
    if not is_english_prompt(other_words):
        return "not_english"
    if len(text.split()) < MIN_PROMPT_WORDS:
        return "too_short"
    if tokens > MAX_TOKENS:
        return "too_long"
    # A number at the start is that of an item or of a heading.
    starts_with_letter = other_words.lstrip("\"'“‘(")[:1].isalpha()
    has_markup = MARKUP.search(other_words) or SEVERAL.search(other_words)
    if has_markup or other_words.count('"') % 2 or not starts_with_letter:
        return "markup"
    if classes.has_fault(ADDRESSES_READER, text, label):
        return "instruction"
    if CITATION.search(nameless):
        return "citation"
    if not is_one_sentence(nameless) or has_heading_before_name(text, classes):
        return "not_one_sentence"
    if has_proper_name(nameless, classes):
        return "proper_name"
    named_classes = classes.count_class_names(text)
    if label not in named_classes or is_absent(text, label, classes):
        return "no_class"
    if len(named_classes) > 1:
        return "other_class"
    parts = text.split(";")
    if len(parts) > 1 and all(label in classes.count_class_names(part) for part in parts):
        return "not_one_sentence"
    if classes.has_fault(lexicon.CLOSE_UP, text, label):
        return "close_up"
    if classes.has_fault(lexicon.GROUND_VIEW, text, label):
        return "ground_view"
    if UNFINISHED.search(nameless):
        return "cut"
    if any(_are_near_duplicates(text, other, label, classes) for other in kept):
        return "near_duplicate"
    return None


def _are_near_duplicates(text: str, other: str, label: str, classes: ClassLexicon) -> bool:
    """Return whether two prompts for a class have nearly the same words, also without its names.

    A long name that both hold, such as "natural grassland and sparse vegetation", is no likeness.
    """
    if jaccard_similarity(text, other) < NEAR_DUPLICATE_SIMILARITY:
        return False
    nameless = (classes.hide_names(prompt, label) for prompt in (text, other))
    return jaccard_similarity(*nameless) >= NEAR_DUPLICATE_SIMILARITY


def is_english_prompt(text: str) -> bool:
    """Return whether a prompt is in English, by its letters and its most frequent words."""
    letters = [letter for letter in text if letter.isalpha()]
    foreign_letters = sum(not letter.isascii() for letter in letters)
    if foreign_letters > MAX_FOREIGN_LETTERS * len(letters):
        return False
    text_words = words(text)
    foreign_words = sum(word in FOREIGN_WORDS for word in text_words)
    return foreign_words < 2 or foreign_words <= sum(word in PROMPT_WORDS for word in text_words)


def is_one_sentence(text: str) -> bool:
    """Return whether a prompt is one sentence, without a heading that has run into it."""
    has_end = SENTENCE_END.search(text) or HEADING_RUN_IN.search(text)
    return len(split_sentences(text)) == 1 and not has_end


def has_heading_before_name(text: str, classes: ClassLexicon) -> bool:
    """Return whether a heading has run into a sentence that starts with the name of a class."""
    text = unicodedata.normalize("NFC", text)
    return any(
        text[mention.start].isupper()
        and BEFORE_NAME.search(text[: mention.start])
        and AFTER_NAME.match(text[mention.end :])
        for mention in classes.find_mentions(text)
    )


def is_absent(text: str, label: str, classes: ClassLexicon) -> bool:
    """Return whether the first name of a class in a text says that the class is not there."""
    text = unicodedata.normalize("NFC", text)
    first = next(mention for mention in classes.find_mentions(text) if mention.label == label)
    before, after = text[: first.start], text[first.end :]
    return bool(ABSENT_BEFORE.search(before) or ABSENT_AFTER.match(after))


def has_proper_name(text: str, classes: ClassLexicon) -> bool:
    """Return whether a sentence names a person or a place."""
    names = [
        word
        for word in CAPITALIZED_WORD.findall(text)
        if not MONTH.match(word) and not classes.count_class_names(word)
    ]
    class_labels = " ".join(classes.words)
    return any(not re.search(rf"\b{name}\b", class_labels) for name in names)
