"""Find captions in a file that no reader knows.

Without them, the images would be captioned from the names of their classes.
"""

import json
import os
import re
from pathlib import Path

from stages.imagery.captions import (
    CAPTION_FIELDS,
    LONG_TEXT,
    caption_fields,
    count_words,
    holds_boxes,
)
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import SCENE_FIELDS, first_field
from stages.imagery.untrusted_text import valid_utf8

JSON_SUFFIXES = {".json", ".jsonl", ".ndjson", ".geojson"}
TEXT_SUFFIXES = {".csv", ".tsv", ".txt"}
# Judged by their names only.
OPAQUE_SUFFIXES = {".xlsx", ".xls", ".ods", ".xml", ".pkl", ".feather", ".arrow", ".gz", ".zip"}
ABOUT_THE_DATA = {"readme", "license", "licence", "citation"}  # names of files that are no list
HEAD = 2**16  # bytes of a file that are looked at
CAPTION_WORDS = 3  # a text of so many words beside an image is taken for its caption
IMAGE_NAME = re.compile(
    rf"[^\s\"'/\\,;:]+(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})\b", re.IGNORECASE
)
CAPTION_KEY = re.compile(
    rf'"(?:{"|".join(CAPTION_FIELDS)}|conversations)(?:_?\d+)?"\s*:', re.IGNORECASE
)
JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
STAC_ITEM = re.compile(r'"stac_version"\s*:')
MEDIA_TYPE = re.compile(r"(image|application|text|video)/[\w.+-]+(;|$)")
JSON_LETTER = re.compile(r"\\u([0-9a-fA-F]{4})")


def find_unread_captions(files: list[Path], images: list[Path], root: Path) -> str | None:
    """The first file beside the images that seems to hold their captions.

    It is given relative to `root`; if it isn't valid JSON, with what is wrong.
    """
    names = {valid_utf8(image.name).lower() for image in images}
    stems = {valid_utf8(image.stem).lower() for image in images}
    for file in files:
        suffix = file.suffix.lower()
        path = file.relative_to(root)
        is_text = suffix in JSON_SUFFIXES | TEXT_SUFFIXES
        if not (is_text or suffix in OPAQUE_SUFFIXES) or not os.path.isfile(file):
            continue
        if "caption" in str(path).lower() or (is_text and _holds_captions(file, names, stems)):
            return valid_utf8(str(path)) + _json_error(file)
        # metadata.xml is that of a product (ISO 19115).
        is_metadata = file.name.lower().startswith("metadata.") and suffix != ".xml"
        if suffix in OPAQUE_SUFFIXES and is_metadata:
            return valid_utf8(str(path))
    return None


def _json_error(file: Path) -> str:
    """What is wrong with a JSON file, in brackets, or ""."""
    if file.suffix.lower() != ".json":
        return ""
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        return f" (no valid JSON: {error})"
    return ""


def _holds_captions(file: Path, names: set[str], stems: set[str]) -> bool:
    """Whether the begin of a JSON or text file has captions of images that it, or its name, names.

    Args:
        file: to look into.
        names: of the images, in lower case.
        stems: the names without suffix.
    """
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    is_utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = valid_utf8(head.decode("utf-16" if is_utf16 else "utf-8", errors="replace"))
    stem = valid_utf8(file.stem).lower()
    if file.suffix.lower() in JSON_SUFFIXES:
        text = valid_utf8(JSON_LETTER.sub(lambda code: chr(int(code[1], 16)), text))
        if CAPTION_KEY.search(text) and (stem in stems or IMAGE_NAME.search(text)):
            return True
        if STAC_ITEM.search(text):  # its titles, media types and licenses are no captions
            return False
        return any(_captions_image(part, names, stems) for part in re.split(r"[{}]", text))
    lines = text.splitlines()
    header = re.split(r"[,;\t|]", lines[0].replace('"', "")) if lines else []
    header = [field.strip() for field in header]
    if len(header) > 1 and caption_fields(header):
        return True
    if stem in ABOUT_THE_DATA or holds_boxes(text):
        return False
    if stem in stems and count_words(text) >= CAPTION_WORDS:
        return True
    min_words = LONG_TEXT if first_field(SCENE_FIELDS, header) else CAPTION_WORDS
    return any(_is_captioned_image(line, names, min_words) for line in lines)


def _captions_image(part: str, names: set[str], stems: set[str]) -> bool:
    """Whether a JSON object has the name of an image and a caption, or a text."""
    strings = [string.lower() for string in JSON_STRING.findall(part)]
    strings = [text for text in strings if IMAGE_NAME.search(text) or not MEDIA_TYPE.match(text)]
    base_names = {re.split(r"[/\\]", string)[-1] for string in strings}
    if base_names.isdisjoint(names) and not any(map(str.isalpha, "".join(base_names & stems))):
        return False  # a number alone may be that of a class
    if CAPTION_KEY.search(part):
        return True
    min_words = LONG_TEXT if first_field(SCENE_FIELDS, strings) else CAPTION_WORDS
    return any(count_words(string) >= min_words for string in strings)


def _is_captioned_image(line: str, names: set[str], min_words: int) -> bool:
    """Whether a line is the name of an image and a text."""
    name = IMAGE_NAME.search(line)
    if name is None or name[0].lower() not in names:
        return False
    before = re.sub(r"[^\s\"',;|]*$", "", line[: name.start()])  # without the image's folder
    return count_words(before + line[name.end() :]) >= min_words
