"""fetch_imagery on what people really have: splits without classes, links, other formats, odd tables, broken files of any kind."""

import io
import json
import struct
import tracemalloc
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile
from test_imagery import (
    encoded,
    fault_of,
    good,
    one_line_failure,
    picture,
    rows_of,
    run,
    split_of,
    table,
)

from stages.common.artifacts import IMAGE, read_json
from stages.imagery import tiles
from stages.imagery.decoding import deep, tile
from stages.imagery.readers import open_origin
from stages.imagery.splits import own_splits

OWN = {"train": "train", "valid": "valid", "test": "test"}


def images(root: Path, folder: str, count: int, start: int, name: str = "{}.png") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (root / folder / name.format(i)).write_bytes(encoded(picture(i)))


def skipped(folder: Path) -> dict[str, int]:
    report = read_json(folder / "data/imagery/REPORT.json")
    return {reason: entry["count"] for reason, entry in report["skipped"].items()}


def broken() -> dict[str, bytes]:
    """Files that Pillow knows by their content, with what it raises on them."""
    avif, spider = (
        encoded(picture(1), "AVIF"),
        bytearray(encoded(picture(1).convert("F"), "SPIDER")),
    )
    struct.pack_into("<f", spider, 4 * 26, 1.0)  # says it is an image of a stack
    dds = b"DDS " + struct.pack(
        "<7I44x2I44x", 124, 0x1007, 40, 40, 160, 0, 0, 32, 0
    )  # no pixel format
    return {
        "RuntimeError": avif.replace(b"iloc", b"xxxx"),
        "AttributeError": bytes(spider),
        "NotImplementedError": dds,
    }


# Splits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, split, scene, fault",
    [
        ("forest/1.png", None, "forest", None),
        ("train/forest/1.png", "train", "forest", None),
        ("Forest/Val/1.png", "Val", "Forest", None),
        ("EuroSAT/train/forest/1.png", "train", "forest", None),
        ("train/test/1.png", "train", "test", None),
        ("test/airport_1.png", "test", "airport", None),
        ("test/1.png", "test", "", "no class folder and no captions"),
        ("airport_1.png", None, "", "no class folder and no captions"),
    ],
)
def test_a_folder_named_as_a_split_is_no_class(tmp_path, path, split, scene, fault):
    images(tmp_path, path.rpartition("/")[0], 1, 0, path.rpartition("/")[2])
    (item,) = open_origin(tmp_path, "key").items(False)
    assert (item.split, item.scene, item.name, item.fault) == (split, scene, path, fault)


def test_split_folders_without_classes(tmp_path, monkeypatch):
    for i, split in enumerate(OWN):
        images(tmp_path / "numbers", split, 4, 10 * i)
        images(tmp_path / "names", split, 4, 20 * i, "airport_{}.png")
        images(tmp_path / "names", split, 4, 20 * i + 10, "lake_{}.png")
    images(tmp_path / "names", "test", 2, 90)
    line = fault_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/numbers", splits=OWN)
    assert (
        "no usable captioned image: 12 no class folder and no captions (test/20.png ...)" in line
        and "docs/data.md" in line
    )
    result = run(
        tmp_path / "run", {"Water Body": ["lake"]}, source=f"path:{tmp_path}/names", splits=OWN
    )
    assert result.returncode == 0, result.stderr
    assert skipped(tmp_path / "run") == {"no class folder and no captions": 2}
    assert {split: len(rows) for split, rows in rows_of(tmp_path / "run").items()} == {
        "train": 8,
        "valid": 8,
        "test": 8,
    }
    assert all(name.startswith(split + "/") for name, split in split_of(tmp_path / "run").items())
    assert {row["captions"][0] for row in rows_of(tmp_path / "run")["test"]} == {
        "a satellite image of airport",
        "a satellite image of lake",
    }


def test_a_split_beside_images_in_none_is_asked_about():
    with pytest.raises(
        SystemExit, match="the source has test and images in no split as its own splits"
    ):
        own_splits({None: 8, "test": 2}, dict.fromkeys(OWN), "key")
    assert own_splits(
        {None: 8, "test": 2}, {"train": None, "valid": None, "test": "test"}, "key"
    ) == ({"test": "test", None: "train"}, ["valid"])
    assert own_splits({"train": 8}, dict.fromkeys(OWN), "key") == (
        {"train": "train"},
        ["valid", "test"],
    )


@pytest.mark.parametrize(
    "where", ["train/part-0.parquet", "all/train/00000.parquet", "train-00000-of-00001.parquet"]
)
def test_split_of_a_table(tmp_path, where):
    table(tmp_path / where, good(1))
    table(tmp_path / where.replace("train", "test"), good(1))
    assert {item.split for item in open_origin(tmp_path, "key").items(False)} == {"train", "test"}


def test_metadata_in_the_root_leaves_images_in_the_splits_of_their_folders(tmp_path):
    rows = [
        {"file_name": f"{split}/lake_{i}.png", "text": "a lake"} for split in OWN for i in range(2)
    ]
    for row in rows:
        images(
            tmp_path, row["file_name"].rpartition("/")[0], 1, 0, row["file_name"].rpartition("/")[2]
        )
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [item.split for item in open_origin(tmp_path, "key").items(False)] == [
        split for split in OWN for _ in range(2)
    ]


# One bad item ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault, content", broken().items())
def test_any_fault_of_a_pillow_plugin_is_a_reason(fault, content):
    with pytest.raises(BaseException) as raised:
        Image.open(io.BytesIO(content)).load()
    assert raised.type.__name__ == fault
    assert tile(content, 32) == "image is unreadable or truncated"


def test_memory_that_runs_out_in_one_image_is_a_reason(monkeypatch):
    def too_large(*_):
        raise MemoryError

    content = encoded(picture(1))
    monkeypatch.setattr(Image.Image, "load", too_large)
    monkeypatch.setattr(ImageFile.ImageFile, "load", too_large)
    assert tile(content, 32) == "image needs more memory than there is"


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<f4"])
def test_a_large_deep_image_takes_little_memory_and_the_same_values(kind):
    values = (np.arange(3000 * 2500) % 5000).astype(kind).reshape(3000, 2500)
    exact = np.rint(values.astype(np.float64) / 8191 * 255).astype(np.uint8)
    tracemalloc.start()
    made = deep(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(np.asarray(made), exact)
    assert peak < 50e6 + 3 * values.size  # bytes; the whole image as float64 alone is 60e6


def test_links_other_formats_and_what_is_no_image(tmp_path):
    root = tmp_path / "in"
    images(root, "forest", 12, 0)
    images(root, "lake", 12, 20)
    images(tmp_path, "elsewhere", 12, 40)
    (root / "desert").symlink_to(tmp_path / "elsewhere")
    (root / "forest/round").symlink_to(root)
    (root / "lake/gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "lake/file.png").symlink_to(root / "forest/0.png")
    (root / "lake/folder.png").mkdir()
    for name in ("a.heic", "b.HEIC", "c.npy", "notes.txt", "LICENSE"):
        (root / "lake" / name).write_bytes(b"x")
    for i, content in enumerate(broken().values()):
        (root / f"forest/bad_{i}.png").write_bytes(content)
    result = run(tmp_path / "run", {"Water Body": ["lake"]}, source=f"path:{root}")
    assert result.returncode == 0, result.stderr
    report, rows = read_json(tmp_path / "run/data/imagery/REPORT.json"), rows_of(tmp_path / "run")
    assert skipped(tmp_path / "run") == {
        "link to nothing": 1,
        "not read: .heic": 2,
        "not read: .npy": 1,
        "not read: .txt": 1,
        "not read: no suffix": 1,
        "image is unreadable or truncated": 3,
    }
    assert report["skipped"]["not read: .heic"]["names"] == ["lake/a.heic", "lake/b.HEIC"]
    assert "1 link to nothing (lake/gone.png ...)" in result.stderr
    scenes = [row["scene"] for r in rows.values() for row in r]
    assert {scene: scenes.count(scene) for scene in scenes} == {
        "forest": 12,
        "lake": 13,
        "desert": 12,
    }


def test_metadata_csv_is_read_like_metadata_jsonl(tmp_path):
    root = tmp_path / "in"
    images(root, "", 20, 0, "lake_{}.png")
    images(root, "", 21, 30, "river_{}.png")
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
    assert skipped(tmp_path / "run") == {
        "duplicate file name": 2,
        "metadata line without a file_name": 1,
        "listed file is missing": 3,
        "file_name outside the folder": 1,
        "not in metadata.csv": 1,
        "not read: .md": 1,
        "metadata line that is not UTF-8": 1,
    }
    assert read_json(tmp_path / "run/data/imagery/REPORT.json")["skipped"][
        "metadata line without a file_name"
    ]["names"] == ["metadata.csv:43"]
    rows = {row["filename"]: row for r in rows_of(tmp_path / "run").values() for row in r}
    assert (
        rows["lake_3.png"]["captions"] == ["a lake, number 3"]
        and rows["lake_3.png"]["scene"] == "water"
    )
    assert rows["river_30.png"]["scene"] == "river" and len(rows) == 40
    assert list(read_json(tmp_path / "run/data/imagery/SOURCE.json")["files"]) == ["metadata.csv"]


def test_a_quote_that_never_closes_loses_no_image_unseen(tmp_path):
    images(tmp_path, "", 4, 0, "lake_{}.png")
    lines = [
        "file_name,text",
        "lake_0.png,a lake",
        'lake_1.png,"a lake',
        *("x" * 1000 for _ in range(200)),
        "lake_2.png,a lake",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    items = list(open_origin(tmp_path, "key").items(False))
    assert [(item.name, item.fault) for item in items] == [
        ("lake_0.png", None),
        ("lake_1.png", None),
        ("lake_2.png", "not in metadata.csv"),
        ("lake_3.png", "not in metadata.csv"),
    ]


def test_an_image_beside_tables_and_one_without_a_scene_are_counted(tmp_path):
    unnamed = [("rsicd_images/0001.jpg", ["a place"], encoded(picture(77)))]
    table(tmp_path / "in/train.parquet", good(20) + good(20, "river", 30) + unnamed)
    images(tmp_path / "in", "forest", 2, 60)
    (tmp_path / "in/README.md").write_text("x")
    assert run(tmp_path / "run", source=f"path:{tmp_path}/in").returncode == 0
    assert skipped(tmp_path / "run") == {"image beside Parquet tables": 2}
    assert read_json(tmp_path / "run/data/imagery/REPORT.json")["without_scene"] == 1


# Whole tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column, shown",
    [
        (["lake_1.png"] * 3, "holds string"),
        ([[1, 2]] * 3, "holds list"),
        ([1, 2, 3], "holds int64"),
        (pa.array([{"bytes": "abc", "path": "a.png"}] * 3), "holds struct<bytes: string"),
        (pa.array([{"path": "a.png"}] * 3), "holds struct<path"),
    ],
)
def test_a_column_of_no_images_is_one_line(tmp_path, monkeypatch, column, shown):
    pq.write_table(pa.table({"image": column, "text": ["a lake"] * 3}), tmp_path / "odd.parquet")
    line = fault_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/odd.parquet")
    assert "fetch_imagery.source: odd.parquet: column `image`" in line and shown in line


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), IMAGE])
def test_bytes_of_any_arrow_type_are_images(tmp_path, kind):
    cells = [{"bytes": b"x", "path": "a.png"} if kind == IMAGE else b"x"] * 3
    pq.write_table(
        pa.table({"image": pa.array(cells, kind), "text": ["a lake"] * 3}), tmp_path / "a.parquet"
    )
    assert [item.image for item in open_origin(tmp_path, "key").items(True)] == [b"x"] * 3


@pytest.mark.parametrize(
    "schema, scenes",
    [
        (
            json.dumps(
                {
                    "info": {
                        "features": {"label": {"_type": "ClassLabel", "names": ["forest", "lake"]}}
                    }
                }
            ),
            ["forest", "lake", "2"],
        ),
        ('{"info": null}', ["0", "1", "2"]),
        ('{"info": {"features": {"label": {"names": null}}}}', ["0", "1", "2"]),
        ("[1]", ["0", "1", "2"]),
        ("{oops", ["0", "1", "2"]),
    ],
)
def test_label_names_of_odd_schemas(tmp_path, schema, scenes):
    rows = pa.table(
        {"image": [b"x"] * 3, "text": ["a"] * 3, "label": [0, 1, 2]}
    ).replace_schema_metadata({"huggingface": schema})
    pq.write_table(rows, tmp_path / "a.parquet")
    assert [item.scene for item in open_origin(tmp_path, "key").items(False)] == scenes


@pytest.mark.parametrize("damaged", ["captions", "image.bytes"])
def test_a_damaged_page_ends_the_stage_and_names_the_file(tmp_path, damaged):
    path = tmp_path / "in/train-00000.parquet"
    table(path, good(20) + good(20, "river", 30))
    group, content = pq.ParquetFile(path).metadata.row_group(0), bytearray(path.read_bytes())
    page = next(
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.startswith(damaged)
    )
    content[page.data_page_offset : page.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    one_line_failure(
        run(tmp_path / "run", source=f"path:{tmp_path}/in"),
        "fetch_imagery.source: train-00000.parquet is damaged: ",
    )
    assert not (tmp_path / "run/data/imagery").exists()


def test_a_table_whose_name_is_no_utf8_is_one_line(tmp_path):
    table(tmp_path / "a.parquet", good(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "in" / "caf\udce9.parquet")
    one_line_failure(
        run(tmp_path / "run", source=f"path:{tmp_path}/in"),
        "fetch_imagery.source: caf\\udce9.parquet cannot be read: ",
    )


# What the pipeline cannot work with --------------------------------------------------------------------------------------


def test_fewer_than_two_scenes_are_one_line(tmp_path, monkeypatch):
    images(tmp_path / "one", "lake", 4, 0)
    (tmp_path / "one/lake/a.heic").write_bytes(b"x")
    images(tmp_path / "none", "", 4, 0)
    (tmp_path / "none/metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{i}.png", "text": "x"}) + "\n" for i in range(4))
    )
    one = fault_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/one")
    assert (
        "fetch_imagery.source: " in one
        and "1 scene(s) in 4 usable image(s): lake; the pipeline classifies scenes" in one
    )
    assert "1 not read: .heic (lake/a.heic ...)" in one
    none = fault_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/none")
    assert (
        "0 scene(s) in 4 usable image(s); the pipeline classifies scenes: give class folders, a `scene` column"
        in none
    )
    assert not (tmp_path / "run/data").exists()


def test_a_killed_decoder_is_one_line(monkeypatch):
    def killed(*_):
        raise BrokenProcessPool("a child process terminated abruptly")
        yield

    monkeypatch.setattr(tiles, "ordered_map", killed)
    with pytest.raises(
        SystemExit, match="error: fetch_imagery: a process that decodes images was killed"
    ):
        list(tiles.decoded(iter([]), 32))
