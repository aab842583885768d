"""A table of numbers beside the paper's: its rows, and how they read for people."""

from dataclasses import dataclass, field

NUMERIC = ("ours", "95 % interval", "the paper")  # columns of numbers


@dataclass(frozen=True)
class Row:
    """One number beside the paper's. key: its place in metrics/; beside: what its size is judged by (floor, chance ...)."""

    key: str
    metric: str
    ours: float | None
    comparable: str  # "yes", "no: why", "in part: why", or "" where the paper has no such number
    paper: str = ""
    interval: tuple[float, float] | None = None
    std: float | None = None  # over several draws, where there is no interval
    beside: dict[str, float | tuple[float, float]] = field(default_factory=dict)
    identity: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    title: str
    rows: list[Row]
    note: str = ""


def number(value: float | tuple[float, float] | None) -> str:
    """For people: counts whole, the rest to three decimals or four digits; an interval `lo to hi`."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(map(number, value))
    if isinstance(value, int):
        return str(value)
    return (
        f"{value:.3f}"
        if abs(value) < 10
        else f"{value:.2f}"
        if abs(value) < 100
        else f"{value:.1f}"
    )


def texts(table: Table) -> list[dict[str, str]]:
    """The rows as text by column title, without columns that are empty throughout."""
    rows = []
    for line in table.rows:
        spread = f"std {number(line.std)} of draws" if line.std is not None else "-"
        rows.append(
            {
                "metric": line.metric,
                "ours": number(line.ours),
                "95 % interval": number(line.interval) if line.interval else spread,
                "beside": ", ".join(
                    f"{name} {number(value)}" for name, value in line.beside.items()
                )
                or "-",
                "the paper": line.paper or "-",
                "comparable": line.comparable or "-",
            }
        )
    filled = [
        title
        for title in rows[0]
        if title in ("metric", "ours") or any(row[title] != "-" for row in rows)
    ]
    return [{title: row[title] for title in filled} for row in rows]


def markdown(found: list[Table], scale: str) -> str:
    """metrics/table.md."""
    lines = [
        "# This run beside the paper",
        "",
        f"Written by the `report` stage. Scale: **{scale}**.",
        "",
    ]
    for table in found:
        rows = texts(table)
        align = "|".join("---:" if title in NUMERIC else "---" for title in rows[0])
        lines += [f"## {table.title}", "", f"| {' | '.join(rows[0])} |", f"|{align}|"]
        lines += [
            "| " + " | ".join(text.replace("|", "\\|") for text in row.values()) + " |"
            for row in rows
        ]
        lines += ["", table.note, ""] if table.note else [""]
    return "\n".join(lines).rstrip() + "\n"
