"""fetch_imagery on the layouts of the field's data sets, each drawn by the test."""

import csv
import gzip
import json
import os
import tarfile
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_imagery import encoded, error_of, picture, rows_of, write_params

from stages import fetch_imagery
from stages.common.artifacts import read_json
from stages.imagery.captions import caption_fields, usable_captions
from stages.imagery.readers.items import label_value, misnamed_split, split_value
from stages.imagery.readers.open_source import open_source
from stages.imagery.skip_report import SkipReport
from stages.imagery.splits import match_splits
from stages.imagery.survey import choose_items, kept_items, survey_items

KEY = "fetch_imagery.source"


def draw(root: Path, *names: str, start: int = 0) -> None:
    """Write an image of each name, all unlike each other."""
    for i, name in enumerate(names, start):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = Path(name).suffix.lower()
        image_format = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, "PNG")
        (root / name).write_bytes(encoded(picture(i), image_format))


def write_json_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {
    "metadata.jsonl": write_json_lines,
    "metadata.csv": write_csv,
    "metadata.parquet": write_table,
    "METADATA.CSV": write_csv,
}


def write_source(root: Path, name: str, rows: list[dict]) -> None:
    """Write a table that holds the images of rows, or a list of them beside the images."""
    if name.startswith("train"):
        write_table(root / name, [row | {"image": cell(i, None)} for i, row in enumerate(rows)])
        return
    draw(root, *(row["file_name"] for row in rows))
    if name == "captions.json":
        (root / name).write_text(json.dumps(rows))
    else:
        WRITERS[name](root / name, rows)


def read(path: Path, caption: str | None = None) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """What the stage keeps of a source, without its tiles: name -> item, and the skipped names."""
    source = open_source(path, KEY, caption)
    skipped = SkipReport()
    survey = survey_items(source, skipped)
    kept = kept_items(source, choose_items(survey, survey.usable, None))
    items = {item.name: item._asdict() for item in kept}
    for item in items.values():
        item["captions"] = usable_captions(item["captions"])[0]
    return items, {reason: entry["names"] for reason, entry in skipped.reasons.items()}


def captions_of(path: Path, caption: str | None = None) -> dict[str, list[str]]:
    return {name: item["captions"] for name, item in read(path, caption)[0].items()}


def refusal(path: Path) -> str:
    """The one line with which a source is refused when it is opened."""
    with pytest.raises(SystemExit) as end:
        open_source(path, KEY)
    line = str(end.value)
    assert line.startswith(f"error: {KEY}: ") and "\n" not in line
    return line


def fetch(folder: Path, monkeypatch, **settings) -> dict[str, list[dict]]:
    """The rows of the splits that the stage writes, run in this process."""
    write_params(folder, settings.pop("classes", None), **settings)
    monkeypatch.chdir(folder)
    fetch_imagery.main()
    return rows_of(folder)


# Karpathy's JSON


def sentences(*captions: str) -> list[dict]:
    return [{"raw": caption, "tokens": caption.split()} for caption in captions]


def test_rsicd_json_gives_five_captions_and_its_own_splits(tmp_path, monkeypatch, capfd):
    root = tmp_path / "in"
    names = [f"{scene}_{i}.jpg" for scene in ("airport", "beach") for i in range(6)]
    draw(root / "RSICD_images", *names, "stray_1.jpg")
    draw(root / "elsewhere", "twice_1.jpg", "other/twice_1.jpg", start=90)
    splits = ["train", "train", "val", "test", "train", "restval"]
    images = [
        {
            "filename": name,
            "split": splits[i % 6],
            "sentences": sentences(*(f"{name} caption {k}" for k in range(5))),
        }
        for i, name in enumerate(names)
    ]
    images += [
        {"filename": "gone_1.jpg", "split": "train", "sentences": sentences("gone")},
        {"filename": "twice_1.jpg", "split": "train", "sentences": sentences("which")},
        {"split": "train", "sentences": sentences("no name")},
    ]
    (root / "dataset_rsicd.json").write_text(json.dumps({"images": images, "dataset": "rsicd"}))
    classes = {"Water Body": ["beech"], "Built": ["airport"]}
    rows = fetch(tmp_path / "run", monkeypatch, source=f"path:{root}", classes=classes)
    assert {split: len(rows[split]) for split in rows} == {"train": 8, "valid": 2, "test": 2}
    for split, own in (("valid", "val"), ("test", "test")):
        expected = {image["filename"] for image in images[:12] if image["split"] == own}
        assert {Path(row["filename"]).name for row in rows[split]} == expected
    for row in rows["train"]:
        name = Path(row["filename"]).name
        assert row["captions"] == [f"{name} caption {k}" for k in range(5)]
        assert row["scene"] == name.partition("_")[0]
    report = read_json(tmp_path / "run/data/imagery/REPORT.json")
    assert {reason: entry["names"] for reason, entry in report["skipped"].items()} == {
        "listed file is missing": ["gone_1.jpg"],
        "listed file is one of several of that name": ["twice_1.jpg"],
        "entry without a file name": ["dataset_rsicd.json:15"],
        "not in dataset_rsicd.json": [
            "RSICD_images/stray_1.jpg",
            "elsewhere/other/twice_1.jpg",
            "elsewhere/twice_1.jpg",
        ],
    }
    assert list(read_json(tmp_path / "run/data/imagery/SOURCE.json")["files"]) == [
        "dataset_rsicd.json"
    ]
    # The mapping in `classes` is wrong, and the stage that knows the scenes says so.
    assert "classes: no image shows beech (did you mean beach?)" in capfd.readouterr().err


def test_json_of_ucm_nwpu_and_a_list_are_read(tmp_path):
    draw(tmp_path / "ucm/imgs", "1.tif", "2.tif")
    ucm = [
        {"filename": f"{i}.tif", "split": "train", "sentences": sentences(f"an airplane {i}")}
        for i in (1, 2)
    ]
    (tmp_path / "ucm/dataset.json").write_text(json.dumps({"images": ucm}), encoding="utf-16")
    assert captions_of(tmp_path / "ucm") == {
        "imgs/1.tif": ["an airplane 1"],
        "imgs/2.tif": ["an airplane 2"],
    }
    assert captions_of(tmp_path / "ucm/dataset.json") == captions_of(tmp_path / "ucm")

    # Two classes have an image of the same name.
    draw(tmp_path / "nwpu/images", "lake/1.jpg", "river/1.jpg")
    nwpu = {
        scene: [{"filename": "1.jpg", "split": "test", "raw": f"a {scene}", "raw_1": "water"}]
        for scene in ("lake", "river")
    }
    (tmp_path / "nwpu/dataset_nwpu.json").write_text(json.dumps(nwpu))
    items, _ = read(tmp_path / "nwpu")
    assert {item["scene"]: item["captions"] for item in items.values()} == {
        "lake": ["a lake", "water"],
        "river": ["a river", "water"],
    }
    assert all(name.split("/")[1] == item["scene"] for name, item in items.items())

    draw(tmp_path / "list", "a.png")
    entries = [{"file_name": "a.png", "captions": ["one", "two"]}]
    (tmp_path / "list/anything.json").write_text(json.dumps(entries))
    assert captions_of(tmp_path / "list") == {"a.png": ["one", "two"]}


def test_captions_without_scenes_are_fetched_and_what_is_left_out_is_said(
    tmp_path, monkeypatch, capfd
):
    draw(tmp_path / "in/imgs", *(f"{i}.tif" for i in range(12)))
    images = [{"filename": f"{i}.tif", "sentences": sentences("a plane")} for i in range(12)]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"images": images}))
    rows = fetch(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in", valid=2, test=2)
    assert [len(rows[split]) for split in rows] == [8, 2, 2]
    assert {row["scene"] for row in rows["train"]} == {""}
    log = capfd.readouterr().err
    assert "0 scene(s)" in log and "train_scene" in log and "classes: " not in log


def test_json_of_each_split_and_other_forms_of_its_captions(tmp_path):
    draw(tmp_path / "splits/imgs", "a_1.png", "b_1.png", "c_1.png")
    for name, image in (("train", "a_1"), ("captions_val2017", "b_1"), ("test", "c_1")):
        entries = [{"filename": f"{image}.png", "sentence": "a lake"}]
        (tmp_path / f"splits/{name}.json").write_text(json.dumps(entries))
    items, _ = read(tmp_path / "splits")
    assert {item["split"]: name for name, item in items.items()} == {
        "train": "imgs/a_1.png",
        "val2017": "imgs/b_1.png",
        "test": "imgs/c_1.png",
    }
    # The folder of the images is the split; the file lies deep.
    draw(tmp_path / "deep", "train/a_1.png", "val/b_1.png")
    deep = {"a_1.png": ["a lake", "blue water"], "b_1.png": ["a sea"]}
    (tmp_path / "deep/x/y/z").mkdir(parents=True)
    (tmp_path / "deep/x/y/z/captions.json").write_text(json.dumps(deep))
    items, _ = read(tmp_path / "deep")
    assert [(item["split"], item["captions"]) for item in items.values()] == [
        ("train", ["a lake", "blue water"]),
        ("val", ["a sea"]),
    ]
    # NWPU's classes are written otherwise than the folders.
    draw(tmp_path / "nwpu", "images/Lake/1.png", "images/Sea/1.png")
    nwpu = {name: [{"filename": "1.png", "raw": f"a {name}"}] for name in ("lake", "sea")}
    (tmp_path / "nwpu/dataset_nwpu.json").write_text(json.dumps(nwpu))
    assert captions_of(tmp_path / "nwpu") == {
        "images/Lake/1.png": ["a lake"],
        "images/Sea/1.png": ["a sea"],
    }


# Lists


@pytest.mark.parametrize("list_name", WRITERS)
def test_a_list_names_images_as_any_system_writes_them(tmp_path, list_name):
    decomposed = unicodedata.normalize("NFD", "forêt_1.png")
    draw(tmp_path, "images/a.png", "images/B.PNG", f"images/{decomposed}", "images/c.png", "d.png")
    rows = [
        {"File_Name": "images\\a.png", "Text": "first"},
        {"File_Name": "images/b.png", "Text": "case"},
        {"File_Name": "images/forêt_1.png", "Text": decomposed},
        {"File_Name": "./images/a.png", "Text": "second"},
        {"File_Name": "..\\secret.png", "Text": "outside"},
        {"File_Name": "C:\\tiles\\a.png", "Text": "absolute"},
        {"File_Name": f"{tmp_path}-other/a.png", "Text": "absolute"},
        {"File_Name": f"{tmp_path}/../a.png", "Text": "outside"},
        {"File_Name": f"{tmp_path}/d.png", "Text": "absolute and inside"},
        {"File_Name": "gone.png", "Text": "gone"},
    ]
    WRITERS[list_name](tmp_path / list_name, rows)
    items, skipped = read(tmp_path)
    assert {name: item["captions"] for name, item in items.items()} == {
        "images/a.png": ["first", "second"],
        "images/B.PNG": ["case"],
        "images/forêt_1.png": ["forêt_1.png"],
        "d.png": ["absolute and inside"],
    }
    assert {reason: len(names) for reason, names in skipped.items()} == {
        "file_name outside the folder": 2,
        "absolute file_name that is not in the folder: write it relative to the list": 2,
        "listed file is missing": 1,
        f"not in {list_name}": 1,
    }


@pytest.mark.parametrize("listed", [False, True])
def test_names_that_differ_in_their_unicode_form_alone_are_of_two_files(tmp_path, listed):
    names = [unicodedata.normalize(form, "forêt_1.png") for form in ("NFD", "NFC")]
    draw(tmp_path, *names)
    rows = [{"file_name": name, "text": f"picture {form}"} for name, form in zip(names, "DC")]
    if listed:
        write_json_lines(tmp_path / "metadata.jsonl", rows)
    else:
        for row in rows:
            (tmp_path / row["file_name"]).with_suffix(".txt").write_text(row["text"])
    items, skipped = read(tmp_path)
    assert [item["captions"] for item in items.values()] == [["picture D"]]
    assert skipped == {"another file of the same name": ["forêt_1.png"]}


@pytest.mark.parametrize("name", ["lake/7.png", "lake/0.txt", "train-0.parquet", "captions.json"])
def test_files_that_git_lfs_has_not_fetched_are_one_line(tmp_path, name):
    draw(tmp_path, "lake/0.png", "sea/0.png")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(SystemExit, match="1 file.* Git LFS pointers, such as .*git lfs pull"):
            open_source(path, KEY)


@pytest.mark.parametrize("as_classes", [False, True])
def test_names_that_are_not_utf8_are_one_line(tmp_path, monkeypatch, as_classes):
    """As readers would take two such names, without their odd letters, for one."""
    for i, letter in enumerate(("\xe8", "\xe9")):
        odd = os.fsdecode(f"for{letter}t".encode("latin-1"))
        name = f"in/{odd}/1.png" if as_classes else f"in/{odd}_1.png"
        draw(tmp_path, name, start=i)
        (tmp_path / name).with_suffix(".txt").write_text(f"picture {i}")
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in")
    assert "4 file name(s) not in UTF-8, the first for\\xe8t" in line and "convmv" in line


def test_names_of_other_files_need_not_be_utf8(tmp_path):
    draw(tmp_path, "lake/1.png", "river/1.png")
    (tmp_path / os.fsdecode(b"lizenz_f\xfcr_daten.pdf")).write_bytes(b"%PDF")
    items = open_source(tmp_path, KEY).read_items(False)
    assert [item.scene for item in items if not item.skip_reason] == ["lake", "river"]


def test_rows_of_one_image_are_merged_and_contradictions_are_counted(tmp_path):
    draw(tmp_path, "forest/1.png", "river/1.png", "lake_1.png")
    rows = [
        {"file_name": "forest/1.png", "text": "nan"},
        {"file_name": "forest/1.png", "text": "trees"},
        {"file_name": "river/1.png", "text": "water"},
        {"file_name": "forest/1.png", "text": "a forest"},
        {"file_name": "forest/1.png", "text": "trees", "split": "test"},
        {"file_name": "river/1.png", "text": "a lake", "scene": "lake"},
        {"file_name": "lake_1.png", "text": "N/A"},
    ]
    write_json_lines(tmp_path / "metadata.jsonl", rows)
    items, skipped = read(tmp_path)
    assert {name: item["captions"] for name, item in items.items()} == {
        "forest/1.png": ["trees", "a forest"],
        "river/1.png": ["water"],
    }
    assert skipped == {
        "further row of an image, in another split": ["forest/1.png"],
        "further row of an image, of another scene": ["river/1.png"],
        "captions stand for a missing value (nan, N/A, ...)": ["lake_1.png"],
    }


def test_a_list_that_names_other_files_is_one_line_without_other_advice(tmp_path, monkeypatch):
    draw(tmp_path / "in", "000.png", "001.png")
    rows = [{"file_name": name, "label": "lake"} for name in ("000", "images/001.png")]
    write_csv(tmp_path / "in/metadata.csv", rows)
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in")
    assert "2 listed file is missing (000 ...)" in line
    assert "its columns" not in line and "fetch_imagery.caption" not in line
    # Where other lines name images, the columns are told.
    rows = [{"file_name": name, "label": "", "landcover": "sea"} for name in ("000.png", "a.png")]
    write_csv(tmp_path / "in/metadata.csv", rows)
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in")
    assert "1 listed file is missing (a.png ...)" in line
    assert "its columns: file_name, label, landcover; " in line
    assert "fetch_imagery.caption" not in line  # of a list, no image gets it


ROW = '{"file_name": "a_1.png", "text": "a lake"}'


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("metadata.jsonl", ROW.encode("utf-16"), ["UTF-16"]),
        ("metadata.csv", "file_name,text\na_1.png,x y".encode("utf-16-le"), ["UTF-16"]),
        (
            "metadata.csv",
            "file_name,scene\na_1,Süd\n\nb_1,Süd".encode("cp1252"),
            ["csv:2", "iconv"],
        ),
        ("metadata.jsonl", b'{"text": "\xe4"}\r{"text": "\xe4"}', ["jsonl:1 and 1 more", "UTF-8"]),
        ("metadata.csv", b"file_name;text\na_1.png;a lake", ["'file_name;text'", "commas"]),
        ("metadata.csv", b'\xef\xbb\xbf"file_name";"text"\n"a_1.png";"a lake"', ["commas"]),
        ("metadata.csv", b"file_name\ttext\na_1.png\ta lake", ["commas"]),
        ("metadata.csv", b"file_name|text\na_1.png|a lake", ["commas"]),
        ("metadata.csv", b"file_name,text,Text\na_1.png,a lake,b", ["2 fields 'text'"]),
        ("metadata.csv", b'file_name,text\na_1.png,"a lake\nb_1.png,b', ["line 1", "closed"]),
        ("metadata.csv", b'file_name,text\na_1.png,x\nb_1.png,"a "b" c"', ["line 2", "quotes"]),
        (
            "metadata.csv",
            b"file_name,label,title\na_1.png,a,a lake with blue water\nb_1.png,b,a wide open sea x",
            ["'title'", "`text`"],
        ),
        (
            "metadata.csv",
            b"file_name,label,blip_caption\na_1.png,a,a small lake\nb_1.png,b,the wide sea",
            ["'blip_caption'", "`text`"],
        ),
        ("metadata.csv", b"image,caption\na_1.png,a lake", ["file_name", "'image', 'caption'"]),
        ("metadata.csv", b"file_name,lon\na_1.png,5.1", ["captions", "'file_name', 'lon'"]),
        ("metadata.csv", b"patch_id,labels,split\na_1,['Forest'],train", ["labels", "one label"]),
        ("metadata.jsonl", f'{ROW[:-1]}, "labels": ["a", "b"]}}'.encode(), ["labels", "one label"]),
        ("metadata.csv", b"file_name,Urban,Forest\na_1.png,0,1", ["'forest'", "one label"]),
        ("metadata.csv", b"file_name,a,b\na_1.png,1.0,0.0", ["'b'", "one label"]),
        ("metadata.csv", b"file_name,label\na_1.png,['a' 'b']", ["csv:2", "one label"]),
        ("metadata.jsonl", b'{"file_name": "a_1.png", "a": true, "b": false}', ["one label"]),
        ("metadata.jsonl", f"[{ROW}]".encode(), ["one JSON object per line"]),
        ("metadata.jsonl", f"[\n{ROW},\n{ROW}\n]".encode(), ["one JSON object per line"]),
        ("metadata.jsonl", json.dumps(json.loads(ROW), indent=1).encode(), ["one JSON object"]),
        ("metadata.jsonl", b'{"image": "a_1.png", "text": "a lake"}', ["'image', 'text'"]),
        ("metadata.jsonl", b"no JSON at all", ["one JSON object per line"]),
        ("metadata.jsonl", b"", ["one JSON object per line"]),
        ("metadata.parquet", b"PAR1 no", ["metadata.parquet"]),
    ],
)
def test_a_list_of_which_nothing_can_be_used_is_one_line(tmp_path, name, content, words):
    draw(tmp_path, "a_1.png")
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path)
    assert all(word in line for word in [name, *words]), line


@pytest.mark.parametrize(
    "name, content",
    [
        ("metadata.jsonl", f"\ufeff{ROW}\r\n".encode()),
        ("metadata.jsonl", f"{{broken\n[1]\n{ROW},\n{ROW}".encode()),
        ("metadata.jsonl", f'{{"a": 1}}\n{ROW}'.encode()),
        ("metadata.csv", b"id,FILENAME,caption\n0,a_1.png,a lake"),
        ("metadata.csv", b'file_name,text\na_1.png,"a lake, blue; wide"'),
        ("metadata.csv", b"file_name,caption_1,caption_2\na_1.png,a lake,"),
        ("metadata.csv", b"file_name,captions\na_1.png,\"['a lake', 'blue water']\""),
    ],
)
def test_a_list_with_some_bad_lines_is_read(tmp_path, name, content):
    draw(tmp_path, "a_1.png")
    (tmp_path / name).write_bytes(content)
    (captions,) = captions_of(tmp_path).values()
    assert captions[0].startswith("a lake")


def test_lines_are_counted_by_what_is_wrong_with_them(tmp_path):
    draw(tmp_path, "a_1.png", "b_1.png")
    lines = ["file_name,text", "a_1.png,a lake", "b_1.png,a lake, blue", ",x y"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    assert read(tmp_path)[1] == {
        "metadata line with more cells than fields (quote text with commas)": ["metadata.csv:3"],
        "metadata line without a file_name": ["metadata.csv:4, fields: file_name, text"],
        "not in metadata.csv": ["b_1.png"],
    }
    (tmp_path / "metadata.csv").unlink()
    write_json_lines(tmp_path / "metadata.jsonl", [{"file_name": "a_1.png", "scene": "lake"}])
    assert captions_of(tmp_path) == {"a_1.png": []}  # one is written from the class


@pytest.mark.parametrize(
    "field, captions, reason",
    [
        ("['a lake', \"it's blue\"]", ["a lake", "it's blue"], ""),
        ('["a lake", null, "b\\u00e9"]', ["a lake", "bé"], ""),
        ("['a lake' 'a sea'\n 'a pond']", ["a lake", "a sea", "a pond"], ""),  # numpy's
        ("('a lake',)", ["a lake"], ""),
        (["['a lake', 'a sea']"], ["a lake", "a sea"], ""),
        ("[nan, 'a lake']", ["a lake"], ""),
        ("[a lake]", ["[a lake]"], ""),
        ("(seen from above)", ["(seen from above)"], ""),
        ("nancy", ["nancy"], ""),
        ("[]", [], "no captions"),
        ("['NaN']", [], "missing value"),
        (["None", "null", " N/A "], [], "missing value"),
        (float("nan"), [], "no captions"),
        ("{'raw': 'a lake'}", [], "not text"),
        ({"raw": "a lake", "tokens": ["a", "lake"]}, ["a lake"], ""),
        ([{"raw": "a lake"}, {"caption": "a sea"}], ["a lake", "a sea"], ""),
        ({"raw": ["a lake", "a sea"], "tokens": [["a"], ["b"]]}, ["a lake", "a sea"], ""),
        ("[{'raw': 'a lake', 'tokens': ['a', 'lake']}]", ["a lake"], ""),
        ("[{'raw': nan}]", [], "not text"),
        ([["a", "small", "lake"], ["blue", "water", "."]], ["a small lake", "blue water ."], ""),
        ("[['a', 'lake'], ['blue', 'water']]", ["a lake", "blue water"], ""),
        ('[["a", "lake"], ["water"]]', ["a lake", "water"], ""),
        (
            [["a lake", "blue water", "sea"], ["a pond"]],
            ["a lake", "blue water", "sea", "a pond"],
            "",
        ),
        ([["lake"], ["一条河", "很多树"]], ["lake", "一条河", "很多树"], ""),
        (["lake", "sea"], ["lake", "sea"], ""),
        ("[['a lake' 'a sea']]", ["a lake", "a sea"], ""),
        ("[['a lake'\n  \"it's blue\"]]", ["a lake", "it's blue"], ""),
        ("[['a lake' 'a sea']\n ['a pond' 'a bay']]", ["a lake", "a sea", "a pond", "a bay"], ""),
        ("array(['a lake'], dtype=object)", [], "not text"),
        ({"en": "a lake"}, [], "not text"),
    ],
)
def test_captions_as_other_tools_write_them(field, captions, reason):
    usable, why = usable_captions(field)
    assert usable == captions and reason in why and bool(reason) == bool(why)


def test_names_of_caption_fields():
    assert caption_fields(["id", "raw", "raw_1", "raw_2"]) == ["raw", "raw_1", "raw_2"]
    assert caption_fields(["text", "Caption"]) == ["Caption", "text"]
    assert caption_fields(["text_language", "context", "label"]) == []
    for names in (["caption", "caption 2"], ["Caption1", "Caption 2"], ["text-1", "text.2"]):
        assert caption_fields(names) == names


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "images.json", "table"])
def test_the_first_field_with_captions_counts(tmp_path, name):
    """Further fields of a known name count in the rows where those before are blank."""
    captions = [("a lake", "a pond", "water"), (None, "a pond", "water"), ("nan", "", "water")]
    rows = [
        {"file_name": f"lake_{i}.png", "caption": first, "caption 2": second, "text": third}
        for i, (first, second, third) in enumerate(captions)
    ]
    if name == "table":
        (tmp_path / "in").mkdir()
        rows = [{"image": cell(i, row["file_name"]), **row} for i, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/data.parquet")
    else:
        draw(tmp_path / "in", *(row["file_name"] for row in rows))
        if name == "images.json":
            (tmp_path / "in" / name).write_text(json.dumps(rows))
        else:
            write = write_csv if name.endswith(".csv") else write_json_lines
            write(tmp_path / "in" / name, rows)
    items = open_source(tmp_path / "in", KEY).read_items(False)
    read_captions = {
        item.name: usable_captions(item.captions)[0] for item in items if item.captions
    }
    assert read_captions == {
        "lake_0.png": ["a lake", "a pond"],
        "lake_1.png": ["a pond"],
        "lake_2.png": ["water"],
    }


@pytest.mark.parametrize(
    "content, names, scene",
    [
        ('{"data": %s}', "airport_{}", None),
        ('{"info": {"version": 1}, "Samples": %s, "licenses": [{"id": 1}]}', "{}", None),
        ('{"chips": %s}', "{}", "chips"),
        ('{"airport": %s}', "{}", "airport"),
        ('{"airport": %s, "beach": []}', "airport_{}", "airport"),
    ],
)
def test_a_single_list_of_json_may_be_no_class(tmp_path, content, names, scene):
    images = [f"{names.format(i)}.png" for i in range(2)]
    draw(tmp_path, *images)
    entries = [{"filename": image, "raw": "seen from above"} for image in images]
    (tmp_path / "a.json").write_text(content % json.dumps(entries))
    items = open_source(tmp_path, KEY).read_items(False)
    assert [(item.name, item.scene) for item in items if item.captions] == [
        (image, scene) for image in images
    ]


def test_json_of_each_class_keeps_the_class_whatever_its_images_are_named(tmp_path):
    places = {"wheat": ("northw", "southw"), "forest": ("east", "west")}
    for scene, names in places.items():
        draw(tmp_path, *(f"{name}_0.png" for name in names))
        entries = [{"filename": f"{name}_0.png", "raw": "from above"} for name in names]
        (tmp_path / f"{scene}.json").write_text(json.dumps({scene: entries}))
    items, _ = read(tmp_path)
    assert {name: item["scene"] for name, item in items.items()} == {
        f"{name}_0.png": scene for scene, names in places.items() for name in names
    }


# Parquet


def cell(seed: int, path: str | None) -> dict:
    return {"bytes": encoded(picture(seed)), "path": path}


def test_images_of_the_same_base_name_are_told_apart_by_content(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["forest", "river", "sea"]}}
    rows: list[dict[str, Any]] = [
        {"image": cell(10 * label + i, f"{i:04d}.png"), "label": label}
        for label in range(3)
        for i in range(4)
    ]
    rows.append({"image": cell(99, "alone.png"), "label": 0})
    table = pa.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/train-00000-of-00001.parquet")
    items, skipped = read(tmp_path)
    assert not skipped and len(items) == 13 and "alone.png" in items
    assert {item["image"] for item in items.values()} == {row["image"]["bytes"] for row in rows}
    scenes = [item["scene"] for item in items.values()]
    assert [scenes.count(name) for name in ("forest", "river", "sea")] == [5, 4, 4]
    assert all(name.startswith("000") for name in items if name != "alone.png")


def test_rows_of_one_image_in_a_table_are_merged(tmp_path):
    for path in ("lake_1.png", None):  # by name, or by content where there is none
        rows = [
            {"image": cell(1, path), "caption": "a lake"},
            {"image": cell(2, path and "lake_2.png"), "caption": "a pond"},
            {"image": cell(1, path), "caption": "blue water"},
        ]
        write_table(tmp_path / f"{path}/train.parquet", rows)
        items, _ = read(tmp_path / f"{path}")
        assert sorted(item["captions"] for item in items.values()) == [
            ["a lake", "blue water"],
            ["a pond"],
        ]
    assert all(name.startswith("train-") for name in items)


def test_splits_are_read_from_the_column_of_a_table(tmp_path):
    splits = ["train", "test", None, ""]
    rows = [
        {"image": cell(i, f"{i}.png"), "text": "a lake", "split": split}
        for i, split in enumerate(splits)
    ]
    write_table(tmp_path / "text/train.parquet", rows)
    items, _ = read(tmp_path / "text")
    # A row that names none is of the split that the table is called after.
    assert [item["split"] for item in items.values()] == ["train", "test", "train", "train"]
    features = {"split": {"_type": "ClassLabel", "names": ["validation", "test"]}}
    table = pa.Table.from_pylist([row | {"split": i % 2} for i, row in enumerate(rows)])
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (tmp_path / "numbers").mkdir()
    pq.write_table(table, tmp_path / "numbers/tiles.parquet")
    items, _ = read(tmp_path / "numbers")
    assert [item["split"] for item in items.values()] == ["validation", "test"] * 2


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_splits_given_as_numbers_are_asked_about(tmp_path, monkeypatch, name):
    rows = [{"file_name": f"{i}.png", "text": "a lake", "split": i % 2} for i in range(6)]
    draw(tmp_path / "in", *(row["file_name"] for row in rows))
    WRITERS[name](tmp_path / "in" / name, rows)
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in")
    assert "fetch_imagery.splits: the source has 0, 1: " in line


def test_a_list_of_captions_beside_caption_files_is_not_ignored(tmp_path):
    """Of one image only: those of the others are in the list."""
    draw(tmp_path, "a_1.png", "b_1.png")
    (tmp_path / "a_1.txt").write_text("a blue lake")
    (tmp_path / "captions.csv").write_text("file_name,text\nb_1.png,a red lake")
    assert open_source(tmp_path, KEY).unread_captions == "captions.csv"
    (tmp_path / "b_1.txt").write_text("a red lake")
    assert open_source(tmp_path, KEY).unread_captions is None


def test_a_column_of_captions_that_is_not_called_so_is_one_line(tmp_path):
    texts = ["a lake with blue water", "a wide sea from far above"]
    rows = [
        {"image": cell(i, f"{i}.png"), "label": "ab"[i], "description": text}
        for i, text in enumerate(texts)
    ]
    write_table(tmp_path / "train.parquet", rows)
    assert "'description'" in refusal(tmp_path)
    renamed = [
        {"text" if name == "description" else name: value for name, value in row.items()}
        for row in rows
    ]
    write_table(tmp_path / "train.parquet", renamed)
    assert list(captions_of(tmp_path).values()) == [[text] for text in texts]
    # The same text in all rows is none.
    write_table(tmp_path / "train.parquet", [row | {"description": texts[0]} for row in rows])
    assert list(captions_of(tmp_path).values()) == [[], []]


@pytest.mark.parametrize(
    "columns, name",
    [
        ({"label": "['a', 'b']"}, "'label'"),
        ({"label": ["a"], "text": "a lake"}, "'label'"),
        ({"labels": ["a", "b"]}, "labels"),
        ({"labels": ["a", "b"], "text": "a lake"}, "labels"),
        ({"a": 0.0, "b": 1.0, "lon": 5.5}, "a, b:"),
        ({"a": 0, "b": True}, "a, b:"),
    ],
)
def test_a_table_of_several_labels_per_tile_is_one_line(tmp_path, columns, name):
    write_table(tmp_path / "train.parquet", [{"image": cell(1, "a.png"), **columns}])
    line = refusal(tmp_path)
    assert name in line and "one label per tile" in line


def test_labels_with_brackets_and_bars_are_names(tmp_path):
    labels = ["(bare) land", "forest|water", "forest; water", "[7]"]
    rows = [{"image": cell(i, f"{i}.png"), "label": label} for i, label in enumerate(labels)]
    write_table(tmp_path / "train.parquet", rows)
    assert [item["scene"] for item in read(tmp_path)[0].values()] == labels


@pytest.mark.parametrize(
    "value, label",
    [
        *((value, None) for value in (None, "", " ", "nan", "NA", "N/A", float("nan"))),
        *((value, None) for value in (-1, -1.0, "-1")),
        *((value, "2") for value in (2, 2.0, "2", "2.0", " 2")),
        ("none", "none"),
        (" bare land ", "bare land"),
        (1.5, "1.5"),
        (True, "True"),
    ],
)
def test_the_class_that_a_value_names(value, label):
    assert label_value(value) == label
    assert split_value(value) == (None if value is True else label)


@pytest.mark.parametrize("name", [*WRITERS, "train.parquet"])
def test_missing_labels_are_no_class_in_any_list(tmp_path, name):
    labels = [0.0, float("nan"), 1.0, None, -1.0]
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    if name in WRITERS:
        draw(tmp_path, *(row["file_name"] for row in rows))
        WRITERS[name](tmp_path / name, rows)
    else:
        write_table(tmp_path / name, [row | {"image": cell(i, None)} for i, row in enumerate(rows)])
    items, skipped = read(tmp_path)
    assert {item: row["scene"] for item, row in items.items()} == {"0.png": "0", "2.png": "1"}
    assert skipped == {"no captions": ["1.png", "3.png", "4.png"]}


@pytest.mark.parametrize("name", [*WRITERS, "train.parquet", "captions.json"])
def test_captioned_rows_without_a_class_get_none_from_their_names(tmp_path, name):
    labels = [None, "forest", "", "river"]
    rows: list[dict] = [
        {"file_name": f"tile_{i}.png", "text": "seen from above", "label": label}
        for i, label in enumerate(labels)
    ]
    write_source(tmp_path, name, rows)
    items, _ = read(tmp_path)
    assert [item["scene"] for item in items.values()] == ["", "forest", "", "river"]


def test_a_captioned_image_outside_class_folders_has_no_class(tmp_path):
    images = ["forest/1.png", "river/2.png", "mosaic_0.png"]
    draw(tmp_path, *images)
    for image in images:
        (tmp_path / image).with_suffix(".txt").write_text("seen from above")
    items, _ = read(tmp_path)
    assert {name: item["scene"] for name, item in items.items()} == {
        "forest/1.png": "forest",
        "river/2.png": "river",
        "mosaic_0.png": "",
    }


def test_captioned_images_beside_one_folder_have_the_classes_of_their_names(tmp_path):
    scenes = {"airport_1.png": "airport", "lake_1.png": "lake", "extra/lake_3.png": "lake"}
    draw(tmp_path, *scenes)
    for image in scenes:
        (tmp_path / image).with_suffix(".txt").write_text("seen from above")
    survey = survey_items(open_source(tmp_path, KEY), SkipReport())
    assert survey.scenes == {"airport": 1, "lake": 2}


@pytest.mark.parametrize(
    "name, label",
    [
        *((name, None) for name in (*WRITERS, "train.parquet", "captions.json")),
        ("metadata.jsonl", {"id": 0, "name": "lake"}),
        ("metadata.parquet", {"id": 0, "name": "lake"}),
        ("train.parquet", {"id": 0, "name": "lake"}),
        ("captions.json", {"id": 0, "name": "lake"}),
    ],
)
def test_a_class_field_without_a_class_leaves_those_of_the_names(tmp_path, name, label):
    rows: list[dict] = [
        {"file_name": f"{scene}_{i}.png", "text": "from above", "category": label}
        for i, scene in enumerate(("lake", "sea"))
    ]
    write_source(tmp_path, name, rows)
    assert survey_items(open_source(tmp_path, KEY), SkipReport()).scenes == {"lake": 1, "sea": 1}


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.json"])
def test_a_list_of_one_label_is_that_label(tmp_path, name):
    labels = [["lake"], ["sea"], []]
    rows = [
        {"file_name": f"tile_{i}.png", "text": "from above", "label": label}
        for i, label in enumerate(labels)
    ]
    draw(tmp_path, *(str(row["file_name"]) for row in rows))
    (tmp_path / name).write_text(json.dumps(rows))
    if name == "metadata.jsonl":
        write_json_lines(tmp_path / name, rows)
    items, _ = read(tmp_path)
    assert [item["scene"] for item in items.values()] == ["lake", "sea", ""]


def test_several_labels_in_json_are_one_line(tmp_path):
    draw(tmp_path, "1.png")
    row = {"file_name": "1.png", "text": "seen from above", "label": ["forest", "river"]}
    (tmp_path / "captions.json").write_text(json.dumps([row]))
    assert "captions.json: several labels per tile" in refusal(tmp_path)


@pytest.mark.parametrize("folders", [["lake", "sea"], ["train", "sea"], ["train_new", "sea"]])
def test_lists_in_folders_are_of_one_data_set(tmp_path, monkeypatch, capfd, folders):
    """Folders with a list of their own are splits where they are named so, or where params say."""
    root = tmp_path / "in"
    for start, folder in enumerate(folders):
        names = [f"{i}.png" for i in range(10)]
        draw(root / folder, *names, start=10 * start)
        rows = [{"file_name": name, "text": "from above", "scene": folder * 2} for name in names]
        write_json_lines(root / folder / "metadata.jsonl", rows)
    assert {item["split"] for item in read(root)[0].values()} == {
        folder if folder == "train" else None for folder in folders
    }
    settings: dict[str, Any] = {"source": f"path:{root}", "max_images": None, "valid": 2, "test": 2}
    splits = {"train": folders[0], "valid": None, "test": f"{folders[1]}/"}
    rows_of_split = fetch(tmp_path / "named", monkeypatch, splits=splits, **settings)
    assert {row["scene"] for row in rows_of_split["test"]} == {folders[1] * 2}
    assert {row["scene"] for row in rows_of_split["train"]} == {folders[0] * 2}
    if folders == ["lake", "sea"]:
        splits = {"train": None, "valid": None, "test": "see"}
        line = error_of(tmp_path / "misspelled", monkeypatch, splits=splits, **settings)
        assert "no split 'see' in the imagery; the source has none, and the folders lake" in line
        capfd.readouterr()
        rows_of_split = fetch(tmp_path / "carved", monkeypatch, **settings)
        assert [len(rows_of_split[split]) for split in rows_of_split] == [16, 2, 2]
        assert "the lists in lake, sea are read as one data set" in capfd.readouterr().err
    if folders == ["train_new", "sea"]:
        line = error_of(tmp_path / "carved", monkeypatch, **settings)
        assert "train_new seems to be a split: name them in fetch_imagery.splits, or " in line


def test_spaces_after_the_commas_of_a_list_are_no_part_of_its_values(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    lines = ["label, file_name, split, text", 'x y, a.png, train, "a, b"', "z, b.png, test, c "]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    items, _ = read(tmp_path)
    assert [(i["scene"], i["split"], i["captions"]) for i in items.values()] == [
        ("x y", "train", ["a, b"]),
        ("z", "test", ["c"]),
    ]


def test_numbered_tables_are_parts_of_one_unless_the_params_name_them():
    counts = {"data_1": 5, "data_2": 5}
    none = {"train": None, "valid": None, "test": None}
    matched, missing = match_splits(counts, none, "fetch_imagery.splits")
    assert matched == dict.fromkeys(counts, "train") and missing == ["valid", "test"]
    named = none | {"train": "data_1", "test": "data_2"}
    matched, missing = match_splits(counts, named, "fetch_imagery.splits")
    assert matched == {"data_1": "train", "data_2": "test"} and missing == ["valid"]
    matched, missing = match_splits(counts, none | {"test": "data_2"}, "fetch_imagery.splits")
    assert matched == {"data_1": "train", "data_2": "test"} and missing == ["valid"]
    with pytest.raises(SystemExit, match="s1, s2"):
        match_splits({"s1": 5, "s2": 5}, none, "fetch_imagery.splits")


def test_tables_of_several_folders_that_are_joined_are_told(tmp_path, capfd):
    for i, split in enumerate(("train", "test")):
        rows = [{"image": cell(i, f"{i}.png"), "text": "a lake"}]
        for part in range(2):
            write_table(tmp_path / f"one/{split}/{part:05d}.parquet", rows)
        for fold in ("fold0", "fold1"):
            write_table(tmp_path / f"two/{fold}/{split}-00000-of-00001.parquet", rows)
    open_source(tmp_path / "one", KEY)
    assert "read as one" not in capfd.readouterr().err
    open_source(tmp_path / "two", KEY)
    assert "the tables in fold0, fold1 are read as one data set" in capfd.readouterr().err


def test_the_folders_of_partitioned_tables(tmp_path):
    """As pandas, DuckDB and Spark write them: the columns stand in the names of the folders."""
    rows = [
        {"image": encoded(picture(i)), "text": "a lake", "split": split, "label": label}
        for i, split in enumerate(("train", "test"))
        for label in "ab"
    ]
    table = pa.Table.from_pylist(rows)
    root = tmp_path / "splits"
    pq.write_to_dataset(table, root, partition_cols=["split"])
    matched, missing = match_splits(
        survey_items(open_source(root, KEY), SkipReport()).image_counts(),
        dict.fromkeys(("train", "valid", "test")),
        "fetch_imagery.splits",
    )
    assert matched == {"split=train": "train", "split=test": "test"} and missing == ["valid"]
    pq.write_to_dataset(table, tmp_path / "labels", partition_cols=["split", "label"])
    assert "partitioned by 'label' is not read: write it as" in refusal(tmp_path / "labels")
    open_source(tmp_path / "labels", KEY, images_only=True)


def test_an_image_in_two_tables_is_kept_in_one_split(tmp_path):
    for i, split in enumerate(("train", "test")):
        rows = [
            {"image": cell(1, "same.png"), "text": "a lake"},
            {"image": cell(5 + i, "other.png"), "text": "a sea"},
        ]
        write_table(tmp_path / f"{split}/0000.parquet", rows)
    items, skipped = read(tmp_path)
    assert sorted(item["split"] for item in items.values()) == ["test", "test", "train"]
    assert skipped == {"further row of an image, in another split": ["same.png"]}


# Captions beside the images


def test_text_files_beside_the_images_are_captions(tmp_path):
    draw(tmp_path / "flat", "a_1.png", "b_1.JPG", "c_1.png", "d_1.png", "e_1.png", "f_1.png")
    (tmp_path / "flat/a_1.txt").write_text("a lake\n\nblue water\n", encoding="utf-8-sig")
    (tmp_path / "flat/b_1.TXT").write_text("una città", encoding="utf-8")
    (tmp_path / "flat/c_1.caption").write_bytes("x y".encode("utf-16"))
    (tmp_path / "flat/e_1.txt").write_text("0 0.5 0.5 0.1 0.1")  # boxes of a detector
    (tmp_path / "flat/f_1.txt").write_text("gsd:0.1\n27 24 28 23 28 24 28 25 plane 0")
    (tmp_path / "flat/readme.txt").write_text("about")
    items, skipped = read(tmp_path / "flat")
    assert {name: item["captions"] for name, item in items.items()} == {
        "a_1.png": ["a lake", "blue water"],
        "b_1.JPG": ["una città"],
    }
    assert skipped == {
        "caption file that is not UTF-8": ["c_1.png"],
        "no caption file beside it": ["d_1.png"],
        "caption file that holds boxes": ["e_1.png", "f_1.png"],
        "caption file without an image": ["readme.txt"],
    }
    (tmp_path / "flat/a_1.txt").write_bytes("città".encode("cp1252"))
    assert f"{KEY}: a_1.txt and 1 more caption file(s) are not UTF-8" in refusal(tmp_path / "flat")
    draw(tmp_path / "twice", "a_1.jpg", "a_1.png", "b_1.png", "c_1.png")
    decomposed = unicodedata.normalize("NFD", "è_1")
    draw(tmp_path / "twice", "è_1.png")
    for name in ("a_1.jpg", "a_1.png", "b_1", "b_1.png", decomposed):
        (tmp_path / f"twice/{name}.txt").write_text(f"that of {name}")
    items, skipped = read(tmp_path / "twice")
    assert {name: item["captions"] for name, item in items.items()} == {
        "a_1.jpg": ["that of a_1.jpg"],
        "a_1.png": ["that of a_1.png"],
        "b_1.png": ["that of b_1"],
        "è_1.png": ["that of è_1"],
    }
    assert skipped == {
        "caption file without an image": ["b_1.png.txt"],
        "no caption file beside it": ["c_1.png"],
    }
    for name in ("train/lake/1", "train/river/1", "eval/lake/2"):
        draw(tmp_path / "classes", f"{name}.png")
        (tmp_path / f"classes/{name}.txt").write_text("seen from above")
    items, _ = read(tmp_path / "classes")
    assert [(item["split"], item["scene"]) for item in items.values()] == [
        ("eval", "lake"),
        ("train", "lake"),
        ("train", "river"),
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("captions.csv", "file_name,text\nlake_1.png,x"),
        ("train.tsv", "filename\tcaption\nlake_1.png\tx"),
        ("labels.json", '{"annot": [{"image": "lake_1.png", "caption": "x"}]}'),
        ("broken.json", '{"images": [{"filename": "lake_1.png", "sentences": [{"raw": "x"'),
        ("tokens.txt", "lake_1.png#0\tA blue lake"),
        ("tokens.txt", "lake_1.png\t一条河"),
        ("results_20130124.token", "lake_1.png#0\ta clear view"),
        ("train.lst", "lake_1.png a clear view"),
        ("train.lst", "lake/lake_1.png#0\ta clear view"),
        ("train.tab", "lake_1.png\ta clear view"),
        ("train.tab", "file\tcaption\n'lake_1.png'\t'a clear view'"),
        ("Flickr", "lake_1.png#0 a clear view"),
        ("Flickr", "lake_1.png\ta clear view"),
        ("data.json", '[{"image": "lake_1.png", "caption 2": "lake"}]'),
        ("late.txt", "0123456 789\n" * 10_000 + "lake_1.png: a clear view"),
        ("data.json", '{"lake_1.png": "a wide blue lake", "river_1.png": "a river"}'),
        ("data.json", '{"lake_1": ["\\u4e00\\u6761\\u6cb3"]}'),
        ("data.json", '[{"image": "lake_1.png", "description": "a wide blue lake"}]'),
        ("data.json", '[{"image_id": "lake_1", "caption": "a lake"}]'),
        ("data.json", '[{"image": "lake_1.png", "conversations": [{"value": "a lake"}]}]'),
        ("data.json", '[{"image": "elsewhere_1.png", "caption": "a lake"}]'),
        ("notes.json", '[{"file": "image/lake_1.png", "desc": "a lake beside dry farmland"}]'),
        ("labels/lake_1.txt", "a blue lake"),
        ("captions/lake_1.txt", "a blue lake"),
        ("texts/lake_1.txt", "a blue lake seen from above"),
        ("lake/lake_1.json", '{"key": "0001", "caption": "a blue lake"}'),
        ("lake/lake_1.png.json", '{"prompt": "a blue lake"}'),
        ("lake/lake_1.json", '{"description": "many green trees near a blue lake"}'),
        ("lake/lake_1_caption.md", "a blue lake"),
        ("lake/lake_1.desc", "a blue lake"),
        ("texts/lake_1.png.txt", "a blue lake"),
        ("captions/lake_1.rst", "a blue lake"),
        ("captions", "of all images"),
        ("data.yaml", "lake/lake_1.png: a wide blue lake\n"),
        ("lake/lake_1.yaml", "caption: a lake\nlevel: L2A"),
        ("data.yml", "- image: lake/lake_1.png\n  caption: lake\n"),
        ("metadata.xlsx", "binary"),
        ("metadata.jsonl.gz", "binary"),
        ("lake/lake_1_0.txt", "a blue lake"),
        ("lake/lake_1.2.txt", "a blue lake"),
        ("tiles.csv", "id,description\nlake_1,a wide blue lake\nriver_1,a river in a forest"),
        ("tiles.tsv", "lake_1#0\ta wide blue lake\nriver_1#0\ta river in a forest"),
    ],
)
def test_captions_in_another_layout_are_not_ignored(tmp_path, monkeypatch, name, content):
    draw(tmp_path / "in", "lake/lake_1.png", "river/river_1.png")
    (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "in" / name).write_text(content)
    assert str(open_source(tmp_path / "in", KEY).unread_captions).startswith(name)
    assert name in error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in")


CAPTION = "a small blue lake with many trees around it"


@pytest.mark.parametrize(
    "name, entry, is_unread",
    [
        ("tiles.csv", f"{{0:03d}},{CAPTION} {{0}}\n", True),
        ("tiles.csv", f'"{{0:03d}}";Forest;"{CAPTION} {{0}}"\n', True),
        ("tiles.json", f'"{{0:03d}}": "{CAPTION} {{0}}",', True),
        ("tiles.json", f'"{{0:03d}}": ["{CAPTION} {{0}}", "{CAPTION}"],', True),
        ("tiles.csv", "{0:03d},Annual crop land,{0}.5,Bern {0}\n", False),
        ("tiles.json", '"{0:03d}": ["Annual crop land", "dry season"],', False),
        ("tiles.json", '"{0:03d}": "North Rhine Westphalia, district {0}",', False),
        ("tiles.csv", "{0:03d},station number {0} of the north,2020\n", False),
        ("tiles.csv", "{0:03d};CC BY SA 4.0, photo number {0} by Jane Doe;http://x\n", False),
        ("log.txt", "{0:03d}\tread file and wrote tile {0}\n", False),
    ],
)
def test_captions_of_numbers_are_not_ignored_where_most_images_have_one(
    tmp_path, name, entry, is_unread
):
    """Of fewer entries, the numbers may be ids of classes; texts that repeat may be labels."""
    draw(tmp_path, *(f"{'lake' if i < 5 else 'sea'}/{i:03d}.png" for i in range(10)))
    for count in (4, 10):
        content = "".join(map(entry.format, range(count)))
        content = f"{{{content[:-1]}}}" if name.endswith(".json") else content
        (tmp_path / name).write_text(content)
        found = open_source(tmp_path, KEY).unread_captions
        assert found == (name if is_unread and count == 10 else None)


def test_numbered_texts_of_most_images_are_captions_and_one_may_hold_notes(tmp_path):
    draw(tmp_path, *(f"{scene}/{scene}_{i}.png" for scene in ("lake", "sea") for i in range(2)))
    (tmp_path / "lake/lake_0_1.txt").write_text("tile of the sensor S2")
    assert open_source(tmp_path, KEY).unread_captions is None
    (tmp_path / "sea/sea_1_1.txt").write_text("a blue sea")
    assert open_source(tmp_path, KEY).unread_captions == "lake/lake_0_1.txt"


def test_long_words_beside_an_image_name_are_read_in_no_time(tmp_path):
    draw(tmp_path, "lake/lake_1.png", "river/river_1.png")
    (tmp_path / "thumbnails.tsv").write_text("iVBORw0KGgo/" * 3000 + "/lake_1.png\n")
    (tmp_path / "thumbnails.tab").write_text("lake_1.png\t" + "iVBORwKGgo/" * 3000)
    (tmp_path / "blank.yaml").write_text("\n" * 20_000)
    (tmp_path / "words.csv").write_text("word " * 20_000)
    (tmp_path / "words.json").write_text('"word": "' * 20_000)
    start = time.process_time()
    assert open_source(tmp_path, KEY).unread_captions is None
    assert time.process_time() - start < 2


def test_captions_in_a_packed_list_are_not_ignored(tmp_path):
    draw(tmp_path, "lake/lake_1.png", "river/river_1.png")
    entry = {"filename": "lake_1.png", "sentences": [{"raw": "a blue lake"}]}
    packed = gzip.compress(json.dumps({"images": [entry]}).encode(), mtime=0)
    (tmp_path / "dataset.json.gz").write_bytes(packed)
    assert open_source(tmp_path, KEY).unread_captions == "dataset.json.gz"
    (tmp_path / "dataset.json.gz").write_bytes(packed[:20] + b"damaged")
    assert open_source(tmp_path, KEY).unread_captions is None


@pytest.mark.parametrize(
    "name, content",
    [
        ("train.csv", "Filename,Label,ClassName\nlake/lake_1.png,0,Lake of Annual Crop"),
        ("label_map.json", '{"lake": 0, "river": 1}'),
        ("test_report.csv", "class,images\nlake,1\nriver,1"),
        ("metadata.xml", "<gmd:MD_Metadata/>"),
        (
            "lake/lake_1.json",
            '{"assets": {"visual": {"href": "./lake_1.png", '
            '"type": "image/tiff; application=geotiff; profile=cloud-optimized"}}}',
        ),
        (
            "lake/lake_1.json",
            '{"stac_version": "1.0.0", "assets": {"visual": {"href": "./lake_1.png", '
            '"title": "True color image", "description": "Bands 4, 3 and 2 of the product"}}}',
        ),
        ("seasons.csv", "name,kind,season\nlake_1.png,lake,summer,dry\nriver_1.png,river,fall,wet"),
        ("tags.json", '{"lake_1.png": ["lake", "water"], "river_1.png": ["river"]}'),
        ("test_predictions.json", '{"lake_1.png": "lake", "river_1.png": "lake"}'),
        ("test.json", '{"lake_1": {"label": "lake"}, "river_1": {"label": "river"}}'),
        ("readme.txt", "Please cite the paper in which we describe the caption of each image"),
        ("info.json", '{"text": "a data set of lakes"}'),
        ("boxes/lake_1.txt", "0 0.5 0.5 0.1 0.1\n0 0.2 0.5 0.1 0.1"),
        ("labelTxt/lake_1.txt", "gsd:0.1\n" + "27 24 28 23 28 24 28 25 plane 0\n" * 5),
        ("lake/lake_1.txt", "0 0.5 0.5 0.1 0.1"),
        ("lake/lake_1.txt", "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12"),
        ("README.txt", "See lake_1.png for an example of a lake from above"),
        (
            "instances.json",
            '{"info": {"description": "ships in the images of a satellite"}, '
            '"images": [{"id": 1, "file_name": "lake_1.png"}], "annotations": [{"image_id": 1}]}',
        ),
        ("README.md", "RSICD, captions\n\nlake_1.png shows a lake from above"),
        ("captions_of/README.md", "about the captions of the images"),
        ("LICENSE", "You may copy lake_1.png and its caption to your disk"),
        ("data.yaml", "train: ../train/images\nnc: 2\nnames: ['lake', 'river']\ntext: a b c d"),
        ("lake/lake_1.png.json", '{"description": "lake_1.png", "prompt": [1, 2]}'),
        ("labels.json.gz", "no gzip"),
        ("lake/lake_1.yaml", "platform: Sentinel-2\nlevel: L2A\nprocessing: sen2cor of ESA"),
        ("lake/make_captions.py", "print('lake_1.png: a wide blue lake')"),
        ("captioned/meta/lake_1.hdr", "samples = 40"),
        ("captioned/meta/lake_1", "a raster of ENVI"),
        ("lake_1_bytes", "lake_1.png: a clear view\0"),
        ("lake/lake_1.tab", '!table\n!version 300\n\nDefinition Table\n  File "lake_1.png"\n'),
        ("lake/lake_1.lst", "the lines of a listing"),
        ("tiles.lst", "0\t1.0\tlake/lake_1.png"),
        ("tiles.csv", "file,tags\nlake_1.png,lake\nriver_1.png,training area"),
        ("tiles.json", '[{"file": "lake_1.png", "kind": "lake"}, {"file": "river_1.png"}]'),
        ("ls-lR", "./lake:\n-rw-r--r-- 1 anna users 1234 Jan  1 12:00 lake_1.png\n"),
        ("processing_log", "Wrote lake_1.png in 3.2 seconds without warnings"),
        ("processing_log", "lake_1.png done in 3.2 seconds without warnings"),
        ("MANIFEST", "lake_1.png: PNG image data, 40 x 40, 8-bit/color RGB, non-interlaced"),
        ("MANIFEST", "lake_1.png\t1234 bytes of md5 0cc175b9c0f1b6a8"),
        ("table.tab", "file\tsensor\tseason\ttext\nlake_1.png\tSentinel-2 L2A\tdry season\tx"),
        ("notes.md", "removed lake_2.png and lake_1.png because they were broken"),
        ("__MACOSX/metadata.jsonl", "no JSON"),
        ("__MACOSX/sea/1.png", "no image"),
        ("lake/@eaDir/lake_1.png/SYNOPHOTO_THUMB_M.png", "a thumbnail"),
        ("#recycle/sea/1.png", "deleted"),
        ("lake/lake_1.json", '{"width": 40, "sensor": "Sentinel-2"}'),
        ("tiles.csv", "id,region\nlake_1,Bern North District\nriver_1,Bern South District"),
    ],
)
def test_lists_without_captions_do_no_harm_to_class_folders(tmp_path, name, content):
    draw(tmp_path, "lake/lake_1.png", "river/river_1.png")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    source = open_source(tmp_path, KEY)
    assert source.unread_captions is source.unread_split is None and not source.has_captions
    assert [item.scene for item in source.read_items(False) if not item.skip_reason] == [
        "lake",
        "river",
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("eurosat-train.txt", "lake_1.png\nriver_1.png"),
        ("lists/test_set.txt", "river/river_1.tif 3"),
        ("val.csv", "id,label\nlake_1,0\nriver_1,1"),
        ("splits.json", '{"train": ["in/lake/lake_1.png"], "val": ["in/river/river_1.png"]}'),
        ("split.json", '{"classes": ["lake"], "test": [["river/river_1.png", 0, "a river"]]}'),
        ("test.lst", "0\t1.0\tlake/lake_1.png"),
        ("test.json", '["lake/lake_1.png", "river/river_1.png"]'),
        ("splits.csv", "file,split\nlake/lake_1.png,train\nriver/river_1.png,test"),
        ("parts.txt", "lake/lake_1.png train\nriver/river_1.png test"),
        ("splits.json", '{"lake/lake_1.png": "train", "river/river_1.png": "test"}'),
        ("parts.json", '[{"file": "lake_1.png", "split": "train"}]'),
        ("parts.json", '{"lake_1": {"class": "lake", "split": "train"}}'),
    ],
)
@pytest.mark.parametrize("captions", [False, True])
def test_a_list_of_a_split_is_not_ignored(tmp_path, monkeypatch, name, content, captions):
    """Unless folders or metadata.csv give the splits."""
    images = ["lake/lake_1.png", "river/river_1.png"]
    folder = tmp_path / "in"
    draw(folder, *images)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    if captions:
        for image in images:
            (folder / image).with_suffix(".txt").write_text("seen from above")
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{folder}")
    assert f"{name} seems to list a split: move " in line
    rows = [{"file_name": image, "scene": Path(image).stem, "text": "a lake"} for image in images]
    write_csv(folder / "metadata.csv", rows)
    for source in (folder, folder / "metadata.csv"):
        line = error_of(tmp_path / "run", monkeypatch, source=f"path:{source}")
        assert f"{name} seems to list a split: move " in line
    splits = ("train", "test")
    write_csv(folder / "metadata.csv", [row | {"split": s} for row, s in zip(rows, splits)])
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{folder}", max_images=1)
    assert "seems to list" not in line
    (folder / "metadata.csv").unlink()
    assert open_source(folder, KEY).unread_split == name
    draw(folder, "train/lake/3.png")
    assert open_source(folder, KEY).unread_split is None


@pytest.mark.parametrize(
    "name", [*WRITERS, "captions.json", "tiles.parquet", "train-00000-of-00001.parquet"]
)
def test_a_field_of_splits_of_another_name_is_one_line(tmp_path, monkeypatch, name):
    splits = ["train", "train", "test", None]
    rows: list[dict] = [
        {"file_name": f"{i}.png", "text": f"tile {i}", "label": "ab"[i % 2], "subset": split}
        for i, split in enumerate(splits)
    ]
    root = tmp_path / "in"
    if name == "tiles.parquet":
        for i, row in enumerate(rows):
            write_table(root / f"tiles_{i}.parquet", [row | {"image": cell(i, None)}])
    else:
        write_source(root, name, rows)
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{root}")
    assert "its field 'subset' seems to hold splits: name it `split`, " in line


@pytest.mark.parametrize("name", [*WRITERS, "captions.json", "train-00000-of-00001.parquet"])
def test_a_field_of_yes_and_no_that_is_named_as_a_split_is_one_line(tmp_path, monkeypatch, name):
    root = tmp_path / "in"
    rows: list[dict] = [{"file_name": f"{i}.png", "text": f"tile {i}"} for i in range(4)]
    write_source(root, name, [row | {"is_test": i == 3} for i, row in enumerate(rows)])
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{root}")
    assert "its field 'is_test' seems to hold splits: name it `split`, " in line
    # Another value, one value alone, a label, and words of no split tell none.
    others = [
        {"test": 0.5 * i, "is_valid": 1, "train_station": i % 2, "test_score": i % 2, "image_1": i}
        for i in range(4)
    ]
    # Alone, `valid` may be a flag of quality, and beside other flags, each may be a class.
    one_hot = [{"test": i == 3, "harbor": i % 2, "airport": 0} for i in range(4)]
    for fields in (others, one_hot, [{"valid": i % 2, "invalid": 1 - i % 2} for i in range(4)]):
        write_source(root, name, [row | other for row, other in zip(rows, fields)])
        assert open_source(root, KEY).misnamed_split is None


@pytest.mark.parametrize(
    "name", ["test", "is_valid", "isTrain", "is_training_image", "in_val_set", "val_split"]
)
@pytest.mark.parametrize("values", [[0, 1], [1.0, 0.0], ["True", "False"], [False, True, None]])
def test_a_field_of_yes_and_no_that_is_named_as_a_split(name, values):
    assert misnamed_split({"label": 0, name: value} for value in values) == name


@pytest.mark.parametrize("list_name", [None, "metadata.csv", "captions.json", "tiles.parquet"])
@pytest.mark.parametrize(
    "folders, seem_splits",
    [
        (["AID_test", "AID_train"], True),
        (["all/Images-test", "all/Images-trainval"], True),
        (["test_a", "train_a", "test"], True),
        (["bus_station", "train_station"], False),
        (["test_run", "all/train_station"], False),
        (["forest", "test_site", "train_station"], False),
    ],
)
def test_folders_that_seem_to_be_splits_are_one_line(
    tmp_path, monkeypatch, list_name, folders, seem_splits
):
    """Also where params name the one split that is read as such."""
    names = [f"{folder}/{scene}/{i}.png" for i, scene in enumerate("ab") for folder in folders]
    rows = [{"file_name": name, "text": "from above", "label": name[-7]} for name in names]
    root = tmp_path / "in"
    if list_name is None:
        draw(root, *names)
    elif list_name == "tiles.parquet":
        table = [row | {"image": cell(i, None)} for i, row in enumerate(rows)]
        write_table(root / list_name, table)
    else:
        write_source(root, list_name, rows)
    splits = {"train": None, "valid": None, "test": "test" if "test" in folders else "none"}
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{root}", splits=splits)
    named = ", ".join(Path(folder).name for folder in folders if folder != "test")
    assert (f"{named} seem to be splits: " in line) == seem_splits
    is_nested = "/" in folders[0]
    assert ("name them in fetch_imagery.splits" in line) == (seem_splits and not is_nested)


def test_the_case_of_the_field_of_splits_in_json_does_not_count(tmp_path):
    splits = {"1.png": "train", "2.png": "test"}
    draw(tmp_path, *splits)
    rows = [{"file_name": name, "raw": "a lake", "Split": split} for name, split in splits.items()]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    assert {name: item["split"] for name, item in read(tmp_path)[0].items()} == splits


def test_numbers_in_a_table_about_a_split_are_no_names_of_images(tmp_path):
    draw(tmp_path, "lake/1.png", "river/2.png")
    (tmp_path / "test.csv").write_text("lake,1\nriver,2")
    assert open_source(tmp_path, KEY).unread_split is None
    (tmp_path / "test.csv").write_text("1\n2")
    assert open_source(tmp_path, KEY).unread_split == "test.csv"
    (tmp_path / "test.csv").unlink()
    for content, is_list in (("[1, 2, 3]", False), ('[{"id": 1}]', False), ('["1", "2"]', True)):
        (tmp_path / "test.json").write_text(content)
        assert open_source(tmp_path, KEY).unread_split == ("test.json" if is_list else None)


def run_snippet(before: str) -> None:
    """Run the Python of docs/data.md that stands after some text."""
    docs = (Path(__file__).parents[1] / "docs/data.md").read_text()
    exec(docs.partition(before)[2].partition("```python\n")[2].partition("```")[0])


def test_coco_captions_say_how_to_convert_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("annotations").mkdir()
    for i, split in enumerate(("train2017", "val2017")):
        draw(tmp_path, f"{split}/1.jpg", start=i)
        annotations = [{"image_id": 1, "caption": caption} for caption in (split, "water")]
        coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": annotations}
        Path(f"annotations/captions_{split}.json").write_text(json.dumps(coco))
    assert "COCO" in (line := refusal(tmp_path)) and "metadata.jsonl" in line
    run_snippet("Convert COCO captions by:")
    assert {name: item["split"] for name, item in read(tmp_path)[0].items()} == {
        "train2017/1.jpg": "train2017",
        "val2017/1.jpg": "val2017",
    }
    assert captions_of(tmp_path)["val2017/1.jpg"] == ["val2017", "water"]


@pytest.mark.parametrize("shards", [["train-0000", "train-0001", "test-0000"], ["test/0", "val/0"]])
def test_shards_say_how_to_unpack_them_with_their_splits_and_equal_keys(
    tmp_path, monkeypatch, shards
):
    root = tmp_path / "in"
    for i, shard in enumerate(shards):
        draw(tmp_path, "0.jpg", start=i)
        (tmp_path / "0.txt").write_text(f"of {shard}")
        (root / shard).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for name in ("0.jpg", "0.txt"):
                archive.add(tmp_path / name, name)
    write_table(root / "stats.parquet", [{"url": "https://", "caption": "of a shard"}])
    for path in (root, root / f"{shards[0]}.tar"):
        line = refusal(path)
        assert "unpack each WebDataset shard into a folder of its own" in line
    monkeypatch.chdir(root)
    run_snippet("Unpack WebDataset shards")
    items, _ = read(root)
    found = {(item["split"], *item["captions"]) for item in items.values()}
    assert found == {(shard.split("/")[0], f"of {shard}") for shard in shards}


def test_layouts_that_are_not_read_say_how_to_convert_them(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/data-00000-of-00001.arrow").write_bytes(b"x")
    line = refusal(tmp_path / "disk")
    assert ".items(): split.to_parquet(f'{name}.parquet')" in line  # a DatasetDict
    assert "load_from_disk(folder).to_parquet('train.parquet')" in line
