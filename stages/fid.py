"""Image metrics from stored features: distance to real tiles, fidelity and diversity, memorization, agreement with the text.

    python -m stages.fid

Each number stands beside its interval, its floor (real test against as many real training tiles), the range in which other real
tiles would put that floor, and its base (the model before fine-tuning).
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from stages.common.artifacts import read_json, write_json
from stages.common.rng import rng
from stages.evaluation.caption_agreement import caption_agreement, clip_agreement
from stages.evaluation.compression_artifacts import compression_artifacts
from stages.evaluation.frechet import PARTS, at_infinity, curve, fid
from stages.evaluation.intervals import confidence_interval, half_subsamples
from stages.evaluation.kernel import cmmd, kid
from stages.evaluation.manifold import manifold
from stages.evaluation.memorization import memorized, nearest_neighbors, nearest_neighbors_dihedral
from stages.evaluation.plots import write_csv
from stages.evaluation.sinkhorn import sinkhorn
from stages.params import Fid, load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar

FEATURES = Path("data/features")
SETS = {
    "test": "real/test",
    "train": "real/train",
    "tuned": "tuned",
    "base": "base",
    "synthetic": "synthetic",
}
PADDED = "real/test_padded"
RANGE = {
    "precision": (0, 1),
    "recall": (0, 1),
    "coverage": (0, 1),
    "kid_x1000": (-np.inf, np.inf),
    "fid_infinity": (-np.inf, np.inf),
}  # all others: 0 and above
CLOSEST = 24  # pairs of generated and training image that are named


def main():
    p = load()
    rows = {
        name: pq.read_table(FEATURES / place / "rows.parquet").to_pydict()
        for name, place in SETS.items()
    }
    for name, place in SETS.items():
        if (count := len(next(iter(rows[name].values())))) < 2:
            hint = (
                " (fetch_imagery.test says how many tiles are held out)" if name == "test" else ""
            )
            exit_with_error(
                f"{FEATURES / place}: {count} image(s); a distance between sets needs at least 2 of each{hint}"
            )
    places = paired(rows)
    small = {
        name: load_file(FEATURES / place / "pixels.safetensors") for name, place in SETS.items()
    }
    images = {
        "mismatch": {
            name: compression_artifacts(small["test"], small[name], name)
            for name in ("tuned", "synthetic")
        }
    }
    images["pixels"], _ = memorization(
        {name: values["features"] for name, values in small.items()},
        rows,
        nearest_neighbors_dihedral,
    )

    metrics, curves, agreement = {}, {}, {}
    for extractor in sorted(
        path.stem
        for path in (FEATURES / "real/test").glob("*.safetensors")
        if path.stem != "pixels"
    ):
        found = {
            name: load_file(FEATURES / place / f"{extractor}.safetensors")
            for name, place in SETS.items()
        }
        sets = {name: values["features"] for name, values in found.items()}  # each [N, D]
        metrics[extractor] = {
            "standard": standard(sets, p.fid, p.seed, extractor),
            "paper": paper(sets, places, p.fid, p.seed),
        }
        if (padded := FEATURES / PADDED / f"{extractor}.safetensors").exists():
            metrics[extractor]["paper_padded"] = paper(
                sets | {"test": load_file(padded)["features"]}, places, p.fid, p.seed
            )
        curves[extractor] = fid_curves(sets, p.seed)
        images[extractor], closest = memorization(sets, rows, nearest_neighbors)
        if extractor == "scene":
            write_csv("metrics/plots/nearest_training.csv", closest, list(closest[0]))
            agreement, table = caption_agreement(
                rows, found, read_json("models/scene/config.json")["scenes"], p.classes
            )
            write_csv(
                "metrics/plots/caption_agreement_by_scene.csv",
                table,
                list(table[0]) if table else ["scene"],
            )
        if extractor == "clip":
            real = sets["test"][places]
            clip = clip_agreement(
                sets | {"real": real}, found["tuned"]["captions"], rng(p.seed, "clip null")
            )
    write_json("metrics/fid.json", metrics)
    write_json("metrics/images.json", images)
    write_json("metrics/caption_agreement.json", agreement | (clip if "clip" in metrics else {}))
    shown = curves.get("inception2048", curves["scene"])
    write_csv("metrics/plots/fid_curve.csv", shown, list(shown[0]))


def paired(rows: dict) -> np.ndarray:
    """Place [N] of each tuned image's real counterpart among the test tiles; base has the same order as tuned."""
    place = {filename: i for i, filename in enumerate(rows["test"]["filename"])}
    for name in ("tuned", "base"):
        if stray := [filename for filename in rows[name]["filename"] if filename not in place]:
            exit_with_error(
                f"{FEATURES}/{name}: {stray[0]} is not among the test tiles; run sample and features again"
            )
    if rows["tuned"]["filename"] != rows["base"]["filename"]:
        exit_with_error(
            f"{FEATURES}/tuned and {FEATURES}/base are of different captions; run sample and features again"
        )
    return np.array([place[filename] for filename in rows["tuned"]["filename"]])


def measure(
    real: np.ndarray, fake: np.ndarray, extractor: str, draws: np.random.Generator
) -> dict[str, float]:
    """All distances between features [N, D] and [M, D]."""
    found = {
        "fid": fid(real, fake),
        "fid_infinity": at_infinity(curve(real, fake, draws)),
        "kid_x1000": 1000 * kid(real, fake),
        **manifold(real, fake),
        "sinkhorn": sinkhorn(real, fake),
    }
    return found | ({"cmmd": cmmd(real, fake)} if extractor == "clip" else {})


def floor_of(sets: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """As many real training tiles as there are real test tiles, drawn at random."""
    return sets["train"][
        np.sort(rng(seed, "floor").permutation(len(sets["train"]))[: len(sets["test"])])
    ]


def standard(sets: dict[str, np.ndarray], p: Fid, seed: int, extractor: str) -> dict[str, float]:
    """All generated images against all real test tiles."""
    real, fake = sets["test"], sets["tuned"]
    n = min(len(real), len(fake))
    if n < max(p.standard_min_n, 8):  # 8: quarters of them still have a covariance
        log(
            f"fid: {n} images are fewer than fid.standard_min_n = {p.standard_min_n}: no standard protocol for {extractor}"
        )
        return {"refused": 1, "n": n, "n_needed": max(p.standard_min_n, 8)}
    train, draws = floor_of(sets, seed), rng(seed, "intervals")
    value, floor, base = (
        measure(a, b, extractor, draws)
        for a, b in ((real, fake), (real, train), (real, sets["base"]))
    )
    spread, floor_spread = (
        [
            measure(a[i], b[j], extractor, draws)
            for i, j in progress_bar(
                zip(
                    half_subsamples(len(a), p.subsets, draws),
                    half_subsamples(len(b), p.subsets, draws),
                ),
                total=p.subsets,
                what=f"intervals of {extractor}, {what}",
            )
        ]
        for a, b, what in ((real, fake, "generated"), (real, train, "floor"))
    )
    # FID of fewer images than dimensions compares singular covariances; the curve's line holds above them only.
    result = {
        "refused": 0,
        "n": len(fake),
        "n_real": len(real),
        "n_floor": len(train),
        "singular": int(n <= real.shape[1]),
        "infinity_singular": int(n // max(PARTS) <= real.shape[1]),
    }
    for name in value:
        ends = RANGE.get(name, (0, np.inf))
        lo, hi = confidence_interval(value[name], [each[name] for each in spread], n, *ends)
        floor_lo, floor_hi = confidence_interval(
            floor[name],
            [each[name] for each in floor_spread],
            min(len(real), len(train)),
            *ends,
            again=True,
        )
        result |= {
            name: value[name],
            f"{name}_lo": lo,
            f"{name}_hi": hi,
            f"{name}_floor": floor[name],
            f"{name}_floor_lo": floor_lo,
            f"{name}_floor_hi": floor_hi,
            f"{name}_base": base[name],
        }
    return result


def paper(sets: dict[str, np.ndarray], places: np.ndarray, p: Fid, seed: int) -> dict[str, float]:
    """The paper's protocol: few images, drawn at random with their generated counterparts; mean over several draws.

    Padded: `sets` hold the test tiles in their black frame. The floor is then what real training tiles without one score,
    as a generator of perfect tiles would.
    """
    n = p.paper_n
    if len(places) < max(n, 2):
        log(
            f"fid: {len(places)} generated images are fewer than fid.paper_n = {n}: no paper protocol"
        )
        return {"refused": 1, "n": len(places), "n_needed": n}
    values = []
    for number in range(p.paper_draws):
        draw = rng(seed, "paper", number)
        chosen = draw.permutation(len(places))[:n]
        real, train = (
            sets["test"][places[chosen]],
            sets["train"][draw.permutation(len(sets["train"]))[:n]],
        )
        values.append(
            [fid(real, sets["tuned"][chosen]), fid(real, train), fid(real, sets["base"][chosen])]
        )
    (value, floor, base), std = np.mean(values, 0), np.std([row[0] for row in values])
    return {
        "refused": 0,
        "n": n,
        "draws": p.paper_draws,
        "singular": int(n <= sets["test"].shape[1]),
        "fid": float(value),
        "fid_std": float(std),
        "fid_floor": float(floor),
        "fid_base": float(base),
    }


def fid_curves(sets: dict[str, np.ndarray], seed: int) -> list[dict]:
    """FID at 1/N, for the plot whose lines meet the axis at FID of infinitely many images."""
    found = {"tuned": sets["tuned"], "base": sets["base"], "floor": floor_of(sets, seed)}
    lines = {
        name: curve(sets["test"], values, rng(seed, "curve")) for name, values in found.items()
    }
    shared = min(map(len, lines.values()))  # few training tiles have no quarters
    return [
        {
            "images": size,
            "one_over_n": 1 / size,
            **{name: points[place][1] for name, points in lines.items()},
        }
        for place, (size, _) in enumerate(lines["tuned"][:shared])
    ]


def memorization(sets: dict[str, np.ndarray], rows: dict, search) -> tuple[dict, list[dict]]:
    """How near generated and held-out real images are to their nearest training images, and the closest tuned pairs."""
    real, _ = search(sets["test"], sets["train"])
    result, closest = {}, []
    for name in ("tuned", "synthetic"):
        distances, neighbors = search(sets[name], sets["train"])
        result[name] = memorized(distances, real)
        if name == "tuned":
            closest = [
                {
                    "generated": rows["tuned"]["filename"][i],
                    "training": rows["train"]["filename"][neighbors[i]],
                    "distance": float(distances[i]),
                    "real_percentile": float((real <= distances[i]).mean()),
                }
                for i in np.argsort(distances, kind="stable")[:CLOSEST]
            ]
    return result, closest


if __name__ == "__main__":
    run_stage(main, __doc__)
