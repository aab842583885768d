"""The ceiling of `classify`: the same network, trained on as many real tiles.

    python -m stages.runtime.launch ceiling

reads   classifier, classes, prompt.per_class, seed; data/imagery/{train,test},
        metrics/select.json, models/base/classifier
writes  metrics/ceiling_<label set>.json          scores on real tiles
        models/ceiling/<label set>.safetensors    bootstrapped accuracies, with which `classify`
                                                  compares its own

Of each class, it gets as many tiles as images were planned, however many `select` left: otherwise
the ceiling would fall with the images of a class.
One stage for both label sets, classes and scenes: starting up costs as much as training.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stages.common.artifacts import read_json, read_rows, write_json
from stages.common.class_names import slug
from stages.common.torch_setup import make_deterministic
from stages.evaluation.classifier_results import ClassifierResult
from stages.evaluation.label_sets import LABEL_SETS, number_scenes, read_label_set, refuse_one_class
from stages.evaluation.labeled_images import read_labeled_images
from stages.params import load
from stages.runtime.file_modes import follow_umask
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.runtime.resume_cache import resume_folder

TRAIN = "data/imagery/train"
TEST = "data/imagery/test"
OUT = Path("models/ceiling")


def main() -> None:
    params = load()
    classifier = params.classifier
    make_deterministic(params.seed)
    # Imported late: Lightning and TorchGeo need seconds to load.
    from stages.evaluation.classification import (
        average_results,
        jobs_fingerprint,
        jobs_per_seed,
        train_and_test_all,
    )

    # For each label set: draw training tiles, and plan a classifier for each seed.
    classes = params.used_classes()
    jobs = []
    sizes = {}
    for label_set in LABEL_SETS:
        class_names, class_of_scene = read_label_set(label_set, classes)
        if label_set == "lulc":
            class_of_train = number_scenes(classes)
            wanted, n_images = count_planned(class_names)
            counted_in = "metrics/select.json"
        else:
            class_of_train = class_of_scene
            wanted = count_sampled(class_of_scene, classifier.images_per_caption)
            n_images = sum(wanted.values())
            counted_in = TEST
        source, _ = read_labeled_images(
            TRAIN, "scene", class_of_train, classifier.resolution, wanted, params.seed
        )
        real, _ = read_labeled_images(TEST, "scene", class_of_scene, classifier.resolution)
        refuse_one_class(counted_in, sum(n > 0 for n in wanted.values()))
        refuse_one_class(TRAIN, len(np.unique(source.labels)))
        n_tiles = len(source.labels)
        sizes[label_set] = {"n_tiles": n_tiles, "n_wanted": n_images}
        if n_tiles != n_images:
            log(
                f"ceiling: {label_set}: {n_tiles} real training tiles, "
                f"while there are {n_images} generated images"
            )
        # Tiles of one scene may be in several splits: nothing is scored on these but the real test.
        source = source._replace(units=np.arange(n_tiles))
        jobs += jobs_per_seed(source, real, class_names, classifier, params.seed)

    # Train and test all of them, then average over the seeds of each label set. After a kill, those
    # that were finished are kept.
    with resume_folder("ceiling", jobs_fingerprint(jobs)) as cache:
        results = train_and_test_all(jobs, cache)
        OUT.mkdir(parents=True, exist_ok=True)
        for i, label_set in enumerate(LABEL_SETS):
            of_label_set = results[i * classifier.seeds : (i + 1) * classifier.seeds]
            metrics = average_results(of_label_set, "real_test")
            metrics["n_train"] = of_label_set[0].n_train
            metrics |= sizes[label_set] | {"seeds": classifier.seeds}
            metrics["cpu_threads"] = of_label_set[0].cpu_threads
            write_json(f"metrics/ceiling_{label_set}.json", metrics)
            write_accuracies(OUT / f"{label_set}.safetensors", of_label_set)


def write_accuracies(path: Path, results: list[ClassifierResult]) -> None:
    """Write the bootstrapped accuracies on real tiles of these results."""
    accuracies = [result.bootstrapped["real_test"]["overall_accuracy"] for result in results]
    save_file({"overall_accuracy": np.stack(accuracies)}, path)
    follow_umask(path.parent)


def count_planned(class_names: list[str]) -> tuple[dict[int, int], int]:
    """Class number -> number of its images that were planned, and how many of all were kept."""
    per_class = read_json("metrics/select.json")["per_class"]
    counts = [per_class.get(slug(name), {"kept": 0, "missing": 0}) for name in class_names]
    planned = {i: of_class["kept"] + of_class["missing"] for i, of_class in enumerate(counts)}
    return planned, sum(of_class["kept"] for of_class in counts)


def count_sampled(class_of_scene: dict[str, int], images_per_caption: int) -> dict[int, int]:
    """Class number -> number of its images that `sample@tuned` generates."""
    scenes = [row["scene"] for row in read_rows(TEST, ["scene"])]
    test_tiles = Counter(class_of_scene[scene] for scene in scenes if scene)
    return {i: n * images_per_caption for i, n in test_tiles.items()}


if __name__ == "__main__":
    run_stage(main, __doc__)
