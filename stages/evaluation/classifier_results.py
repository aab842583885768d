"""What a trained classifier leaves, and its file in the resume cache: a killed run keeps it."""

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stages.common.artifacts import write_atomically
from stages.evaluation.networks import create_network
from stages.runtime.progress import log

TEST_SETS = ("synthetic_test", "real_test")


class ClassifierResult(NamedTuple):
    """One trained classifier and its scores on the test sets `synthetic_test` and `real_test`."""

    network: torch.nn.Module
    n_train: int
    cpu_threads: int  # that trained it; 0 on a GPU
    scores: dict[str, dict[str, float]]
    bootstrapped: dict[str, dict[str, np.ndarray]]  # the scores of redrawn test sets
    by_class: dict[str, np.ndarray]  # `accuracy_by_class` [2, K]
    predictions: dict[str, np.ndarray]  # class numbers [N]
    config: dict


def write_result(path: Path, result: ClassifierResult) -> None:
    """Write a result to one safetensors file, complete or not at all."""
    weights = result.network.state_dict()
    # safetensors writes the memory of an array as it lies, whatever its strides.
    arrays = {f"network.{name}": x.cpu().contiguous().numpy() for name, x in weights.items()}
    for name in TEST_SETS:
        arrays[f"{name}.bootstrapped"] = np.stack(list(result.bootstrapped[name].values()))
        arrays[f"{name}.by_class"] = result.by_class[name]
        arrays[f"{name}.predictions"] = result.predictions[name]
    facts = {
        "n_train": result.n_train,
        "cpu_threads": result.cpu_threads,
        "scores": result.scores,
        "bootstrapped": {name: list(result.bootstrapped[name]) for name in TEST_SETS},
        "config": result.config,
    }
    text = json.dumps(facts)
    write_atomically(path, save(arrays, {"facts": text, "crc32": compute_checksum(arrays, text)}))


def read_result(path: Path) -> ClassifierResult | None:
    """The result that `write_result` wrote; None without a file, or with a damaged one."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
        text = metadata.get("facts", "")
        if metadata.get("crc32") != compute_checksum(arrays, text):
            raise SafetensorError("its checksum is not the one it was written with")
    except SafetensorError as error:
        log(f"{path}: incomplete or damaged, its classifier is trained again ({error})")
        return None
    facts = json.loads(text)
    config = facts["config"]
    network = create_network(
        config["model"], len(config["classes"]), config["resolution"], "classifier.model"
    )
    weights = {
        name.removeprefix("network."): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("network.")
    }
    network.load_state_dict(weights)
    bootstrapped = {
        name: dict(zip(facts["bootstrapped"][name], arrays[f"{name}.bootstrapped"]))
        for name in TEST_SETS
    }
    return ClassifierResult(
        network,
        facts["n_train"],
        facts["cpu_threads"],
        facts["scores"],
        bootstrapped,
        {name: arrays[f"{name}.by_class"] for name in TEST_SETS},
        {name: arrays[f"{name}.predictions"] for name in TEST_SETS},
        config,
    )


def compute_checksum(arrays: dict[str, np.ndarray], text: str) -> str:
    """The CRC-32 of arrays with their names and shapes, and of a text."""
    value = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {array.shape}".encode() + array.tobytes(), value)
    return str(value)
