"""Which classes and splits fetch_imagery finds: by folders, masks apart, names and params."""

from typing import Any

import pytest
from conftest import REPOSITORY
from test_imagery import error_of
from test_imagery_layouts import (
    KEY,
    captions_of,
    cell,
    draw,
    fetch,
    read,
    write_csv,
    write_json_lines,
    write_source,
    write_table,
)

from stages.common.artifacts import read_json
from stages.imagery.captions import caption_from_scene
from stages.imagery.mask_files import refuse_unnamed_masks
from stages.imagery.readers.items import scene_of
from stages.imagery.readers.open_source import open_source
from stages.imagery.skip_report import SkipReport
from stages.imagery.splits import match_splits, name_hash
from stages.imagery.survey import check_classes, check_survey, survey_items
from stages.params import Mask, load


def test_a_flat_folder_is_read_by_its_names_or_gets_one_caption(tmp_path, monkeypatch, capfd):
    draw(tmp_path / "names", *(f"{s}_{i}.jpg" for s in ("airport", "sea_ice") for i in range(2)))
    draw(tmp_path / "one/RSICD_images", "airport_1.jpg", "beach_1.jpg")
    for path, scenes in (("names", ["airport", "sea_ice"]), ("one", ["airport", "beach"])):
        items, _ = read(tmp_path / path)
        assert sorted({item["scene"] for item in items.values()}) == scenes
    # Neither numbers nor dates and places are classes.
    tiles = [f"T32UMD_2020{i:02d}01_{i}.png" for i in range(8)] + [f"{i}.png" for i in range(8)]
    draw(tmp_path / "tiles", *tiles)
    settings: dict[str, Any] = {"source": f"path:{tmp_path}/tiles", "valid": 2, "test": 2}
    line = error_of(tmp_path / "run", monkeypatch, **settings)
    assert "16 no class folder" in line and "fetch_imagery.caption" in line
    # With one caption, a single folder is no class either, even if params name it as one.
    (tmp_path / "tiles").rename(tmp_path / "lake")
    (tmp_path / "tiles").mkdir()
    (tmp_path / "lake").rename(tmp_path / "tiles/lake")
    settings |= {"caption": "a satellite tile", "classes": {"Water Body": ["lake"]}}
    rows = fetch(tmp_path / "run", monkeypatch, **settings)
    rows_of_all = [row for split_rows in rows.values() for row in split_rows]
    assert len(rows_of_all) == 16
    assert {(row["scene"], *row["captions"]) for row in rows_of_all} == {("", "a satellite tile")}
    assert "fetch_imagery.caption" in capfd.readouterr().err
    write_table(tmp_path / "table/a.parquet", [{"image": cell(i, None)} for i in range(3)])
    assert list(captions_of(tmp_path / "table", "a tile").values()) == [["a tile"]] * 3
    assert read(tmp_path / "table")[0] == {}
    table = [{"image": cell(i, f"a_{i}.png"), "labels": i} for i in range(3)]
    write_table(tmp_path / "table/a.parquet", table)
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/table")
    assert "3 no captions" in line and "its columns: image, labels; those read: captions" in line
    # With class folders, it isn't needed.
    draw(tmp_path / "mixed", "lake/1.png", "river/1.png", "loose.png")
    assert captions_of(tmp_path / "mixed", "a tile") == {"lake/1.png": [], "river/1.png": []}


def test_a_folder_of_masks_is_no_class(tmp_path):
    draw(tmp_path, *(f"{folder}/{name}_1.png" for folder in ("x", "masks") for name in "ab"))
    mask = Mask(file="../masks/{stem}.png", valid=[1])
    scenes = {
        item.name: item.scene
        for item in open_source(tmp_path, KEY, None, mask).read_items(False)
        if item.name.startswith("x/")
    }
    assert scenes == {"x/a_1.png": "a", "x/b_1.png": "b"}
    items = open_source(tmp_path, KEY, "seen from above", mask).read_items(False)
    assert {item.captions for item in items} == {"seen from above"}


@pytest.mark.parametrize(
    "image, mask, is_mask",
    [
        ("images/lake/0.jpg", "masks/lake/0.png", True),
        ("lake/0.jpg", "masks/lake/0.png", True),
        ("lake/0.jpg", "lake/masks/0.png", True),
        ("images/rgb/0.jpg", "labels/waterway/0.png", True),
        ("train/Images_png/0.png", "train/Masks_png/0_mask.png", True),
        ("train/0_sat.jpg", "train/0_mask.png", True),
        ("lake/0.jpg", "lake/0_label.png", True),
        ("0.jpg", "labels/0.png", True),
        ("images/0.tif", "masks/0.png", True),
        ("train/images/a.png", "train/targets/a_target.png", True),
        ("a/img/IMG_1.tif", "a/msk/MSK_1.tif", True),
        ("2_Ortho_RGB/a_2_RGB.tif", "5_Labels_all/a_2_label.tif", True),
        ("tiff/train/a.png", "tiff/train_labels/a.tif", True),
        ("image/6.jpg", "mask/6_lab.png", True),
        ("JPEGImages/0.jpg", "SegmentationClass/0.png", True),
        ("0.jpg", "SegmentationClass/0.png", True),
        ("train/0_sat.jpg", "train/0_sat_mask.png", True),
        ("lake/image_0.png", "lake/image_0.mask.png", True),
        ("lake/0_rgb.tif", "lake/0_nir.tif", True),
        ("0_co.png", "0_ir.png", True),
        ("lake/0.tif", "lake/0_DSM.tif", True),
        ("desert/0.jpg", "desert/0_souvenir.jpg", False),
        ("rgb_masks/lake/0.png", "rgb_masks/river/0.png", False),
        ("labels/images/0.png", "labels/images/river/0.png", False),
        ("lake/0.jpg", "target range/0.jpg", False),
        ("ground/0.jpg", "ground target/0.jpg", False),
        ("images_of_ships/0.jpg", "target/0.jpg", False),
        ("sat_0.jpg", "target_0.jpg", False),
        ("building/0.jpg", "building lab/0.jpg", False),
        ("images/a.png", "targets/a.png", True),
        ("lake/0.jpg", "label/0.png", False),
        ("images/lake/0.jpg", "images/Label/0.png", False),
        ("train/images/0.jpg", "test/masks/0.png", False),
        ("lake/0.jpg", "lake/1_mask.png", False),
        ("lake/sat.jpg", "lake/road_mask.png", False),
    ],
)
def test_masks_that_no_params_name_are_one_line(tmp_path, image, mask, is_mask):
    draw(tmp_path, image, mask)
    source = open_source(tmp_path, KEY, "seen from above")
    if not is_mask:
        refuse_unnamed_masks(source, KEY)
        return
    with pytest.raises(SystemExit, match=f"such as {mask} of {image}: move them elsewhere") as stop:
        refuse_unnamed_masks(source, KEY)
    # Params name masks of rasters alone.
    assert ("fetch_imagery.labels" in str(stop.value)) == image.endswith(".tif")
    rows = [{"file_name": name, "scene": name[0]} for name in (image, mask)]
    write_csv(tmp_path / "metadata.csv", rows)
    refuse_unnamed_masks(open_source(tmp_path, KEY), KEY)


def test_labels_of_images_that_are_no_rasters_say_how_to_convert_these(tmp_path, monkeypatch):
    draw(tmp_path / "in", "images/0.png", "masks/0.png")
    labels = {"file": "../masks/{stem}.png", "classes": {1: "lake", 2: "sea"}}
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in", labels=labels)
    assert "rio convert a.png a.tif (images/0.png " in line
    assert "fetch_imagery.caption" not in line


@pytest.mark.parametrize("name", ["tile_{}.png", "{}.png"])
@pytest.mark.parametrize(
    "field, value, told",
    [
        ("land_cover", "water", True),
        ("label", {"id": 0, "name": "water"}, True),
        ("category", "water", False),
    ],
)
def test_fields_that_may_be_the_class_are_told_where_none_gives_it(
    tmp_path, capsys, name, field, value, told
):
    rows = [
        {"file_name": name.format(i), "text": "a lake", field: value, "split": "train"}
        for i in range(3)
    ]
    write_source(tmp_path, "metadata.jsonl", rows)
    config = load(REPOSITORY / "params/demo.yaml").fetch_imagery
    source = open_source(tmp_path, KEY)
    check_survey(survey_items(source, SkipReport()), source, config, SkipReport())
    assert (f"no field gives a class; not read: {field} (" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    "labels, silent",
    [
        ([0, 1, 2.0], "0, 1, 2"),
        (["True", "False"], "False, True"),
        (["class_0", "class 1", "lake"], "class 1, class_0"),
        (["01_Trees", "02_Water"], "01_Trees, 02_Water"),
        (["aGrass", "bField", "cIndustry"], "aGrass, bField, cIndustry"),
        (["10_Trees", "80_Water"], "10_Trees, 80_Water"),
        (["111_Urban fabric", "311_Évora"], "111_Urban fabric, 311_Évora"),
        (["10_Trees", "lake"], ""),
        (["2_lane_road", "4_lane_road"], ""),
        (["1_lane_road", "lake"], ""),
        (["aGrass", "lake"], ""),
        (["1 storey", "2 storeys"], ""),
        (["Notre Dame", "yesteryear"], ""),
    ],
)
def test_classes_without_plain_names_are_told_where_captions_are_written_from_them(
    tmp_path, capsys, labels, silent
):
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    draw(tmp_path, *(row["file_name"] for row in rows))
    config = load(REPOSITORY / "params/demo.yaml").fetch_imagery
    for caption in ({}, {"text": "seen from above"}):
        write_csv(tmp_path / "metadata.csv", [row | caption for row in rows])
        source = open_source(tmp_path, KEY)
        check_survey(survey_items(source, SkipReport()), source, config, SkipReport())
        log = capsys.readouterr().err
        is_told = bool(silent) and not caption
        assert (f"warning: the classes {silent} have no plain names" in log) == is_told
        assert ("don't say in words" in log) == is_told


def test_classes_of_which_no_image_is_kept_are_told(tmp_path, monkeypatch, capfd):
    for scene in ("forest", "river"):
        draw(tmp_path / "in", *(f"{scene}/{i}.png" for i in range(30)), start=40 * len(scene))
    keeps = [
        name for name in (f"volcano/{i}.png" for i in range(99)) if name_hash(name, "keep") > 0.9
    ]
    draw(tmp_path / "in", keeps[0], start=900)
    fetch(
        tmp_path / "run",
        monkeypatch,
        source=f"path:{tmp_path}/in",
        classes={"Water Body": ["river", "volcano"]},
        max_images=20,
    )
    assert "classes: no image that is kept shows volcano (fetch_" in capfd.readouterr().err
    assert read_json(tmp_path / "run/data/imagery/REPORT.json")["scenes"] == 2


def test_classes_of_other_imagery_are_one_line(tmp_path):
    draw(tmp_path, "lake/1.png", "forest/2.png")
    survey = survey_items(open_source(tmp_path, KEY), SkipReport())
    with pytest.raises(
        SystemExit, match="^error: classes: .*airport, farm.* has forest, lake"
    ) as stop:
        check_classes(survey, {"Built": ["airport"], "Crops": ["farm"], "Ice": []})
    assert len(str(stop.value).splitlines()) == 1
    with pytest.raises(SystemExit, match=r"forrest \(did you mean forest\?\)"):
        check_classes(survey, {"Woods": ["forrest"]})
    with pytest.raises(SystemExit, match="has forest, lake: write classes with these"):
        check_classes(survey, {"Built": ["airport"]}, "labels.csv")  # which repeats the folders
    check_classes(survey, {"Built": ["airport"], "Water": ["lake"]})
    check_classes(survey, {"Built": [], "Water": []})


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("labels.csv", "filename,label\nnorth_1.png,lake\nsouth_1.png,sea", "has north, south: "),
        ("all.tsv", "id\tclass\nnorth_1\tlake\nsouth_1\tsea", "has north, south: "),
        ("labels.json", '{"north_1.png": "lake", "south_1.png": "sea"}', "has north, south: "),
        ("a.json", '[{"id": "north_1", "label": 0}, {"id": "south_1"}]', "has north, south: "),
        ("train.csv", "id,label\nnorth_1,lake\nsouth_1,sea", "seems to list a split and the cl"),
    ],
)
def test_a_list_of_classes_under_another_name_is_told_where_names_are_no_classes(
    tmp_path, monkeypatch, name, content, words
):
    draw(tmp_path / "in", "north_1.png", "south_1.png")
    (tmp_path / "in" / name).write_text(content)
    settings: dict = {"classes": {"Water Body": ["lake"]}, "source": f"path:{tmp_path}/in"}
    line = error_of(tmp_path / "run", monkeypatch, **settings)
    assert words in line and f"{name} seems to list" in line and "file_name" in line
    assert "folder" not in line


def test_a_list_of_classes_is_told_in_place_of_one_caption(tmp_path, monkeypatch):
    draw(tmp_path / "in", "train/a1.png", "train/a2.png", "test/b1.png")
    (tmp_path / "in/train.csv").write_text("id,label\na1,lake\na2,sea")
    (tmp_path / "in/sample_submission.csv").write_text("id,label\nb1,lake")
    line = error_of(tmp_path / "run", monkeypatch, source=f"path:{tmp_path}/in")
    assert "train.csv seems to list the classes" in line and "fetch_imagery.caption" not in line


def test_class_folders_beside_a_list_of_classes_are_told(tmp_path, monkeypatch):
    rows = [{"file_name": f"lake/{i}.png", "label": i % 2} for i in range(4)]
    write_source(tmp_path / "in", "metadata.csv", rows)
    settings: dict = {"classes": {"Water Body": ["lake"]}, "source": f"path:{tmp_path}/in"}
    line = error_of(tmp_path / "run", monkeypatch, **settings)
    assert line.startswith("error: classes: lake: these are folders") and "`scene`" in line


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["north_1.png", "south_2.png"]])
def test_class_folders_beside_a_list_are_told(tmp_path, names):
    files = [f"{folder}/{name}" for folder, name in zip(("lake", "forest"), names)]
    write_source(tmp_path, "metadata.csv", [{"file_name": f, "text": "from above"} for f in files])
    survey = survey_items(open_source(tmp_path, KEY), SkipReport())
    with pytest.raises(SystemExit, match="^error: classes: lake: these are folders .*`scene`"):
        check_classes(survey, {"Water": ["lake"], "Crops": ["farmland"]}, has_list=True)
    # Names give other scenes, or none.
    check_classes(survey, {"Crops": ["farmland"]}, has_list=True)


def test_folders_that_are_numbers_are_parts_of_captioned_images(tmp_path):
    """As img2dataset writes them, with a table of what it downloaded beside each."""
    for file in ("00000/x_1.png", "00001/y_1.png"):
        draw(tmp_path, file)
        (tmp_path / file).with_suffix(".txt").write_text("seen from above")
        table = (tmp_path / file).parent.with_suffix(".parquet")
        write_table(table, [{"url": "https://", "caption": "seen from above", "key": "000"}])
        table.with_name(f"{table.stem}_stats.json").write_text('{"count": 1, "successes": 1}')
    items = list(open_source(tmp_path, KEY).read_items(False))
    assert {scene_of(item) for item in items if item.image} == {"x", "y"}
    assert {item.name for item in items if item.skip_reason == "not read: .parquet"} == {
        "00000.parquet",
        "00001.parquet",
    }
    # Without caption files, the tables may be those of the images.
    for text in tmp_path.rglob("*.txt"):
        text.unlink()
    with pytest.raises(SystemExit, match="00000.parquet has no column `image`; it has url, capt"):
        open_source(tmp_path, KEY)


def test_names_of_captioned_tiles_that_are_no_classes_are_told(tmp_path, capsys):
    """These can be fine-tuned on. A field of classes says that something in params is wrong."""
    names = ["IMG_1.png", "DSC_1.png", "S2A_20210501_T32TQM_0_64.png"]
    draw(tmp_path, *names)
    rows = [{"file_name": name, "text": "a lake"} for name in names]
    write_json_lines(tmp_path / "metadata.jsonl", rows)
    survey = survey_items(open_source(tmp_path, KEY), SkipReport())
    assert survey.scenes == {"IMG": 1, "DSC": 1, "": 1}  # a date and a grid cell are no class
    check_classes(survey, {"Built": ["airport"]})
    log = capsys.readouterr().err
    assert "classes: no image shows any of their scenes (airport)" in log and "DSC, IMG" in log
    check_classes(survey, {"Built": ["IMG"], "Crops": ["S2A_20210501_T32TQM_0"]})
    survey.scenes.pop("DSC")  # also where one scene is left
    check_classes(survey, {"Built": ["IMG"], "Crops": ["S2A_20210501_T32TQM_0"]})
    check_classes(survey, {"Built": ["IMG"], "Crops": ["farm"]})
    line = "classes: no image shows S2A_20210501_T32TQM_0; a file name with a digit"
    assert capsys.readouterr().err.count(line) == 2
    write_json_lines(
        tmp_path / "metadata.jsonl", [row | {"class": f"C{i}"} for i, row in enumerate(rows)]
    )
    survey = survey_items(open_source(tmp_path, KEY), SkipReport())
    with pytest.raises(SystemExit, match="^error: classes: no image shows any"):
        check_classes(survey, {"Built": ["airport"]})


def test_classes_that_differ_in_case_are_one_line(tmp_path):
    draw(tmp_path, "train/Forest/1.png", "train/lake/1.png", "test/forest/2.png")
    survey = survey_items(open_source(tmp_path, KEY), SkipReport())
    with pytest.raises(
        SystemExit, match="'Forest' and 'forest' have the same name .* but for case"
    ):
        check_classes(survey, {})


@pytest.mark.parametrize(
    "scene, words",
    [("BareLand", "bare land"), ("bare_land", "bare land"), ("WaldÖdland", "wald ödland")],
)
def test_a_caption_has_the_words_of_the_class_name(scene, words):
    assert caption_from_scene(scene) == f"a satellite image of {words}"


def test_own_splits_by_their_names_and_those_that_are_not_used(tmp_path, capfd):
    for split in ("train", "dev", "eval"):
        draw(tmp_path, f"{split}/lake/1.png", f"{split}/sea/1.png")
    items, _ = read(tmp_path)
    counts: dict[str | None, int] = {}
    for item in items.values():
        counts[item["split"]] = counts.get(item["split"], 0) + 1
    undecided = dict.fromkeys(("train", "valid", "test"))
    assert match_splits(counts, undecided, "key") == (
        {"train": "train", "dev": "valid", "eval": "test"},
        [],
    )
    capfd.readouterr()
    match_splits(counts, undecided | {"train": "train", "test": "dev"}, "key")
    assert "2 images of the source's split eval" in capfd.readouterr().err
    counts = dict.fromkeys(("Train2017", "val2017", "test_set"), 1)
    assert match_splits(counts, undecided, "key") == (
        {"Train2017": "train", "val2017": "valid", "test_set": "test"},
        [],
    )
    draw(tmp_path / "coco", "train2017/lake/1.png", "val2017/sea/1.png", "test set/sea/2.png")
    items, _ = read(tmp_path / "coco")
    assert {item["split"] for item in items.values()} == {"train2017", "val2017", "test set"}
    for unclear in ("train val valid", "test val", "train other"):
        with pytest.raises(SystemExit):
            match_splits({split: 1 for split in unclear.split()}, undecided, "key")
