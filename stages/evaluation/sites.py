"""Sites, which are the units of intervals: tiles that show one ground are alike."""

import re
from collections.abc import Iterable


def source_file(filename: str) -> str:
    """The file that a tile was cut from; the file name itself of an image that wasn't cut.

    `fetch_imagery` names the tiles of scene.tif scene_r<row>_c<column>.tif.
    """
    return re.sub(r"_r\d+_c\d+(?=(\.[^.]*)?$)", "", filename)


def sites_of_tiles(rows: Iterable[dict]) -> list[str]:
    """What tiles were cut from, by their filename and, where `fetch_imagery` cut them, their site.

    A site is the ground of a scene: scenes of several dates may have one.
    """
    return [row.get("site") or source_file(row["filename"]) for row in rows]
