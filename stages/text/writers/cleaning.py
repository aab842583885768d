"""Make a prompt of a sentence."""

import re

# Openings that tie a sentence to the one before it, or that state a viewpoint: the positive cues
# state it already.
OPENING = re.compile(
    r"^(however|moreover|furthermore|in addition|in contrast|by contrast|for example|for instance|"
    r"thus|therefore|hence|often|here|usually|typically|finally|also|indeed|elsewhere|"
    r"(when )?((seen|viewed) )?from (above|the air|space)|"
    r"in (the|an|a) (aerial |satellite )?(image|picture|tile|photograph)),?\s+(?=\w)",
    re.I,
)
BULLET = re.compile(r"^[-•*–]\s+")
BRACKETS = re.compile(r"\s*\([^()]*\)")


def clean_sentence(sentence: str) -> str:
    """Drop a sentence's bullet, brackets, openings and full stop; start it in lower case."""
    text = BULLET.sub("", " ".join(sentence.split()))
    text = BRACKETS.sub("", text)
    # One opening may follow another: "However, seen from above, ...".
    shorter = OPENING.sub("", text)
    while shorter != text:
        text = shorter
        shorter = OPENING.sub("", text)
    text = text.strip(" .!\"'“”")
    return text[:1].lower() + text[1:]
