"""Names of classes and scenes in any script, with any signs: metrics, report, cards, exports."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from report_run import build, image_cell, selection_counts

from stages.common.artifacts import IMAGE, read_json, write_json, write_shards
from stages.common.class_names import slug
from stages.common.markdown import code_span, escape_markdown
from tools.export import choose_file_name

NAMES = [
    'Say "tree", twice',
    "a.b/c",
    "Öde Fläche",
    "water 🌊",
    "cost $5, $x_1$",
    "pipe | cell",
    "<b>bold</b> & co",
    "水体与湿地",
    "أراضي زراعية",
    "`code` [link](x) *st*r",
]


# Metrics -----------------------------------------------------------------------------------------


def test_scenes_are_one_level_of_the_metrics_whatever_their_names():
    from stages.evaluation.caption_agreement import caption_agreement

    logits = dict.fromkeys(("tuned", "base", "test"), np.eye(len(NAMES)))
    wanted = dict.fromkeys(logits, NAMES)
    metrics, table = caption_agreement(logits, wanted, NAMES, NAMES)
    assert list(metrics["per_scene"]) == [slug(name) for name in NAMES]
    assert not [key for key in metrics["per_scene"] if re.search(r"[^\w-]", key)]
    assert [row["scene"] for row in table] == NAMES


def test_tables_of_plots_hold_the_names_themselves(tmp_path):
    from stages.common.csv_files import write_csv

    write_csv(tmp_path / "a.csv", [{"class": name, "n": 1} for name in NAMES], ["class", "n"])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == NAMES


@pytest.mark.parametrize(
    "scenes, words",
    [
        (["lake", "a.b", "a/b"], ["'a.b'", "'a/b'", "a-b"]),
        (["lake", "forest", "🌊"], ["'🌊'"]),
    ],
)
def test_scenes_that_metrics_cannot_tell_apart_are_one_line(scenes, words, capsys):
    from collections import Counter

    from stages.imagery.survey import Survey, check_classes

    with pytest.raises(SystemExit) as error:
        check_classes(Survey(scenes=Counter(scenes)), {})
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    check_classes(Survey(scenes=Counter(NAMES)), {NAMES[0]: NAMES[:1]})


# The report --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The texts of a page: of headings of the gallery, of SVG labels, and all ids."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, dict]] = []
        self.headings: list[str] = []
        self.labels: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, text):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "h3" and str(attributes.get("id")).startswith("gallery-"):
            self.headings.append(text)
        if tag == "text":
            self.labels.append(text.strip())

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass


@pytest.fixture(scope="module")
def selected(tmp_path_factory) -> Path:
    """The report of a run whose classes are its scenes, and whose images were selected."""
    from stages import report

    root = build(
        tmp_path_factory.mktemp("names"),
        classes={name: [name] for name in NAMES},
        scenes=NAMES,
    )
    counts = selection_counts(3) | {"drawn": 6, "rejected_caption": 2, "rejected_duplicate": 1}
    counts["rejection_rate"] = 0.5
    by_slug = {slug(name): counts for name in NAMES}
    write_json(root / "metrics/select.json", counts | {"per_class": by_slug})
    agreement = read_json(root / "metrics/caption_agreement.json")
    kept = {k: value for k, value in agreement.items() if not k.startswith("class_agreement")}
    write_json(root / "metrics/caption_agreement.json", kept)
    images = read_json(root / "metrics/images.json")
    write_json(
        root / "metrics/images.json", images | {"scene": {"tuned": images["scene"]["tuned"]}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main()
    return root


def read_markdown_table(text: str, title: str) -> list[list[str]]:
    """The cells of a table, as a reader sees them."""
    lines = text.split(f"## {title}")[1].split("\n##")[0].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows[2:]]


def test_the_tables_name_each_class_with_its_counts(selected):
    text = (selected / "metrics/table.md").read_text(encoding="utf-8")
    rows = read_markdown_table(text, "Table 2")
    assert [row[0] for row in rows] == [*NAMES, "all"]
    # Name, ours, reference: the paper knows none of these classes.
    assert rows[0][1:] == ["3", "prompts 2, real training tiles 24"]
    rows = read_markdown_table(text, "Selection of synthetic images")
    assert [row[0] for row in rows] == [*NAMES, "all"]
    assert rows[0][1] == "0.500"
    assert re.findall(r"\d+", rows[0][2]) == ["6", "3", "2", "1", "0", "0"]
    metrics = [row[0].lower() for row in read_markdown_table(text, "Table 3")]
    assert metrics and not [name for name in metrics if "class agreement" in name]
    numbers = read_json(selected / "metrics/context.json")["numbers"]
    assert numbers["synthetic.a-b-c"]["metric"] == "a.b/c"
    assert not [key for key in numbers if re.search(r"[^\w.-]", key)]


def test_the_page_shows_the_names_and_no_markup_in_them(selected):
    page = Page((selected / "metrics/report/index.html").read_text(encoding="utf-8"))
    assert page.headings == NAMES
    assert len(page.ids) == len(set(page.ids))
    assert set(NAMES) <= set(page.labels)
    assert not [label for label in page.labels if "⟨" in label]


def test_the_page_says_that_the_figures_are_of_other_classes(selected):
    page = (selected / "metrics/report/index.html").read_text(encoding="utf-8")
    assert "Figure 4: Bare Land" in page and "of the paper's classes, none of which" in page


def test_a_class_without_images_and_one_without_real_tiles_are_shown(tmp_path, monkeypatch):
    """And one of 0 prompts is not."""
    import yaml

    from stages import report

    root = build(tmp_path)
    monkeypatch.chdir(root)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["classes"] |= {"水体": ["水"], "Unused": ["parking"]}
    params["prompt"]["per_class"] = dict.fromkeys(params["classes"], 2) | {"Unused": 0}
    Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True, sort_keys=False))
    with open("metrics/plots/images_per_class.csv", "a", encoding="utf-8") as file:
        file.write("水体,0,0,0\nUnused,0,0,24\n")
    report.main()
    text = Path("metrics/table.md").read_text(encoding="utf-8")
    rows = read_markdown_table(text, "Table 2")
    assert rows[-2][:2] == ["水体", "0"]
    assert "Left out, with 0 prompts: Unused." in text
    assert "388" not in text, "the paper's total is of the paper's classes"
    page = Page(Path("metrics/report/index.html").read_text(encoding="utf-8"))
    assert page.headings == [name for name in params["classes"] if name != "Unused"]
    assert "水体 (none)" in page.labels


@pytest.mark.parametrize("count", [2, 41])
def test_charts_of_any_number_of_classes(count):
    from stages.reporting import charts

    names = (NAMES * 10)[:2] + [f"class {i} {NAMES[i % 10]}" for i in range(count - 2)]
    pairs = list(zip(names, names[::-1]))
    svg = charts.confusion_matrix("confusion", pairs, names)
    assert svg.count("<text") >= 2 * count
    rates = {"accuracy": [0.5] * count}
    svg += charts.bar_chart("accuracy", names, rates, "accuracy", [(0.4, 0.6)] * count)
    assert set(names) <= set(Page(svg).labels)


def test_a_name_that_no_font_has_is_a_number_in_a_picture():
    from stages.reporting.fonts import find_font
    from stages.reporting.grids import GridRow, draw_grid

    unknown = "\U0010fffd\U0010fffc"  # for private use
    assert find_font("Bare Land") == ""
    assert find_font("Öde Fläche") and find_font("Лес, Δάσος")
    assert find_font(unknown) is None
    cells = [[Image.new("RGB", (8, 8), "green")]]
    grid = draw_grid([GridRow(unknown, "", cells), GridRow("lake", unknown, cells)])
    assert grid.names == [unknown]
    expected = draw_grid([GridRow("(1)", "", cells), GridRow("lake", "(1)", cells)])
    assert grid.image.tobytes() == expected.image.tobytes() and not expected.names


def test_markdown_shows_any_name():
    for name in NAMES:
        assert re.sub(r"\\(.)", r"\1", escape_markdown(name)) == name
        assert "|" not in re.sub(r"\\\|", "", escape_markdown(name))
    assert code_span("classes.Bare Land") == "`classes.Bare Land`"
    assert code_span("`a` | ``b") == "``` `a` \\| ``b ```"


# Cards and exports -------------------------------------------------------------------------------


def test_an_exported_file_never_takes_the_name_of_another():
    taken: set[str] = set()
    originals = ["x_0000002.png", "x.png", "x.jpg", "x.tif", "", "X.png"]
    names = [choose_file_name(name, number, taken) for number, name in enumerate(originals)]
    assert len({name.lower() for name in names}) == len(names) and ".png" not in names


def test_exports_keep_the_names_and_make_safe_file_names(tmp_path, monkeypatch):
    import rasterio
    from datasets import load_dataset

    from stages.diffusion.marked_png import SETTINGS
    from stages.publishing.card import list_classes
    from stages.publishing.folders import write_labeled_shards
    from tools.export import export_geotiffs

    monkeypatch.chdir(tmp_path)
    cell = image_cell(np.zeros((8, 8, 3), np.uint8))
    rows = [dict.fromkeys(SETTINGS, "1") | {"image": cell, "label": name} for name in NAMES]
    text_columns = [(name, pa.string()) for name in ("label", *SETTINGS)]
    schema = pa.schema([("image", IMAGE), *text_columns])
    write_shards("data/synthetic", rows, schema)

    write_labeled_shards(Path("data/synthetic"), Path("out/data"), NAMES)
    data = load_dataset("out", split="train", cache_dir="cache")
    assert data.features["label"].names == NAMES and data["label"][:] == list(range(len(NAMES)))

    export_geotiffs("synthetic", Path("tiffs"))
    files = sorted(Path("tiffs").iterdir(), key=lambda path: path.stem[-5:])
    assert [path.name for path in files][1:3] == ["a-b-c_00001.tif", "Öde-Fläche_00002.tif"]
    assert not [path for path in files if re.search(r"[^\w.-]", path.name)]
    with rasterio.open(files[-1]) as tiff:
        assert tiff.tags()["CLASS"] == NAMES[-1]

    write_json("metrics/select.json", {"per_class": {slug(NAMES[0]): {"kept": 3}}})
    rows = list_classes({name: [name] for name in NAMES})
    assert [row["images"] for row in rows] == ["3"] + ["0"] * (len(NAMES) - 1)
    assert [re.sub(r"\\(.)", r"\1", row["name"]) for row in rows] == NAMES


# Several labels of a tile ------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    from stages.imagery.readers.open_source import open_source

    with pytest.raises(SystemExit) as error:
        list(open_source(folder, "fetch_imagery.source", None).read_items(False))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "column, fields",
    [
        ("label", [("label", pa.list_(pa.string()))]),
        ("labels", [("labels", pa.list_(pa.int64()))]),
        ("Pastures, Urban", [("Pastures", pa.int64()), ("Urban", pa.int64())]),
        ("Pastures, Urban", [("Pastures", pa.bool_()), ("Urban", pa.bool_())]),
    ],
)
def test_several_labels_in_a_table_are_one_line_that_says_what_to_do(tmp_path, column, fields):
    cell = image_cell(np.zeros((8, 8, 3), np.uint8))
    values = {pa.int64(): 1, pa.bool_(): True}
    lists = {name: [] for name, type_ in fields if type_ not in values}
    row = {"image": cell, **{name: values.get(type_) for name, type_ in fields}, **lists}
    write_shards(tmp_path / "tiles", [row] * 2, pa.schema([("image", IMAGE), *fields]))
    message = refusal(tmp_path / "tiles")
    assert column in message and "one label per tile" in message and "scene" in message


@pytest.mark.parametrize(
    "name, content",
    [
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "label": ["Pastures", "Urban"]})),
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "labels": ["Pastures", "Urban"]})),
        ("metadata.csv", "file_name,label\na.png,\"['Pastures', 'Urban']\"\n"),
    ],
)
def test_several_labels_in_a_list_are_one_line_that_says_what_to_do(tmp_path, name, content):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    assert "one label per tile" in refusal(tmp_path)


def test_bigearthnet_is_one_line_that_says_what_to_do():
    from stages.imagery.torchgeo_datasets import open_torchgeo

    with pytest.raises(SystemExit, match="BigEarthNet: .*one label per tile"):
        open_torchgeo("torchgeo:BigEarthNet", "fetch_imagery.source", False)
