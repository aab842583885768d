"""Unpack a model that comes as one file: a GGUF file, or a zip archive of a model folder."""

import logging
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from stages.fetching.model_folder import FILE_PATTERNS
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.memory import refuse_too_large

GGUF_ROLES = ("language", "writer")


def unpack_model(role: str, file: Path, folder: Path, label: str) -> Path:
    """Unpack a file that holds a whole model.

    Args:
        role: of the model, a key of `FILE_PATTERNS`.
        file: the model.
        folder: an empty folder to unpack into.
        label: the start of error messages: params key and source.

    Returns:
        A folder in the layout of the model's library: `folder`, or the one in it that was packed;
        of other kinds of files, the file itself.

    Raises:
        SystemExit: the archive is damaged, or the model can't be converted.
    """
    if file.suffix == ".zip":
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
        # RuntimeError: it is encrypted, or compressed in a way that Python can't read.
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            exit_with_error(f"{label}: {file.name} cannot be unpacked ({error})")
        return inner_folder(role, folder)
    if file.suffix == ".gguf":
        if role not in GGUF_ROLES:
            exit_with_error(f"{label}: a GGUF file holds a language model, no {role}")
        convert_gguf(file, folder, label)
        return folder
    return file


def inner_folder(role: str, folder: Path) -> Path:
    """The folder that an archive was made of, where nothing but hidden files lies beside it."""
    parts = {pattern.split("/")[0] for pattern in FILE_PATTERNS[role]}
    while True:
        visible = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(visible) != 1 or not visible[0].is_dir() or visible[0].name in parts:
            return folder
        folder = visible[0]


def convert_gguf(file: Path, folder: Path, label: str) -> None:
    """Write a GGUF file, quantized or not, as a transformers folder with weights in float16.

    The tokenizer and its chat template, which GGUF holds too, are written beside the weights.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logging.getLogger("transformers.modeling_utils").disabled = True  # a table of missing weights
    file = file.absolute()
    try:
        refuse_unread_parts(gguf.GGUFReader(file), f"{label}: {file.name}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=str(file),  # a name alone is looked for in the working directory first
            dtype=torch.float16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=str(file))
    # The libraries check little of a file. RuntimeError: a quantization that they don't know.
    except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
        OSError,
        RuntimeError,
        struct.error,
    ) as error:
        exit_with_error(
            f"{label}: {file.name} is incomplete, or of a kind that transformers can't read "
            f"({str(error)[:200]})"
        )
    model, loading_info = loaded
    missing = sorted(loading_info["missing_keys"])
    if missing:
        exit_with_error(f"{label}: {file.name} lacks the weights {missing[0]}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    follow_umask(folder)


def refuse_unread_parts(reader: Any, label: str) -> None:
    """Exit with an error where the weights don't fit into memory, or a part would go unread.

    transformers reads the scaling of rotary embeddings from files of gpt-oss alone. It would pass
    over that of others, such as Llama 3.1, and make another model of them.

    Args:
        reader: a gguf.GGUFReader.
        label: the start of error messages.
    """
    needed = 2 * sum(int(tensor.n_elements) for tensor in reader.tensors)  # bytes, in float16
    refuse_too_large(label, needed)
    architecture = reader.fields["general.architecture"].contents()
    kind = reader.fields.get(f"{architecture}.rope.scaling.type")
    is_scaled = kind is not None and kind.contents() != "none"
    names = [tensor.name for tensor in reader.tensors]
    if any(name.startswith(("rope_freqs", "rope_factors")) for name in names):
        is_scaled = True
    if is_scaled and architecture != "gpt-oss":
        exit_with_error(
            f"{label}: its rotary position embedding is scaled, which transformers does not read "
            "from GGUF: name the folder that the file was made from"
        )
