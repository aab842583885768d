"""Tell pages of words from scans and from pages whose letters cannot be read."""

import re
import unicodedata

from stages.text.scripts import UNSPACED

MIN_PAGE_WORDS = 20  # a page with fewer is a scan or a picture
# Fonts without a Unicode map give signs, control characters, glyph names, or other letters.
# The share of letters, vowel signs and digits among all characters: 0.76 or more in 200 pages.
MIN_CHARACTER_SHARE = 0.6
MIN_VOWEL_SHARE = 0.25  # among Latin letters; in 200 pages: 0.35 or more
MAX_WORD_LETTERS = 15  # of Latin words, on average: more where the spaces are missing
GLYPH_NAME = re.compile(r"/[A-Za-z]{1,6}\d+|\(cid:\d+\)")
# Two letters, or one with a vowel sign of another script.
WORD = re.compile(rf"[{UNSPACED}]|[^\W\d_][^\s\d!-/:-@\[-`{{-~]+")
LATIN_WORD = re.compile(r"[a-z\u00df-\u024f]+", re.I)
VOWEL = re.compile(r"[aeiouyæøœı]", re.I)
ACCENT = re.compile(r"[\u0300-\u036f]")  # on a letter; Vietnamese vowels have up to two


def count_words(text: str) -> int:
    """Count the words of two letters or more; each character of Chinese or Japanese is one."""
    return sum(1 for _ in WORD.finditer(text))


def is_legible(text: str) -> bool:
    """Whether the characters of a page are those of a language; a page without any is legible."""
    characters = "".join(GLYPH_NAME.sub("\0", text).split())
    if len(characters) < MIN_PAGE_WORDS:
        return True
    readable = sum(unicodedata.category(character)[0] in "LMN" for character in characters)
    if readable < MIN_CHARACTER_SHARE * len(characters):
        return False
    words = LATIN_WORD.findall(ACCENT.sub("", unicodedata.normalize("NFD", text)))
    letters = sum(map(len, words))
    if letters < len(characters) / 2:  # another script, or numbers
        return True
    vowels = sum(1 for _ in VOWEL.finditer("".join(words)))
    return vowels >= MIN_VOWEL_SHARE * letters and letters <= MAX_WORD_LETTERS * len(words)


def failure(pages: list[str]) -> str:
    """Return why the pages of a paper hold no text that can be read; "" where they do."""
    if not pages:
        return "no pages"
    with_text = [page for page in pages if page.strip()]
    illegible = sum(not is_legible(page) for page in with_text)
    if illegible > len(with_text) / 2:
        return (
            f"the letters of {illegible} of {len(pages)} pages cannot be read (fonts without a "
            "Unicode map, or without spaces)"
        )
    if sum(map(count_words, pages)) < MIN_PAGE_WORDS:
        return f"fewer than {MIN_PAGE_WORDS} words (scanned, or pictures only)"
    return ""
