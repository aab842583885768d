"""Image grids with labels, drawn with Pillow: the same images give the same bytes."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from stages.common.artifacts import decode_image, stream_rows

SIDE = 128  # pixels of a tile in a grid
GAP, BETWEEN, MARGIN = (
    4,
    18,
    16,
)  # pixels between tiles, between groups and rows with captions, around all
INK, SOFT, PAPER = "#1c2127", "#66707c", "#ffffff"


class Line(NamedTuple):
    """A row of a grid: its name, a word below it, and groups of pictures; captions: a name and a text below each group."""

    name: str
    note: str
    groups: list[list[Image.Image]]
    captions: list[tuple[str, str]] = []


def pictures(folder: str | Path, places: set[int], largest: int = SIDE) -> dict[int, Image.Image]:
    """The images of some rows of a folder of shards, by row number, none with more than so many pixels a side; streamed."""
    found = {}
    for place, row in enumerate(stream_rows(folder, ["image"]) if places else ()):
        if place in places:
            picture = decode_image(row["image"])
            if max(picture.size) > largest:
                picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
            found[place] = picture
            if len(found) == len(places):
                break
    return found


def tile(picture: Image.Image) -> Image.Image:
    """A picture at `SIDE`: whole pixels where it divides evenly, so that small images stay what they are."""
    even = SIDE % picture.width == 0 and picture.width == picture.height
    return picture.resize(
        (SIDE, SIDE), Image.Resampling.NEAREST if even else Image.Resampling.LANCZOS
    )


def grid(lines: list[Line], columns: list[str] | None = None, names: int = 130) -> Image.Image:
    """Draw rows of tiles. `columns`: titles over each tile of a group; `names`: pixels kept for the row names, 0 = none."""
    captioned = any(line.captions for line in lines)
    members = max((len(group) for line in lines for group in line.groups), default=1)
    across = max((len(line.groups) for line in lines), default=1)
    between = BETWEEN if members > 1 else GAP
    wide = members * (SIDE + GAP) - GAP  # a group
    head, below = (
        24 if columns else 0,
        52 if captioned else 0,
    )  # titles; a name and two lines of caption
    pitch = SIDE + below + (BETWEEN // 2 if captioned else GAP)
    width = 2 * MARGIN + names + across * (wide + between) - between
    height = 2 * MARGIN + head + len(lines) * pitch - (pitch - SIDE - below)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, large, small = (
        ImageDraw.Draw(sheet),
        ImageFont.load_default(15),
        ImageFont.load_default(12),
    )

    def write(x: int, y: int, name: str, note: str, width: int, most: int) -> None:
        for text in wrap(name, large, width, 3):
            pen.text((x, y), text, INK, large)
            y += 19
        for text in wrap(note, small, width, most):
            pen.text((x, y), text, SOFT, small)
            y += 15

    for group in range(across if columns else 0):
        for member, title in enumerate(columns):
            pen.text(
                (MARGIN + names + group * (wide + between) + member * (SIDE + GAP), MARGIN),
                title,
                SOFT,
                large,
            )
    for number, line in enumerate(lines):
        y = MARGIN + head + number * pitch
        write(MARGIN, y, line.name, line.note, names - 12, 5)
        for place, group in enumerate(line.groups):
            x = MARGIN + names + place * (wide + between)
            for member, picture in enumerate(group):
                sheet.paste(tile(picture), (x + member * (SIDE + GAP), y))
            if line.captions:
                write(x, y + SIDE + 2, *line.captions[place], wide, 2)
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """A text in at most so many lines of so many pixels; what doesn't fit ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    cut = len(lines) > most
    lines = lines[:most]
    for number, line in enumerate(lines):
        last = cut and number == most - 1
        if last or font.getlength(line) > width:
            while line and font.getlength(line + "...") > width:
                line = line[:-1]
            lines[number] = line.rstrip(" ,.") + "..."
    return lines if text else []
