"""Memorization: are generated images nearer to training images than held-out real images are?"""

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv

from stages.common.rng import rng
from stages.evaluation.intervals import effective_size
from stages.evaluation.prdc import row_blocks

PERCENTILE = 1  # of the held-out images' distances; what is nearer is a near-copy
CLOSEST_PAIRS = 24  # pairs of generated and training image that are listed
MIN_HELD_OUT = 50  # held-out images, at least, that tell which share of near-copies to expect
COMPARED = 10_000  # images of a set, at most: the time is in proportion to the training images
QUANTILES = (np.arange(100) + 0.5) / 100  # a mean over a distribution is taken at these

Search = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def compare_with_training_images(
    sets: dict[str, np.ndarray],
    prompts: list[int],
    labels: dict[str, list[str]],
    sites: list[str],
    search: Search,
    seed: int,
) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """How near generated and held-out real images are to their nearest training images.

    Of a set of more than 10,000 images, 10,000 are drawn. They are compared with all training
    images. Some classes lie nearer to their training images than others: synthetic images are
    judged by held-out ones in their mix of classes.

    Args:
        sets: features [N, D] of `train`, `test`, `tuned` and `synthetic`.
        prompts: number of each synthetic image's prompt; images of one prompt are alike.
        labels: class of each image of `test` and of `synthetic`.
        sites: what each image of `test` was cut from.
        search: `nearest_neighbors` or `nearest_neighbors_dihedral`.
        seed: of the drawing.

    Returns:
        `memorization_scores` of `tuned` and of `synthetic`; and the pairs of a tuned image and its
        nearest training image that are closest, as {generated, training: index into the set,
        distance, real_percentile: share of the held-out real images that are as near or nearer}.
        Where too few held-out images show the classes of the synthetic ones, those are judged by
        all of them, and have no `memorized_expected`; `drop_unknown` says who else has none.
    """
    compared = {
        name: np.sort(rng(seed, "memorization", name).permutation(len(sets[name]))[:COMPARED])
        for name in ("test", "tuned", "synthetic")
    }  # [<= 10,000] indices into each set
    held_out, _ = search(sets["test"][compared["test"]], sets["train"])
    tuned, neighbors = search(sets["tuned"][compared["tuned"]], sets["train"])
    synthetic, _ = search(sets["synthetic"][compared["synthetic"]], sets["train"])
    test_labels, synthetic_labels = (
        np.array(labels[name])[compared[name]] for name in ("test", "synthetic")
    )
    in_mix = draw_class_mix(test_labels, synthetic_labels, rng(seed, "memorization mix"))
    has_mix = len(in_mix) >= MIN_HELD_OUT
    scores = {
        "tuned": memorization_scores(tuned, held_out),
        "synthetic": memorization_scores(
            synthetic,
            held_out[in_mix] if has_mix else held_out,
            np.array(prompts)[compared["synthetic"]],
        ),
    }
    drop_unknown(scores, has_mix, sites)
    pairs = [
        {
            "generated": int(compared["tuned"][i]),
            "training": int(neighbors[i]),
            "distance": float(tuned[i]),
            "real_percentile": float((held_out <= tuned[i]).mean()),
        }
        for i in np.argsort(tuned, kind="stable")[:CLOSEST_PAIRS]
    ]
    return scores, pairs


def drop_unknown(scores: dict[str, dict[str, float]], has_mix: bool, sites: list[str]) -> None:
    """Drop the expected shares that aren't known from scores of `compare_with_training_images`.

    Where held-out images share sites, no set has one, nor an interval: other images of the sites in
    `train` lie nearer to the training images than those of other sites do, and how much nearer the
    held-out ones can't tell.
    """
    if not has_mix:
        del scores["synthetic"]["memorized_expected"]
    if len(set(sites)) < len(sites):
        for values in scores.values():
            for key in ("memorized_expected", "memorized_lo", "memorized_hi"):
                values.pop(key, None)


def draw_class_mix(
    labels: np.ndarray, wanted: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Indices of images in the mix of classes of others: as many as the rarest class allows.

    Args:
        labels: class [N] of each image that may be drawn.
        wanted: class [M] of each image of the others.
        generator: draws those of each class.
    """
    classes, counts = np.unique(wanted, return_counts=True)
    rows = [np.flatnonzero(labels == name) for name in classes]
    size = min(len(of_class) / count for of_class, count in zip(rows, counts))  # drawn / wanted
    chosen = [
        generator.permutation(of_class)[: round(size * count)]
        for of_class, count in zip(rows, counts)
    ]
    return np.sort(np.concatenate(chosen))


def memorization_scores(
    generated: np.ndarray, held_out: np.ndarray, prompts: np.ndarray | None = None
) -> dict[str, float]:
    """Share of near-copies of training images, with a 95 % interval, and median distances.

    A near-copy is nearer to its nearest training image than 99 % of the held-out real images are
    to theirs. A model that copies scores 1. One that has learned the distribution and not the
    images scores `memorized_expected` on average: 0.014 with 256 held-out images and 0.085 with
    12, whose lowest percentile is less sure. Where the interval lies above that, the model copies,
    or its images have too little variety or detail: they lie nearer to the mean of the training
    images, and so to each of them.

    Args:
        generated: distance [N] of each generated image to its nearest training image.
        held_out: the same [M] of held-out real images.
        prompts: number [N] of each generated image's prompt; None: each has its own.
    """
    limit = float(np.percentile(held_out, PERCENTILE))
    if limit > 0:
        near = generated < limit
        rank = 1 + PERCENTILE / 100 * (len(held_out) - 1)  # as np.percentile interpolates
    else:  # held-out images that are themselves in the training set: exact copies alone count
        near = generated <= 0
        rank = float((held_out <= 0).sum())
    n = float(len(generated))
    if prompts is not None:
        n = effective_size(near, prompts)
    low, high = near_copy_interval(float(near.mean()) * n, n, rank, len(held_out))
    return {
        "memorized": float(near.mean()),
        "memorized_lo": low,
        "memorized_hi": high,
        "memorized_expected": rank / (len(held_out) + 1),
        "limit": limit,
        "median": float(np.median(generated)),
        "median_real": float(np.median(held_out)),
        "n": len(generated),
    }


def describe_near_copies(images: dict[str, dict]) -> dict[str, str]:
    """Say which sets have more near-copies of training images, in pixels, than expected.

    The shares in features aren't judged: each further share would warn of about 2 % of models that
    copy nothing. Nor are those whose expected share isn't known.

    Args:
        images: metrics/images.json.

    Returns:
        Image set -> share of its near-copies, and what may cause it.
    """
    return {
        name: f"{values['memorized']:.3f} of the images are nearer to a training tile in pixels "
        f"than 99 % of held-out tiles are (expected: {values['memorized_expected']:.3f}): they are "
        "copies, or have too little variety or detail"
        for name, values in images["pixels"].items()
        if values.get("memorized_lo", 0) > values.get("memorized_expected", 1)
    }


def near_copy_interval(
    copies: float, n: float, rank: float, held_out_count: int
) -> tuple[float, float]:
    """95 % interval of the share of near-copies, with the noise of the limit itself.

    The model: a share of the generated images are copies, the others are drawn as held-out images
    are. These lie below the limit, the held-out image of some rank, with a chance that is itself
    random: Beta(rank, held_out_count + 1 - rank). (Below the expected share, the chance is smaller
    by a factor.) The interval holds the shares for which the number found is none of the 2.5 %
    lowest or highest, counting half of the number itself (mid-p; Lancaster 1961).

    Args:
        copies: near-copies found.
        n: generated images; both numbers may be effective ones, of dependent images.
        rank: that of the limit among the held-out images' distances, from 1; a fraction where the
            limit lies between two of them.
        held_out_count: number of held-out images.
    """
    chances = betaincinv(rank, held_out_count + 1 - rank, QUANTILES)  # [100]
    expected = rank / (held_out_count + 1)

    def fewer(share: float) -> float:
        """Probability of fewer near-copies than found, with half of that of as many."""
        copied = max((share - expected) / (1 - expected), 0.0)
        p = copied + (1 - copied) * chances * min(share / expected, 1.0)
        below = betainc(n - copies + 1, copies, 1 - p) if copies > 0 else 0.0
        up_to = betainc(n - copies, copies + 1, 1 - p) if copies < n else 1.0
        return float(np.mean(below) + np.mean(up_to)) / 2

    low = 0.0
    if copies > 0:
        low = brentq(lambda share: fewer(share) - 0.975, 0, 1, xtol=1e-6)
    high = 1.0
    if copies < n:
        high = brentq(lambda share: fewer(share) - 0.025, 0, 1, xtol=1e-6)
    return float(low), float(high)


def nearest_neighbors(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] of each row of x [N, D] to the nearest row of train [M, D]; its index [N].

    The search is in float32. What its rounding leaves open is compared in float64: the result is
    that of float64 alone, in a third of the time.
    """
    # Distances don't change when both sets are moved; small norms keep digits.
    center = train.mean(0, dtype=np.float64)
    x32 = (x - center).astype(np.float32)
    train32 = (train - center).astype(np.float32)
    half_norms = np.einsum("ij,ij->i", train32, train32) / 2  # [M]
    rounding = rounding_bound(x32, half_norms)  # [N]
    distances = np.empty(len(x))
    neighbors = np.empty(len(x), int)
    for block in row_blocks(len(x), len(train)):
        # |x - t|^2 = |x|^2 + 2 (|t|^2 / 2 - x.t), of which the first term is the same for all t.
        values = half_norms - x32[block] @ train32.T  # [B, M]
        limits = values.min(1) + 2 * rounding[block]  # [B]
        for i, row, limit in zip(range(block.start, block.stop), values, limits):
            candidates = np.flatnonzero(row <= limit)
            difference = train[candidates].astype(np.float64) - x[i]  # [C, D]
            squared = np.einsum("ij,ij->i", difference, difference)
            nearest = squared.argmin()
            neighbors[i] = candidates[nearest]
            distances[i] = np.sqrt(squared[nearest])
    return distances, neighbors


def rounding_bound(x: np.ndarray, half_norms: np.ndarray) -> np.ndarray:
    """Bound [N] of the rounding of |t|^2 / 2 - x.t in float32 (Higham 2002, section 3.1).

    Args:
        x: float32 [N, D].
        half_norms: |t|^2 / 2 of the rows t, [M].
    """
    largest = np.sqrt(2 * half_norms.max())
    unit = np.finfo(np.float32).eps / 2
    norms = np.sqrt(np.einsum("ij,ij->i", x, x))  # [N]
    return ((x.shape[1] + 8) * unit * largest * (norms + largest)).astype(np.float32)


def nearest_neighbors_dihedral(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nearest_neighbors` of thumbnails [N, 3 * side * side], each under its 8 flips and rotations.

    Training draws from these views of an image, or from some of them (`encode.variants`).
    Distances are root mean squares over the pixels, in gray levels.
    """
    side = math.isqrt(x.shape[1] // 3)
    thumbnails = x.reshape(-1, 3, side, side)
    view_distances = []
    view_neighbors = []
    for flipped in (thumbnails, thumbnails[..., ::-1]):
        for quarter_turns in range(4):
            view = np.rot90(flipped, quarter_turns, (2, 3)).reshape(x.shape)
            distances, neighbors = nearest_neighbors(view, train)
            view_distances.append(distances)
            view_neighbors.append(neighbors)
    distances = np.stack(view_distances)  # [8, N]
    best_view = distances.argmin(0), np.arange(len(x))
    root_mean_square = distances[best_view] / np.sqrt(x.shape[1])
    return root_mean_square, np.stack(view_neighbors)[best_view]
