"""The writer `domain`: the fine-tuned language model completes the beginnings of descriptions."""

from collections import Counter
from pathlib import Path

from stages.params import Prompt
from stages.runtime.parallel import batched
from stages.text.class_words import ClassLexicon
from stages.text.retrieval import Passage
from stages.text.sentences import split_sentences
from stages.text.writers.answers import CUT, find_copy
from stages.text.writers.cleaning import clean_sentence
from stages.text.writers.generation import (
    BATCH,
    generate,
    load_language_model,
    sampling_options,
)
from stages.text.writers.instructions import few_shot_examples
from stages.text.writers.interface import Candidate

MAX_NEW_TOKENS = 32  # of a completion


class DomainWriter:
    """The fine-tuned language model. It was never trained to follow requests, so it completes."""

    composed: frozenset[str] = frozenset()

    def __init__(
        self,
        base: Path,
        adapter: Path,
        prompt: Prompt,
        technique: str,
        classes: ClassLexicon,
        seed: int,
    ):
        """Load the base model with the adapter merged in."""
        self.counts: Counter[str] = Counter()
        self.sampling = sampling_options(prompt)
        self.model, self.tokenizer = load_language_model(base, adapter)
        self.technique = technique
        self.classes = classes
        self.seed = seed

    def propose(
        self,
        label: str,
        names: tuple[str, ...],
        passages: list[Passage],
        count: int,
        attempt: int,
        is_last: bool,
    ) -> list[Candidate]:
        """Complete "Seen from above, the <name of the class>" `count` times, without passages."""
        context = ""
        examples: list[str] = []
        if self.technique == "few_shot":
            examples = few_shot_examples(label, self.classes)
            context = " ".join(f"Seen from above, {text}." for text in examples) + " "
        beginnings = [f"the {names[i % len(names)]}" for i in range(count)]
        texts = [f"{context}Seen from above, {beginning}" for beginning in beginnings]
        completions = []
        for number, batch in enumerate(batched(texts, BATCH)):
            inputs = self.tokenizer(
                batch, return_tensors="pt", padding=True
            )  # input_ids, attention_mask: [B, T]
            if inputs["input_ids"][0, -1] == self.tokenizer.eos_token_id:
                # This tokenizer ends texts. Behind the end the model would begin another text.
                inputs = {name: rows[:, :-1] for name, rows in inputs.items()}
            completions += generate(
                self.model,
                self.tokenizer,
                inputs,
                MAX_NEW_TOKENS,
                self.sampling,
                (self.seed, label, attempt, number),
            )
        candidates = []
        for beginning, completion in zip(beginnings, completions):
            sentence, *more = split_sentences(beginning + completion.text) or [beginning]
            is_cut = completion.is_cut and not more and not sentence.endswith((".", "!", "?"))
            text = clean_sentence(sentence)
            refusal = CUT if is_cut else find_copy(text, examples)
            candidates.append(Candidate(text, [], refusal))
        return candidates
