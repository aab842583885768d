"""Charts as inline SVG, drawn with matplotlib: text stays text, colors are the page's, same input, same bytes."""

import io
import re
from collections import Counter

import matplotlib
from matplotlib.figure import Figure

# matplotlib wants colors; these stand for the page's own and are replaced in the SVG.
INK, SOFT, SERIES = "#010203", "#010204", ("#010205", "#010206", "#010207")
COLORS = {
    INK: "currentColor",
    SOFT: "var(--line)",
    **dict(zip(SERIES, ("var(--one)", "var(--two)", "var(--three)"))),
}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,
}


def curves(name: str, steps: list[float], series: dict[str, list[float]], x: str, y: str) -> str:
    """Lines over steps, each named."""

    def draw(axes):
        for (label, values), color in zip(series.items(), SERIES):
            axes.plot(
                steps,
                values,
                color=color,
                linewidth=1.8,
                marker="o" if len(steps) < 12 else None,
                markersize=4,
                label=label,
            )
        axes.set_xlim(left=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y", color=SOFT, linewidth=0.6)
        if len(series) > 1:
            axes.legend()

    return svg(name, (5.2, 3.0), draw)


def bars(name: str, rows: list[str], series: dict[str, list[float]], x: str) -> str:
    """Horizontal bars from 0 to 1, a group per row, the first row on top."""

    def draw(axes):
        height = 0.8 / len(series)
        for place, ((label, values), color) in enumerate(zip(series.items(), SERIES)):
            axes.barh(
                [row + place * height for row in range(len(rows))],
                values,
                height * 0.9,
                color=color,
                label=label,
            )
        axes.set_yticks([row + 0.4 - height / 2 for row in range(len(rows))], rows)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(x)
        axes.grid(axis="x", color=SOFT, linewidth=0.6)
        axes.set_axisbelow(True)
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return svg(name, (5.2, 0.9 + 0.32 * max(len(rows), 1)), draw)


def pareto(name: str, points: list[tuple[str, float, float, bool]], x: str, y: str) -> str:
    """Runs as points (name, x, y, whether no other is better in both), each named; the undominated ones joined by a line."""

    def draw(axes):
        front = sorted((at, value) for _, at, value, best in points if best)
        axes.plot(
            [at for at, _ in front], [value for _, value in front], color=SERIES[0], linewidth=1.2
        )
        for label, at, value, best in points:
            axes.plot(
                at, value, "o", color=SERIES[0] if best else SERIES[2], markersize=6 if best else 4
            )
            axes.annotate(label, (at, value), (5, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(0.12)
        axes.grid(color=SOFT, linewidth=0.6)

    return svg(name, (5.2, 3.6), draw)


def confusion(name: str, pairs: list[tuple[str, str]], order: list[str]) -> str:
    """Counts of (actual, predicted), shaded by the share of the actual class."""
    counts, totals = Counter(pairs), Counter(actual for actual, _ in pairs)

    def draw(axes):
        for i, actual in enumerate(order):
            for j, predicted in enumerate(order):
                if count := counts[actual, predicted]:
                    axes.bar(
                        j,
                        1,
                        1,
                        i - 0.5,
                        color=SERIES[0],
                        alpha=0.08 + 0.52 * count / totals[actual],
                        linewidth=0,
                    )
                    if len(order) <= 15:
                        axes.text(j, i, str(count), ha="center", va="center", fontsize=8)
        axes.set_xlim(-0.5, len(order) - 0.5)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xticks(
            range(len(order)), order, rotation=45, ha="right", rotation_mode="anchor", fontsize=8
        )
        axes.set_yticks(
            range(len(order)),
            [each if totals[each] else f"{each} (none)" for each in order],
            fontsize=8,
        )
        axes.set_xlabel("predicted")
        axes.set_ylabel("actual")

    side = max(3.6, 1.6 + 0.3 * len(order))
    return svg(name, (side + 0.6, side), draw)


def svg(name: str, inches: tuple[float, float], draw) -> str:
    """An <svg> element for the page. `name` (unique on the page) salts its ids; no date, no program name."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(inches, layout="constrained")
        draw(figure.add_subplot())
        sink = io.StringIO()
        figure.savefig(
            sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = sink.getvalue()
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups()
    body = text[
        text.index("</defs>", text.index("<style")) + len("</defs>") :
    ]  # the page has matplotlib's style once
    body = re.sub(r'<g id="[A-Za-z0-9_.]+"', "<g", body)  # parts have the same names in every chart
    body = re.sub(r" font-family: [^;\"]+;?", "", body)
    for stand_in, color in COLORS.items():
        body = body.replace(stand_in, color)
    body = "\n".join(line.strip() for line in body.splitlines() if line.strip())
    return f'<svg role="img" aria-label="{name}" viewBox="0 0 {width} {height}" style="max-width: {width}pt">\n{body}\n'
