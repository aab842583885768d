"""Requests for one description each, to models that are too small to write a list.

A request is a dialogue: examples of other places, then the place that is asked for. The first words
of the answer are given, another look and name of the class in each, so that the model only goes on.
"""

from typing import NamedTuple

from stages.text.class_words import ClassLexicon, as_noun, with_article
from stages.text.retrieval import Passage
from stages.text.sentences import split_sentences
from stages.text.writers.answers import CUT, TALK, TALK_WORDS, Answer, find_copy
from stages.text.writers.cleaning import clean_sentence
from stages.text.writers.instructions import (
    EXAMPLE_PLACES,
    FEW_SHOT_EXAMPLES,
    few_shot_examples,
)
from stages.text.writers.interface import Candidate

CANDIDATES = 2  # asked for, for each prompt that is missing
MAX_TOKENS = 40  # of a description


class Dialogue(NamedTuple):
    """A request: the messages before the answer, the answer's first words, the quoted sentence."""

    messages: list[dict[str, str]]
    opening: str
    note: str


def format_dialogues(
    label: str,
    names: tuple[str, ...],
    technique: str,
    classes: ClassLexicon,
    passages: list[Passage],
    count: int,
    first: int,
) -> list[Dialogue]:
    """Return the requests of one attempt, `CANDIDATES` for each of `count` descriptions.

    Args:
        label: the class.
        names: its names to use, in turn.
        technique: few_shot gives examples; with retrieval, each request quotes a sentence.
        classes: the words of all classes.
        passages: that sentences are quoted from; those that name the class come first.
        count: the number of prompts that are still missing.
        first: the number of the first request: how many were made for this class before.
    """
    words = classes.words[label]
    examples = few_shot_examples(label, classes) if technique.startswith("few_shot") else []
    turns = []
    for place, text in zip(EXAMPLE_PLACES, FEW_SHOT_EXAMPLES):
        if text in examples:
            turns += [ask(place, ""), answer(text)]
    sentences = [part for passage in passages for part in split_sentences(passage["text"])]
    named = [part for part in sentences if label in classes.count_class_names(part)]
    notes = named or sentences or [""]
    dialogues = []
    for i in range(first, first + CANDIDATES * count):
        name = as_noun(names[i % len(names)])
        look = words.looks[i // len(names) % len(words.looks)]
        note = notes[i % len(notes)]
        messages = [*turns, ask(with_article(name), note)]
        dialogues.append(Dialogue(messages, with_article(f"{look} {name}"), note))
    return dialogues


def ask(place: str, note: str) -> dict[str, str]:
    """The message that asks for the description of a place, under a note on it, if there is one."""
    request = f"Describe {place}, seen straight from above, in one short sentence."
    return {"role": "user", "content": f"Notes: {note}\n{request}" if note else request}


def answer(text: str) -> dict[str, str]:
    """The message of a model's answer, or of its first words."""
    return {"role": "assistant", "content": text}


def read_descriptions(
    dialogues: list[Dialogue], answers: list[Answer], examples: list[str], passages: list[Passage]
) -> list[Candidate]:
    """Return what the model made of the openings: the first sentence of each."""
    candidates = []
    for dialogue, reply in zip(dialogues, answers, strict=True):
        sentence, *more = split_sentences(dialogue.opening + reply.text)
        text = clean_sentence(sentence)
        if reply.is_cut and not more:
            refusal = CUT
        elif TALK_WORDS.search(text):
            refusal = TALK
        else:
            refusal = find_copy(text, [*examples, dialogue.note])
        candidates.append(Candidate(text, passages, refusal))
    return candidates
