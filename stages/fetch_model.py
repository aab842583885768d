"""A pretrained model from any source -> models/base/<role>/, in its library's own layout, with SOURCE.json.

    python -m stages.fetch_model diffusion|language|writer|embedder|classifier|vision

`none`, and the embedded embedder (fitted on the corpus in `index_rag`), leave SOURCE.json alone. What is copied:
`stages.common.model_folder.PATTERNS`. A vision folder holds any of inception2048/model.safetensors (or torch-fidelity's own
.pth, which is converted), dinov2/ and clip/ (transformers folders).
"""

from pathlib import Path

from stages.common import sources
from stages.common.model_folder import HALF, PATTERNS, copy_model
from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage

EMBEDDED = Path(__file__).parent / "embedded" / "models"


def main(role: str) -> None:
    p = load()
    source = getattr(p.fetch_model, role)
    key = f"fetch_model.{role}: {source}"
    found, origin = {"license": None}, None
    match sources.kind(source):
        case "none":
            if role in (
                "language",
                "embedder",
            ):  # without a diffusion model `train_base` starts from scratch
                exit_with_error(
                    f"{key}: the pipeline needs one; it is embedded, path:<folder> or hub:<repo>[@revision]"
                )
        case "embedded":
            origin = None if role == "embedder" else EMBEDDED / role
            if origin and not origin.is_dir():
                exit_with_error(
                    f"{key}: no embedded {role} is shipped; it is none, path:<folder> or hub:<repo>[@revision]"
                )
        case "path":
            origin = sources.local(source, f"fetch_model.{role}")
        case "hub":
            origin, found = sources.hub(source, f"fetch_model.{role}", "model", PATTERNS[role])
            if role == "diffusion" and not list(origin.glob("unet/*.safetensors")):
                origin, found = sources.hub(
                    source, f"fetch_model.{role}", "model", PATTERNS[role] + HALF
                )
        case other:
            exit_with_error(
                f"{key}: {other} is not for models; it is embedded, path:<folder>, hub:<repo>[@revision] or none"
            )

    with atomic_folder(Path("models/base") / role) as part:
        files = copy_model(role, origin, part, key) if origin else []
        sources.record(part, source, **found, files=sources.hashes(files, part))


if __name__ == "__main__":
    run_stage(main, __doc__, role=PATTERNS)
