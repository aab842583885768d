"""What the entries of dvc.lock say of the stages' last runs."""

from typing import Any


def current_entries(locked: dict[str, dict], stages: dict[str, Any]) -> dict[str, dict]:
    """Return the entries of stages that dvc.yaml has: DVC keeps those of removed ones for good.

    Args:
        locked: `stages` of dvc.lock.
        stages: those of dvc.yaml.
    """
    names: set[str] = set()
    for name, stage in stages.items():
        items = stage.get("foreach")
        names |= {f"{name}@{item}" for item in items} if items else {name}
    return {name: entry for name, entry in locked.items() if name in names}


def has_params(entry: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether the stage of an entry ran with these values of params.yaml."""
    for name, value in entry.get("params", {}).get("params.yaml", {}).items():
        current: Any = params
        for key in name.split("."):
            current = current.get(key) if isinstance(current, dict) else None
        if current != value:
            return False
    return True
