"""The words for the seven land-cover classes: their names, index queries and scene descriptions.

All wording of classes is in this module. A text that contains one of a class's `names` or `kinds`
shows that class, and a prompt for any other class must not contain it.
"""

import re
from functools import cache
from typing import NamedTuple

from stages.params import LULC_CLASSES


class ClassWords(NamedTuple):
    """What is said of one class."""

    names: tuple[str, ...]  # plain names of scenes that show the class; a regular plural is implied
    kinds: tuple[str, ...]  # rarer names of such scenes
    description: str  # used in index queries and as the class's text in the embedding space
    looks: tuple[str, ...]  # adjectives of its surface from above, for composed prompts
    parts: tuple[str, ...]  # details visible in it, for composed prompts


LEXICON: dict[str, ClassWords] = {
    "Bare Land": ClassWords(
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
    "Crop Land": ClassWords(
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
    "Cultivated Vegetation": ClassWords(
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
        "orchard, cultivated vegetation, vineyard, plantation, rows of trees, "
        "regular grid of crowns",
        ("green", "regular", "dense", "dark", "young", "dry", "large", "narrow"),
        ("rows", "crowns", "lines", "tracks", "shadows", "terraces"),
    ),
    "Natural Vegetation": ClassWords(
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
    "Snow Ice": ClassWords(
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
    "Water Body": ClassWords(
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
    "Woody Vegetation": ClassWords(
        ("forest", "woodland"),
        ("woody vegetation", "rainforest", "jungle", "mangrove", "wood", "copse", "tree canopy"),
        "woody vegetation, forest, woodland, trees, dense canopy, crowns",
        ("dense", "dark", "green", "rough", "dry", "scattered", "large", "irregular"),
        ("crowns", "shadows", "edges", "paths", "clearings", "gaps"),
    ),
}
assert tuple(LEXICON) == LULC_CLASSES

# Aspects of a scene. Each attempt's index query adds another one, and so does each request to a
# language model but the first.
ASPECTS = (
    "seen from above, how it looks",
    "colour and texture",
    "shape, pattern and edges",
    "in summer and winter, seasons",
    "beside a road, neighbours",
    "a small, large, dense or sparse one",
)

# Words of sentences that describe a view.
VISUAL_WORDS = frozenset(
    """
green brown yellow white grey gray blue black red orange dark light pale bright golden pink purple
turquoise dense sparse scattered smooth rough coarse fine flat steep narrow wide broad thin thick
round straight curved irregular regular rectangular square circular winding branching even uneven
patchy mottled striped stripes rows row grid lines line patches patch edge edges border bands band
dots spots texture pattern shadow shadows carpet mosaic parcels strips terraces crowns canopy
summer winter spring autumn dry wet frozen snowy sunlit road track path bare muddy clear shallow
deep calm waves foam sandy rocky stony ripples ridges gullies cracks soil grass trees water sand
rock rocks bushes hedges covered surrounded divided
""".split()
)


def _any_of(words: str) -> re.Pattern:
    """Match any of the blank-separated expressions as a whole word."""
    return re.compile(r"\b(" + "|".join(words.split()) + r")\b", re.I)


# A sentence with one of these words is about measurement or naming, not about a view.
NOT_A_VIEW = _any_of(
    r"""
index indices ndvi band bands wavelength\w* infrared radar lidar sensor\w* satellite\w* spectr\w+
reflect\w+ accura\w+ classif\w+ class classes algorithm\w* network\w* model\w* dataset\w* data
method\w* label\w* map maps mapped mapping pixel\w* resolution\w* defin\w+ caption\w* percent cent
backscatter\w* measur\w+ statistic\w* threshold\w* study studies paper figure table species
because legend confus\w+ mistak\w+ error\w* tells? words? differs? depend\w* nearly usually notes
known fifth third half quarter world may might can cannot same kinds? resembl\w+ tones? called
common often names? named
"""
)

# An image model that reads one of these words draws a close-up (the paper's pumpkins).
CLOSE_UP = _any_of(
    """
pumpkins? apples? oranges lemons? bananas? melons? watermelons? tomatoes cabbages? carrots?
strawberr(y|ies) berry berries cherr(y|ies) olives grapes? fruits? vegetables kernels? cobs?
pinecones? cones acorns? mushrooms? flowers? sunflowers? roses tulips? blossoms? buds leaf leaves
petals? twigs? snowflakes? icicles? snowm[ae]n droplets? pebbles faces? eyes hands? feet people
persons? man men woman women children farmers? hikers? skiers? swimmers? cows? cattle sheep
horses? dogs? deer (polar )?bears? penguins? seals? whales? animals? birds? gulls? ducks? swans?
fish insects? butterfl(y|ies) bees? cars? tractors? bicycles?
"""
)

# The positive cues must match both patterns. Without a viewpoint or a scale, the words that follow
# them in a prompt decide what fills the frame.
VIEWPOINT = re.compile(
    r"\b(satellite|aerial|overhead|nadir|orthophoto|bird'?s[- ]eye|from (above|space|the air)|"
    r"top[- ]down)\b",
    re.I,
)
SCALE = re.compile(
    r"\b(resolution|scale|wide|metres?|meters?|km|kilomet(re|er)s?|altitude|distant|far)\b", re.I
)


def has_plain_name(text: str, label: str) -> bool:
    """Return whether the text contains one of the plain names of a class."""
    return bool(_pattern(LEXICON[label].names).search(text))


def words_before_name(text: str, label: str) -> int:
    """Count the words before the first name of a class; 10**6 where the text does not name it."""
    match = _pattern(LEXICON[label].names + LEXICON[label].kinds).search(text)
    return len(text[: match.start()].split()) if match else 10**6


def count_class_names(text: str) -> dict[str, int]:
    """Count how often a text names each class; classes that it does not name are left out."""
    counts = {
        label: len(_pattern(words.names + words.kinds).findall(text))
        for label, words in LEXICON.items()
    }
    return {label: count for label, count in counts.items() if count}


def dominant_class(title: str, text: str) -> str | None:
    """Return the class that a passage is about.

    It is the class that the paper's title names most often, or else the one that the text names
    most often; None where neither has a single most frequent class.
    """
    for source in (title, text):
        ranked = sorted(count_class_names(source).items(), key=lambda item: -item[1])
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            return ranked[0][0]
    return None


def retrieval_query(label: str, attempt: int) -> str:
    """Return the index query for a class at an attempt, counted from 0."""
    return f"{LEXICON[label].description}: {ASPECTS[attempt % len(ASPECTS)]}"


@cache
def _pattern(terms: tuple[str, ...]) -> re.Pattern:
    """Match any of the terms as whole words, in the singular or with a regular plural."""
    longest_first = sorted(terms, key=len, reverse=True)
    # A blank in a term also matches a hyphen.
    alternatives = (re.escape(term).replace(r"\ ", r"[\s-]") for term in longest_first)
    return re.compile(r"\b(" + "|".join(alternatives) + r")(e?s)?\b", re.I)
