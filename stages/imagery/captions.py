"""Captions: the usable ones of a source, and one written from a class name where it has none."""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from stages.common.class_names import plain_name
from stages.imagery.untrusted_text import valid_utf8

# The names of caption fields, with numbered ones (caption_1, raw4, text 2), in any case. The first
# in which a row has captions counts.
CAPTION_FIELDS = ("captions", "caption", "text", "raw", "sentences", "sentence")
# What pandas reads as, or writes for, a missing value.
MISSING_VALUES = {"nan", "-nan", "none", "null", "na", "n/a", "<na>", "#na", "#n/a", "#n/a n/a"}
NUMBER_OF_FIELD = r"(?:[ ._-]?\d+)?"
CAPTION_WORDS = 3  # a text of so many words beside an image is taken for its caption
# blip_caption, caption_2 or caption_en hold captions; caption_source says something of them.
CAPTION_NAME = re.compile(r"captions?([ ._-]?(\d+|[a-z]{2}))?$", re.I)
LONG_TEXT = 5  # words of a text that is no class name, but may be a caption
CHARACTER = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese write no spaces


def caption_fields(names: Iterable[str]) -> list[str]:
    """The names that are caption fields, those that count first first; [] if there are none."""
    return [name for fields in _group_caption_fields(tuple(names)) for name in fields]


@lru_cache(maxsize=256)  # the rows of a source have the same few sets of fields
def _group_caption_fields(names: tuple[str, ...]) -> list[list[str]]:
    """The names that differ in their number alone, of each of `CAPTION_FIELDS` that is there."""
    groups = []
    for field in CAPTION_FIELDS:
        pattern = re.compile(field + NUMBER_OF_FIELD, re.IGNORECASE)
        groups.append([name for name in names if pattern.fullmatch(name)])
    return [fields for fields in groups if fields]


def row_captions(row: dict) -> Any:
    """The value of a row's caption field; of numbered fields, a list of all their captions.

    Of fields of several names, those with usable captions count, else the first. None: the row has
    no caption field.
    """
    groups = _group_caption_fields(tuple(row))
    values = (_value_of_group(row, group) for group in groups)
    if len(groups) > 1:
        values = (value for value in values if usable_captions(value)[0])
    return next(values, _value_of_group(row, groups[0]) if groups else None)


def _value_of_group(row: dict, fields: list[str]) -> Any:
    """The value of a field; of several fields, a list of all their values."""
    if len(fields) == 1:
        return row[fields[0]]
    captions: list[Any] = []
    for field in fields:
        value = row[field]
        captions += value if isinstance(value, list) else [value]
    return captions


def usable_captions(field: Any) -> tuple[list[str], str]:
    """Pick the usable captions of a caption field and normalize their white space.

    A usable caption is a string that contains a letter and doesn't stand for a missing value
    ("nan", "N/A"). A string that holds a list ("['a lake', 'blue water']") is read as that list.

    Args:
        field: what the source holds: a string, a list, None, or anything else.

    Returns:
        The captions, and "" or, if there are none, the reason.
    """
    values = caption_list(field)
    captions = []
    for value in values:
        if _is_text(value) and not _is_blank(value):
            captions.append(" ".join(valid_utf8(value).split()))
    if captions:
        return captions, ""
    if any(not _is_blank(value) for value in values):
        return [], "captions are not text"
    if any(isinstance(value, str) and value.strip() for value in values):
        return [], "captions stand for a missing value (nan, N/A, ...)"
    if field is None or not any(isinstance(value, str) for value in values):
        return [], "no captions"
    return [], "blank captions"


def caption_list(field: Any) -> list:
    """The values of a caption field, of which each may be a caption.

    Karpathy's sentences are objects: {"raw": "a lake", "tokens": ["a", "lake"]} is "a lake". A list
    in a list is a sentence where most of its strings are words, else several captions.
    """
    captions: list[Any] = []
    for value in field if isinstance(field, (list, tuple)) else [field]:
        listed = _list_in_string(value.strip()) if isinstance(value, str) else None
        for caption in [value] if listed is None else listed:
            has_captions = isinstance(caption, dict) and caption_fields(caption)
            texts = row_captions(caption) if has_captions else _joined_words(caption)
            captions += texts if isinstance(texts, list) else [texts]
    return captions


def _joined_words(caption: Any) -> Any:
    """The sentence of a list of words; other lists and values as they are."""
    if not isinstance(caption, list) or not all(isinstance(text, str) for text in caption):
        return caption
    words = [text for text in caption if count_words(text) < 2]
    return " ".join(caption) if len(words) > max(1, len(caption) / 2) else caption


def misnamed_captions(rows: Iterable[dict]) -> str | None:
    """The first field that seems to hold captions: different texts of several words; or None.

    Fewer words are enough where the field's name says so: blip_caption.
    """
    first_texts: dict[str, str] = {}
    cells = ((name, value) for row in rows for name, value in row.items())
    for name, value in cells:
        min_words = CAPTION_WORDS if CAPTION_NAME.search(name) else LONG_TEXT
        for text in value if isinstance(value, list) else [value]:
            is_long = isinstance(text, str) and count_words(text) >= min_words
            if is_long and first_texts.setdefault(name, text) != text:
                return name
    return None


def count_words(text: str) -> int:
    """The number of words between spaces; of characters, in Chinese and Japanese."""
    words = CHARACTER.sub(" ", text).split()
    letters = (any(map(str.isalpha, word)) for word in words)
    return sum(letters) + len(CHARACTER.findall(text))


def holds_boxes(text: str) -> bool:
    """Whether a line of a text is that of an object detector: a class and its coordinates."""
    for line in text.splitlines():
        numbers = re.findall(r"(?<!\S)[-+.\d][-+.\de]*(?!\S)", line)
        if len(numbers) >= 4 and len(numbers) > len(line.split()) / 2:
            return True
    return False


def _list_in_string(text: str) -> list | None:
    """The strings of a list that was written as text by JSON, Python or numpy; None: it is none."""
    if not text.startswith(("[", "(")) or not text.endswith(("]", ")")):
        return None
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else None
    except (ValueError, RecursionError):
        pass
    # numpy writes no commas, so that Python would join the strings: take them one by one, below.
    is_nested = re.match(r"\[\s*\[", text) and not re.search(r"['\"]\s+['\"]", text)
    if "{" in text or is_nested:
        try:
            return list(ast.literal_eval(text))
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            if "{" in text:
                return None
    strings = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING:
                strings.append(ast.literal_eval(token.string))
            elif token.type == tokenize.NAME and token.string not in ("nan", "None"):
                return None  # prose in brackets
    except (SyntaxError, ValueError, tokenize.TokenError):
        return None
    return strings or None


def _is_text(value: Any) -> bool:
    """Whether it is a string with a letter, and no object that was written as text."""
    if not isinstance(value, str) or not any(letter.isalpha() for letter in value):
        return False
    return not re.fullmatch(r"\s*[\[(]*(\{|array\().*[\])}]\s*", value, re.DOTALL)


def _is_blank(value: Any) -> bool:
    """Whether there is no caption: None, NaN, white space, or a word for a missing value."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (
        isinstance(value, str) and value.strip().lower() in MISSING_VALUES | {""}
    )


def caption_from_scene(scene: str) -> str:
    """A caption from a class name: BareLand, bare_land and bare-land are written `bare land`."""
    return f"a satellite image of {plain_name(scene)}"
