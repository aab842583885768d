"""Does an image show what it was asked for: by a classifier of real tiles, and by CLIP."""

from collections import Counter

import numpy as np

from stages.common.class_names import slug
from stages.evaluation.intervals import count_units, share_with_interval, squared_margin

SAME_CAPTION = 99.999  # 100 x cosine of two captions' embeddings, at least


def caption_agreement(
    logits: dict[str, np.ndarray],
    wanted: dict[str, list[str]],
    scenes: list[str],
    test_sites: list[str],
) -> tuple[dict, list[dict]]:
    """Share of images in which a classifier of real tiles sees the scene of their caption.

    Images whose scene the classifier doesn't know (it has no training tile) are left out and
    counted.

    Args:
        logits: the classifier's [N, S] for the images of `tuned`, `base` and `test`.
        wanted: the scene that each of these images should show.
        scenes: names [S] of the classifier's outputs.
        test_sites: what the test tiles were cut from: those of one site are alike, so that the
            interval of `ceiling` counts sites.

    Returns:
        Metrics, among them `caption_agreement`, whose interval is over other images of the same
        captions, `ceiling`, the share of real test tiles that the classifier gets right,
        `caption_agreement_chance`, that of uniform guessing among all scenes, and `per_scene`, by
        the `slug` of each scene; and the shares by scene, as rows {scene, tuned, tuned_lo,
        tuned_hi, base, real, n}.
    """
    correct = {}
    known_wanted = {}
    for name in ("tuned", "base", "test"):
        correct[name], known_wanted[name] = judge_scenes(logits[name], wanted[name], scenes)

    metrics: dict = share_with_interval("caption_agreement", correct["tuned"])
    metrics["n"] = len(correct["tuned"])
    metrics["n_unknown_scene"] = len(wanted["tuned"]) - len(correct["tuned"])
    metrics |= share_with_interval("caption_agreement_base", correct["base"])
    metrics["caption_agreement_chance"] = 1 / len(scenes)
    units = np.array(test_sites)[np.isin(wanted["test"], scenes)]
    metrics |= share_with_interval("ceiling", correct["test"], units)

    table = agreement_by_scene(correct, known_wanted, scenes)
    metrics["per_scene_min"] = min((row["tuned"] for row in table), default=0.0)
    for suffix in ("", "_lo", "_hi"):
        metrics[f"per_scene{suffix}"] = {slug(row["scene"]): row[f"tuned{suffix}"] for row in table}
    return metrics, table


def class_agreement(
    logits: np.ndarray,
    labels: list[str],
    prompts: list[int],
    scenes: list[str],
    classes: dict[str, list[str]],
) -> dict:
    """Share of synthetic images in which the classifier sees a scene of their class.

    Images of classes of whose scenes the classifier knows none are left out and counted.

    Args:
        logits: the classifier's [N, S].
        labels: the class [N] that each image should show.
        prompts: number [N] of each image's prompt: images of one prompt are alike, so that the
            interval counts prompts.
        scenes: names [S] of the classifier's outputs.
        classes: scenes of each class.

    Returns:
        Metrics, among them `class_agreement_chance`, the share of uniform guessing among all
        scenes; {} where the classifier knows no class.
    """
    class_of_scene = {scene: name for name, members in classes.items() for scene in members}
    class_of_output = [class_of_scene.get(scene) for scene in scenes]  # [S]
    predicted = [class_of_output[i] for i in logits.argmax(1)]  # [N]
    known = np.array([label in class_of_output for label in labels])
    if not known.any():
        return {}
    matches = np.array([seen == label for seen, label in zip(predicted, labels)])[known]
    known_prompts = np.array(prompts)[known]
    scene_counts = Counter(class_of_output)
    chances = np.array([scene_counts[label] / len(scenes) for label in labels])[known]
    return {
        **share_with_interval("class_agreement", matches, known_prompts),
        "class_agreement_chance": float(chances.mean()),
        "class_agreement_n": len(matches),
        "class_agreement_n_unknown": int((~known).sum()),
        "class_agreement_prompts": len(set(known_prompts.tolist())),
    }


def judge_scenes(
    logits: np.ndarray, wanted: list[str], scenes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the classifier sees the wanted scene, for the N images whose scene it knows.

    Args:
        logits: the classifier's [M, S].
        wanted: the scene [M] that each image should show.
        scenes: names [S] of the classifier's outputs.

    Returns:
        bool [N]; the wanted scenes [N].
    """
    known = np.isin(wanted, scenes)
    known_wanted = np.array(wanted)[known]
    return np.array(scenes)[logits.argmax(1)][known] == known_wanted, known_wanted


def agreement_by_scene(
    correct: dict[str, np.ndarray], wanted: dict[str, np.ndarray], scenes: list[str]
) -> list[dict]:
    """Share of right images of each scene that tuned images should show.

    Args:
        correct: bool [N] for the images of `tuned`, `base` and `test`.
        wanted: the scene [N] that each of them should show.
        scenes: names of all scenes.

    Returns:
        Rows {scene, tuned, tuned_lo, tuned_hi, base, real, n}, n being the number of tuned images.
    """
    rows = []
    for scene in scenes:
        of_scene = {name: values[wanted[name] == scene] for name, values in correct.items()}
        n = len(of_scene["tuned"])
        if n:
            row: dict = {"scene": scene, **share_with_interval("tuned", of_scene["tuned"])}
            row["base"] = float(of_scene["base"].mean())
            row["real"] = float(of_scene["test"].mean())
            rows.append(row | {"n": n})
    return rows


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
        Scores, and Student's 95 % interval `_lo`, `_hi` of the tuned images'; there is none where
        all of them score the same, which says nothing of the spread. `_null` is of the images whose
        own caption and the other one differ; it is left out where all captions are alike.
    """
    order = rng.permutation(len(captions))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # a cycle: no image keeps its own caption
    null_scores = clip_similarity(images["tuned"], captions[others])
    # Images of one scene may have the same caption, whose embeddings differ by rounding alone.
    differ = clip_similarity(captions, captions[others]) < SAME_CAPTION
    metrics = clip_score_with_interval(images["tuned"], captions)
    metrics["clip_score_base"] = float(clip_similarity(images["base"], captions).mean())
    metrics["clip_score_real"] = float(clip_similarity(images["real"], captions).mean())
    if differ.any():
        metrics["clip_score_null"] = float(null_scores[differ].mean())
    return metrics


def clip_score_with_interval(
    images: np.ndarray, captions: np.ndarray, units: np.ndarray | None = None
) -> dict[str, float]:
    """CLIP score of embeddings [N, D] of images and of their captions, with its 95 % interval.

    `units` [N] as in `share_with_interval`; images of a single unit have no interval.
    """
    if units is None:
        units = np.arange(len(images))
    scores = clip_similarity(images, captions)
    mean = float(scores.mean())
    metrics = {"clip_score": mean}
    if len(np.unique(units)) > 1 and np.ptp(scores) > 1e-6:
        deviations = (scores - mean) / len(scores)
        margin = squared_margin(deviations, units, unit_count=count_units(units)) ** 0.5
        metrics["clip_score_lo"] = max(mean - margin, 0.0)
        metrics["clip_score_hi"] = min(mean + margin, 100.0)
    return metrics


def clip_similarity(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """100 x max(cosine, 0) [N] of embeddings [N, D] of images and of their captions [N, D]."""
    products = (images.astype(np.float64) * captions).sum(1)  # [N]
    cosines = products / np.linalg.norm(images, axis=1) / np.linalg.norm(captions, axis=1)
    return 100 * np.maximum(cosines, 0)
