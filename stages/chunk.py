"""Cut the corpus into training texts; each ends at the first full stop after `min_characters`.

    python -m stages.chunk

reads   chunk; data/corpus.parquet
writes  data/chunks.parquet: paper, chunk, text, split; the training papers, then the test papers

A chunk never spans two papers; a remainder that is too short joins the chunk before it. Text
without full stops is cut into chunks of at most 4 * `min_characters` bytes (2000 at least), which
bounds their tokens: a token has a byte at least. A test chunk is dropped where half of its 5-word
shingles occur in the training text. The end-of-sequence token is added in `finetune_llm`, which has
the tokenizer.
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
from stages.text.duplicates import positions_in, shingles
from stages.text.parquet_writer import parquet_writer
from stages.text.sentences import join_lines, sentence_ends

CORPUS = "data/corpus.parquet"
CHUNKS = "data/chunks.parquet"
SCHEMA = pa.schema(
    [("paper", pa.string()), ("chunk", pa.int32()), ("text", pa.string()), ("split", pa.string())]
)
MAX_BYTES_RATIO = 4  # most bytes (UTF-8) of a chunk / `min_characters`
LONG_SENTENCE = 500  # characters; shorter sentences are not cut where `min_characters` is small
MAX_TRAIN_OVERLAP = 0.5  # share of a test chunk's shingles that occur in the training text


def main() -> None:
    params = load()
    min_characters = params.chunk.min_characters
    corpus = pq.ParquetFile(CORPUS)

    # In memory: the test chunks, their shingles, and whether the training text has each of these.
    test = [row for rows in chunks_by_paper(corpus, "test", min_characters) for row in rows]
    test_shingles = [shingles(row["text"]) for row in test]
    known = np.unique(np.concatenate([*test_shingles, np.zeros(0, np.uint64)]))  # [S]
    in_training = np.zeros(len(known), bool)  # [S]

    # Write the training chunks.
    train_count = 0
    with parquet_writer(CHUNKS, SCHEMA) as writer:
        for rows in chunks_by_paper(corpus, "train", min_characters):
            for row in rows:
                in_training[positions_in(shingles(row["text"]), known)] = True
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            train_count += len(rows)
        if not train_count:
            exit_with_error(f"{CORPUS}: no training text")

        # Write the test chunks that are not near-duplicates of the training text.
        kept = [
            row
            for row, hashes in zip(test, test_shingles)
            if in_training[np.searchsorted(known, hashes)].mean() < MAX_TRAIN_OVERLAP
        ]
        if test and not kept:
            exit_with_error(
                f"{CORPUS}: every held-out chunk is a near-duplicate of the training text"
            )
        writer.write_table(pa.Table.from_pylist(kept, SCHEMA))
    log(
        f"chunk: {train_count + len(kept)} chunks, {len(test) - len(kept)} near-duplicate test "
        "chunks dropped"
    )


def chunks_by_paper(
    corpus: pq.ParquetFile, split: str, min_characters: int
) -> Iterator[list[dict]]:
    """Yield the rows of `SCHEMA` of each paper of a split, with one paper in memory at a time."""
    batches = corpus.iter_batches(4096, columns=["paper", "text", "split"])
    lines = (row for batch in batches for row in batch.to_pylist() if row["split"] == split)
    for paper, paper_lines in groupby(lines, key=lambda row: row["paper"]):
        text = join_lines([row["text"] for row in paper_lines])
        yield [
            {"paper": paper, "chunk": number, "text": chunk, "split": split}
            for number, chunk in enumerate(split_into_chunks(text, min_characters))
        ]


def split_into_chunks(text: str, min_characters: int) -> list[str]:
    """Cut the text of one paper into chunks of whole sentences.

    All chunks have at least `min_characters`, unless the text itself is shorter, or a sentence had
    to be cut.
    """
    max_bytes = MAX_BYTES_RATIO * max(min_characters, LONG_SENTENCE)
    chunks = []
    start = 0
    for end in [*sentence_ends(text), len(text)]:
        while (cut := cut_before(text, start, end, max_bytes)) < end:
            chunks.append(text[start:cut].strip())
            start = cut
        chunk = text[start:end].strip()
        if len(chunk) >= min_characters:
            chunks.append(chunk)
            start = end
    remainder = text[start:].rstrip()
    if not remainder.strip():
        return chunks
    if chunks and len((chunks[-1] + remainder).encode()) <= max_bytes:
        chunks[-1] += remainder
    else:
        chunks.append(remainder.strip())
    return chunks


def cut_before(text: str, start: int, end: int, max_bytes: int) -> int:
    """Return `end`, or, where text[start:end] has more bytes than allowed, the last space before.

    Without a space in the second half of what is allowed, the cut is between two characters.
    """
    fitting = text[start : min(end, start + max_bytes)].encode()[:max_bytes].decode(errors="ignore")
    if start + len(fitting) >= end:
        return end
    space = max(fitting.rfind(" "), fitting.rfind("\n"))
    return start + (space if space > len(fitting) / 2 else len(fitting))


if __name__ == "__main__":
    run_stage(main, __doc__)
