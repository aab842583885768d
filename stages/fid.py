"""Image metrics from stored features: distance to real tiles, fidelity and diversity, agreement with the text.

    python -m stages.fid

Each number stands beside its interval, its floor (real test against as many real training tiles) and its base (the
model before fine-tuning).
"""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from stages.common.artefacts import read_json, replace, write_json
from stages.common.fail import fail
from stages.common.progress import progress, say
from stages.common.rng import rng
from stages.evaluation.frechet import fid
from stages.evaluation.intervals import around, halves, wilson
from stages.evaluation.kernel import kid
from stages.evaluation.manifold import manifold
from stages.params import Fid, load

FEATURES = Path("data/features")
SETS = {"test": "real/test", "train": "real/train", "tuned": "tuned", "base": "base", "synthetic": "synthetic"}


def main():
    p = load()
    rows = {name: pq.read_table(FEATURES / place / "rows.parquet").to_pydict() for name, place in SETS.items()}
    scene = {name: load_file(FEATURES / place / "scene.safetensors") for name, place in SETS.items()}
    places = paired(rows)

    metrics = {}
    for extractor in sorted(path.stem for path in (FEATURES / "real/test").glob("*.safetensors")):
        found = scene if extractor == "scene" else {
            name: load_file(FEATURES / place / f"{extractor}.safetensors") for name, place in SETS.items()}
        sets = {name: values["features"] for name, values in found.items()}    # each [N, D]
        metrics[extractor] = {
            "standard": standard(sets, p.fid, p.seed, extractor),
            "paper": paper(sets, places, p.fid, p.seed)}
    write_json("metrics/fid.json", metrics)

    agreement, table = text_agreement(rows, scene, read_json("models/scene/config.json")["scenes"], p.classes)
    write_json("metrics/agreement.json", agreement)
    write_csv("metrics/plots/agreement_by_scene.csv", table)


def paired(rows: dict) -> np.ndarray:
    """Place [N] of each tuned image's real counterpart among the test tiles; base has the same order as tuned."""
    place = {filename: i for i, filename in enumerate(rows["test"]["filename"])}
    for name in ("tuned", "base"):
        if stray := [filename for filename in rows[name]["filename"] if filename not in place]:
            fail(f"{FEATURES}/{name}: {stray[0]} is not among the test tiles; run sample and features again")
    if rows["tuned"]["filename"] != rows["base"]["filename"]:
        fail(f"{FEATURES}/tuned and {FEATURES}/base are of different captions; run sample and features again")
    return np.array([place[filename] for filename in rows["tuned"]["filename"]])


def measure(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """All distances between features [N, D] and [M, D]."""
    return {"fid": fid(real, fake), "kid_x1000": 1000 * kid(real, fake), **manifold(real, fake)}


def standard(sets: dict[str, np.ndarray], p: Fid, seed: int, extractor: str) -> dict[str, float]:
    """All generated images against all real test tiles."""
    real, fake, train = sets["test"], sets["tuned"], sets["train"]
    n = min(len(real), len(fake))
    if n < max(p.standard_min_n, 4):
        say(f"fid: {n} images are fewer than fid.standard_min_n = {p.standard_min_n}: no standard protocol for {extractor}")
        return {"refused": 1, "n": n, "n_needed": p.standard_min_n}
    draw = rng(seed, "floor").permutation(len(train))[:len(real)]
    value, floor, base = measure(real, fake), measure(real, train[np.sort(draw)]), measure(real, sets["base"])

    draws = rng(seed, "intervals")
    pairs = zip(halves(len(real), p.subsets, draws), halves(len(fake), p.subsets, draws))
    spread = [measure(real[i], fake[j]) for i, j in progress(pairs, total=p.subsets, what=f"intervals of {extractor}")]
    result = {"refused": 0, "n": len(fake), "n_real": len(real), "n_floor": len(draw), "singular": int(n <= real.shape[1])}
    for name in value:
        low, high = -np.inf if name == "kid_x1000" else 0, 1 if name in ("precision", "recall", "coverage") else np.inf
        lo, hi = around(value[name], [each[name] for each in spread], n, low, high)
        result |= {name: value[name], f"{name}_lo": lo, f"{name}_hi": hi,
                   f"{name}_floor": floor[name], f"{name}_base": base[name]}
    return result


def paper(sets: dict[str, np.ndarray], places: np.ndarray, p: Fid, seed: int) -> dict[str, float]:
    """The paper's protocol: few images, drawn at random with their generated counterparts; mean over several draws."""
    n = p.paper_n
    if len(places) < max(n, 2):
        say(f"fid: {len(places)} generated images are fewer than fid.paper_n = {n}: no paper protocol")
        return {"refused": 1, "n": len(places), "n_needed": n}
    values = []
    for number in range(p.paper_draws):
        draw = rng(seed, "paper", number)
        chosen = draw.permutation(len(places))[:n]
        real, train = sets["test"][places[chosen]], sets["train"][draw.permutation(len(sets["train"]))[:n]]
        values.append([fid(real, sets["tuned"][chosen]), fid(real, train), fid(real, sets["base"][chosen])])
    (value, floor, base), std = np.mean(values, 0), np.std([row[0] for row in values])
    return {"refused": 0, "n": n, "draws": p.paper_draws, "singular": int(n <= sets["test"].shape[1]),
            "fid": float(value), "fid_std": float(std), "fid_floor": float(floor), "fid_base": float(base)}


def text_agreement(rows: dict, found: dict, scenes: list[str], classes: dict[str, list[str]]) -> tuple[dict, list[dict]]:
    """Share of images in which a classifier of real tiles sees the scene of their caption, and a table by scene.

    `ceiling` is the same share of real test tiles. Scenes that the classifier never saw (none in training) are left out
    and counted. For synthetic images: the share whose scene is one of its LULC class's.
    """
    seen = {name: np.array(scenes)[values["logits"].argmax(1)] for name, values in found.items()}    # each [N], names
    result, shares = {}, {}
    for name, key in (("tuned", "text_agreement"), ("base", "text_agreement_base"), ("test", "ceiling")):
        asked = np.array(rows[name]["scene"])
        known = np.isin(asked, scenes)
        right = seen[name][known] == asked[known]
        result |= share(key, right)
        shares[name] = {scene: right[asked[known] == scene].mean() for scene in scenes if (asked[known] == scene).any()}
        if name == "tuned":
            result |= {"n": len(right), "n_unknown_scene": int((~known).sum())}
    shown = shares["tuned"]
    result |= {"per_scene_min": float(min(shown.values(), default=0)), "per_scene": {s: float(v) for s, v in shown.items()}}

    class_of = {scene: name for name, members in classes.items() for scene in members}
    asked, answered = rows["synthetic"]["label"], [class_of.get(scene) for scene in seen["synthetic"]]
    result |= share("class_agreement", np.array([a == b for a, b in zip(asked, answered)]))
    result["class_agreement_n"] = len(asked)
    table = [{"scene": s, "tuned": shown[s], "base": shares["base"][s], "real": shares["test"][s]} for s in shown]
    return result, table


def share(key: str, right: np.ndarray) -> dict[str, float]:
    """A share of true values with its 95 % interval."""
    lo, hi = wilson(int(right.sum()), len(right))
    return {key: float(right.mean()) if len(right) else 0.0, f"{key}_lo": lo, f"{key}_hi": hi}


def write_csv(path: str, table: list[dict]) -> None:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(table[0]) if table else ["scene"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    replace(path, sink.getvalue().encode())


if __name__ == "__main__":
    main()
