"""Cut the corpus into training texts: each runs to the first full stop after `min_characters`.

    python -m stages.chunk

reads   chunk; data/corpus.parquet
writes  data/chunks.parquet: paper, chunk, text, split

A chunk never spans two papers; a remainder that is too short joins the chunk before it. Test chunks that are near
duplicates of training text (half of their 5-word shingles) are dropped. The end-of-sequence token is added by the
tokenizer's owner, `finetune_llm`.
"""

import sys
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artefacts import write_table
from stages.common.fail import fail
from stages.common.progress import say
from stages.params import load
from stages.text import duplicates, sentences

SCHEMA = pa.schema([("paper", pa.string()), ("chunk", pa.int32()), ("text", pa.string()), ("split", pa.string())])
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


def main() -> None:
    p = load().chunk
    corpus = pq.read_table("data/corpus.parquet", columns=["paper", "text", "split"]).to_pylist()
    rows = []
    for (paper, split), lines in groupby(corpus, key=lambda row: (row["paper"], row["split"])):
        text = sentences.flow([line["text"] for line in lines])
        rows += [{"paper": paper, "chunk": number, "text": part, "split": split}
                 for number, part in enumerate(chunks(text, p.min_characters))]

    train = [duplicates.shingles(row["text"]) for row in rows if row["split"] == "train"]
    known = np.unique(np.concatenate(train)) if train else fail("data/corpus.parquet: no training text")
    kept = [row for row in rows if row["split"] == "train" or duplicates.contained(row["text"], known) < DUPLICATE]
    if not any(row["split"] == "test" for row in kept):
        fail("data/corpus.parquet: no held-out text is left beside near duplicates of the training text")
    write_table("data/chunks.parquet", pa.Table.from_pylist(kept, SCHEMA))
    say(f"chunk: {len(kept)} chunks, {len(rows) - len(kept)} near-duplicate test chunks dropped")


if __name__ == "__main__":
    main(*sys.argv[1:])
