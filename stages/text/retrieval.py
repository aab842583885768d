"""The passages nearest to a query: a Chroma store, built from `passages.parquet` in the scratch folder and reused."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock

from stages.common.artifacts import digest
from stages.runtime import resume_cache
from stages.text import embedder
from stages.text.duplicates import words

BATCH = 1000  # passages added at once
METADATA = ("paper", "title", "page")
# HNSW at settings where it finds the exact neighbors of a corpus of papers; one thread, so that every build is alike.
SPACE = {
    "hnsw:space": "cosine",
    "hnsw:construction_ef": 200,
    "hnsw:search_ef": 200,
    "hnsw:M": 32,
    "hnsw:num_threads": 1,
}


class Retriever:
    """Query an index folder. Passages are {id, paper, title, page, text}."""

    def __init__(self, index: Path, base: Path):
        self.embedder = embedder.load(index, base)
        self.store = _open(index / "passages.parquet")
        self.papers, self.vocabulary = set(), set()
        for batch in pq.ParquetFile(index / "passages.parquet").iter_batches(
            BATCH, columns=["paper", "text"]
        ):
            self.papers.update(batch["paper"].to_pylist())
            self.vocabulary.update(
                word for text in batch["text"].to_pylist() for word in words(text)
            )

    def nearest(self, query: str, count: int) -> list[dict]:
        """The `count` passages nearest to the query in cosine similarity, nearest first."""
        vectors = self.embedder.embed(
            [query]
        )  # by vector: a reloaded collection would embed text its own way
        found = self.store.query(
            query_embeddings=vectors,
            n_results=min(count, self.store.count()),
            include=["documents", "metadatas", "distances"],
        )
        ranked = sorted(
            zip(
                found["distances"][0], found["ids"][0], found["metadatas"][0], found["documents"][0]
            ),
            key=lambda hit: hit[:2],
        )
        return [
            {"id": id, **{key: metadata[key] for key in METADATA}, "text": text}
            for _, id, metadata, text in ranked
        ]


def _open(passages: Path):
    """The Chroma collection of a passages file in the scratch folder; built the first time, whole or not at all."""
    import chromadb
    from chromadb.config import Settings

    folder = resume_cache.cache_root() / "chroma" / digest(passages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        whole = folder / "whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        collection = client.get_or_create_collection(
            "passages", metadata=SPACE, embedding_function=None
        )
        if not whole.exists():
            for batch in pq.ParquetFile(passages).iter_batches(BATCH):
                rows = batch.to_pydict()
                collection.add(
                    ids=rows["id"],
                    embeddings=np.array(rows["vector"], np.float32),
                    documents=rows["text"],
                    metadatas=[
                        dict(zip(METADATA, values))
                        for values in zip(*(rows[key] for key in METADATA))
                    ],
                )
            whole.touch()
    return collection
