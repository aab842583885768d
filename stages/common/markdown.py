"""Text of people in Markdown: names of classes and scenes, values of params."""

import re


def escape_markdown(text: str) -> str:
    """Return one line of plain text as Markdown that shows just that text, in tables, too."""
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", " ".join(text.split()))


def code_span(text: str) -> str:
    """Return one line of text as a code span that stands in the cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * (max(runs, default=0) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"
