"""What experts said of the images: realism, and whether they can tell generated from real.

`python -m tools.review add ratings.csv` files the ratings that an expert sends back.

reads   metrics/review_key.csv   names this run: ratings of other runs' images are counted and left out
        data/reviews/*.csv       run,rater,tile,truth,answer,realism,label,label_answer,artifacts,comment, a row per rated tile
                                 truth, answer        real or generated
                                 realism              1 (not at all) to 5 (entirely)
                                 label, label_answer  the tile's LULC class and the one the expert named; may be blank
                                 artifacts            any of repetition, blur, deformation, wrong scale, separated by `;`
writes  metrics/review.json      {"ratings": 0, "experts": 0, ...} until someone has rated
"""

import krippendorff
import numpy as np
from scipy.special import stdtrit

from stages.common.artifacts import write_json
from stages.evaluation.intervals import wilson
from stages.params import LULC_CLASSES
from stages.reporting import ratings
from stages.runtime.process import run_stage
from stages.runtime.progress import log


def main() -> None:
    runs = {run for run, _ in ratings.key()}
    rows = [row for _, row in ratings.filed()]
    ours = [row for row in rows if row["run"] in runs]
    write_json(
        "metrics/review.json", summary(ours) | {"ratings_of_other_runs": len(rows) - len(ours)}
    )
    log(f"review: {len(ours)} ratings" if ours else "review: no ratings of this run yet")


def summary(rows: list[dict]) -> dict:
    """Realism with Student's 95 % interval over tiles, detection and class agreement with Wilson's over ratings."""
    found: dict = {"ratings": len(rows), "experts": len({row["rater"].casefold() for row in rows})}
    if not rows:
        return found
    for truth in ratings.TRUTHS:
        # Several experts' ratings of one tile are not independent: the tile is the unit.
        tiles: dict[str, list[int]] = {}
        for row in rows:
            if row["truth"] == truth:
                tiles.setdefault(row["tile"], []).append(int(row["realism"]))
        if tiles:
            found |= realism(
                f"realism_{truth}", [float(np.mean(marks)) for marks in tiles.values()]
            )
    found |= share("detection_accuracy", [row["answer"] == row["truth"] for row in rows]) | {
        "detection_chance": 0.5
    }
    if named := [
        row["label_answer"] == row["label"] for row in rows if row["label"] and row["label_answer"]
    ]:
        found |= share("class_agreement", named) | {"class_agreement_chance": 1 / len(LULC_CLASSES)}
    for name, field, level in (
        ("answer", "answer", "nominal"),
        ("realism", "realism", "ordinal"),
        ("class", "label_answer", "nominal"),
    ):
        if (value := alpha(rows, field, level)) is not None:
            found[f"alpha_{name}"] = value
    return found | {
        "artifacts": {
            truth: artifacts([row for row in rows if row["truth"] == truth])
            for truth in ratings.TRUTHS
        }
    }


def alpha(rows: list[dict], field: str, level: str) -> float | None:
    """Krippendorff's alpha between the experts: 1 = they agree, 0 = as by chance. None where no tile was rated by two, or
    where all gave the same value everywhere: it is not defined then."""
    values = sorted({row[field] for row in rows if row[field]})
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row[field]:
            counts.setdefault(row["tile"], [0] * len(values))[values.index(row[field])] += 1
    shared = np.array([each for each in counts.values() if sum(each) > 1])  # [tiles, values]
    if not len(shared) or (shared.sum(0) > 0).sum() < 2:
        return None
    domain = [int(value) for value in values] if level == "ordinal" else None
    return float(
        krippendorff.alpha(value_counts=shared, value_domain=domain, level_of_measurement=level)
    )


def artifacts(rows: list[dict]) -> dict[str, dict[str, float]]:
    """class -> share of its ratings that name each artifact, and how many there are."""
    found = {}
    for label in LULC_CLASSES:
        seen = [
            {name.strip() for name in row["artifacts"].split(";")}
            for row in rows
            if row["label"] == label
        ]
        if seen:
            found[label] = {
                name.replace(" ", "_"): sum(name in each for each in seen) / len(seen)
                for name in ratings.ARTIFACTS
            }
            found[label]["n"] = len(seen)
    return found


def realism(key: str, marks: list[float]) -> dict[str, float]:
    """Mean mark of tiles with its 95 % interval on the scale 1 to 5 (one tile tells nothing of the spread: all of it)."""
    mean, n = float(np.mean(marks)), len(marks)
    error = float(stdtrit(n - 1, 0.975) * np.std(marks, ddof=1) / np.sqrt(n)) if n > 1 else 4.0
    return {
        key: mean,
        f"{key}_lo": max(mean - error, 1.0),
        f"{key}_hi": min(mean + error, 5.0),
        f"{key}_n": n,
    }


def share(key: str, right: list[bool]) -> dict[str, float]:
    """Share of true values with Wilson's 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return {
        key: sum(right) / len(right),
        f"{key}_lo": low,
        f"{key}_hi": high,
        f"{key}_n": len(right),
    }


if __name__ == "__main__":
    run_stage(main, __doc__)
