"""Find a font that has all letters of a text, for pictures: no browser chooses one for these."""

import unicodedata
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LAST_RESORT = "LastResort"  # the font whose glyph of every letter is a box


@cache
def find_font(text: str) -> str | None:
    """Return the file of a font that has all letters of a text; "" for Pillow's own; None: no font.

    Tried in this order: Pillow's, DejaVu Sans, which matplotlib brings along, the installed ones.
    """
    letters = frozenset(letter for letter in text if not letter.isspace())
    # Without Raqm, Pillow writes Arabic from left to right and letters without their marks.
    if not features.check("raqm") and any(map(_needs_shaping, letters)):
        return None
    for path in ("", *_font_files()):
        if all(ord(letter) in _letters_of(path) for letter in letters):
            return path
    return None


def load_font(path: str | None, size: int) -> Font:
    """Return a font of `size` pixels. path: of `find_font`."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def _needs_shaping(letter: str) -> bool:
    is_mark = unicodedata.category(letter) in ("Mn", "Mc")
    return is_mark or unicodedata.bidirectional(letter) in ("R", "AL")


@cache
def _font_files() -> list[str]:
    """DejaVu Sans, then the fonts of this machine, in the order of their paths."""
    installed = sorted(font_manager.findSystemFonts())
    named = [path for path in installed if not Path(path).name.startswith(LAST_RESORT)]
    return [str(font_manager.findfont("DejaVu Sans")), *named]


@cache
def _letters_of(path: str) -> frozenset[int]:
    """The code points that a font has glyphs for; none where it cannot be drawn at any size."""
    try:
        font = load_font(path, 15)
        if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow was built without FreeType
            return frozenset(range(128))
        return frozenset(FT2Font(path or font.path).get_charmap())
    except (OSError, RuntimeError):  # a bitmap font, such as those of emoji, or a damaged file
        return frozenset()
