"""Charts of the parameter sweeps that `tools.sweep` ran, from their tables sweeps/*.md."""

import re
from pathlib import Path

from markupsafe import Markup

from stages.reporting import charts
from stages.runtime.errors import exit_with_error

# | experiment | value [interval] | value [interval] | yes, where it is on the Pareto front |
# A value may have no interval.
CELL = r"(-?\d\S*)(?: \[[^|]*\])?"
ROW = re.compile(rf"\| ([^|]+) \| {CELL} \| {CELL} \| (yes)? *\|")
TITLES = re.compile(r"\| experiment \| ([^|]+) \| ([^|]+) \| Pareto \|")


def sweep_charts(folder: Path) -> list[dict]:
    """Return {title, text, svg} of each sweep."""
    return [sweep_chart(path) for path in sorted(folder.glob("*.md"))]


def sweep_chart(path: Path) -> dict:
    """Chart the two metrics of a sweep against each other: a point per experiment.

    Raises:
        SystemExit: where the file has no table of a sweep.
    """
    table = path.read_text(encoding="utf-8")
    titles = TITLES.match(table)
    if not titles:
        exit_with_error(
            f"{path}: not the table of a sweep; `python -m tools.sweep {path.stem}` writes it"
        )
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    points = [
        (experiment.removeprefix(f"{path.stem}-"), float(x), float(y), pareto == "yes")
        for experiment, x, y, pareto in (match.groups() for match in map(ROW.match, rows) if match)
    ]
    text = f"{len(points)} experiments"
    if len(points) < len(rows):
        text += f", {len(rows) - len(points)} more without both metrics"
    text += (
        "; the line joins the Pareto front: no other experiment is better in one metric without "
        "being worse in the other. The sweep's table has the 95 % CIs."
    )
    title = f"Sweep: {path.stem}"
    svg = charts.pareto_chart(title, points, *titles.groups())
    return {"title": title, "svg": Markup(svg), "text": text}
