"""The text embeddings of captions, by id: read from the cache of `encode`, or computed on demand.

Both give the same values, rounded to float16. `stages/diffusion/latents.py` describes the files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.common.artifacts import read_json
from stages.common.torch_setup import autocast
from stages.diffusion import models
from stages.diffusion.latents import memory_map
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import batched
from stages.runtime.pretrained import check_vocabulary
from stages.runtime.processes import check_precision

# In data/latents, where it holds no embeddings: {precision, batch_size} to compute them with.
EMBEDDING_SETTINGS = "captions.json"


def overflow_advice(precision: str, part: str) -> str:
    """What to do where a part of the model computes NaN or values too large for float16."""
    if precision == "fp32":
        return f"the weights of the {part} are too large"
    return f"encode.precision: try {'bf16 or fp32' if precision == 'fp16' else 'fp32'}"


class CaptionEncoder:
    """Runs the text encoder over groups of a fixed size, the last one padded.

    Attributes:
        tokenizer: of the model.
        length: L, the tokens that the text encoder reads of a caption.
        width: D, of the embedding of a token.
    """

    def __init__(self, model: Path, precision: str, batch_size: int, device: torch.device) -> None:
        self.tokenizer = models.load_tokenizer(model)
        self.text_encoder: Any = models.load(model, "text_encoder").to(device)
        check_vocabulary(model, self.tokenizer, self.text_encoder)
        self.length = models.context_length(self.tokenizer, self.text_encoder)
        self.width: int = self.text_encoder.config.hidden_size
        self.model = model
        self.precision = precision
        self.batch_size = batch_size
        self.device = device

    def embed(self, captions: list[str]) -> np.ndarray:
        """Embeddings of at most `batch_size` captions, float16 [B, L, D].

        Exits with an error that names the first caption whose embedding is NaN or infinite.
        """
        padding = [""] * (self.batch_size - len(captions))
        with torch.inference_mode(), autocast(self.precision, self.device):
            encoded = models.embed_text(self.tokenizer, self.text_encoder, captions + padding)
        embeddings = encoded[: len(captions)].half().cpu().numpy()
        finite = np.isfinite(embeddings).all(axis=(1, 2))  # [B]
        if not finite.all():
            exit_with_error(
                f"{self.model}: the embedding of the caption {captions[finite.argmin()]!r} is NaN, "
                f"or too large for float16: {overflow_advice(self.precision, 'text encoder')}"
            )
        return embeddings


class CachedEmbeddings:
    """The embeddings of captions that `encode` wrote, memory-mapped.

    Attributes:
        width: D, of the embedding of a token.
        inputs: the files and folders, besides `data/latents`, that they depend on.
    """

    inputs: tuple[Path, ...] = ()

    def __init__(self, latents: Path) -> None:
        self.embeddings = memory_map(latents / "captions.safetensors")["embeddings"]  # [M, L, D]
        self.width: int = self.embeddings.shape[2]

    def __call__(self, caption_ids: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embeddings of captions, float32 [B, L, D]."""
        return torch.from_numpy(self.embeddings[caption_ids].astype(np.float32))


class ComputedEmbeddings:
    """The embeddings of captions, computed by the text encoder each time they are asked for.

    Attributes:
        width: D, of the embedding of a token.
        inputs: the files and folders, besides `data/latents`, that they depend on.
    """

    def __init__(self, latents: Path, model: Path, device: torch.device) -> None:
        settings = read_json(latents / EMBEDDING_SETTINGS)
        precision = settings["precision"]
        check_precision("encode.precision", precision, device)
        self.encoder = CaptionEncoder(model, precision, settings["batch_size"], device)
        self.width = self.encoder.width
        self.inputs = (model / "text_encoder", model / "tokenizer")
        column = pq.read_table(latents / "captions.parquet", columns=["caption"])["caption"]
        # One array: a chunked one is joined anew by each `take`.
        self.captions = column.cast(pa.large_string()).combine_chunks()

    def __call__(self, caption_ids: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embeddings of captions, float32 [B, L, D]. Repeated ones are computed once."""
        distinct, positions = np.unique(np.asarray(caption_ids), return_inverse=True)
        captions = self.captions.take(pa.array(distinct)).to_pylist()
        groups = batched(captions, self.encoder.batch_size)
        embeddings = np.concatenate([self.encoder.embed(group) for group in groups])
        return torch.from_numpy(embeddings[positions].astype(np.float32))


def load_embeddings(
    latents: Path, model: Path, device: torch.device
) -> CachedEmbeddings | ComputedEmbeddings:
    """The embeddings of the captions of `data/latents`.

    Args:
        latents: the folder.
        model: the folder with the tokenizer and the text encoder; read where `encode` cached none.
        device: where they are computed then.
    """
    if (latents / EMBEDDING_SETTINGS).is_file():
        return ComputedEmbeddings(latents, model, device)
    return CachedEmbeddings(latents)
