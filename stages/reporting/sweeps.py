"""Sweeps: what `tools.sweep` found, a chart per sweeps/*.md: experiments as points, those that no other beats joined."""

import re
from pathlib import Path

from markupsafe import Markup

from stages.reporting import charts
from stages.runtime.errors import exit_with_error

ROW = re.compile(r"\| ([^|]+) \| (\S+) \[[^|]*\] \| (\S+) \[[^|]*\] \| (yes)? *\|")


def charts_of(folder: Path) -> list[dict]:
    """{title, text, svg} of each sweep."""
    return [chart(path) for path in sorted(folder.glob("*.md"))]


def chart(path: Path) -> dict:
    """From the table of a sweep: | experiment | value [interval] | value [interval] | yes, where it is on the front |."""
    text = path.read_text(encoding="utf-8")
    titles = re.match(r"\| experiment \| ([^|]+) \| ([^|]+) \| Pareto \|", text)
    rows = [found.groups() for found in map(ROW.match, text.splitlines()) if found]
    if not titles or not rows:
        exit_with_error(
            f"{path}: not the table of a sweep; `python -m tools.sweep {path.stem}` writes it"
        )
    points = [
        (name.removeprefix(f"{path.stem}-"), float(x), float(y), best == "yes")
        for name, x, y, best in rows
    ]
    failed = text.count("| failed | failed |")
    return {
        "title": f"Sweep: {path.stem}",
        "svg": Markup(charts.pareto(f"Sweep: {path.stem}", points, *titles.groups())),
        "text": f"{len(points)} experiments{f', {failed} more failed' if failed else ''}; joined: no other is better in one number "
        "without being worse in the other. Intervals are in the sweep's own table.",
    }
