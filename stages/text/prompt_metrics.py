"""What can be said of prompts and of retrieval in numbers."""

import csv
from pathlib import Path

import numpy as np

from stages.text import lexicon
from stages.text.duplicates import words
from stages.text.prompt_writing import Asking
from stages.text.retrieval import Retriever

LONG = 4  # letters of a content word


def of_prompts(asking: Asking) -> dict:
    """Counts, refusals by reason, and of the kept prompts:

    yield                share of the writer's candidates that were kept
    distinct_2           distinct word pairs / word pairs (Li et al. 2016)
    self_bleu            BLEU-4 of each prompt against the others of its class, mean, 0 to 1 (Zhu et al. 2018, by sacrebleu)
    similarity           mean cosine similarity of two prompts of a class, in the embedder's space
    class_agreement      share whose nearest class description, in that space, is their own class's
    groundedness         share of content words found in the passages that a prompt rests on (writers with retrieval)
    corpus_words         share of content words found anywhere in the corpus
    """
    labels = list(lexicon.LEXICON)
    found = {
        "count": len(asking.kept),
        "asked": asking.asked,
        "rejected": asking.rejected.total(),
        "composed": sum(row["text"] in asking.write.composed for row in asking.kept),
        "yield": len(asking.kept) / max(1, asking.asked),
        **{f"rejected_{reason}": count for reason, count in sorted(asking.rejected.items())},
    }
    if not asking.kept:
        return found
    embed, vocabulary = asking.retriever.embedder.embed, asking.retriever.vocabulary
    texts = [row["text"] for row in asking.kept]
    of = np.array([labels.index(row["label"]) for row in asking.kept])
    pairs = [pair for text in texts for pair in zip(words(text), words(text)[1:])]
    vectors = embed(texts)  # [N, D]
    classes = embed([lexicon.LEXICON[label].words for label in labels])  # [7, D]
    content = [[word for word in words(text) if len(word) >= LONG] for text in texts]
    every = [word for some in content for word in some]
    same = np.triu(of[:, None] == of[None, :], 1)  # [N, N]
    found |= {
        "distinct_2": len(set(pairs)) / len(pairs),
        "class_agreement": float(((vectors @ classes.T).argmax(axis=1) == of).mean()),
        "class_agreement_chance": 1 / len(labels),
        "corpus_words": sum(word in vocabulary for word in every) / len(every),
        "tokens_mean": sum(row["tokens"] for row in asking.kept) / len(texts),
        "tokens_max": max(row["tokens"] for row in asking.kept),
    }
    if same.any():
        found |= {
            "self_bleu": self_bleu(
                [
                    [text for text, at in zip(texts, of) if at == label]
                    for label in range(len(labels))
                ]
            ),
            "similarity": float((vectors @ vectors.T)[same].mean()),
        }
    if asking.technique.endswith("retrieval"):
        sources = [
            {word for passage in row["source"] for word in words(passage["text"])}
            for row in asking.kept
        ]
        found["groundedness"] = sum(
            word in source for some, source in zip(content, sources) for word in some
        ) / len(every)
    return found


def self_bleu(groups: list[list[str]]) -> float:
    """Mean BLEU-4 of each text against the others of its group, 0 (nothing shared) to 1 (copies)."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, group[:at] + group[at + 1 :]).score / 100
        for group in groups
        if len(group) > 1
        for at, text in enumerate(group)
    ]
    return sum(scores) / len(scores)


def of_retrieval(retriever: Retriever, questions: Path) -> dict:
    """How well the index finds things.

    retrieval_top3_about_class (_min)   of the three passages nearest to each class's first query, the share about that class
    recall_at_3                         share of the questions whose source paper is among the papers of the three nearest
                                        passages; only where the index holds every source paper
    `questions` is a CSV with the columns paper, question.
    """
    shares = []
    for label in lexicon.LEXICON:
        hits = retriever.nearest(lexicon.query(label, 0), 3)
        shares.append(sum(lexicon.about(hit["title"], hit["text"]) == label for hit in hits) / 3)
    found = {
        "retrieval_top3_about_class": sum(shares) / len(shares),
        "retrieval_top3_about_class_min": min(shares),
    }
    with open(questions, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if {row["paper"] for row in rows} <= retriever.papers:
        right = [
            row["paper"] in {hit["paper"] for hit in retriever.nearest(row["question"], 3)}
            for row in rows
        ]
        found |= {"recall_at_3": sum(right) / len(right), "recall_at_3_n": len(right)}
    return found
