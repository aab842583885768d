"""Sweeps: a chart per metrics/sweeps/*.csv, with the runs that no other beats in both numbers joined."""

import csv
from pathlib import Path

from markupsafe import Markup

from stages.common.fail import fail
from stages.diff import BETTER
from stages.reporting import charts


def charts_of(folder: Path) -> list[dict]:
    """{title, text, svg} of each sweep. A row is a run; a column is one of its settings or a metric that `stages.diff` knows."""
    return [chart(path) for path in sorted(folder.glob("*.csv"))]


def chart(path: Path) -> dict:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    measured = [name for name in columns if name.rpartition(".")[2] in BETTER]
    if len(measured) < 2:
        fail(f"{path}: a sweep needs rows and two columns named for metrics ({', '.join(BETTER)})")
    x, y = measured[:2]
    points = [(", ".join(row[name] for name in columns if name not in measured), float(row[x]), float(row[y])) for row in rows]
    best = undominated([(sign(x) * at, sign(y) * value) for _, at, value in points])
    ways = " and ".join(f"{BETTER[name.rpartition('.')[2]]} {name}" for name in (x, y))
    settings = ", ".join(name for name in columns if name not in measured)
    svg = charts.pareto(path.stem, [(*point, good) for point, good in zip(points, best)], x, y)
    return {"title": f"Sweep: {path.stem.replace('_', ' ')}", "svg": Markup(svg),
            "text": f"A point per run, named by its {settings}; joined: no other run has both {ways}."}


def sign(name: str) -> int:
    return 1 if BETTER[name.rpartition(".")[2]] == "higher" else -1


def undominated(points: list[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at least as high in both and higher in one."""
    return [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]
