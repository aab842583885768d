"""Scenes: cut into tiles, split so that tiles of different splits lie apart, labeled by rasters."""

import re
import shlex
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from conftest import REPOSITORY, shell
from rasterio.rio.main import main_group
from rasterio.transform import from_origin
from test_imagery import error_of, picture, rows_of, run, write_params
from test_imagery_rasters import shard_bytes, write_raster

from stages import fetch_imagery
from stages.common.artifacts import decode_image, read_json
from stages.imagery.georeference import Georeference
from stages.imagery.rasters import RasterWindow
from stages.imagery.scene_splits import (
    carve_scenes,
    find_places,
    find_sites,
    leave_out_buffer,
)
from stages.imagery.tile_spool import SpooledTile
from stages.runtime import parallel

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
TILE = {"size": 16, "stride": 16, "min_valid": 0.9}


def located(east: float = 0, crs: str | None = "EPSG:32632") -> dict:
    """A grid of 10 m whose upper left corner is `east` meters east of a point."""
    return {"crs": crs, "transform": from_origin(500_000 + east, 5_000_000, 10, 10)}


def terrain(seed: int, side: int, bands: int = 3, dtype: str = "uint16") -> np.ndarray:
    """Values [bands, side, side] from 257 up in steps of 257, which [0, 65535] makes 1 to 254."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 255, (bands, side, side)) * 257).astype(dtype)


def fetch(folder: Path, monkeypatch, source: Path, **settings) -> dict[str, list[dict]]:
    """Run the stage in this process; returns the rows of each split."""
    defaults = {
        "source": f"path:{source}",
        "resolution": 16,
        "stretch": [0, 65535],
        "tile": TILE,
        "caption": "a satellite image",
    }
    write_params(folder, None, **defaults | settings)
    monkeypatch.chdir(folder)
    fetch_imagery.main()
    return rows_of(folder)


def fault(folder: Path, monkeypatch, source: Path, **settings) -> str:
    defaults = {"source": f"path:{source}", "tile": TILE, "caption": "a satellite image"}
    return error_of(folder, monkeypatch, **defaults | settings)


def report_of(folder: Path) -> dict:
    return read_json(folder / "data/imagery/REPORT.json")


def gap(a: dict, b: dict) -> float:
    """The distance between the bounds of two rows, along the axis in which it is larger."""
    left, bottom, right, top = np.array([a["bounds"], b["bounds"]]).T
    return max(left.max() - right.min(), bottom.max() - top.min())


def smallest_gap(rows: dict[str, list[dict]]) -> float:
    """The smallest distance between tiles of different splits."""
    return min(
        gap(a, b) for one, other in combinations(rows, 2) for a in rows[one] for b in rows[other]
    )


# Cutting


def test_tiles_are_the_windows_of_the_scene(tmp_path, monkeypatch):
    values = terrain(0, 170)
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    write_raster(tmp_path / "in/forest/north.tif", values, **located(), **blocks)
    small = terrain(1, 16)
    write_raster(tmp_path / "in/lake/small.tif", small, **located(90_000))
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", caption=None)
    report = report_of(tmp_path / "out")
    tiles = {row["filename"]: row for split in rows.values() for row in split}
    # 170 pixels hold ten tiles of 16, and a margin that is no tile.
    assert len(tiles) + report["buffer"] == 101 and report["kept"]["train"] >= 40
    assert np.array_equal(
        np.asarray(decode_image(tiles.pop("lake/small.tif")["image"])),
        small.transpose(1, 2, 0) // 257,
    )
    for name, row in tiles.items():
        top, left = (int(part[1:]) for part in name.removesuffix(".tif").split("_")[1:])
        assert name == f"forest/north_r{top}_c{left}.tif" and row["scene"] == "forest"
        window = values[:, top : top + 16, left : left + 16]
        assert np.array_equal(
            np.asarray(decode_image(row["image"])), window.transpose(1, 2, 0) // 257
        )
        west, north = 500_000 + 10 * left, 5_000_000 - 10 * top
        assert row["bounds"] == [west, north - 160, west + 160, north]
        assert (row["crs"], row["gsd"]) == ("EPSG:32632", 10)


def test_the_number_of_processes_and_the_layout_of_the_file_do_not_matter(tmp_path, monkeypatch):
    values = terrain(3, 128)
    layouts = [{"tiled": True, "blockxsize": 64, "blockysize": 64}, {"blockysize": 4}]
    results = []
    for number, (layout, processes) in enumerate(zip(layouts + layouts[:1], (1, 2, 3))):
        source = tmp_path / f"in{number}"
        write_raster(source / "scene.tif", values, compress="lzw", **located(), **layout)
        monkeypatch.setattr(parallel, "available_cores", lambda n=processes: n)
        fetch(tmp_path / f"out{number}", monkeypatch, source, stretch="auto")
        results.append(shard_bytes(tmp_path / f"out{number}"))
    assert results[0] == results[1] == results[2]


def test_tiles_with_too_little_data_are_left_out_by_name(tmp_path, monkeypatch):
    values = terrain(4, 128)
    values[:, :, :40] = 0  # nodata: all of the first two columns of tiles, half of the third
    write_raster(tmp_path / "in/scene.tif", values, nodata=0, **located())
    fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    report = report_of(tmp_path / "out")
    skipped = report["skipped"]["too few of its pixels are valid"]
    assert skipped["count"] == 24 and "scene_r0_c0.tif" in skipped["names"]
    assert sum(report["kept"].values()) + report["buffer"] == 40
    report = report_of_half_valid = fetch(
        tmp_path / "half", monkeypatch, tmp_path / "in", tile=TILE | {"min_valid": 0.5}
    )
    assert report_of(tmp_path / "half")["masked"] == {"tiles": 8, "pixels": 8 * 128}
    assert any("_c32" in row["filename"] for rows in report_of_half_valid.values() for row in rows)


def test_a_tile_without_a_valid_pixel_is_left_out_whatever_min_valid(tmp_path, monkeypatch):
    values = terrain(4, 128) // 257
    values[:, :, :24] = 0  # nodata: all of the first column of tiles, half of the second
    write_raster(tmp_path / "in/scene.tif", values, nodata=0, **located())
    settings = {"tile": TILE | {"min_valid": 0}, "stretch": "none"}
    fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
    report = report_of(tmp_path / "out")
    assert report["skipped"]["too few of its pixels are valid"]["count"] == 8
    assert sum(report["kept"].values()) + report["buffer"] == 56


def test_previews_of_scenes_are_left_out_by_name(tmp_path, monkeypatch):
    values = (terrain(4, 128) // 257).astype(np.uint8)
    write_raster(tmp_path / "in/a_1.tif", values, **located())
    write_raster(tmp_path / "in/small.tif", values[:, :16, :16], **located(9_000))
    previews = ["a_1.jpg", "a_1_browse.jpg", "a_1.tif.png", "a_1-ql.JPEG"]
    others = ["a_10.jpg", "a.jpg", "b_a_1.png", "small_2.png", "sub/a_1.jpg"]
    (tmp_path / "in/sub").mkdir()
    for i, name in enumerate(previews + others):
        picture(i).save(tmp_path / "in" / name)
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", stretch="none")
    report = report_of(tmp_path / "out")
    skipped = {"count": len(previews), "names": sorted(previews)}
    assert report["skipped"] == {"a preview of a scene that is cut": skipped}
    whole = [
        row["filename"] for split in rows.values() for row in split if "_r" not in row["filename"]
    ]
    assert sorted(whole) == sorted([*others, "small.tif"])


@pytest.mark.parametrize("dtype, fill", [("uint8", 0), ("uint16", 0), ("uint8", 255)])
def test_tiles_of_a_fill_value_that_is_not_declared_are_left_out_by_name(
    tmp_path, monkeypatch, dtype, fill
):
    values = (terrain(4, 128) // 257).astype(dtype)
    values[:, :, :40] = fill  # all of the first two columns of tiles, half of the third
    write_raster(tmp_path / "in/scene.tif", values, **located())
    fetch(tmp_path / "out", monkeypatch, tmp_path / "in", stretch="none")
    report = report_of(tmp_path / "out")
    ((reason, skipped),) = report["skipped"].items()
    assert skipped["count"] == 16 and "scene_r0_c16.tif" in skipped["names"]
    assert reason == "all of its pixels have one value"
    assert sum(report["kept"].values()) + report["buffer"] == 48


# Splits


def grid_of_tiles(rows: int, columns: int, stride: int, scene: str = "scene") -> list[SpooledTile]:
    """Tiles of 16 pixels without a CRS, all in train."""
    return [
        SpooledTile(
            name=f"{scene}_r{row * stride}_c{column * stride}.tif",
            split="train",
            scene="",
            window=RasterWindow(Path(scene), row * stride, column * stride, 16, 16),
            georeference=Georeference(),
            offset=0,
            header_size=0,
            pixels_size=0,
            raw=None,
            pixel_count=256,
            masked=0,
            masked_by_alpha=0,
        )
        for row in range(rows)
        for column in range(columns)
    ]


@pytest.mark.parametrize(
    "rows, columns, stride", [(42, 42, 16), (12, 12, 16), (8, 30, 16), (5, 40, 8), (99, 99, 5)]
)
@pytest.mark.parametrize("valid, test", [(0.1, 0.15), (22, 30)])
def test_tiles_of_different_splits_lie_a_tile_apart(rows, columns, stride, valid, test):
    tiles = grid_of_tiles(rows, columns, stride)
    splits = carve_scenes(tiles, valid, test)
    assert splits == carve_scenes(tiles, valid, test)
    for tile, split in zip(tiles, splits):
        tile.split = split
    buffer = leave_out_buffer(tiles)
    corners = {
        split: np.array([tile.window[1:3] for tile in tiles if tile.split == split])
        for split in ("train", "valid", "test", "buffer")
    }
    assert len(corners["buffer"]) == buffer
    for one, other in combinations(("train", "valid", "test"), 2):
        steps = np.abs(corners[one][:, None] - corners[other][None]).max(axis=2)
        assert steps.min() >= 32  # a side, and a side in between
    assert len(corners["train"]) > 0.3 * len(tiles)
    wanted = test if test >= 1 else test * len(tiles)
    assert 0.5 * wanted <= len(corners["test"]) <= 2 * max(wanted, rows)
    # Every tile of the buffer would be too close to a tile of another split.
    kept = np.concatenate([corners["valid"], corners["test"]])
    if buffer:
        assert np.abs(corners["buffer"][:, None] - kept).max(axis=2).min(axis=1).max() < 32


def test_the_lines_of_a_split_lie_side_by_side():
    # A scene with slanted margins, as Sentinel-2 and Landsat have them: its last lines are short.
    tiles = [
        tile
        for tile in grid_of_tiles(10, 12, 16)
        if 40 <= tile.window.column + 0.3 * tile.window.row <= 180
    ]
    splits = carve_scenes(tiles, 0.2, 0.2)
    columns = {
        split: {tile.window.column for tile, own in zip(tiles, splits) if own == split}
        for split in ("train", "valid", "test")
    }
    assert max(columns["test"]) < min(columns["train"])
    assert max(columns["train"]) < min(columns["valid"])


@pytest.mark.parametrize("seed", range(20))
def test_sites_are_the_scenes_that_overlap_by_half_of_the_smaller_one(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (30, 2)) * 8
    sides = rng.integers(2, 5, 30)
    crs = rng.choice(["EPSG:32631", "EPSG:32632"], 30)
    tiles = []
    for i in range(30):
        if i % 5 == 4:  # another date of the scene before
            corners[i], sides[i], crs[i] = corners[i - 1], sides[i - 1], crs[i - 1]
        for tile in grid_of_tiles(sides[i], sides[i], 160):
            tile.name = tile.name.replace("scene", f"scene{i:02d}")
            left, top = corners[i] * 20 + np.array([tile.window.column, tile.window.row])
            bounds = left, top, left + 160, top + 160
            tile.georeference = Georeference(crs=str(crs[i]), bounds=bounds)
            tiles.append(tile)
    sites, _ = find_sites(find_places(tiles), [True] * len(tiles))
    site_of_scene = {tile.name.split("_")[0]: site for tile, site in zip(tiles, sites.tolist())}
    expected = list(range(30))
    for i, j in combinations(range(30), 2):
        low = np.maximum(corners[i], corners[j]) * 20
        high = np.minimum(corners[i] * 20 + 160 * sides[i], corners[j] * 20 + 160 * sides[j])
        overlap = (high - low).clip(0).prod()
        if crs[i] == crs[j] and overlap >= (160 * min(sides[i], sides[j])) ** 2 / 2:
            expected = [expected[i] if site == expected[j] else site for site in expected]
    found = [site_of_scene[f"scene{i:02d}"] for i in range(30)]
    for i, j in combinations(range(30), 2):
        assert (found[i] == found[j]) == (expected[i] == expected[j])


def test_files_of_one_name_in_two_formats_are_two_scenes():
    tiles = grid_of_tiles(6, 6, 16) + grid_of_tiles(6, 6, 16)
    for tile in tiles[36:]:
        tile.name = tile.name.replace(".tif", ".jp2")
    assert find_places(tiles).scene_names == ["scene.jp2", "scene.tif"]


@pytest.mark.parametrize("is_local", [False, True])
def test_ten_scenes_or_more_are_split_whole(tmp_path, monkeypatch, is_local):
    for i in range(12):
        side = 48 + 16 * (i % 2)
        # Local coordinates begin in each scene, so equal ones are not equal ground.
        place = {"transform": from_origin(0, side, 1, 1)} if is_local else located(5_000 * i)
        write_raster(tmp_path / f"in/scene{i}.tif", terrain(i, side), **place)
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    split_of = {}
    for split, split_rows in rows.items():
        for row in split_rows:
            scene = row["filename"].split("_")[0]
            assert split_of.setdefault(scene, split) == split
    assert len(split_of) == 12 and report_of(tmp_path / "out")["buffer"] == 0
    assert set(split_of.values()) == {"train", "valid", "test"}


@pytest.mark.parametrize("side, unit", [(32, "block"), (12, "line")])
def test_one_scene_that_is_larger_than_train_leaves_no_split_empty(capsys, side, unit):
    small = [tile for i in range(11) for tile in grid_of_tiles(2, 2, 16, f"small{i}")]
    tiles = grid_of_tiles(side, side, 16) + small
    counts = Counter(carve_scenes(tiles, 0.2, 0.25))
    assert f"scenes of 12 site(s), split by {unit}" in capsys.readouterr().err
    assert counts["valid"] == pytest.approx(0.2 * len(tiles), rel=0.2)
    assert counts["test"] == pytest.approx(0.25 * len(tiles), rel=0.2)


@pytest.mark.parametrize("crs", ["EPSG:32632", None])
def test_scenes_of_the_same_ground_and_neighbors_lie_apart_too(tmp_path, monkeypatch, capsys, crs):
    # Twelve dates of one place; and twelve places side by side. Places need no CRS.
    for i in range(12):
        write_raster(tmp_path / f"dates/day{i}.tif", terrain(i, 96), **located(crs=crs))
        write_raster(tmp_path / f"quads/quad{i}.tif", terrain(i, 64), **located(640 * i, crs))
    for name in ("dates", "quads"):
        rows = fetch(tmp_path / f"out_{name}", monkeypatch, tmp_path / name)
        assert smallest_gap(rows) >= 160
        buffer = report_of(tmp_path / f"out_{name}")["buffer"]
        assert buffer > 0 and f" test; {buffer} left out" in capsys.readouterr().err
        for row in (row for of_split in rows.values() for row in of_split):
            quad = row["filename"].split("_")[0] + ".tif"
            assert row["site"] == ("day0.tif" if name == "dates" else quad)


def test_the_splits_of_the_source_stay(tmp_path, monkeypatch, capsys):
    for i, split in enumerate(("train", "valid", "test")):
        write_raster(tmp_path / f"in/{split}/scene{i}.tif", terrain(i, 64), **located(640 * i))
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    assert {split: len(split_rows) for split, split_rows in rows.items()} == dict.fromkeys(rows, 16)
    assert "buffer" not in report_of(tmp_path / "out")
    # The scenes lie side by side: a column of train beside valid, one of valid beside test.
    text = capsys.readouterr().err
    assert "warning: 8 tiles of train or valid overlap a tile of another split" in text
    assert "split by" not in text


@pytest.mark.parametrize("stride", [80, 160, 480])
def test_close_tiles_of_files_are_said(tmp_path, monkeypatch, capsys, stride):
    for i in range(16):
        name = f"{['forest', 'lake'][i % 2]}/{i}.tif"
        write_raster(tmp_path / "in" / name, terrain(i, 16), **located(stride * i))
    settings = {"tile": None, "caption": None, "valid": 0.3, "test": 0.3}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
    close = {
        row["filename"]
        for split, others in (("valid", ["test"]), ("train", ["valid", "test"]))
        for row in rows[split]
        if any(gap(row, tile) < 160 for other in others for tile in rows[other])
    }
    warning = f"warning: {len(close)} tiles of train or valid overlap a tile of another split"
    assert not any("site" in row for row in rows["test"])
    text = capsys.readouterr().err
    assert bool(close) == (stride < 320) == (warning in text) == ("fetch_imagery.tile" in text)


def test_a_missing_split_is_carved_out_of_what_is_not_beside_the_own_one(tmp_path, monkeypatch):
    for split, east in (("train", 0), ("test", 800)):  # the two scenes overlap by half
        write_raster(tmp_path / f"in/{split}/scene.tif", terrain(east, 160), **located(east))
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    assert smallest_gap(rows) >= 160 and len(rows["test"]) == 100 and len(rows["valid"]) == 8
    assert sum(map(len, rows.values())) + report_of(tmp_path / "out")["buffer"] == 200
    write_raster(tmp_path / "in/train/scene.tif", terrain(1, 96), **located(800))
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in")
    assert "the train split is empty" in message and "buffer: 36" in message
    (tmp_path / "in/train/scene.tif").unlink()
    for i in range(8):  # none of which is cut
        write_raster(tmp_path / f"in/train/{i}.tif", terrain(i, 16), **located(9_000 + 900 * i))
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    assert len(rows["test"]) == 100 and len(rows["train"]) + len(rows["valid"]) == 8


def test_test_tiles_that_equal_a_training_tile_are_left_out(tmp_path, monkeypatch):
    values = terrain(5, 256)
    values[:, :, 224:240] = 257 * 90  # calm water, the same in the last columns
    values[:, :32, :32] = 257 * 90
    values[:, 112:144, 112:144] = 257 * 90
    values[:, ::16, ::16] = 257 * 91  # a tile of one value is skipped
    write_raster(tmp_path / "in/scene.tif", values, **located())
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", exclude_near_duplicates=True)
    water = {
        split: [r for r in split_rows if np.ptp(np.asarray(decode_image(r["image"]))) == 1]
        for split, split_rows in rows.items()
    }
    assert water["train"] and not water["test"] and not water["valid"]
    counts = report_of(tmp_path / "out")["near_duplicates"]
    assert (
        counts["excluded_from_test"] == 4
        and counts["excluded_from_valid"] == 16
        and counts["groups"] == 1
    )


# Labels


def test_the_class_is_that_of_the_largest_share(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(6)
    side, names = 160, {10: "Trees", 20: "Trees", 80: "Water"}
    for scene in ("a", "b"):
        values = [0, 10, 10, 10, 20, 20, 50, 80, 80, 80, 80]
        coarse = rng.choice(values, (side // 8, side // 8))
        labels = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
        grid = located(50_000 * (scene == "b"))
        write_raster(tmp_path / f"in/{scene}.tif", terrain(ord(scene), side), **grid)
        path = tmp_path / f"in/lc/{scene}_lc.tif"
        write_raster(path, labels[None], nodata=0 if scene == "a" else None, **grid)
    # A mask band says what is not labeled, too.
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(labels > 0)
    write_raster(tmp_path / "in/unlabeled.tif", terrain(9, 64), **located(99_000))
    label_rasters = {"file": "lc/{stem}_lc.tif", "classes": names}
    tile = TILE | {"min_valid": 0.6}
    settings = {"labels": label_rasters, "caption": None, "tile": tile}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
    report = report_of(tmp_path / "out")
    assert report["skipped"]["a label raster"]["count"] == 2
    assert report["skipped"]["its label raster is missing"]["count"] == 16
    tried = tmp_path / "in/lc/unlabeled_lc.tif"
    assert f"labels: 1 of 3 scenes have none: there is no {tried}\n" in capsys.readouterr().err
    few = other = 0
    tiles = {row["filename"]: row for split in rows.values() for row in split}
    for scene in ("a", "b"):
        with rasterio.open(tmp_path / f"in/lc/{scene}_lc.tif") as dataset:
            labels = dataset.read(1)
        for top in range(0, side, 16):
            for left in range(0, side, 16):
                window = labels[top : top + 16, left : left + 16]
                window = window[window > 0]
                shares = {
                    "Trees": np.isin(window, [10, 20]).mean(),
                    "": (window == 50).mean(),
                    "Water": (window == 80).mean(),
                }
                few += len(window) < 0.6 * 256
                other += len(window) >= 0.6 * 256 and max(shares, key=shares.get) == ""
                row = tiles.pop(f"{scene}_r{top}_c{left}.tif", None)
                if row is not None:
                    assert shares[row["scene"]] == row["label_share"] == max(shares.values())
                    assert row["captions"] == [f"a satellite image of {row['scene'].lower()}"]
    assert not tiles
    skipped = {reason: entry["count"] for reason, entry in report["skipped"].items()}
    assert few == skipped["too few of its pixels are labeled"]
    assert other == skipped.get("label 50 is in no class of fetch_imagery.labels", 0)
    assert sum(report["kept"].values()) + report["buffer"] == 200 - few - other


def test_labels_of_rasters_that_are_not_cut_are_of_their_center_square(
    tmp_path, monkeypatch, capsys
):
    for i in range(12):
        labels = np.full((1, 20, 40), 80, np.uint8)
        labels[:, :, 10:30] = 10 if i % 2 else 80
        labels[:, :, 10:15] = 10
        if i == 0:
            labels[:, :, 15:22] = 50  # in no class
        write_raster(tmp_path / f"in/{i}.tif", terrain(i, 40)[:, :20], **located(9_000 * i))
        write_raster(tmp_path / f"in/{i}_lc.tif", labels, **located(9_000 * i))
    # A list of the splits needs no classes, then.
    splits = {f"{i}.tif": ("train", "valid", "test")[i % 3] for i in range(12)}
    lines = ["file_name,split", *map(",".join, splits.items())]
    (tmp_path / "in/metadata.csv").write_text("\n".join(lines))
    settings = {"labels": {"file": "{stem}_lc.tif", "classes": {10: "Trees", 80: "Water"}}}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", tile=None, **settings)
    assert {row["filename"]: split for split in rows for row in rows[split]} == splits
    all_rows = [row for split_rows in rows.values() for row in split_rows]
    found = {row["filename"]: (row["scene"], row["label_share"]) for row in all_rows}
    for row in all_rows:  # fetch_imagery.caption is for images without a class
        assert row["captions"] == [f"a satellite image of {row['scene'].lower()}"]
    expected = {f"{i}.tif": ("Trees", 1) if i % 2 else ("Water", 0.75) for i in range(12)}
    assert found == expected | {"0.tif": ("Water", 0.4)}
    assert report_of(tmp_path / "out")["label_share"] == {"median": 0.875, "tiles_below_half": 1}
    assert "less than half in 1 of 12 tiles" in capsys.readouterr().err
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", tile=None)
    assert "metadata.csv has no captions (" in message and "no classes" in message


@pytest.mark.parametrize("how", ["nodata", "nan", "mask", "alpha", "infrared"])
def test_labels_count_where_the_tile_shows_something(tmp_path, monkeypatch, how):
    """The upper half of each left tile is black and labeled Water, most of the rest is Forest."""
    labels = np.ones((1, 16, 32), np.uint8)
    labels[0, :8, :16] = labels[0, 15, :16] = 2
    hidden = np.arange(16)[:, None] + 99 * (np.arange(32) > 15) < 8
    settings: dict = {"tile": TILE | {"min_valid": 0.5}, "caption": None}
    for i in range(12):
        values, profile = terrain(i, 32)[:, :16], located(9_000 * i)
        if how == "nodata":
            values[:, hidden] = 0
            profile["nodata"] = 0
        elif how == "nan":
            values = values.astype(np.float32)
            values[1, hidden] = np.nan
        elif how == "mask":  # of half the resolution
            mask = (~hidden[None, ::2, ::2]).astype(np.uint8)
            grid = from_origin(500_000 + 9_000 * i, 5_000_000, 20, 20)
            write_raster(tmp_path / f"in/{i}_mask.tif", mask, **profile | {"transform": grid})
            settings["mask"] = {"file": "{stem}_mask.tif", "valid": [1]}
        else:  # infrared is no mask, even where it is tagged alpha and 0 over water
            fourth = ~hidden[None] * np.uint16(65535)
            if how == "infrared":
                fourth = terrain(i, 32)[:1, :16] * (np.arange(32) > 15).astype(np.uint16)
            values = np.concatenate([values, fourth])
            profile |= {"photometric": "rgb", "alpha": "yes"}
        write_raster(tmp_path / f"in/{i}.tif", values, **profile)
        labels[:, :, 16:] = 1 + i % 2
        write_raster(tmp_path / f"in/{i}_lc.tif", labels, **located(9_000 * i))
    settings["labels"] = {"file": "{stem}_lc.tif", "classes": {1: "Forest", 2: "Water"}}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
    found = {(row["scene"], row["label_share"]) for of_split in rows.values() for row in of_split}
    left = ("Water", 144 / 256) if how == "infrared" else ("Forest", 112 / 128)
    assert found == {left, ("Forest", 1), ("Water", 1)} and sum(map(len, rows.values())) == 24
    settings["tile"]["min_valid"] = 0.6
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
    skipped = report_of(tmp_path / "out")["skipped"]
    if how != "infrared":
        assert skipped["too few of its pixels are valid"]["count"] == 12


def test_a_listed_value_is_a_label_even_where_the_raster_calls_it_nodata(tmp_path, monkeypatch):
    for i in range(12):
        # As `gdal_rasterize -a_nodata 0` writes it; of odd ones, 2 is nodata, which no class has.
        nodata = 2 if i % 2 else 0
        labels = np.full((1, 16, 16), nodata, np.uint8)
        labels[:, :3] = 1
        write_raster(tmp_path / f"in/{i}.tif", terrain(i, 16), **located(9_000 * i))
        write_raster(tmp_path / f"in/{i}_lc.tif", labels, nodata=nodata, **located(9_000 * i))
    settings = {"labels": {"file": "{stem}_lc.tif", "classes": {0: "Water", 1: "Forest"}}}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", tile=None, **settings)
    found = {(row["scene"], row["label_share"]) for of_split in rows.values() for row in of_split}
    assert found == {("Water", 13 / 16), ("Forest", 1)}


def test_a_mask_band_of_a_label_raster_hides_its_values(tmp_path, monkeypatch):
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[:, 10:] = 1
    for i in range(12):
        write_raster(tmp_path / f"in/{i}.tif", terrain(i, 16), **located(9_000 * i))
        path = tmp_path / f"in/{i}_lc.tif"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_raster(path, labels, **located(9_000 * i))
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask((np.arange(16)[:, None] > 7 * (i % 2)).repeat(16, 1))
    settings = {"labels": {"file": "{stem}_lc.tif", "classes": {0: "Water", 1: "Forest"}}}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", tile=None, **settings)
    found = {(row["scene"], row["label_share"]) for of_split in rows.values() for row in of_split}
    assert found == {("Forest", 6 / 8), ("Water", 9 / 15)}


def test_a_label_raster_of_another_grid_is_one_line(tmp_path, monkeypatch):
    write_raster(tmp_path / "in/scene.tif", terrain(0, 64), **located())
    labels = {"file": "{stem}_lc.tif", "classes": {1: "a", 2: "b"}}
    classes = np.ones((1, 64, 64), np.uint8)
    for values, grid in (
        (classes[:, :32], located()),
        (classes, located(10)),
        (classes, located(crs="EPSG:32633")),
    ):
        write_raster(tmp_path / "in/scene_lc.tif", values, **grid)
        message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=labels)
        for word in ("fetch_imagery.labels: scene_lc.tif", "scene.tif", "`rio warp"):
            assert word in message
    write_raster(tmp_path / "in/scene_lc.tif", classes.astype(np.float32), **located())
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=labels)
    assert "scene_lc.tif holds float32" in message and "gdal_rasterize -ot Byte" in message
    write_raster(
        tmp_path / "in/scene_lc.tif", classes.repeat(2, 0), names=["old", "new"], **located()
    )
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=labels)
    assert "scene_lc.tif has 2 bands (1 old, 2 new)" in message and "rio stack --bidx" in message
    write_raster(tmp_path / "in/scene_lc.tif", classes, compress="deflate", **located())
    whole = (tmp_path / "in/scene_lc.tif").read_bytes()
    (tmp_path / "in/scene_lc.tif").write_bytes(whole[:-20])
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=labels)
    assert "scene_lc.tif is unreadable or truncated" in message


def test_labels_in_a_band_of_the_scene_are_one_line(tmp_path, monkeypatch):
    for i in range(3):  # as Earth Engine exports an image to which labels were added
        write_raster(tmp_path / f"in/{i}.tif", terrain(i, 64, bands=4), **located(9_000 * i))
    labels = {"file": "{stem}.tif", "classes": {1: "a", 2: "b"}}
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=labels, caption=None)
    assert "fetch_imagery.labels.file" in message and "0.tif" in message and "rio stack" in message


def test_the_command_in_the_message_brings_labels_onto_the_grid_of_the_scene(tmp_path, monkeypatch):
    """In a CRS without a code, whose WKT is long; a shell would cut the name at its space."""
    place = located(crs="+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96")
    coarse = np.random.default_rng(0).choice([1, 2], (1, 64, 64)).astype(np.uint8)
    write_raster(tmp_path / "in/a scene.tif", terrain(0, 64), **place)
    fine = place | {"transform": place["transform"] @ Affine.scale(0.5)}
    write_raster(tmp_path / "in/all.tif", coarse.repeat(2, 1).repeat(2, 2), **fine)
    labels = {"file": "all.tif", "classes": {1: "a", 2: "b"}}
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=labels)
    _, command, _ = message.split("`")
    assert "GEOGCS" not in message and shlex.split(command)[0] == "rio"
    done = CliRunner().invoke(main_group, shlex.split(command)[1:])
    assert done.exit_code == 0
    with (
        rasterio.open(tmp_path / "in/a scene.tif") as scene,
        rasterio.open(tmp_path / "in/a scene_warped_labels.tif") as warped,
    ):
        assert (warped.crs, warped.transform) == (scene.crs, scene.transform)
        assert np.array_equal(warped.read(), coarse)


def test_the_loop_of_the_docs_warps_one_label_raster_for_each_scene(tmp_path, monkeypatch):
    """The raster lies beside the scenes, and stays whole."""
    codes = np.random.default_rng(0).choice([10, 80], (4, 12)).astype(np.uint8)
    fine = located() | {"transform": located()["transform"] @ Affine.scale(0.5)}
    covering = codes.repeat(32, 0).repeat(32, 1)[None]
    write_raster(tmp_path / "scenes/WorldCover.tif", covering, **fine)
    for i in range(3):
        write_raster(tmp_path / f"scenes/S2_{i}.tif", terrain(i, 64), **located(640 * i))
    docs = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"```sh\n(for scene in.*?)```", docs, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    commands = shell("bash", "-c", f'rio() {{ echo "$@"; }}\n{loop}', cwd=tmp_path).stdout
    for command in commands.replace("WorldCover", "scenes/WorldCover").splitlines():
        assert CliRunner().invoke(main_group, command.split()).exit_code == 0
    labels = {"file": "{stem}_warped_labels.tif", "classes": {10: "Trees", 80: "Water"}}
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "scenes", labels=labels, caption=None)
    for row in sum(rows.values(), []):
        west, _, _, north = row["bounds"]
        code = codes[round((5_000_000 - north) / 160), round((west - 500_000) / 160)]
        assert (row["scene"], row["label_share"]) == (labels["classes"][code], 1)


def test_the_command_of_the_docs_makes_a_label_raster_of_polygons(tmp_path, monkeypatch):
    """On the grid of any scene, and without what only its own values can have."""
    import geopandas
    from shapely import box

    folder = tmp_path / "in"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shapes = [box(500_000, 4_999_360, 500_320, 5_000_000), box(500_320, 4_999_360, 500_480, 5e6)]
    polygons = geopandas.GeoDataFrame({"code": [1, 2]}, geometry=shapes, crs=32632)
    polygons.to_crs(4326).to_file("polygons.gpkg")
    docs = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(python -c .import geopandas.*?)```", docs, re.DOTALL)
    stand_in = 'rio() { cat > polygons.geojson; echo "$@"; }'
    command = shell("bash", "-c", f"{stand_in}\n{block}", cwd=folder).stdout
    expected = np.zeros((64, 64), np.uint8)
    expected[:, :32], expected[:, 32:48] = 1, 2
    jpeg = {"compress": "jpeg", "photometric": "ycbcr"}
    for name, dtype, profile in (("a", "uint8", jpeg), ("b", "float32", {"nodata": -9999})):
        write_raster(folder / f"{name}.tif", terrain(0, 64, dtype=dtype), **located(), **profile)
        words = command.replace("ortho", name).split()
        with open("polygons.geojson") as geojson:
            assert CliRunner().invoke(main_group, words, input=geojson).exit_code == 0
        with rasterio.open(f"{name}.tif") as scene, rasterio.open(f"{name}_labels.tif") as labels:
            assert (labels.crs, labels.transform) == (scene.crs, scene.transform)
            assert (labels.dtypes, labels.nodata) == (("uint8",), 0)
            assert np.array_equal(labels.read(1), expected)
    given = {"file": "polygons.gpkg", "classes": {1: "Trees", 2: "Soil"}}
    message = fault(tmp_path / "out", monkeypatch, folder, labels=given)
    assert "polygons.gpkg is no TIFF" in message and "`rio rasterize`" in message


def test_heights_in_a_crs_make_no_other_grid(tmp_path, monkeypatch):
    """Software for drones writes EPSG:25832+7837; masks and labels of QGIS are in EPSG:25832."""
    plain = located(crs="EPSG:25832")
    classes = np.ones((1, 128, 128), np.uint8)
    classes[:, :64] = 2
    write_raster(tmp_path / "in/scene.tif", terrain(0, 128), **located(crs="EPSG:25832+7837"))
    write_raster(tmp_path / "in/scene_lc.tif", classes, **plain)
    write_raster(tmp_path / "in/scene_mask.tif", classes, **plain)
    settings = {
        "labels": {"file": "{stem}_lc.tif", "classes": {1: "a", 2: "b"}},
        "mask": {"file": "{stem}_mask.tif", "valid": [1, 2]},
        "caption": None,
    }
    rows = fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
    assert {row["crs"] for of_split in rows.values() for row in of_split} == {"EPSG:25832"}


def test_label_rasters_may_be_png_in_another_folder_and_count_for_source_json(
    tmp_path, monkeypatch
):
    labels = np.random.default_rng(1).choice([10, 80], (8, 8)).repeat(16, 0).repeat(16, 1)
    labels = labels.astype(np.uint8)[None]
    write_raster(tmp_path / "in/images/a.tif", terrain(0, 128), **located())
    write_raster(tmp_path / "in/labels/a.png", labels, driver="PNG")
    whole = (tmp_path / "in/images/a.tif").read_bytes()
    (tmp_path / "in/images/b.tif").write_bytes(whole[:60])
    (tmp_path / "in/images/c.tif").touch()
    file = {"file": "../labels/{stem}.png", "classes": {10: "Trees", 80: "Water"}}
    hashes = []
    for row in (20, 100):  # a pixel of the first and of another column of tiles
        labels[0, row, 0] ^= 90
        write_raster(tmp_path / "in/labels/a.png", labels, driver="PNG")
        fetch(tmp_path / "out", monkeypatch, tmp_path / "in", labels=file, caption=None)
        hashes.append(read_json(tmp_path / "out/data/imagery/SOURCE.json")["images_sha256"])
    assert hashes[0] != hashes[1]
    skipped = report_of(tmp_path / "out")["skipped"]
    assert skipped["a label raster"]["names"] == ["labels/a.png"]
    assert skipped["image is unreadable or truncated"]["names"] == ["images/b.tif"]
    assert skipped["image is empty"]["names"] == ["images/c.tif"]
    write_raster(tmp_path / "in/labels/a.png", labels.repeat(3, 0), driver="JPEG")
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in", labels=file)
    assert "a.png is no TIFF, JPEG 2000 or PNG" in message


@pytest.mark.parametrize("tile", [TILE, None])
def test_a_mask_counts_for_source_json(tmp_path, monkeypatch, tile):
    mask = np.ones((1, 96, 96), np.uint8)
    hashes = []
    for masked in (0, 1):
        mask[0, 40, 40] = 1 - masked
        for i in range(9 if tile is None else 1):
            write_raster(tmp_path / f"in/{i}.tif", terrain(i, 96), **located(9_000 * i))
            write_raster(tmp_path / f"in/{i}_mask.tif", mask, **located(9_000 * i))
        settings = {"mask": {"file": "{stem}_mask.tif", "valid": [1]}, "tile": tile}
        fetch(tmp_path / "out", monkeypatch, tmp_path / "in", **settings)
        hashes.append(read_json(tmp_path / "out/data/imagery/SOURCE.json")["images_sha256"])
    assert hashes[0] != hashes[1]


# Bad input


def test_bad_scenes_are_one_line_or_named(tmp_path, monkeypatch):
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    write_raster(tmp_path / "in/a.tif", terrain(0, 192), **located(), **blocks)
    whole = (tmp_path / "in/a.tif").read_bytes()
    (tmp_path / "in/a.tif").write_bytes(whole[: len(whole) * 3 // 4])
    fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    skipped = report_of(tmp_path / "out")["skipped"]["image is unreadable or truncated"]
    assert 20 < skipped["count"] < 60 and all(name[:3] == "a_r" for name in skipped["names"])
    write_raster(tmp_path / "in/b.tif", terrain(1, 64, bands=4), **located(9_000))
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "in")
    assert "3 band(s)" in message and "4 band(s)" in message and "b_r0_c0.tif" in message
    write_raster(tmp_path / "none/c.tif", np.zeros((3, 64, 64), np.uint16), nodata=0)
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "none")
    assert "16 too few of its pixels are valid" in message
    write_raster(tmp_path / "few/d.tif", terrain(1, 48), **located())
    message = fault(tmp_path / "out", monkeypatch, tmp_path / "few")
    assert "the train split is empty" in message and "buffer: 3" in message
    (tmp_path / "mosaic").mkdir()
    (tmp_path / "mosaic/all.vrt").write_text("<VRTDataset/>")
    assert "rio convert" in fault(tmp_path / "out", monkeypatch, tmp_path / "mosaic")
    for key, tile in (("size", TILE | {"size": 8}), ("min_valid", TILE | {"min_valid": 2.0})):
        assert f"fetch_imagery.tile.{key}" in run(tmp_path / "out", tile=tile).stderr


def test_mixed_and_missing_crs_are_said_once(tmp_path, monkeypatch, capsys):
    write_raster(tmp_path / "in/a.tif", terrain(0, 64), **located())
    write_raster(tmp_path / "in/b.tif", terrain(1, 64), **located(crs="EPSG:32633"))
    write_raster(tmp_path / "in/c.tif", terrain(2, 64))
    write_raster(tmp_path / "in/d.tif", terrain(3, 32), **located(crs=None))
    fetch(tmp_path / "out", monkeypatch, tmp_path / "in")
    text = capsys.readouterr().err
    assert text.count("20 of 52 tiles of rasters have no CRS; 4 of them have coordinates") == 1
    assert text.count("16 in EPSG:32632, 16 in EPSG:32633") == 1
