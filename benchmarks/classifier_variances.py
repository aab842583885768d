"""How much classifiers of several seeds differ: the variances that coverage_shares simulates with.

    python -m benchmarks.classifier_variances [--seeds 20]

Run it in the folder of a finished run. It trains the classifier of land cover on the synthetic
images and, as its ceiling, on real tiles, once for each seed, and tests all of them on the run's
real tiles. Prints JSON; benchmarks/results/classifier_variances.json keeps that of the demo.

The model of an image of class c that the classifier of seed s names rightly or wrongly (probit):
right where threshold(c) + seed(s) + seed and class(s, c) + image(i) + noise(s, i) > 0, all of them
normal, the noise with variance 1.
"""

import json

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_normal

from stages.ceiling import count_planned
from stages.common.torch_setup import make_deterministic
from stages.evaluation.label_sets import number_scenes, read_label_set
from stages.params import load
from stages.runtime.process import make_parser, start_process
from stages.runtime.resume_cache import resume_folder

TEST = "data/imagery/test"


def main() -> None:
    parser = make_parser("benchmarks.classifier_variances", __doc__)
    parser.add_argument("--seeds", type=int, default=20, help="classifiers of each kind")
    seeds = parser.parse_args().seeds
    start_process()
    labels, correct = train_classifiers(seeds)
    found = {name: estimate_model(values, labels) for name, values in correct.items()}
    shared = shared_difficulty(correct["classify"], correct["ceiling"], labels)
    counts = np.bincount(labels)
    report = {
        "seeds": seeds,
        "tiles": len(labels),
        "class_shares": (counts / len(labels)).round(4).tolist(),
        **found,
        # Correlation of the images' difficulty for the two kinds of classifiers.
        "shared_difficulty": round(shared, 3),
    }
    print(json.dumps(report, indent=2))


def train_classifiers(seeds: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Class numbers [N] of the real tiles, and which of them each classifier [seeds, N] names."""
    from stages.evaluation.classification import (
        jobs_fingerprint,
        jobs_per_seed,
        train_and_test_all,
    )
    from stages.evaluation.labeled_images import read_labeled_images

    params = load()
    make_deterministic(params.seed)
    config = params.classifier.model_copy(update={"seeds": seeds})
    names, class_of_scene = read_label_set("lulc", params.used_classes())
    class_of_name = {name: i for i, name in enumerate(names)}
    wanted, _ = count_planned(names)
    side = config.resolution
    real, _ = read_labeled_images(TEST, "scene", class_of_scene, side)
    synthetic, _ = read_labeled_images(
        "data/synthetic", "label", class_of_name, side, unit_column="row"
    )
    train = "data/imagery/train"
    class_of_train = number_scenes(params.used_classes())
    tiles, _ = read_labeled_images(train, "scene", class_of_train, side, wanted, params.seed)
    correct = {}
    for name, source in (("classify", synthetic), ("ceiling", tiles)):
        jobs = jobs_per_seed(source, real, names, config, params.seed)
        with resume_folder("benchmark_classifiers", jobs_fingerprint(jobs)) as cache:
            results = train_and_test_all(jobs, cache)
        predictions = np.stack([result.predictions["real_test"] for result in results])
        correct[name] = predictions == real.labels
    return real.labels, correct


def estimate_model(correct: np.ndarray, labels: np.ndarray) -> dict:
    """Accuracy of each class, and the standard deviations of the model's parts.

    They are estimated from pairs of answers: of two seeds on one image, of one seed on two images
    of one class, and of one seed on images of two classes.

    Args:
        correct: bool [S, N], S seeds.
        labels: class numbers [N], each with at least two images.
    """
    by_class = [correct[:, labels == label] for label in np.unique(labels)]
    counts = np.array([values.shape[1] for values in by_class])
    accuracies = np.stack([values.mean(1) for values in by_class])  # [K, S]
    shares = accuracies.mean(1).clip(0.5 / counts, 1 - 0.5 / counts)  # [K]
    thresholds = ndtri(shares)

    same_image = np.array([_both_right(values) for values in by_class]) - shares**2
    of_image = correlation(same_image, thresholds, thresholds, counts)
    # The noise of single images adds to the variance of a class's accuracy: subtract it.
    noise = np.array([values.var(0, ddof=1).sum() for values in by_class]) / counts**2
    same_class = (accuracies.var(1, ddof=1) - noise) * counts / (counts - 1)
    of_class = correlation(same_class, thresholds, thresholds, counts)
    first, second = np.triu_indices(len(counts), 1)
    other_class = np.cov(accuracies)[first, second]
    weights = counts[first] * counts[second]
    of_seed = correlation(other_class, thresholds[first], thresholds[second], weights)

    of_class = max(of_class, of_seed)
    total = 1 / (1 - of_image - of_class)  # variance, of which 1 is noise
    return {
        "class_accuracies": shares.round(4).tolist(),
        "seed_sd": round(float(np.sqrt(of_seed * total)), 3),
        "seed_class_sd": round(float(np.sqrt((of_class - of_seed) * total)), 3),
        "image_sd": round(float(np.sqrt(of_image * total)), 3),
    }


def shared_difficulty(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> float:
    """Correlation, within classes, of images' chances with two kinds of classifiers [S, N]."""
    common = own_first = own_second = 0.0
    for label in np.unique(labels):
        a = first[:, labels == label]
        b = second[:, labels == label]
        n = a.shape[1]
        common += n * float(np.cov(a.mean(0), b.mean(0))[0, 1])
        own_first += n * (_both_right(a) - a.mean() ** 2)
        own_second += n * (_both_right(b) - b.mean() ** 2)
    return min(common / float(np.sqrt(own_first * own_second)), 1.0)


def _both_right(correct: np.ndarray) -> float:
    """Share of pairs of seeds that are both right about an image, of bool [S, N]."""
    seeds = len(correct)
    right = correct.sum(0)
    return float((right * (right - 1)).mean() / (seeds * (seeds - 1)))


def correlation(
    covariances: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray
) -> float:
    """Correlation of normal variables whose signs have these covariances, on average (tetrachoric).

    Args:
        covariances: of "right" or "wrong" [K].
        first: thresholds [K] of the one variable.
        second: thresholds [K] of the other.
        weights: [K].
    """

    def excess(rho: float) -> float:
        expected = [
            multivariate_normal.cdf([a, b], cov=[[1, rho], [rho, 1]]) - ndtr(a) * ndtr(b)
            for a, b in zip(first, second)
        ]
        return float(weights @ (np.array(expected) - covariances))

    if excess(0) >= 0:
        return 0.0
    return float(brentq(excess, 0, 0.95, xtol=1e-4)) if excess(0.95) > 0 else 0.95


if __name__ == "__main__":
    main()
