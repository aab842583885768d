"""A temporary file of tiles, finished or raw, so that they need not all be in memory."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from stages.imagery.georeference import Georeference
from stages.imagery.rasters import RasterWindow
from stages.imagery.raw_tiles import RawLayout, RawTile, unpack
from stages.imagery.readers.items import SourceItem
from stages.imagery.schema import FURTHER_FIELDS
from stages.imagery.tile_making import Tile


@dataclass(slots=True)
class SpooledTile:
    """Where a tile is in the file, and what decides on its split."""

    name: str
    split: str  # train, valid, test; excluded or buffer: left out
    scene: str  # its class; "": none
    window: RasterWindow | None  # of a scene
    georeference: Georeference
    offset: int  # bytes
    header_size: int  # bytes of JSON {captions, scene} and the further columns
    pixels_size: int  # bytes
    raw: RawLayout | None  # of raw values; None: a PNG
    pixel_count: int  # of the source image, if it is a raster
    masked: int  # pixels of the source image without data
    masked_by_alpha: int  # further ones, if the band that is tagged alpha is a mask
    label_share: float | None = None  # of a label raster's valid pixels: those of its class
    site: str | None = None  # the ground that its scene shows; None: it wasn't cut from a scene


class TileSpool:
    """Appends tiles to a file and reads them back in any order.

    Attributes:
        tiles: the tiles in the order in which they were added.
        columns: the further columns that at least one tile has.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tiles: list[SpooledTile] = []
        self.size = 0  # bytes
        self.columns: set[str] = set()

    def add(
        self, item: SourceItem, split: str, captions: list[str], scene: str, tile: Tile
    ) -> None:
        """Append the tile of an item to the file."""
        further = tile.georeference._asdict() | {"label_share": item.label_share}
        further = {column: value for column, value in further.items() if value is not None}
        self.columns |= set(further)
        window = item.image if isinstance(item.image, RasterWindow) else None
        if window is not None:
            self.columns.add("site")
        header = json.dumps({"captions": captions, "scene": scene} | further).encode()
        self.file.write(header + tile.pixels)
        self.tiles.append(
            SpooledTile(
                name=item.name,
                split=split,
                scene=scene,
                window=window,
                georeference=tile.georeference,
                offset=self.size,
                header_size=len(header),
                pixels_size=len(tile.pixels),
                raw=tile.raw,
                pixel_count=tile.pixel_count,
                masked=tile.masked,
                masked_by_alpha=tile.masked_by_alpha,
                label_share=item.label_share,
            )
        )
        self.size += len(header) + len(tile.pixels)

    def read(self, tile: SpooledTile) -> tuple[dict, bytes]:
        """Read a tile: its row of the imagery schema without the image, and its pixels."""
        self.file.seek(tile.offset)
        header = json.loads(self.file.read(tile.header_size)) | {"site": tile.site}
        pixels = self.file.read(tile.pixels_size)
        columns = [field.name for field in FURTHER_FIELDS if field.name in self.columns]
        further = {column: header.get(column) for column in columns}
        return {"filename": tile.name, **header, **further}, pixels

    def read_raw(self, tiles: Iterable[SpooledTile], alpha_is_mask: bool) -> Iterator[RawTile]:
        """Yield the raw tiles among `tiles`. `alpha_is_mask`: see `unpack`."""
        for tile in tiles:
            if tile.raw is not None:
                yield unpack(self.read(tile)[1], tile.raw, alpha_is_mask)
