"""What a run tells of its prompts, and which params change them."""

import math
from collections import Counter
from itertools import groupby

import yaml

from stages.params import Prompt
from stages.runtime.progress import log
from stages.text.class_words import ClassLexicon, TrainingCaptions, terms_in
from stages.text.prompt_writing import PromptCollector


def log_unread_names(
    collector: PromptCollector,
    lexicon: ClassLexicon,
    classes: dict[str, list[str]],
    training: TrainingCaptions,
) -> None:
    """Log how many prompts name their class by words that no training caption holds."""
    unread = []
    for kept in collector.kept:
        words = lexicon.words[kept.label]
        if training.terms.isdisjoint(terms_in(kept.text, words.names + words.kinds)):
            unread.append(kept)
    if not unread:
        return
    text = (
        f"prompt: {len(unread)} of {len(collector.kept)} prompts name their class by words "
        f'that no training caption holds ("{unread[0].text}"): the fine-tuned model has not '
        "learned them"
    )
    labels = list(dict.fromkeys(kept.label for kept in unread))
    shown = [label for label in labels if training.scenes.intersection(classes[label])]
    if shown:
        names = ", ".join(shown)
        text += f"; in prompt.words, give {names} only `names` and `kinds` that captions hold"
    if len(shown) < len(labels):
        others = ", ".join(label for label in labels if label not in shown)
        text += f"; no training tile shows {others}: 0 in prompt.per_class leaves a class out"
    log(text)


def log_trained_captions(
    collector: PromptCollector,
    classes: dict[str, list[str]],
    counts: dict[str, int],
    training: TrainingCaptions,
) -> None:
    """Log how to draw images of the training captions alone, unless the prompts are just these.

    Args:
        classes: the scenes of each class.
        counts: the number of prompts of each class that is used.
        training: its captions are written from class names.
    """
    captions = {
        label: {training.of_scenes[scene] for scene in scenes if scene in training.of_scenes}
        for label, scenes in classes.items()
    }
    per_class = {label: len(captions[label]) if label in counts else 0 for label in classes}
    wanted = {caption for label in counts for caption in captions[label]}
    if wanted == {kept.prompt for kept in collector.kept}:
        return
    if sum(map(bool, per_class.values())) < 2:  # params ask for prompts of two classes
        return
    text = yaml.safe_dump(
        per_class, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    log(
        f"prompt: all training captions are written from {len(training.of_scenes)} class names: "
        "the fine-tuned model has learned no other words. To draw images of these captions alone: "
        f"prompt.writer extractive, prompt.per_class {text.strip()}, no `names` in prompt.words, "
        "more generate.images_per_prompt"
    )


def log_left_out_captions(
    collector: PromptCollector, classes: ClassLexicon, counts: dict[str, int]
) -> None:
    """Log the classes that have fewer prompts than training captions, each of another scene."""
    texts = {(kept.label, kept.text) for kept in collector.kept}
    for label, count in counts.items():
        captions = classes.words[label].captions
        if count < len(captions):
            left_out = [caption for caption in captions if (label, caption) not in texts]
            log(
                f"prompt: {label}: prompts for {count} of its {len(captions)} training captions: "
                f'none is "{left_out[0]}"; raise prompt.per_class'
            )


def log_left_out_scenes(collector: PromptCollector, classes: ClassLexicon) -> None:
    """Log the scenes that no prompt of their class names."""
    for label, kept in groupby(collector.kept, key=lambda prompt: prompt.label):
        named = {classes.scene_of(prompt.text, label) for prompt in kept}
        words = classes.words[label]
        left_out = [scene for scene in words.scenes if scene not in named]
        if left_out and not words.captions:  # of which another line tells
            log(
                f"prompt: {label}: no prompt names {', '.join(left_out)}: raise prompt.per_class, "
                "add papers that describe it, or leave the scene out of `classes`"
            )


def describe_answers(counts: Counter[str], prompt: Prompt) -> str:
    """Say how many answers of a model had no text or were cut off; "" if none."""
    text = ""
    if counts["answers_empty"]:
        text += f"; {counts['answers_empty']} of {counts['answers']} answers had no text"
        text += " beside thoughts"
    if counts["answers_cut"]:
        text += f"; {counts['answers_cut']} of {counts['answers']} answers were cut off"
        if prompt.writer == "openai" or not prompt.one_by_one:
            text += f": raise prompt.max_tokens, now {prompt.max_tokens}"
    return text
