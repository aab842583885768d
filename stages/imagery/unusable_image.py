"""An image that cannot become a tile, and the reasons for it that REPORT.json counts."""

MIN_SIDE = 16  # pixels; a smaller image shows no scene
MAX_PIXELS = 178_956_970  # Pillow's limit, against files that fill the memory when they are decoded
EMPTY = "image is empty"
NO_BYTES = "row without the bytes of an image"
TOO_SMALL = f"smaller than {MIN_SIDE} pixels"
TOO_LARGE = "over 179 megapixels"
UNREADABLE = "image is unreadable or truncated"
NO_BLACK_AND_WHITE = "which have no fixed black and white"  # values of more than 8 bits
NO_RED = "and none is named red"  # of several bands
OUT_OF_MEMORY = "image needs more memory than there is"


class UnusableImage(Exception):
    """The image cannot become a tile. The message is the reason, as REPORT.json counts it."""
