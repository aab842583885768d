"""Retrieval of the passages nearest to a query, from a Chroma collection.

Chroma's own files differ on every build. The collection is therefore built from
`passages.parquet` in the user's cache folder, once per file content, and reused.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow.parquet as pq

from stages.common.artifacts import digest
from stages.runtime import resume_cache
from stages.text.duplicates import words
from stages.text.embedder import load_embedder

if TYPE_CHECKING:
    from chromadb import Collection

INDEX = Path("models/index")
EMBEDDER = Path("models/base/embedder")
BATCH = 1000  # passages read, or added to the collection, at once
METADATA = ("paper", "title", "page")
# With these HNSW settings the search finds the exact neighbors in a corpus of papers. One thread
# makes every build alike.
HNSW_SETTINGS = {
    "hnsw:space": "cosine",
    "hnsw:construction_ef": 200,
    "hnsw:search_ef": 200,
    "hnsw:M": 32,
    "hnsw:num_threads": 1,
}


class Passage(TypedDict):
    """A passage of a paper."""

    id: str
    paper: str
    title: str
    page: int
    text: str


class Retriever:
    """Answers queries to an index folder."""

    def __init__(self, index: Path, base_embedder: Path):
        passages = index / "passages.parquet"
        self.embedder = load_embedder(index, base_embedder)
        self.collection = open_collection(passages)
        self.papers: set[str] = set()
        self.vocabulary: set[str] = set()  # every word of the corpus
        for batch in pq.ParquetFile(passages).iter_batches(BATCH, columns=["paper", "text"]):
            self.papers.update(batch["paper"].to_pylist())
            for text in batch["text"].to_pylist():
                self.vocabulary.update(words(text))

    def nearest(self, query: str, count: int) -> list[Passage]:
        """Return the `count` passages nearest to the query in cosine similarity, nearest first."""
        # Query by vector: given a text, a reloaded collection would embed it with its own model.
        vectors = self.embedder.embed([query])
        result: dict[str, Any] = dict(
            self.collection.query(
                query_embeddings=vectors,
                n_results=min(count, self.collection.count()),
                include=["documents", "metadatas", "distances"],
            )
        )
        hits = zip(
            result["distances"][0],
            result["ids"][0],
            result["metadatas"][0],
            result["documents"][0],
        )
        # Passages at the same distance are ordered by their id.
        ranked = sorted(hits, key=lambda hit: hit[:2])
        return [
            Passage(
                id=id,
                paper=metadata["paper"],
                title=metadata["title"],
                page=metadata["page"],
                text=text,
            )
            for _, id, metadata, text in ranked
        ]


def open_collection(passages: Path) -> "Collection":
    """Open the Chroma collection of a passages file; build it if it is not in the cache yet."""
    import chromadb
    from chromadb.config import Settings

    folder = resume_cache.cache_root() / "chroma" / digest(passages)
    with resume_cache.lock_folder(folder, "retrieval"):
        complete = folder / "complete"
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        collection = client.get_or_create_collection(
            "passages", metadata=HNSW_SETTINGS, embedding_function=None
        )
        if not complete.exists():
            add_passages(collection, passages)
            complete.touch()
    return collection


def add_passages(collection: "Collection", passages: Path) -> None:
    """Add all passages of a Parquet file with their vectors."""
    for batch in pq.ParquetFile(passages).iter_batches(BATCH):
        columns = batch.to_pydict()
        metadata_rows = zip(*(columns[key] for key in METADATA))
        collection.add(
            ids=columns["id"],
            embeddings=np.array(columns["vector"], np.float32),  # [N, D]
            documents=columns["text"],
            metadatas=[dict(zip(METADATA, row)) for row in metadata_rows],
        )
