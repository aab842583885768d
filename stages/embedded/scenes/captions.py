"""Write five captions in the manner of RSICD: short, lower case, one blank before the full stop."""

import numpy as np

# Every caption holds one of its scene's names; no two scenes share a name.
SCENE_NAMES: dict[str, tuple[str, ...]] = {
    "bareland": ("bare land", "bareland"),
    "desert": ("desert",),
    "farmland": ("farmland", "cropland"),
    "orchard": ("orchard",),
    "meadow": ("meadow", "grassland"),
    "forest": ("forest", "woodland"),
    "snowfield": ("snowfield", "snow field"),
    "lake": ("lake",),
    "coast": ("coast", "seaside"),
    "residential": ("residential area",),
    "airport": ("airport",),
    "parking": ("parking lot",),
}
# Scenes that RSICD also calls "a piece of ...".
PIECES = ("bareland", "desert", "farmland", "meadow", "forest", "snowfield")
LEADS = ("there is", "this is", "it is", "we can see", "the picture shows")


def write_captions(
    rng: np.random.Generator,
    scene: str,
    adjectives: list[str],
    details: list[str],
    neighbors: list[str],
    season: str,
) -> list[str]:
    """Write five captions that each name the scene and tell a random part of what was painted.

    Args:
        rng: draws the form and the parts of each caption.
        scene: a key of `SCENE_NAMES`.
        adjectives: of the scene, such as "dense".
        details: noun phrases for what the scene holds, such as "some trees".
        neighbors: phrases for what lies beside it, such as "near grass".
        season: such as "in winter"; "" where the image tells none.
    """
    forms = rng.permutation(6)[:5]
    return [_caption(rng, form, scene, adjectives, details, neighbors, season) for form in forms]


def _caption(
    rng: np.random.Generator,
    form: int,
    scene: str,
    adjectives: list[str],
    details: list[str],
    neighbors: list[str],
    season: str,
) -> str:
    """Write one caption in one of six forms; what a form lacks is replaced by a simpler one.

    0: there is a dense forest near grass in summer .
    1: many trees are in a dense forest near grass .
    2: a dense forest with many trees in summer .
    3: the forest near grass is dense in summer .
    4: a dense forest near grass in summer .
    5: the dense forest has many trees and some rocks .
    """
    name = SCENE_NAMES[scene][int(rng.integers(len(SCENE_NAMES[scene])))]
    some_adjectives = [word for word in dict.fromkeys(adjectives) if rng.random() < 0.65]
    piece = "piece of " if scene in PIECES and rng.random() < 0.5 else ""
    described = " ".join([*some_adjectives, name])
    thing = _with_article(piece + described)
    detail = str(rng.choice(details)) if details else ""
    where = [str(rng.choice(neighbors))] if neighbors and rng.random() < 0.65 else []
    when = [season] if season and rng.random() < 0.5 else []
    lead = str(rng.choice(LEADS))

    if form == 0 or (not detail and form in (1, 2, 5)):
        phrases = [lead, thing, *where, *when]
    elif form == 1:
        verb = "is" if detail.startswith("a ") else "are"
        phrases = [detail, verb, "in", thing, *where]
    elif form == 2:
        phrases = [thing, "with", detail, *when]
    elif form == 3 and adjectives:
        adjective = str(rng.choice(list(dict.fromkeys(adjectives))))
        phrases = ["the", name, *where, "is", adjective, *when]
    elif form == 5:
        two_details = [str(phrase) for phrase in rng.permutation(details)[:2]]
        phrases = ["the", described, "has", " and ".join(two_details)]
    elif where or when:
        phrases = [thing, *where, *when]
    else:
        phrases = [lead, thing]
    return " ".join(phrases) + " ."


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
