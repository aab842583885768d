"""fetch_imagery on imperfect sources: no classes, links, other formats, odd tables, bad files."""

import io
import json
import re
import struct
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile
from test_imagery import (
    assert_one_line_error,
    encoded,
    error_of,
    good_rows,
    picture,
    rows_of,
    run,
    splits_by_name,
    write_parquet,
)

from stages.common.artifacts import IMAGE, read_json
from stages.imagery import tile_reading
from stages.imagery.image_decoding import decode_rgb
from stages.imagery.readers.open_source import open_source
from stages.imagery.splits import match_splits
from stages.imagery.unusable_image import UnusableImage

OWN_SPLITS = {"train": "train", "valid": "valid", "test": "test"}


def write_images(root: Path, folder: str, count: int, start: int, name: str = "{}.png") -> None:
    """Write images, numbered from `start`, all unlike each other."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (root / folder / name.format(i)).write_bytes(encoded(picture(i)))


def skip_counts(folder: Path) -> dict[str, int]:
    report = read_json(folder / "data/imagery/REPORT.json")
    return {reason: entry["count"] for reason, entry in report["skipped"].items()}


def broken_images() -> dict[str, bytes]:
    """Files that Pillow knows by their content, keyed by the exception that it raises on them."""
    avif = encoded(picture(1), "AVIF")
    spider = bytearray(encoded(picture(1).convert("F"), "SPIDER"))
    struct.pack_into("<f", spider, 4 * 26, 1.0)  # marks it as an image of a stack
    dds_header = struct.pack("<7I44x2I44x", 124, 0x1007, 40, 40, 160, 0, 0, 32, 0)
    return {
        "RuntimeError": avif.replace(b"iloc", b"xxxx"),
        "AttributeError": bytes(spider),
        "NotImplementedError": b"DDS " + dds_header,  # without a pixel format
    }


# Splits


@pytest.mark.parametrize(
    "path, split, scene, skip_reason",
    [
        ("forest/1.png", None, "forest", None),
        ("train/forest/1.png", "train", "forest", None),
        ("Forest/Val/1.png", "Val", "Forest", None),
        ("EuroSAT/train/forest/1.png", "train", "forest", None),
        ("split=train/forest/1.png", "split=train", "forest", None),
        ("Train /forest /1.png", "Train ", "forest", None),
        ("train/test/1.png", "train", "test", None),
        ("test/airport_1.png", "test", "airport", None),
        ("test/1.png", "test", "", "no class folder and no captions"),
        ("airport_1.png", None, "airport", None),
        ("T32UMD_1.png", None, "", "no class folder and no captions"),
    ],
)
def test_a_folder_named_as_a_split_is_not_a_class(tmp_path, path, split, scene, skip_reason):
    folder, _, name = path.rpartition("/")
    write_images(tmp_path, folder, 1, 0, name)
    (item,) = open_source(tmp_path, "key").read_items(False)
    assert (item.split, item.scene, item.name) == (split, scene, path)
    assert item.skip_reason == skip_reason


def test_an_image_outside_class_folders_is_skipped_whatever_it_is_named(tmp_path):
    write_images(tmp_path, "train/forest", 2, 0)
    write_images(tmp_path, "train/river", 2, 10)
    write_images(tmp_path, "test", 3, 20, "img_{}.png")
    items = list(open_source(tmp_path, "key").read_items(False))
    assert {(item.split, item.scene) for item in items if not item.skip_reason} == {
        ("train", "forest"),
        ("train", "river"),
    }
    skipped = [item.name for item in items if item.skip_reason == "no class folder and no captions"]
    assert skipped == ["test/img_20.png", "test/img_21.png", "test/img_22.png"]


@pytest.mark.parametrize("captioned", [False, True])
def test_an_image_outside_class_folders_may_be_named_as_one(tmp_path, captioned):
    images = ["train/forest/a.png", "train/lake/b.png", "test/forest_1.png", "test/lake_2.png"]
    for i, image in enumerate(images):
        folder, _, name = image.rpartition("/")
        write_images(tmp_path, folder, 1, i, name)
        if captioned:
            (tmp_path / image).with_suffix(".txt").write_text("seen from above")
    items = open_source(tmp_path, "key").read_items(False)
    found = {item.name: (item.split, item.scene) for item in items if not item.skip_reason}
    assert found == {
        "train/forest/a.png": ("train", "forest"),
        "train/lake/b.png": ("train", "lake"),
        "test/forest_1.png": ("test", "forest"),
        "test/lake_2.png": ("test", "lake"),
    }


def test_numbered_parts_of_a_split_are_one(capfd):
    undecided = dict.fromkeys(OWN_SPLITS)
    tables = {"train_1": 8, "train_2": 8, "test_1": 2, "test_2": 2}
    both = dict.fromkeys(("test_1", "test_2"), "test")
    train = dict.fromkeys(("train_1", "train_2"), "train")
    assert match_splits(tables, undecided, "key") == (both | train, ["valid"])
    assert match_splits(tables, undecided | {"test": "test_1"}, "key") == (both | train, ["valid"])
    years = {"train2017": 8, "val2014": 2, "val2017": 2, "test2017": 2}
    matched, missing = match_splits(years, undecided, "key")
    assert matched["val2014"] == matched["val2017"] == "valid" and missing == []
    # Another name of the same meaning is neither joined nor trained on.
    capfd.readouterr()
    counts = {"train": 8, "test": 2, "eval": 3}
    matched, _ = match_splits(counts, undecided | {"test": "eval"}, "key")
    assert matched == {"train": "train", "eval": "test"}
    assert "2 images of the source's split test are not used" in capfd.readouterr().err
    parts = {"train": 8, "test_1": 2, "test_2": 3}
    for train in (None, "train"):
        matched, _ = match_splits(parts, undecided | {"train": train, "test": "test_1"}, "key")
        assert matched == {"train": "train"} | both
    matched, _ = match_splits(parts, undecided | {"valid": "test_1"}, "key")
    assert matched == {"train": "train", "test_1": "valid"}
    assert "3 images of the source's split test_2 are not used" in capfd.readouterr().err
    parts = {"train_1": 8, "train_2": 2, "train_3": 8}
    matched, _ = match_splits(parts, undecided | {"train": "train_1", "valid": "train_2"}, "key")
    assert matched == {"train_1": "train", "train_2": "valid", "train_3": "train"}
    matched, _ = match_splits(parts, undecided | {"valid": "train_2"}, "key")
    assert matched == {"train_1": "train", "train_2": "valid", "train_3": "train"}
    parts = {"test_1": 8, "test_2": 3}
    with pytest.raises(SystemExit, match="key.train: nothing is left for it: name its split; "):
        match_splits(parts, undecided | {"test": "test_2"}, "key")
    named = undecided | {"train": "test_1", "test": "test_2"}
    assert match_splits(parts, named, "key")[0] == {"test_1": "train", "test_2": "test"}


def test_split_folders_without_classes(tmp_path, monkeypatch):
    for i, split in enumerate(OWN_SPLITS):
        write_images(tmp_path / "numbers", split, 4, 10 * i)
        write_images(tmp_path / "names", split, 4, 20 * i, "airport_{}.png")
        write_images(tmp_path / "names", split, 4, 20 * i + 10, "lake_{}.png")
    write_images(tmp_path / "names", "test", 2, 90)
    line = error_of(
        tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/numbers", splits=OWN_SPLITS
    )
    assert "fetch_imagery.source" in line
    assert re.search(r"\b12 no class folder .*\(test/20\.png ", line)
    result = run(
        tmp_path / "run",
        {"Water Body": ["lake"]},
        source=f"path:{tmp_path}/names",
        splits=OWN_SPLITS,
    )
    assert result.returncode == 0, result.stderr
    assert skip_counts(tmp_path / "run") == {"no class folder and no captions": 2}
    rows = rows_of(tmp_path / "run")
    assert [len(rows[split]) for split in OWN_SPLITS] == [8, 8, 8]
    for name, split in splits_by_name(tmp_path / "run").items():
        assert name.startswith(split + "/")
    assert {row["captions"][0] for row in rows["test"]} == {
        "a satellite image of airport",
        "a satellite image of lake",
    }


def test_a_split_beside_images_in_no_split_needs_params():
    counts: dict = {None: 8, "test": 2}
    undecided = dict.fromkeys(OWN_SPLITS)
    with pytest.raises(SystemExit, match="^error: key: .*test.*no split"):
        match_splits(counts, undecided, "key")
    matched = match_splits(counts, undecided | {"test": "test"}, "key")
    assert matched == ({"test": "test", None: "train"}, ["valid"])
    matched = match_splits({"train": 8}, undecided, "key")
    assert matched == ({"train": "train"}, ["valid", "test"])


@pytest.mark.parametrize(
    "where",
    [
        "train/part-0.parquet",
        "all/train/00000.parquet",
        "train-00000-of-00001.parquet",
        "data/EuroSAT-train-00000-of-00001.parquet",
        "eurosat_train.parquet",
        "eurosat-train/0000.parquet",
        "train_set_a/data.parquet",
        "subset=train/part-0.parquet",
        "train/a_dev_1.parquet",
    ],
)
def test_split_of_a_table(tmp_path, where):
    write_parquet(tmp_path / where, good_rows(1))
    write_parquet(tmp_path / where.replace("train", "test"), good_rows(1))
    assert {item.split for item in open_source(tmp_path, "key").read_items(False)} == {
        "train",
        "test",
    }


def test_a_word_in_the_folder_of_one_table_is_no_split(tmp_path):
    for where in ("site_a", "test_site"):
        write_parquet(tmp_path / where / "data.parquet", good_rows(1))
    assert len({item.split for item in open_source(tmp_path, "key").read_items(False)}) == 1


def test_metadata_in_the_root_leaves_images_in_the_splits_of_their_folders(tmp_path):
    rows = [
        {"file_name": f"{split}/lake_{i}.png", "text": "a lake"}
        for split in OWN_SPLITS
        for i in range(2)
    ]
    for row in rows:
        folder, _, name = row["file_name"].rpartition("/")
        write_images(tmp_path, folder, 1, 0, name)
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [item.split for item in open_source(tmp_path, "key").read_items(False)] == [
        split for split in OWN_SPLITS for _ in range(2)
    ]


# One bad item


@pytest.mark.parametrize("exception, content", broken_images().items())
def test_an_image_on_which_pillow_raises_any_exception_is_refused(exception, content):
    with pytest.raises(BaseException) as raised:
        Image.open(io.BytesIO(content)).load()
    assert raised.type.__name__ == exception
    with pytest.raises(UnusableImage):
        decode_rgb(content)


def test_an_image_for_which_memory_runs_out_is_refused(monkeypatch):
    def raise_memory_error(*_):
        raise MemoryError

    content = encoded(picture(1))
    monkeypatch.setattr(Image.Image, "load", raise_memory_error)
    monkeypatch.setattr(ImageFile.ImageFile, "load", raise_memory_error)
    with pytest.raises(UnusableImage, match="memory"):
        decode_rgb(content)


def test_links_other_formats_and_files_that_are_no_images(tmp_path):
    root = tmp_path / "in"
    write_images(root, "forest", 12, 0)
    write_images(root, "lake", 12, 20)
    write_images(tmp_path, "elsewhere", 12, 40)
    (root / "desert").symlink_to(tmp_path / "elsewhere")
    (root / "forest/round").symlink_to(root)
    (root / "lake/gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "lake/file.png").symlink_to(root / "forest/0.png")
    (root / "lake/folder.png").mkdir()
    for name in ("a.heic", "b.HEIC", "c.npy", "notes.txt", "LICENSE"):
        (root / "lake" / name).write_bytes(b"x")
    for i, content in enumerate(broken_images().values()):
        (root / f"forest/bad_{i}.png").write_bytes(content)
    result = run(tmp_path / "run", {"Water Body": ["lake"]}, source=f"path:{root}")
    assert result.returncode == 0, result.stderr
    report = read_json(tmp_path / "run/data/imagery/REPORT.json")
    rows = rows_of(tmp_path / "run")
    assert skip_counts(tmp_path / "run") == {
        "link to nothing": 1,
        "not read: .heic": 2,
        "not read: .npy": 1,
        "not read: .txt": 1,
        "not read: no suffix": 1,
        "image is unreadable or truncated": 3,
    }
    assert report["skipped"]["not read: .heic"]["names"] == ["lake/a.heic", "lake/b.HEIC"]
    assert re.search(r"\b1 link .*\(lake/gone\.png ", result.stderr)
    scenes = [row["scene"] for split_rows in rows.values() for row in split_rows]
    assert {scene: scenes.count(scene) for scene in scenes} == {
        "forest": 12,
        "lake": 13,
        "desert": 12,
    }


def test_metadata_csv_is_read_like_metadata_jsonl(tmp_path):
    root = tmp_path / "in"
    write_images(root, "", 20, 0, "lake_{}.png")
    write_images(root, "", 21, 30, "river_{}.png")
    lines = [
        "file_name,text,scene,split",
        *(f'lake_{i}.png,"a lake, number {i}",water,' for i in range(20)),
        *(f"river_{i}.png,a river,," for i in range(30, 50)),
        "lake_3.png,again,,",
        ",no name,,",
        "gone.png,gone,,",
        f"{'x' * 300}.png,too long a name,,",
        "../x.png,out,,",
        "short.png",
        "lake_1.png,more,columns,than,there,are",
    ]
    latin = "lake_4.png,for\xeat,,\r\n".encode("latin-1")
    (root / "metadata.csv").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode() + latin)
    (root / "readme.md").write_text("x")
    result = run(tmp_path / "run", {"Water Body": ["water"]}, source=f"path:{root}")
    assert result.returncode == 0, result.stderr
    assert skip_counts(tmp_path / "run") == {
        "metadata line with more cells than fields (quote text with commas)": 1,
        "metadata line without a file_name": 1,
        "listed file is missing": 3,
        "file_name outside the folder": 1,
        "not in metadata.csv": 1,
        "not read: .md": 1,
        "metadata line that is not UTF-8": 1,
    }
    report = read_json(tmp_path / "run/data/imagery/REPORT.json")
    unnamed = report["skipped"]["metadata line without a file_name"]
    assert unnamed["names"] == ["metadata.csv:43, fields: file_name, text, scene, split"]
    all_rows = [row for split_rows in rows_of(tmp_path / "run").values() for row in split_rows]
    rows = {row["filename"]: row for row in all_rows}
    assert rows["lake_3.png"]["captions"] == ["a lake, number 3", "again"]
    assert rows["lake_3.png"]["scene"] == "water"
    assert rows["river_30.png"]["scene"] == "" and len(rows) == 40  # the field has no class for it
    assert list(read_json(tmp_path / "run/data/imagery/SOURCE.json")["files"]) == ["metadata.csv"]


def test_a_quote_that_never_closes_does_not_swallow_the_rows_after_it(tmp_path):
    write_images(tmp_path, "", 4, 0, "lake_{}.png")
    lines = [
        "file_name,text",
        "lake_0.png,a lake",
        'lake_1.png,"a lake',
        *("x" * 1000 for _ in range(200)),
        "lake_2.png,a lake",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="metadata.csv: the quotes after line 2"):
        open_source(tmp_path, "key")
    lines[-1] += '"'
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    items = list(open_source(tmp_path, "key").read_items(False))
    assert [(item.name, item.skip_reason) for item in items] == [
        ("lake_0.png", None),
        ("lake_1.png", None),
        ("lake_2.png", "not in metadata.csv"),
        ("lake_3.png", "not in metadata.csv"),
    ]


def test_an_image_beside_tables_and_one_without_a_scene_are_counted(tmp_path):
    unnamed = [("rsicd_images/0001.jpg", ["a place"], encoded(picture(77)))]
    rows = good_rows(20) + good_rows(20, "river", 30) + unnamed
    write_parquet(tmp_path / "in/train.parquet", rows)
    write_images(tmp_path / "in", "forest", 2, 60)
    (tmp_path / "in/README.md").write_text("x")
    result = run(tmp_path / "run", source=f"path:{tmp_path}/in")
    assert result.returncode == 0 and "1 of 41 images have captions and no class" in result.stderr
    assert skip_counts(tmp_path / "run") == {"image beside Parquet tables": 2}
    assert read_json(tmp_path / "run/data/imagery/REPORT.json")["without_scene"] == 1


# Whole tables


@pytest.mark.parametrize(
    "column, shown",
    [
        (["lake_1.png"] * 3, " string"),
        ([[1, 2]] * 3, " list"),
        ([1, 2, 3], " int64"),
        (pa.array([{"bytes": "abc", "path": "a.png"}] * 3), " struct<bytes: string"),
        (pa.array([{"path": "a.png"}] * 3), " struct<path"),
        (pa.array([{"bytes": None, "path": "/in/a.png"}] * 3, IMAGE), "write metadata.csv"),
    ],
)
def test_a_column_that_holds_no_images_is_one_line(tmp_path, monkeypatch, column, shown):
    pq.write_table(pa.table({"image": column, "text": ["a lake"] * 3}), tmp_path / "odd.parquet")
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/odd.parquet")
    assert line.startswith("error: fetch_imagery.source: odd.parquet: ")
    assert "`image`" in line and shown in line


@pytest.mark.parametrize("image_type", [pa.binary(), pa.large_binary(), pa.binary_view(), IMAGE])
def test_bytes_of_any_arrow_type_are_images(tmp_path, image_type):
    cells = [{"bytes": b"x", "path": "a.png"} if image_type == IMAGE else b"x"] * 3
    columns = {"image": pa.array(cells, image_type), "text": ["a lake"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert [item.image for item in open_source(tmp_path, "key").read_items(True)] == [b"x"] * 3


LABEL_FEATURE = {"label": {"_type": "ClassLabel", "names": ["forest", "lake"]}}


@pytest.mark.parametrize(
    "schema, scenes",
    [
        (json.dumps({"info": {"features": LABEL_FEATURE}}), ["forest", "lake", "2"]),
        ('{"info": null}', ["0", "1", "2"]),
        ('{"info": {"features": {"label": {"names": null}}}}', ["0", "1", "2"]),
        ("[1]", ["0", "1", "2"]),
        ("{oops", ["0", "1", "2"]),
    ],
)
def test_class_names_of_odd_schemas(tmp_path, schema, scenes):
    table = pa.table({"image": [b"x"] * 3, "text": ["a"] * 3, "label": [0, 1, 2]})
    table = table.replace_schema_metadata({"huggingface": schema})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [item.scene for item in open_source(tmp_path, "key").read_items(False)] == scenes


@pytest.mark.parametrize("damaged", ["captions", "image.bytes"])
def test_a_damaged_page_ends_the_stage_and_names_the_file(tmp_path, damaged):
    path = tmp_path / "in/train-00000.parquet"
    write_parquet(path, good_rows(20) + good_rows(20, "river", 30))
    row_group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    offset = next(
        column.data_page_offset for column in columns if column.path_in_schema.startswith(damaged)
    )
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert_one_line_error(
        run(tmp_path / "run", source=f"path:{tmp_path}/in"),
        "fetch_imagery.source: train-00000.parquet ",
    )
    assert not (tmp_path / "run/data/imagery").exists()


def test_a_table_whose_name_is_not_utf8_is_one_line(tmp_path):
    write_parquet(tmp_path / "a.parquet", good_rows(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "in" / "caf\udce9.parquet")
    assert_one_line_error(
        run(tmp_path / "run", source=f"path:{tmp_path}/in"),
        "1 file name(s) not in UTF-8, the first caf\\xe9.parquet",
    )


# What the pipeline cannot work with


def test_one_class_without_captions_is_one_line(tmp_path, monkeypatch):
    write_images(tmp_path / "one", "lake", 4, 0)
    (tmp_path / "one/lake/a.heic").write_bytes(b"x")
    one = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/one")
    assert "fetch_imagery.source: " in one
    assert re.search(r"\b1 .*\b4 .*\blake;", one)
    assert re.search(r"\b1 [^;]*\.heic \(lake/a\.heic ", one)
    assert not (tmp_path / "run/data").exists()


def test_a_killed_decoder_is_one_line(monkeypatch):
    def raise_broken_pool(*_):
        raise BrokenProcessPool("a child process terminated abruptly")

    monkeypatch.setattr(tile_reading, "ordered_map", raise_broken_pool)
    with pytest.raises(SystemExit, match="error: fetch_imagery: .*memory"):
        list(tile_reading._make_tiles(iter([]), 32))
