"""The report and the review: the paper's lines, known numbers, a page that stands alone, the same bytes twice."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages import report, review
from stages.common.artefacts import IMAGE, png, write_json, write_shards
from stages.embedded.scenes import SCENES, tiles
from stages.params import LULC_CLASSES
from stages.reporting import charts, grids, page, tables
from stages.reporting.comparable import differences

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = {"Bare Land": ["bareland", "desert"], "Crop Land": ["farmland"], "Cultivated Vegetation": ["orchard"],
           "Natural Vegetation": ["meadow"], "Snow Ice": ["snowfield"], "Water Body": ["lake", "coast"], "Woody Vegetation": ["forest"]}
SETTINGS = {"negative_prompt": "", "seed": 7, "scheduler": "pndm", "steps": 25, "guidance_scale": 3.0, "model": "0123456789abcdef"}
SETTING_FIELDS = [("negative_prompt", pa.string()), ("seed", pa.int64()), ("scheduler", pa.string()), ("steps", pa.int32()),
                  ("guidance_scale", pa.float64()), ("model", pa.string())]


# A repository after every other stage -------------------------------------------------------------------------------------

def cell(image) -> dict:
    return {"bytes": png(Image.fromarray(image)), "path": None}


def build(root: Path, per_scene: int = 2, size: int = 16, per_class: int = 3) -> Path:
    """Write what `report` reads: rendered scenes as images, plausible numbers."""
    count = per_scene * len(SCENES)
    looks = {name: list(tiles(seed, 0, count, size, look)) for name, seed, look in
             (("real", 1, "domain"), ("base", 2, "base"), ("tuned", 3, "domain"))}
    names = [f"{tile['scene']}_{i:05d}.png" for i, tile in enumerate(looks["real"])]
    write_shards(root / "data/imagery/train", (
        {"image": cell(tile["image"]), "filename": name} for tile, name in zip(looks["real"], names)),
        pa.schema([("image", IMAGE), ("filename", pa.string())]))
    write_shards(root / "data/imagery/test", (
        {"image": cell(tile["image"]), "captions": tile["captions"], "scene": tile["scene"], "filename": name}
        for tile, name in zip(looks["real"], names)), pa.schema([("image", IMAGE), ("captions", pa.list_(pa.string())),
                                                                 ("scene", pa.string()), ("filename", pa.string())]))
    sample = pa.schema([("image", IMAGE), ("filename", pa.string()), ("scene", pa.string()), ("caption", pa.string()),
                        ("prompt", pa.string()), *SETTING_FIELDS])
    for which in ("base", "tuned"):
        write_shards(root / f"data/samples/{which}", (
            {"image": cell(drawn["image"]), "filename": name, "scene": tile["scene"], "caption": tile["captions"][0],
             "prompt": tile["captions"][0], **SETTINGS} for drawn, tile, name in zip(looks[which], looks["real"], names)), sample)
    (root / "stages/embedded").mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "stages/embedded/figures.csv", root / "stages/embedded/figures.csv")
    with open(root / "stages/embedded/figures.csv", newline="") as file:
        figures = list(csv.DictReader(file))
    pick = {label: [tile for tile in looks["tuned"] if tile["scene"] in scenes] for label, scenes in CLASSES.items()}
    write_shards(root / "data/samples/figures", (
        {"image": cell(pick[row["label"]][copy % per_scene]["image"]), "filename": f"{row['figure']}_{copy}",
         "scene": row["label"], "caption": row["prompt"], "prompt": row["prompt"], **SETTINGS}
        for row in figures for copy in range(4)), sample)
    passages = pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))
    write_shards(root / "data/synthetic", (
        {"image": cell(pick[label][copy % len(pick[label])]["image"]), "row": 2 * number + copy % 2, "label": label,
         "prompt": f"satellite image, {label.lower()} \"{copy % 2}\" <b>", "writer": "extractive", "technique": "retrieval",
         "passages": [{"paper": "03_fields", "page": 1}] if copy else [], **SETTINGS}
        for number, label in enumerate(LULC_CLASSES) for copy in range(per_class)),
        pa.schema([("image", IMAGE), ("row", pa.int32()), ("label", pa.string()), ("prompt", pa.string()),
                   ("writer", pa.string()), ("technique", pa.string()), ("passages", passages), *SETTING_FIELDS]))

    def score(value: float, n: int) -> dict:
        return {"loss": 1.1, "average_accuracy": value - 0.02, "f1": value, "jaccard": value / 2, "overall_accuracy": value,
                "f1_macro": value - 0.01, "overall_accuracy_lo": value - 0.05, "overall_accuracy_hi": value + 0.05, "n": n}

    standard = {"refused": 0, "n": count, "n_real": count, "n_floor": count, "singular": 1}
    for name, value in {
            "fid": 2.1, "fid_infinity": 1.1, "sinkhorn": 0.3, "kid_x1000": 1.2, "precision": 0.8, "recall": 0.7, "density": 0.9,
            "coverage": 0.75}.items():
        standard |= {name: value, f"{name}_lo": value * 0.9, f"{name}_hi": value * 1.1, f"{name}_floor": value / 4,
                     f"{name}_base": value * 9}
    paper = {"refused": 0, "n": 8, "draws": 2, "singular": 1, "fid": 3.25, "fid_std": 0.5, "fid_floor": 0.6, "fid_base": 21.0}
    metrics = {
        "corpus": {"papers": 21, "papers_failed": 1, "papers_test": 4, "lines": 1500, "lines_test": 300, "characters": 99999},
        "llm": {"perplexity": 21.5, "perplexity_lo": 20.0, "perplexity_hi": 23.0, "perplexity_base": 60.0,
                "perplexity_base_lo": 55.0, "perplexity_base_hi": 65.0, "bits_per_character": 1.4,
                "bits_per_character_base": 1.9, "n": 4, "tokens": 9000,
                "train_loss": 3.1, "trainable_share": 0.01},
        "prompts": {"extractive": {"retrieval": {"count": 70, "asked": 90, "rejected": 20, "distinct_2": 0.8, "class_agreement": 0.95}},
                    "domain": {"zero_shot": {"count": 0, "asked": 28, "rejected": 28}}},
        "diffusion": {"train_loss": 0.21, "validation_loss": 0.22, "validation_loss_base": 0.5, "best_step": 300, "steps": 400},
        "fid": {"scene": {"standard": standard, "paper": paper}},
        "images": {"mismatch": {which: {"blocking": 1.0, "blocking_real": 1.0, "detail_ratio": ratio, "warned": int(ratio < 0.8)}
                                for which, ratio in (("tuned", 0.6), ("synthetic", 0.9))},
                   **{space: {which: {"memorised": 0.02, "memorised_lo": 0.01, "memorised_hi": 0.05, "limit": 1.0, "median": 2.0,
                                      "median_real": 2.1, "n": count} for which in ("tuned", "synthetic")}
                      for space in ("pixels", "scene")}},
        "agreement": {"text_agreement": 0.88, "text_agreement_lo": 0.85, "text_agreement_hi": 0.9, "text_agreement_base": 0.3,
                      "ceiling": 0.98, "n": count, "per_scene_min": 0.6, "class_agreement": 0.9, "class_agreement_lo": 0.8,
                      "class_agreement_hi": 0.95, "class_agreement_n": 21},
        "ceiling_lulc": score(0.93, 72), "ceiling_scenes": score(0.9, 96),
        "classify_lulc": {"synthetic_test": score(0.81, 70), "real_test": score(0.7, 72), "chance": 1 / 7, "n_train": 245},
        "classify_scenes": {"synthetic_test": score(0.6, 96), "real_test": score(0.66, 96), "chance": 1 / 12, "n_train": 300},
        "review": {"ratings": 0, "experts": 0}}
    for name, value in metrics.items():
        write_json(root / f"metrics/{name}.json", value)
    lulc, scenes = zip(LULC_CLASSES * 3, LULC_CLASSES[::-1] * 3), zip(SCENES * 4, SCENES * 4)
    plots = {"diffusion_loss": "step,train_loss,validation_loss\n0,0.6,0.5\n100,0.3,0.29\n200,0.25,0.24\n",
             "llm_loss": "step,loss\n10,4.4\n20,3.9\n30,3.6\n",
             "agreement_by_scene": "scene,tuned,base,real\n" + "".join(f"{scene},0.8,0.3,1.0\n" for scene in SCENES),
             "nearest_training": "generated,training,distance,real_percentile\n" + "".join(
                 f"{name},{name},0.{i + 1},0.{i}\n" for i, name in enumerate(names[:6])),
             "confusion_lulc": "actual,predicted\n" + "".join(f"{a},{b}\n" for a, b in lulc),
             "confusion_scenes": "actual,predicted\n" + "".join(f"{a},{b}\n" for a, b in scenes),
             "accuracy_by_class_lulc": "class,accuracy,n\n" + "".join(f"{label},0.7,9\n" for label in LULC_CLASSES)}
    (root / "metrics/plots").mkdir()
    for name, text in plots.items():
        (root / f"metrics/plots/{name}.csv").write_text(text)
    for folder in ("data/imagery", "data/papers", *(f"models/base/{role}" for role in report.ROLES)):
        source = {"source": "none" if folder.endswith(("writer", "vision", "classifier")) else "embedded", "licence": None}
        write_json(root / folder / "SOURCE.json", source | {"files": {"model.safetensors": "ab" * 32}})
    write_json(root / "data/imagery/REPORT.json", {"kept": {"train": 100, "valid": 10, "test": count}, "scenes": 12, "skipped": {},
                                                "near_duplicates": {"groups": 3, "train_test": 2, "excluded_from_test": 1}})
    write_json(root / "models/scene/config.json", {"model": "resnet18", "resolution": 64, "scenes": list(SCENES)})
    for key in ("lulc", "scenes"):
        write_json(root / f"models/classifier/{key}/config.json", {"model": "resnet18", "resolution": 64, "classes": []})
        write_json(root / f"models/classifier/{key}/context.json", {"weights": "none", "classes_without_real": []})
    shutil.copyfile(REPOSITORY / "tests/params.yaml", root / "params.yaml")
    return root


def outputs(root: Path) -> dict[str, bytes]:
    found = [file for file in (root / "metrics/report").rglob("*") if file.is_file()]
    found += [root / "metrics/table.md", root / "metrics/context.json"]
    return {str(file.relative_to(root)): file.read_bytes() for file in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = build(tmp_path_factory.mktemp("report"))
    code = "import sys, stages.report as report; report.main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": str(REPOSITORY)}, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return root


# Report -------------------------------------------------------------------------------------------------------------------

def test_table_has_every_line_of_the_papers_tables(made):
    text = (made / "metrics/table.md").read_text()
    for value in (*tables.TABLE_1.values(), *tables.TABLE_2.values(), "245.3629", "0.2", "30.5", "3.3855"):
        assert re.search(rf"\| {value} \|", text), value
    for title in (*tables.SCORES.values(), *LULC_CLASSES, "FID", "Sinkhorn", "Perplexity"):
        assert title in text
    assert "demo" in text and "| Bare Land | 3 |" in text
    assert "| 3.250 | std 0.500 of draws | floor 0.600, base 21.00 | 245.3629 | no: " in text
    assert "| 0.700 | 0.650 to 0.750 | chance 0.143, ceiling 0.930 |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_context_says_what_each_number_is(made):
    context = json.loads((made / "metrics/context.json").read_text())
    number = context["numbers"]["fid.scene.paper.fid"]
    assert number["paper"] == 245.3629 and number["n"] == 8 and number["extractor"] == "scene"
    assert len(number["weights"]) == 16 and number["generator"] == "0123456789abcdef" and number["comparable"].startswith("no")
    assert "demo" in context["scale"] and context["sources"]["papers"]["source"] == "embedded"
    assert context["sampling"]["resolution"] == 16 and context["sampling"]["scheduler"] == "pndm"


def test_what_compares_depends_on_what_was_run(made):
    sources = {role: {"source": "hub:someone/" + role} for role in ("imagery", "papers", "diffusion")}
    sources |= {"language": {"source": "hub:microsoft/phi-1_5"}}
    facts = tables.Facts(sources, {}, {"lulc": {"classes_without_real": ["Snow Ice"]}, "scenes": {}},
                         {"resolution": 512, "scheduler": "pndm", "steps": 50, "guidance_scale": 7.5, "model": "0"}, {}, {})
    metrics = {path.stem: json.loads(path.read_text()) for path in (made / "metrics").glob("*.json")}
    metrics["fid"]["inception2048"] = {"paper": {"n": 250, "fid": 100.5, "fid_floor": 60.0},
                                       "paper_padded": {"n": 250, "fid": 240.5, "fid_floor": 230.0}}
    found = {row.key: row for table in tables.tables(metrics, facts) for row in table.rows}
    assert found["fid.inception2048.paper.fid"].comparable.startswith("in part")
    assert found["fid.inception2048.paper_padded.fid"].comparable.startswith("in part")
    assert "alone moves FID (inception2048 features) from 100.5 to 240.5; real training tiles without one score 230.0" in (
        tables.tables(metrics, facts)[2].note)
    assert found["fid.scene.paper.fid"].comparable.startswith("no: scene features")
    assert found["llm.perplexity"].comparable.startswith("in part: the same model")
    assert found["classify_lulc.synthetic_test.loss"].comparable.startswith("in part")
    assert "No real tile shows Snow Ice" in tables.tables(metrics, facts)[0].note and "demo" not in facts.scale


def test_copies_look_alikes_and_mismatches_are_told(made):
    text = (made / "metrics/table.md").read_text()
    assert "| FID at infinitely many images, scene features | 1.100 | 0.990 to 1.210 | floor 0.275, base 9.900 |" in text
    assert "| Sinkhorn divergence of scene features | 0.300 |" in text
    assert "test captions, pixels, flips and rotations included | 0.020 | 0.010 to 0.050 | expected 0.010 |" in text
    assert "**The images of tuned are compressed, resized or blurred" in text and "images of synthetic" not in text
    assert "in both training and test: 2; test tiles left out for it: 1" in text


def test_what_does_not_compare_is_named(made):
    """Another model compares; another number of images, other tiles, another judge don't; a number of one run alone is said."""
    ours = json.loads((made / "metrics/context.json").read_text())
    theirs = json.loads(json.dumps(ours))
    for number in theirs["numbers"].values():
        number |= {"generator": "another model"} if "generator" in number else {}
    assert differences(ours, theirs) == {}
    theirs["numbers"]["fid.scene.standard.fid"] |= {"n": 1093, "weights": "fedcba9876543210"}
    del theirs["numbers"]["llm.perplexity"]
    found = differences(ours, theirs)
    assert set(found) == {"fid.scene.standard.fid", "llm.perplexity"} and found["llm.perplexity"] == "only in the first run"
    assert "n: 24 and 1093" in found["fid.scene.standard.fid"] and "weights: " in found["fid.scene.standard.fid"]


def test_page_stands_alone(made):
    folder = made / "metrics/report"
    text = (folder / "index.html").read_text()
    local = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(local) > 30 and not [address for address in local if address.startswith(("http", "//", "/"))]
    assert all((folder / address).is_file() for address in local if not address.startswith("#"))
    assert {address[1:] for address in local if address.startswith("#")} <= set(re.findall(r'id="([^"]*)"', text))
    assert "@import" not in text and "url(http" not in text and not re.search(r"\bNone\b|undefined", text.split("<script>")[0])
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert "&lt;b&gt;" in text and "\"0\" <b>" not in text, "prompts are text, not markup"
    assert "No expert has rated" in text and "03_fields, page 1" in text
    assert len(list((folder / "gallery").glob("*-generated-*.png"))) == 2 * 7      # report.gallery_per_class of tests/params.yaml


def test_grids_have_a_row_per_scene_and_a_cell_per_caption(made):
    folder = made / "metrics/report/grids"
    size = {path.stem: Image.open(path).size for path in folder.glob("*.png")}
    assert set(size) == {"real", "base", "tuned", "base_tuned", "synthetic", "figures", "nearest"}
    pitch = grids.SIDE + grids.GAP
    assert size["real"] == size["base"] == size["tuned"] == (32 + 130 + 2 * pitch - 4, 32 + 12 * pitch - 4)
    assert size["synthetic"][1] == size["figures"][1] == 2 * grids.MARGIN + 7 * pitch - 4

    # The first cell of each grid is the same row of its own folder.
    for name, path in (("real", "data/imagery/test"), ("base", "data/samples/base"), ("tuned", "data/samples/tuned")):
        row = next(row for row in pq.read_table(made / path).to_pylist() if row["scene"] == "bareland")
        expected = grids.tile(Image.open(io.BytesIO(row["image"]["bytes"])))
        box = (grids.MARGIN + 130, grids.MARGIN, grids.MARGIN + 130 + grids.SIDE, grids.MARGIN + grids.SIDE)
        assert Image.open(folder / f"{name}.png").crop(box).tobytes() == expected.tobytes()


def test_same_bytes_twice(made, monkeypatch):
    before = outputs(made)
    monkeypatch.chdir(made)
    report.main()
    assert outputs(made) == before


def test_refused_and_missing_parts_are_said(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    refused = {"refused": 1, "n": 5, "n_needed": 8}
    write_json("metrics/fid.json", {"scene": {"standard": refused, "paper": refused}})
    (tmp_path / "run/metrics/plots/accuracy_by_class_lulc.csv").write_text("class,accuracy,n\n")
    report.main()
    assert "refused: 5 images, 8 needed" in Path("metrics/table.md").read_text()
    Path("metrics/agreement.json").unlink()
    with pytest.raises(SystemExit, match="metrics/agreement.json: missing"):
        report.main()


def test_chart_text_is_text_and_colours_are_the_pages():
    drawn = charts.bars("a chart", ["<i>", "$x_1$"], {"one": [0.5, 1.0], "two": [0.0, 0.25]}, "share")
    assert "&lt;i&gt;" in drawn and "$x_1$" in drawn and "var(--two)" in drawn and not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert drawn == charts.bars("a chart", ["<i>", "$x_1$"], {"one": [0.5, 1.0], "two": [0.0, 0.25]}, "share")


def test_large_pictures_are_shrunk_and_small_ones_kept(tmp_path):
    image = pa.schema([("image", IMAGE)])
    write_shards(tmp_path / "rows", [{"image": {"bytes": png(Image.new("RGB", (side, side), "navy")), "path": None}}
                                     for side in (64, 512, 32)], image)
    found = grids.pictures(tmp_path / "rows", {0, 1})
    assert {place: picture.width for place, picture in found.items()} == {0: 64, 1: grids.LARGEST}
    assert page.save(found[0], tmp_path, "gallery/a") == "gallery/a.png" and page.save(found[1], tmp_path, "b") == "b.jpg"
    assert Image.open(tmp_path / "gallery/a.png").tobytes() == found[0].tobytes() and (tmp_path / "b.jpg").is_file()


def test_long_names_stay_in_their_column():
    font = grids.ImageFont.load_default(15)
    lines = grids.wrap("a_scene_whose_name_is_one_very_long_word and more words than fit", font, 100, 2)
    assert len(lines) == 2 and all(font.getlength(line) <= 100 for line in lines) and lines[1].endswith("...")


# Review -------------------------------------------------------------------------------------------------------------------

def rate(folder: Path, rows: list[dict], name: str = "a.csv") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    blank = dict.fromkeys(review.COLUMNS, "") | {"run": "r", "rater": "ada", "truth": "real", "answer": "real", "realism": "3"}
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, review.COLUMNS)
        writer.writeheader()
        writer.writerows(blank | row for row in rows)


def test_no_ratings_is_a_clean_empty_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/reviews").mkdir(parents=True)
    (tmp_path / "data/reviews/.gitkeep").touch()
    review.main()
    assert json.loads(Path("metrics/review.json").read_text()) == {"ratings": 0, "experts": 0}


def test_known_ratings_give_known_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = [{"tile": f"t{i}", "realism": str(mark)} for i, mark in enumerate((3, 2, 3, 3))]
    made = [{"tile": f"g{i}", "truth": "generated", "answer": answer, "realism": "2", "label": "Snow Ice", "label_answer": named}
            for i, (answer, named) in enumerate((("generated", "Snow Ice"), ("real", "Bare Land"), ("real", "")))]
    rate(tmp_path / "data/reviews", real + made)
    # A second expert's mark of the first tile: the tile's mean is 2, so the tiles' are 2, 2, 3, 3.
    again = {"rater": "bob", "tile": "t0", "realism": "1", "artefacts": "blur; wrong scale"}
    rate(tmp_path / "data/reviews", [again], "b.csv")
    review.main()
    found = json.loads(Path("metrics/review.json").read_text())
    assert found["ratings"] == 8 and found["experts"] == 2
    error = 3.182446305284263 * math.sqrt(1 / 3) / math.sqrt(4)                     # Student's t with 3 degrees of freedom
    realism = [found[f"realism_real{end}"] for end in ("", "_lo", "_hi", "_n")]
    assert realism == pytest.approx([2.5, 2.5 - error, 2.5 + error, 4])
    assert found["realism_generated"] == found["realism_generated_lo"] == found["realism_generated_hi"] == 2
    # 6 of 8 right; the ends p of Wilson's interval solve |p - 6/8| = z sqrt(p (1 - p) / 8).
    assert found["detection_accuracy"] == 0.75 and found["detection_chance"] == 0.5
    for bound in (found["detection_accuracy_lo"], found["detection_accuracy_hi"]):
        assert abs(bound - 0.75) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 8), rel=1e-6)
    assert found["class_agreement"] == 0.5 and found["class_agreement_n"] == 2


@pytest.mark.parametrize(("row", "said"), [
    ({"truth": "fake"}, "truth is 'fake'"), ({"answer": ""}, "answer is ''"), ({"realism": "6"}, "realism is '6'"),
    ({"realism": "4.5"}, "realism is '4.5'"), ({"rater": " "}, "rater is blank"), ({"label": "Beach"}, "label is 'Beach'"),
    ({"artefacts": "blur;ugly"}, "artefacts has 'ugly'"), ({"tile": "good"}, "already in data/reviews/a.csv:2")])
def test_a_bad_rating_is_one_line_with_file_and_row(row, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rate(tmp_path / "data/reviews", [{"tile": "good"}, {"tile": "bad"} | row])
    with pytest.raises(SystemExit) as end:
        review.main()
    assert str(end.value).startswith("error: data/reviews/a.csv:3: ") and said in str(end.value)
    assert "\n" not in str(end.value)
    assert not Path("metrics/review.json").exists()


@pytest.mark.parametrize(("content", "said"), [
    (b"run,rater\n1,2\n", "no column tile"), (b"\xff\xfe\x00", "cannot be read"), (b"", "no column run"),
    (",".join(review.COLUMNS).encode() + b"\nr,ada,t\n", ":2: expected 10 fields")])
def test_a_file_that_is_no_ratings_file_is_one_line(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/reviews").mkdir(parents=True)
    (tmp_path / "data/reviews/x.csv").write_bytes(content)
    with pytest.raises(SystemExit) as end:
        review.main()
    assert "data/reviews/x.csv" in str(end.value) and said in str(end.value) and "\n" not in str(end.value)
