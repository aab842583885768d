"""Other classes than the paper's through the whole pipeline: EuroSAT's ten, five in Chinese."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, copy_repository, shell
from PIL import Image

from stages.common.class_names import slug

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


@pytest.fixture(scope="module")
def run(smoke, warm_environment, tmp_path_factory) -> Path:
    """`dvc repro`, from scratch, of EuroSAT's ten classes and five known by Chinese names alone.

    No tile shows SeaLake. What the smoke run has made already comes from its cache.
    """
    folder = tmp_path_factory.mktemp("label_set")
    draw_tiles(folder / "tiles", [*EUROSAT[:-1], *CHINESE])
    copy = copy_repository(folder / "copy")
    overlay = yaml.safe_load((REPOSITORY / "params/eurosat.yaml").read_text(encoding="utf-8"))
    own = {
        "classes": overlay["classes"] | {name: [name] for name in CHINESE},
        "prompt": overlay["prompt"],
        "fetch_imagery": {
            "source": f"path:{folder / 'tiles'}",
            "exclude_near_duplicates": False,  # tiles of one color
            "max_images": None,
            "test": 0.4,
        },
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
        "train_scene": {"source": "scratch", "epochs": 4},
        "encode": {"base_domain": "none"},
    }
    (copy / "own.yaml").write_text(yaml.safe_dump(own, allow_unicode=True), encoding="utf-8")
    scales = ["tests/params.yaml", "own.yaml"]
    done = shell("python", "-m", "tools.scale", *scales, "--force", cwd=copy)
    assert done.returncode == 0, done.stderr
    shell("dvc", "config", "--local", "cache.dir", str(smoke / ".dvc/cache"), cwd=copy)
    done = shell("dvc", "repro", cwd=copy, env=warm_environment, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def test_each_class_has_prompts_images_and_a_classifier(run):
    prompts = pq.read_table(run / "data/prompts.parquet").to_pylist()
    assert {row["label"] for row in prompts} == {*EUROSAT, *CHINESE}
    assert len(prompts) == 2 * len(EUROSAT + CHINESE)
    assert all(row["label"] in row["prompt"] for row in prompts if row["label"] in CHINESE)
    images = pq.read_table(run / "data/synthetic", columns=["label"])["label"].to_pylist()
    assert Counter(images) == dict.fromkeys(EUROSAT + CHINESE, 4)
    confusion = list(read_csv(run / "metrics/plots/confusion_lulc.csv"))
    assert {row["actual"] for row in confusion} == {*EUROSAT, *CHINESE} - {"SeaLake"}
    assert {row["predicted"] for row in confusion} <= {*EUROSAT, *CHINESE}


def test_a_class_without_real_tiles_is_named_and_counted(run):
    counts = {row["class"]: row for row in read_csv(run / "metrics/plots/images_per_class.csv")}
    assert counts["SeaLake"] == {"class": "SeaLake", "prompts": "2", "images": "4", "real": "0"}
    assert all(int(counts[name]["real"]) > 0 for name in EUROSAT[:-1] + CHINESE)
    accuracies = {
        row["class"] for row in read_csv(run / "metrics/plots/accuracy_by_class_lulc.csv")
    }
    assert "SeaLake" not in accuracies and "Forest" in accuracies
    report = (run / "metrics/report/index.html").read_text(encoding="utf-8")
    assert "SeaLake" in report


def test_chinese_names_reach_every_page(run):
    selected = json.loads((run / "metrics/select.json").read_text(encoding="utf-8"))
    assert {slug(name) for name in CHINESE} == set(CHINESE) <= set(selected["per_class"])
    for page in ("metrics/report/index.html", "metrics/review/index.html"):
        text = (run / page).read_text(encoding="utf-8")
        assert all(name in text for name in CHINESE), page


def test_metrics_of_another_label_set_are_read_by_dvc(run, warm_environment):
    done = shell("dvc", "metrics", "show", "--json", cwd=run, env=warm_environment)
    assert done.returncode == 0, done.stderr
    assert all("error" not in file for file in json.loads(done.stdout)[""]["data"].values())


def test_images_are_shared_like_the_real_tiles(run, warm_environment, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    params = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    params["generate"]["balance"] = {"like": "real"}
    text = yaml.safe_dump(params, allow_unicode=True)
    (copy / "params.yaml").write_text(text, encoding="utf-8")
    done = shell("dvc", "repro", "generate", cwd=copy, env=warm_environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = list(read_csv(copy / "metrics/plots/images_per_class.csv"))
    total = 2 * 2 * len(EUROSAT + CHINESE)  # 2 prompts of each class, 2 images of each
    real = {row["class"]: int(row["real"]) for row in counts}
    images = {row["class"]: int(row["images"]) for row in counts}
    assert sum(images.values()) == total and len(set(images.values())) > 2
    for name in EUROSAT + CHINESE:
        assert abs(images[name] - total * real[name] / sum(real.values())) < 1
    labels = pq.read_table(copy / "data/generated", columns=["label"])["label"].to_pylist()
    assert {name: labels.count(name) for name in EUROSAT + CHINESE} == images
