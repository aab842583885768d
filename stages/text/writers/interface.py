"""The interface that all writers of prompts have in common."""

from collections import Counter
from collections.abc import Set
from typing import NamedTuple, Protocol

from stages.text.retrieval import Passage


class Candidate(NamedTuple):
    """A prompt that a writer proposes. `stages.text.checks` decides whether it is kept."""

    text: str
    passages: list[Passage]  # what the text rests on
    refusal: str = ""  # in one word why the writer itself refuses the text; "" if it does not


class PromptWriter(Protocol):
    """Proposes prompts for a class."""

    @property
    def composed(self) -> Set[str]:
        """The texts that were composed of the classes' words, not taken from passages."""
        ...

    @property
    def counts(self) -> Counter[str]:
        """Metrics of the answers of an instruction-tuned model; none of other writers."""
        ...

    def propose(
        self,
        label: str,
        names: tuple[str, ...],
        passages: list[Passage],
        count: int,
        attempt: int,
        is_last: bool,
    ) -> list[Candidate]:
        """Propose prompts, best first; fewer or more than `count`, since some will be rejected.

        Args:
            label: the class.
            names: its plain names to write of; without those of scenes that have their share.
            passages: the passages retrieved for this attempt; empty without retrieval.
            count: the number of prompts that are still missing.
            attempt: the number of the attempt for this class, from 0.
            is_last: whether no attempt follows.
        """
        ...
