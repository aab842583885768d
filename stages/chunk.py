"""Cut the corpus into training texts: each runs to the first full stop after `min_characters`.

    python -m stages.chunk

reads   chunk; data/corpus.parquet
writes  data/chunks.parquet: paper, chunk, text, split; first the training papers, then the held-out ones

A chunk never spans two papers; a remainder that is too short joins the chunk before it. Test chunks that are near
duplicates of training text (half of their 5-word shingles) are dropped. The end-of-sequence token is added by the
tokenizer's owner, `finetune_llm`.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text import duplicates, sentences
from stages.text.parquet_writer import parquet_writer

OUT = "data/chunks.parquet"
SCHEMA = pa.schema(
    [("paper", pa.string()), ("chunk", pa.int32()), ("text", pa.string()), ("split", pa.string())]
)
DUPLICATE = 0.5  # share of a test chunk's shingles found in training text


def chunks(text: str, least: int) -> list[str]:
    """Cut one paper's text."""
    found, start = [], 0
    for end in sentences.ends(text):
        part = text[start:end].strip()
        if len(part) >= least:
            found.append(part)
            start = end
    rest = text[start:].strip()
    if rest and found and len(rest) < least:
        found[-1] += text[start:].rstrip()
    elif rest:
        found.append(rest)
    return found


def documents(corpus: pq.ParquetFile, split: str) -> Iterator[tuple[str, str]]:
    """(paper, its flowing text) for each paper of a split, a paper in memory at a time."""
    batches = corpus.iter_batches(4096, columns=["paper", "text", "split"])
    rows = (row for batch in batches for row in batch.to_pylist() if row["split"] == split)
    for paper, lines in groupby(rows, key=lambda row: row["paper"]):
        yield paper, sentences.flow([line["text"] for line in lines])


def main() -> None:
    p = load().chunk
    corpus = pq.ParquetFile("data/corpus.parquet")

    def table(split: str) -> Iterator[pa.Table]:
        for paper, text in documents(corpus, split):
            yield pa.Table.from_pylist(
                [
                    {"paper": paper, "chunk": number, "text": part, "split": split}
                    for number, part in enumerate(chunks(text, p.min_characters))
                ],
                SCHEMA,
            )

    # Whether each shingle of the held-out text stands in training text too: only the held-out text stays in memory.
    test = [row for part in table("test") for row in part.to_pylist()]
    marks = [duplicates.shingles(row["text"]) for row in test]
    held = (
        np.unique(np.concatenate(marks))
        if marks
        else exit_with_error("data/corpus.parquet: no held-out text")
    )
    seen = np.zeros(len(held), bool)
    with parquet_writer(OUT, SCHEMA) as writer:
        count = 0
        for some in table("train"):
            for text in some["text"].to_pylist():
                seen[duplicates.where(duplicates.shingles(text), held)] = True
            writer.write_table(some)
            count += len(some)
        if not count:
            exit_with_error("data/corpus.parquet: no training text")
        kept = [
            row
            for row, mark in zip(test, marks)
            if seen[np.searchsorted(held, mark)].mean() < DUPLICATE
        ]
        if not kept:
            exit_with_error(
                "data/corpus.parquet: no held-out text is left beside near duplicates of the training text"
            )
        writer.write_table(pa.Table.from_pylist(kept, SCHEMA))
    log(
        f"chunk: {count + len(kept)} chunks, {len(test) - len(kept)} near-duplicate test chunks dropped"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
