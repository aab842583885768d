"""Tensors and a JSON state in one safetensors file, complete or absent; a checksum shows damage."""

import json
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from stages.runtime.atomic import sync_to_disk
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log
from stages.runtime.resume_cache import advise_on_full_disk

Tensors = dict[str, torch.Tensor]

# Names of the types in a safetensors file.
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def save(path: Path, tensors: Tensors, state: dict) -> None:
    """Write tensors, which may be on a GPU, and a JSON state, in which floats survive exactly.

    A kill or a power cut leaves the old file or the new one: the data is on the disk before the
    file gets its name.
    """
    part = path.with_suffix(".part")
    try:
        state_text = json.dumps(state)
        metadata = {"state": state_text, "crc32": compute_checksum(tensors, state_text)}
        with open(part, "wb") as file:
            write_safetensors(file, tensors, metadata)
        sync_to_disk(part)
        part.replace(path)
        sync_to_disk(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        exit_with_error(
            f"{path}: cannot be written ({error}); what was kept before stays: "
            f"{advise_on_full_disk()}"
        )


def write_safetensors(file: BinaryIO, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write the safetensors format, with no more than one tensor copied at a time.

    `safetensors.torch.save_file` first copies all that are on a GPU or not contiguous.
    """
    # Larger elements first, as the library has them, so that each is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in names:
        file.write(tensor_bytes(tensors[name]))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; a copy where they aren't so on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def compute_checksum(tensors: Tensors, state: str) -> str:
    """The CRC-32 of a state and of the names, shapes and bytes of tensors."""
    crc = zlib.crc32(state.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {list(tensor.shape)} {tensor.dtype}".encode(), crc)
        crc = zlib.crc32(tensor_bytes(tensor), crc)
    return f"{crc:08x}"


def load(path: Path) -> tuple[Tensors, dict]:
    """Tensors and state of one file.

    Raises:
        SafetensorError: the file is incomplete or damaged.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata() or {}
    state = metadata.get("state", "")
    if metadata.get("crc32") != compute_checksum(tensors, state):
        raise SafetensorError("its checksum is not the one it was written with")
    return tensors, json.loads(state)


def load_undamaged(path: Path) -> tuple[Tensors, dict] | None:
    """What `load` returns; None, with a line in the log, for an incomplete or damaged file."""
    try:
        return load(path)
    except (SafetensorError, OSError) as error:
        log(f"{path.name}: incomplete or damaged, not used ({error})")
        return None
