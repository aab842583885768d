"""Compare runs that take turns: what slows the machine down for a while slows all of them."""

import statistics
from collections.abc import Callable

ROUNDS = 5


def compare(title: str, runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Call each run in turn, `ROUNDS` times, and print a Markdown table of what they return.

    Args:
        title: of the table's first column.
        runs: name -> function that runs once and returns images per second.

    Returns:
        The median of each run. The table also shows each run's ratio to the first run: the median,
        over the rounds, of the ratio within a round.
    """
    values: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            values[name].append(run())
    medians = {name: statistics.median(of_run) for name, of_run in values.items()}
    reference = next(iter(values.values()))
    print(f"\n| {title} | images/s, median of {ROUNDS} | lowest to highest | ratio |")
    print("|---|---|---|---|")
    for name, of_run in values.items():
        ratio = statistics.median(value / base for value, base in zip(of_run, reference))
        spread = f"{min(of_run):.4g} to {max(of_run):.4g}"
        print(f"| {name} | {medians[name]:.4g} | {spread} | {ratio:.2f} |", flush=True)
    return medians
