"""Captions: the usable ones of a source, and one written from a class name where it has none."""

import re
from typing import Any

from stages.imagery.untrusted_text import valid_utf8


def usable_captions(field: Any) -> tuple[list[str], str]:
    """Pick the usable captions of a caption field and normalize their white space.

    A usable caption is a string that contains a letter.

    Args:
        field: what the source holds: a string, a list, None, or anything else.

    Returns:
        The captions, and "" or, if there are none, the reason.
    """
    values = list(field) if isinstance(field, (list, tuple)) else [field]
    captions = []
    for value in values:
        if isinstance(value, str) and any(letter.isalpha() for letter in value):
            captions.append(" ".join(valid_utf8(value).split()))
    if captions:
        return captions, ""
    if any(not _is_blank(value) for value in values):
        return [], "captions are not text"
    if field is None or not values:
        return [], "no captions"
    return [], "blank captions"


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def caption_from_scene(scene: str) -> str:
    """A caption from a class name: BareLand, bare_land and bare-land are written `bare land`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", scene)
    return f"a satellite image of {' '.join(words.lower().split())}"
