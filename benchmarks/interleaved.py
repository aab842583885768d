"""Medians and ratios of runs that take turns: what slows the machine down for a while slows all of them."""

import statistics
from collections.abc import Callable


def compare(
    title: str, unit: str, runs: dict[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
    """Call each run in turn, `rounds` times; print a Markdown table of what they return (higher = better), as ratios to the first.

    A ratio is the median over the rounds of the ratio within a round. Returns the medians.
    """
    found = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    first = next(iter(found.values()))
    print(
        f"\n| {title} | {unit}, median of {rounds} | lowest to highest | ratio |\n|---|---|---|---|"
    )
    for name, values in found.items():
        ratio = statistics.median(value / base for value, base in zip(values, first))
        print(
            f"| {name} | {statistics.median(values):.4g} | {min(values):.4g} to {max(values):.4g} | {ratio:.2f} |",
            flush=True,
        )
    return {name: statistics.median(values) for name, values in found.items()}
