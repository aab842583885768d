"""Sites, which are the units of intervals: tiles that show one ground are alike."""

import re
from collections.abc import Iterable

import numpy as np

MIN_SITES = 4  # at least: fewer don't tell how much sites differ
MAX_SHARE = 0.5  # of the tiles, in one site


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


def shared_sites(sites: list[str]) -> np.ndarray | None:
    """Number [N] of the site of each tile; None where no two tiles share one."""
    names, numbers = np.unique(sites, return_inverse=True)
    return numbers if len(names) < len(sites) else None


def can_tell_spread(sites: np.ndarray) -> bool:
    """Whether tiles' sites [N] are enough, and alike enough in size, to tell how sites differ."""
    _, counts = np.unique(sites, return_counts=True)
    return len(counts) >= MIN_SITES and counts.max() <= MAX_SHARE * len(sites)


def describe_sites(values: dict) -> str:
    """Say how the intervals of `standard_protocol` count sites; "" where no tiles share one."""
    if "n_sites" not in values:
        return ""
    cut = f"the {values['n_real']} test tiles were cut from {values['n_sites']} site(s)"
    if "recall_lo" in values:
        return f"{cut}, which the intervals of FID and so on count; real vs. real has none"
    return f"{cut}: too few, or most tiles of one, for intervals of FID and so on"
