"""The formats of papers, and names that tell papers apart on any disk."""

import unicodedata
from collections.abc import Container

HTML = "html+tex_math_dollars+tex_math_single_backslash"  # for pages that MathJax is to run on
# The suffix of a file that pandoc reads -> pandoc's name of its format.
PANDOC_FORMATS = {
    ".md": "commonmark_x+east_asian_line_breaks",
    ".markdown": "commonmark_x+east_asian_line_breaks",
    ".tex": "latex",
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".docx": "docx",
    ".odt": "odt",
    ".epub": "epub",
}
ZIP_SUFFIXES = (".docx", ".odt", ".epub")  # of those that are no text files
SUFFIXES = (".pdf", ".txt", *PANDOC_FORMATS)  # of all papers


def decode(content: bytes) -> tuple[str, str]:
    """Return the text of a file with "\\n" at its lines' ends, and "" or why it is no text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 text (byte {error.start} on); iconv converts it"
    # Text extracted from PDFs has a few NULs, which cleaning removes.
    controls = sum(unicodedata.category(character) == "Cc" for character in text)
    if controls - text.count("\n") - text.count("\r") - text.count("\t") > len(text) / 20:
        return "", "not text: control characters in it"
    return text.replace("\r\n", "\n").replace("\r", "\n"), ""


def name_key(name: str) -> str:
    """Return the same key for names that some file systems hold to be equal."""
    return unicodedata.normalize("NFC", name).casefold()


def unused_name(name: str, used: Container[str]) -> str:
    """Return a name, with a number behind it where its key is one of the used keys."""
    unused = name
    number = 1
    while name_key(unused) in used:
        number += 1
        unused = f"{name}_{number}"
    return unused
