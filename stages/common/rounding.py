"""Numbers rounded to what their interval tells: further digits would be noise."""

import math


def interval_decimals(low: float, high: float) -> int:
    """Return the decimals that an interval allows: 0.8532 in 0.791 to 0.912 becomes 0.85.

    Half the interval's width gets two digits where it begins with less than 3.55, else one: the
    rule of the Particle Data Group. An interval without width has three decimals.
    """
    margin = (high - low) / 2
    return max(-math.floor(math.log10(margin / 3.55)), 0) if margin > 0 else 3


def format_decimals(value: float, decimals: int) -> str:
    """Format a number with so many decimals, never as a negative zero."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}"
