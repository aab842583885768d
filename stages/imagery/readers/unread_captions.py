"""Find captions in a file that no reader knows.

Without them, the images would be captioned from the names of their classes.
"""

import gzip
import json
import os
import re
import zlib
from pathlib import Path

from stages.imagery.captions import (
    CAPTION_FIELDS,
    CAPTION_WORDS,
    LONG_TEXT,
    NUMBER_OF_FIELD,
    caption_fields,
    count_words,
    holds_boxes,
)
from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.readers.items import SCENE_FIELDS, first_field
from stages.imagery.untrusted_text import valid_utf8

JSON_SUFFIXES = {".json", ".jsonl", ".ndjson", ".geojson"}
YAML_SUFFIXES = {".yaml", ".yml"}
# .token: Flickr's `airport_0.png#0<TAB>a plane`.
TEXT_SUFFIXES = {".csv", ".tsv", ".tab", ".txt", ".md", ".desc", ".token", ".lst", *YAML_SUFFIXES}
# Of many kinds, as are files without a suffix: MapInfo's descriptions of rasters, logs, tables.
MIXED_SUFFIXES = {"", ".tab", ".lst"}
# Judged by their names only.
OPAQUE_SUFFIXES = {".xlsx", ".xls", ".ods", ".xml", ".pkl", ".feather", ".arrow", ".gz", ".zip"}
CODE_SUFFIXES = {".py", ".ipynb", ".sh", ".m", ".r"}
ABOUT_THE_DATA = {"readme", "license", "licence", "citation"}  # names of files that are no list
HEAD_OF_LIST = 2**20  # bytes of a file that are looked at
HEAD_OF_SIDECAR = 2**16  # the same of a file that is named as an image: there may be many of them
SENTENCE = 8  # words of a text that is no name of a place, license or line of a log
MAX_CLASSES = 100  # as in params: a list of more texts is no table of classes
NUMBER_OF_TEXT = re.compile(r"[ _.#-]\d+$")  # of several texts of an image: a_0.txt, a_1.txt
NAME_LETTER = r"[^\s\"'/\\,;:]"
IMAGE_NAME = re.compile(
    rf"(?<!{NAME_LETTER}){NAME_LETTER}+(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})\b",
    re.IGNORECASE,
)
CAPTION_KEY = re.compile(
    rf'"(?:{"|".join(CAPTION_FIELDS)}|conversations){NUMBER_OF_FIELD}"\s*:', re.IGNORECASE
)
YAML_KEY = re.compile(
    rf"^[ \t-]*(?:{'|'.join(CAPTION_FIELDS)}){NUMBER_OF_FIELD}\s*:", re.IGNORECASE | re.MULTILINE
)
JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
DESCRIPTION = re.compile(
    r'"(prompt|desc(?:ription)?)s?"\s*:\s*\[?\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE
)
# A cell of the first line of a table of captions: image_description, prompt 2, or airport_0#1.
CAPTION_CELL = re.compile(
    rf"(?:\w*[ _-])?(?:{'|'.join(CAPTION_FIELDS)}|desc(?:ription)?s?|prompts?){NUMBER_OF_FIELD}"
    r"|.+#\d+",
    re.IGNORECASE,
)
# A name without suffix and a text, in a line of a table and in JSON.
LINE_OF_STEM = re.compile(r'^"?([^",;\t|\n]+?)(?:#\d+)?"?[,;\t|](.*)', re.MULTILINE)
JSON_OF_STEM = re.compile(r'"([^"\\]+)"\s*:\s*\[?\s*"((?:[^"\\]|\\.)*)"')
STAC_ITEM = re.compile(r'"stac_version"\s*:')
MEDIA_TYPE = re.compile(r"(image|application|text|video)/[\w.+-]+(;|$)")
JSON_LETTER = re.compile(r"\\u([0-9a-fA-F]{4})")


def find_unread_captions(files: list[Path], images: list[Path], root: Path) -> str | None:
    """The first file beside the images that seems to hold their captions.

    It is given relative to `root`; if it isn't valid JSON, with what is wrong.
    """
    names = {valid_utf8(image.name).lower() for image in images}
    stems = {valid_utf8(image.stem).lower() for image in images}
    image_folders = {image.parent for image in images}
    texts_of_images = _texts_of_images(files, names | stems, len(stems))
    for file in files:
        suffix = file.suffix.lower()
        path = file.relative_to(root)
        is_about = file.name.lower().partition(".")[0] in ABOUT_THE_DATA
        if suffix in IMAGE_SUFFIXES | CODE_SUFFIXES or is_about or not os.path.isfile(file):
            continue
        is_text = _unpacked(file).suffix.lower() in JSON_SUFFIXES | TEXT_SUFFIXES
        searched = str(path)  # for the word `caption`
        if not is_text and suffix not in OPAQUE_SUFFIXES:
            # In a folder of images are also files of other kinds, such as world files.
            is_beside = file.parent in image_folders
            searched = file.name if is_beside else f"{path.parent.name}/{file.name}"
        may_be_list = is_text or not suffix
        if "caption" in searched.lower() or (
            may_be_list and _holds_captions(file, names, stems, texts_of_images, len(images))
        ):
            return valid_utf8(str(path)) + _json_error(file)
        # metadata.xml is that of a product (ISO 19115).
        is_metadata = file.name.lower().startswith("metadata.") and suffix != ".xml"
        if suffix in OPAQUE_SUFFIXES and is_metadata:
            return valid_utf8(str(path))
    return None


def _texts_of_images(files: list[Path], names: set[str], image_count: int) -> set[str]:
    """The names, without suffix, that a file with texts of one image has.

    It has the image's; or that and a number (a_0.txt, a_1.txt), if half of the images have such a
    file: a single one may hold notes.
    """
    numbered: dict[str, str] = {}  # name of a text -> its image's
    for file in files:
        name = _text_name(file)
        if file.suffix.lower() not in IMAGE_SUFFIXES and NUMBER_OF_TEXT.sub("", name) in names:
            numbered[name] = NUMBER_OF_TEXT.sub("", name)
    return names | numbered.keys() if len(set(numbered.values())) >= image_count / 2 else names


def _text_name(file: Path) -> str:
    """The name of a file without its suffix, in lower case: a, or a.png, of a.png.txt."""
    return valid_utf8(_unpacked(file).stem).lower()


def _unpacked(file: Path) -> Path:
    """The file without .gz after its name."""
    return file.with_suffix("") if file.suffix.lower() == ".gz" else file


def _head(file: Path, size: int) -> bytes:
    """The first `size` bytes of a file, unpacked if it is gzip's; b"" if it is damaged."""
    if _unpacked(file) == file:
        with open(file, "rb") as stream:
            return stream.read(size)
    try:
        with gzip.open(file) as stream:
            return stream.read(size)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        return b""


def _json_error(file: Path) -> str:
    """What is wrong with a JSON file, in brackets, or ""."""
    if file.suffix.lower() != ".json":
        return ""
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        return f" (no valid JSON: {error})"
    return ""


def _holds_captions(
    file: Path, names: set[str], stems: set[str], texts_of_images: set[str], image_count: int
) -> bool:
    """Whether a JSON or text file begins with captions of images that it, or its name, names.

    Args:
        file: to look into.
        names: of the images, in lower case.
        stems: the names without suffix.
        texts_of_images: the names of files of one image, without suffix.
        image_count: how many images there are; in several folders, some may have one name.
    """
    suffix = _unpacked(file).suffix.lower()
    # Without a suffix, it may be a raster of ENVI.
    is_of_image = suffix not in MIXED_SUFFIXES and _text_name(file) in texts_of_images
    head = _head(file, HEAD_OF_SIDECAR if is_of_image else HEAD_OF_LIST)
    is_utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in head and not is_utf16:
        return False  # no text
    text = valid_utf8(head.decode("utf-16" if is_utf16 else "utf-8", errors="replace"))
    if suffix in JSON_SUFFIXES:
        text = valid_utf8(JSON_LETTER.sub(lambda code: chr(int(code[1], 16)), text))
        if CAPTION_KEY.search(text) and (is_of_image or IMAGE_NAME.search(text)):
            return True
        if STAC_ITEM.search(text):  # its titles, media types and licenses are no captions
            return False
        if is_of_image and any(_is_description(*match) for match in DESCRIPTION.findall(text)):
            return True
        if any(_captions_image(part, names, stems) for part in re.split(r"[{}]", text)):
            return True
        return _captions_stems(JSON_OF_STEM.findall(text), stems, image_count, SENTENCE)
    lines = text.splitlines()
    header = re.split(r"[,;\t|]", lines[0].replace('"', "")) if lines else []
    header = [field.strip() for field in header]
    min_words = LONG_TEXT if first_field(SCENE_FIELDS, header) else CAPTION_WORDS
    if suffix in MIXED_SUFFIXES:
        separator = r"(#\d+)?\s" if suffix == ".lst" else r"#\d+\s|(#\d+)?\t"
        return any(_begins_with_image(line, names, separator, min_words) for line in lines)
    if len(header) > 1 and caption_fields(header):
        return True
    if holds_boxes(text):
        return False
    if suffix in YAML_SUFFIXES and YAML_KEY.search(text):
        return is_of_image or any(name.lower() in names for name in IMAGE_NAME.findall(text))
    if is_of_image and suffix not in YAML_SUFFIXES:  # whose other keys are of metadata
        return count_words(text) >= CAPTION_WORDS
    if suffix == ".md":  # notes, which may name images
        return False
    if any(_is_captioned_image(line, names, min_words) for line in lines):
        return True
    if not any(map(CAPTION_CELL.fullmatch, header)):
        min_words = SENTENCE  # a table of places or licenses has names without suffixes, too
    return _captions_stems(LINE_OF_STEM.findall(text), stems, image_count, min_words)


def _is_description(key: str, text: str) -> bool:
    """Whether a text of an image's own JSON file is a prompt, or a longer description."""
    return count_words(text) >= (CAPTION_WORDS if key.lower() == "prompt" else LONG_TEXT)


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


def _captions_stems(
    entries: list[tuple[str, str]], stems: set[str], image_count: int, min_words: int
) -> bool:
    """Whether (stem, cells) entries hold texts that differ, of more than half of the images.

    A table of classes, whose ids may be stems of images, too, has fewer entries; one of labels has
    fewer texts.
    """
    texts = {}
    for stem, cells in entries:
        text = max(re.split(r"[,;\t|]", cells), key=count_words)
        if stem.lower() in stems and count_words(text) >= min_words:
            texts[stem] = text
    return len(set(texts.values())) > min(image_count / 2, MAX_CLASSES)


def _is_captioned_image(line: str, names: set[str], min_words: int) -> bool:
    """Whether a line is the name of an image and a text."""
    parts = _split_at_image(line, names)
    return parts is not None and count_words("".join(parts)) >= min_words


def _begins_with_image(line: str, names: set[str], separator: str, min_words: int) -> bool:
    """Whether a line is the name of an image, the separator, and a field with a text.

    Numbers, bands, hashes and the like are no words of a text.
    """
    before, after = _split_at_image(line, names) or (line, "")
    if before.strip("\"'") or not re.match(f"[\"']?({separator})", after):
        return False
    for field in after.split("\t"):
        words = [word for word in field.split() if not any(map(str.isdigit, word))]
        if count_words(" ".join(words)) >= min_words:
            return True
    return False


def _split_at_image(line: str, names: set[str]) -> tuple[str, str] | None:
    """What stands in a line before the path of an image and behind it; None: it names none."""
    name = IMAGE_NAME.search(line)
    if name is None or name[0].lower() not in names:
        return None
    folder = re.split(r"[\s\"',;|]", line[: name.start()])[-1]
    return line[: name.start() - len(folder)], line[name.end() :]
