"""Cut the corpus into passages and embed them, for `prompt` to retrieve from.

    python -m stages.runtime.launch index_rag

reads   index_rag, seed; data/corpus.parquet, models/base/embedder
writes  models/index/passages.parquet      id, paper, title, page, text, vector
        models/index/embedder.json         the embedder; with embedder.safetensors: the fitted
                                           TF-IDF + SVD (embedded embedder only)

Passages are sentence splits of LlamaIndex and never span two papers. A neural embedder reads each
one whole: its own tokenizer measures them. A Chroma store has other bytes on every build, so
whoever queries builds it from the Parquet file (`stages.text.retrieval`).
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from stages.params import IndexRag, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar
from stages.text.embedder import LatentSemanticEmbedder, NeuralEmbedder, is_neural
from stages.text.parquet_writer import parquet_writer
from stages.text.scripts import UNSPACED
from stages.text.sentences import join_lines, split_losslessly

if TYPE_CHECKING:
    from llama_index.core.node_parser import SentenceSplitter

CORPUS = Path("data/corpus.parquet")
BASE = Path("models/base/embedder")
OUT = Path("models/index")
BATCH = 1024  # passages embedded at once
# The tokens of the embedded embedder: words and punctuation marks. A character of a script without
# spaces counts as a word, and so does each part of a very long one: so many tokens are never long.
TOKEN = re.compile(rf"[{UNSPACED}]|\w{{1,40}}|[^\w\s]")
# Passages that the embedded embedder is fitted on, evenly spread: with more, memory would grow.
MAX_FIT_PASSAGES = 4_000
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("paper", pa.string()),
        ("title", pa.string()),
        ("page", pa.int32()),
        ("text", pa.string()),
        ("vector", pa.list_(pa.float32())),  # null until the passages are embedded
    ]
)


def main() -> None:
    params = load()
    config = params.index_rag
    with atomic_folder(OUT) as out:
        neural_embedder = NeuralEmbedder(BASE) if is_neural(BASE) else None
        if neural_embedder:
            log_prompts(neural_embedder)
        unembedded = out / "unembedded.parquet"
        count = write_passages(unembedded, make_splitter(config, neural_embedder), neural_embedder)
        if not count:
            exit_with_error(f"{CORPUS}: no text to index")
        # The embedded embedder is fitted on the passages.
        embedder = neural_embedder or fit_embedder(
            unembedded, count, config.dimensions, params.seed
        )
        embedder.save(out)
        dimensions = embed_passages(unembedded, out / "passages.parquet", embedder, count)
        unembedded.unlink()
    log(f"index_rag: {count} passages, vectors of {dimensions}")


def log_prompts(embedder: NeuralEmbedder) -> None:
    """Log what the embedder's configuration puts before passages and queries."""
    if embedder.passage_prompt or embedder.query_prompt:
        log(
            f"index_rag: {BASE} puts {embedder.passage_prompt!r} before a passage and "
            f"{embedder.query_prompt!r} before a query"
        )
    else:
        names = [name for name, prompt in embedder.model.prompts.items() if prompt]
        log(
            f"index_rag: {BASE} has no prompt for passages or queries in its "
            f"config_sentence_transformers.json; others: {', '.join(names) or 'none'}"
        )


def make_splitter(config: IndexRag, embedder: NeuralEmbedder | None) -> "SentenceSplitter":
    """Return LlamaIndex's splitter into runs of whole sentences of at most `passage_tokens`.

    Args:
        config: the section `index_rag`.
        embedder: whose tokens are counted; None: words and punctuation marks are.

    Raises:
        SystemExit: the embedder reads no more tokens than neighboring passages share.
    """
    from llama_index.core.node_parser import SentenceSplitter

    return SentenceSplitter(
        chunk_size=passage_size(config, embedder) if embedder else config.passage_tokens,
        chunk_overlap=config.overlap_tokens,
        paragraph_separator="\n",
        # Without a tokenizer LlamaIndex would download its own.
        tokenizer=embedder.tokenize if embedder else TOKEN.findall,
        chunking_tokenizer_fn=split_losslessly,
    )


def passage_size(config: IndexRag, embedder: NeuralEmbedder) -> int:
    """Return the tokens per passage: `passage_tokens`, or fewer where the embedder reads fewer."""
    size = int(min(config.passage_tokens, embedder.max_tokens))
    if size < 1:
        exit_with_error(
            f"{BASE}: it reads no more tokens than its prompt {embedder.passage_prompt!r} has"
        )
    if size <= config.overlap_tokens:
        exit_with_error(
            f"index_rag.overlap_tokens: must be less than the {size} tokens of a passage that "
            f"{BASE} reads"
        )
    if size < config.passage_tokens:
        log(
            f"index_rag.passage_tokens: {size} instead of {config.passage_tokens}: {BASE} would "
            "not read the rest of a passage"
        )
    return size


def write_passages(
    path: Path, splitter: "SentenceSplitter", embedder: NeuralEmbedder | None
) -> int:
    """Write the passages of the corpus without vectors; return how many there are."""
    count = 0
    cut = 0
    with parquet_writer(path, SCHEMA) as writer:
        for lines in lines_by_paper(pq.ParquetFile(CORPUS)):
            passages = split_into_passages(lines, splitter)
            writer.write_table(pa.Table.from_pylist(passages, SCHEMA))
            count += len(passages)
            if embedder:
                lengths = [len(embedder.tokenize(passage["text"])) for passage in passages]
                cut += sum(length > embedder.max_tokens for length in lengths)
    if cut:
        # A byte-pair tokenizer may read joined sentences as more tokens than the single ones.
        log(f"index_rag: {BASE} does not read the last tokens of {cut} of {count} passages")
    return count


def lines_by_paper(corpus: pq.ParquetFile) -> Iterator[list[dict]]:
    """Yield the lines (paper, page, text) of each paper, with one paper in memory at a time."""
    batches = corpus.iter_batches(4096, columns=["paper", "page", "text"])
    lines = (row for batch in batches for row in batch.to_pylist())
    for _, paper_lines in groupby(lines, key=lambda row: row["paper"]):
        yield list(paper_lines)


def split_into_passages(lines: list[dict], splitter: "SentenceSplitter") -> list[dict]:
    """Return the passages of one paper, each with the page it starts on."""
    paper = lines[0]["paper"]
    text = join_lines([line["text"] for line in lines])
    # The offset of each line in the running text gives the page of any offset.
    line_offsets = []
    offset = 0
    for line in lines:
        offset = max(offset, text.find(line["text"], offset))  # a blank line is not found
        line_offsets.append(offset)
        offset += len(line["text"])

    passages = []
    offset = 0
    for number, passage in enumerate(splitter.split_text(text)):
        offset = max(0, text.find(passage, offset))
        line = lines[max(0, bisect_right(line_offsets, offset) - 1)]
        passages.append(
            {
                "id": f"{paper}#{number:04d}",
                "paper": paper,
                "title": lines[0]["text"],
                "page": line["page"],
                "text": passage,
            }
        )
        offset += 1
    return passages


def fit_embedder(path: Path, count: int, dimensions: int, seed: int) -> LatentSemanticEmbedder:
    """Fit the embedded embedder on at most `MAX_FIT_PASSAGES` of the `count` passages in a file."""
    step = math.ceil(count / MAX_FIT_PASSAGES)
    texts = [text for index, text in enumerate(read_texts(path)) if index % step == 0]
    return LatentSemanticEmbedder.fit(texts, dimensions, seed)


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of the passages in a file."""
    for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["text"]):
        yield from batch["text"].to_pylist()


def embed_passages(
    source: Path, target: Path, embedder: LatentSemanticEmbedder | NeuralEmbedder, count: int
) -> int:
    """Copy the `count` passages of a file with their vectors; return the vectors' dimensions."""
    field = SCHEMA.field("vector")
    position = SCHEMA.get_field_index("vector")
    dimensions = 0
    with (
        parquet_writer(target, SCHEMA) as writer,
        progress_bar(total=count, desc="index_rag", unit="passage") as bar,
    ):
        for batch in pq.ParquetFile(source).iter_batches(BATCH):
            vectors = embedder.embed(batch["text"].to_pylist())  # [N, D] float32
            dimensions = vectors.shape[1]
            column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), dimensions)
            table = pa.Table.from_batches([batch])
            writer.write_table(table.set_column(position, field, column.cast(field.type)))
            bar.update(len(batch))
    return dimensions


if __name__ == "__main__":
    run_stage(main, __doc__)
