"""A temporary file of finished tiles, so that they need not all be in memory."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO


@dataclass
class SpooledTile:
    """Where a tile is in the file, and what decides on its split."""

    name: str
    split: str  # train, valid, test or excluded
    offset: int  # bytes
    header_size: int  # bytes of JSON {captions, scene}
    png_size: int  # bytes


class TileSpool:
    """Appends tiles to a file and reads them back in any order.

    Attributes:
        tiles: the tiles in the order in which they were added.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tiles: list[SpooledTile] = []
        self.size = 0  # bytes

    def add(self, name: str, split: str, captions: list[str], scene: str, png: bytes) -> None:
        """Append a tile to the file."""
        header = json.dumps({"captions": captions, "scene": scene}).encode()
        self.file.write(header + png)
        self.tiles.append(SpooledTile(name, split, self.size, len(header), len(png)))
        self.size += len(header) + len(png)

    def read_rows(self, tiles: Iterable[SpooledTile]) -> Iterator[dict]:
        """Yield tiles as rows of the imagery schema."""
        for tile in tiles:
            self.file.seek(tile.offset)
            header = json.loads(self.file.read(tile.header_size))
            png = self.file.read(tile.png_size)
            yield {"image": {"bytes": png, "path": tile.name}, "filename": tile.name, **header}
