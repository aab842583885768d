"""fetch_imagery on data sets of TorchGeo, each drawn by the test."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from test_imagery import error_of, write_params
from test_imagery_layouts import KEY, draw, fetch

from stages import fetch_imagery
from stages.common.artifacts import decode_image, read_json
from stages.imagery.torchgeo_datasets import DATASETS, open_torchgeo


def write_geotiff(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    profile: dict[str, Any] = {"count": bands, "height": height, "width": width}
    profile |= {
        "dtype": values.dtype,
        "crs": "EPSG:32632",
        "transform": rasterio.Affine(10, 0, 0, 0, -10, 0),
    }
    with rasterio.open(path, "w", driver="GTiff", **profile) as dataset:
        dataset.write(values)


EUROSAT_TILES = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"


def draw_eurosat(root: Path, list_name: str, per_split: int = 3) -> dict[str, np.ndarray]:
    """EuroSAT's own layout: file name -> its 13 bands."""
    rng = np.random.default_rng(0)
    tiles = {}
    for split in ("train", "val", "test"):
        names = [f"{c}_{split}{i}" for c in ("Forest", "SeaLake") for i in range(per_split)]
        (root / f"{list_name}-{split}.txt").write_text("\n".join(f"{n}.jpg" for n in names))
        for name in names:
            coarse = rng.integers(0, 4000, (13, 4, 4), np.uint16)
            tiles[name] = coarse.repeat(8, 1).repeat(8, 2)
            write_geotiff(root / EUROSAT_TILES / name.split("_")[0] / f"{name}.tif", tiles[name])
    return tiles


def test_eurosat_has_its_own_splits_classes_and_bands(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    tiles = draw_eurosat(tmp_path / "root", "eurosat")
    monkeypatch.setenv("TORCHGEO_DATA", str(tmp_path / "root"))
    rows = fetch(tmp_path / "run", monkeypatch, source="torchgeo:EuroSAT", stretch=[0, 4000])
    assert [len(rows[split]) for split in rows] == [6, 6, 6]
    for split, own in (("train", "train"), ("valid", "val"), ("test", "test")):
        for row in rows[split]:
            name = Path(row["filename"]).stem
            assert name.split("_")[1].startswith(own) and row["scene"] == name.split("_")[0]
            rgb = tiles[name][[3, 2, 1]].transpose(1, 2, 0)  # B04, B03, B02
            expected = np.rint(rgb / 4000 * 255)
            assert np.abs(np.asarray(decode_image(row["image"]), float) - expected).max() <= 1
    captions = {caption for row in rows["train"] for caption in row["captions"]}
    assert captions == {"a satellite image of forest", "a satellite image of sea lake"}
    source = read_json(tmp_path / "run/data/imagery/SOURCE.json")
    assert source["dataset"] == "EuroSAT" and str(tmp_path) not in json.dumps(source)


def draw_dataset(root: Path, name: str) -> set[str | None]:
    """Draw a tiny TorchGeo data set of two classes; returns its splits."""
    if name.startswith("EuroSAT"):
        list_names = {"EuroSAT100": "eurosat-100", "EuroSATSpatial": "eurosat-spatial"}
        draw_eurosat(root, list_names.get(name, "eurosat"), per_split=1)
        return {"train", "val", "test"}
    if name == "PatternNet":
        draw(root, "PatternNet/images/lake/1.jpg", "PatternNet/images/river/1.jpg")
        return {None}
    if name == "FireRisk":
        draw(root, *(f"FireRisk/{s}/{c}/1.png" for s in ("train", "val") for c in ("High", "Low")))
        return {"train", "val"}
    list_name, images, suffix = {
        "RESISC45": ("resisc45", "NWPU-RESISC45", "jpg"),
        "UCMerced": ("uc_merced", "UCMerced_LandUse/Images", "tif"),
    }[name]
    for split in ("train", "val", "test"):
        names = [f"{scene}_{split}.{suffix}" for scene in ("lake", "river")]
        draw(root, *(f"{images}/{name.split('_')[0]}/{name}" for name in names))
        (root / f"{list_name}-{split}.txt").write_text("\n".join(names))
    return {"train", "val", "test"}


def test_each_torchgeo_data_set_that_the_docs_list_is_read(tmp_path, monkeypatch):
    docs = (Path(__file__).parents[1] / "docs/data.md").read_text()
    for name in DATASETS:
        root = tmp_path / name
        root.mkdir()
        monkeypatch.setenv("TORCHGEO_DATA", str(root))
        splits = draw_dataset(root, name)
        items = list(open_torchgeo(f"torchgeo:{name}", KEY, False)[0].read_items(False))
        assert {item.split for item in items} == splits
        for split in splits:
            assert len({item.scene for item in items if item.split == split}) == 2
        assert all(item.image.is_file() and str(item.scene) in item.name for item in items)
        assert f"`{name}`" in docs


def test_torchgeo_names_that_are_not_utf8_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHGEO_DATA", str(tmp_path / "root"))
    draw_dataset(tmp_path / "root", "PatternNet")
    draw(tmp_path / "root", os.fsdecode(b"PatternNet/images/lake/\xe8.jpg"))
    line = error_of(tmp_path / "run", monkeypatch, source="torchgeo:PatternNet")
    assert "1 file name(s) not in UTF-8, the first PatternNet/images/lake/\\xe8.jpg" in line


def test_a_torchgeo_data_set_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    def error(source: str) -> str:
        return error_of(tmp_path / "run", monkeypatch, source=source)

    monkeypatch.delenv("TORCHGEO_DATA", raising=False)
    assert "TORCHGEO_DATA" in error("torchgeo:EuroSAT")
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("TORCHGEO_DATA", str(root))
    assert "fetch_imagery.download" in error("torchgeo:UCMerced")
    assert "EuroSAT100" in error("torchgeo:So2Sat")
    draw(root, "UCMerced_LandUse/Images/lake/1.tif")  # without the lists of its splits
    assert "uc_merced-train.txt" in error("torchgeo:UCMerced")
    (root / "PatternNet.zip").write_bytes(b"no archive")
    assert "PatternNet" in error("torchgeo:PatternNet")
    assert "fetch_papers.source" in _error_of_papers(tmp_path / "run", monkeypatch)


def _error_of_papers(folder: Path, monkeypatch) -> str:
    write_params(folder, None, source="embedded", max_images=8)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(
        text.replace("fetch_papers:\n  source: embedded", "fetch_papers:\n  source: torchgeo:X")
    )
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        fetch_imagery.main()
    return str(end.value)
