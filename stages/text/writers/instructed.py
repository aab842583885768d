"""The writer `huggingface`: an instruction-tuned language model on this machine."""

from collections import Counter
from functools import partial
from pathlib import Path

from stages.params import Prompt
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import batched
from stages.text.class_words import ClassLexicon
from stages.text.retrieval import Passage
from stages.text.writers import instructions, one_by_one
from stages.text.writers.answer_cache import AnswerCache
from stages.text.writers.answers import Answer, find_candidates, opening_thought
from stages.text.writers.generation import (
    BATCH,
    generate,
    load_language_model,
    sampling_options,
)
from stages.text.writers.interface import Candidate

# A line before a chat template: prompts don't depend on the day. The macro hides transformers'
# function of this name.
FIXED_DATE = "{% macro strftime_now(format) %}2026-01-01{% endmacro %}\n"


class InstructedWriter:
    """An instruction-tuned causal language model with a chat template (`fetch_model.writer`)."""

    composed: frozenset[str] = frozenset()

    def __init__(
        self,
        folder: Path,
        prompt: Prompt,
        technique: str,
        classes: ClassLexicon,
        seed: int,
        cache: AnswerCache,
    ):
        """Load the model; exit with an error where there is none or it has no chat template."""
        if not (folder / "config.json").exists():
            exit_with_error(
                "fetch_model.writer: none, but prompt.writer or prompt.compare says huggingface: "
                "name an instruction-tuned model"
            )
        self.model, self.tokenizer = load_language_model(folder)
        if not self.tokenizer.chat_template:
            exit_with_error(
                "fetch_model.writer: its tokenizer has no chat template: it is not an "
                "instruction-tuned model"
            )
        self.technique = technique
        self.classes = classes
        self.seed = seed
        self.one_by_one = prompt.one_by_one
        self.max_tokens = one_by_one.MAX_TOKENS if prompt.one_by_one else prompt.max_tokens
        self.sampling = sampling_options(prompt)
        self.cache = cache
        self.counts: Counter[str] = Counter()
        self.next_request = 0  # its number, counted for each class

    def propose(
        self,
        label: str,
        names: tuple[str, ...],
        passages: list[Passage],
        count: int,
        attempt: int,
        is_last: bool,
    ) -> list[Candidate]:
        """Generate the answers to all requests of the attempt."""
        if attempt == 0:
            self.next_request = 0
        if self.one_by_one:
            return self.propose_one_by_one(label, names, passages, count, attempt)
        requests = instructions.format_requests(
            label, names, self.technique, self.classes, passages, count, self.next_request
        )
        self.next_request += len(requests)
        texts = [
            self.fill_template([{"role": "user", "content": request}], add_generation_prompt=True)
            for request in requests
        ]
        # Templates of reasoning models open the thoughts in the request.
        opening = opening_thought(texts[0])
        answers = [
            answer._replace(text=opening + answer.text)
            for answer in self.complete(texts, label, attempt)
        ]
        return find_candidates(answers, label, self.technique, self.classes, passages, self.counts)

    def propose_one_by_one(
        self,
        label: str,
        names: tuple[str, ...],
        passages: list[Passage],
        count: int,
        attempt: int,
    ) -> list[Candidate]:
        """Let the model go on with the first words of descriptions."""
        dialogues = one_by_one.format_dialogues(
            label, names, self.technique, self.classes, passages, count, self.next_request
        )
        self.next_request += len(dialogues)
        texts = [
            self.fill_template(
                [*dialogue.messages, one_by_one.answer(dialogue.opening)],
                continue_final_message=True,
            )
            for dialogue in dialogues
        ]
        answers = self.complete(texts, label, attempt)
        self.counts["answers"] += len(answers)
        self.counts["answers_cut"] += sum(answer.is_cut for answer in answers)
        examples = instructions.few_shot_examples(label, self.classes)
        return one_by_one.read_descriptions(dialogues, answers, examples, passages)

    def fill_template(self, messages: list[dict[str, str]], **options: bool) -> str:
        """Return a dialogue as the model's chat template writes it, with one date for all days.

        Raises:
            SystemExit: the template has a fault, or leaves a message out: that of a model of text
                and images may take lists alone.
        """
        from jinja2 import TemplateError

        try:
            template = FIXED_DATE + self.tokenizer.get_chat_template()
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, **options
            )
        # A ValueError is a template that leaves out the answer that is to go on.
        except (TemplateError, TypeError, ValueError) as error:
            exit_with_error(f"fetch_model.writer: its chat template fails: {str(error)[:300]}")
        last_line = messages[-1]["content"].splitlines()[-1].strip()
        if last_line not in text:
            exit_with_error("fetch_model.writer: its chat template leaves out the request")
        return text

    def complete(self, texts: list[str], label: str, attempt: int) -> list[Answer]:
        """Generate what follows each text, in batches; those of an earlier run are kept."""
        answers = []
        for number, batch in enumerate(batched(texts, BATCH)):
            key = (self.seed, label, attempt, number)
            asked = {
                "texts": batch,
                "key": key,
                "max_tokens": self.max_tokens,
                **self.sampling,
            }
            answers += self.cache.get(asked, partial(self.complete_batch, batch, key))
        return answers

    def complete_batch(self, texts: list[str], key: tuple[int, str, int, int]) -> list[Answer]:
        """Generate what follows each text; `key` decides the random numbers."""
        # The template has written the special tokens at the start.
        inputs = self.tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=False
        )  # input_ids, attention_mask: [requests, T]
        return generate(self.model, self.tokenizer, inputs, self.max_tokens, self.sampling, key)
