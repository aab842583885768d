"""The writer `huggingface`: an instruction-tuned language model on this machine."""

from pathlib import Path

from stages.runtime.errors import exit_with_error
from stages.text.retrieval import Passage
from stages.text.writers import instructions
from stages.text.writers.generation import generate, load_language_model
from stages.text.writers.interface import Candidate


class InstructedWriter:
    """An instruction-tuned causal language model with a chat template (`fetch_model.writer`)."""

    composed: frozenset[str] = frozenset()

    def __init__(self, folder: Path, technique: str, seed: int):
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
        self.seed = seed

    def propose(
        self, label: str, passages: list[Passage], count: int, attempt: int, is_last: bool
    ) -> list[Candidate]:
        """Generate the answers to all requests of the attempt in one batch."""
        requests = instructions.format_requests(label, self.technique, passages, count, attempt)
        inputs = self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": request}] for request in requests],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )  # input_ids, attention_mask: [requests, T]
        answers = generate(
            self.model,
            self.tokenizer,
            inputs,
            instructions.MAX_NEW_TOKENS,
            self.seed,
            label,
            attempt,
        )
        descriptions = instructions.parse_descriptions(answers, self.technique)
        return [Candidate(text, passages) for text in descriptions]
