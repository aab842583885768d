"""The writer `openai`: a language model behind an OpenAI-compatible endpoint."""

import os

from stages.common.rng import rng
from stages.runtime.errors import exit_with_error
from stages.text.retrieval import Passage
from stages.text.writers import instructions
from stages.text.writers.generation import TEMPERATURE, TOP_P
from stages.text.writers.interface import Candidate


class HostedWriter:
    """A model behind an endpoint (vLLM, Ollama, ChatGPT, ...); its key is $OPENAI_API_KEY.

    The seed is part of each request, but few hosts promise the same answer twice. What they wrote
    is kept in data/prompts.parquet.
    """

    composed: frozenset[str] = frozenset()

    def __init__(self, base_url: str, model: str, technique: str, seed: int):
        from openai import OpenAI

        # The client retries with back-off, or after the time that the host's Retry-After names.
        self.client = OpenAI(
            base_url=base_url,
            # Local servers need no key, but the client insists on one.
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=4,
            timeout=300,  # s
        )
        self.model = model
        self.technique = technique
        self.seed = seed

    def propose(
        self, label: str, passages: list[Passage], count: int, attempt: int, is_last: bool
    ) -> list[Candidate]:
        """Send the requests of the attempt one after another."""
        requests = instructions.format_requests(label, self.technique, passages, count, attempt)
        answers = []
        for i, request in enumerate(requests):
            seed = int(rng(self.seed, "writer", label, attempt, i).integers(2**31))
            answers.append(self.complete(request, seed))
        descriptions = instructions.parse_descriptions(answers, self.technique)
        return [Candidate(text, passages) for text in descriptions]

    def complete(self, request: str, seed: int) -> str:
        """Return the model's answer; exit with an error that names the params key at fault."""
        import openai

        try:
            completion = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": request}],
                temperature=TEMPERATURE,
                top_p=TOP_P,
                seed=seed,
                max_tokens=instructions.MAX_NEW_TOKENS,
            )
        except openai.AuthenticationError:
            exit_with_error(
                f"prompt.openai_base_url: {self.client.base_url} refuses the key: set "
                "OPENAI_API_KEY in the environment"
            )
        except openai.APIConnectionError as error:
            exit_with_error(
                f"prompt.openai_base_url: {self.client.base_url} cannot be reached "
                f"({error.__cause__ or error})"
            )
        except openai.APIStatusError as error:
            exit_with_error(
                f"prompt.openai_model: {self.client.base_url} answers {error.status_code} for "
                f"{self.model}: {error.message[:300]}"
            )
        if not completion.choices:
            return ""
        return completion.choices[0].message.content or ""
