"""A repository after every stage but the report: rendered scenes as images, plausible numbers."""

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from safetensors.numpy import save_file

from stages.common.artifacts import IMAGE, encode_png, write_json, write_shards
from stages.common.class_names import slug
from stages.common.csv_files import write_csv
from stages.embedded.scenes import SCENES, render_tiles
from stages.params import ROLES
from tools.scale import compose

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = {
    "Bare Land": ["bareland", "desert"],
    "Crop Land": ["farmland"],
    "Cultivated Vegetation": ["orchard"],
    "Natural Vegetation": ["meadow"],
    "Snow Ice": ["snowfield"],
    "Water Body": ["lake", "coast"],
    "Woody Vegetation": ["forest"],
}
SETTINGS = {
    "negative_prompt": "",
    "seed": 7,
    "scheduler": "pndm",
    "steps": 25,
    "guidance_scale": 3.0,
    "model": "0123456789abcdef",
}
SETTING_FIELDS = [
    ("negative_prompt", pa.string()),
    ("seed", pa.int64()),
    ("scheduler", pa.string()),
    ("steps", pa.int32()),
    ("guidance_scale", pa.float64()),
    ("model", pa.string()),
]
TEST_SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("captions", pa.list_(pa.string())),
        ("scene", pa.string()),
        ("filename", pa.string()),
    ]
)
SAMPLES_SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("filename", pa.string()),
        ("scene", pa.string()),
        ("caption", pa.string()),
        ("prompt", pa.string()),
        *SETTING_FIELDS,
    ]
)
SYNTHETIC_SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("row", pa.int32()),
        ("label", pa.string()),
        ("prompt", pa.string()),
        ("writer", pa.string()),
        ("technique", pa.string()),
        ("passages", pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))),
        *SETTING_FIELDS,
    ]
)


def build(
    root: Path,
    per_scene: int = 2,
    size: int = 16,
    per_class: int = 3,
    classes: dict[str, list[str]] | None = None,
    scenes: list[str] | None = None,
) -> Path:
    """Write what `report` reads.

    Args:
        root: folder of the repository.
        per_scene: real tiles of each scene.
        size: pixels of an image.
        per_class: synthetic images of each class.
        classes: the scenes of each class, one at least; None: `CLASSES`.
        scenes: names of the scenes, whatever their pictures show; None: those of the renderer.
    """
    classes = classes or CLASSES
    scenes = scenes or list(SCENES)
    count = per_scene * len(scenes)
    real = rename_scenes(render_tiles(1, 0, count, size, "domain"), scenes)
    base = rename_scenes(render_tiles(2, 0, count, size, "base"), scenes)
    tuned = rename_scenes(render_tiles(3, 0, count, size, "domain"), scenes)
    names = [f"{slug(tile['scene'])}_{i:05d}.png" for i, tile in enumerate(real)]
    by_class = {
        label: [tile for tile in tuned if tile["scene"] in of_class]
        for label, of_class in classes.items()
    }

    write_imagery(root, real, names)
    write_samples(root / "data/samples/base", base, real, names)
    write_samples(root / "data/samples/tuned", tuned, real, names)
    write_figures(root, tuned)
    write_synthetic(root, by_class, per_class)
    write_features(root, [tile["scene"] for tile in real], per_class, classes, scenes)
    write_models(root, scenes)
    write_sources(root)
    (root / "metrics/plots").mkdir(parents=True)
    for name, metrics in finished_metrics(count, list(classes), scenes, per_class).items():
        write_json(root / f"metrics/{name}.json", metrics)
    for name, rows in finished_plots(names, list(classes), scenes, per_class).items():
        write_csv(root / f"metrics/plots/{name}.csv", rows, list(rows[0]))
    write_pipeline(root, classes)
    return root


def rename_scenes(tiles: Iterable[dict], scenes: list[str]) -> list[dict]:
    """The tiles, which show one scene after the other, with these names of the scenes."""
    return [tile | {"scene": scenes[i % len(scenes)]} for i, tile in enumerate(tiles)]


def image_cell(pixels: np.ndarray) -> dict:
    """pixels: uint8 [H, W, 3]."""
    return {"bytes": encode_png(Image.fromarray(pixels)), "path": None}


def write_imagery(root: Path, tiles: list[dict], names: list[str]) -> None:
    """The training tiles are the test tiles."""
    test = [
        {
            "image": image_cell(tile["image"]),
            "captions": tile["captions"],
            "scene": tile["scene"],
            "filename": name,
        }
        for tile, name in zip(tiles, names)
    ]
    write_shards(root / "data/imagery/train", test, TEST_SCHEMA)
    write_shards(root / "data/imagery/test", test, TEST_SCHEMA)
    write_shards(root / "data/imagery/valid", test[:4], TEST_SCHEMA)
    near_duplicates = {"groups": 3, "train_test": 2, "excluded_from_test": 1}
    write_json(
        root / "data/imagery/REPORT.json",
        {
            "kept": {"train": 100, "valid": 10, "test": len(tiles)},
            "scenes": 12,
            "skipped": {},
            "near_duplicates": near_duplicates,
        },
    )


def write_samples(folder: Path, images: list[dict], tiles: list[dict], names: list[str]) -> None:
    """One image for the first caption of each test tile."""
    rows = [
        {
            "image": image_cell(image["image"]),
            "filename": name,
            "scene": tile["scene"],
            "caption": tile["captions"][0],
            "prompt": tile["captions"][0],
            **SETTINGS,
        }
        for image, tile, name in zip(images, tiles, names)
    ]
    write_shards(folder, rows, SAMPLES_SCHEMA)


def write_figures(root: Path, tiles: list[dict]) -> None:
    """Four images for each prompt of the paper's figures."""
    (root / "stages/embedded").mkdir(parents=True)
    table = root / "stages/embedded/figures.csv"
    shutil.copyfile(REPOSITORY / "stages/embedded/figures.csv", table)
    with open(table, newline="") as file:
        figures = list(csv.DictReader(file))
    rows = [
        {
            "image": image_cell(tiles[copy % len(tiles)]["image"]),
            "filename": f"{figure['figure']}_{copy}",
            "scene": figure["label"],
            "caption": figure["prompt"],
            "prompt": figure["prompt"],
            **SETTINGS,
        }
        for figure in figures
        for copy in range(4)
    ]
    write_shards(root / "data/samples/figures", rows, SAMPLES_SCHEMA)


def write_synthetic(root: Path, by_class: dict[str, list[dict]], per_class: int) -> None:
    """Images of two prompts per class; the first has no passage."""
    rows = [
        {
            "image": image_cell(by_class[label][copy % len(by_class[label])]["image"]),
            "row": 2 * number + copy % 2,
            "label": label,
            "prompt": f'satellite image, {label.lower()} "{copy % 2}" <b>',
            "writer": "extractive",
            "technique": "retrieval",
            "passages": [{"paper": "03_fields", "page": 1}] if copy else [],
            **SETTINGS,
        }
        for number, label in enumerate(by_class)
        for copy in range(per_class)
    ]
    write_shards(root / "data/synthetic", rows, SYNTHETIC_SCHEMA)


def write_features(
    root: Path,
    real_scenes: list[str],
    per_class: int,
    classes: dict[str, list[str]],
    names: list[str],
) -> None:
    """The classifier recognizes every image, but the first of each class as the last scene."""
    generator = np.random.default_rng(0)
    synthetic_scenes = [
        names[-1] if copy == 0 else of_class[0]
        for of_class in classes.values()
        for copy in range(per_class)
    ]
    for folder, scenes in (
        ("real/train", real_scenes),
        ("real/test", real_scenes),
        ("synthetic", synthetic_scenes),
    ):
        recognized = np.array([[name == scene for name in names] for scene in scenes])
        logits = np.where(recognized, 5.0, 0.0).astype(np.float32)
        features = logits + generator.normal(size=logits.shape).astype(np.float32)
        (root / "data/features" / folder).mkdir(parents=True, exist_ok=True)
        save_file(
            {"logits": logits, "features": features},
            root / "data/features" / folder / "scene.safetensors",
        )


def write_models(root: Path, scenes: list[str]) -> None:
    """The configurations of the classifiers, the model to start from, the titles of the papers."""
    write_json(root / "models/start/start.json", {"folder": "models/base/diffusion"})
    write_json(
        root / "models/scene/config.json",
        {"model": "resnet18", "resolution": 64, "scenes": scenes},
    )
    for key in ("lulc", "scenes"):
        folder = root / "models/classifier" / key
        write_json(folder / "config.json", {"model": "resnet18", "resolution": 64, "classes": []})
        write_json(folder / "context.json", {"weights": "none", "classes_without_real": []})
    (root / "models/index").mkdir(parents=True)
    passage = {
        "paper": "03_fields",
        "title": "Fields <i>from</i> above",
        "page": 1,
        "text": "Fields are rectangles.",
        "vector": [0.6, 0.8],
    }
    pq.write_table(pa.Table.from_pylist([passage]), root / "models/index/passages.parquet")
    chunks = [
        {"paper": "03_fields", "chunk": 0, "text": "Fields are rectangles.", "split": "train"},
        {"paper": "04_lakes", "chunk": 0, "text": "Lakes are dark.", "split": "test"},
    ]
    pq.write_table(pa.Table.from_pylist(chunks), root / "data/chunks.parquet")


def write_sources(root: Path) -> None:
    """A SOURCE.json for each input."""
    files = {"model.safetensors": "ab" * 32}
    for folder in ("data/imagery", "data/papers", *(f"models/base/{role}" for role in ROLES)):
        without = folder.endswith(("writer", "vision", "classifier"))
        source = {"source": "none" if without else "embedded", "license": None, "files": files}
        write_json(root / folder / "SOURCE.json", source)


def write_pipeline(root: Path, classes: dict[str, list[str]]) -> None:
    """dvc.yaml and params, the times of three stages, no sweep."""
    shutil.copyfile(REPOSITORY / "dvc.yaml", root / "dvc.yaml")
    scale, _ = compose(["tests/params.yaml"], REPOSITORY)
    if classes != CLASSES:
        params = yaml.safe_load(scale)
        params["classes"] = classes
        params["prompt"] |= {"per_class": 2, "words": {}}
        scale = yaml.safe_dump(params, allow_unicode=True, sort_keys=False)
    (root / "params.yaml").write_text(scale, encoding="utf-8")
    times = root / ".dvc/tmp/stage_times"
    times.mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for stage, seconds in (("features@real", 61.0), ("features@base", 2.5), ("generate", 4.25)):
        (times / stage).write_text(f"{seconds}\n")
    (root / "sweeps").mkdir()


# Numbers ---------------------------------------------------------------------------------------


def finished_metrics(
    count: int, classes: list[str], scenes: list[str], per_class: int
) -> dict[str, dict]:
    """File name without `.json` -> content of metrics/*.json.

    Args:
        count: of test tiles.
        classes: their names, as `scenes`.
        per_class: synthetic images of each class.
    """
    all_kept = selection_counts(per_class)
    return FIXED_METRICS | {
        "select": {key: value * len(classes) for key, value in all_kept.items()}
        | {"per_class": {slug(name): all_kept for name in classes}},
        "fid": fid_metrics(count),
        "images": image_metrics(count),
        "caption_agreement": AGREEMENT
        | {"n": count, "per_scene": {slug(scene): 0.8 for scene in scenes}}
        | {"caption_agreement_chance": 1 / len(scenes)},
        "ceiling_lulc": classifier_scores(0.93, 72) | TRAINED | TILES,
        "ceiling_scenes": classifier_scores(0.9, 96) | TRAINED | TILES,
        "classify_lulc": {
            "synthetic_test": classifier_scores(0.81, 70),
            "real_test": classifier_scores(0.7, 72) | SHARE_OF_CEILING,
            "chance": 1 / len(classes),
            "majority": 0.25,
            **TRAINED,
        },
        "classify_scenes": {
            "synthetic_test": classifier_scores(0.6, 96),
            "real_test": classifier_scores(0.66, 96),
            "chance": 1 / len(scenes),
            "majority": 0.125,
            **TRAINED,
        },
    }


def selection_counts(kept: int) -> dict[str, int]:
    """A class of metrics/select.json all of whose images are kept."""
    return {
        "drawn": kept,
        "kept": kept,
        "missing": 0,
        "rejected_caption": 0,
        "rejected_duplicate": 0,
        "rejected_diversity": 0,
        "rejection_rate": 0,
        "unknown_scenes": 0,
    }


TRAINED = {"n_train": 245, "seeds": 3, "cpu_threads": 1}
TILES = {"n_tiles": 350, "n_wanted": 350}
SHARE_OF_CEILING = {
    "share_of_ceiling": 0.753,
    "share_of_ceiling_lo": 0.6,
    "share_of_ceiling_hi": 0.95,
}
FIXED_METRICS: dict[str, dict] = {
    "corpus": {
        "papers": 21,
        "papers_failed": 1,
        "papers_copies": 2,
        "files_skipped": 0,
        "papers_test": 4,
        "lines": 1500,
        "lines_test": 300,
        "characters": 99999,
    },
    "llm": {
        "perplexity": 21.5,
        "perplexity_lo": 20.0,
        "perplexity_hi": 23.0,
        "perplexity_base": 60.0,
        "perplexity_base_lo": 55.0,
        "perplexity_base_hi": 65.0,
        "bits_per_character": 1.4,
        "bits_per_character_base": 1.9,
        "n": 4,
        "tokens": 9000,
        "train_loss": 3.1,
        "trainable_share": 0.01,
        "cpu_threads": 2,
    },
    "prompts": {
        "extractive": {
            "retrieval": {
                "count": 70,
                "asked": 90,
                "rejected": 20,
                "distinct_2": 0.8,
                "class_agreement": 0.95,
            }
        },
        "domain": {"zero_shot": {"count": 0, "asked": 28, "rejected": 28}},
    },
    "diffusion": {
        "train_loss": 0.21,
        "validation_loss": 0.22,
        "validation_loss_base": 0.5,
        "best_step": 300,
        "steps": 400,
        "cpu_threads": 2,
    },
    "review": {"ratings": 0, "experts": 0, "ratings_of_other_runs": 0},
}
AGREEMENT = {
    "caption_agreement": 0.88,
    "caption_agreement_lo": 0.85,
    "caption_agreement_hi": 0.9,
    "caption_agreement_base": 0.3,
    "ceiling": 0.98,
    "per_scene_min": 0.6,
    "class_agreement": 0.9,
    "class_agreement_lo": 0.8,
    "class_agreement_hi": 0.95,
    "class_agreement_chance": 0.15,
    "class_agreement_n": 21,
}
DISTANCES = {
    "fid": 2.1,
    "fid_infinity": 1.1,
    "sinkhorn": 0.3,
    "kid_x1000": 1.2,
    "precision": 0.8,
    "recall": 0.7,
    "density": 0.9,
    "coverage": 0.75,
}


def classifier_scores(accuracy: float, n: int) -> dict:
    return {
        "loss": 1.1,
        "average_accuracy": accuracy - 0.02,
        "f1": accuracy,
        "jaccard": accuracy / 2,
        "overall_accuracy": accuracy,
        "f1_macro": accuracy - 0.01,
        "overall_accuracy_lo": accuracy - 0.05,
        "overall_accuracy_hi": accuracy + 0.05,
        "n": n,
    }


def fid_metrics(count: int) -> dict:
    standard: dict[str, float] = {
        "refused": 0,
        "n": count,
        "n_real": count,
        "n_floor": count,
        "n_floor_other_scene": 0,
        "singular": 1,
    }
    for name, value in DISTANCES.items():
        standard[name] = value
        standard[f"{name}_lo"] = value * 0.9
        standard[f"{name}_hi"] = value * 1.1
        standard[f"{name}_floor"] = value / 4
        standard[f"{name}_floor_lo"] = value / 8
        standard[f"{name}_floor_hi"] = value / 2
        standard[f"{name}_base"] = value * 9
    paper = {
        "refused": 0,
        "n": 8,
        "draws": 2,
        "singular": 1,
        "fid": 3.25,
        "fid_std": 0.5,
        "fid_floor": 0.6,
        "fid_base": 21.0,
        "n_floor_other_scene": 0,
    }
    separability = {
        "accuracy": 0.9,
        "accuracy_lo": 0.8,
        "accuracy_hi": 0.95,
        "accuracy_floor": 0.52,
        "accuracy_base": 0.99,
        "n": count,
    }
    return {"scene": {"standard": standard, "paper": paper, "separability": separability}}


def image_metrics(count: int) -> dict:
    memorization = {
        "memorized": 0.02,
        "memorized_lo": 0.01,
        "memorized_hi": 0.05,
        "memorized_expected": 0.014,
        "limit": 1.0,
        "median": 2.0,
        "median_real": 2.1,
        "n": count,
    }
    compression_artifacts = {
        image_set: {
            "blocking": 1.0,
            "blocking_real": 1.0,
            "detail_ratio": detail_ratio,
            "warned": int(detail_ratio < 0.8),
        }
        for image_set, detail_ratio in (("tuned", 0.6), ("synthetic", 0.9))
    }
    compression_artifacts["synthetic"]["class_mix"] = 1
    by_image_set = {"tuned": memorization, "synthetic": memorization}
    return {
        "compression_artifacts": compression_artifacts,
        "pixels": by_image_set,
        "scene": by_image_set,
    }


def finished_plots(
    names: list[str], classes: list[str], scenes: list[str], per_class: int
) -> dict[str, list[dict]]:
    """File name without `.csv` -> rows of metrics/plots/*.csv.

    Args:
        names: files of the test tiles.
        classes: their names, as `scenes`.
        per_class: synthetic images of each class.
    """
    agreement = {"tuned": 0.8, "tuned_lo": 0.6, "tuned_hi": 0.9, "base": 0.3, "real": 1.0}
    accuracy = {"accuracy": 0.7, "accuracy_lo": 0.5, "accuracy_hi": 0.8, "n": 9}
    counts = {"prompts": 2, "images": per_class, "real": 24}
    losses = [(0, 0.6, 0.5), (100, 0.3, 0.29), (200, 0.25, 0.24)]
    curve = [
        (24, 0.0417, 2.1, 19, 0.5, 2.1, 19, 0.5),
        (12, 0.0833, 3.3, 20, 1.1, 3.3, 20, 1.1),
        ("", 0.0, "", "", "", 0.9, 18, -0.1),
    ]
    columns = ("images", "one_over_n", "tuned", "base", "floor", "tuned_line", "base_line")
    return {
        "diffusion_loss": [
            {"step": step, "train_loss": train, "validation_loss": valid}
            for step, train, valid in losses
        ],
        "llm_loss": [{"step": step, "loss": loss} for step, loss in ((10, 4.4), (20, 3.9))],
        "caption_agreement_by_scene": [{"scene": scene} | agreement for scene in scenes],
        "nearest_training": [
            {"generated": name, "training": name, "distance": f"0.{i + 1}", "real_percentile": i}
            for i, name in enumerate(names[:6])
        ],
        "confusion_lulc": [
            {"actual": a, "predicted": b} for a, b in zip(classes * 3, classes[::-1] * 3)
        ],
        "confusion_scenes": [{"actual": scene, "predicted": scene} for scene in scenes * 4],
        "fid_curve": [dict(zip((*columns, "floor_line"), row)) for row in curve],
        "accuracy_by_class_lulc": [{"class": name} | accuracy for name in classes],
        "images_per_class": [{"class": name} | counts for name in classes],
    }
