"""Cut the corpus into passages and embed them: what `prompt` retrieves from.

    python -m stages.index_rag

reads   index_rag, seed; data/corpus.parquet, models/base/embedder
writes  models/index/passages.parquet      id, paper, title, page, text, vector
        models/index/embedder.json, embedder.safetensors      the fitted TF-IDF + SVD (embedded embedder only)

Passages are LlamaIndex sentence splits and never span two papers; they are made and embedded a few at a time. Chroma's own
files differ on every build, so the store is built from the Parquet file by whoever queries (`stages.text.retrieval`).
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar
from stages.text import embedder, sentences
from stages.text.parquet_writer import parquet_writer

OUT, BASE = Path("models/index"), Path("models/base/embedder")
BATCH = 1024  # passages embedded at once
FIT = 4_000  # passages, evenly spread, that the embedded embedder is fitted on: memory stops growing there
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("paper", pa.string()),
        ("title", pa.string()),
        ("page", pa.int32()),
        ("text", pa.string()),
        ("vector", pa.list_(pa.float32())),
    ]
)


def papers(corpus: pq.ParquetFile) -> Iterator[list[dict]]:
    """The lines of each paper, a paper in memory at a time."""
    batches = corpus.iter_batches(4096, columns=["paper", "page", "text"])
    rows = (row for batch in batches for row in batch.to_pylist())
    for _, lines in groupby(rows, key=lambda row: row["paper"]):
        yield list(lines)


def texts(path: Path) -> Iterator[str]:
    for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["text"]):
        yield from batch["text"].to_pylist()


def passages(rows: list[dict], splitter) -> list[dict]:
    """The passages of one paper, each with the page it starts on."""
    text = sentences.flow([row["text"] for row in rows])
    # Where each line starts in the flowing text, to find pages again.
    starts, at = [], 0
    for row in rows:
        at = text.index(row["text"], at)
        starts.append(at)
        at += len(row["text"])
    found, at = [], 0
    for number, passage in enumerate(splitter.split_text(text)):
        at = max(0, text.find(passage, at))
        page = rows[max(0, bisect_right(starts, at) - 1)]["page"]
        found.append(
            {
                "id": f"{rows[0]['paper']}#{number:04d}",
                "paper": rows[0]["paper"],
                "title": rows[0]["text"],
                "page": page,
                "text": passage,
            }
        )
        at += 1
    return found


def main() -> None:
    params = load()
    p = params.index_rag
    if p.overlap_tokens >= p.passage_tokens:
        exit_with_error(
            f"index_rag.overlap_tokens: {p.overlap_tokens} is not less than passage_tokens, {p.passage_tokens}"
        )
    from llama_index.core.node_parser import SentenceSplitter

    # Tokens are words and punctuation marks: LlamaIndex's own tokenizer would be downloaded.
    splitter = SentenceSplitter(
        chunk_size=p.passage_tokens,
        chunk_overlap=p.overlap_tokens,
        paragraph_separator="\n",
        tokenizer=re.compile(r"\w+|[^\w\s]").findall,
        chunking_tokenizer_fn=sentences.spans,
    )
    with atomic_folder(OUT) as part:
        count, bare = 0, part / "bare.parquet"
        with parquet_writer(bare, SCHEMA) as writer:
            for rows in papers(pq.ParquetFile("data/corpus.parquet")):
                found = passages(rows, splitter)
                count += len(found)
                writer.write_table(pa.Table.from_pylist(found, SCHEMA))
        if not count:
            exit_with_error("data/corpus.parquet: no text to index")

        if embedder.neural(BASE):
            model = embedder.Neural(BASE)
        else:
            step = -(-count // FIT)
            model = embedder.LatentSemantic.fit(
                [text for at, text in enumerate(texts(bare)) if at % step == 0],
                p.dimensions,
                params.seed,
            )
            model.save(part)
        bar = progress_bar(total=count, what="index_rag", unit="passage")
        with parquet_writer(part / "passages.parquet", SCHEMA) as writer:
            for batch in pq.ParquetFile(bare).iter_batches(BATCH):
                vectors = model.embed(batch["text"].to_pylist())  # [N, D] float32
                column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]).cast(
                    SCHEMA.field("vector").type
                )
                writer.write_table(
                    pa.Table.from_batches([batch]).set_column(5, SCHEMA.field("vector"), column)
                )
                bar.update(len(batch))
        bar.close()
        bare.unlink()
    log(f"index_rag: {count} passages, vectors of {vectors.shape[1]}")


if __name__ == "__main__":
    run_stage(main, __doc__)
