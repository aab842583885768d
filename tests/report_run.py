"""A repository as it is after every stage but the report: rendered scenes as images, plausible numbers."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

from stages import report
from stages.common.artifacts import IMAGE, encode_png, write_json, write_shards
from stages.embedded.scenes import SCENES, tiles
from stages.params import LULC_CLASSES

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


def cell(image) -> dict:
    return {"bytes": encode_png(Image.fromarray(image)), "path": None}


def cell_row(image) -> dict:
    return {"image": cell(image)}


def build(root: Path, per_scene: int = 2, size: int = 16, per_class: int = 3) -> Path:
    """Write what `report` reads: rendered scenes as images, plausible numbers."""
    count = per_scene * len(SCENES)
    looks = {
        name: list(tiles(seed, 0, count, size, look))
        for name, seed, look in (("real", 1, "domain"), ("base", 2, "base"), ("tuned", 3, "domain"))
    }
    names = [f"{tile['scene']}_{i:05d}.png" for i, tile in enumerate(looks["real"])]
    write_shards(
        root / "data/imagery/train",
        (
            {"image": cell(tile["image"]), "filename": name}
            for tile, name in zip(looks["real"], names)
        ),
        pa.schema([("image", IMAGE), ("filename", pa.string())]),
    )
    write_shards(
        root / "data/imagery/test",
        (
            {
                "image": cell(tile["image"]),
                "captions": tile["captions"],
                "scene": tile["scene"],
                "filename": name,
            }
            for tile, name in zip(looks["real"], names)
        ),
        pa.schema(
            [
                ("image", IMAGE),
                ("captions", pa.list_(pa.string())),
                ("scene", pa.string()),
                ("filename", pa.string()),
            ]
        ),
    )
    sample = pa.schema(
        [
            ("image", IMAGE),
            ("filename", pa.string()),
            ("scene", pa.string()),
            ("caption", pa.string()),
            ("prompt", pa.string()),
            *SETTING_FIELDS,
        ]
    )
    for which in ("base", "tuned"):
        write_shards(
            root / f"data/samples/{which}",
            (
                {
                    "image": cell(drawn["image"]),
                    "filename": name,
                    "scene": tile["scene"],
                    "caption": tile["captions"][0],
                    "prompt": tile["captions"][0],
                    **SETTINGS,
                }
                for drawn, tile, name in zip(looks[which], looks["real"], names)
            ),
            sample,
        )
    (root / "stages/embedded").mkdir(parents=True)
    shutil.copyfile(
        REPOSITORY / "stages/embedded/figures.csv", root / "stages/embedded/figures.csv"
    )
    with open(root / "stages/embedded/figures.csv", newline="") as file:
        figures = list(csv.DictReader(file))
    pick = {
        label: [tile for tile in looks["tuned"] if tile["scene"] in scenes]
        for label, scenes in CLASSES.items()
    }
    write_shards(
        root / "data/samples/figures",
        (
            {
                "image": cell(pick[row["label"]][copy % per_scene]["image"]),
                "filename": f"{row['figure']}_{copy}",
                "scene": row["label"],
                "caption": row["prompt"],
                "prompt": row["prompt"],
                **SETTINGS,
            }
            for row in figures
            for copy in range(4)
        ),
        sample,
    )
    passages = pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))
    write_shards(
        root / "data/synthetic",
        (
            {
                "image": cell(pick[label][copy % len(pick[label])]["image"]),
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
        ),
        pa.schema(
            [
                ("image", IMAGE),
                ("row", pa.int32()),
                ("label", pa.string()),
                ("prompt", pa.string()),
                ("writer", pa.string()),
                ("technique", pa.string()),
                ("passages", passages),
                *SETTING_FIELDS,
            ]
        ),
    )

    (root / "models/index").mkdir(parents=True)
    pq.write_table(
        pa.table({"paper": ["03_fields"], "title": ["Fields <i>from</i> above"]}),
        root / "models/index/passages.parquet",
    )
    # What the scene classifier sees: the scene itself, but the first image of each class as a car park.
    draws, names_of = np.random.default_rng(0), list(SCENES)
    scenes = [tile["scene"] for tile in looks["real"]]
    shown = [
        "parking" if copy == 0 else CLASSES[label][0]
        for label in LULC_CLASSES
        for copy in range(per_class)
    ]
    for place, asked in (("real/train", scenes), ("real/test", scenes), ("synthetic", shown)):
        logits = np.float32([[5.0 * (name == scene) for name in names_of] for scene in asked])
        (root / "data/features" / place).mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "logits": logits,
                "features": logits + draws.normal(size=logits.shape).astype(np.float32),
            },
            root / "data/features" / place / "scene.safetensors",
        )
    shutil.copyfile(REPOSITORY / "dvc.yaml", root / "dvc.yaml")
    (root / ".dvc/tmp/stage_times").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for item, seconds in (("features@real", 61.0), ("features@base", 2.5), ("generate", 4.25)):
        (root / ".dvc/tmp/stage_times" / item).write_text(f"{seconds}\n")
    (root / "sweeps").mkdir()

    def score(value: float, n: int) -> dict:
        return {
            "loss": 1.1,
            "average_accuracy": value - 0.02,
            "f1": value,
            "jaccard": value / 2,
            "overall_accuracy": value,
            "f1_macro": value - 0.01,
            "overall_accuracy_lo": value - 0.05,
            "overall_accuracy_hi": value + 0.05,
            "n": n,
        }

    standard = {"refused": 0, "n": count, "n_real": count, "n_floor": count, "singular": 1}
    for name, value in {
        "fid": 2.1,
        "fid_infinity": 1.1,
        "sinkhorn": 0.3,
        "kid_x1000": 1.2,
        "precision": 0.8,
        "recall": 0.7,
        "density": 0.9,
        "coverage": 0.75,
    }.items():
        standard |= {
            name: value,
            f"{name}_lo": value * 0.9,
            f"{name}_hi": value * 1.1,
            f"{name}_floor": value / 4,
            f"{name}_floor_lo": value / 8,
            f"{name}_floor_hi": value / 2,
            f"{name}_base": value * 9,
        }
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
    metrics = {
        "corpus": {
            "papers": 21,
            "papers_failed": 1,
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
        },
        "fid": {"scene": {"standard": standard, "paper": paper}},
        "images": {
            "mismatch": {
                which: {
                    "blocking": 1.0,
                    "blocking_real": 1.0,
                    "detail_ratio": ratio,
                    "warned": int(ratio < 0.8),
                }
                for which, ratio in (("tuned", 0.6), ("synthetic", 0.9))
            },
            **{
                space: {
                    which: {
                        "memorized": 0.02,
                        "memorized_lo": 0.01,
                        "memorized_hi": 0.05,
                        "limit": 1.0,
                        "median": 2.0,
                        "median_real": 2.1,
                        "n": count,
                    }
                    for which in ("tuned", "synthetic")
                }
                for space in ("pixels", "scene")
            },
        },
        "caption_agreement": {
            "caption_agreement": 0.88,
            "caption_agreement_lo": 0.85,
            "caption_agreement_hi": 0.9,
            "caption_agreement_base": 0.3,
            "ceiling": 0.98,
            "n": count,
            "per_scene_min": 0.6,
            "class_agreement": 0.9,
            "class_agreement_lo": 0.8,
            "class_agreement_hi": 0.95,
            "class_agreement_n": 21,
        },
        "ceiling_lulc": score(0.93, 72),
        "ceiling_scenes": score(0.9, 96),
        "classify_lulc": {
            "synthetic_test": score(0.81, 70),
            "real_test": score(0.7, 72),
            "chance": 1 / 7,
            "n_train": 245,
        },
        "classify_scenes": {
            "synthetic_test": score(0.6, 96),
            "real_test": score(0.66, 96),
            "chance": 1 / 12,
            "n_train": 300,
        },
        "review": {"ratings": 0, "experts": 0, "ratings_of_other_runs": 0},
    }
    for name, value in metrics.items():
        write_json(root / f"metrics/{name}.json", value)
    lulc, scenes = zip(LULC_CLASSES * 3, LULC_CLASSES[::-1] * 3), zip(SCENES * 4, SCENES * 4)
    plots = {
        "diffusion_loss": "step,train_loss,validation_loss\n0,0.6,0.5\n100,0.3,0.29\n200,0.25,0.24\n",
        "llm_loss": "step,loss\n10,4.4\n20,3.9\n30,3.6\n",
        "caption_agreement_by_scene": "scene,tuned,base,real\n"
        + "".join(f"{scene},0.8,0.3,1.0\n" for scene in SCENES),
        "nearest_training": "generated,training,distance,real_percentile\n"
        + "".join(f"{name},{name},0.{i + 1},0.{i}\n" for i, name in enumerate(names[:6])),
        "confusion_lulc": "actual,predicted\n" + "".join(f"{a},{b}\n" for a, b in lulc),
        "confusion_scenes": "actual,predicted\n" + "".join(f"{a},{b}\n" for a, b in scenes),
        "fid_curve": "images,one_over_n,tuned,base,floor\n24,0.0417,2.1,19,0.5\n12,0.0833,3.3,20,1.1\n",
        "accuracy_by_class_lulc": "class,accuracy,n\n"
        + "".join(f"{label},0.7,9\n" for label in LULC_CLASSES),
    }
    (root / "metrics/plots").mkdir()
    for name, text in plots.items():
        (root / f"metrics/plots/{name}.csv").write_text(text)
    for folder in (
        "data/imagery",
        "data/papers",
        *(f"models/base/{role}" for role in report.ROLES),
    ):
        source = {
            "source": "none" if folder.endswith(("writer", "vision", "classifier")) else "embedded",
            "license": None,
        }
        write_json(
            root / folder / "SOURCE.json", source | {"files": {"model.safetensors": "ab" * 32}}
        )
    write_json(
        root / "data/imagery/REPORT.json",
        {
            "kept": {"train": 100, "valid": 10, "test": count},
            "scenes": 12,
            "skipped": {},
            "near_duplicates": {"groups": 3, "train_test": 2, "excluded_from_test": 1},
        },
    )
    write_json(
        root / "models/scene/config.json",
        {"model": "resnet18", "resolution": 64, "scenes": list(SCENES)},
    )
    for key in ("lulc", "scenes"):
        write_json(
            root / f"models/classifier/{key}/config.json",
            {"model": "resnet18", "resolution": 64, "classes": []},
        )
        write_json(
            root / f"models/classifier/{key}/context.json",
            {"weights": "none", "classes_without_real": []},
        )
    shutil.copyfile(REPOSITORY / "tests/params.yaml", root / "params.yaml")
    return root
