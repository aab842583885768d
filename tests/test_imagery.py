"""fetch_imagery on real odd files: every layout, every bad item, splits, near-duplicates, same bytes."""

import hashlib
import io
import json
import os
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
from stages.imagery.decoding import deep, tile
from stages.imagery.readers import sentences
from stages.imagery.splits import carve, near_duplicates, share
from stages.params import LULC_CLASSES

REPO = Path(__file__).parents[1]


def picture(seed: int, size: int = 40) -> Image.Image:
    """A smooth colored picture, unlike any other seed's."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


TEXTS = pa.list_(pa.string())


def table(path: Path, rows: list[tuple], captions: pa.DataType = TEXTS) -> None:
    """Rows (filename, captions, bytes) in RSICD's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names, texts, images = zip(*rows)
    cells = [
        {"bytes": image, "path": name.rpartition("/")[2]} for name, image in zip(names, images)
    ]
    columns = {
        "filename": names,
        "captions": pa.array(texts, captions),
        "image": pa.array(cells, IMAGE),
    }
    pq.write_table(pa.table(columns), path)


def good(count: int, scene: str = "lake", start: int = 0) -> list[tuple]:
    return [
        (
            f"rsicd_images/{scene}_{i}.jpg",
            [f"a {scene} number {i}"],
            encoded(picture(i, 40 + i % 7)),
        )
        for i in range(start, start + count)
    ]


def write_params(folder: Path, classes: dict | None, **settings) -> None:
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params["classes"] = {name: [] for name in LULC_CLASSES} | (classes or {})
    params["fetch_imagery"] |= {
        "resolution": 32,
        "max_images": None,
        "valid": 0.2,
        "test": 0.2,
        "exclude_near_duplicates": False,
    } | settings
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def run(
    folder: Path,
    classes: dict | None = None,
    module: str = "stages.fetch_imagery",
    arguments=(),
    **settings,
):
    """The stage as `dvc repro` runs it, in a folder of its own."""
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


def split_of(folder: Path) -> dict[str, str]:
    return {row["filename"]: split for split, rows in rows_of(folder).items() for row in rows}


def one_line_failure(result, *words: str) -> None:
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# One image -------------------------------------------------------------------------------------------------------------

RGB = picture(1)
ODD = {
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG", quality=95),
    "sixteen.png": encoded(Image.fromarray(np.asarray(RGB.convert("L"), np.uint16) * 257)),
    "twelve.png": encoded(Image.fromarray(np.asarray(RGB.convert("L"), np.uint16) * 16)),
    "float.tif": encoded(Image.fromarray(np.asarray(RGB.convert("L"), np.float32) / 255), "TIFF"),
    "alpha.png": encoded(RGB.convert("RGBA")),
    "palette.png": encoded(RGB.quantize(64)),
    "grey.png": encoded(RGB.convert("L")),
    "greyalpha.png": encoded(RGB.convert("LA")),
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
    made = tile(ODD[name], 32)
    assert not isinstance(made, str), made
    stored = Image.open(io.BytesIO(made.png))
    assert (stored.mode, stored.size, stored.format) == ("RGB", (32, 32), "PNG")
    want = np.asarray(Image.open(io.BytesIO(tile(encoded(RGB), 32).png)).convert("L"), float)
    grey = np.asarray(stored.convert("L"), float)
    assert np.corrcoef(want.ravel(), grey.ravel())[0, 1] > (0.5 if name == "one_bit.png" else 0.97)
    assert abs(grey.mean() - want.mean()) < 12


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_a_reason(name):
    assert isinstance(tile(BAD[name], 32), str)


def test_transparent_is_black_and_bit_depth_sets_white():
    clear = tile(encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0))), 16)
    assert np.asarray(Image.open(io.BytesIO(clear.png))).max() == 0
    assert np.asarray(deep(np.array([[0, 4095]]))).tolist() == [[0, 255]]
    assert np.asarray(deep(np.array([[0, 65535]]))).tolist() == [[0, 255]]
    assert np.asarray(deep(np.array([[np.nan, 0.5]]))).tolist() == [[0, 128]]


def test_shorter_side_is_scaled_and_the_centre_kept():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    stored = np.asarray(Image.open(io.BytesIO(tile(encoded(wide), 32).png)))
    assert (stored[4:-4, 4:-4] == [0, 0, 255]).all()


@pytest.mark.parametrize(
    "found, texts, reason",
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
        ({"raw": "a"}, [], "captions are not text"),
        (["\ud800lake"], ["lake"], ""),
    ],
)
def test_sentences(found, texts, reason):
    assert sentences(found) == (texts, reason)


# Splits ----------------------------------------------------------------------------------------------------------------


def test_split_of_a_file_depends_on_its_name_alone():
    names = [f"lake_{i}.jpg" for i in range(400)]
    few = dict(zip(names[:200], carve(names[:200], np.arange(200), 0.1, 0.2)))
    many = dict(zip(names, carve(names, np.arange(400), 0.1, 0.2)))
    assert all(many[name] == split for name, split in few.items())
    wide = dict(zip(names, carve(names, np.arange(400), 0.3, 0.2)))
    assert {n for n in names if wide[n] == "test"} == {n for n in names if many[n] == "test"}
    assert (
        20 <= list(many.values()).count("valid") <= 60
        and 50 <= list(many.values()).count("test") <= 110
    )


def test_counts_are_met_exactly_and_groups_stay_whole():
    names, groups = [f"a_{i}.png" for i in range(100)], np.arange(100) // 3
    split = carve(names, groups, 10, 9)
    assert split.count("valid") in (9, 10) and split.count("test") == 9
    assert all(len({split[i] for i in np.flatnonzero(groups == g)}) == 1 for g in groups)
    single = carve(names, np.arange(100), 500, 0)
    assert single.count("valid") == 100  # the stage then says that train is empty


def test_near_duplicates_are_found_and_plain_tiles_do_not_chain():
    pictures = [picture(i) for i in range(60)]
    again = [pictures[3].filter(ImageFilter.GaussianBlur(0.5)), pictures[7].resize((80, 80))]
    flat = [Image.new("RGB", (40, 40), (level, level, level)) for level in (20, 60, 100, 140)]
    made = [tile(encoded(image, "JPEG", quality=80), 32) for image in pictures + again + flat]
    groups = near_duplicates(
        np.array([m.dhash for m in made], np.uint64),
        np.stack([np.frombuffer(m.thumb, np.uint8) for m in made]),
    )
    assert groups[60] == 3 and groups[61] == 7
    assert len(set(groups)) == 60 + len(flat)
    assert 0 <= share("x") < 1 and share("x") != share("x", "keep")


# The stage -------------------------------------------------------------------------------------------------------------


def test_parquet_with_bad_items_and_own_splits(tmp_path):
    bad = [
        (f"rsicd_images/odd_{i}.jpg", ["a caption"], content)
        for i, content in enumerate(BAD.values())
    ]
    odd = [
        (
            f"rsicd_images/{name.replace('.', '_')}.jpg",
            ["odd but fine"],
            encoded(picture(500 + i).convert(mode), form),
        )
        for i, (name, mode, form) in enumerate(
            [("c.1", "CMYK", "JPEG"), ("p.1", "P", "PNG"), ("a.1", "RGBA", "PNG")]
        )
    ]
    words = [
        ("rsicd_images/blank_1.jpg", ["", " "], encoded(picture(90))),
        ("rsicd_images/none_1.jpg", None, encoded(picture(91))),
        ("rsicd_images/digits_1.jpg", ["1", "22"], encoded(picture(92))),
        ("rsicd_images/part_1.jpg", ["", "fine"], encoded(picture(93))),
    ]
    twice = [("rsicd_images/lake_0.jpg", ["another"], encoded(picture(94)))]
    twin = [
        ("rsicd_images/river_900.jpg", ["same as lake 2"], encoded(picture(2), "JPEG", quality=90))
    ]
    table(tmp_path / "in/train.parquet", good(40) + bad + odd + words + twice)
    table(tmp_path / "in/valid.parquet", good(6, "river", 100) + twin)
    result = run(
        tmp_path / "a",
        {"Water Body": ["lake", "river"]},
        source=f"path:{tmp_path}/in",
        splits={"train": "train", "valid": None, "test": "valid"},
        valid=7,
    )
    assert result.returncode == 0, result.stderr
    report, rows = read_json(tmp_path / "a/data/imagery/REPORT.json"), rows_of(tmp_path / "a")
    assert (
        report["kept"]
        == {"train": 37, "valid": 7, "test": 7}
        == {split: len(r) for split, r in rows.items()}
    )
    assert {reason: entry["count"] for reason, entry in report["skipped"].items()} == {
        "duplicate file name": 1,
        "blank captions": 1,
        "no captions": 1,
        "captions are not text": 1,
        "image is empty": 1,
        "image is unreadable or truncated": 3,
        "smaller than 16 pixels": 2,
    }
    assert report["skipped"]["blank captions"]["names"] == ["rsicd_images/blank_1.jpg"]
    assert report["near_duplicates"]["groups"] == 1 and report["captions_dropped"] == 1
    assert report["near_duplicates"]["train_test"] + report["near_duplicates"]["valid_test"] == 1
    assert (
        report["converted_from_CMYK"]
        == report["converted_from_RGBA"]
        == report["converted_from_P"]
        == 1
    )
    lake = next(
        row for r in rows.values() for row in r if row["filename"] == "rsicd_images/lake_0.jpg"
    )
    assert (
        lake["scene"] == "lake"
        and lake["captions"] == ["a lake number 0"]
        and decode_image(lake["image"]).size == (32, 32)
    )
    assert {row["scene"] for row in rows["test"]} == {"river"}
    source = read_json(tmp_path / "a/data/imagery/SOURCE.json")
    assert (
        source["files"]["train.parquet"]
        == hashlib.sha256((tmp_path / "in/train.parquet").read_bytes()).hexdigest()
    )

    run(
        tmp_path / "b",
        {"Water Body": ["lake", "river"]},
        source=f"path:{tmp_path}/in",
        splits={"train": "train", "valid": None, "test": "valid"},
        valid=7,
    )
    assert bytes_of(tmp_path / "a/data") == bytes_of(tmp_path / "b/data")


def test_test_tiles_that_look_like_training_tiles_are_left_out_when_asked(tmp_path):
    twins = [
        (f"rsicd_images/river_{900 + i}.jpg", ["a twin"], encoded(picture(i), "JPEG", quality=80))
        for i in range(3)
    ]
    table(tmp_path / "in/train.parquet", good(12))
    table(tmp_path / "in/valid.parquet", good(2, "river", 200))
    table(tmp_path / "in/test.parquet", good(6, "river", 100) + twins)
    own = {
        "source": f"path:{tmp_path}/in",
        "splits": {"train": "train", "valid": "valid", "test": "test"},
    }
    for name, asked in (("kept", False), ("left_out", True)):
        assert run(tmp_path / name, exclude_near_duplicates=asked, **own).returncode == 0
        found = read_json(tmp_path / name / "data/imagery/REPORT.json")
        assert found["near_duplicates"]["train_test"] == 3
        assert (
            found["near_duplicates"]["excluded_from_test"] == 3 * asked
            and found["kept"]["test"] == 9 - 3 * asked
        )
    assert not {row["filename"] for row in rows_of(tmp_path / "left_out")["test"]} & {
        name for name, _, _ in twins
    }


def test_splits_stay_when_images_are_added_and_twins_stay_together(tmp_path):
    twins = [
        (
            f"rsicd_images/twin_{i}.jpg",
            ["a twin"],
            encoded(picture(300 + i // 4, 50 + i), "JPEG", quality=70 + i),
        )
        for i in range(24)
    ]
    table(tmp_path / "few.parquet", good(40) + twins)
    table(tmp_path / "more.parquet", good(60) + twins)
    for name in ("few", "more"):
        assert run(tmp_path / name, source=f"path:{tmp_path}/{name}.parquet").returncode == 0
    few, more = split_of(tmp_path / "few"), split_of(tmp_path / "more")
    assert len(few) == 64 and all(more[name] == split for name, split in few.items())
    for group in range(6):
        assert (
            len({few[f"rsicd_images/twin_{i}.jpg"] for i in range(group * 4, group * 4 + 4)}) == 1
        )
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
    result = run(
        tmp_path / "a", {"Crop Land": ["AnnualCrop"]}, source=f"path:{tmp_path}/in", max_images=60
    )
    assert result.returncode == 0, result.stderr
    rows = [row for r in rows_of(tmp_path / "a").values() for row in r]
    assert 59 <= len(rows) <= 60
    assert {(row["scene"], *row["captions"]) for row in rows} == {
        ("AnnualCrop", "a satellite image of annual crop"),
        ("sea_lake", "a satellite image of sea lake"),
    }
    assert read_json(tmp_path / "a/data/imagery/REPORT.json")["captions_from_class_names"] == len(
        rows
    )


def test_image_folder_with_splits_and_bad_lines(tmp_path):
    for split, count in (("train", 30), ("test", 5)):
        folder = tmp_path / "in" / split
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            (folder / f"lake_{i}.png").write_bytes(encoded(picture(i + 100 * len(split))))
            row = {"file_name": f"lake_{i}.png", "text": f"a lake {i}"} | (
                {"scene": "water"} if i else {}
            )
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
    report, rows = read_json(tmp_path / "a/data/imagery/REPORT.json"), rows_of(tmp_path / "a")
    assert len(rows["test"]) == 5 and len(rows["train"]) + len(rows["valid"]) == 30
    assert {reason: entry["count"] for reason, entry in report["skipped"].items()} == {
        "metadata line without a file_name": 6,
        "file_name outside the folder": 2,
        "listed file is missing": 2,
        "duplicate file name": 2,
        "not in metadata.jsonl": 1,
    }
    assert {row["scene"] for row in rows["test"]} == {"water", "lake"}

    done = run(tmp_path / "a", module="tools.export", arguments=("imagefolder", "test", "out"))
    assert done.returncode == 0, done.stderr
    again = run(tmp_path / "b", source=f"path:{tmp_path}/a/out", valid=1, test=1)
    assert again.returncode == 0, again.stderr
    back = {row["captions"][0]: row for r in rows_of(tmp_path / "b").values() for row in r}
    assert all(
        back[row["captions"][0]]["image"]["bytes"] == row["image"]["bytes"] for row in rows["test"]
    )
    twice = run(tmp_path / "a", module="tools.export", arguments=("imagefolder", "test", "out"))
    one_line_failure(twice, "not an empty folder")


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
    assert {split: len(r) for split, r in rows.items()} == {"train": 26, "valid": 4, "test": 6}
    assert all(
        len(row["captions"]) == 5 and row["filename"].startswith(row["scene"])
        for row in rows["train"]
    )


def fault_of(folder: Path, monkeypatch, **settings) -> str:
    """The line a stage ends with, run in this process (faster; only for faults found before its process pool starts)."""
    write_params(folder, settings.pop("classes", None), **settings)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        fetch_imagery.main()
    assert str(end.value).startswith(("error: ", "params.yaml: ")) and "\n" not in str(end.value)
    return str(end.value)


def test_whole_input_faults_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/a_1.png").write_bytes(encoded(RGB))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "columns.parquet")
    table(
        tmp_path / "numbers.parquet",
        [(f"a_{i}.png", i, encoded(RGB)) for i in range(3)],
        pa.int64(),
    )
    table(tmp_path / "two/train.parquet", good(3))
    table(tmp_path / "two/other.parquet", good(3, "river", 10))

    def said(source: str, **settings) -> str:
        source = source if ":" in source else f"path:{tmp_path}/{source}"
        return fault_of(tmp_path / "run", monkeypatch, source=source, **settings)

    named = {"train": "train", "valid": None, "test": "other"}
    assert "fetch_imagery.source" in said("nowhere") and "no such file" in said("nowhere")
    assert "no images" in said("empty")
    assert "no captions" in said("loose")
    assert "not a .parquet" in said("notes.txt")
    assert "broken.parquet" in said("broken.parquet")
    assert "no column `image`; it has x" in said("columns.parquet")
    assert "3 captions are not text (a_0.png ...)" in said("numbers.parquet")
    assert "other, train" in said("two")
    assert "splits.test: no split 'tset'" in said("two", splits=named | {"test": "tset"})
    assert "imagery (embedded, path:, hub:)" in said("arxiv:list.csv")
    assert "NOT_SET_ANYWHERE" in said("path:$NOT_SET_ANYWHERE/x")
    assert "max_images" in fault_of(tmp_path / "run", monkeypatch, source="embedded")
    assert not (tmp_path / "run/data").exists()


def test_all_bad_or_too_few_leave_nothing_behind(tmp_path):
    table(tmp_path / "bad.parquet", [(f"{'ab'[i % 2]}_{i}.png", ["a"], b"x") for i in range(3)])
    table(tmp_path / "few.parquet", good(1) + good(1, "river", 5))
    one_line_failure(
        run(tmp_path / "run", source=f"path:{tmp_path}/bad.parquet"),
        "3 image is unreadable or truncated",
    )
    one_line_failure(
        run(tmp_path / "run", source=f"path:{tmp_path}/few.parquet"),
        "split is empty",
        "skipped: none",
    )
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
    assert (
        report["kept"]["test"] == 500 == report["kept"]["train"] + report["kept"]["valid"]
        and report["scenes"] == 30
    )
    assert encode_png(decode_image(rows_of(tmp_path / "a")["test"][0]["image"]))
