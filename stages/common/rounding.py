"""Numbers rounded to what their interval tells: further digits would be noise."""

import math


def read_interval(values: dict, name: str) -> tuple[float, float] | None:
    """Return the interval of a number in metrics, or None where it has none."""
    if f"{name}_lo" not in values:
        return None
    return values[f"{name}_lo"], values[f"{name}_hi"]


def interval_decimals(low: float, high: float) -> int:
    """Return the decimals that an interval allows: 0.8532 in 0.791 to 0.912 becomes 0.85.

    Half the interval's width gets two digits where it begins with less than 3.55, else one: the
    rule of the Particle Data Group. An interval without width has three decimals.
    """
    margin = (high - low) / 2
    return max(-math.floor(math.log10(margin / 3.55)), 0) if margin > 0 else 3


def reference_decimals(value: float, interval: tuple[float, float] | None, decimals: int) -> int:
    """Return the decimals of a number that another one, of `decimals`, is judged by.

    They show two of its own digits (in three decimals at most), and what its interval allows.
    """
    own = 1 - math.floor(math.log10(abs(value))) if value else 0
    return max(decimals, min(own, 3), interval_decimals(*interval) if interval else 0)


def format_decimals(value: float, decimals: int) -> str:
    """Format a number with so many decimals, never as a negative zero."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}"
