"""Compare generated images with real ones: `fid`'s metrics, for the images of anybody's model.

    python -m tools.evaluate REAL GENERATED
    python -m tools.evaluate REAL GENERATED --features inception2048 --resolution 256 --train TRAIN
    python -m tools.evaluate REAL GENERATED --features clip --captions captions.jsonl

REAL and GENERATED are Parquet files, or folders of Parquet files or of images, in any layout of
docs/data.md; they need neither captions nor classes. What can't be used is skipped, counted and
named. Prints FID, KID, precision, recall and so on, each with its 95 % confidence interval.

Settings are those of params.yaml (`seed`, `features.batch_size`, `fid`). The sets are taken as
independent: docs/protocol.md says what that shifts where the images follow the real ones' captions,
and how to compare published models. Neither names nor the order of the images matter. Metrics of
pairwise distances use 10,000 images at most, Sinkhorn 2,000. The temporary folder holds each image
twice.

With --features scene it also measures caption agreement, where the scenes of the images are known:
by a scene column, a class folder, a name such as airport_1.png, or --captions.
"""

import argparse
import hashlib
import os
import tempfile
from collections import Counter
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import chi2_contingency

from stages.common.artifacts import read_json, read_rows, write_json
from stages.common.rounding import read_interval
from stages.common.sources import file_hash, file_hashes
from stages.common.torch_setup import make_deterministic
from stages.evaluation.caption_agreement import clip_score_with_interval, judge_scenes
from stages.evaluation.extraction import extract
from stages.evaluation.extractors import caption_embeddings, load_extractor, weights_folder
from stages.evaluation.intervals import share_with_interval
from stages.evaluation.protocols import fid_curves, standard_protocol
from stages.evaluation.sites import describe_sites, sites_of_tiles
from stages.imagery.captions import row_captions, usable_captions
from stages.imagery.readers.items import SCENE_FIELDS, SourceItem, scene_of
from stages.imagery.readers.metadata_lists import csv_fields, read_metadata
from stages.imagery.unusable_image import MIN_SIDE
from stages.params import Extractor, Params, load
from stages.reporting.rows import format_number
from stages.runtime.errors import exit_with_error
from stages.runtime.process import interrupt_on_signals, make_parser, start_process
from stages.runtime.processes import process_state
from stages.train_scene import EMBEDDED
from tools.image_sets import ImageSet, read_images

# Quantile: 1 % of independent pairs of sets are more alike. Counts of two scenes are often equal by
# chance: of even ones, in 4 % of pairs with 200 images in each set and in 12 % with 20.
ALIKE = 0.99
MIN_EXPECTED = 5  # images of a scene, on average: of fewer, the chi-square distribution is no guide
TITLES = {
    "fid": "FID",
    "fid_infinity": "FID infinity",
    "kid_x1000": "KID x 1000",
    "cmmd": "CMMD",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "sinkhorn": "Sinkhorn divergence",
    "caption_agreement": "caption agreement",
    "ceiling": "caption agreement of the real images",
    "clip_score": "CLIP score",
}


def main() -> None:
    options = parse_arguments()
    start_process()
    interrupt_on_signals()
    params = load()
    make_deterministic(params.seed)
    check_options(options)
    # Before the images are read, which can take long: the weights may be missing.
    network = load_extractor(options.features, options.weights)

    with tempfile.TemporaryDirectory() as temporary:
        sets = {
            name: read_images(path, Path(temporary) / name, options.resolution, params)
            for name, path in named_paths(options).items()
        }
        notes = describe_judge(weights_folder(options.features, options.weights))
        notes += compare_pixels(sets) + compare_scenes(sets["test"], sets["tuned"])
        if options.captions is None and sets["tuned"].unread_captions is not None:
            notes.append(
                f"{options.generated}: {sets['tuned'].unread_captions} seems to hold captions, "
                "which aren't read: write them as metadata.jsonl or metadata.csv (docs/data.md)"
            )
        lines = read_lines(options.captions, sets["tuned"])
        shown = read_shown(options, sets["tuned"], lines)
        units = caption_units(sets["tuned"], lines)
        notes += describe_units(units)
        outputs = extract_outputs(network, sets, options.features, params)

    features = {name: values["features"] for name, values in outputs.items()}
    curves = fid_curves(features, params.seed)
    sites = read_sites(sets["test"])
    metrics = standard_protocol(
        features, curves, params.fid, params.seed, options.features, sites=sites
    )
    captions: dict[str, float] = {}
    if options.features == "scene":
        scenes = read_json(weights_folder("scene", options.weights) / "config.json")["scenes"]
        wanted = {"tuned": shown, "test": sets["test"].scenes}
        captions = measure_agreement(outputs, wanted, scenes, sites, units)
        if options.captions is not None and not captions:
            notes.append(
                f"{options.captions} has no scene that the classifier knows, nor have file names: "
                "no caption agreement"
            )
    elif shown:
        folder = weights_folder("clip", options.weights)
        embeddings = caption_embeddings(network, shown, params.features.batch_size, folder)
        captions = clip_score_with_interval(features["tuned"], embeddings.numpy(), units)

    print_results(metrics, captions, options.features, notes)
    if options.json:
        result = {options.features: {"standard": metrics}, "captions": captions}
        write_json(options.json, result | {"measured_on": describe(options, sets, params)})


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("tools.evaluate", __doc__)
    parser.add_argument("real", type=Path, help="held-out real images: a Parquet file or a folder")
    parser.add_argument("generated", type=Path, help="generated images, likewise")
    parser.add_argument(
        "--train",
        type=Path,
        help="real training images, for the floor: real vs. real; at least as many as generated "
        "ones",
    )
    parser.add_argument("--features", choices=get_args(Extractor), default="scene")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FOLDER",
        help="of the features: a scene classifier (default: models/scene), or a folder that holds "
        "inception2048/ and so on (default: models/base/vision)",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="PX",
        help="scale the shorter side of every image to this many pixels and crop the center square "
        "(default: square images of one size, as they are)",
    )
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="what the generated images should show: JSON lines or CSV with file_name, and text "
        "(for the CLIP score) or scene",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    return parser.parse_args()


def named_paths(options: argparse.Namespace) -> dict[str, Path]:
    """The paths of the sets, by the names that the protocols have for them."""
    paths = {"test": options.real, "tuned": options.generated, "train": options.train}
    return {name: path for name, path in paths.items() if path is not None}


def check_options(options: argparse.Namespace) -> None:
    """Exit with an error if a file or folder is missing, or options don't go together."""
    files = [*named_paths(options).values()]
    if options.captions is not None:
        files.append(options.captions)
        if options.features not in ("scene", "clip"):
            exit_with_error(
                f"evaluate: --captions: {options.features} has no use for it; it is for --features "
                "clip (CLIP score) and scene (caption agreement)"
            )
    for file in files:
        if not file.exists():
            exit_with_error(f"evaluate: {file}: no such file or folder")
    if options.captions is not None and options.captions.suffix not in (".jsonl", ".csv"):
        exit_with_error(f"evaluate: --captions {options.captions}: not a .jsonl or .csv file")
    # Before the work, which can take hours.
    if options.json is not None and not is_writable(options.json):
        exit_with_error(f"evaluate: --json {options.json}: can't be written")
    if options.resolution is not None and options.resolution < MIN_SIDE:
        exit_with_error(f"evaluate: --resolution {options.resolution}: at least {MIN_SIDE} px")
    folder = weights_folder("scene", options.weights)
    if options.features == "scene" and not (folder / "config.json").is_file():
        exit_with_error(
            f"evaluate: {folder}: no scene classifier in it: `make` writes one, --weights names "
            "another run's models/scene, --features other networks"
        )


def is_writable(file: Path) -> bool:
    """Whether a file may be written there: its folder exists, and it is no folder itself."""
    return os.access(file.parent, os.W_OK) and not file.is_dir()


# Images and captions ----------------------------------------------------------------------------


def describe_judge(weights: Path) -> list[str]:
    """A note if the weights in a folder are those of the embedded judge; [] otherwise."""
    file = weights / "model.safetensors"
    if not file.is_file() or file_hash(file) != file_hash(EMBEDDED / file.name):
        return []
    return [
        f"{weights} is the embedded judge, which knows rendered scenes only: for other images, use "
        "--features efficientnet, or --weights of a scene classifier trained on such"
    ]


def compare_pixels(sets: dict[str, ImageSet]) -> list[str]:
    """Notes on images that are in a set, or in two, more than once, and on their sizes."""
    notes = []
    real = sets["test"]
    for images in sets.values():
        side = images.side
        small = [source_side for source_side in images.source_sides if source_side < side]
        if small:
            notes.append(
                f"{images.path}: {len(small)} of {len(images.names)} images were enlarged to "
                f"{side} px, the smallest from {min(small)} px"
            )
        copies = len(images.hashes) - len(set(images.hashes))
        if copies:
            notes.append(
                f"{images.path}: {copies} of {len(images.names)} images are copies of others in "
                "it, but count as independent: with many copies, CIs are too narrow and precision "
                "or recall too low"
            )
        if side != real.side:
            notes.append(
                f"{real.path} has {real.side} px, {images.path} {side} px: FID measures that "
                "too; --resolution PX compares both at one size"
            )
    for some, others in combinations(sets.values(), 2):
        shared = len(set(some.hashes) & set(others.hashes))
        if shared:
            notes.append(f"{shared} images are both in {some.path} and in {others.path}")
    return notes


def compare_scenes(real: ImageSet, generated: ImageSet) -> list[str]:
    """A note where the shares of several scenes are more alike in both sets than by chance."""
    counts = [Counter(images.scenes) for images in (real, generated)]
    scenes = sorted(counts[0] | counts[1])
    if len(scenes) == 1:
        return []
    table = [[count[scene] for scene in scenes] for count in counts]
    test = chi2_contingency(table, correction=False)
    is_alike = test.expected_freq.mean() >= MIN_EXPECTED and test.pvalue >= ALIKE
    if not is_alike and not np.allclose(table, test.expected_freq):
        return []
    return [
        "both sets have nearly the same share of images of each scene, as independent ones "
        "wouldn't: FID infinity and KID are too low, their CIs too wide"
    ]


def read_lines(file: Path | None, generated: ImageSet) -> list[dict]:
    """The lines of --captions, one for each generated image, in their order; [] without a file.

    Raises:
        SystemExit: it lacks an image, has several lines for one, or no commas between its fields.
    """
    if file is None:
        return []
    csv_fields(file, f"evaluate: {file}")
    rows: dict[str, dict] = {}
    for line, row in read_metadata(file, f"evaluate: {file}"):
        if not isinstance(row.get("file_name"), str):
            exit_with_error(f"evaluate: {file}: line {line} has no file_name")
        if rows.setdefault(without_suffix(row["file_name"]), row) != row:
            exit_with_error(
                f"evaluate: {file}: line {line} is not the first for "
                f"{row['file_name']}: give one line for each image"
            )
    (repeated, times), *_ = Counter(sorted(generated.names)).most_common(1)
    if times > 1:
        exit_with_error(
            f"evaluate: {generated.path}: {times} images are named {repeated}: --captions can't "
            "tell them apart"
        )
    missing = sorted(name for name in generated.names if without_suffix(name) not in rows)
    if missing:
        first = next((row["file_name"] for row in rows.values()), "none")
        exit_with_error(
            f"evaluate: {file}: no line for {len(missing)} of {len(generated.names)} "
            f"images of {generated.path} ({missing[0]} ...); its first file_name is {first}"
        )
    return [rows[without_suffix(name)] for name in generated.names]


def read_shown(options: argparse.Namespace, generated: ImageSet, lines: list[dict]) -> list[str]:
    """What the generated images should show: their captions for `clip`, their scenes for `scene`.

    Without --captions the scenes are those of the images' own columns, folders or names; the list
    is empty where they have no caption.

    Raises:
        SystemExit: a line of --captions has no or several captions.
    """
    if options.captions is None:
        return generated.scenes if options.features == "scene" else []
    lines_of_images = zip(generated.names, lines, strict=True)
    if options.features == "scene":
        return [scene_of_row(name, row) for name, row in lines_of_images]
    return [caption_of_row(name, row, options.captions) for name, row in lines_of_images]


def read_sites(real: ImageSet) -> list[str]:
    """The site [N] that each real tile was cut from, which a run's own shards tell."""
    has_shards = any(real.path.glob("*.parquet"))
    rows = read_rows(real.path, [], ["filename", "site"]) if has_shards else []
    site_of = {row.get("filename"): row.get("site") for row in rows}
    return sites_of_tiles({"filename": name, "site": site_of.get(name)} for name in real.names)


def caption_units(generated: ImageSet, lines: list[dict]) -> np.ndarray:
    """Number [N] of each generated image's caption; without one, an image has its own number.

    Args:
        generated: the images, whose own captions count where `lines` has none.
        lines: of --captions.
    """
    texts = generated.captions
    if lines:
        given = [usable_captions(row_captions(row))[0] for row in lines]
        texts = [" ".join(captions) or own for captions, own in zip(given, texts, strict=True)]
    keys = [text or f"\n{i}" for i, text in enumerate(texts)]  # no caption holds a line break
    return np.unique(keys, return_inverse=True)[1]


def describe_units(units: np.ndarray) -> list[str]:
    """A note on several images of one caption; [] of none. units: of `caption_units`."""
    count = len(np.unique(units))
    if count == len(units):
        return []
    return [
        f"{len(units)} images of {count} caption(s): where several images were generated for a "
        "caption, the CIs of FID, KID, recall and so on are too narrow: they take all images as "
        "independent"
    ]


def without_suffix(name: str) -> str:
    """A file name without its suffix: a list made for `a.jpg` serves a generated `a.png`."""
    path = PurePosixPath(name)
    return str(path.parent / path.stem)


def scene_of_row(name: str, row: dict) -> str:
    given = next((row[field] for field in SCENE_FIELDS if row.get(field)), None)
    return scene_of(SourceItem(None, name, scene=given))


def caption_of_row(name: str, row: dict, file: Path) -> str:
    """The caption of a line. Exits with an error if it has none or several."""
    captions, reason = usable_captions(row_captions(row))
    if len(captions) != 1:
        exit_with_error(
            f"evaluate: {file}: {name}: {reason or f'{len(captions)} captions'}; the CLIP score "
            "needs the one that the image was generated from"
        )
    return captions[0]


# Measuring them ---------------------------------------------------------------------------------


def extract_outputs(
    network: torch.nn.Module, sets: dict[str, ImageSet], extractor: str, params: Params
) -> dict[str, dict[str, np.ndarray]]:
    """The network's outputs [N, ...] for each set, as the stage `features` extracts them.

    Raises:
        SystemExit: a feature is NaN or inf.
    """
    state = process_state()
    network.to(state.device)
    outputs = {}
    for name, images in sets.items():
        extracted = extract(
            network,
            str(images.shards),
            len(images.names),
            params.features.batch_size,
            state,
            f"{extractor} of {images.path}",
        )
        outputs[name] = {key: value.numpy() for key, value in extracted.items()}
        if not np.isfinite(outputs[name]["features"]).all():
            exit_with_error(
                f"evaluate: {images.path}: {extractor} gives NaN or inf; are its weights damaged?"
            )
    return outputs


def measure_agreement(
    outputs: dict[str, dict[str, np.ndarray]],
    wanted: dict[str, list[str]],
    scenes: list[str],
    test_sites: list[str],
    caption_numbers: np.ndarray,
) -> dict[str, float]:
    """Share of images in which the scene classifier sees the wanted scene, and of real ones.

    Images of scenes that it doesn't know are left out; {} where it knows none of the generated.
    The interval of generated images counts their captions (numbers [N] of `caption_units`), that of
    real tiles the sites that they were cut from.
    """
    metrics: dict[str, float] = {}
    units = {
        "tuned": caption_numbers[np.isin(wanted["tuned"], scenes)],
        "test": np.array(test_sites)[np.isin(wanted["test"], scenes)],
    }
    for key, name in (("caption_agreement", "tuned"), ("ceiling", "test")):
        correct, _ = judge_scenes(outputs[name]["logits"], wanted[name], scenes)
        if not len(correct):
            break
        metrics |= share_with_interval(key, correct, units[name])
        metrics[f"{key}_n"] = len(correct)
        metrics[f"{key}_n_unknown_scene"] = len(wanted[name]) - len(correct)
    return metrics


def describe(
    options: argparse.Namespace, sets: dict[str, ImageSet], params: Params
) -> dict[str, Any]:
    """What must be equal for two results to compare, and what was skipped."""
    described: dict[str, Any] = {}
    for name, images in sets.items():
        described[name] = {
            "images": len(images.names),
            "pixels_sha256": hashlib.sha256("".join(images.hashes).encode()).hexdigest(),
            "side_px": images.side,
            "smallest_source_px": min(images.source_sides),
            "skipped": images.skipped.reasons,
        }
    weights = weights_folder(options.features, options.weights)
    return described | {
        "weights_sha256": file_hashes(sorted(weights.glob("*.safetensors"))),
        "resolution": options.resolution,
        "seed": params.seed,
        "subsets": params.fid.subsets,
        "batch_size": params.features.batch_size,
    }


# Showing the results ----------------------------------------------------------------------------


def print_results(
    metrics: dict[str, float],
    captions: dict[str, float],
    extractor: str,
    notes: list[str],
) -> None:
    """Print the table of metrics, and what to know about them."""
    print(f"{extractor} features; n = {metrics['n']} generated, {metrics['n_real']} real images")
    rows = [["metric", "value", "95 % CI", "real vs. real", "95 % PI"]]
    values = metrics | captions
    for name, title in TITLES.items():
        if name in values:
            rows.append([title, *value_cells(values, name), *value_cells(values, f"{name}_floor")])
    if "n_floor" not in metrics:
        rows = [row[:3] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if metrics["singular"]:
        notes = [*notes, "fewer images than dimensions of the features: FID has a large bias"]
    if metrics["infinity_singular"]:
        half = "half of the images are not more than the dimensions of the features"
        notes = [*notes, f"{half}: FID infinity is far too high"]
    if described := describe_sites(metrics):
        notes = [*notes, described]
    for note in notes:
        print(f"note: {note}")


def value_cells(values: dict[str, float], name: str) -> list[str]:
    """A number and its interval, "-" where there is none."""
    return [format_number(values.get(name)), format_number(read_interval(values, name))]


if __name__ == "__main__":
    main()
