"""The seven LULC classes in words: what names each, how it is asked for, what describes a scene from above.

The one place where class wording stands. `names` are the plain names of scenes that show the class, `kinds` rarer ones;
either in a prompt says that it shows the class, and rules the six other classes out. `queries` are put to the index one
per attempt.
"""

import re
from functools import cache
from typing import NamedTuple

from stages.params import LULC_CLASSES


class Entry(NamedTuple):
    names: tuple[str, ...]  # a regular plural is implied
    kinds: tuple[str, ...]
    words: str  # of the class, for queries and for the nearest description
    looks: tuple[str, ...]  # how its surface looks from above: what composed prompts are made of
    parts: tuple[str, ...]  # what stands out in it


LEXICON: dict[str, Entry] = {
    "Bare Land": Entry(
        ("bare land", "bareland", "desert"),
        (
            "bare ground",
            "bare earth",
            "barren land",
            "badland",
            "sand dune",
            "dune",
            "salt flat",
            "gravel plain",
            "quarry",
        ),
        "bare land, bareland, desert, bare soil, sand, dunes, rock",
        ("brown", "dry", "pale", "rough", "yellow", "flat", "stony", "bright"),
        ("cracks", "ridges", "tracks", "rocks", "gullies", "stones"),
    ),
    "Crop Land": Entry(
        ("farmland", "cropland", "crop land"),
        (
            "crop field",
            "farm field",
            "wheat field",
            "maize field",
            "corn field",
            "rice field",
            "paddy field",
            "rice paddy",
            "ploughed field",
            "plowed field",
            "arable land",
            "agricultural field",
            "cultivated field",
        ),
        "crop land, farmland, cropland, fields, parcels, ploughed soil, crops",
        ("green", "yellow", "brown", "regular", "dense", "rectangular", "flat", "large"),
        ("rows", "stripes", "parcels", "edges", "roads", "strips"),
    ),
    "Cultivated Vegetation": Entry(
        ("orchard",),
        (
            "cultivated vegetation",
            "vineyard",
            "plantation",
            "olive grove",
            "citrus grove",
            "tree nursery",
            "tea garden",
        ),
        "orchard, cultivated vegetation, vineyard, plantation, rows of trees, regular grid of crowns",
        ("green", "regular", "dense", "dark", "young", "dry", "large", "narrow"),
        ("rows", "crowns", "lines", "tracks", "shadows", "terraces"),
    ),
    "Natural Vegetation": Entry(
        ("meadow", "grassland"),
        (
            "natural vegetation",
            "shrubland",
            "heath",
            "heathland",
            "steppe",
            "savanna",
            "savannah",
            "prairie",
            "pasture",
            "tundra",
            "scrubland",
            "moorland",
        ),
        "natural vegetation, meadow, grassland, grass, shrubs, heath, steppe",
        ("green", "smooth", "yellow", "sparse", "patchy", "dry", "wide", "irregular"),
        ("bushes", "patches", "paths", "trees", "shadows", "edges"),
    ),
    "Snow Ice": Entry(
        ("snowfield", "snow field"),
        (
            "snow ice",
            "glacier",
            "iceberg",
            "ice sheet",
            "ice floe",
            "ice cap",
            "sea ice",
            "snow",
            "ice",
        ),
        "snowfield, snow field, snow, ice, glacier, winter ground",
        ("white", "bright", "smooth", "grey", "blue", "flat", "rough", "wide"),
        ("shadows", "cracks", "ridges", "rocks", "tracks", "patches"),
    ),
    "Water Body": Entry(
        ("lake", "coast", "seaside"),
        (
            "river",
            "pond",
            "reservoir",
            "lagoon",
            "bay",
            "sea",
            "ocean",
            "water body",
            "body of water",
            "shore",
            "beach",
            "estuary",
        ),
        "water body, lake, coast, sea, river, pond, shore, open water",
        ("blue", "dark", "calm", "deep", "green", "shallow", "curved", "wide"),
        ("waves", "edges", "shores", "shadows", "rocks", "boats"),
    ),
    "Woody Vegetation": Entry(
        ("forest", "woodland"),
        ("woody vegetation", "rainforest", "jungle", "mangrove", "wood", "copse", "tree canopy"),
        "woody vegetation, forest, woodland, trees, dense canopy, crowns",
        ("dense", "dark", "green", "rough", "dry", "scattered", "large", "irregular"),
        ("crowns", "shadows", "edges", "paths", "clearings", "gaps"),
    ),
}
assert tuple(LEXICON) == LULC_CLASSES

# What a query adds to a class's words, one per attempt.
ASPECTS = (
    "seen from above, how it looks",
    "colour and texture",
    "shape, pattern and edges",
    "in summer and winter, seasons",
    "beside a road, neighbours",
    "a small, large, dense or sparse one",
)

# A sentence that describes a view holds words such as these.
VISUAL = frozenset(
    """
green brown yellow white grey gray blue black red orange dark light pale bright golden pink purple turquoise dense
sparse scattered smooth rough coarse fine flat steep narrow wide broad thin thick round straight curved irregular
regular rectangular square circular winding branching even uneven patchy mottled striped stripes rows row grid lines
line patches patch edge edges border bands band dots spots texture pattern shadow shadows carpet mosaic parcels strips
terraces crowns canopy summer winter spring autumn dry wet frozen snowy sunlit road track path bare muddy clear
shallow deep calm waves foam sandy rocky stony ripples ridges gullies cracks soil grass trees water sand rock rocks
bushes hedges covered surrounded divided
""".split()
)
# A sentence with one of these speaks about measuring, not about a view.
ABSTRACT = re.compile(
    r"\b("
    + "|".join(
        r"""
index indices ndvi band bands wavelength\w* infrared radar lidar sensor\w* satellite\w* spectr\w+ reflect\w+ accura\w+
classif\w+ class classes algorithm\w* network\w* model\w* dataset\w* data method\w* label\w* map maps mapped mapping pixel\w*
resolution\w* defin\w+ caption\w* percent cent backscatter\w* measur\w+ statistic\w* threshold\w* study studies paper figure
table species because legend confus\w+ mistak\w+ error\w* tells? words? differs? depend\w* nearly usually notes known
fifth third half quarter world may might can cannot same kinds? resembl\w+ tones? called common often names? named
""".split()
    )
    + r")\b",
    re.I,
)
# What fills the frame when an image model is asked for it: no view from above (the paper's pumpkins).
CLOSE_UP = re.compile(
    r"\b("
    + "|".join(
        """
pumpkins? apples? oranges lemons? bananas? melons? watermelons? tomatoes cabbages? carrots? strawberr(y|ies) berry berries
cherr(y|ies) olives grapes? fruits? vegetables kernels? cobs? pinecones? cones acorns? mushrooms? flowers? sunflowers? roses
tulips? blossoms? buds leaf leaves petals? twigs? snowflakes? icicles? snowm[ae]n droplets? pebbles faces? eyes hands? feet people
persons? man men woman women children farmers? hikers? skiers? swimmers? cows? cattle sheep horses? dogs? deer (polar )?bears? penguins?
seals? whales? animals? birds? gulls? ducks? swans? fish insects? butterfl(y|ies) bees? cars? tractors? bicycles?
""".split()
    )
    + r")\b",
    re.I,
)

# What cues say so that the image is one from above and of that size, whatever the words after them.
VIEWPOINT = re.compile(
    r"\b(satellite|aerial|overhead|nadir|orthophoto|bird'?s[- ]eye|from (above|space|the air)|top[- ]down)\b",
    re.I,
)
SCALE = re.compile(
    r"\b(resolution|scale|wide|metres?|meters?|km|kilomet(re|er)s?|altitude|distant|far)\b", re.I
)


@cache
def _pattern(terms: tuple[str, ...]) -> re.Pattern:
    return re.compile(
        r"\b("
        + "|".join(
            re.escape(t).replace(r"\ ", r"[\s-]") for t in sorted(terms, key=len, reverse=True)
        )
        + r")(e?s)?\b",
        re.I,
    )


def plainly_named(text: str, label: str) -> bool:
    """Whether a plain name of the class stands in the text."""
    return bool(_pattern(LEXICON[label].names).search(text))


def first_named(text: str, label: str) -> int:
    """How many words stand before the first name of the class; a large number where there is none."""
    match = _pattern(LEXICON[label].names + LEXICON[label].kinds).search(text)
    return len(text[: match.start()].split()) if match else 10**6


def named(text: str) -> dict[str, int]:
    """How often each class is named in a text; classes not named are left out."""
    counts = {
        label: len(_pattern(entry.names + entry.kinds).findall(text))
        for label, entry in LEXICON.items()
    }
    return {label: count for label, count in counts.items() if count}


def about(title: str, text: str) -> str | None:
    """The class a passage is about: the one its paper's title names, else the one its text names most; None if neither."""
    for source in (title, text):
        ranked = sorted(named(source).items(), key=lambda item: -item[1])
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            return ranked[0][0]
    return None


def query(label: str, attempt: int) -> str:
    """What the index is asked for a class at an attempt (from 0)."""
    return f"{LEXICON[label].words}: {ASPECTS[attempt % len(ASPECTS)]}"
