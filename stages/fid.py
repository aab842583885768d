"""Measure images by stored features: distance to real tiles, separability, near-copies, captions.

    python -m stages.fid

reads   fid, classes, generate.keep, seed; data/features/*, models/scene/config.json
writes  metrics/fid.json                distances, per extractor and protocol; separability
        metrics/images.json             near-copies of training images, compression artifacts
        metrics/caption_agreement.json  caption and class agreement; CLIP score with `clip`
        metrics/plots/{fid_curve,nearest_training,caption_agreement_by_scene}.csv

Each distance comes with its 95 % interval, its floor (the distance of as many real training tiles
of the same scenes, where there are enough) and its base (the model before fine-tuning).
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from stages.common.artifacts import read_json, write_json
from stages.common.csv_files import write_csv
from stages.common.rng import rng
from stages.evaluation.caption_agreement import (
    caption_agreement,
    class_agreement,
    clip_score,
)
from stages.evaluation.compression_artifacts import (
    compare_compression_artifacts,
    match_class_mix,
)
from stages.evaluation.memorization import (
    compare_with_training_images,
    describe_near_copies,
    nearest_neighbors,
    nearest_neighbors_dihedral,
)
from stages.evaluation.pairing import Pairing
from stages.evaluation.protocols import (
    curve_rows,
    fid_curves,
    paper_protocol,
    standard_protocol,
)
from stages.evaluation.separability import compare_separability
from stages.evaluation.sites import describe_sites, sites_of_tiles
from stages.params import Fid, load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

FEATURES = Path("data/features")
# The sets of images that are compared, each with its folder in `FEATURES`.
SETS = {
    "test": "real/test",
    "train": "real/train",
    "tuned": "tuned",
    "base": "base",
    "synthetic": "synthetic",
}
PADDED_TEST = FEATURES / "real/test_padded"  # the test tiles in a black frame


def main() -> None:
    params = load()
    rows = read_image_rows()
    real_indices = match_real_tiles(rows)
    labels = label_images(rows, params.classes)
    prompts, sites = rows["synthetic"]["row"], rows["test"]["site"]
    fid_metrics: dict = {}
    image_metrics: dict = {}
    curve_tables = {}

    # A selected set can't be judged by the classifier that selected it.
    is_selected = params.generate.keep is not None

    # Pixels: compression artifacts, and near-copies of training images.
    pixels = read_features("pixels")
    thumbnails = {name: values["features"] for name, values in pixels.items()}
    in_mix, has_class_mix = match_class_mix(pixels["test"], labels, params.seed)
    image_metrics["compression_artifacts"] = {
        name: compare_compression_artifacts(real, pixels[name], name)
        for name, real in (("tuned", pixels["test"]), ("synthetic", in_mix))
    }
    image_metrics["compression_artifacts"]["synthetic"]["class_mix"] = int(has_class_mix)
    image_metrics["pixels"], _ = compare_with_training_images(
        thumbnails, prompts, labels, sites, nearest_neighbors_dihedral, params.seed
    )

    # Each extractor: distances to real tiles, and near-copies of training images.
    for extractor in stored_extractors():
        sets = {name: values["features"] for name, values in read_features(extractor).items()}
        fid_metrics[extractor], curve_tables[extractor] = compare_sets(
            sets, rows, real_indices, extractor, params.fid, params.seed
        )
        image_metrics[extractor], closest = compare_with_training_images(
            sets, prompts, labels, sites, nearest_neighbors, params.seed
        )
        if extractor == "scene":
            write_nearest_training(closest, rows)
            if is_selected:
                del image_metrics["scene"]["synthetic"]
    if described := describe_sites(fid_metrics["scene"]["standard"]):
        log(f"fid: {described}")
    for name, described in describe_near_copies(image_metrics).items():
        log(f"fid: {name}: warning: {described}")

    # Captions: do images show the scene, or the text, that they were asked for?
    agreement = measure_caption_agreement(rows, params.classes, is_selected)
    if "clip" in fid_metrics:
        agreement |= measure_clip_score(real_indices, params.seed)

    write_json("metrics/fid.json", fid_metrics)
    write_json("metrics/images.json", image_metrics)
    write_json("metrics/caption_agreement.json", agreement)
    plotted = curve_tables.get("inception2048", curve_tables["scene"])
    write_csv("metrics/plots/fid_curve.csv", plotted, list(plotted[0]))


def compare_sets(
    sets: dict[str, np.ndarray],
    rows: dict[str, dict[str, list]],
    real_indices: np.ndarray,
    extractor: str,
    config: Fid,
    seed: int,
) -> tuple[dict, list[dict]]:
    """Distances by protocol, and separability, of one extractor; the rows of its FID curve.

    Args:
        sets: features [N, D] by the names of `SETS`.
        rows: of `read_image_rows`.
        real_indices: of `match_real_tiles`.
        extractor: name of the features.
        config: the section `fid`.
        seed: of the run.
    """
    scenes = {name: np.array(rows[name]["scene"]) for name in ("test", "train")}
    sites = {name: rows[name]["site"] for name in ("test", "train")}
    pairing = Pairing(real_indices, scenes["test"], scenes["train"])
    curves = fid_curves(sets, seed, pairing)
    metrics: dict = {
        "standard": standard_protocol(
            sets, curves, config, seed, extractor, pairing, sites["test"]
        ),
        "paper": paper_protocol(sets, pairing, config, seed),
    }
    separability = compare_separability(sets, sites, pairing, seed)
    if separability:
        metrics["separability"] = separability
    padded_file = PADDED_TEST / f"{extractor}.safetensors"
    if padded_file.exists():
        padded_sets = sets | {"test": read_finite(padded_file)["features"]}
        metrics["paper_padded"] = paper_protocol(padded_sets, pairing, config, seed)
    return metrics, curve_rows(curves, sets["test"].shape[1])


def stored_extractors() -> list[str]:
    """Names of the extractors whose features are stored, `pixels` aside."""
    names = {path.stem for path in (FEATURES / SETS["test"]).glob("*.safetensors")}
    return sorted(names - {"pixels"})


def read_features(extractor: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays stored for each set of `SETS`: `features` [N, D], with some extractors others."""
    return {
        name: read_finite(FEATURES / folder / f"{extractor}.safetensors")
        for name, folder in SETS.items()
    }


def read_finite(file: Path) -> dict[str, np.ndarray]:
    """The arrays [N, ...] of a file of features.

    Raises:
        SystemExit: a row holds NaN or inf, of which no distance can be told.
    """
    arrays = load_file(file)
    for name, values in arrays.items():
        finite = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not finite.all():
            exit_with_error(
                f"{file}: {name} hold NaN or inf in {np.sum(~finite)} of {len(finite)} images, "
                f"the first in row {finite.argmin()}; run features again"
            )
    return arrays


def read_image_rows() -> dict[str, dict[str, list]]:
    """Columns of each set of `SETS`: filename and scene, or row and label of synthetic images.

    Real tiles have further the site that they were cut from.

    Raises:
        SystemExit: a set holds fewer than two images.
    """
    rows = {}
    for name, folder in SETS.items():
        table = pq.read_table(FEATURES / folder / "rows.parquet")
        if table.num_rows < 2:
            hint = ""
            if name == "test":
                hint = " (fetch_imagery.test says how many tiles are held out)"
            exit_with_error(
                f"{FEATURES / folder}: {table.num_rows} image(s); a distance between sets needs "
                f"at least 2 of each{hint}"
            )
        rows[name] = table.to_pydict()
        if name in ("test", "train"):
            rows[name]["site"] = sites_of_tiles(table.to_pylist())
    return rows


def match_real_tiles(rows: dict[str, dict[str, list]]) -> np.ndarray:
    """Index [N] of the test tile whose caption each tuned image, and each base image, shows.

    Raises:
        SystemExit: the images are of other tiles or, base and tuned, in another order.
    """
    index_of = {filename: i for i, filename in enumerate(rows["test"]["filename"])}
    for name in ("tuned", "base"):
        for filename in rows[name]["filename"]:
            if filename not in index_of:
                exit_with_error(
                    f"{FEATURES}/{name}: {filename} is not among the test tiles; "
                    "run sample and features again"
                )
    if rows["tuned"]["filename"] != rows["base"]["filename"]:
        exit_with_error(
            f"{FEATURES}/tuned and {FEATURES}/base are of different captions; "
            "run sample and features again"
        )
    return np.array([index_of[filename] for filename in rows["tuned"]["filename"]])


def label_images(
    rows: dict[str, dict[str, list]], classes: dict[str, list[str]]
) -> dict[str, list[str]]:
    """The class of each test tile, "" of a scene of none, and of each synthetic image."""
    class_of = {scene: label for label, scenes in classes.items() for scene in scenes}
    return {
        "test": [class_of.get(scene, "") for scene in rows["test"]["scene"]],
        "synthetic": rows["synthetic"]["label"],
    }


def write_nearest_training(pairs: list[dict], rows: dict[str, dict[str, list]]) -> None:
    """Write the closest pairs of a tuned and a training image, by their file names."""
    named = [
        pair
        | {
            "generated": rows["tuned"]["filename"][pair["generated"]],
            "training": rows["train"]["filename"][pair["training"]],
        }
        for pair in pairs
    ]
    write_csv("metrics/plots/nearest_training.csv", named, list(named[0]))


def measure_caption_agreement(
    rows: dict[str, dict[str, list]], classes: dict[str, list[str]], is_selected: bool
) -> dict:
    """Caption agreement by the scene classifier; writes its plot by scene too.

    The class agreement of a selected set is left out: the classifier selected it by that.
    """
    features = read_features("scene")
    logits = {name: values["logits"] for name, values in features.items()}
    wanted = {name: rows[name]["scene"] for name in ("tuned", "base", "test")}
    scenes = read_json("models/scene/config.json")["scenes"]
    agreement, table = caption_agreement(logits, wanted, scenes, rows["test"]["site"])
    if not is_selected:
        prompts = rows["synthetic"]["row"]
        agreement |= class_agreement(
            logits["synthetic"], rows["synthetic"]["label"], prompts, scenes, classes
        )
    columns = list(table[0]) if table else ["scene"]
    write_csv("metrics/plots/caption_agreement_by_scene.csv", table, columns)
    return agreement


def measure_clip_score(real_indices: np.ndarray, seed: int) -> dict[str, float]:
    """CLIP score of the tuned and base images and of the captions' real tiles."""
    features = read_features("clip")
    images = {
        "tuned": features["tuned"]["features"],
        "base": features["base"]["features"],
        "real": features["test"]["features"][real_indices],
    }
    return clip_score(images, features["tuned"]["captions"], rng(seed, "clip null"))


if __name__ == "__main__":
    run_stage(main, __doc__)
