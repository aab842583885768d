"""Five captions in the manner of RSICD: short, lower case, one blank before the full stop."""

import numpy as np

# every caption holds one of its scene's names; no two scenes share a name
NAMES: dict[str, tuple[str, ...]] = {
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
# ground RSICD speaks of by the piece
PIECES = ("bareland", "desert", "farmland", "meadow", "forest", "snowfield")
LEADS = ("there is", "this is", "it is", "we can see", "the picture shows")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def captions(
    rng: np.random.Generator,
    scene: str,
    adjectives: list[str],
    details: list[str],
    near: list[str],
    season: str,
) -> list[str]:
    """Five sentences that each name the scene and tell some of what was painted.

    `adjectives`, `details` (noun phrases), `near` (neighbors) and `season` must all be true of the
    image; each sentence takes a random part of them.
    """
    out = []
    for k in rng.permutation(6)[:5]:
        name = NAMES[scene][int(rng.integers(len(NAMES[scene])))]
        some = [a for a in dict.fromkeys(adjectives) if rng.random() < 0.65]
        piece = "piece of " if scene in PIECES and rng.random() < 0.5 else ""
        thing = _article(piece + " ".join([*some, name]))
        plain = " ".join([*some, name])
        detail = str(rng.choice(details)) if details else ""
        tail = [str(rng.choice(near))] if near and rng.random() < 0.65 else []
        when = [season] if season and rng.random() < 0.5 else []
        lead = str(rng.choice(LEADS))
        if k == 0 or (not detail and k in (1, 2, 5)):
            words = [lead, thing, *tail, *when]
        elif k == 1:
            words = [detail, "is" if detail.startswith("a ") else "are", "in", thing, *tail]
        elif k == 2:
            words = [thing, "with", detail, *when]
        elif k == 3 and adjectives:
            shade = str(rng.choice(list(dict.fromkeys(adjectives))))
            words = ["the", name, *tail, "is", shade, *when]
        elif k == 5:
            two = list(rng.permutation(details))[:2]
            words = ["the", plain, "has", " and ".join(map(str, two))]
        else:
            words = [thing, *tail, *when]
            if len(words) == 1:
                words = [lead, *words]
        out.append(" ".join(words) + " .")
    return out
