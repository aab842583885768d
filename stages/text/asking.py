"""Ask a writer for prompts of a class until enough pass the checks, and say in numbers what came of it."""

from collections import Counter

from stages.text import checks, lexicon
from stages.text.duplicates import words
from stages.text.retrieval import Retriever


class Asking:
    """Asks one writer for prompts of one class after another, and keeps count of what it offers."""

    def __init__(self, write, technique: str, retriever: Retriever, tokens: checks.Counter, cues: str, top_k: int):
        self.write, self.technique, self.retriever = write, technique, retriever
        self.tokens, self.cues, self.top_k = tokens, cues, top_k
        self.kept, self.rejected, self.asked = [], Counter(), 0

    def ask(self, label: str, wanted: int, attempts: int) -> tuple[list[dict], Counter]:
        """At most `wanted` rows of a class, and why its other candidates were refused."""
        rows, refused, seen, used = [], Counter(), set(), set()
        for attempt in range(attempts):
            passages = []
            if self.technique == "retrieval":  # each attempt looks at passages that no earlier one saw
                near = self.retriever.nearest(lexicon.query(label, attempt), self.top_k + len(used))
                passages = [passage for passage in near if passage["id"] not in used][:self.top_k]
                used |= {passage["id"] for passage in passages}
            for text, source in self.write(label, passages, wanted - len(rows), attempt, attempt + 1 == attempts):
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
                rows.append({"label": label, "text": text, "prompt": prompt, "tokens": length,
                             "passages": [{"paper": paper, "page": page} for paper, page in cited]})
                self.kept.append(rows[-1])
            if len(rows) == wanted:
                break
        self.rejected += refused
        return rows, refused

    def metrics(self) -> dict:
        """What can be said of the kept prompts in numbers; `corpus_words`: share of long words that the corpus holds."""
        labels = list(lexicon.LEXICON)
        found = {"count": len(self.kept), "asked": self.asked, "rejected": self.rejected.total(),
                 "composed": sum(row["text"] in self.write.composed for row in self.kept),
                 **{f"rejected_{reason}": count for reason, count in sorted(self.rejected.items())}}
        if self.kept:
            texts = [row["text"] for row in self.kept]
            pairs = [pair for text in texts for pair in zip(words(text), words(text)[1:])]
            classes = self.retriever.embedder.embed([lexicon.LEXICON[label].words for label in labels])  # [7, D]
            long = [word for text in texts for word in words(text) if len(word) >= 4]
            nearest = (self.retriever.embedder.embed(texts) @ classes.T).argmax(axis=1)  # [N]
            agree = [labels[at] == row["label"] for at, row in zip(nearest, self.kept)]
            found |= {"distinct_2": len(set(pairs)) / len(pairs), "class_agreement": sum(agree) / len(agree),
                      "class_agreement_chance": 1 / len(labels),
                      "corpus_words": sum(word in self.retriever.vocabulary for word in long) / len(long),
                      "tokens_mean": sum(row["tokens"] for row in self.kept) / len(self.kept)}
        return found


def retrieval_quality(retriever: Retriever) -> dict:
    """Of the three passages nearest to each class's first query, the share about that class: mean and worst class."""
    shares = []
    for label in lexicon.LEXICON:
        found = retriever.nearest(lexicon.query(label, 0), 3)
        shares.append(sum(lexicon.about(hit["title"], hit["text"]) == label for hit in found) / 3)
    return {"retrieval_top3_about_class": sum(shares) / len(shares), "retrieval_top3_about_class_min": min(shares)}
