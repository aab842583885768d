"""What experts said of the images: realism, and whether they can tell generated from real.

    python -m stages.review

reads   data/reviews/*.csv: `run,rater,tile,truth,answer,realism,label,label_answer,artefacts,comment`, a row per rated tile
        truth, answer        real or generated
        realism              1 (not at all) to 5 (entirely)
        label, label_answer  the tile's LULC class and the one the expert named; may be blank
        artefacts            any of repetition, blur, deformation, wrong scale, separated by `;`; may be blank
writes  metrics/review.json  {"ratings": 0, "experts": 0} until someone has rated
"""

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from stages.common.artefacts import write_json
from stages.common.fail import fail
from stages.common.progress import say
from stages.evaluation.intervals import wilson
from stages.params import LULC_CLASSES

REVIEWS = Path("data/reviews")
COLUMNS = ["run", "rater", "tile", "truth", "answer", "realism", "label", "label_answer", "artefacts", "comment"]
TRUTHS = ("real", "generated")
ARTEFACTS = ("repetition", "blur", "deformation", "wrong scale")


def main() -> None:
    rows, seen = [], {}
    for path in sorted(REVIEWS.glob("*.csv")):
        for where, row in read(path):
            rating = (row["run"], row["rater"], row["tile"])
            if rating in seen:
                fail(f"{where}: {row['rater']} rated tile {row['tile']} already in {seen[rating]}")
            seen[rating] = where
            rows.append(row)
    write_json("metrics/review.json", summary(rows))
    say(f"review: {len(rows)} ratings" if rows else "review: no ratings yet")


def read(path: Path) -> list[tuple[str, dict]]:
    """(file and line, row) of each rating of a file; the first bad one ends the stage."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            if missing := [name for name in COLUMNS if name not in (table.fieldnames or [])]:
                fail(f"{path}: no column {missing[0]}; a ratings file has {','.join(COLUMNS)}")
            rows = []
            for row in table:
                where = f"{path}:{table.line_num}"
                if message := fault(row):
                    fail(f"{where}: {message}")
                rows.append((where, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        fail(f"{path}: cannot be read: {problem}")


def fault(row: dict) -> str:
    """What is wrong with a row, or ""."""
    if None in row or None in row.values():
        return f"expected {len(COLUMNS)} fields"
    for name in ("run", "rater", "tile"):
        if not row[name].strip():
            return f"{name} is blank"
    for name in ("truth", "answer"):
        if row[name] not in TRUTHS:
            return f"{name} is {row[name]!r}, not real or generated"
    if row["realism"] not in list("12345"):
        return f"realism is {row['realism']!r}, not a whole number from 1 to 5"
    for name in ("label", "label_answer"):
        if row[name] and row[name] not in LULC_CLASSES:
            return f"{name} is {row[name]!r}, not blank or one of {', '.join(LULC_CLASSES)}"
    if strange := [name for name in row["artefacts"].split(";") if name.strip() and name.strip() not in ARTEFACTS]:
        return f"artefacts has {strange[0]!r}, not one of {', '.join(ARTEFACTS)}"
    return ""


def summary(rows: list[dict]) -> dict[str, float]:
    """Realism with Student's 95 % interval over tiles, detection and class agreement with Wilson's over ratings."""
    found = {"ratings": len(rows), "experts": len({row["rater"] for row in rows})}
    if not rows:
        return found
    found["runs"] = len({row["run"] for row in rows})
    for truth in TRUTHS:
        # Several experts' ratings of one tile are not independent: the tile is the unit.
        tiles: dict[tuple, list[int]] = {}
        for row in rows:
            if row["truth"] == truth:
                tiles.setdefault((row["run"], row["tile"]), []).append(int(row["realism"]))
        if tiles:
            found |= realism(f"realism_{truth}", [float(np.mean(marks)) for marks in tiles.values()])
    found |= share("detection_accuracy", [row["answer"] == row["truth"] for row in rows]) | {"detection_chance": 0.5}
    if named := [row["label_answer"] == row["label"] for row in rows if row["label"] and row["label_answer"]]:
        found |= share("class_agreement", named) | {"class_agreement_chance": 1 / len(LULC_CLASSES)}
    return found


def realism(key: str, marks: list[float]) -> dict[str, float]:
    """Mean mark of tiles with its 95 % interval on the scale 1 to 5 (one tile tells nothing of the spread: all of it)."""
    mean, n = float(np.mean(marks)), len(marks)
    error = float(stdtrit(n - 1, 0.975) * np.std(marks, ddof=1) / np.sqrt(n)) if n > 1 else 4.0
    return {key: mean, f"{key}_lo": max(mean - error, 1.0), f"{key}_hi": min(mean + error, 5.0), f"{key}_n": n}


def share(key: str, right: list[bool]) -> dict[str, float]:
    """Share of true values with Wilson's 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return {key: sum(right) / len(right), f"{key}_lo": low, f"{key}_hi": high, f"{key}_n": len(right)}


if __name__ == "__main__":
    main(*sys.argv[1:])
