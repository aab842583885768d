"""Writers of image prompts.

`extractive` takes sentences of retrieved passages. The others are language models: `domain` is the
fine-tuned one, `huggingface` an instruction-tuned one on this machine, `openai` a hosted one.
"""

from pathlib import Path

from stages.params import Prompt, Technique, Writer
from stages.text.class_words import ClassLexicon
from stages.text.writers.answer_cache import AnswerCache
from stages.text.writers.domain import DomainWriter
from stages.text.writers.extractive import ExtractiveWriter
from stages.text.writers.hosted import HostedWriter
from stages.text.writers.instructed import InstructedWriter
from stages.text.writers.interface import PromptWriter

LANGUAGE = Path("models/base/language")
ADAPTER = Path("models/llm")
INSTRUCTED = Path("models/base/writer")


def make_writer(
    prompt: Prompt,
    name: Writer,
    technique: Technique,
    classes: ClassLexicon,
    seed: int,
    cache: AnswerCache,
) -> PromptWriter:
    """Make the writer that params call by this name; models are loaded from models/."""
    match name:
        case "extractive":
            return ExtractiveWriter(classes)
        case "domain":
            return DomainWriter(LANGUAGE, ADAPTER, prompt, technique, classes, seed)
        case "openai":
            return HostedWriter(prompt, technique, classes, seed, cache)
        case "huggingface":
            return InstructedWriter(INSTRUCTED, prompt, technique, classes, seed, cache)
