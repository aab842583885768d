"""The names of classes and scenes as metrics, files and prompts have them."""

import unicodedata

EMOJI_VARIATIONS = "\ufe0e\ufe0f"  # marks that say whether the sign before them is in color


def slug(name: str) -> str:
    """Return a class's name as metric keys and file names have it: "Open-water" for "Open water".

    Letters and digits of any script are kept, in Unicode's form NFC; all between them is one "-".
    """
    return "-".join(_runs_of_letters(name))


def plain_name(name: str) -> str:
    """Return a class's or scene's name as a person writes it: "annual crop" for "AnnualCrop"."""
    text = " ".join(_runs_of_letters(name))
    spaced = [
        f" {letter}" if letter.isupper() and before.islower() else letter
        for before, letter in zip(f" {text}", text, strict=False)
    ]
    return "".join(spaced).lower()


def _runs_of_letters(name: str) -> list[str]:
    """The runs of letters and digits, with the marks over, under and beside letters."""
    text = ""
    for letter in unicodedata.normalize("NFC", name):
        is_mark = unicodedata.category(letter) in ("Mn", "Mc") and letter not in EMOJI_VARIATIONS
        text += letter if letter.isalnum() or (is_mark and text[-1:].strip()) else " "
    return text.split()


def derived_names(name: str, scenes: list[str]) -> list[str]:
    """Return the plain names of a class without words of its own: its name's and its scenes'.

    Those without a letter are left out.
    """
    names = dict.fromkeys(map(plain_name, [name, *scenes]))
    return [plain for plain in names if any(letter.isalpha() for letter in plain)]
