"""Label sets other than the paper's through the whole pipeline: EuroSAT's ten, five in Chinese."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import copy_repository, shell
from PIL import Image

from stages.params import slug

EUROSAT = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]
CHINESE = ["水体", "森林", "农田", "裸地", "建筑物"]
TILES_PER_SCENE = 12


def draw_tiles(folder: Path, scenes: list[str]) -> None:
    """Write class folders of tiles: each scene a color of its own, with noise and a stripe.

    The first scene has twice as many as the others.
    """
    for number, scene in enumerate(scenes):
        (folder / scene).mkdir(parents=True)
        color = np.random.default_rng(number).integers(40, 216, 3)
        for tile in range(TILES_PER_SCENE if number else 2 * TILES_PER_SCENE):
            rng = np.random.default_rng([number, tile])
            pixels = color + rng.normal(0, 25, (32, 32, 3))
            pixels[:, rng.integers(28) :][:, :4] += 30
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / scene / f"{tile}.png")


def run_pipeline(copy: Path, smoke: Path, environment: dict, scales: list[str]) -> None:
    """`dvc repro` at these scales; what the smoke run has made already comes from its cache."""
    done = shell("python", "-m", "tools.scale", *scales, "--force", cwd=copy)
    assert done.returncode == 0, done.stderr
    shell("dvc", "config", "--local", "cache.dir", str(smoke / ".dvc/cache"), cwd=copy)
    done = shell("dvc", "repro", cwd=copy, env=environment, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def own_imagery(folder: Path) -> dict:
    """The imagery params of drawn tiles, all of which are kept."""
    return {
        "source": f"path:{folder}",
        "exclude_near_duplicates": False,  # tiles of one color
        "max_images": None,
        "test": 0.4,
    }


def write_scale(copy: Path, values: dict) -> str:
    path = copy / "own.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path.name


@pytest.fixture(scope="module")
def eurosat(smoke, warm_environment, tmp_path_factory) -> Path:
    """A run of EuroSAT's ten by the overlay alone; no tile shows SeaLake."""
    folder = tmp_path_factory.mktemp("eurosat")
    draw_tiles(folder / "tiles", EUROSAT[:-1])
    copy = copy_repository(folder / "copy")
    own = write_scale(
        copy,
        {
            "fetch_imagery": own_imagery(folder / "tiles"),
            "train_scene": {"source": "scratch", "epochs": 4},
            "encode": {"base_domain": "none"},
        },
    )
    run_pipeline(copy, smoke, warm_environment, ["tests/params.yaml", "eurosat", own])
    return copy


@pytest.fixture(scope="module")
def chinese(smoke, warm_environment, tmp_path_factory) -> Path:
    """A run of five classes that are known by their Chinese names alone, from scratch.

    Each gets as many images as it has real tiles, in proportion.
    """
    folder = tmp_path_factory.mktemp("chinese")
    draw_tiles(folder / "tiles", CHINESE)
    copy = copy_repository(folder / "copy")
    own = write_scale(
        copy,
        {
            "classes": {name: [name] for name in CHINESE},
            "fetch_imagery": own_imagery(folder / "tiles"),
            "fetch_model": {"diffusion": "none"},
            "train_base": {
                "source": "scratch",
                "vae_channels": [8, 16, 16],
                "vae_steps": 4,
                "text_width": 32,
                "text_layers": 1,
                "text_steps": 4,
                "unet_channels": [16, 16],
                "batch_size": 8,
            },
            "train_scene": {"source": "scratch", "epochs": 1},
            "encode": {"base_domain": "none"},
            "generate": {"balance": {"like": "real"}},
        },
    )
    run_pipeline(copy, smoke, warm_environment, ["tests/params.yaml", own])
    return copy


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def test_ten_classes_of_an_overlay_have_prompts_images_and_a_classifier(eurosat):
    prompts = pq.read_table(eurosat / "data/prompts.parquet").to_pylist()
    assert {row["label"] for row in prompts} == set(EUROSAT)
    assert len(prompts) == 2 * len(EUROSAT)
    images = pq.read_table(eurosat / "data/synthetic", columns=["label"])["label"].to_pylist()
    assert {name: images.count(name) for name in EUROSAT} == dict.fromkeys(EUROSAT, 4)
    confusion = list(read_csv(eurosat / "metrics/plots/confusion_lulc.csv"))
    assert {row["actual"] for row in confusion} == set(EUROSAT) - {"SeaLake"}
    assert {row["predicted"] for row in confusion} <= set(EUROSAT)


def test_a_class_without_real_tiles_is_named_and_counted(eurosat):
    counts = {row["class"]: row for row in read_csv(eurosat / "metrics/plots/images_per_class.csv")}
    assert counts["SeaLake"] == {"class": "SeaLake", "prompts": "2", "images": "4", "real": "0"}
    assert all(int(counts[name]["real"]) > 0 for name in EUROSAT[:-1])
    accuracies = {
        row["class"] for row in read_csv(eurosat / "metrics/plots/accuracy_by_class_lulc.csv")
    }
    assert "SeaLake" not in accuracies and "Forest" in accuracies
    report = (eurosat / "metrics/report/index.html").read_text(encoding="utf-8")
    assert "SeaLake" in report


def test_five_classes_with_chinese_names_reach_every_page(chinese):
    prompts = pq.read_table(chinese / "data/prompts.parquet").to_pylist()
    assert len(prompts) == 2 * len(CHINESE)
    assert all(row["label"] in row["prompt"] for row in prompts)
    selected = json.loads((chinese / "metrics/select.json").read_text(encoding="utf-8"))
    assert set(selected["per_class"]) == {slug(name) for name in CHINESE} == set(CHINESE)
    for page in ("metrics/report/index.html", "metrics/review/index.html"):
        text = (chinese / page).read_text(encoding="utf-8")
        assert all(name in text for name in CHINESE), page


def test_images_are_shared_like_the_real_tiles(chinese):
    counts = list(read_csv(chinese / "metrics/plots/images_per_class.csv"))
    total = 2 * 2 * len(CHINESE)  # 2 prompts of each class, 2 images of each
    real = {row["class"]: int(row["real"]) for row in counts}
    images = {row["class"]: int(row["images"]) for row in counts}
    assert sum(images.values()) == total and len(set(images.values())) > 1
    for name in CHINESE:
        assert abs(images[name] - total * real[name] / sum(real.values())) < 1
    labels = pq.read_table(chinese / "data/synthetic", columns=["label"])["label"].to_pylist()
    assert {name: labels.count(name) for name in CHINESE} == images


def test_metrics_of_other_label_sets_are_read_by_dvc(eurosat, chinese):
    for copy in (eurosat, chinese):
        done = shell("dvc", "metrics", "show", "--json", cwd=copy)
        assert done.returncode == 0, done.stderr
        assert all("error" not in file for file in json.loads(done.stdout)[""]["data"].values())
