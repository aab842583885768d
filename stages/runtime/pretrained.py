"""A pretrained model with all its weights, or one line: the libraries draw those that a file lacks at random, and go on."""

import logging
from pathlib import Path

from stages.runtime.errors import exit_with_error


def load_pretrained(kind, folder: str | Path, part: str = "", spare: str = "-", **options):
    """`kind.from_pretrained` of a folder, or of a part of a pipeline's; `kind`: a class of transformers or diffusers.

    Tied weights, what the library itself knows to be none, and names that begin with `spare` (nothing reads them) may be absent.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    where = Path(folder) / part
    for name in ("transformers.modeling_utils", "diffusers.models.modeling_utils"):
        logging.getLogger(
            name
        ).disabled = True  # their report, a table, advises to train what lacks weights
    try:
        # Weights of another shape would raise without a name; so they are counted like those that are missing.
        model, found = kind.from_pretrained(
            folder,
            subfolder=part,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as fault:
        exit_with_error(f"{where}: cannot be loaded: {str(fault)[:300]}")
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith(spare)):
        exit_with_error(
            f"{where}: its weights lack {missing[0]}{_more(missing)}: they are not whole, or not those of its config.json"
        )
    if shapes := sorted(found["mismatched_keys"]):
        name, there, wanted = shapes[0]
        exit_with_error(
            f"{where}: {name} is {list(there)} in its weights, {list(wanted)} by its config.json{_more(shapes)}"
        )
    if odd := next(
        (
            name
            for name, value in model.named_parameters()
            if value.is_floating_point() and not value.isfinite().all()
        ),
        None,
    ):
        exit_with_error(f"{where}: {odd} holds values that are no numbers")
    return model


def _more(names: list) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
