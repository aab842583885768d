"""Ask a writer for prompts of a class until enough pass the checks."""

from collections import Counter

from stages.text import checks, lexicon
from stages.text.retrieval import Retriever


class Asking:
    """Asks one writer for prompts of one class after another, and keeps count of what it offers."""

    def __init__(
        self,
        write,
        technique: str,
        retriever: Retriever,
        tokens: checks.Counter,
        cues: str,
        top_k: int,
    ):
        self.write, self.technique, self.retriever = write, technique, retriever
        self.tokens, self.cues, self.top_k = tokens, cues, top_k
        self.kept, self.rejected, self.asked = [], Counter(), 0

    def ask(self, label: str, wanted: int, attempts: int) -> tuple[list[dict], Counter]:
        """At most `wanted` rows of a class, and why its other candidates were refused."""
        rows, refused, seen, used = [], Counter(), set(), set()
        for attempt in range(attempts):
            passages = []
            if self.technique.endswith(
                "retrieval"
            ):  # each attempt looks at passages that no earlier one saw
                near = self.retriever.nearest(lexicon.query(label, attempt), self.top_k + len(used))
                passages = [passage for passage in near if passage["id"] not in used][: self.top_k]
                used |= {passage["id"] for passage in passages}
                passages = [passage for passage in map(checks.disarm, passages) if passage["text"]]
            for text, source in self.write(
                label, passages, wanted - len(rows), attempt, attempt + 1 == attempts
            ):
                if len(rows) == wanted:
                    break
                if text in seen:
                    continue
                seen.add(text)
                self.asked += 1
                prompt = f"{self.cues}, {text}" if self.cues else text
                length = self.tokens(prompt)
                if reason := checks.fault(text, label, [row["text"] for row in self.kept], length):
                    refused[reason] += 1
                    continue
                cited = sorted({(passage["paper"], passage["page"]) for passage in source})
                rows.append(
                    {
                        "label": label,
                        "text": text,
                        "prompt": prompt,
                        "tokens": length,
                        "source": source,
                        "passages": [{"paper": paper, "page": page} for paper, page in cited],
                    }
                )
                self.kept.append(rows[-1])
            if len(rows) == wanted:
                break
        self.rejected += refused
        return rows, refused
