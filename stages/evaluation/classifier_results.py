"""What a trained classifier leaves, and its file in the resume cache: a killed run keeps it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stages.evaluation.networks import create_network
from stages.runtime.tensor_files import load_undamaged, save

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
    tensors = {f"network.{name}": weight for name, weight in weights.items()}
    for name in TEST_SETS:
        bootstrapped = np.stack(list(result.bootstrapped[name].values()))
        tensors[f"{name}.bootstrapped"] = torch.from_numpy(bootstrapped)
        tensors[f"{name}.by_class"] = torch.from_numpy(result.by_class[name])
        tensors[f"{name}.predictions"] = torch.from_numpy(result.predictions[name])
    facts = {
        "n_train": result.n_train,
        "cpu_threads": result.cpu_threads,
        "scores": result.scores,
        "bootstrapped": {name: list(result.bootstrapped[name]) for name in TEST_SETS},
        "config": result.config,
    }
    save(path, tensors, facts)


def read_result(path: Path) -> ClassifierResult | None:
    """The result that `write_result` wrote; None without a file, or with a damaged one."""
    kept = load_undamaged(path) if path.exists() else None
    if kept is None:
        return None
    tensors, facts = kept
    config = facts["config"]
    network = create_network(
        config["model"], len(config["classes"]), config["resolution"], "classifier.model"
    )
    weights = {
        name.removeprefix("network."): tensor
        for name, tensor in tensors.items()
        if name.startswith("network.")
    }
    network.load_state_dict(weights)
    bootstrapped = {
        name: dict(zip(facts["bootstrapped"][name], tensors[f"{name}.bootstrapped"].numpy()))
        for name in TEST_SETS
    }
    return ClassifierResult(
        network,
        facts["n_train"],
        facts["cpu_threads"],
        facts["scores"],
        bootstrapped,
        {name: tensors[f"{name}.by_class"].numpy() for name in TEST_SETS},
        {name: tensors[f"{name}.predictions"].numpy() for name in TEST_SETS},
        config,
    )
