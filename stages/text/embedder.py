"""Texts as unit vectors: TF-IDF + SVD fitted on the corpus, or a neural sentence embedder."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.common.artifacts import digest, read_json, write_json
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.pretrained import check_vocabulary, load_pretrained
from stages.runtime.progress import log

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_TERMS = 20_000  # the most frequent words and word pairs
# Names of the prompts of queries and passages in the configurations of models. By itself,
# sentence-transformers ignores "passage" beside "query", and the names that are not its own.
QUERY_PROMPTS = ("query", "search_query", "retrieval.query", "s2p_query", "web_search_query")
PASSAGE_PROMPTS = ("document", "passage", "corpus", "search_document", "retrieval.passage")
ENCODING: dict[str, Any] = {
    "batch_size": 64,
    "normalize_embeddings": True,
    "show_progress_bar": False,
}


class LatentSemanticEmbedder:
    """TF-IDF (sublinear) projected on the leading singular vectors (Deerwester et al. 1990)."""

    def __init__(self, terms: list[str], idf: np.ndarray, components: np.ndarray):
        """Take the terms [V], their inverse document frequencies [V] and the components [D, V]."""
        self.terms = terms
        self.idf = idf
        self.components = components
        vocabulary = {term: column for column, term in enumerate(terms)}
        self.vectorizer = _make_vectorizer(vocabulary=vocabulary)
        self.vectorizer.idf_ = idf.astype(np.float64)

    @classmethod
    def fit(cls, texts: list[str], dimensions: int, seed: int) -> "LatentSemanticEmbedder":
        """Fit on passages. Few passages or terms give vectors of fewer than `dimensions`."""
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _make_vectorizer(max_features=MAX_TERMS)
        try:
            weights = vectorizer.fit_transform(texts)  # sparse [N, V]
        except ValueError as error:  # of scikit-learn: empty vocabulary
            exit_with_error(f"index_rag: the corpus has no words to index ({error})")
        rank = min(dimensions, *(size - 1 for size in weights.shape))
        if rank < 1:
            exit_with_error(
                "index_rag: the corpus is too small for an index (one passage or one word)"
            )
        if rank < dimensions:
            log(
                f"index_rag.dimensions: {rank} instead of {dimensions}: the corpus has only "
                f"{weights.shape[0]} passages"
            )
        components = TruncatedSVD(rank, random_state=seed).fit(weights).components_  # [D, V]
        return cls(
            list(vectorizer.get_feature_names_out()),
            vectorizer.idf_.astype(np.float32),
            components.astype(np.float32),
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return unit vectors [N, D] float32; zeros for a text without a known word."""
        from sklearn.preprocessing import normalize

        projected = self.vectorizer.transform(texts) @ self.components.T.astype(np.float64)
        return normalize(projected).astype(np.float32)

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of queries, which are those of `embed`."""
        return self.embed(texts)

    def save(self, folder: Path) -> None:
        """Write embedder.json and embedder.safetensors."""
        from safetensors.numpy import save_file

        write_json(
            folder / "embedder.json",
            {"kind": "tfidf-svd", "dimensions": len(self.components), "terms": self.terms},
        )
        save_file(
            {"idf": self.idf, "components": np.ascontiguousarray(self.components)},
            folder / "embedder.safetensors",
        )
        follow_umask(folder)

    @classmethod
    def load(cls, folder: Path) -> "LatentSemanticEmbedder":
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        terms = read_json(folder / "embedder.json")["terms"]
        weights = load_file(folder / "embedder.safetensors")
        return cls(terms, weights["idf"], weights["components"])


class NeuralEmbedder:
    """A sentence-transformers folder; a plain Hugging Face encoder is mean-pooled.

    Attributes:
        query_prompt: what the model's configuration puts before a query; "" for nothing.
        passage_prompt: what it puts before a passage.
        max_tokens: tokens of a passage that the model reads, besides the prompt and the special
            tokens; infinity where it has no limit.
    """

    def __init__(self, folder: Path):
        """Load the model; exit with an error where it lacks weights or cannot be loaded."""
        from sentence_transformers import SentenceTransformer
        from transformers import AutoModel

        # SentenceTransformer does not report missing weights, so they are checked here first.
        # Of a T5 it reads the encoder alone.
        unused = ("pooler.", "decoder.block.", "decoder.final_layer_norm.")
        encoder = load_pretrained(AutoModel, folder, unused_prefixes=unused)
        try:
            self.model = SentenceTransformer(str(folder), trust_remote_code=False)
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RuntimeError,
        ) as error:
            exit_with_error(f"{folder}: cannot be loaded: {str(error)[:300]}")
        check_vocabulary(folder, self.model.tokenizer, encoder)
        self.folder = folder
        self.query_prompt = self._find_prompt(QUERY_PROMPTS)
        self.passage_prompt = self._find_prompt(PASSAGE_PROMPTS)
        positions = getattr(encoder.config, "max_position_embeddings", None)
        limits = [self.model.max_seq_length or math.inf, positions or math.inf]
        prompt_tokens = len(self.model.tokenizer(self.passage_prompt)["input_ids"])
        self.max_tokens = min(limits) - prompt_tokens

    def _find_prompt(self, names: tuple[str, ...]) -> str:
        """Return the first prompt of these names that is not empty, else the one for all texts."""
        default = self.model.default_prompt_name
        if default and default not in QUERY_PROMPTS + PASSAGE_PROMPTS:
            names += (default,)
        prompts = [self.model.prompts.get(name) for name in names]
        return next(filter(None, prompts), "")

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        encoded = self.model.tokenizer(text, add_special_tokens=False, verbose=False)
        return encoded["input_ids"]

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return the unit vectors of passages, [N, D] float32."""
        return self.model.encode_document(texts, prompt=self.passage_prompt, **ENCODING)

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        """Return the unit vectors of queries, [N, D] float32."""
        return self.model.encode_query(texts, prompt=self.query_prompt, **ENCODING)

    def save(self, folder: Path) -> None:
        """Write embedder.json, by which `load_embedder` recognizes the model."""
        write_json(folder / "embedder.json", _describe(self.folder))


def is_neural(folder: Path) -> bool:
    """Return whether a folder (models/base/embedder) holds a neural embedder.

    The folder of the embedded one, the TF-IDF + SVD, holds no model: it is fitted on the corpus.
    """
    return (folder / "modules.json").exists() or (folder / "config.json").exists()


def load_embedder(index: Path, base: Path) -> LatentSemanticEmbedder | NeuralEmbedder:
    """Load the embedder that made an index: from `base` if it is neural, else from the index.

    Raises:
        SystemExit: another embedder made the index.
    """
    made_by = read_json(index / "embedder.json")
    if is_neural(base):
        is_same = made_by == _describe(base)
    else:
        is_same = made_by.get("kind") == "tfidf-svd"
    if not is_same:
        exit_with_error(
            f"{index}: was made by another embedder than the one in {base}; `dvc repro index_rag` "
            "makes it again"
        )
    return NeuralEmbedder(base) if is_neural(base) else LatentSemanticEmbedder.load(index)


def _describe(folder: Path) -> dict[str, str]:
    """What embedder.json says of a neural embedder: its kind and a hash of its files."""
    return {"kind": "sentence-transformers", "digest": digest(folder)}


def _make_vectorizer(**options) -> "TfidfVectorizer":
    """TF-IDF of words and word pairs, without English stop words and numbers."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
        dtype=np.float64,
        **options,
    )
