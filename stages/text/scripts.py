"""Scripts that are written without spaces between words."""

# Chinese and Japanese, Thai, Lao, Tibetan, Burmese, Khmer: ranges of a character class.
UNSPACED = (
    r"\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
)
