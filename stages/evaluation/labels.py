"""What a classifier is asked: the seven LULC classes, or the scenes of the imagery; and the data for each question."""

from stages.common.artefacts import read_rows
from stages.common.fail import fail

KEYS = ("lulc", "scenes")


def check(key: str) -> None:
    if key not in KEYS:
        fail(f"classifier: {key!r} is not a question; say {' or '.join(KEYS)}")


def of_imagery(key: str, classes: dict[str, list[str]]) -> tuple[list[str], dict[str, int]]:
    """Names of the classes, and scene of the real imagery -> class number.

    lulc: by `classes` of params; scenes that are in none are no part of the question. scenes: those of the test tiles.
    """
    scenes = sorted({row["scene"] for row in read_rows("data/imagery/test", ["scene"])})
    if key == "scenes":
        return scenes, {scene: i for i, scene in enumerate(scenes)}
    names = list(classes)
    number = {scene: names.index(name) for name, members in classes.items() for scene in members}
    if not set(number) & set(scenes):
        fail(f"classes: none of its scenes is in data/imagery/test, which has {', '.join(scenes[:12])}")
    return names, number
