"""The words of the classes: those of params (`prompt.words`), or derived from names and scenes.

A text that contains one of a class's `names` or `kinds` shows that class, and a prompt for any
other class must not contain it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from stages.common.class_names import derived_names, plain_name
from stages.params import Words
from stages.text.lexicon import ASPECTS
from stages.text.scripts import UNSPACED

# What any surface may look like and show from above, in words that image models draw.
LOOKS = tuple(
    "green dark dense brown regular bright sparse large irregular pale narrow wide".split()
)
PARTS = tuple(
    "edges rows shadows patches roads lines spots borders stripes tracks corners paths".split()
)
HYPHENS = r"[\s\-\u2010\u2011]"
# A name starts and ends with a word; in scripts that do not separate words, it may do so anywhere.
SPACED_LETTER = rf"[^\W{UNSPACED}]"
# "Non-forest" names no forest.
START = rf"(?:(?<!{SPACED_LETTER})(?<!\bnon{HYPHENS})|(?=[{UNSPACED}]))"
END = rf"(?:(?!{SPACED_LETTER})|(?<=[{UNSPACED}]))"
# Endings of regular plurals, and those of their singular.
PLURALS = (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", ""))
# Plurals that end in "es" or in "s": buses and houses, beaches and avalanches.
TAKES_ES = re.compile("(?:[sxzo]|[cs]h)es$")
NO_PLURALS = ("ss", "us", "is")
TAKES_IES = re.compile("[^aeiou]y$")
# Label sets use adjectives as nouns: "Residential", "agricultural", "Urban", "Built-up".
ADJECTIVE_ENDINGS = ("ial", "ural", "urban", "built", "built up", "bare")
# At the start of a word; "eucalyptus", "uniform", "used" and "utility" sound otherwise.
VOWEL_SOUND = re.compile(r"(?!eu|one\b|u-|uni[^dimnr]|us[eu]|uti)[aeiou]", re.I)
HIDDEN = "area"  # stands for a class's name in a text whose other words are checked


class ClassWords(NamedTuple):
    """What is said of one class."""

    names: tuple[str, ...]  # plain names of scenes that show the class; a regular plural is implied
    kinds: tuple[str, ...]  # rarer names of such scenes
    description: str  # used in index queries and as the class's text in the embedding space
    looks: tuple[str, ...]  # adjectives of its surface from above, for composed prompts
    parts: tuple[str, ...]  # details visible in it, for composed prompts
    captions: tuple[str, ...] = ()  # that composed prompts begin with: its only training captions
    scenes: tuple[str, ...] = ()  # plain names of its scenes, if there are several


class TrainingCaptions(NamedTuple):
    """What the captions of the training tiles say."""

    terms: frozenset[str]  # the names and kinds of classes that a caption holds
    of_scenes: dict[str, str]  # each scene's, where all are written from class names; else empty
    scenes: frozenset[str] = frozenset()  # that the tiles show


NO_CAPTIONS = TrainingCaptions(frozenset(), {})


def complete_words(
    classes: Mapping[str, Sequence[str]],
    words: Mapping[str, Words],
    training: TrainingCaptions = NO_CAPTIONS,
) -> dict[str, ClassWords]:
    """Return the words of every class; what params do not give is derived.

    Derived names that no training caption holds are `kinds`, if it holds another of the class.

    Args:
        classes: the scenes that show each class.
        words: what params say of some classes.
        training: what the diffusion model is trained on.
    """
    given = {label: words.get(label, Words()) for label in classes}
    names = {
        label: _tidy(given[label].names or derived_names(label, list(scenes)))
        for label, scenes in classes.items()
    }
    kinds = {label: _tidy(given[label].kinds or ()) for label in classes}
    names_of_all = _compile(sum([*names.values(), *kinds.values()], ()))
    completed = {}
    for label, scenes in classes.items():
        terms = names[label] + kinds[label]
        trained = names[label]
        shown: list[str] = []  # captions of its scenes
        if not given[label].names:
            known = tuple(term for term in names[label] if term in training.terms)
            trained = known or names[label]
            shown = [training.of_scenes[name] for name in scenes if name in training.of_scenes]
        completed[label] = ClassWords(
            trained,
            tuple(term for term in terms if term not in trained),
            given[label].description or ", ".join(terms),
            _tidy(given[label].looks or _choose_words(LOOKS, terms, names_of_all)),
            _tidy(given[label].parts or _choose_words(PARTS, terms, names_of_all)),
            tuple(dict.fromkeys(shown)),
            _scenes_in(terms, [name for name in scenes if name in training.scenes] or scenes),
        )
    return completed


def _scenes_in(terms: tuple[str, ...], scenes: Sequence[str]) -> tuple[str, ...]:
    """Return the plain names of the scenes that a class's terms name, if they are several."""
    squeezed = {_squeeze(_fold(term)) for term in terms}
    plain = dict.fromkeys(plain_name(scene) for scene in scenes)
    named = tuple(name for name in plain if _squeeze(_fold(name)) in squeezed)
    return named if len(named) > 1 else ()


def _tidy(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in texts)


def _choose_words(
    generic: tuple[str, ...], terms: tuple[str, ...], names_of_all: re.Pattern
) -> list[str]:
    """Return the generic words without those of a class's own terms, and without other classes."""
    own_words = {word for term in terms for word in _fold(term).split()}
    return [word for word in generic if word not in own_words and not names_of_all.search(word)]


class Mention(NamedTuple):
    """A place in a text that names a class."""

    label: str
    term: str  # as the text has it, folded
    start: int  # characters of the text in Unicode's form NFC
    end: int


class ClassLexicon:
    """Finds the names of classes in texts.

    Where one name is part of another, the longer one counts: "evergreen forest" is no "forest". A
    blank in a name also stands for a hyphen or for nothing.
    """

    def __init__(self, words: Mapping[str, ClassWords]):
        self.words = dict(words)
        owners = {
            term: label
            for label, class_words in words.items()
            for term in class_words.names + class_words.kinds
        }
        # The class of each form of a term.
        self._owners = {
            _squeeze(form): label for term, label in owners.items() for form in _forms(term)
        }
        self.terms = frozenset(owners)
        self._terms = _compile(tuple(owners))

    def find_mentions(self, text: str) -> list[Mention]:
        """Return the places that name a class, in the order of the text."""
        return [
            Mention(self._owners[_squeeze(match[0])], match[0], *match.span())
            for match in self._terms.finditer(_fold(text))
        ]

    def has_plain_name(self, text: str, label: str) -> bool:
        """Return whether the text contains one of the plain names of a class."""
        terms = [mention.term for mention in self.find_mentions(text) if mention.label == label]
        is_plain = _compile(self.words[label].names)
        return any(is_plain.search(term) for term in terms)

    def words_before_name(self, text: str, label: str) -> int:
        """Count the words before the first name of a class; 10**6 if the text does not name it."""
        for mention in self.find_mentions(text):
            if mention.label == label:
                return len(_fold(text)[: mention.start].split())
        return 10**6

    def count_class_names(self, text: str) -> dict[str, int]:
        """Count how often a text names each class; classes that it does not name are left out."""
        counts = Counter(mention.label for mention in self.find_mentions(text))
        return {label: counts[label] for label in self.words if counts[label]}

    def dominant_class(self, title: str, text: str) -> str | None:
        """Return the class that a passage is about.

        It is the class that the paper's title names most often, or else the one that the text names
        most often; None where neither has a single most frequent class.
        """
        for source in (title, text):
            ranked = sorted(self.count_class_names(source).items(), key=lambda item: -item[1])
            if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
                return ranked[0][0]
        return None

    def scene_of(self, text: str, label: str) -> str:
        """Return the scene of a class that a text names first; "" if it names none."""
        scenes = self.words[label].scenes
        terms = [_squeeze(term) for owner, term, *_ in self.find_mentions(text) if owner == label]
        named = (scene for term in terms for scene in scenes if _compile((scene,)).search(term))
        return next(named, "")

    def retrieval_query(self, label: str, attempt: int, scene: str = "") -> str:
        """Return the index query for a class, or a scene of it, at an attempt, counted from 0."""
        return f"{scene or self.words[label].description}: {ASPECTS[attempt % len(ASPECTS)]}"

    def names_of(self, label: str, scenes: Sequence[str]) -> tuple[str, ...]:
        """Return the plain names of a class that name one of these scenes; all of them if none."""
        names = self.words[label].names
        return tuple(name for name in names if self.scene_of(name, label) in scenes) or names

    def hide_names(self, text: str, label: str) -> str:
        """Return a text with a plain word in place of each name of a class."""
        text = unicodedata.normalize("NFC", text)
        for mention in reversed(self.find_mentions(text)):
            if mention.label == label:
                text = text[: mention.start] + HIDDEN + text[mention.end :]
        return text

    def has_fault(self, fault: re.Pattern, text: str, label: str) -> bool:
        """Return whether a pattern finds a word that is none of the class's own.

        Args:
            fault: matches words that a prompt must not have, such as "fish".
            text: of a prompt.
            label: its class, which may be "Fish ponds".
        """
        return bool(fault.search(text) and fault.search(self.hide_words(text, label)))

    def hide_words(self, text: str, label: str) -> str:
        """Return a folded text with a plain word in place of all that is a class's own.

        That is its names and kinds, each word of them, its looks and its parts.
        """
        class_words = self.words[label]
        terms = class_words.names + class_words.kinds
        parts_of_terms = tuple(word for term in terms for word in term.split())
        own = _compile(terms + parts_of_terms + class_words.looks + class_words.parts)
        return own.sub(HIDDEN, _fold(text))


def is_plural(term: str) -> bool:
    """Return whether a term is a regular plural, as "parking lots" is."""
    return _singular(term) != term


def as_noun(name: str) -> str:
    """Return the name of a class as a noun: "residential area" for "residential"."""
    return f"{name} area" if name.endswith(ADJECTIVE_ENDINGS) else name


def with_article(words: str) -> str:
    """Return words that end in a noun behind "a" or "an", if they are no plural."""
    if is_plural(words):
        return words
    return f"an {words}" if VOWEL_SOUND.match(words) else f"a {words}"


def _singular(term: str) -> str:
    for ending, singular in PLURALS:
        stem = term.removesuffix(ending) + singular
        if term.endswith(ending) and not term.endswith(NO_PLURALS) and len(stem) > 2:
            return stem
    return term


def _singulars(term: str) -> set[str]:
    """Return what may be the singular of a folded term: "bus" and "buse" of "buses"."""
    singulars = {_singular(term)}
    if TAKES_ES.search(term):
        singulars |= {stem for stem in (term[:-1], term[:-2]) if len(stem) > 2}
    return singulars


def _forms(term: str) -> list[str]:
    """Return a term in the singular and its regular plurals."""
    forms = []
    for singular in _singulars(_fold(term)):
        forms += [singular, f"{singular}s", f"{singular}es"]
        if TAKES_IES.search(singular):
            forms += [f"{singular[:-1]}ies", f"{singular[:-1]}ie"]
    return forms


def _fold(text: str) -> str:
    """Return a text in form NFC, as long as it is there, without the case of its letters."""
    text = unicodedata.normalize("NFC", text)
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(letter if len(letter.casefold()) > 1 else letter.casefold() for letter in text)


def terms_in(text: str, terms: Iterable[str]) -> set[str]:
    """Return the terms that a text holds, also within longer ones."""
    folded = _fold(text)
    return {term for term in terms if _may_hold(folded, term) and _compile((term,)).search(folded)}


def _may_hold(folded: str, term: str) -> bool:
    """Return whether a text holds the beginning of a term, which is much faster to see."""
    first_words = [re.split(HYPHENS, singular)[0] for singular in _singulars(_fold(term))]
    return any(word[:-1] in folded for word in first_words)


def _squeeze(text: str) -> str:
    return re.sub(HYPHENS, "", text)


@cache
def _compile(terms: tuple[str, ...]) -> re.Pattern:
    """Match any of the terms in a folded text, in the singular or with a regular plural."""
    alternatives = []
    # The first alternative that matches counts, so the longest come first.
    singulars = {singular for term in terms for singular in _singulars(_fold(term))}
    for term in sorted(singulars, key=lambda term: (-len(term), term)):
        *words, last = [re.escape(word) for word in re.split(f"{HYPHENS}+", term)]
        last = f"{last[:-1]}(?:y|ies?)" if TAKES_IES.search(last) else f"{last}(?:e?s)?"
        alternatives.append(f"{HYPHENS}?".join([*words, last]))
    return re.compile(f"{START}(?:{'|'.join(alternatives) or '(?!)'}){END}")
