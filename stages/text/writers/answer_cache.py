"""The answers of language models, kept as they come: a run that dies asks for none of them again.

They lie in the resume cache until the stage has written its outputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.common.artifacts import fingerprint, read_json, write_json
from stages.params import Prompt
from stages.runtime.progress import log
from stages.runtime.resume_cache import resume_folder
from stages.text.writers.answers import Answer

# Params that a person may change after a run has failed, and that change no request.
NOT_ASKED = {
    "per_class",
    "compare",
    "compare_count",
    "attempts",
    "openai_timeout",
    "positive_cues",
    "negative_prompt",
}


class AnswerCache:
    """Answers in a folder: a file for each time that a model was asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        count = len(list(folder.glob("*.json")))
        if count:
            log(f"prompt: the answers to {count} requests of an earlier run are used again")

    def get(self, asked: dict[str, Any], ask: Callable[[], list[Answer]]) -> list[Answer]:
        """Return the answers that were kept, else those of `ask`, which are kept.

        Args:
            asked: all that decides the answers, the model and the seed among it.
            ask: asks the model. Its answers are not kept where none has text.
        """
        path = self.folder / f"{fingerprint(asked, [])}.json"
        if path.exists():
            try:
                return [Answer(**answer) for answer in read_json(path)]
            except (OSError, TypeError):
                log(f"prompt: {path} is damaged: asking again")
        answers = ask()
        if any(answer.text.strip() for answer in answers):
            write_json(path, [answer._asdict() for answer in answers])
        return answers


@contextmanager
def open_answer_cache(prompt: Prompt, seed: int, local_model: Path) -> Iterator[AnswerCache]:
    """Open the cache of a run's answers; it is removed when the block succeeds.

    Args:
        prompt: the params of the stage.
        seed: of the run.
        local_model: the folder of the model on this machine; its SOURCE.json names it.
    """
    settings = prompt.model_dump(exclude=NOT_ASKED)
    source = local_model / "SOURCE.json"
    inputs: list[str | Path] = [source] if source.exists() else []
    with resume_folder("prompt", fingerprint({**settings, "seed": seed}, inputs)) as folder:
        yield AnswerCache(folder)
