"""Cut the corpus into passages and embed them: what `prompt` retrieves from.

    python -m stages.index_rag

reads   index_rag, seed; data/corpus.parquet, models/base/embedder
writes  models/index/passages.parquet      id, paper, title, page, text, vector
        models/index/embedder.json, embedder.safetensors      the fitted TF-IDF + SVD (embedded embedder only)

Passages are LlamaIndex sentence splits and never span two papers. Chroma's own files differ on every build, so the store
is built from the Parquet file by whoever queries (`stages.text.retrieval`).
"""

import re
import shutil
import sys
from bisect import bisect_right
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.artefacts import write_table
from stages.common.fail import fail
from stages.common.progress import progress, say
from stages.params import load
from stages.text import embedder, sentences

OUT, BASE = Path("models/index"), Path("models/base/embedder")
SCHEMA = pa.schema([("id", pa.string()), ("paper", pa.string()), ("title", pa.string()), ("page", pa.int32()),
                    ("text", pa.string()), ("vector", pa.list_(pa.float32()))])


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
        found.append({"id": f"{rows[0]['paper']}#{number:04d}", "paper": rows[0]["paper"], "title": rows[0]["text"],
                      "page": page, "text": passage})
        at += 1
    return found


def main() -> None:
    params = load()
    p = params.index_rag
    if p.overlap_tokens >= p.passage_tokens:
        fail(f"index_rag.overlap_tokens: {p.overlap_tokens} is not less than passage_tokens, {p.passage_tokens}")
    from llama_index.core.node_parser import SentenceSplitter

    # Tokens are words and punctuation marks: LlamaIndex's own tokenizer would be downloaded.
    splitter = SentenceSplitter(chunk_size=p.passage_tokens, chunk_overlap=p.overlap_tokens, paragraph_separator="\n",
                                tokenizer=re.compile(r"\w+|[^\w\s]").findall, chunking_tokenizer_fn=sentences.spans)
    corpus = pq.read_table("data/corpus.parquet", columns=["paper", "page", "text"]).to_pylist()
    rows = []
    for _, lines in groupby(progress(corpus, what="index_rag", unit="line"), key=lambda row: row["paper"]):
        rows += passages(list(lines), splitter)
    if not rows:
        fail("data/corpus.parquet: no text to index")

    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    texts = [row["text"] for row in rows]
    if embedder.neural(BASE):
        vectors = embedder.Neural(BASE).embed(texts)  # [N, D]
    else:
        model = embedder.LatentSemantic.fit(texts, p.dimensions, params.seed)
        model.save(OUT)
        vectors = model.embed(texts)
    for row, vector in zip(rows, vectors):
        row["vector"] = vector
    write_table(OUT / "passages.parquet", pa.Table.from_pylist(rows, SCHEMA))
    say(f"index_rag: {len(rows)} passages, vectors of {vectors.shape[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
