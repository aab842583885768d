"""Train a classifier on generated images alone and test it on real tiles.

    python -m stages.runtime.launch classify lulc|scenes

reads   classifier, classes, prompt.per_class, seed; data/synthetic (lulc) or
        data/samples/tuned (scenes), data/imagery/test, models/base/classifier, models/ceiling,
        metrics/ceiling_<label set>.json
writes  metrics/classify_<label set>.json                 scores on real and synthetic test images
        metrics/plots/confusion_<label set>.csv           actual, predicted: of each real tile, by
                                                          the classifier of each seed
        metrics/plots/accuracy_by_class_<label set>.csv   class, accuracy, its interval, n
        models/classifier/<label set>                     the classifier of the first seed

lulc (land use and land cover) trains on the synthetic data set, with the classes of params.yaml;
scenes on the tuned model's images of the test captions (zero-shot accuracy).
"""

from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from stages.common.artifacts import read_json, write_json
from stages.common.csv_files import write_csv
from stages.common.torch_setup import make_deterministic
from stages.evaluation.classifier_results import ClassifierResult
from stages.evaluation.label_sets import LABEL_SETS, read_label_set, refuse_one_class
from stages.evaluation.labeled_images import read_labeled_images
from stages.evaluation.networks import save_network
from stages.evaluation.scores import class_accuracy, share_of_ceiling
from stages.params import load
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.runtime.resume_cache import resume_folder

# Label set -> the images, their column of labels, and the column that tells their prompts apart.
SOURCES = {
    "lulc": ("data/synthetic", "label", "row"),
    "scenes": ("data/samples/tuned", "scene", "filename"),
}
TEST = "data/imagery/test"
FEW_SITES = 5


def main(label_set: str) -> None:
    params = load()
    classifier = params.classifier
    classes = params.used_classes()
    make_deterministic(params.seed)
    # Imported late: Lightning and TorchGeo need seconds to load.
    from stages.evaluation.classification import (
        average_results,
        jobs_fingerprint,
        jobs_per_seed,
        train_and_test_all,
    )

    # Read the generated images and the real test tiles.
    class_names, class_of_scene = read_label_set(label_set, classes)
    class_of_name = {name: i for i, name in enumerate(class_names)}
    folder, column, unit_column = SOURCES[label_set]
    source, unknown = read_labeled_images(
        folder, column, class_of_name, classifier.resolution, unit_column=unit_column
    )
    real, unlabeled = read_labeled_images(TEST, "scene", class_of_scene, classifier.resolution)
    without_images = names_without(class_names, source.labels)
    refuse_one_class(folder, len(class_names) - len(without_images))
    unused = [name for name in params.classes if name not in classes]
    log_few_sites(real.units)
    log_left_out(folder, unused if label_set == "lulc" else [], without_images, unknown)

    # Train and test a classifier for each seed. After a kill, those that were finished are kept.
    jobs = jobs_per_seed(source, real, class_names, classifier, params.seed)
    with resume_folder(f"classify_{label_set}", jobs_fingerprint(jobs)) as cache:
        results = train_and_test_all(jobs, cache)

        # Write the metrics.
        metrics: dict = {}
        for test_set in ("synthetic_test", "real_test"):
            metrics[test_set] = average_results(results, test_set)
        metrics["real_test"] |= compare_with_ceiling(label_set, metrics["real_test"], results)
        metrics |= describe_test_set(label_set, real.labels, class_names, class_of_scene, classes)
        n_train = round(float(np.mean([result.n_train for result in results])))
        metrics |= {"n_train": n_train, "seeds": len(results)}
        metrics["cpu_threads"] = results[0].cpu_threads
        write_json(f"metrics/classify_{label_set}.json", metrics)
        accuracy = metrics["real_test"]["overall_accuracy"]
        log(f"classify: {label_set}: accuracy {accuracy:.3f} on {len(real.labels)} real tiles")

        # Keep the first classifier; plot the errors of all.
        output = Path("models/classifier", label_set)
        save_network(output, results[0].network, results[0].config)
        context = describe_inputs(folder, class_names, real.labels, without_images, unlabeled)
        write_json(output / "context.json", context)
        write_plots(label_set, class_names, real.labels, real.units, results)


def log_few_sites(units: np.ndarray) -> None:
    """Log if the real tiles were cut from few sites. units: number of each tile's site [N]."""
    sites = len(np.unique(units))
    if sites < min(FEW_SITES, len(units)):
        log(f"classify: the test tiles were cut from {sites} site(s): the intervals are wide")


def log_left_out(
    folder: str, unused: list[str], without_images: list[str], unknown: Counter[str]
) -> None:
    """Name the classes of 0 prompts, those without an image, and images of no class."""
    if unused:
        log(f"classify: classes of 0 prompts are left out: {', '.join(unused)}")
    if without_images:
        log(f"classify: {folder}: no image of {', '.join(without_images)}")
    if unknown:
        log(f"classify: {folder}: images of unknown classes are left out: {dict(unknown)}")


def describe_inputs(
    folder: str,
    class_names: list[str],
    real_labels: np.ndarray,
    without_images: list[str],
    unlabeled: Counter[str],
) -> dict:
    """What the classifier was trained and tested on. real_labels: class numbers [N]."""
    return {
        "weights": read_json("models/base/classifier/SOURCE.json")["source"],
        "trained_on": folder,
        "tested_on": TEST,
        "classes_without_real": names_without(class_names, real_labels),
        "classes_without_images": without_images,
        "scenes_of_no_class": dict(sorted(unlabeled.items())),
    }


def names_without(class_names: list[str], labels: np.ndarray) -> list[str]:
    """The classes that none of N images shows. labels: class numbers [N]."""
    shown = set(labels.tolist())
    return [name for i, name in enumerate(class_names) if i not in shown]


def compare_with_ceiling(
    label_set: str, scores: dict[str, float], results: list[ClassifierResult]
) -> dict:
    """`share_of_ceiling` of these results and their average scores on real tiles."""
    ceiling = read_json(f"metrics/ceiling_{label_set}.json")
    ceiling_samples = load_file(f"models/ceiling/{label_set}.safetensors")["overall_accuracy"]
    samples = np.stack([result.bootstrapped["real_test"]["overall_accuracy"] for result in results])
    return share_of_ceiling(scores, ceiling, samples, ceiling_samples)


def describe_test_set(
    label_set: str,
    labels: np.ndarray,
    class_names: list[str],
    class_of_scene: dict[str, int],
    classes: dict[str, list[str]],
) -> dict[str, float]:
    """What a guess would score on the real tiles [N], and what they don't show."""
    counts = np.bincount(labels, minlength=len(class_names))  # [K]
    scene_count = sum(len(scenes) for scenes in classes.values())
    return {
        "chance": 1 / len(class_names),
        "majority": float(counts.max() / counts.sum()),
        "classes": len(class_names),
        "scenes_without_real": scene_count - len(class_of_scene) if label_set == "lulc" else 0,
        "classes_without_real": int((counts == 0).sum()),
    }


def write_plots(
    label_set: str,
    class_names: list[str],
    labels: np.ndarray,
    units: np.ndarray,
    results: list[ClassifierResult],
) -> None:
    """Write the (actual, predicted) pairs of the confusion matrix, and each class's accuracy.

    Both are of the classifiers of all seeds together.

    Args:
        label_set: lulc or scenes.
        class_names: in the order of their numbers.
        labels: class number of each real tile [N].
        units: number of each tile's site [N].
        results: one for each seed.
    """
    pairs = [
        {"actual": class_names[actual], "predicted": class_names[predicted]}
        for result in results
        for actual, predicted in zip(labels, result.predictions["real_test"])
    ]
    write_csv(f"metrics/plots/confusion_{label_set}.csv", pairs, ["actual", "predicted"])
    correct = np.stack([result.predictions["real_test"] == labels for result in results])  # [S, N]
    rows = []
    for i, name in enumerate(class_names):
        of_class = labels == i  # [N]
        if of_class.any():
            accuracy = class_accuracy(correct[:, of_class], units[of_class])
            rows.append({"class": name, **accuracy, "n": int(of_class.sum())})
    columns = ["class", "accuracy", "accuracy_lo", "accuracy_hi", "n"]
    write_csv(f"metrics/plots/accuracy_by_class_{label_set}.csv", rows, columns)


if __name__ == "__main__":
    run_stage(main, __doc__, label_set=LABEL_SETS)
