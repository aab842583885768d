"""Tables that set this run's numbers beside the paper's, and their text for people."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stages.common.markdown import escape_markdown
from stages.common.rounding import format_decimals, read_interval

NUMERIC = ("ours", "95 % CI", "paper")  # column titles, aligned right


@dataclass(frozen=True)
class Row:
    """One number of this run."""

    key: str  # dotted, as in metrics/*.json
    metric: str  # what is measured, for people
    ours: float | None
    comparable: str  # "yes", "no: why", "in part: why"; "" where the paper has no such number
    paper: str = ""  # as the paper prints it
    interval: tuple[float, float] | None = None  # 95 %
    # What the number is judged by: its spread where it has no interval, real vs. real, the base
    # model, chance, real tiles.
    references: dict[str, float | tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    title: str
    rows: list[Row]
    note: str = ""  # plain text with **bold**


def make_row(
    key: str,
    metric: str,
    values: dict,
    comparable: str = "",
    paper: str = "",
    references: Mapping[str, float | tuple[float, float] | None] | None = None,
) -> Row:
    """Make the row of one number.

    Args:
        key: dotted key in metrics/*.json, the last part of which is the number's key in `values`.
        metric: what is measured, for people.
        values: the number, with its interval (`_lo`, `_hi`) or standard deviation (`_std`), its
            value for real against real images (`_floor`), of the base model (`_base`) and of
            guessing (`_chance`).
        comparable: whether the number compares with the paper's.
        paper: the paper's number.
        references: what the number is judged by, besides these; None is left out.
    """
    name = key.rpartition(".")[2]
    interval = read_interval(values, name)
    measured = {
        "standard deviation over draws": None if interval else values.get(f"{name}_std"),
        "real vs. real": values.get(f"{name}_floor"),
        "its 95 % PI": read_interval(values, f"{name}_floor"),
        "base model": values.get(f"{name}_base"),
        "chance": values.get(f"{name}_chance"),
    }
    return Row(
        key,
        metric,
        ours=values.get(name),
        comparable=comparable,
        paper=paper,
        interval=interval,
        references={
            title: value
            for title, value in (measured | dict(references or {})).items()
            if value is not None
        },
    )


def with_interval(
    title: str, values: dict, name: str
) -> dict[str, float | tuple[float, float] | None]:
    """Return a reference of `make_row`, the number `name` of `values`, and its interval.

    Both are None where it has none.
    """
    return {title: values.get(name), "its 95 % CI": read_interval(values, name)}


def order_extractors(names: Iterable[str]) -> list[str]:
    """The feature extractors: the paper's first, then the run's scene classifier."""
    first = ("inception2048", "scene")
    return sorted(names, key=lambda name: (first.index(name) if name in first else 2, name))


def format_number(value: float | tuple[float, float] | None, decimals: int | None = None) -> str:
    """Format a number with three decimals or four digits, a count whole, an interval `lo to hi`.

    With `decimals`, all but counts have so many.
    """
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(format_number(end, decimals) for end in value)
    if isinstance(value, int):
        return str(value)
    if decimals is not None:
        return format_decimals(value, decimals)
    if abs(value) < 10:
        return f"{value:.3f}"
    if abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:.1f}"


def cell_texts(table: Table) -> list[dict[str, str]]:
    """Return one {column title: text} per row, without the columns that are empty in every row."""
    rows = [_row_texts(row) for row in table.rows]
    titles = [
        title
        for title in rows[0]
        if title in ("metric", "ours") or any(row[title] != "-" for row in rows)
    ]
    return [{title: row[title] for title in titles} for row in rows]


def _row_texts(row: Row) -> dict[str, str]:
    references = [f"{name} {format_number(value)}" for name, value in row.references.items()]
    return {
        "metric": row.metric,
        "ours": format_number(row.ours),
        "95 % CI": format_number(row.interval),
        "reference": ", ".join(references) or "-",
        "paper": row.paper or "-",
        "comparable": row.comparable or "-",
    }


def to_markdown(tables: list[Table], scale: str) -> str:
    """Return the text of metrics/table.md. scale: what kind of run this is, in words."""
    lines = [
        "# This run beside the paper",
        "",
        f"Written by the `report` stage. Scale: **{scale}**.",
        "",
    ]
    for table in tables:
        rows = cell_texts(table)
        titles = list(rows[0])
        lines += [f"## {table.title}", ""]
        lines.append(f"| {' | '.join(titles)} |")
        lines.append(f"|{'|'.join('---:' if title in NUMERIC else '---' for title in titles)}|")
        for row in rows:
            cells = map(escape_markdown, row.values())
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        if table.note:
            # The bold mark is two stars, which escaping would show; spaces around it stay.
            marked = table.note.replace("**", "\0")
            lines += [escape_markdown(marked).replace("\0", "**"), ""]
    return "\n".join(lines).rstrip() + "\n"
