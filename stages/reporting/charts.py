"""Charts as inline SVG, drawn with matplotlib: text stays text, colors are those of the page.

The same input gives the same bytes, whatever fonts are installed: matplotlib lays text out in a
font that it brings along, and the browser draws it in one of its own, in any script.
"""

import io
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from html import escape
from itertools import accumulate
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

# matplotlib needs colors in numbers; these stand for the page's CSS colors, which replace them.
TEXT = "#010203"
LINES = "#010204"
SERIES = ("#010205", "#010206", "#010207")
CSS_COLORS = {
    TEXT: "currentColor",
    LINES: "var(--line)",
    SERIES[0]: "var(--one)",
    SERIES[1]: "var(--two)",
    SERIES[2]: "var(--three)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.edgecolor": LINES,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,
}
WIDTH = 5.2  # inches of a chart, at most; the page scales it to the width of a column
WIDE = 15  # a confusion matrix of more classes has a fixed size and needs the page's width
MAX_LABEL = 40  # letters of a name; what is longer ends in an ellipsis
MATRIX_LABEL = 28  # letters that a confusion matrix has room for; it grows with longer names
WIDE_LETTER = 1.8  # width of a letter of a script without narrow ones, such as Chinese


@matplotlib.rc_context(STYLE)
def line_chart(name: str, steps: list[float], series: dict[str, list[float]], y_label: str) -> str:
    """Draw up to three lines over the same steps. series: label -> a value per step."""
    figure, axes = new_figure(WIDTH, 3.0)
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
    axes.set(xlim=(0, None), xlabel="step", ylabel=y_label)
    axes.grid(axis="y", color=LINES, linewidth=0.6)
    if len(series) > 1:
        axes.legend()
    return to_svg(figure, name)


@matplotlib.rc_context(STYLE)
def fid_curve_chart(
    name: str,
    point_x: list[float],
    points: dict[str, list[float]],
    line_x: list[float],
    lines: dict[str, list[float]],
) -> str:
    """Draw up to three series of points, each with its line. points, lines: label -> FIDs."""
    figure, axes = new_figure(WIDTH, 3.0)
    for (label, values), color in zip(points.items(), SERIES):
        axes.plot(line_x, lines[label], color=color, linewidth=1.8, label=label)
        axes.plot(point_x, values, "o", color=color, markersize=4)
    axes.set(xlim=(0, None), xlabel="1 / number of images", ylabel="FID")
    axes.grid(axis="y", color=LINES, linewidth=0.6)
    axes.legend()
    return to_svg(figure, name)


@matplotlib.rc_context(STYLE)
def bar_chart(
    name: str,
    groups: list[str],
    series: dict[str, list[float]],
    x_label: str,
    intervals: list[tuple[float, float]],
) -> str:
    """Draw bars from 0 to 1, the first group on top.

    Args:
        name: title of the chart, unique on the page.
        groups: names.
        series: label -> a value per group.
        x_label: what the values are.
        intervals: 95 % CI of the first series' values, drawn as error bars.
    """
    figure, axes = new_figure(WIDTH, 0.9 + 0.32 * max(len(groups), 1))
    height = 0.8 / len(series)
    for number, ((label, values), color) in enumerate(zip(series.items(), SERIES)):
        positions = [group + number * height for group in range(len(groups))]
        axes.barh(positions, values, height * 0.9, color=color, label=label)
    lows = [low for low, _ in intervals]
    highs = [high for _, high in intervals]
    axes.hlines(range(len(groups)), lows, highs, color=TEXT, linewidth=1.2)
    labels = layout_labels(groups)
    axes.set_yticks([group + 0.4 - height / 2 for group in range(len(groups))], list(labels))
    axes.margins(y=min(0.05, 0.5 / max(len(groups), 1)))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=x_label)
    axes.grid(axis="x", color=LINES, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return to_svg(figure, name, labels)


@matplotlib.rc_context(STYLE)
def pareto_chart(
    name: str, points: list[tuple[str, float, float, bool]], x_label: str, y_label: str
) -> str:
    """Draw experiments as labeled points; a line joins those on the Pareto front.

    Args:
        name: title of the chart, unique on the page.
        points: (experiment, x, y, whether it is on the Pareto front).
        x_label, y_label: names of the two metrics.
    """
    figure, axes = new_figure(WIDTH, 3.6)
    front = sorted((x, y) for _, x, y, on_front in points if on_front)
    axes.plot([x for x, _ in front], [y for _, y in front], color=SERIES[0], linewidth=1.2)
    for experiment, x, y, on_front in points:
        color = SERIES[0] if on_front else SERIES[2]
        axes.plot(x, y, "o", color=color, markersize=6 if on_front else 4)
        axes.annotate(experiment, (x, y), (5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(0.12)
    axes.grid(color=LINES, linewidth=0.6)
    return to_svg(figure, name)


@matplotlib.rc_context(STYLE)
def confusion_matrix(name: str, pairs: list[tuple[str, str]], classes: list[str]) -> str:
    """Draw the counts of (actual, predicted), shaded by their share of the actual class."""
    counts = Counter(pairs)
    totals = Counter(actual for actual, _ in pairs)
    columns = layout_labels(classes)
    rows = layout_labels(label if totals[label] else f"{label} (none)" for label in classes)
    widest = max((sum(letter_widths(text)) for text in rows.values()), default=0)
    many = len(classes) > 40
    side = max(3.6, 1.6 + (0.17 if many else 0.3) * len(classes))
    side += 0.06 * max(0, widest - MATRIX_LABEL)
    figure, axes = new_figure(side + 0.6, side)
    for row, actual in enumerate(classes):
        for column, predicted in enumerate(classes):
            count = counts[actual, predicted]
            if count == 0:
                continue
            alpha = 0.08 + 0.52 * count / totals[actual]
            axes.bar(column, 1, 1, row - 0.5, color=SERIES[0], alpha=alpha, linewidth=0)
            if len(classes) <= WIDE:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    positions = range(len(classes))
    end = len(classes) - 0.5
    axes.set(xlim=(-0.5, end), ylim=(end, -0.5), xlabel="predicted", ylabel="actual")
    size = 7 if many else 8
    axes.set_xticks(
        positions, list(columns), rotation=45, ha="right", rotation_mode="anchor", fontsize=size
    )
    axes.set_yticks(positions, list(rows), fontsize=size)
    return to_svg(figure, name, columns | rows, scales=len(classes) <= WIDE)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of `width` x `height` inches, and its axes."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def letter_widths(text: str) -> list[float]:
    """The width of each letter of a text: 1, or `WIDE_LETTER` where matplotlib's font lacks it."""
    font = get_font(findfont("DejaVu Sans"))
    return [1 if font.get_char_index(ord(letter)) else WIDE_LETTER for letter in text]


def layout_labels(names: Iterable[str]) -> dict[str, str]:
    """Return {text for matplotlib to lay out: name to show}, in the order of the names.

    The text is the name or, where matplotlib's font lacks letters of it, a stand-in as wide as it.
    """
    labels = {}
    for number, name in enumerate(names):
        text = name
        widths = letter_widths(name)
        if sum(widths) > MAX_LABEL:
            end = bisect(list(accumulate(widths)), MAX_LABEL - 1)
            text = f"{name[:end].rstrip()}…"
        letters = zip(text, letter_widths(text))
        stand_in = "".join(letter if width == 1 else "W" for letter, width in letters)
        if stand_in != text or text in labels:
            stand_in += f"⟨{number}⟩"  # tells texts of the same width apart
        labels[stand_in] = text
    return labels


def to_svg(
    figure: Figure, name: str, labels: dict[str, str] | None = None, scales: bool = True
) -> str:
    """Return a figure as an <svg> element.

    Args:
        figure: the chart.
        name: unique on the page, its ids are made from it.
        labels: `layout_labels` of the names in it.
        scales: whether it is scaled down to the width of its column.
    """
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        metadata = {"Date": None, "Creator": None}  # would change the bytes
        figure.savefig(sink, format="svg", transparent=True, metadata=metadata)
    text = sink.getvalue()
    width, height = re.findall(r'viewBox="0 0 (\S+) (\S+)"', text)[0]
    # The page has matplotlib's style definitions once, in its own style sheet.
    start = text.index("</defs>", text.index("<style")) + len("</defs>")
    body = text[start:]
    # matplotlib gives the parts of every chart the same ids.
    body = re.sub(r'<g id="[A-Za-z0-9_.]+"', "<g", body)
    body = re.sub(r" font-family: [^;\"]+;?", "", body)
    for stand_in, color in CSS_COLORS.items():
        body = body.replace(stand_in, color)
    for stand_in, label in (labels or {}).items():
        if stand_in != label:
            body = body.replace(f">{escape(stand_in, quote=False)}<", f">{escape(label)}<")
    body = "\n".join(line.strip() for line in body.splitlines() if line.strip())
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {width} {height}" '
        f'style="{"max-width" if scales else "width"}: {width}pt">\n{body}\n'
    )
