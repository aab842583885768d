"""The words of views from above that belong to no class: aspects, visual words, close-ups.

The classes' own words are in `stages.text.class_words`.
"""

import re

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

# An image model that reads one of these words draws a close-up (the paper's pumpkins). One car is
# one; rows of cars are seen from above.
CLOSE_UP = _any_of(
    """
pumpkins? apples? oranges lemons? bananas? melons? watermelons? tomatoes cabbages? carrots?
strawberr(y|ies) berry berries cherr(y|ies) olives grapes? fruits? vegetables kernels? cobs?
pinecones? cones acorns? mushrooms? flowers? sunflowers? roses tulips? blossoms? buds leaf leaves
petals? twigs? snowflakes? icicles? snowm[ae]n droplets? pebbles eyes hands? feet people
persons? man men woman women children farmers? hikers? skiers? swimmers? cows? cattle sheep
horses? dogs? deer (polar )?bears? penguins? seals? whales? animals? birds? gulls? ducks? swans?
fish insects? butterfl(y|ies) bees? car tractors? bicycles?
"""
)

# An image model that reads one of these words draws a view from the ground.
GROUND_VIEW = re.compile(
    r"\b(sky|skies|horizons?|foreground|in the (background|distance)|sunsets?|sunrises?)\b", re.I
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
