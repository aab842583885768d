"""Load a pretrained model and refuse one with missing weights.

The libraries initialize weights that a file lacks at random and only warn.
"""

import json
import logging
import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stages.runtime.damage import explain_damage, note_changed_file
from stages.runtime.errors import exit_with_error
from stages.runtime.memory import refuse_too_large

# The special tokens that texts are given. Of others, as `<image_soft_token>` in the tokenizer of
# Gemma 3, a model of text alone may have no embedding.
TEXT_TOKENS = ("bos", "eos", "unk", "pad", "cls", "sep")
# Of a number in safetensors; others: 2.
STORED_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "I8": 1, "U8": 1}


def load_pretrained(
    model_class: Any,
    folder: str | Path,
    subfolder: str = "",
    unused_prefixes: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """Load `model_class.from_pretrained(folder)` and check that every weight came from the file.

    Tied weights, and weights that the library itself knows to be optional, may be missing.

    Args:
        model_class: a model class of transformers or diffusers.
        folder: the model folder, or the folder of a diffusers pipeline.
        subfolder: the part of the pipeline; "" for a model folder.
        unused_prefixes: weights whose names begin so may be missing, because nothing reads them.
        options: further arguments of `from_pretrained`.

    Raises:
        SystemExit: the model can't be loaded, needs more memory than is free, or a weight is
            missing, misshapen, NaN or inf.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    _silence_libraries()
    path = Path(folder) / subfolder
    if _is_quantized(path):
        options.pop("dtype", None)  # transformers would convert some of the weights alone
    if "quantization_config" not in options:
        _refuse_too_large(path, options.get("dtype"))
    try:
        # Without `ignore_mismatched_sizes` a weight of another shape raises an error that does
        # not name it. With it, the loading info lists them.
        model, loading_info = model_class.from_pretrained(
            folder,
            subfolder=subfolder,
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
        ImportError,  # of the package that a quantized model needs
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        message = f"{explain_damage() or f'{path}: cannot be loaded'}: {str(error)[:300]}"
        if changed := note_changed_file():
            message += f"; {changed}"
        exit_with_error(message)
    _check_weights(path, model, loading_info, unused_prefixes)
    return model


def _is_quantized(path: Path) -> bool:
    """Whether bitsandbytes quantized a model's weights. Damaged files are left to the loader."""
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
        return config["quantization_config"]["quant_method"] == "bitsandbytes"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _silence_libraries() -> None:
    """Leave out what the libraries say and a user can do nothing about."""
    # On a missing weight the libraries log a table that advises to train the model.
    for name in ("transformers.modeling_utils", "diffusers.models.modeling_utils"):
        logging.getLogger(name).disabled = True
    # peft reads this property of every model that it wraps.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


def _refuse_too_large(path: Path, dtype: Any) -> None:
    """Exit with an error where the weights don't fit into memory. Damaged files are left alone.

    Args:
        path: the folder of the weights.
        dtype: of torch, that they are loaded in; None: that of the files.
    """
    from safetensors import SafetensorError

    try:
        needed = sum(_loaded_size(file, dtype) for file in path.glob("*.safetensors"))
    except (OSError, SafetensorError):
        return
    refuse_too_large(str(path), needed)


def _loaded_size(file: Path, dtype: Any) -> int:
    """Return the bytes of a safetensors file's weights in a dtype of torch; None: as stored."""
    from safetensors import safe_open

    size = 0
    with safe_open(file, framework="numpy") as weights:
        for name in weights.keys():
            part = weights.get_slice(name)
            stored = STORED_BYTES.get(part.get_dtype(), 2)
            size += math.prod(part.get_shape()) * (dtype.itemsize if dtype else stored)
    return size


def load_tokenizer(folder: str | Path, **options: Any) -> Any:
    """Load the tokenizer of a language model.

    Args:
        folder: of the model.
        options: further arguments of `from_pretrained`.

    Raises:
        SystemExit: its files are incomplete, or it needs a package that isn't installed.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        exit_with_error(f"{folder}: its tokenizer cannot be loaded: {str(error)[:300]}")


def check_vocabulary(folder: str | Path, tokenizer: Any, model: Any) -> None:
    """Exit with an error where a tokenizer makes token ids that a model has no embedding of.

    Such an id would end in an IndexError on a CPU and in a failed assertion on a GPU.

    Args:
        folder: of the model, for the message.
        tokenizer: of transformers.
        model: of transformers, with token embeddings.
    """
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {getattr(tokenizer, f"{name}_token_id") for name in TEXT_TOKENS}
    largest = max(set(tokenizer.get_vocab().values()) - special)
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        exit_with_error(
            f"{folder}: its tokenizer has token ids up to {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)}), its weights embed {rows} tokens, 0 to "
            f"{rows - 1}: one of them belongs to another model, or tokens were added without "
            "`model.resize_token_embeddings`"
        )


def max_context(model: Any) -> float:
    """Return how many tokens a language model of transformers reads; inf where it has no limit."""
    config = model.config.get_text_config(decoder=True)  # a part of that of Gemma 3
    for name in ("max_position_embeddings", "max_seq_len"):  # the second is MPT's
        if positions := getattr(config, name, None):
            return positions
    return math.inf


def _check_weights(path: Path, model: Any, loading_info: dict, unused: tuple[str, ...]) -> None:
    """Exit with an error that names the first weight that is missing, misshapen or not finite."""
    missing = sorted(name for name in loading_info["missing_keys"] if not name.startswith(unused))
    if missing:
        exit_with_error(
            f"{path}: its weights lack {missing[0]}{count_more(missing)}: the file is incomplete, "
            "or its config.json belongs to another model"
        )
    mismatched = sorted(loading_info["mismatched_keys"])
    if mismatched:
        name, stored_shape, config_shape = mismatched[0]
        exit_with_error(
            f"{path}: {name} is {list(stored_shape)} in its weights, {list(config_shape)} by its "
            f"config.json{count_more(mismatched)}"
        )
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            exit_with_error(f"{path}: {name} holds NaN or inf")


def count_more(names: Collection) -> str:
    """` (and 2 more)` for three names, "" for one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
