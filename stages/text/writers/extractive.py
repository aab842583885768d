"""The extractive writer: sentences of the retrieved passages, without any model."""

from collections import Counter

from stages.text import lexicon
from stages.text.class_words import ClassLexicon, ClassWords, as_noun, with_article
from stages.text.duplicates import words
from stages.text.retrieval import Passage
from stages.text.sentences import split_sentences
from stages.text.writers.cleaning import clean_sentence
from stages.text.writers.interface import Candidate

MIN_VISUAL_WORDS = 2
MAX_WORDS_BEFORE_NAME = 12  # a sentence that names the class later is about something else


class ExtractiveWriter:
    """Proposes the sentences of the passages that describe a view of the class.

    Image models know the plain names of scenes. Sentences with a rarer name ("vineyard") are
    therefore held back until the last attempt. After them come prompts that are composed of the
    class's words, for papers that describe no views. The captions of a class that was trained on a
    few alone come first.
    """

    def __init__(self, classes: ClassLexicon):
        self.classes = classes
        self.composed: set[str] = set()
        self.counts: Counter[str] = Counter()
        # Of the attempts for one class:
        self.held_back: list[Candidate] = []
        # Texts proposed or held back: passages overlap, so some sentences come twice.
        self.seen: set[str] = set()
        self.passages: list[Passage] = []

    def propose(
        self,
        label: str,
        names: tuple[str, ...],
        passages: list[Passage],
        count: int,
        attempt: int,
        is_last: bool,
    ) -> list[Candidate]:
        """Propose the sentences with a plain name of the class; all others at the last attempt."""
        plain = []
        if attempt == 0:
            captions = self.classes.words[label].captions
            plain = [Candidate(caption, []) for caption in captions]
            self.held_back, self.seen, self.passages = [], set(captions), []
        for candidate in extract_candidates(label, self.classes, passages):
            if candidate.text in self.seen:
                continue
            self.seen.add(candidate.text)
            if self.classes.has_plain_name(candidate.text, label):
                plain.append(candidate)
            else:
                self.held_back.append(candidate)
        self.passages += passages
        if not is_last:
            return plain
        composed = compose_candidates(self.classes.words[label], names, self.passages)
        composed = [candidate for candidate in composed if candidate.text not in self.seen]
        self.composed.update(candidate.text for candidate in composed)
        return plain + self.held_back + composed


def extract_candidates(
    label: str, classes: ClassLexicon, passages: list[Passage]
) -> list[Candidate]:
    """Return the sentences that describe a view of a class, those with the best score first."""
    scored = []
    for passage in passages:
        for sentence in split_sentences(passage["text"]):
            score = score_sentence(sentence, label, classes)
            if score > 0 and sentence.endswith((".", "!")):
                scored.append((score, Candidate(clean_sentence(sentence), [passage])))
    scored.sort(key=lambda pair: -pair[0])  # sentences with equal scores keep their order
    return [candidate for _, candidate in scored]


def score_sentence(sentence: str, label: str, classes: ClassLexicon) -> float:
    """Score how well a sentence describes a view of a class: 0 (not at all) to 6.

    A sentence gains by its visual words and loses by a length of more than 25 words.
    """
    sentence_words = words(sentence)
    visual_words = len(lexicon.VISUAL_WORDS.intersection(sentence_words))
    if (
        visual_words < MIN_VISUAL_WORDS
        or classes.words_before_name(sentence, label) > MAX_WORDS_BEFORE_NAME
        or classes.has_fault(lexicon.NOT_A_VIEW, sentence, label)
    ):
        return 0.0
    return max(0.1, min(visual_words, 6) - max(0, len(sentence_words) - 25) / 5)


def compose_candidates(
    class_words: ClassWords, names: tuple[str, ...], passages: list[Passage]
) -> list[Candidate]:
    """Compose prompts such as "a dry desert with narrow tracks" of a class's looks and parts.

    Words that occur in the passages come first; a prompt rests on the first passage of each. Those
    of a class that was trained on a few captions alone begin with these.
    """
    first_passage: dict[str, Passage] = {}  # of each word
    for passage in passages:
        for word in words(passage["text"]):
            first_passage.setdefault(word, passage)
    looks = sorted(class_words.looks, key=lambda word: word not in first_passage)
    parts = sorted(class_words.parts, key=lambda word: word not in first_passage)
    captions = class_words.captions
    candidates = []
    for i in range(len(parts) if captions else 0):
        look, part = looks[i % len(looks)], parts[i]
        if look[:4] == part[:4]:  # "stony stones"
            continue
        sources = [first_passage[word] for word in (look, part) if word in first_passage]
        text = f"{captions[i % len(captions)]} with {look} {part}"
        candidates.append(Candidate(text, sources))
    for i in range(len(looks) * len(parts)):
        # Walk through the combinations diagonally: neighbors share few words.
        look = looks[i % len(looks)]
        part_look = looks[(2 * i + i // len(looks) + 1) % len(looks)]
        part = parts[(i + i // len(parts)) % len(parts)]
        name = as_noun(names[i % len(names)])
        if len({look[:4], part_look[:4], part[:4]}) < 3:
            continue
        sources = [first_passage[word] for word in (look, part_look, part) if word in first_passage]
        text = f"{with_article(f'{look} {name}')} with {part_look} {part}"
        candidates.append(Candidate(text, sources))
    return candidates
