"""What a classifier is asked: the seven LULC classes, or the scenes of the imagery; and the data for each question."""

import difflib

from stages.common.artifacts import read_rows
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

KEYS = ("lulc", "scenes")


def of_imagery(key: str, classes: dict[str, list[str]]) -> tuple[list[str], dict[str, int]]:
    """Names of the classes, and scene of the real imagery -> class number.

    lulc: by `classes` of params, less the scenes that no test tile shows, which are named in the log; scenes that are in
    none are no part of the question. scenes: those of the test tiles.
    """
    scenes = sorted({row["scene"] for row in read_rows("data/imagery/test", ["scene"])})
    if key == "scenes":
        return scenes, {scene: i for i, scene in enumerate(scenes)}
    names = list(classes)
    number = {scene: names.index(name) for name, members in classes.items() for scene in members}
    unmatched = [scene for scene in number if scene not in scenes]
    if len(unmatched) == len(number):
        exit_with_error(
            f"classes: none of its scenes is in data/imagery/test, which has {', '.join(scenes[:60])}"
        )
    for scene in unmatched:
        near = difflib.get_close_matches(scene, scenes, n=1)
        log(f"classes: no test image shows {scene}{f' (did you mean {near[0]}?)' if near else ''}")
    return names, {scene: i for scene, i in number.items() if scene in scenes}
