"""Retrieval of the passages nearest to a query, from a Chroma collection.

Chroma's own files differ on every build. The collection is therefore built from
`passages.parquet` in the user's cache folder, once per file content, and reused. Chroma changes its
files whenever it opens them; to find damaged ones by their hash, it works on a copy.
"""

import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import pyarrow.parquet as pq

from stages.common.artifacts import digest, write_atomically
from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log, progress_bar
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
        self.index = index
        self.embedder = load_embedder(index, base_embedder)
        self.folder = TemporaryDirectory(prefix="remote-diffusion-")  # removed at the end
        self.collection = open_collection(passages, Path(self.folder.name))
        self.papers: set[str] = set()
        self.vocabulary: set[str] = set()  # every word of the corpus
        for batch in pq.ParquetFile(passages).iter_batches(BATCH, columns=["paper", "text"]):
            self.papers.update(batch["paper"].to_pylist())
            for text in batch["text"].to_pylist():
                self.vocabulary.update(words(text))

    def knows(self, text: str) -> bool:
        """Return whether the embedder finds a word of the corpus in a text."""
        return bool(self.embedder.embed_queries([text]).any())

    def nearest(self, query: str, count: int) -> list[Passage]:
        """Return the `count` passages nearest to the query in cosine similarity, nearest first.

        None are near to a query of whose words the corpus has none.
        """
        from chromadb.errors import InvalidArgumentError

        # Query by vector: given a text, a reloaded collection would embed it with its own model.
        vectors = self.embedder.embed_queries([query])  # [1, D]
        if not vectors.any():
            return []
        try:
            result: dict[str, Any] = dict(
                self.collection.query(
                    query_embeddings=vectors,
                    n_results=min(count, self.collection.count()),
                    include=["documents", "metadatas", "distances"],
                )
            )
        except InvalidArgumentError as error:
            exit_with_error(
                f"{self.index}: its vectors are not those of its embedder ({error}); `dvc repro "
                "index_rag` makes it again"
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
            cast(Passage, {"id": id, **metadata, "text": text}) for _, id, metadata, text in ranked
        ]


def open_collection(passages: Path, folder: Path) -> "Collection":
    """Open the Chroma collection of a passages file, with its files in the empty `folder`.

    They are built there and kept in the cache, or are copied from it. Those in the cache are built
    again where they are damaged or of another version of chromadb.
    """
    chromadb = import_chromadb()
    from chromadb.config import Settings

    store = resume_cache.cache_root() / "chroma" / digest(passages)
    hash_file = resume_cache.side_file(store, "hash")
    with resume_cache.lock_folder(store, "retrieval"):
        is_kept = hash_file.exists()
        if is_kept and hash_file.read_bytes() != hash_store(store):
            log(
                f"retrieval: {store} is damaged or of another version of chromadb; it is built "
                f"again from {passages}"
            )
            is_kept = False
        if is_kept:
            shutil.copytree(store, folder, dirs_exist_ok=True)
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        collection = client.get_or_create_collection(
            "passages", metadata=HNSW_SETTINGS, embedding_function=None
        )
        if not is_kept:
            add_passages(collection, passages)
            hash_file.unlink(missing_ok=True)
            shutil.copymode(store, folder)  # else the store gets that of a temporary folder, 0700
            shutil.rmtree(store)
            shutil.copytree(folder, store)
            write_atomically(hash_file, hash_store(store))
    return collection


def import_chromadb() -> ModuleType:
    """Import chromadb; exit with an error where this Python's SQLite is too old for it."""
    try:
        import chromadb
    except RuntimeError:
        exit_with_error(
            f"chromadb needs SQLite 3.35 or newer, this Python has {sqlite3.sqlite_version}: "
            "make the environment with another Python (conda's and uv's bring their own SQLite)"
        )
    return chromadb


def hash_store(store: Path) -> bytes:
    """Return a hash of a store's files, with the version of chromadb."""
    import chromadb

    return f"{digest(store)} {chromadb.__version__}\n".encode()


def add_passages(collection: "Collection", passages: Path) -> None:
    """Add all passages of a Parquet file with their vectors."""
    parquet = pq.ParquetFile(passages)
    total = parquet.metadata.num_rows
    bar = progress_bar(total=total, desc="retrieval", unit="passage")
    for batch in parquet.iter_batches(BATCH):
        columns = batch.to_pydict()
        metadata_rows = zip(*(columns[key] for key in METADATA))
        collection.add(
            ids=columns["id"],
            embeddings=np.array(columns["vector"], np.float32),  # [N, D]
            documents=columns["text"],
            metadatas=[dict(zip(METADATA, row)) for row in metadata_rows],
        )
        bar.update(batch.num_rows)
    bar.close()
