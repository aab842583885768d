"""The data-flow diagram: the stages of dvc.yaml as boxes, top to bottom, what each reads as lines from above."""

import networkx as nx
from markupsafe import escape

WIDE, HIGH, APART, DOWN, LANE = (
    138,
    50,
    14,
    30,
    16,
)  # box, gaps between boxes and rows, width of a line that passes a row
MARGIN = 4


def graph() -> tuple[nx.DiGraph, dict[str, list[str]]]:
    """Stages by name, a foreach stage once, an edge to each one that reads what another makes; and the outs of each."""
    from dvc.repo import Repo

    index = Repo(".").index
    found, outs = nx.DiGraph(), {}
    for stage in index.stages:
        name = stage.addressing.partition("@")[0]
        found.add_node(name, items=found.nodes[name]["items"] + 1 if name in found else 1)
        outs.setdefault(name, []).extend(str(out) for out in stage.outs)
    for reader, maker in index.graph.edges:
        a, b = maker.addressing.partition("@")[0], reader.addressing.partition("@")[0]
        if a != b:
            found.add_edge(a, b)
    return found, outs


def rows(found: nx.DiGraph) -> tuple[list[list], nx.DiGraph]:
    """The boxes and, as (from, to, row), the lines that pass a row: each row in an order that crosses few lines."""
    lines = nx.transitive_reduction(found)
    row_of = {
        name: number
        for number, names in enumerate(nx.topological_generations(lines))
        for name in names
    }
    # What nothing waits for stands just above its first reader, not at the top.
    for name in reversed(list(nx.topological_sort(lines))):
        if readers := list(lines.successors(name)):
            row_of[name] = min(row_of[reader] for reader in readers) - 1
    paths = nx.DiGraph()
    paths.add_nodes_from(sorted(lines))
    for a, b in sorted(lines.edges):
        passed = [a, *((a, b, row) for row in range(row_of[a] + 1, row_of[b])), b]
        nx.add_path(paths, passed)
        row_of |= {place: place[2] for place in passed[1:-1]}
    placed = [[] for _ in range(max(row_of.values()) + 1)]
    for place in paths:
        placed[row_of[place]].append(place)
    at = {place: number for row in placed for number, place in enumerate(row)}
    for sweep in range(
        8
    ):  # each row by the mean place of its neighbors, down and up again (Sugiyama et al. 1981)
        near = paths.predecessors if sweep % 2 == 0 else paths.successors
        for row in placed if sweep % 2 == 0 else reversed(placed):
            mean = {
                place: sum(at[other] for other in near(place)) / paths.degree(place)
                if list(near(place))
                else at[place]
                for place in row
            }
            row.sort(key=lambda place: (mean[place], str(place)))
            at |= {place: number for number, place in enumerate(row)}
    return placed, paths


def diagram(found: nx.DiGraph) -> str:
    """The diagram as <svg>; the page fills times and sizes in."""
    placed, paths = rows(found)
    widths = [
        sum(WIDE if isinstance(place, str) else LANE for place in row) + APART * (len(row) - 1)
        for row in placed
    ]
    width = max(widths) + 2 * MARGIN
    center, top = {}, {}
    for number, row in enumerate(placed):
        x = (width - widths[number]) / 2
        for place in row:
            own = WIDE if isinstance(place, str) else LANE
            center[place], top[place] = x + own / 2, MARGIN + number * (HIGH + DOWN)
            x += own + APART
    height = len(placed) * (HIGH + DOWN) - DOWN + 2 * MARGIN
    parts = [
        f'<svg role="img" aria-label="Stages of the pipeline and what each reads" viewBox="0 0 {width:g} {height:g}" '
        f'style="width: {width:g}px">'
    ]
    for a, b in paths.edges:
        x1, y1, x2, y2 = center[a], top[a] + HIGH, center[b], top[b]
        mid = (y1 + y2) / 2
        through = "" if isinstance(b, str) else f" V{y2 + HIGH:g}"  # past a row, straight down
        parts.append(
            f'<path class="flow" d="M{x1:g} {y1:g}C{x1:g} {mid:g} {x2:g} {mid:g} {x2:g} {y2:g}{through}"/>'
        )
    for name in found:
        x, y, items = center[name] - WIDE / 2, top[name], found.nodes[name]["items"]
        times = f' <tspan class="faint">× {items}</tspan>' if items > 1 else ""
        parts.append(
            f'<g class="stage"><rect x="{x:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="7"/>'
            f'<text x="{center[name]:g}" y="{y + 21:g}">{escape(name)}{times}</text>'
            f'<text class="faint" x="{center[name]:g}" y="{y + 38:g}" data-stage="{escape(name)}"></text></g>'
        )
    return "".join([*parts, "</svg>"])
