"""Does an image show what it was asked for: by a classifier of real tiles, and by CLIP."""

import numpy as np

from stages.evaluation.intervals import wilson_interval
from stages.params import LULC


def caption_agreement(
    logits: dict[str, np.ndarray],
    wanted: dict[str, list[str]],
    scenes: list[str],
    classes: dict[LULC, list[str]],
) -> tuple[dict, list[dict]]:
    """Share of images in which a classifier of real tiles sees the scene of their caption.

    Images whose scene the classifier doesn't know (it has no training tile) are left out and
    counted. Synthetic images have a LULC class instead: a scene of that class is right.

    Args:
        logits: the classifier's [N, S] for the images of `tuned`, `base`, `test` and `synthetic`.
        wanted: what each of these images should show: its scene, or its class for `synthetic`.
        scenes: names [S] of the classifier's outputs.
        classes: scenes of each LULC class.

    Returns:
        Metrics, among them `ceiling`, the share of real test tiles that the classifier gets right;
        and the shares by scene, as rows {scene, tuned, base, real}.
    """
    predicted = {name: np.array(scenes)[values.argmax(1)] for name, values in logits.items()}
    known = {name: np.isin(wanted[name], scenes) for name in ("tuned", "base", "test")}
    known_wanted = {name: np.array(wanted[name])[mask] for name, mask in known.items()}
    correct = {name: predicted[name][known[name]] == known_wanted[name] for name in known}

    metrics: dict = share_with_interval("caption_agreement", correct["tuned"])
    metrics["n"] = len(correct["tuned"])
    metrics["n_unknown_scene"] = int((~known["tuned"]).sum())
    metrics |= share_with_interval("caption_agreement_base", correct["base"])
    metrics |= share_with_interval("ceiling", correct["test"])

    shares: dict[str, dict[str, float]] = {}  # scene -> set -> share
    for scene in scenes:
        if scene in known_wanted["tuned"]:
            shares[scene] = {
                name: float(correct[name][known_wanted[name] == scene].mean()) for name in correct
            }
    metrics["per_scene_min"] = min((by_set["tuned"] for by_set in shares.values()), default=0.0)
    metrics["per_scene"] = {scene: by_set["tuned"] for scene, by_set in shares.items()}
    table = [
        {"scene": scene, "tuned": by_set["tuned"], "base": by_set["base"], "real": by_set["test"]}
        for scene, by_set in shares.items()
    ]

    class_of_scene = {scene: name for name, members in classes.items() for scene in members}
    predicted_class = [class_of_scene.get(scene) for scene in predicted["synthetic"]]
    matches = [seen == label for seen, label in zip(predicted_class, wanted["synthetic"])]
    metrics |= share_with_interval("class_agreement", np.array(matches))
    metrics["class_agreement_n"] = len(matches)
    return metrics, table


def clip_score(
    images: dict[str, np.ndarray], captions: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """CLIP score: 100 x the mean of max(cosine, 0) of image and caption (Hessel et al. 2021).

    Args:
        images: CLIP embeddings [N, D] of `tuned` and `base` images and, as the ceiling, of the
            captions' `real` tiles.
        captions: CLIP embeddings [N, D] of the captions.
        rng: pairs each tuned image with another one's caption, for `_null`.

    Returns:
        Scores; `_lo` and `_hi` are 1.96 standard errors away.
    """
    scores = clip_similarity(images["tuned"], captions)
    order = rng.permutation(len(captions))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # a cycle: no image keeps its own caption
    mean = scores.mean()
    margin = 1.96 * scores.std(ddof=1) / np.sqrt(len(scores))
    return {
        "clip_score": float(mean),
        "clip_score_lo": float(mean - margin),
        "clip_score_hi": float(mean + margin),
        "clip_score_base": float(clip_similarity(images["base"], captions).mean()),
        "clip_score_real": float(clip_similarity(images["real"], captions).mean()),
        "clip_score_null": float(clip_similarity(images["tuned"], captions[others]).mean()),
    }


def clip_similarity(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """100 x max(cosine, 0) [N] of embeddings [N, D] of images and of their captions [N, D]."""
    products = (images.astype(np.float64) * captions).sum(1)  # [N]
    cosines = products / np.linalg.norm(images, axis=1) / np.linalg.norm(captions, axis=1)
    return 100 * np.maximum(cosines, 0)


def share_with_interval(key: str, successes: np.ndarray) -> dict[str, float]:
    """Share of true values of bool [N] under `key`, with its 95 % interval; 0 where N is 0."""
    low, high = wilson_interval(int(successes.sum()), len(successes))
    share = float(successes.mean()) if len(successes) else 0.0
    return {key: share, f"{key}_lo": low, f"{key}_hi": high}
