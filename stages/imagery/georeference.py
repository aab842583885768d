"""Where and when a raster was taken: its CRS, bounds, ground sample distance and date."""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import date
from functools import lru_cache
from math import cosh, hypot
from pathlib import Path
from typing import Any, NamedTuple

from stages.runtime.progress import log

METERS_PER_DEGREE = 111_320  # of latitude
EARTH_RADIUS = 6_378_137  # meters, at the equator
# Tags in which products and tools write the date of acquisition; TIFFTAG_DATETIME is the last,
# because most software writes the time of processing there.
DATE_TAGS = (
    "ACQUISITION_DATE",
    "ACQUISITIONDATE",
    "ACQUISITIONDATETIME",
    "DATE_ACQUIRED",
    "SENSING_TIME",
    "DATETIME",
    "DATE",
)
SOFTWARE_DATE_TAG = "TIFFTAG_DATETIME"
DAY = r"(?P<day>(?:19|20)\d{2}[01]\d[0-3]\d)"
FILE_NAME_DATES = [
    # Sentinel-2: S2A_MSIL2A_20200601T101031_..., T32UQD_20200601T101031_B04
    re.compile(rf"(?:^|_){DAY}T\d{{6}}(?:_|\.|$)"),
    # Landsat: LC08_L2SP_193026_20200601_20200825_02_T1; the second date is that of processing
    re.compile(rf"^L[COTEM]0[1-9]_\w{{4}}_\d{{6}}_{DAY}_"),
    # NAIP: m_3807708_ne_18_060_20200601, and after it perhaps the date of processing
    re.compile(rf"^m_\d{{7}}_[ns][ew]_\d{{1,2}}_[0-9a-z]+_{DAY}(?:_|$)", re.IGNORECASE),
]


class Georeference(NamedTuple):
    """Where and when an image was taken. None: its file doesn't say."""

    crs: str | None = None  # EPSG:<code>, or WKT
    # left, bottom, right, top, in the CRS or, without one, in the units of the file
    bounds: tuple[float, float, float, float] | None = None
    gsd: float | None = None  # meters per pixel
    date: str | None = None  # of acquisition, YYYY-MM-DD


def read_georeference(dataset: Any, window: tuple[int, int, int, int], name: str) -> Georeference:
    """The georeference of the center square of a window, which is what a tile shows.

    Args:
        dataset: an open rasterio dataset.
        window: row, column, height and width in pixels.
        name: the file's name, which may hold the date.

    Returns:
        The georeference. A rotated raster has no bounds. One without a CRS may have them, as the
        world file of an orthophoto tells, unless they are local, such as pixels.
    """
    day = find_date(dataset.tags(), name)
    crs, transform = horizontal_crs(dataset.crs), dataset.transform
    if transform.is_identity or (not crs and _are_local(*dataset.bounds)):
        return Georeference(date=day)
    row, column, height, width = window
    side = min(height, width)
    top, left = row + (height - side) / 2, column + (width - side) / 2
    bounds = None
    if not transform.b and not transform.d:
        x0, y0 = transform * (left, top)
        x1, y1 = transform * (left + side, top + side)
        bounds = (x0, y1, x1, y0)
    # The height of a pixel, because a degree of longitude has another length at each latitude.
    _, y = transform * (left + side / 2, top + side / 2)
    meters = _meters_per_unit(crs, y) if crs else None
    gsd = hypot(transform.b, transform.e) * meters if meters else None
    return Georeference(_crs_name(crs) if crs else None, bounds, gsd, day)


def _are_local(left: float, bottom: float, right: float, top: float) -> bool:
    """Whether a raster's bounds touch or cross x = 0 or y = 0: its coordinates start in it.

    Those of a map don't, except for degrees at the equator and at Greenwich.
    """
    return any(
        abs(low + high) <= abs(high - low) * (1 + 1e-9)  # 1e-9: for rounding
        for low, high in ((left, right), (bottom, top))
    )


def _meters_per_unit(crs: Any, y: float) -> float | None:
    """Meters on the ground per unit of a CRS, around the coordinate `y`; None: unknown."""
    if crs.is_geographic:
        return METERS_PER_DEGREE
    if not crs.is_projected:
        return None
    meters = float(crs.linear_units_factor[1])
    # Its units are meters at the equator alone: elsewhere cos(latitude), which is this of y.
    return meters / cosh(y * meters / EARTH_RADIUS) if _is_mercator(crs) else meters


@lru_cache(maxsize=64)
def _is_mercator(crs: Any) -> bool:
    """Whether a CRS is Mercator, such as EPSG:3857 of web maps, and not transverse (UTM)."""
    return 'PROJECTION["Mercator_1SP"' in crs.to_wkt()


@lru_cache(maxsize=64)
def horizontal_crs(crs: Any) -> Any:
    """A CRS without heights: EPSG:25832 of EPSG:25832+7837, which software for drones writes."""
    from rasterio.crs import CRS

    if not crs or not crs.to_wkt().startswith("COMPD_CS"):
        return crs
    return CRS.from_user_input(crs.to_dict(projjson=True)["components"][0])


def short_name(crs: str) -> str:
    """EPSG:<code>, or the name in a WKT, which is long."""
    return crs.split('"')[1] if '"' in crs else crs


@lru_cache(maxsize=64)
def _crs_name(crs: Any) -> str:
    """EPSG:<code> if the CRS has one, or else its WKT. Cached: PROJ takes long to find a code."""
    return str(crs.to_string())


def log_systems(georeferences: Iterable[Georeference]) -> None:
    """Log whether rasters are in several CRS, or in none."""
    systems: Counter[str] = Counter()
    located = 0
    for georeference in georeferences:
        systems[georeference.crs or ""] += 1
        located += georeference.crs is None and georeference.bounds is not None
    count, without = systems.total(), systems.pop("", 0)
    if without:
        text = f"fetch_imagery: {without} of {count} tiles of rasters have no CRS"
        if located:
            text += f"; {located} of them have coordinates, which are taken as in one CRS"
        log(text)
    if len(systems) > 1:
        names = ", ".join(f"{count} in {short_name(crs)}" for crs, count in systems.most_common())
        log(f"fetch_imagery: tiles are in several CRS, each with its bounds in its own: {names}")


def find_date(tags: dict[str, str], name: str) -> str | None:
    """The date of acquisition: of a tag, of the file name, or else of the software's tag."""
    upper = {key.upper(): value for key, value in tags.items()}
    values = [upper[key] for key in DATE_TAGS if key in upper]
    stem = Path(name).stem
    values += [match["day"] for pattern in FILE_NAME_DATES if (match := pattern.search(stem))]
    values += [upper[SOFTWARE_DATE_TAG]] if SOFTWARE_DATE_TAG in upper else []
    return next(filter(None, map(_iso_date, values)), None)


def _iso_date(text: str) -> str | None:
    """A date from text that begins with 20200601, 2020-06-01, 2020:06:01 or 2020/06/01."""
    match = re.match(r"\s*(\d{4})([-:/]?)(\d{2})\2(\d{2})(?!\d)", text)
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[3]), int(match[4])).isoformat()
    except ValueError:
        return None
