"""What bytes of a run's images mean: the bands of its imagery, their stretch and its inverse."""

from pathlib import Path
from typing import Any

from stages.common.artifacts import read_json

Stretch = list[list[float]]  # (low, high), for all bands or each: they became black and white
IMAGERY_SOURCE = Path("data/imagery/SOURCE.json")
INVERSE = "value = low + byte / 255 * (high - low)"


def read_stretch() -> Stretch | None:
    """The stretch that the imagery was read with; None: its bytes were not changed."""
    stretch = read_json(IMAGERY_SOURCE).get("stretch")
    return stretch if isinstance(stretch, list) else None


def describe_pixel_values() -> dict[str, Any]:
    """Bands, stretch and its inverse, as `pixel_values.json` holds them in published folders.

    {} for imagery whose values were not changed.
    """
    stretch = read_stretch()
    if stretch is None:
        return {}
    bands = read_json(IMAGERY_SOURCE).get("bands")
    return {"bands": bands, "stretch": stretch, "inverse": INVERSE}
