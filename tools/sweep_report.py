"""The results of a sweep: its metrics, and the table with the Pareto front."""

import json
from dataclasses import dataclass
from pathlib import Path

from stages.common.rounding import read_interval

OUT = Path("sweeps")


@dataclass(frozen=True)
class Metric:
    """A metric of an experiment."""

    file: str
    key: str
    better: str  # higher or lower

    @property
    def label(self) -> str:
        """The name in the table."""
        return f"{Path(self.file).stem} {self.key} ({self.better} is better)"


@dataclass(frozen=True)
class Value:
    """The value of a metric, and its 95 % interval where it has one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table: the values of the sweep's two metrics, or why there are none."""

    cells: tuple[Value | str, Value | str]
    note: str = ""

    @property
    def point(self) -> tuple[Value, Value] | None:
        """The two values; None where one is missing."""
        x, y = self.cells
        return (x, y) if isinstance(x, Value) and isinstance(y, Value) else None


FID = Metric("metrics/fid.json", "scene.standard.fid", "lower")
REAL_ACCURACY = Metric("metrics/classify_lulc.json", "real_test.overall_accuracy", "higher")
CLASS_AGREEMENT = Metric("metrics/caption_agreement.json", "class_agreement", "higher")
# The two metrics of each sweep, which trade off against each other.
METRICS = {"guidance": (FID, REAL_ACCURACY), "prompts": (CLASS_AGREEMENT, REAL_ACCURACY)}


def read_metric(content: str, metric: Metric) -> Value | str:
    """Return a metric from the content of its file, or why it is not there."""
    section = json.loads(content)
    *path, key = metric.key.split(".")
    for part in path:
        section = section.get(part, {})
    if section.get("refused"):
        return f"no {key.upper()} ({section['n']} of {section['n_needed']} images)"
    value = section.get(key)
    if value is None:
        return f"not in {metric.file}"
    return Value(value, read_interval(section, key))


def pareto_front(name: str, points: dict[str, tuple[Value, Value]]) -> set[str]:
    """Return the experiments that no other one dominates.

    One dominates another if it is at least as good in both metrics and better in one.
    """
    signs = [1 if metric.better == "higher" else -1 for metric in METRICS[name]]
    scores = {
        experiment: [sign * value.value for sign, value in zip(signs, point)]
        for experiment, point in points.items()
    }
    return {
        experiment
        for experiment, score in scores.items()
        if not any(dominates(other, score) for other in scores.values())
    }


def dominates(first: list[float], second: list[float]) -> bool:
    """Return whether the first scores dominate the second ones; higher is better."""
    return first != second and all(a >= b for a, b in zip(first, second))


def report(name: str, rows: dict[str, Row]) -> None:
    """Write the table of a sweep and print it."""
    points = {experiment: row.point for experiment, row in rows.items() if row.point}
    front = pareto_front(name, points)
    OUT.mkdir(exist_ok=True)
    table = format_table(name, rows, front)
    (OUT / f"{name}.md").write_text(table, encoding="utf-8")
    print(table, end="")


def format_table(name: str, rows: dict[str, Row], front: set[str]) -> str:
    """Format a Markdown table: a row per experiment, those of the Pareto front first."""
    labels = " | ".join(metric.label for metric in METRICS[name])
    lines = [f"| experiment | {labels} | Pareto | note |", "|---|---:|---:|---|---|"]
    for experiment in sorted(rows, key=lambda experiment: (experiment not in front, experiment)):
        row = rows[experiment]
        cells = [format_cell(cell) for cell in row.cells]
        cells += ["yes" if experiment in front else "", row.note.replace("|", r"\|")]
        lines.append(f"| {experiment} | {' | '.join(cells)} |")
    lines += ["", "Values with their 95 % intervals: where those overlap, the ranks may be chance."]
    return "\n".join(lines) + "\n"


def format_cell(cell: Value | str) -> str:
    """Format a value with its interval, if it has one."""
    if isinstance(cell, str):
        return cell
    if cell.interval is None:
        return f"{cell.value:.4g}"
    lo, hi = cell.interval
    return f"{cell.value:.4g} [{lo:.4g}, {hi:.4g}]"
