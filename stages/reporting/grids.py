"""Labeled grids of images, drawn with Pillow: the same images give the same bytes."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from stages.common.artifacts import decode_image, stream_rows
from stages.reporting.fonts import Font, find_font, load_font

SIDE = 128  # pixels of a cell
GAP = 4  # pixels between cells
GROUP_GAP = 18  # pixels between groups, and between rows that have captions
MARGIN = 16  # pixels around the grid
TEXT_COLOR = "#1c2127"
SOFT_COLOR = "#66707c"
BACKGROUND = "#ffffff"
LARGE_LINE = 19  # pixels between two lines of text
SMALL_LINE = 15


class Grid(NamedTuple):
    """A drawn grid."""

    image: Image.Image
    names: list[str]  # that no font has: the picture shows their numbers, from 1


class GridRow(NamedTuple):
    """A row of a grid, made of groups of images that stand close together."""

    name: str  # left of the row
    note: str  # below the name
    groups: list[list[Image.Image]]
    captions: list[tuple[str, str]] = []  # (name, text) below each group


def load_scaled_images(
    folder: str | Path, rows: set[int], max_side: int = SIDE
) -> dict[int, Image.Image]:
    """Read some images of a folder of shards, one at a time.

    Args:
        folder: holds Parquet shards with an `image` column.
        rows: row numbers over all shards.
        max_side: larger images are scaled down to this number of pixels a side.

    Returns:
        row number -> image.
    """
    images: dict[int, Image.Image] = {}
    if not rows:
        return images
    for number, row in enumerate(stream_rows(folder, ["image"])):
        if number not in rows:
            continue
        image = decode_image(row["image"])
        if max(image.size) > max_side:
            image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        images[number] = image
        if len(images) == len(rows):
            break
    return images


def image_width(folder: Path) -> int:
    """Return the width in pixels of the first image of a folder of shards."""
    first = next(stream_rows(folder, ["image"], 1))
    return decode_image(first["image"]).width


def resize_to_cell(image: Image.Image) -> Image.Image:
    """Scale an image to `SIDE`; a small one stays sharp where its pixels can be repeated."""
    divides = SIDE % image.width == 0 and image.width == image.height
    resampling = Image.Resampling.NEAREST if divides else Image.Resampling.LANCZOS
    return image.resize((SIDE, SIDE), resampling)


def draw_grid(rows: list[GridRow], titles: list[str] | None = None, names_width: int = 130) -> Grid:
    """Draw rows of images.

    Args:
        rows: what to draw, from top to bottom.
        titles: above each image of a group, in every group.
        names_width: pixels kept for the names of the rows; 0 where they have none.
    """
    captioned = any(row.captions for row in rows)
    group_size = max((len(group) for row in rows for group in row.groups), default=1)
    groups = max((len(row.groups) for row in rows), default=1)
    group_gap = GROUP_GAP if group_size > 1 else GAP
    group_width = group_size * (SIDE + GAP) - GAP
    titles_height = 24 if titles else 0
    captions_height = 52 if captioned else 0  # a name and two lines of text
    row_gap = GROUP_GAP // 2 if captioned else GAP
    row_height = SIDE + captions_height

    left = MARGIN + names_width
    top = MARGIN + titles_height
    width = left + groups * (group_width + group_gap) - group_gap + MARGIN
    height = top + len(rows) * (row_height + row_gap) - row_gap + MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    unknown: list[str] = []

    group_lefts = [left + number * (group_width + group_gap) for number in range(groups)]
    for group_left in group_lefts:
        for column, title in enumerate(titles or []):
            position = (group_left + column * (SIDE + GAP), MARGIN)
            draw.text(position, title, SOFT_COLOR, load_font(None, 15))
    for number, row in enumerate(rows):
        y = top + number * (row_height + row_gap)
        name, note = to_drawable(row.name, unknown), to_drawable(row.note, unknown)
        draw_label(draw, (MARGIN, y), name, note, names_width - 12, note_lines=5)
        for group_left, group in zip(group_lefts, row.groups):
            for column, image in enumerate(group):
                sheet.paste(resize_to_cell(image), (group_left + column * (SIDE + GAP), y))
        for group_left, caption in zip(group_lefts, row.captions):
            position = (group_left, y + SIDE + 2)
            name, note = (to_drawable(text, unknown) for text in caption)
            draw_label(draw, position, name, note, group_width, note_lines=2)
    return Grid(sheet, unknown)


def to_drawable(text: str, unknown: list[str]) -> str:
    """Return a text, or its number in `unknown`, to which it is added, where no font has it."""
    if find_font(text) is not None:
        return text
    if text not in unknown:
        unknown.append(text)
    return f"({unknown.index(text) + 1})"


def draw_label(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    name: str,
    note: str,
    width: int,
    note_lines: int,
) -> None:
    """Write a name in up to three lines and a note below it, no wider than `width` pixels."""
    x, y = position
    large = load_font(find_font(name), 15)
    small = load_font(find_font(note), 12)
    for line in wrap_text(name, large, width, 3):
        draw.text((x, y), line, TEXT_COLOR, large)
        y += LARGE_LINE
    for line in wrap_text(note, small, width, note_lines):
        draw.text((x, y), line, SOFT_COLOR, small)
        y += SMALL_LINE


def wrap_text(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; what doesn't fit ends in an ellipsis.

    A word that is longer than a line, such as a text without spaces, is broken too.
    """
    if not text:
        return []
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
        while len(lines[-1]) > 1 and font.getlength(lines[-1]) > width:
            line = lines[-1]
            end = len(line) - 1
            while end > 1 and font.getlength(line[:end]) > width:
                end -= 1
            lines[-1:] = [line[:end], line[end:]]
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[max_lines - 1 :] = [last.rstrip(" ,.") + "..."]
    return lines
