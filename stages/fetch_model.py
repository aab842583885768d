"""Fetch a pretrained model from its source to models/base/<role>/, in its library's own layout.

    python -m stages.fetch_model diffusion|language|writer|embedder|classifier|vision

reads   fetch_model.<role>; the source
writes  models/base/<role>/: the model's files; SOURCE.json (what the source resolved to, hashes)

SOURCE.json is the only file for the source `none`, and for the embedded embedder, which `index_rag`
fits on the corpus. `stages.fetching.model_folder` lists the files of each role. A vision folder
holds any of inception2048/model.safetensors and efficientnet/model.safetensors (or their published
.pth, which are converted), dinov2/ and clip/ (transformers folders).
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.common import sources
from stages.fetching.model_folder import (
    FILE_PATTERNS,
    HALF_PRECISION_WEIGHTS,
    KIND_FILES,
    copy_model,
    find_files,
    parts_without_weights,
    refuse_other_kinds,
)
from stages.fetching.packed_models import unpack_model
from stages.fetching.stable_diffusion import check_unet_weights, log_missing_prediction_type
from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.process import run_stage

EMBEDDED = Path(__file__).parent / "embedded" / "models"


def main(role: str) -> None:
    params = load()
    source = getattr(params.fetch_model, role)
    model, resolved = resolve_source(role, source)
    with atomic_folder(Path("models/base") / role) as out, TemporaryDirectory() as unpacked:
        label = f"fetch_model.{role}: {source}"
        if model and model.is_file():
            model = unpack_model(role, model, Path(unpacked), label)
        from_hub = sources.kind(source) == "hub"
        files = copy_model(role, model, out, label, link_weights=from_hub) if model else []
        # The embedded model was checked before it was shipped: importing diffusers takes seconds.
        if role == "diffusion" and model and source != "embedded":
            check_unet_weights(out, label)
            log_missing_prediction_type(out, label)
        hashes = sources.file_hashes(files, out)
        sources.write_source_json(out, source, **resolved, files=hashes)


def resolve_source(role: str, source: str) -> tuple[Path | None, dict[str, Any]]:
    """Find or download a model.

    Returns:
        The model's folder or file (None: there is nothing to copy), and what SOURCE.json records.

    Raises:
        SystemExit: the source is not available.
    """
    key = f"fetch_model.{role}"
    unlicensed = {"license": None}
    match sources.kind(source):
        case "none":
            # Without a diffusion model, `train_base` starts from scratch.
            return None, unlicensed
        case "embedded" if role == "embedder":
            return None, unlicensed
        case "embedded":
            return EMBEDDED / role, unlicensed
        case "path":
            return sources.local_path(source, key), unlicensed
        case "hub":
            return download_model(role, source, key)
        case _:  # package
            return sources.package_file(role, source, key)


def download_model(role: str, source: str, key: str) -> tuple[Path, dict[str, Any]]:
    """Download a role's files from the hub, in half precision if there are no others.

    A model of another kind is refused before its weights are downloaded.
    """
    label = f"{key}: {source}"
    if role not in ("classifier", "vision"):
        folder, _, listing = sources.download_from_hub(source, key, "model", KIND_FILES)
        refuse_other_kinds(role, folder, listing, label)
    patterns = FILE_PATTERNS[role]
    folder, resolved, listing = sources.download_from_hub(source, key, "model", patterns)
    if role == "diffusion" and parts_without_weights(folder):
        patterns = [*patterns, *HALF_PRECISION_WEIGHTS]
        folder, resolved, _ = sources.download_from_hub(source, key, "model", patterns)
    # Here, as the names of files that aren't downloaded tell why one is missing.
    find_files(role, folder, listing, label)
    return folder, resolved


if __name__ == "__main__":
    run_stage(main, __doc__, role=FILE_PATTERNS)
