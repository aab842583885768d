"""Texts -> unit vectors: TF-IDF + SVD fitted on the corpus (latent semantic analysis), or a neural sentence embedder."""

from pathlib import Path

import numpy as np

from stages.common.artifacts import read_json, write_json
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained
from stages.runtime.progress import log

TERMS = 20_000  # the most frequent words and word pairs


class LatentSemantic:
    """TF-IDF (sublinear) projected on the leading singular vectors (Deerwester et al. 1990)."""

    def __init__(self, terms: list[str], idf: np.ndarray, components: np.ndarray):
        """terms [V], idf [V], components [D, V]."""
        self.terms, self.idf, self.components = terms, idf, components
        self.vectorizer = _vectorizer(vocabulary={term: at for at, term in enumerate(terms)})
        self.vectorizer.idf_ = idf.astype(np.float64)

    @classmethod
    def fit(cls, texts: list[str], dimensions: int, seed: int) -> "LatentSemantic":
        """Fit on passages; fewer passages or terms than `dimensions` allow fewer."""
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _vectorizer(max_features=TERMS)
        weights = vectorizer.fit_transform(texts)  # sparse [N, V]
        rank = min(dimensions, *(size - 1 for size in weights.shape))
        if rank < 1:
            exit_with_error(
                "index_rag: the corpus is too small for an index (one passage or one word)"
            )
        if rank < dimensions:
            log(
                f"index_rag.dimensions: {rank} instead of {dimensions}: the corpus has only {weights.shape[0]} passages"
            )
        components = TruncatedSVD(rank, random_state=seed).fit(weights).components_
        # A singular vector's sign is free: its largest entry is positive.
        largest = components[np.arange(rank), np.abs(components).argmax(axis=1)]
        components = components * np.sign(largest)[:, None]
        return cls(
            list(vectorizer.get_feature_names_out()),
            vectorizer.idf_.astype(np.float32),
            components.astype(np.float32),
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [N, D] float32; zeros for a text without a known word."""
        projected = self.vectorizer.transform(texts) @ self.components.T.astype(np.float64)
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        return (projected / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        write_json(
            folder / "embedder.json",
            {"kind": "tfidf-svd", "dimensions": len(self.components), "terms": self.terms},
        )
        save_file(
            {"idf": self.idf, "components": np.ascontiguousarray(self.components)},
            folder / "embedder.safetensors",
        )

    @classmethod
    def read(cls, folder: Path) -> "LatentSemantic":
        from safetensors.numpy import load_file

        weights = load_file(folder / "embedder.safetensors")
        return cls(
            read_json(folder / "embedder.json")["terms"], weights["idf"], weights["components"]
        )


class Neural:
    """A sentence-transformers folder (a plain Hugging Face encoder is mean-pooled)."""

    def __init__(self, folder: Path):
        from sentence_transformers import SentenceTransformer
        from transformers import AutoModel

        load_pretrained(
            AutoModel, folder, spare="pooler."
        )  # only to see that nothing is missing: the next line would not say so
        try:
            self.model = SentenceTransformer(str(folder), trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as fault:
            exit_with_error(f"{folder}: cannot be loaded: {str(fault)[:300]}")

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [N, D] float32."""
        return self.model.encode(
            texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False
        )


def _vectorizer(**options):
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
        dtype=np.float64,
        **options,
    )


def neural(base: Path) -> bool:
    """Whether models/base/embedder holds a neural embedder (else the embedded TF-IDF + SVD is fitted)."""
    return (base / "modules.json").exists() or (base / "config.json").exists()


def load(index: Path, base: Path) -> LatentSemantic | Neural:
    """The embedder that made an index."""
    return Neural(base) if neural(base) else LatentSemantic.read(index)
