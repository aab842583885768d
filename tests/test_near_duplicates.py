"""Near-duplicates: copies are found, low-texture tiles stay apart, no class is lost in silence."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_imagery import encoded, picture, rows_of, run
from test_imagery_scenes import grid_of_tiles
from test_real import DATA

from stages.common.artifacts import read_json
from stages.imagery.near_duplicates import (
    LEVEL,
    MAX_COLOR_DIFFERENCE,
    group_near_duplicates,
    thumbnail_bytes,
)
from stages.imagery.scale_and_crop import scale_and_crop
from stages.imagery.splits import name_hash
from stages.imagery.tile_splits import count_groups_of_several_scenes, find_scenes_outside_train
from stages.imagery.tile_spool import SpooledTile

SIZE = 64  # pixels of the tiles


def thumbnails_of(images: list[Image.Image]) -> np.ndarray:
    thumbnails = [thumbnail_bytes(scale_and_crop(image, SIZE)) for image in images]
    return np.frombuffer(b"".join(thumbnails), "<u2").reshape(len(images), -1)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality))).convert("RGB")


def copies_of(image: Image.Image) -> list[Image.Image]:
    """The image as a JPEG of low quality, and at 70 % of its size."""
    smaller = image.resize([int(side * 0.7) for side in image.size], Image.Resampling.LANCZOS)
    return [jpeg(image, 60), jpeg(smaller, 85)]


def water(seed: int, contrast: float, color=(45, 65, 85), size: int = 150) -> Image.Image:
    """Waves of all lengths around one color, and some noise of the sensor."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2)).clip(1 / size)
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) / frequencies
    spectrum[0, 0] = 0
    waves = np.fft.ifft2(spectrum).real
    waves *= contrast / waves.std()
    pixels = np.array(color) + waves[:, :, None] * [0.7, 0.9, 1]
    pixels += rng.normal(0, 0.5, pixels.shape)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def recall(originals: list[Image.Image], number: int) -> float:
    """The share of originals whose copy of that number is in their group."""
    copies = [copies_of(image)[number] for image in originals]
    groups = group_near_duplicates(thumbnails_of(originals + copies))
    count = len(originals)
    assert len(set(groups[:count])) == count  # no two originals
    return float(np.mean(groups[count:] == np.arange(count)))


def test_copies_are_found_whatever_the_contrast_that_jpeg_leaves():
    assert recall([picture(i, 90) for i in range(100)], 0) >= 0.98
    assert recall([picture(i, 90) for i in range(100)], 1) >= 0.98
    assert recall([water(i, contrast=2) for i in range(60)], 0) >= 0.98
    assert recall([water(i, contrast=2) for i in range(60)], 1) >= 0.98


@pytest.mark.parametrize("margin", ["black", "white"])
@pytest.mark.parametrize("box", [(0, 19, 150, 131), (0, 33, 150, 117), (75, 0, 150, 150)])
def test_what_lies_inside_a_common_margin_tells_tiles_apart(margin, box):
    tiles = []
    for seed in range(30):
        tiles.append(Image.new("RGB", (150, 150), margin))
        tiles[-1].paste(water(seed, contrast=5).crop(box), box)
    assert recall(tiles, 0) == recall(tiles, 1) == 1


@pytest.mark.skipif(not (DATA / "rsicd").is_dir(), reason=f"no real data at RD_DATA ({DATA})")
def test_copies_of_real_tiles_are_found():
    table = pq.read_table(DATA / "rsicd/valid.parquet", columns=["image"])
    rows = table.slice(0, 900).to_pylist()[::6]
    originals = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    assert min(recall(originals, 0), recall(originals, 1)) >= 0.98


@pytest.mark.parametrize("contrast", [0.5, 1, 2, 4])
def test_different_water_of_one_color_is_no_duplicate(contrast):
    groups = group_near_duplicates(thumbnails_of([water(i, contrast) for i in range(80)]))
    assert len(set(groups)) == 80


def test_flat_tiles_are_grouped_by_their_very_color():
    rng = np.random.default_rng(0)
    colors = np.rint(np.array([45, 65, 85]) + rng.normal(0, 8, (400, 3))).astype(np.uint8)
    tiles = [Image.new("RGB", (SIZE, SIZE), tuple(color)) for color in colors.tolist()]
    groups = group_near_duplicates(thumbnails_of(tiles))
    assert len(set(groups)) == len({tuple(color) for color in colors.tolist()}) > 380


def test_a_group_is_tight_and_many_alike_tiles_are_one_group():
    rng = np.random.default_rng(1)
    pattern = rng.normal(0, 20, 192)
    steps = np.arange(100)[:, None] * 0.5  # each within half a level of the next
    chain = np.rint((100 + pattern + steps) * LEVEL).astype(np.uint16)
    groups = group_near_duplicates(chain)
    for group in set(groups):
        levels = chain[groups == group] / LEVEL
        assert np.ptp(levels.mean(axis=1)) <= 2 * MAX_COLOR_DIFFERENCE
    assert 10 <= len(set(groups)) <= 60
    alike = 100 + pattern + rng.normal(0, 0.5, (4000, 192))
    order = rng.permutation(4100)
    mixed = np.concatenate([chain, np.rint((alike - 60) * LEVEL)]).astype(np.uint16)[order]
    groups = group_near_duplicates(mixed)
    assert len(set(groups[order >= 100])) == 1
    assert all(group == np.flatnonzero(groups == group)[0] for group in set(groups))
    assert len(group_near_duplicates(mixed[:0])) == 0


@pytest.mark.parametrize(
    "contrasts, pattern, color, alike",
    [
        ((50, 50), 9, 0, True),  # 0.2 of the contrast
        ((50, 50), 15, 0, False),
        ((50, 61), 0, 0, True),  # of the larger one
        ((5, 5), 1.8, 0, True),  # 2 levels
        ((5, 5), 2.5, 0, False),
        ((2, 2), 1, 0, True),  # 0.6 of a contrast so low
        ((2, 2), 1.6, 0, False),
        ((0.5, 0.5), 0, 0.9, True),  # color: twice the contrast
        ((0.5, 0.5), 0, 1.5, False),
        ((20, 20), 0, 1.5, True),  # 2 levels
        ((20, 20), 0, 2.5, False),
    ],
)
def test_near_duplicates_differ_in_pattern_and_color_up_to_the_limits(
    contrasts, pattern, color, alike
):
    values = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64))
    values -= values.mean(axis=2, keepdims=True)
    common, other = np.linalg.qr(values.reshape(2, 192).T)[0].T * 192**0.5  # root mean square: 1
    levels = [128 + contrasts[0] * common, 128 + color + contrasts[1] * common + pattern * other]
    first, second = group_near_duplicates(np.rint(np.stack(levels) * LEVEL).astype(np.uint16))
    assert (first == second) == alike


def test_color_counts():
    left_red = Image.new("RGB", (SIZE, SIZE), (120, 40, 40))
    left_red.paste((40, 81, 40), (SIZE // 2, 0, SIZE, SIZE))  # as bright in gray
    mirrored = left_red.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert len(set(group_near_duplicates(thumbnails_of([left_red, mirrored, left_red])))) == 2


def test_a_class_that_is_grouped_out_of_train_is_named(tmp_path):
    # Of a class of copies of one picture, all go where the hash of the first name says: to test.
    prefix = next(f"p{i}" for i in range(99) if name_hash(f"pond/p{i}_0.jpg") < 0.15)
    names = [f"{prefix}_{i}.jpg" for i in range(8)]
    for i, name in enumerate(names):
        (tmp_path / "in/pond").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in/pond" / name).write_bytes(encoded(picture(7, 90), "JPEG", quality=88 + i))
    rng = np.random.default_rng(0)
    for i in range(60):
        color = tuple(np.rint([45, 65, 85] + rng.normal(0, 8, 3)).astype(int).tolist())
        water = Image.new("RGB", (SIZE, SIZE), color)
        water.putpixel((0, 0), (0, 0, 0))  # an image of one value is skipped
        tiles = {"water": water, "forest": picture(100 + i)}
        for scene, tile in tiles.items():
            (tmp_path / "in" / scene).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / scene / f"{i}.png").write_bytes(encoded(tile))
    result = run(tmp_path / "out", source=f"path:{tmp_path}/in", test=0.15)
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "out/data/imagery/REPORT.json")
    assert report["scenes_outside_train"] == {"pond": {"tiles": 8, "train": 0, "largest_group": 8}}
    assert "warning: training sees few tiles of some scenes" in result.stderr
    assert "0 of 8 of pond\n" in result.stderr
    scenes = [row["scene"] for row in rows_of(tmp_path / "out")["train"]]
    assert scenes.count("water") > 30 < scenes.count("forest")


def tiles_of(scenes: list[str], splits: list[str]) -> list[SpooledTile]:
    tiles = grid_of_tiles(1, len(scenes), 16)
    for tile, scene, split in zip(tiles, scenes, splits):
        tile.scene, tile.split = scene, split
    return tiles


def test_groups_of_several_scenes_are_counted(capfd):
    tiles = tiles_of(["forest", "river", "river", "", "forest", "forest"], ["train"] * 6)
    groups = np.array([0, 0, 2, 2, 4, 4])
    assert count_groups_of_several_scenes(tiles, groups) == {"several_scenes": 1}
    line = capfd.readouterr().err
    assert "1 group(s) of near-duplicates hold several scenes, such as one image with two" in line
    assert "kept" not in line  # a copy in test may be excluded
    assert count_groups_of_several_scenes(tiles, np.arange(6)) == {}


def test_scenes_outside_train_are_counted():
    scenes = ["sea"] * 5 + ["town"] * 4 + ["ice"] * 5 + ["dam"]
    groups = np.array([0, 0, 0, *range(3, 15)])
    splits = ["test"] * 3 + ["train", "valid"] + ["train"] * 4 + ["test", "valid"] * 3
    assert find_scenes_outside_train(tiles_of(scenes, splits), groups) == {
        "scenes_outside_train": {
            "ice": {"tiles": 5, "train": 0, "largest_group": 1},
            "sea": {"tiles": 5, "train": 1, "largest_group": 3},
        }
    }
    assert find_scenes_outside_train(tiles_of(scenes, ["train"] * 15), groups) == {}
