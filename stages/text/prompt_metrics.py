"""Metrics of prompts and of retrieval."""

from pathlib import Path

import numpy as np

from stages.common.csv_files import read_csv
from stages.common.rng import rng
from stages.text.class_words import ClassLexicon
from stages.text.duplicates import words
from stages.text.prompt_writing import ImagePrompt, PromptCollector
from stages.text.retrieval import Retriever

QUESTIONS = Path("stages/embedded/notes_questions.csv")  # columns: paper, question
MIN_CONTENT_LETTERS = 4  # a shorter word is no content word
MAX_BLEU_TEXTS = 200  # of a class; the work grows with their square


def evaluate_prompts(collector: PromptCollector, labels: list[str]) -> dict[str, float]:
    """Compute the metrics of the prompts that a collector has kept.

    count                   prompts kept
    asked                   candidates that were checked
    rejected (_<reason>)    candidates that failed the checks; repeats are near-duplicates
    answers                 requests that an instruction-tuned model answered
    answers_json            answers in JSON
    answers_cut             answers that the limit of tokens cut off
    answers_empty           answers without text beside thoughts
    composed                kept prompts that were composed of the classes' words
    yield                   fraction of the candidates that were kept
    distinct_2              distinct word pairs / all word pairs
    class_agreement         fraction of prompts whose nearest class description in the embedding
                            space is that of the class they were written for
    class_agreement_chance  its expectation for random prompts
    corpus_words            fraction of content words that occur anywhere in the corpus
    tokens_mean, _max       CLIP tokens per prompt, cues included
    self_bleu               mean BLEU-4 of each prompt against the others of its class, 0 to 1
                            (Zhu et al. 2018, by sacrebleu); at most `MAX_BLEU_TEXTS` a class
    similarity              mean cosine similarity of two prompts of a class, in the embedding space
    groundedness            fraction of content words that occur in the passages their prompt rests
                            on, of the prompts that rest on any

    Args:
        collector: of the prompts.
        labels: the classes that prompts were asked for.
    """
    prompts = collector.kept
    metrics = count_candidates(collector)
    if not prompts:
        return metrics

    texts = [prompt.text for prompt in prompts]
    classes = np.array([labels.index(prompt.label) for prompt in prompts])  # [N]
    embed = collector.retriever.embedder.embed
    vectors = embed(texts)  # [N, D]
    descriptions = [collector.classes.words[label].description for label in labels]
    class_vectors = embed(descriptions)  # [C, D]
    vocabulary = collector.retriever.vocabulary
    metrics["distinct_2"] = distinct_2(texts)
    metrics["class_agreement"] = class_agreement(vectors, classes, class_vectors)
    metrics["class_agreement_chance"] = 1 / len(labels)
    metrics["corpus_words"] = _mean(
        [word in vocabulary for text in texts for word in content_words(text)]
    )
    metrics["tokens_mean"] = _mean([prompt.tokens for prompt in prompts])
    metrics["tokens_max"] = max(prompt.tokens for prompt in prompts)

    if len(np.unique(classes)) < len(prompts):  # a class has two prompts
        metrics["self_bleu"] = self_bleu(
            [[prompt.text for prompt in prompts if prompt.label == label] for label in labels]
        )
    is_known = vectors.any(axis=1)  # [N]; zeros: of a text without a word of the corpus
    if len(np.unique(classes[is_known])) < is_known.sum():
        groups = [vectors[is_known & (classes == i)] for i in range(len(labels))]
        metrics["similarity"] = similarity(groups)
    if any(prompt.passages for prompt in prompts):
        metrics["groundedness"] = groundedness([prompt for prompt in prompts if prompt.passages])
    return metrics


def class_agreement(vectors: np.ndarray, classes: np.ndarray, class_vectors: np.ndarray) -> float:
    """Return the fraction of vectors whose nearest class vector is that of their class.

    Zeros, the vector of a text without a known word, are near to nothing.

    Args:
        vectors: of prompts, [N, D]; unit vectors or zeros.
        classes: the index of each prompt's class, [N].
        class_vectors: [C, D]; unit vectors or zeros.
    """
    nearest = (vectors @ class_vectors.T).argmax(axis=1)  # [N]
    is_known = vectors.any(axis=1) & class_vectors[classes].any(axis=1)  # [N]
    return float(np.mean(is_known & (nearest == classes)))


def count_candidates(collector: PromptCollector) -> dict[str, float]:
    """Count the candidates that were kept and rejected, by reason, and the answers of a model."""
    prompts = collector.kept
    metrics = {
        "count": len(prompts),
        "asked": collector.candidates,
        "rejected": collector.rejections.total(),
        "composed": sum(prompt.text in collector.writer.composed for prompt in prompts),
        "yield": len(prompts) / max(1, collector.candidates),
        **collector.writer.counts,
    }
    for reason, count in sorted(collector.rejections.items()):
        metrics[f"rejected_{reason}"] = count
    return metrics


def content_words(text: str) -> list[str]:
    """Return the words of a text that have at least `MIN_CONTENT_LETTERS` letters."""
    return [word for word in words(text) if len(word) >= MIN_CONTENT_LETTERS]


def distinct_2(texts: list[str]) -> float:
    """Return the number of distinct word pairs over that of all word pairs.

    Li et al. 2016, whose measure it is, divide by the number of words, of which there are more.
    """
    pairs: list[tuple[str, str]] = []
    for text in texts:
        text_words = words(text)
        pairs += zip(text_words, text_words[1:])
    return len(set(pairs)) / len(pairs)


def self_bleu(groups: list[list[str]]) -> float:
    """Return the mean BLEU-4 of each text against the others of its group (Zhu et al. 2018).

    0: the texts of a group share nothing; 1: they are copies. Groups of one text are left out. Of
    a group of more than `MAX_BLEU_TEXTS` texts, so many are drawn with a fixed seed.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    scores = []
    for texts in groups:
        if len(texts) < 2:
            continue
        if len(texts) > MAX_BLEU_TEXTS:
            drawn = rng(0, "self_bleu").choice(len(texts), MAX_BLEU_TEXTS, replace=False)
            texts = [texts[i] for i in drawn]
        for i, text in enumerate(texts):
            others = texts[:i] + texts[i + 1 :]
            scores.append(bleu.sentence_score(text, others).score / 100)
    return _mean(scores)


def similarity(groups: list[np.ndarray]) -> float:
    """Return the mean cosine similarity of two vectors of a group, over all pairs of all groups.

    The product of a group's sum with itself has each pair twice, and each vector with itself.

    Args:
        groups: unit vectors, [N, D] each; at least one group has two.
    """
    doubled = 0.0
    pairs = 0
    for vectors in groups:
        vectors = vectors.astype(np.float64)
        total = vectors.sum(axis=0)  # [D]
        doubled += total @ total - (vectors**2).sum()
        pairs += len(vectors) * (len(vectors) - 1) // 2
    return float(doubled / 2 / pairs)


def groundedness(prompts: list[ImagePrompt]) -> float:
    """Return the fraction of content words that occur in the passages their prompt rests on."""
    grounded = []
    for prompt in prompts:
        passage_words: set[str] = set()
        for passage in prompt.passages:
            passage_words.update(words(passage["text"]))
        grounded += [word in passage_words for word in content_words(prompt.text)]
    return _mean(grounded)


def evaluate_retrieval(
    retriever: Retriever, classes: ClassLexicon, labels: list[str]
) -> dict[str, float]:
    """Compute the metrics of an index.

    retrieval_top3_about_class (_min)   fraction of the three passages nearest to a class's first
                                        query that are about that class: mean and minimum over the
                                        classes
    recall_at_3 (_n)                    fraction of `QUESTIONS` whose source paper is among the
                                        papers of the three nearest passages, and the number of
                                        questions; only where the index holds every source paper

    Args:
        retriever: the index.
        classes: the words of all classes.
        labels: the classes that prompts were asked for.
    """
    class_precisions = []
    for label in labels:
        hits = retriever.nearest(classes.retrieval_query(label, 0), 3)
        about_class = [classes.dominant_class(hit["title"], hit["text"]) == label for hit in hits]
        class_precisions.append(sum(about_class) / 3)
    metrics = {
        "retrieval_top3_about_class": _mean(class_precisions),
        "retrieval_top3_about_class_min": min(class_precisions),
    }
    rows = read_csv(QUESTIONS)
    if {row["paper"] for row in rows} <= retriever.papers:
        recalled = []
        for row in rows:
            papers = {hit["paper"] for hit in retriever.nearest(row["question"], 3)}
            recalled.append(row["paper"] in papers)
        metrics["recall_at_3"] = _mean(recalled)
        metrics["recall_at_3_n"] = len(recalled)
    return metrics


def _mean(values: list) -> float:
    return sum(values) / len(values)
