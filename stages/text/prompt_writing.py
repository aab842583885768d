"""Collects prompts: asks a writer for a class until enough of its candidates pass the checks."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stages.params import Prompt
from stages.runtime.progress import log
from stages.text import checks
from stages.text.class_words import ClassLexicon
from stages.text.retrieval import Passage, Retriever
from stages.text.writers.interface import Candidate, PromptWriter

MAX_EXAMPLE = 100  # characters shown of a rejected text


@dataclass(frozen=True)
class ImagePrompt:
    """A candidate as the image model reads it."""

    label: str
    text: str  # without the positive cues
    prompt: str  # with them, where it has any
    tokens: int  # CLIP tokens of `prompt`
    passages: list[Passage]  # what the text rests on

    def citations(self) -> list[dict[str, str | int]]:
        """Return the distinct pages of the passages: sorted {paper, page}."""
        pages = {(passage["paper"], passage["page"]) for passage in self.passages}
        return [{"paper": paper, "page": page} for paper, page in sorted(pages)]


class PromptCollector:
    """Asks one writer for prompts of one class after another, and counts what is rejected."""

    def __init__(
        self,
        writer: PromptWriter,
        technique: str,
        classes: ClassLexicon,
        retriever: Retriever,
        count_tokens: checks.ClipTokenCounter,
        prompt: Prompt,
    ):
        self.writer = writer
        self.technique = technique
        self.classes = classes
        self.retriever = retriever
        self.count_tokens = count_tokens
        self.positive_cues = prompt.positive_cues
        self.top_k = prompt.top_k  # passages retrieved per attempt
        self.kept: list[ImagePrompt] = []  # of all classes
        self.candidates = 0  # that were checked
        self.rejections: Counter[str] = Counter()  # by reason
        self.examples: dict[str, str] = {}  # the last text rejected, by reason

    def collect(
        self, label: str, count: int, attempts: int
    ) -> tuple[list[ImagePrompt], Counter[str]]:
        """Collect prompts of a class, equally many of each scene where enough are proposed.

        Args:
            label: the class.
            count: the number of prompts wanted, beside those that the class has.
            attempts: how many times the writer is asked at most.

        Returns:
            At most `count` prompts, and how many candidates were rejected for which reason.
        """
        before = len(self.kept_of(label))
        wanted = before + count
        rejections: Counter[str] = Counter()
        used_passages: set[str] = set()
        waiting: list[Candidate] = []  # of scenes that have their share
        with_passages = self.technique.endswith("retrieval") and self.can_retrieve(label)
        for attempt in range(attempts):
            scenes = self.missing_scenes(label, wanted)
            passages = []
            if with_passages:
                passages = self.retrieve(label, attempt, used_passages, scenes)
            missing = wanted - len(self.kept_of(label))
            is_last = attempt + 1 == attempts
            names = self.classes.names_of(label, scenes)
            candidates = self.writer.propose(label, names, passages, missing, attempt, is_last)
            waiting, rejected = self.check(label, waiting + candidates, wanted, is_last)
            rejections += rejected
            if len(self.kept_of(label)) == wanted:
                break
        self.rejections += rejections
        return self.kept_of(label)[before:], rejections

    def kept_of(self, label: str) -> list[ImagePrompt]:
        """The prompts of a class."""
        return [prompt for prompt in self.kept if prompt.label == label]

    def missing_scenes(self, label: str, count: int) -> list[str]:
        """The scenes that have fewer than their equal share of a class's `count` prompts.

        The one that has the fewest comes first.
        """
        scenes = self.classes.words[label].scenes
        counts = Counter(
            self.classes.scene_of(prompt.text, label) for prompt in self.kept_of(label)
        )
        below = [scene for scene in scenes if counts[scene] * len(scenes) < count]
        return sorted(below, key=lambda scene: counts[scene])

    def can_retrieve(self, label: str) -> bool:
        """Return whether passages can be near to a class; log where they cannot."""
        known = self.retriever.knows(self.classes.words[label].description)
        if not known:
            log(
                f"prompt: {label}: without passages: the corpus has none of its words: give "
                f"prompt.words.{label}.description words that the papers use, in their language"
            )
        return known

    def retrieve(
        self, label: str, attempt: int, used: set[str], scenes: Sequence[str] = ()
    ) -> list[Passage]:
        """Retrieve the nearest passages that no earlier attempt used.

        Sentences that give orders to a model are cut out of them. Their ids are added to `used`.
        Each of several scenes of the class has as many of the `top_k` passages, at least one.
        """
        top_k = math.ceil(self.top_k / max(1, len(scenes)))
        found: list[Passage] = []
        for scene in scenes or [""]:
            query = self.classes.retrieval_query(label, attempt, scene)
            nearest = self.retriever.nearest(query, top_k + len(used))
            unused = [passage for passage in nearest if passage["id"] not in used][:top_k]
            used.update(passage["id"] for passage in unused)
            found += unused
        disarmed = [checks.remove_injected_instructions(passage) for passage in found]
        return [passage for passage in disarmed if passage["text"]]

    def check(
        self, label: str, candidates: list[Candidate], count: int, is_last: bool
    ) -> tuple[list[Candidate], Counter[str]]:
        """Keep candidates that pass the checks until the class has `count`, missing scenes first.

        Args:
            label: the class.
            candidates: texts for it, best first.
            count: the number of prompts that the class is to have.
            is_last: whether no attempt follows. Before, no scene has more than its share.

        Returns:
            The candidates left over, and how many were rejected for which reason.
        """
        rejections: Counter[str] = Counter()
        left = [(self.classes.scene_of(each.text, label), each) for each in candidates]
        while left and len(self.kept_of(label)) < count:
            missing = self.missing_scenes(label, count)
            proposed = {scene for scene, _ in left}
            due = next((scene for scene in missing if scene in proposed), None)
            if missing and due is None and not is_last:
                break
            turn = next((i for i, (scene, _) in enumerate(left) if scene == due), 0)
            _, candidate = left.pop(turn)
            self.candidates += 1
            prompt = self.add_cues(label, candidate)
            kept_texts = [other.text for other in self.kept_of(label)]
            reason = candidate.refusal or checks.rejection_reason(
                prompt.text, label, self.classes, kept_texts, prompt.tokens
            )
            if reason:
                rejections[reason] += 1
                self.examples[reason] = prompt.text
            else:
                self.kept.append(prompt)
        return [candidate for _, candidate in left], rejections

    def add_cues(self, label: str, candidate: Candidate) -> ImagePrompt:
        """Put the positive cues before a candidate and count the tokens.

        A model that was trained on a few captions alone reads these as they are, without cues.
        """
        text = candidate.text
        captions = self.classes.words[label].captions
        has_cues = self.positive_cues and not text.startswith(captions)
        prompt = f"{self.positive_cues}, {text}" if has_cues else text
        return ImagePrompt(label, text, prompt, self.count_tokens(prompt), candidate.passages)


def describe_rejections(rejections: Counter[str], examples: dict[str, str]) -> str:
    """Describe for a person why candidates were rejected, the commonest reason with an example."""
    if not rejections:
        return "no candidate was proposed"
    counts = [f"{count} {reason}" for reason, count in rejections.most_common()]
    example = examples[rejections.most_common(1)[0][0]]
    if len(example) > MAX_EXAMPLE:
        example = f"{example[:MAX_EXAMPLE]}..."
    counts[0] += f' ("{example}")'
    return ", ".join(counts)
