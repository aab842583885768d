"""fetch_imagery: every layout, odd and bad images, splits, near-duplicates, same bytes twice."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageFilter

from stages import fetch_imagery
from stages.common.artifacts import IMAGE, decode_image, encode_png, read_json, read_rows
from stages.imagery.captions import usable_captions
from stages.imagery.image_decoding import decode_rgb
from stages.imagery.near_duplicates import group_near_duplicates, thumbnail_bytes
from stages.imagery.readers.open_source import open_source
from stages.imagery.scale_and_crop import scale_and_crop
from stages.imagery.splits import carve_splits, name_hash
from stages.imagery.unusable_image import UnusableImage

REPO = Path(__file__).parents[1]


def picture(seed: int, size: int = 40) -> Image.Image:
    """A smooth colored picture, unlike any other seed's."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def stored_tile(content: bytes, size: int = 32) -> Image.Image:
    """The tile that is stored for an encoded image, read back."""
    return Image.open(io.BytesIO(encode_png(scale_and_crop(decode_rgb(content).rgb, size))))


CAPTION_LIST = pa.list_(pa.string())


def write_parquet(path: Path, rows: list[tuple], caption_type: pa.DataType = CAPTION_LIST) -> None:
    """Write rows (filename, captions, bytes) in the columns of RSICD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names, captions, images = zip(*rows)
    cells = [
        {"bytes": image, "path": name.rpartition("/")[2]} for name, image in zip(names, images)
    ]
    columns = {
        "filename": names,
        "captions": pa.array(captions, caption_type),
        "image": pa.array(cells, IMAGE),
    }
    pq.write_table(pa.table(columns), path)


def good_rows(count: int, scene: str = "lake", start: int = 0) -> list[tuple]:
    return [
        (
            f"rsicd_images/{scene}_{i}.jpg",
            [f"a {scene} number {i}"],
            encoded(picture(i, 40 + i % 7)),
        )
        for i in range(start, start + count)
    ]


def write_params(folder: Path, classes: dict | None, **settings) -> None:
    params = yaml.safe_load((REPO / "params/demo.yaml").read_text())
    params["classes"] = {name: [] for name in params["classes"]} | (classes or {})
    params["fetch_imagery"] |= {
        "resolution": 32,
        "max_images": None,
        "valid": 0.2,
        "test": 0.2,
        "exclude_near_duplicates": False,
    } | settings
    params["train_scene"]["source"] = "scratch"
    params["finetune_sd"]["warmup_steps"] = 0  # of a training that may be short
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def run(
    folder: Path,
    classes: dict | None = None,
    module: str = "stages.fetch_imagery",
    arguments=(),
    **settings,
):
    """Run the stage as `dvc repro` does, in another folder."""
    write_params(folder, classes, **settings)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )


def rows_of(folder: Path) -> dict[str, list[dict]]:
    return {
        split: read_rows(folder / "data/imagery" / split) for split in ("train", "valid", "test")
    }


def splits_by_name(folder: Path) -> dict[str, str]:
    return {row["filename"]: split for split, rows in rows_of(folder).items() for row in rows}


def assert_one_line_error(result, *words: str) -> None:
    """The stage failed with one line that contains the words."""
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0]


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# One image

RGB = picture(1)
ODD = {
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG", quality=95),
    "alpha.png": encoded(RGB.convert("RGBA")),
    "palette.png": encoded(RGB.quantize(64)),
    "gray.png": encoded(RGB.convert("L")),
    "grayalpha.png": encoded(RGB.convert("LA")),
    "one_bit.png": encoded(RGB.convert("1")),
    "ycbcr.jpg": encoded(RGB.convert("YCbCr"), "JPEG", quality=95),
}
TRUNCATED = encoded(picture(5, 90), "JPEG")
BAD = {
    "truncated.jpg": TRUNCATED[: len(TRUNCATED) // 2],
    "text.jpg": b"not an image at all",
    "zero.png": b"",
    "one_pixel.png": encoded(Image.new("RGB", (1, 1))),
    "thin.png": encoded(Image.new("RGB", (400, 3))),
    "broken.png": encoded(RGB)[:60] + b"\0" * 200,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_image_becomes_the_rgb_picture_it_shows(name):
    stored = stored_tile(ODD[name])
    assert (stored.mode, stored.size, stored.format) == ("RGB", (32, 32), "PNG")
    expected = np.asarray(stored_tile(encoded(RGB)).convert("L"), float)
    gray = np.asarray(stored.convert("L"), float)
    correlation = np.corrcoef(expected.ravel(), gray.ravel())[0, 1]
    assert correlation > (0.5 if name == "one_bit.png" else 0.97)
    assert abs(gray.mean() - expected.mean()) < 12


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_refused(name):
    with pytest.raises(UnusableImage):
        decode_rgb(BAD[name])


@pytest.mark.parametrize(
    "suffix, image_format, options",
    [
        (".jfif", "JPEG", {"quality": 95}),
        (".avif", "AVIF", {"quality": 95}),
        (".j2k", "JPEG2000", {"no_jp2": True}),
    ],
)
def test_files_of_further_suffixes_are_images(tmp_path, suffix, image_format, options):
    for i in range(2):
        (tmp_path / f"{i}").mkdir()
        path = tmp_path / f"{i}/tile{suffix}"
        path.write_bytes(encoded(picture(i), image_format, **options))
    for i, item in enumerate(open_source(tmp_path, "key").read_items(True)):
        difference = np.subtract(decode_rgb(item.image).rgb, picture(i), dtype=float)
        assert np.abs(difference).mean() < 5


def test_transparent_is_black():
    transparent = stored_tile(encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0))), 16)
    assert np.asarray(transparent).max() == 0


def test_shorter_side_is_scaled_and_the_center_is_kept():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    stored = np.asarray(stored_tile(encoded(wide)))
    assert (stored[4:-4, 4:-4] == [0, 0, 255]).all()


@pytest.mark.parametrize(
    "field, captions, reason",
    [
        ("a lake", ["a lake"], ""),
        ([" a  lake\n", "", None], ["a lake"], ""),
        (["a", 3], ["a"], ""),
        ([], [], "no captions"),
        (None, [], "no captions"),
        (["", "  "], [], "blank captions"),
        (5, [], "captions are not text"),
        ([1.5, 2], [], "captions are not text"),
        ("12345", [], "captions are not text"),
        ({"language": "a"}, [], "captions are not text"),
        (["\ud800lake"], ["lake"], ""),
    ],
)
def test_usable_captions(field, captions, reason):
    assert usable_captions(field) == (captions, reason)


# Splits


def test_split_of_a_file_depends_on_its_name_alone():
    names = [f"lake_{i}.jpg" for i in range(400)]
    few = dict(zip(names[:200], carve_splits(names[:200], np.arange(200), 0.1, 0.2)))
    many = dict(zip(names, carve_splits(names, np.arange(400), 0.1, 0.2)))
    assert all(many[name] == split for name, split in few.items())
    larger_valid = dict(zip(names, carve_splits(names, np.arange(400), 0.3, 0.2)))
    assert all((larger_valid[name] == "test") == (many[name] == "test") for name in names)
    assert 20 <= list(many.values()).count("valid") <= 60
    assert 50 <= list(many.values()).count("test") <= 110


def test_split_sizes_as_counts_are_exact_and_groups_stay_together():
    names = [f"a_{i}.png" for i in range(100)]
    groups = np.arange(100) // 3
    splits = carve_splits(names, groups, 10, 9)
    assert splits.count("valid") in (9, 10) and splits.count("test") == 9
    for group in groups:
        assert len({splits[i] for i in np.flatnonzero(groups == group)}) == 1
    splits = carve_splits(names, np.arange(100), 500, 0)
    assert splits.count("valid") == 100  # the stage then fails because train is empty


def test_near_duplicates_are_found_and_plain_tiles_do_not_chain():
    pictures = [picture(i) for i in range(60)]
    again = [pictures[3].filter(ImageFilter.GaussianBlur(0.5)), pictures[7].resize((80, 80))]
    flat = [Image.new("RGB", (40, 40), (level, level, level)) for level in (20, 60, 100, 140)]
    jpegs = [encoded(image, "JPEG", quality=80) for image in pictures + again + flat]
    thumbnails = [np.frombuffer(thumbnail_bytes(stored_tile(jpeg)), "<u2") for jpeg in jpegs]
    groups = group_near_duplicates(np.stack(thumbnails))
    assert groups[60] == 3 and groups[61] == 7
    assert len(set(groups)) == 60 + len(flat)
    assert 0 <= name_hash("x") < 1 and name_hash("x") != name_hash("x", "keep")


# The stage


def unusual_rows() -> list[tuple]:
    """Rows with bad images, odd images, odd captions and another image's file name."""
    odd_images = [
        ("c_1.jpg", picture(500).convert("CMYK"), "JPEG"),
        ("p_1.jpg", picture(501).convert("P"), "PNG"),
        ("a_1.jpg", picture(502).convert("RGBA"), "PNG"),
    ]
    return [
        *((f"rsicd_images/odd_{i}.jpg", ["a"], image) for i, image in enumerate(BAD.values())),
        ("rsicd_images/path_1.jpg", ["a"], None),
        *(
            (f"rsicd_images/{name}", ["odd but fine"], encoded(image, image_format))
            for name, image, image_format in odd_images
        ),
        ("rsicd_images/blank_1.jpg", ["", " "], encoded(picture(90))),
        ("rsicd_images/none_1.jpg", None, encoded(picture(91))),
        ("rsicd_images/digits_1.jpg", ["1", "22"], encoded(picture(92))),
        ("rsicd_images/part_1.jpg", ["", "fine"], encoded(picture(93))),
        ("rsicd_images/lake_0.jpg", ["another"], encoded(picture(94))),
    ]


def test_parquet_with_bad_items_and_own_splits(tmp_path):
    like_lake_2 = encoded(picture(2), "JPEG", quality=90)
    twin = [("rsicd_images/river_900.jpg", ["same as lake 2"], like_lake_2)]
    write_parquet(tmp_path / "in/train.parquet", good_rows(40) + unusual_rows())
    write_parquet(tmp_path / "in/valid.parquet", good_rows(6, "river", 100) + twin)
    classes = {"Water Body": ["lake", "river"]}
    settings = {
        "source": f"path:{tmp_path}/in",
        "splits": {"train": "train", "valid": None, "test": "valid"},
        "valid": 7,
    }
    result = run(tmp_path / "a", classes, **settings)
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "a/data/imagery/REPORT.json")
    rows = rows_of(tmp_path / "a")
    assert report["kept"] == {"train": 38, "valid": 7, "test": 7}
    assert report["kept"] == {split: len(split_rows) for split, split_rows in rows.items()}
    assert {reason: entry["count"] for reason, entry in report["skipped"].items()} == {
        "blank captions": 1,
        "no captions": 1,
        "captions are not text": 1,
        "image is empty": 1,
        "row without the bytes of an image": 1,
        "image is unreadable or truncated": 3,
        "smaller than 16 pixels": 2,
    }
    assert report["skipped"]["blank captions"]["names"] == ["rsicd_images/blank_1.jpg"]
    assert report["near_duplicates"]["groups"] == 1 and report["captions_dropped"] == 1
    assert report["near_duplicates"]["train_test"] + report["near_duplicates"]["valid_test"] == 1
    for mode in ("CMYK", "RGBA", "P"):
        assert report[f"converted_from_{mode}"] == 1
    by_name = {row["filename"]: row for split_rows in rows.values() for row in split_rows}
    lakes = [row for name, row in by_name.items() if name.startswith("rsicd_images/lake_0-")]
    assert sorted(row["captions"] for row in lakes) == [["a lake number 0"], ["another"]]
    assert all(row["scene"] == "lake" for row in lakes)
    assert decode_image(lakes[0]["image"]).size == (32, 32)
    assert {row["scene"] for row in rows["test"]} == {"river"}
    source = read_json(tmp_path / "a/data/imagery/SOURCE.json")
    table_hash = hashlib.sha256((tmp_path / "in/train.parquet").read_bytes()).hexdigest()
    assert source["files"]["train.parquet"] == table_hash

    run(tmp_path / "b", classes, **settings)
    assert bytes_of(tmp_path / "a/data") == bytes_of(tmp_path / "b/data")


def test_test_tiles_that_look_like_training_tiles_are_left_out_when_asked(tmp_path):
    twins = [
        (f"rsicd_images/pond_{900 + i}.jpg", ["a twin"], encoded(picture(i), "JPEG", quality=80))
        for i in range(3)
    ]
    write_parquet(tmp_path / "in/train.parquet", good_rows(12))
    write_parquet(tmp_path / "in/valid.parquet", good_rows(2, "river", 200))
    write_parquet(tmp_path / "in/test.parquet", good_rows(6, "river", 100) + twins)
    own = {
        "source": f"path:{tmp_path}/in",
        "splits": {"train": "train", "valid": "valid", "test": "test"},
    }
    for name, asked in (("kept", False), ("left_out", True)):
        result = run(tmp_path / name, exclude_near_duplicates=asked, **own)
        assert result.returncode == 0
        told = "3 of 9 test tiles look like a training tile and are left out; test has no .* pond"
        assert bool(re.search(told, result.stderr)) == asked
        report = read_json(tmp_path / name / "data/imagery/REPORT.json")
        assert report["near_duplicates"]["train_test"] == 3
        assert report["near_duplicates"]["excluded_from_test"] == 3 * asked
        assert report["kept"]["test"] == 9 - 3 * asked
    names = {row["filename"] for row in rows_of(tmp_path / "left_out")["test"]}
    assert not names.intersection(name for name, _, _ in twins)


@pytest.mark.parametrize("own, carved", [("test", "valid"), ("valid", "test")])
def test_a_carved_split_holds_no_copies_of_the_own_one(tmp_path, monkeypatch, own, carved):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "in/train.parquet", good_rows(24))
    copies = [(f"copy_{name}", *cells) for name, *cells in good_rows(12)]
    write_parquet(tmp_path / f"in/{own}.parquet", copies)
    write_params(tmp_path, None, source=f"path:{tmp_path}/in", valid=0.5, test=0.5)
    fetch_imagery.main()
    counts = read_json("data/imagery/REPORT.json")["near_duplicates"]
    assert counts[f"train_{own}"] == 12 and counts["valid_test"] == 0
    assert rows_of(tmp_path)[carved]


def test_a_test_split_of_nothing_but_near_duplicates_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):
        rows = [(f"{split}_{name}", *cells) for name, *cells in good_rows(12)]
        write_parquet(tmp_path / f"in/{split}.parquet", rows)
    write_params(tmp_path, None, source=f"path:{tmp_path}/in", exclude_near_duplicates=True)
    message = "test split is empty .*excluded: 12 as near-duplicates .*exclude_near_duplicates"
    with pytest.raises(SystemExit, match=message):
        fetch_imagery.main()


def test_splits_stay_when_images_are_added_and_twins_stay_together(tmp_path):
    twins = [
        (
            f"rsicd_images/twin_{i}.jpg",
            ["a twin"],
            encoded(picture(300 + i // 4, 50 + i), "JPEG", quality=70 + i),
        )
        for i in range(24)
    ]
    write_parquet(tmp_path / "few.parquet", good_rows(40) + twins)
    write_parquet(tmp_path / "more.parquet", good_rows(60) + twins)
    for name in ("few", "more"):
        assert run(tmp_path / name, source=f"path:{tmp_path}/{name}.parquet").returncode == 0
    few = splits_by_name(tmp_path / "few")
    more = splits_by_name(tmp_path / "more")
    assert len(few) == 64 and all(more[name] == split for name, split in few.items())
    for group in range(6):
        names = [f"rsicd_images/twin_{i}.jpg" for i in range(group * 4, group * 4 + 4)]
        assert len({few[name] for name in names}) == 1
    assert read_json(tmp_path / "few/data/imagery/REPORT.json")["near_duplicates"]["groups"] == 6


def test_class_folders_get_captions_and_max_images_is_kept(tmp_path):
    for i in range(40):
        for scene in ("AnnualCrop", "sea_lake"):
            path = tmp_path / "in" / scene / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(i + 1000 * (scene == "AnnualCrop")), "JPEG"))
    (tmp_path / "in/sea_lake/.DS_Store").write_bytes(b"x")
    (tmp_path / "in/sea_lake/readme.txt").write_text("x")
    (tmp_path / "in/AnnualCrop/bad.png").write_bytes(b"x")
    settings = {"source": f"path:{tmp_path}/in", "max_images": 60, "resolution": 48}
    result = run(tmp_path / "a", {"Crop Land": ["AnnualCrop"]}, **settings)
    assert result.returncode == 0, result.stderr
    rows = [row for split_rows in rows_of(tmp_path / "a").values() for row in split_rows]
    assert 59 <= len(rows) <= 60
    assert {(row["scene"], *row["captions"]) for row in rows} == {
        ("AnnualCrop", "a satellite image of annual crop"),
        ("sea_lake", "a satellite image of sea lake"),
    }
    report = read_json(tmp_path / "a/data/imagery/REPORT.json")
    assert report["captions_from_class_names"] == report["enlarged"] == len(rows)
    enlarged = f"{len(rows)} of {len(rows)} images are smaller than 48 pixels and are enlarged"
    assert f"fetch_imagery.resolution: {enlarged}" in result.stderr
    assert report["left_out_by_max_images"] == 21  # of 80, and one that proves unreadable
    assert "max_images: 60 of 81 usable images are kept" in result.stderr


def test_image_folder_with_splits_and_bad_lines(tmp_path):
    for split, count in (("train", 30), ("test", 5)):
        folder = tmp_path / "in" / split
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            (folder / f"lake_{i}.png").write_bytes(encoded(picture(i + 100 * len(split))))
            row = {"file_name": f"lake_{i}.png", "text": f"a lake {i}"}
            if i:
                row["scene"] = "water"
            lines.append(json.dumps(row))
        lines += [
            "{broken",
            "[1]",
            '{"text": "no name"}',
            '{"file_name": "../../secret.png", "text": "x"}',
            "",
            '{"file_name": "gone.png", "text": "x"}',
            '{"file_name": "lake_1.png", "text": "again"}',
        ]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "in/train/stray.png").write_bytes(encoded(picture(999)))
    result = run(
        tmp_path / "a",
        {"Water Body": ["water"]},
        source=f"path:{tmp_path}/in",
        splits={"train": "train", "valid": None, "test": "test"},
    )
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "a/data/imagery/REPORT.json")
    rows = rows_of(tmp_path / "a")
    assert len(rows["test"]) == 5 and len(rows["train"]) + len(rows["valid"]) == 30
    assert {reason: entry["count"] for reason, entry in report["skipped"].items()} == {
        "metadata line without a file_name": 2,
        "metadata line that is no JSON object": 4,
        "file_name outside the folder": 2,
        "listed file is missing": 2,
        "not in metadata.jsonl": 1,
    }
    assert {row["scene"] for row in rows["test"]} == {"water", ""}

    done = run(tmp_path / "a", module="tools.export", arguments=("imagefolder", "test", "out"))
    assert done.returncode == 0, done.stderr
    again = run(tmp_path / "b", source=f"path:{tmp_path}/a/out", valid=1, test=1)
    assert again.returncode == 0, again.stderr
    read_back = [row for split_rows in rows_of(tmp_path / "b").values() for row in split_rows]
    by_caption = {row["captions"][0]: row for row in read_back}
    for row in rows["test"]:
        assert by_caption[row["captions"][0]]["image"]["bytes"] == row["image"]["bytes"]
    twice = run(tmp_path / "a", module="tools.export", arguments=("imagefolder", "test", "out"))
    assert_one_line_error(twice, "out")


def test_embedded_tiles_are_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        result = run(
            tmp_path / name,
            {"Water Body": ["lake", "coast"]},
            source="embedded",
            max_images=36,
            valid=4,
            test=6,
        )
        assert result.returncode == 0, result.stderr
    assert bytes_of(tmp_path / "a/data") == bytes_of(tmp_path / "b/data")
    rows = rows_of(tmp_path / "a")
    counts = {split: len(split_rows) for split, split_rows in rows.items()}
    assert counts == {"train": 26, "valid": 4, "test": 6}
    for row in rows["train"]:
        assert len(row["captions"]) == 5 and row["filename"].startswith(row["scene"])


def error_of(folder: Path, monkeypatch, **settings) -> str:
    """The error line of a stage that is run in this process.

    This is faster, but works only for errors that come before the stage starts its processes.
    """
    write_params(folder, settings.pop("classes", None), **settings)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        fetch_imagery.main()
    assert str(end.value).startswith(("error: ", "params.yaml: ")) and "\n" not in str(end.value)
    return str(end.value)


def test_a_source_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/a_1.png").write_bytes(encoded(RGB))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "columns.parquet")
    numbers = [(f"a_{i}.png", i, encoded(RGB)) for i in range(3)]
    write_parquet(tmp_path / "numbers.parquet", numbers, pa.int64())
    write_parquet(tmp_path / "two/train.parquet", good_rows(3))
    write_parquet(tmp_path / "two/other.parquet", good_rows(3, "river", 10))

    def error(source: str, **settings) -> str:
        source = source if ":" in source else f"path:{tmp_path}/{source}"
        return error_of(tmp_path / "run", monkeypatch, source=source, **settings)

    for source in ("nowhere", "empty", "loose", "notes.txt", "broken.parquet", "columns.parquet"):
        line = error(source)
        assert line.startswith("error: fetch_imagery.source: ") and source in line
    assert "fetch_imagery.caption" in error("loose")
    assert "`image`" in error("columns.parquet") and "x" in error("columns.parquet")
    assert re.search(r"\b3 captions .*\(a_0\.png ", error("numbers.parquet"))
    assert "fetch_imagery.splits: " in error("two") and "other, train" in error("two")
    misspelled = error("two", splits={"train": "train", "valid": None, "test": "tset"})
    assert "fetch_imagery.splits.test: " in misspelled and "'tset'" in misspelled
    assert "fetch_imagery.source" in error("arxiv:list.csv")
    assert "NOT_SET_ANYWHERE" in error("path:$NOT_SET_ANYWHERE/x")
    line = error_of(tmp_path / "run", monkeypatch, source="embedded")
    assert "fetch_imagery.max_images: " in line
    assert not (tmp_path / "run/data").exists()


def test_a_source_of_bad_or_too_few_images_leaves_no_output(tmp_path):
    write_parquet(
        tmp_path / "bad.parquet", [(f"{'ab'[i % 2]}_{i}.png", ["a"], b"x") for i in range(3)]
    )
    write_parquet(tmp_path / "few.parquet", good_rows(1) + good_rows(1, "river", 5))
    bad = run(tmp_path / "run", source=f"path:{tmp_path}/bad.parquet")
    assert_one_line_error(bad, "fetch_imagery.source", " 3 ", "truncated")
    few = run(tmp_path / "run", source=f"path:{tmp_path}/few.parquet")
    assert_one_line_error(few, "fetch_imagery.{splits,valid,test}", "none")
    assert not list((tmp_path / "run/data").iterdir())


DATA = Path(os.environ.get("RD_DATA", REPO.parent / "shared/data"))


@pytest.mark.real
@pytest.mark.skipif(not (DATA / "rsicd").is_dir(), reason="real RSICD is not here (set RD_DATA)")
def test_real_rsicd(tmp_path):
    result = run(
        tmp_path / "a",
        {"Crop Land": ["farmland"]},
        source=f"path:{DATA}/rsicd",
        max_images=500,
        splits={"train": "train", "valid": None, "test": "valid"},
    )
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "a/data/imagery/REPORT.json")
    kept = report["kept"]
    assert kept["test"] == 500 and kept["train"] + kept["valid"] == 500
    assert report["scenes"] == 30
    assert encode_png(decode_image(rows_of(tmp_path / "a")["test"][0]["image"]))
