"""The writer `openai`: a language model behind an OpenAI-compatible endpoint."""

from collections import Counter
from functools import partial
from typing import Any

from stages.common.rng import rng
from stages.params import Prompt
from stages.text.class_words import ClassLexicon
from stages.text.retrieval import Passage
from stages.text.writers import instructions
from stages.text.writers.answer_cache import AnswerCache
from stages.text.writers.answers import Answer, find_candidates
from stages.text.writers.endpoint import Endpoint
from stages.text.writers.generation import sampling_options
from stages.text.writers.interface import Candidate


class HostedWriter:
    """A model behind an endpoint (vLLM, Ollama, ChatGPT, ...); its key is $OPENAI_API_KEY.

    The seed is part of each request, but few hosts promise the same answer twice. What they wrote
    is kept in data/prompts.parquet.
    """

    composed: frozenset[str] = frozenset()

    def __init__(
        self,
        prompt: Prompt,
        technique: str,
        classes: ClassLexicon,
        seed: int,
        cache: AnswerCache,
    ):
        # The schema of params demands both of them for this writer.
        assert prompt.openai_base_url and prompt.openai_model
        self.endpoint = Endpoint(prompt.openai_base_url, prompt.openai_model, prompt.openai_timeout)
        self.technique = technique
        self.classes = classes
        self.seed = seed
        self.cache = cache
        self.counts: Counter[str] = Counter()
        self.next_request = 0  # its number, counted for each class
        schema = {
            "name": "descriptions",
            "strict": True,
            "schema": instructions.json_schema(technique),
        }
        self.parameters: dict[str, Any] = {
            "max_tokens": prompt.max_tokens,
            **sampling_options(prompt),
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    def propose(
        self,
        label: str,
        names: tuple[str, ...],
        passages: list[Passage],
        count: int,
        attempt: int,
        is_last: bool,
    ) -> list[Candidate]:
        """Send the requests of the attempt one after another."""
        if attempt == 0:
            self.next_request = 0
        requests = instructions.format_requests(
            label, names, self.technique, self.classes, passages, count, self.next_request
        )
        self.next_request += len(requests)
        answers = []
        for i, request in enumerate(requests):
            asked = {
                "messages": [{"role": "user", "content": request}],
                "seed": int(rng(self.seed, "writer", label, attempt, i).integers(2**31)),
                **self.parameters,
            }
            answers += self.cache.get(asked, partial(self.ask, asked))
        return find_candidates(answers, label, self.technique, self.classes, passages, self.counts)

    def ask(self, asked: dict[str, Any]) -> list[Answer]:
        """Return the endpoint's answer."""
        return [self.endpoint.ask(asked)]
