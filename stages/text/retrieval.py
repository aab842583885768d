"""The passages nearest to a query: a Chroma store behind LlamaIndex, built from `passages.parquet` and reused."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock

from stages.common import scratch
from stages.common.artefacts import digest
from stages.text import embedder
from stages.text.duplicates import words

BATCH = 1000  # passages added at once
# HNSW at settings where it finds the exact neighbours of a corpus of papers; one thread, so that every build is alike.
SPACE = {"hnsw:space": "cosine", "hnsw:construction_ef": 200, "hnsw:search_ef": 200, "hnsw:M": 32, "hnsw:num_threads": 1}


class Retriever:
    """Query an index folder. Passages are {id, paper, title, page, text}."""

    def __init__(self, index: Path, base: Path):
        self.embedder = embedder.load(index, base)
        self.store = _open(index / "passages.parquet")
        texts = pq.read_table(index / "passages.parquet", columns=["text"])["text"]
        self.vocabulary = {word for text in texts for word in words(text.as_py())}

    def nearest(self, query: str, count: int) -> list[dict]:
        """The `count` passages nearest to the query in cosine similarity, nearest first."""
        from llama_index.core.vector_stores import VectorStoreQuery

        vector = self.embedder.embed([query])[0].tolist()  # by vector: a reloaded collection would embed text its own way
        found = self.store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=count))
        ranked = sorted(zip(found.similarities, found.ids, found.nodes), key=lambda hit: (-hit[0], hit[1]))
        return [{"id": id, **{key: node.metadata[key] for key in ("paper", "title", "page")}, "text": node.text}
                for _, id, node in ranked]


def _open(passages: Path):
    """The Chroma store of a passages file in the scratch folder; built the first time, whole or not at all."""
    import chromadb
    from chromadb.config import Settings
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.chroma import ChromaVectorStore

    folder = scratch.root() / "chroma" / digest(passages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        whole = folder / "whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        collection = client.get_or_create_collection("passages", metadata=SPACE, embedding_function=None)
        store = ChromaVectorStore(chroma_collection=collection)
        if not whole.exists():
            for batch in pq.ParquetFile(passages).iter_batches(BATCH):
                store.add([TextNode(id_=row["id"], text=row["text"], embedding=row["vector"],
                                    metadata={key: row[key] for key in ("paper", "title", "page")})
                           for row in batch.to_pylist()])
            whole.touch()
    return store
