"""The two label sets of the classifiers: the classes of params.yaml, or the scenes."""

import difflib

from stages.common.artifacts import read_rows
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

LABEL_SETS = ("lulc", "scenes")


def read_label_set(
    label_set: str, classes: dict[str, list[str]]
) -> tuple[list[str], dict[str, int]]:
    """Class names, and the class number of each scene of the real test tiles that has one.

    `lulc`: `classes` (those of params.yaml that are used) and their scenes; a scene that no test
    tile shows is left out and logged. `scenes`: each scene is a class. Tiles without a scene have
    none.

    Raises:
        SystemExit: no test tile shows any class.
    """
    scenes = sorted({row["scene"] for row in read_rows("data/imagery/test", ["scene"])} - {""})
    if label_set == "scenes":
        return scenes, {scene: i for i, scene in enumerate(scenes)}
    class_of_scene = number_scenes(classes)
    missing = [scene for scene in class_of_scene if scene not in scenes]
    if len(missing) == len(class_of_scene):
        exit_with_error(
            "classes: none of its scenes is in data/imagery/test, "
            f"which has {', '.join(scenes[:60])}"
        )
    for scene in missing:
        similar = difflib.get_close_matches(scene, scenes, n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        log(f"classes: no test image shows {scene}{hint}")
    return list(classes), {
        scene: number for scene, number in class_of_scene.items() if scene not in missing
    }


def number_scenes(classes: dict[str, list[str]]) -> dict[str, int]:
    """The class number of each scene of `classes`, whether a test tile shows it or not.

    Generated images show scenes that no test tile shows, too.
    """
    return {scene: i for i, scenes in enumerate(classes.values()) for scene in scenes}


def refuse_one_class(where: str, class_count: int) -> None:
    """Exit with an error that names `where` the images are, if they show fewer than two classes."""
    if class_count < 2:
        exit_with_error(
            f"{where}: images of {class_count} class(es); a classifier needs at least 2"
        )
