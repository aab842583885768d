"""A repository after every stage but the report: rendered scenes as images, plausible numbers."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

from stages.common.artifacts import IMAGE, encode_png, write_json, write_shards
from stages.embedded.scenes import SCENES, render_tiles
from stages.params import LULC_CLASSES
from stages.reporting.context import ROLES
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
TRAINING_SCHEMA = pa.schema([("image", IMAGE), ("filename", pa.string())])
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


def build(root: Path, per_scene: int = 2, size: int = 16, per_class: int = 3) -> Path:
    """Write what `report` reads.

    Args:
        root: folder of the repository.
        per_scene: real tiles of each scene.
        size: pixels of an image.
        per_class: synthetic images of each class.
    """
    count = per_scene * len(SCENES)
    real = list(render_tiles(1, 0, count, size, "domain"))
    base = list(render_tiles(2, 0, count, size, "base"))
    tuned = list(render_tiles(3, 0, count, size, "domain"))
    names = [f"{tile['scene']}_{i:05d}.png" for i, tile in enumerate(real)]
    by_class = {
        label: [tile for tile in tuned if tile["scene"] in scenes]
        for label, scenes in CLASSES.items()
    }

    write_imagery(root, real, names)
    write_samples(root / "data/samples/base", base, real, names)
    write_samples(root / "data/samples/tuned", tuned, real, names)
    write_figures(root, by_class, per_scene)
    write_synthetic(root, by_class, per_class)
    write_features(root, [tile["scene"] for tile in real], per_class)
    write_models(root)
    write_sources(root)
    (root / "metrics/plots").mkdir(parents=True)
    for name, metrics in finished_metrics(count).items():
        write_json(root / f"metrics/{name}.json", metrics)
    for name, text in finished_plots(names).items():
        (root / f"metrics/plots/{name}.csv").write_text(text)
    write_pipeline(root)
    return root


def image_cell(pixels: np.ndarray) -> dict:
    """pixels: uint8 [H, W, 3]."""
    return {"bytes": encode_png(Image.fromarray(pixels)), "path": None}


def write_imagery(root: Path, tiles: list[dict], names: list[str]) -> None:
    """The training tiles are the test tiles."""
    training = [
        {"image": image_cell(tile["image"]), "filename": name} for tile, name in zip(tiles, names)
    ]
    test = [
        row | {"captions": tile["captions"], "scene": tile["scene"]}
        for row, tile in zip(training, tiles)
    ]
    write_shards(root / "data/imagery/train", training, TRAINING_SCHEMA)
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


def write_figures(root: Path, by_class: dict[str, list[dict]], per_scene: int) -> None:
    """Four images for each prompt of the paper's figures."""
    (root / "stages/embedded").mkdir(parents=True)
    table = root / "stages/embedded/figures.csv"
    shutil.copyfile(REPOSITORY / "stages/embedded/figures.csv", table)
    with open(table, newline="") as file:
        figures = list(csv.DictReader(file))
    rows = [
        {
            "image": image_cell(by_class[figure["label"]][copy % per_scene]["image"]),
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
        for number, label in enumerate(LULC_CLASSES)
        for copy in range(per_class)
    ]
    write_shards(root / "data/synthetic", rows, SYNTHETIC_SCHEMA)


def write_features(root: Path, real_scenes: list[str], per_class: int) -> None:
    """The classifier recognizes every image, but the first of each class as a parking lot."""
    generator = np.random.default_rng(0)
    synthetic_scenes = [
        "parking" if copy == 0 else CLASSES[label][0]
        for label in LULC_CLASSES
        for copy in range(per_class)
    ]
    for folder, scenes in (
        ("real/train", real_scenes),
        ("real/test", real_scenes),
        ("synthetic", synthetic_scenes),
    ):
        recognized = np.array([[name == scene for name in SCENES] for scene in scenes])
        logits = np.where(recognized, 5.0, 0.0).astype(np.float32)
        features = logits + generator.normal(size=logits.shape).astype(np.float32)
        (root / "data/features" / folder).mkdir(parents=True, exist_ok=True)
        save_file(
            {"logits": logits, "features": features},
            root / "data/features" / folder / "scene.safetensors",
        )


def write_models(root: Path) -> None:
    """The configurations of the classifiers, the model to start from, the titles of the papers."""
    write_json(root / "models/start/start.json", {"folder": "models/base/diffusion"})
    write_json(
        root / "models/scene/config.json",
        {"model": "resnet18", "resolution": 64, "scenes": list(SCENES)},
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


def write_pipeline(root: Path) -> None:
    """dvc.yaml and params, the times of three stages, no sweep."""
    shutil.copyfile(REPOSITORY / "dvc.yaml", root / "dvc.yaml")
    scale, _ = compose(["tests/params.yaml"], REPOSITORY)
    (root / "params.yaml").write_text(scale)
    times = root / ".dvc/tmp/stage_times"
    times.mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for stage, seconds in (("features@real", 61.0), ("features@base", 2.5), ("generate", 4.25)):
        (times / stage).write_text(f"{seconds}\n")
    (root / "sweeps").mkdir()


# Numbers ---------------------------------------------------------------------------------------


def finished_metrics(count: int) -> dict[str, dict]:
    """File name without `.json` -> content of metrics/*.json. count: of test tiles."""
    return FIXED_METRICS | {
        "fid": fid_metrics(count),
        "images": image_metrics(count),
        "caption_agreement": AGREEMENT | {"n": count},
        "ceiling_lulc": classifier_scores(0.93, 72) | TRAINED,
        "ceiling_scenes": classifier_scores(0.9, 96) | TRAINED,
        "classify_lulc": {
            "synthetic_test": classifier_scores(0.81, 70),
            "real_test": classifier_scores(0.7, 72),
            "chance": 1 / 7,
            "majority": 0.25,
            **TRAINED,
        },
        "classify_scenes": {
            "synthetic_test": classifier_scores(0.6, 96),
            "real_test": classifier_scores(0.66, 96),
            "chance": 1 / 12,
            "majority": 0.125,
            **TRAINED,
        },
    }


TRAINED = {"n_train": 245, "seeds": 3, "cpu_threads": 1}
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
    }
    return {"scene": {"standard": standard, "paper": paper}}


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
    by_image_set = {"tuned": memorization, "synthetic": memorization}
    return {
        "compression_artifacts": compression_artifacts,
        "pixels": by_image_set,
        "scene": by_image_set,
    }


def finished_plots(names: list[str]) -> dict[str, str]:
    """File name without `.csv` -> text of metrics/plots/*.csv. names: files of the test tiles."""
    backward = LULC_CLASSES[::-1]
    return {
        "diffusion_loss": (
            "step,train_loss,validation_loss\n0,0.6,0.5\n100,0.3,0.29\n200,0.25,0.24\n"
        ),
        "llm_loss": "step,loss\n10,4.4\n20,3.9\n30,3.6\n",
        "caption_agreement_by_scene": "scene,tuned,tuned_lo,tuned_hi,base,real\n"
        + "".join(f"{scene},0.8,0.6,0.9,0.3,1.0\n" for scene in SCENES),
        "nearest_training": "generated,training,distance,real_percentile\n"
        + "".join(f"{name},{name},0.{i + 1},0.{i}\n" for i, name in enumerate(names[:6])),
        "confusion_lulc": "actual,predicted\n"
        + "".join(f"{a},{b}\n" for a, b in zip(LULC_CLASSES * 3, backward * 3)),
        "confusion_scenes": "actual,predicted\n"
        + "".join(f"{scene},{scene}\n" for scene in SCENES * 4),
        "fid_curve": (
            "images,one_over_n,tuned,base,floor,tuned_line,base_line,floor_line\n"
            "24,0.0417,2.1,19,0.5,2.1,19,0.5\n12,0.0833,3.3,20,1.1,3.3,20,1.1\n"
            ",0.0,,,,0.9,18,-0.1\n"
        ),
        "accuracy_by_class_lulc": "class,accuracy,accuracy_lo,accuracy_hi,n\n"
        + "".join(f"{label},0.7,0.5,0.8,9\n" for label in LULC_CLASSES),
    }
