"""The fields of the demo's page: what they take, what a link to it holds, and how text is shown."""

import html
import re
import secrets
from collections.abc import Mapping
from typing import Any

import gradio as gr

from stages.params import Sampling
from stages.text.retrieval import Passage

MAX_IMAGES = 9  # per request
MAX_SEED = 2**63 - 1
# The largest steps and guidance scale, where those of params.yaml are not larger.
MAX_STEPS = 100
MAX_GUIDANCE = 15
# What a link holds, in the order of the fields.
LINK_FIELDS = ("prompt", "negative_prompt", "steps", "guidance", "seed", "images")


class Refusal(gr.Error):
    """What a visitor can mend: the page shows the message, and the terminal no traceback."""

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


def largest_numbers(sampling: Sampling) -> dict[str, float]:
    """Return the largest value of each field that holds a number, by its name in a link."""
    return {
        "steps": max(MAX_STEPS, sampling.steps),
        "guidance": max(MAX_GUIDANCE, sampling.guidance_scale),
        "images": MAX_IMAGES,
    }


def check_number(name: str, value: Any, largest: float, whole: bool) -> Any:
    """Return a number that a visitor sent.

    Raises:
        Refusal: it is none, no whole number where it must be, or not from 1 to `largest`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (whole and not isinstance(value, int)) or not 1 <= value <= largest:
        kind = "whole number" if whole else "number"
        raise Refusal(f"{name} is a {kind} from 1 to {largest:g}.")
    return value


def read_setting(name: str, query: Mapping[str, str], largest: dict[str, float]) -> Any:
    """Return a value of a link; where it has none, or a wrong one, the field keeps its own.

    largest: as `largest_numbers` returns it.
    """
    if name not in query:
        return gr.skip()
    try:
        return parse_setting(name, query[name], largest)
    except Refusal as error:
        gr.Warning(f"Of the link: {error.message}")
        return gr.skip()


def parse_setting(name: str, text: str, largest: dict[str, float]) -> str | int | float:
    """Return a value of a link as its field takes it.

    Raises:
        Refusal: the field doesn't take it.
    """
    if name == "seed":
        return str(parse_seed(text))
    if name not in largest:
        return text
    number: int | float | None = None
    if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", text, re.ASCII):
        number = float(text) if "." in text else int(text)
    return check_number(name.title(), number, largest[name], whole=name != "guidance")


def parse_seed(text: str) -> int:
    """Return the seed that a visitor typed, or a random one where the field is empty.

    Raises:
        Refusal: the text is no whole number from 0 to 2**63 - 1.
    """
    text = str(text).strip()
    if not text:
        return secrets.randbelow(2**31)
    if not text.isdecimal() or len(text) > 20 or int(text) > MAX_SEED:
        raise Refusal(
            f"The seed is a whole number from 0 to {MAX_SEED}, or nothing for a random one."
        )
    return int(text)


def shorten(text: str) -> str:
    """The start of a visitor's text, on one line, escaped: it is never markup."""
    line = " ".join(text.split())
    return html.escape(line if len(line) <= 300 else f"{line[:300]} ...")


def format_passages(passages: list[Passage]) -> str:
    """Format passages as HTML. The text of a paper is escaped: it is never markup."""
    distinct = {passage["id"]: passage for passage in passages}
    if not distinct:
        return "<p>No passage: the writer used none for this prompt.</p>"
    items = []
    for passage in distinct.values():
        title = html.escape(passage["title"])
        paper = html.escape(passage["paper"])
        items.append(
            f"<details open><summary>{title} ({paper}), page {passage['page']}</summary>"
            f"<blockquote>{html.escape(passage['text'])}</blockquote></details>"
        )
    return "<h2>Where this prompt comes from</h2>" + "".join(items)
