"""Does an image show what was asked for: by a classifier of real tiles, and by CLIP."""

import numpy as np

from stages.evaluation.intervals import wilson


def caption_agreement(
    rows: dict, found: dict, scenes: list[str], classes: dict[str, list[str]]
) -> tuple[dict, list[dict]]:
    """Share of images in which a classifier of real tiles sees the scene of their caption, and a table by scene.

    `ceiling` is the same share of real test tiles. Scenes that the classifier never saw (none in training) are left out
    and counted. For synthetic images: the share whose scene is one of its LULC class's.
    """
    seen = {
        name: np.array(scenes)[found[name]["logits"].argmax(1)] for name in rows
    }  # each [N], names
    result, shares = {}, {}
    for name, key in (
        ("tuned", "caption_agreement"),
        ("base", "caption_agreement_base"),
        ("test", "ceiling"),
    ):
        asked = np.array(rows[name]["scene"])
        known = np.isin(asked, scenes)
        right = seen[name][known] == asked[known]
        result |= share(key, right)
        shares[name] = {
            scene: right[asked[known] == scene].mean()
            for scene in scenes
            if (asked[known] == scene).any()
        }
        if name == "tuned":
            result |= {"n": len(right), "n_unknown_scene": int((~known).sum())}
    shown = shares["tuned"]
    result |= {
        "per_scene_min": float(min(shown.values(), default=0)),
        "per_scene": {s: float(v) for s, v in shown.items()},
    }

    class_of = {scene: name for name, members in classes.items() for scene in members}
    asked, answered = (
        rows["synthetic"]["label"],
        [class_of.get(scene) for scene in seen["synthetic"]],
    )
    result |= share("class_agreement", np.array([a == b for a, b in zip(asked, answered)]))
    result["class_agreement_n"] = len(asked)
    table = [
        {"scene": s, "tuned": shown[s], "base": shares["base"][s], "real": shares["test"][s]}
        for s in shown
    ]
    return result, table


def clip_agreement(
    images: dict[str, np.ndarray], captions: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """CLIP score: 100 x the mean cosine of an image and its caption, those below 0 as 0 (Hessel et al. 2021).

    images: `tuned`, `base` and, as the ceiling, `real`: each [N, D], of the captions [N, D]. `_null`: the tuned images
    with each other's captions. Intervals: 1.96 standard errors.
    """

    def cosines(image: np.ndarray, text: np.ndarray) -> np.ndarray:
        products = (image.astype(np.float64) * text).sum(1)
        return 100 * np.maximum(
            products / np.linalg.norm(image, axis=1) / np.linalg.norm(text, axis=1), 0
        )

    score = cosines(images["tuned"], captions)
    order = rng.permutation(len(captions))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)  # nobody keeps their own
    error = 1.96 * score.std(ddof=1) / np.sqrt(len(score))
    return {
        "clip_score": float(score.mean()),
        "clip_score_lo": float(score.mean() - error),
        "clip_score_hi": float(score.mean() + error),
        "clip_score_base": float(cosines(images["base"], captions).mean()),
        "clip_score_real": float(cosines(images["real"], captions).mean()),
        "clip_score_null": float(cosines(images["tuned"], captions[others]).mean()),
    }


def share(key: str, right: np.ndarray) -> dict[str, float]:
    """A share of true values with its 95 % interval."""
    lo, hi = wilson(int(right.sum()), len(right))
    return {key: float(right.mean()) if len(right) else 0.0, f"{key}_lo": lo, f"{key}_hi": hi}
