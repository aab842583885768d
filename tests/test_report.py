"""The report: the paper's lines, known numbers, a page that stands alone, the same bytes twice."""

import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY
from PIL import Image
from report_run import CLASSES, SYNTHETIC_SCHEMA, TEST_SCHEMA, build, image_cell
from safetensors.numpy import load_file

from stages import report
from stages.common.artifacts import IMAGE, read_json, read_rows, write_json, write_shards
from stages.params import load
from stages.reporting import (
    charts,
    fonts,
    further_metrics,
    grids,
    image_grids,
    page,
    rows,
    sweeps,
    tables,
)
from stages.reporting.album import Album
from stages.reporting.context import RunContext, read_context
from stages.reporting.measured_on import measured_on
from stages.text.class_words import complete_words
from tools.comparable import (
    describe_devices,
    describe_difference,
    find_description,
)


def outputs(root: Path) -> dict[str, bytes]:
    """The bytes of all outputs of the stage, by path."""
    files = [file for file in (root / "metrics/report").rglob("*") if file.is_file()]
    files += [root / "metrics/table.md", root / "metrics/context.json"]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = build(tmp_path_factory.mktemp("report"))
    code = "import sys, stages.report as report; report.main(); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def metrics(made) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (made / "metrics").glob("*.json")}


# Tables ------------------------------------------------------------------------------------------


def table_row(text: str, metric: str) -> list[str]:
    """The cells of the one row of metrics/table.md whose first cell starts with `metric`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {metric}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_has_every_line_of_the_papers_tables(made):
    text = (made / "metrics/table.md").read_text()
    for value in (
        *tables.TABLE_1.values(),
        *tables.read_paper_table().values(),
        "388",
        tables.FID,
        tables.SINKHORN,
        tables.PERPLEXITY,
        tables.LLM_LOSS,
    ):
        assert f"| {value} |" in text, value
    for title in (*tables.SCORES.values(), *CLASSES, "FID", "Sinkhorn", "Perplexity"):
        assert title in text
    assert "demo" in text
    assert table_row(text, "Bare Land")[1] == "3"
    _, ours, spread, reference, paper, comparable = table_row(
        text, "FID, scene features, the paper's protocol (N = 8)"
    )
    assert ours == "3.250"
    assert spread == "-"
    assert reference.startswith("standard deviation over draws 0.500")
    assert re.findall(r"\d+\.\d+", reference) == ["0.500", "0.600", "21.00"]
    assert paper == "245.3629"
    assert comparable.startswith("no: ")
    cells = table_row(text, "Test Overall Accuracy, real tiles |")
    assert cells[1:3] == ["0.700", "0.650 to 0.750"]
    assert re.findall(r"\d+\.\d+", cells[3]) == ["0.143", "0.250", "0.930", "0.880", "0.980"]
    # Chance, the majority class, the classifier trained on real tiles with its interval.
    cells = table_row(text, "Test Overall Accuracy, real tiles / that of")
    assert cells[1:3] == ["0.753", "0.600 to 0.950"]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_table_has_intervals_references_and_near_copies(made):
    text = (made / "metrics/table.md").read_text()
    _, ours, interval, reference, *_ = table_row(text, "FID extrapolated")
    assert (ours, interval) == ("1.100", "0.990 to 1.210")
    # Real vs. real, its prediction interval, the base model.
    assert re.findall(r"\d+\.\d+", reference) == ["0.275", "0.138", "0.550", "9.900"]
    assert table_row(text, "Sinkhorn divergence")[1] == "0.300"
    # The base model, chance among twelve scenes, real tiles.
    reference = table_row(text, "Caption agreement: generated")[3]
    assert reference == "base model 0.300, chance 0.083, real tiles 0.980"
    assert table_row(text, "Class agreement: synthetic")[3] == "chance 0.150"
    cells = table_row(text, "Near-copies of training images, images of the test captions, pixels")
    assert cells[1:3] == ["0.020", "0.010 to 0.050"]
    assert cells[3].endswith("0.014")


def test_table_warns_of_compression_artifacts_and_near_duplicates(made, metrics):
    warned = metrics["images"]["compression_artifacts"]
    assert (warned["tuned"]["warned"], warned["synthetic"]["warned"]) == (1, 0)
    note = further_metrics.artifacts_note(warned)
    assert "0.60" in note and "0.90" not in note
    text = (made / "metrics/table.md").read_text()
    assert note.strip() in text
    # The set's FID isn't measured: that is of the images of the test captions.
    synthetic = further_metrics.artifacts_note({"synthetic": warned["tuned"]})
    assert "distance" in note and "distance" not in synthetic
    assert "its near-copies and the classifier trained on it include" in synthetic
    # Most real tiles are of one color: nothing to compare their detail with.
    flat = {"tuned": {"blocking": 1.2, "blocking_real": 1.0, "warned": 1}}
    assert "detail" not in further_metrics.artifacts_note(flat)
    # 2 groups of near-duplicates in two splits, 1 test tile left out.
    assert re.search(r"near-duplicates\D* 2;\D* 1\.", text)


def test_table_warns_of_sets_with_more_near_copies_than_expected(metrics):
    assert further_metrics.near_copies_note(metrics["images"]) == ""
    copied = metrics["images"]["pixels"]["tuned"] | {"memorized": 0.9, "memorized_lo": 0.86}
    unexpected = {key: copied[key] for key in copied if key != "memorized_expected"}
    images = metrics["images"] | {"pixels": {"tuned": copied, "synthetic": unexpected}}
    table = further_metrics.further_metrics_table(metrics | {"images": images}, run_on_rsicd())
    (warning,) = re.findall(r"\*\*[^*]*captions\*\*: ([^*]*)", table.note)
    assert re.findall(r"0\.\d+", warning)[:2] == ["0.900", "0.014"]


def test_figures_of_the_runs_own_classes_need_no_note(made):
    page = (made / "metrics/report/index.html").read_text()
    assert "Figure 4: Bare Land" in page and "of the paper's classes, none of which" not in page


def test_bold_words_of_a_note_keep_the_spaces_around_them():
    row = rows.Row("key", "metric", 1.0, "")
    text = rows.to_markdown([rows.Table("", [row], "On average. **Blur** differs by * 2.")], "s")
    assert "On average. **Blur** differs by \\* 2." in text


def test_the_floor_and_the_expected_share_may_be_missing(metrics):
    """Of few training tiles, or of test tiles in another mix of classes."""
    fid = json.loads(json.dumps(metrics["fid"]))
    for protocol in fid["scene"].values():
        for key in [key for key in protocol if "floor" in key]:
            del protocol[key]
    fid["scene"]["paper_padded"] = fid["scene"]["paper"] | {"fid": 9.25}
    images = json.loads(json.dumps(metrics["images"]))
    for space in ("pixels", "scene"):
        del images[space]["synthetic"]["memorized_expected"]
    built = tables.build_tables(metrics | {"fid": fid, "images": images}, run_on_rsicd())
    text = rows.to_markdown(built, "small")
    assert "from 3.250 to 9.250.\n" in text
    assert not [row for table in built for row in table.rows if "real vs. real" in row.references]
    cells = table_row(text, "Near-copies of training images, synthetic set, pixels")
    assert cells[3] == "-"
    assert "share isn't known for the synthetic set" in text
    for key in ("memorized_expected", "memorized_lo", "memorized_hi"):  # of tiles cut from scenes
        del images["pixels"]["tuned"][key]
    assert "share isn't known**: the held-out" in further_metrics.unexpected_note(images)
    assert further_metrics.near_copies_note(images) == ""
    full = rows.to_markdown(tables.build_tables(metrics, run_on_rsicd()), "small")
    assert "isn't known" not in full


def test_the_table_says_that_intervals_count_sites(metrics):
    standard = metrics["fid"]["scene"]["standard"] | {"n_real": 256, "n_sites": 5}
    fid = {"scene": metrics["fid"]["scene"] | {"standard": standard}}
    table = tables.generation_table(fid, metrics["diffusion"], run_on_rsicd())
    assert "256 test tiles were cut from 5 site(s)" in table.note
    table = tables.generation_table(metrics["fid"], metrics["diffusion"], run_on_rsicd())
    assert "site(s)" not in table.note


def test_a_judge_trained_in_the_run_is_said_to_know_the_floor(metrics):
    context = run_on_rsicd()
    for trained in (True, False):
        run = replace(context, trained_judge=trained)
        table = tables.generation_table(metrics["fid"], metrics["diffusion"], run)
        assert ("was trained on these training tiles" in table.note) == trained


def run_on_rsicd() -> RunContext:
    """A run of the paper's recipe on its imagery."""
    sources = {
        "imagery": {"source": "hub:arampacha/rsicd@0123"},
        "papers": {"source": "hub:someone/papers"},
        "diffusion": {"source": "hub:someone/diffusion"},
        "language": {"source": "hub:microsoft/phi-1_5"},
    }
    sampling = {"resolution": 512, "scheduler": "pndm", "steps": 50, "guidance_scale": 7.5}
    counts = {"prompts": 1, "images": 1, "real": 1}
    return RunContext(
        sources=sources,
        classifiers={"lulc": {"classes_without_real": ["Snow Ice"]}, "scenes": {}},
        sampling=sampling | {"model": "0"},
        image_counts={},
        class_counts=dict.fromkeys(CLASSES, counts),
        unused_classes=["Woody Vegetation"],
        near_duplicates={"train_test": 0, "excluded_from_test": 0},
        trained_judge=True,
    )


def test_comparability_depends_on_what_was_run(metrics):
    context = run_on_rsicd()
    inception = {
        "paper": {"n": 250, "fid": 100.5, "fid_floor": 60.0},
        "paper_padded": {"n": 250, "fid": 240.5, "fid_floor": 230.0},
    }
    fid = metrics["fid"] | {"inception2048": inception}
    built = tables.build_tables(metrics | {"fid": fid}, context)
    rows = {row.key: row for table in built for row in table.rows}
    assert rows["fid.inception2048.paper.fid"].comparable.startswith("in part: ")
    assert rows["fid.inception2048.paper_padded.fid"].comparable.startswith("in part: ")
    assert rows["fid.scene.paper.fid"].comparable.startswith("no: ")
    assert rows["llm.perplexity"].comparable.startswith("in part: ")
    assert rows["classify_lulc.synthetic_test.loss"].comparable.startswith("in part: ")
    # By how much the padding moves the FID.
    padding = tables.padding_note(fid)
    assert re.findall(r"\d+\.\d", padding) == ["100.5", "240.5", "230.0"]
    assert built[2].note.endswith(padding)
    assert "Snow Ice" in built[0].note
    assert "Woody Vegetation" in built[1].note
    bare_land = rows["synthetic.Bare-Land"]
    assert bare_land.ours == 0 and bare_land.references["planned images"] == 1
    assert "demo" not in context.scale


@pytest.mark.parametrize(
    "classes, numbers",
    [
        (list(CLASSES), None),
        (list(CLASSES)[:2], ["2", "7"]),
        (["Forest", *CLASSES], ["8"]),
        ([f"Zone {number}" for number in range(10)], ["10"]),
    ],
)
def test_table_1_compares_where_the_classes_are_the_papers(metrics, classes, numbers):
    counts = dict.fromkeys(classes, {"prompts": 1, "images": 1, "real": 1})
    context = replace(run_on_rsicd(), class_counts=counts)
    table = tables.classifier_table(metrics["classify_lulc"], metrics["ceiling_lulc"], context)
    generated = [row.comparable for row in table.rows if "synthetic_test" in row.key]
    if numbers is None:
        assert all(text.startswith("in part: ") for text in generated)
    for text in generated if numbers else []:
        assert text.startswith("no: ") and re.findall(r"\d+", text) == numbers


@pytest.mark.parametrize("protocol", ["paper", "paper_padded", "standard"])
def test_an_fid_compares_on_rsicd_at_the_papers_n(protocol):
    context = run_on_rsicd()
    other = replace(context, sources=context.sources | {"imagery": {"source": "path:eurosat"}})
    for n, run, said in (
        (250, context, []),
        (100, context, ["250, ours 100"]),
        (250, other, ["RSICD"]),
        (100, other, ["RSICD", "250, ours 100"]),
    ):
        text = tables.fid_comparable("inception2048", protocol, {"n": n}, run)
        assert text.startswith("no: " if said else "in part: ")
        assert all(words in text for words in said)


@pytest.mark.parametrize("source, said", [("hub:arampacha/rsicd", True), ("path:tiles", False)])
def test_scene_accuracy_compares_with_the_published_on_rsicd_alone(metrics, source, said):
    context = run_on_rsicd()
    context = replace(context, sources=context.sources | {"imagery": {"source": source}})
    row, *_ = further_metrics.scene_accuracy_rows(
        metrics["classify_scenes"], metrics["ceiling_scenes"], context
    )
    assert (row.comparable[:9], "0.903" in row.comparable) == ("in part: " * said, said)


def test_a_ceiling_of_fewer_real_tiles_says_so(metrics):
    fewer = metrics["ceiling_lulc"] | {"n_train": 31, "n_tiles": 45}
    changed = {"ceiling_lulc": fewer, "ceiling_scenes": fewer}
    notes = {}
    for name, run in (("equal", metrics), ("fewer", metrics | changed)):
        built = tables.build_tables(run, run_on_rsicd())
        notes[name] = built[0].note, built[-1].note
    for equal, unequal in zip(notes["equal"], notes["fewer"]):
        assert "as many real tiles" in equal and "as many real tiles" not in unequal
        assert "31 real tiles" in unequal and "245" in unequal


@pytest.mark.parametrize("seeds, covers", [(1, False), (3, True)])
def test_one_training_run_shows_no_spread(metrics, seeds, covers):
    scores = metrics["classify_lulc"] | {"seeds": seeds}
    note = tables.classifier_table(scores, metrics["ceiling_lulc"], run_on_rsicd()).note
    (sentence,) = re.findall(r"The intervals include[^.]*\.", note)
    assert ("not that of the training" not in sentence) == covers


def test_a_standard_deviation_over_draws_says_that_they_share_images(metrics):
    protocols = metrics["fid"]["scene"]
    without = {key: value for key, value in protocols["paper"].items() if key != "fid_std"}
    for paper, has_deviation in ((protocols["paper"], True), (without, False)):
        fid = {"scene": protocols | {"paper": paper}}
        note = tables.generation_table(fid, metrics["diffusion"], run_on_rsicd()).note
        assert ("share images" in note) == has_deviation


# Context -----------------------------------------------------------------------------------------


def test_context_tells_each_number_in_words(made):
    context = json.loads((made / "metrics/context.json").read_text())
    number = context["numbers"]["fid.scene.paper.fid"]
    assert number["paper"] == 245.3629
    assert number["comparable"].startswith("no: ")
    assert "demo" in context["scale"]
    assert context["sources"]["papers"]["source"] == "embedded"
    assert context["sampling"]["resolution"] == 16
    assert context["sampling"]["scheduler"] == "pndm"


def described(root: Path) -> dict[str, dict]:
    return json.loads((root / "metrics/context.json").read_text())["measured_on"]


def all_numbers(values: dict, key: str) -> list[str]:
    """The dotted keys of all numbers of a metrics file."""
    if not isinstance(values, dict):
        return [key]
    return [number for name in values for number in all_numbers(values[name], f"{key}.{name}")]


def test_every_metric_is_described(smoke):
    """In a finished run: all numbers of all metrics files."""
    entries = described(smoke)
    for name in report.METRICS:
        numbers = all_numbers(json.loads((smoke / f"metrics/{name}.json").read_text()), name)
        assert numbers and all(find_description(entries, number) for number in numbers)
    assert {path.stem for path in (smoke / "metrics").glob("*.json")} == {
        *report.METRICS,
        "context",
    }
    accuracy = find_description(entries, "classify_lulc.real_test.overall_accuracy")
    metrics = json.loads((smoke / "metrics/classify_lulc.json").read_text())
    assert accuracy["n"] == metrics["real_test"]["n"]
    assert (accuracy["seeds"], accuracy["tiles_px"]) == (1, 32)
    # The suite runs on one thread.
    assert accuracy["device"] == dict.fromkeys(("finetune_sd", "classify"), "cpu with 1 thread")


def describe_here() -> dict[str, dict]:
    """What `report` would write, without its pictures."""
    params = load()
    metrics = {name: read_json(f"metrics/{name}.json") for name in report.METRICS}
    _, tuned, synthetic = image_grids.read_shown_rows()
    return measured_on(
        metrics,
        read_context(tuned, synthetic, params.used_classes(), trained_judge=False),
        params.used_classes(),
        complete_words(params.classes, params.prompt.words),
        params.encode,
        params.finetune_sd,
        params.finetune_llm,
        params.classifier,
    )


def test_the_most_particular_entry_describes_a_metric():
    entries = {
        "images": {"n": 1},
        "images.scene": {"n": 2},
        "images.scene.tuned.memorized": {"n": 3},
    }
    for metric, n in (
        ("images.scene.tuned.memorized", 3),
        ("images.scene.tuned.memorized_lo", 3),  # its interval
        ("images.scene.tuned.median", 2),
        ("images.pixels.tuned.median", 1),
    ):
        assert find_description(entries, metric) == {"n": n}
    assert find_description(entries, "imagesque.n") is None


def test_training_tiles_describe_floors_alone(made):
    entries = described(made)
    for name, is_floor in (
        ("standard.fid_floor", True),
        ("standard.fid_floor_lo", True),
        ("separability.accuracy_floor", True),
        ("standard.fid_lo", False),
        ("separability.accuracy", False),
    ):
        description = find_description(entries, f"fid.scene.{name}")
        assert ("floor_tiles" in description) == is_floor


def test_a_run_whose_captions_are_all_alike_has_no_clip_score_of_other_captions(metrics):
    scores = {"clip_score": 25.0, "clip_score_real": 30.0}
    for null in ({}, {"clip_score_null": 20.0}):
        clip_row = further_metrics.agreement_rows(metrics["caption_agreement"] | scores | null)[-1]
        assert clip_row.references["real tiles"] == 30
        assert ("other captions" in clip_row.references) == bool(null)


def test_a_run_on_other_inputs_differs_where_it_matters(made, tmp_path, monkeypatch):
    """Each input of the descriptions changes those that depend on it, and no other."""
    before = described(made)
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "run"))
    assert describe_here() == before

    def rewrite_tiles(folder: Path) -> None:
        rows = pq.read_table(folder).to_pylist()
        rows[0]["image"] = rows[1]["image"]
        write_shards(folder, rows, TEST_SCHEMA)

    def rewrite_json(path: str, **values) -> None:
        write_json(path, json.loads(Path(path).read_text()) | values)

    def rewrite_chunks(split: str) -> None:
        rows = pq.read_table("data/chunks.parquet").to_pylist()
        for row in rows:
            row["text"] += " Rivers bend." if row["split"] == split else ""
        pq.write_table(pa.Table.from_pylist(rows), "data/chunks.parquet")

    def rewrite_params(section: str, **values) -> None:
        params = yaml.safe_load(Path("params.yaml").read_text())
        params[section] |= values
        Path("params.yaml").write_text(yaml.safe_dump(params))

    def rewrite_scenes(scenes: list[str]) -> None:
        rewrite_params("classes", **{"Bare Land": scenes})

    on_test_tiles = {"review", "ceiling_lulc", "ceiling_scenes", "classify_lulc", "classify_scenes"}
    on_test_tiles |= {"fid.scene.standard", "fid.scene.paper", "caption_agreement"}
    on_classes = {"ceiling_lulc", "classify_lulc", "caption_agreement.class_agreement"}
    in_mix = {f"images.{space}.synthetic" for space in ("pixels", "scene", "compression_artifacts")}
    changes = [
        (lambda: rewrite_tiles(Path("data/imagery/test")), on_test_tiles, "other test tiles"),
        (
            lambda: rewrite_tiles(Path("data/imagery/valid")),
            {"diffusion", "diffusion.diversity"},
            "other validation tiles",
        ),
        (lambda: rewrite_chunks("train"), set(), ""),
        (lambda: rewrite_chunks("test"), {"llm", "llm.bits_per_character"}, "other held-out text"),
        (lambda: rewrite_scenes(["desert", "bareland"]), set(), ""),  # in another order
        (lambda: rewrite_scenes(["desert"]), on_classes, "other scenes of the classes"),
        (
            lambda: rewrite_json("metrics/ceiling_lulc.json", seeds=5),
            {"ceiling_lulc"},
            "seeds 5, was 3",
        ),
        (
            lambda: rewrite_params("classifier", epochs=3),
            {f"{name}_{key}" for name in ("ceiling", "classify") for key in ("lulc", "scenes")}
            | {f"classify_{key}.synthetic_test" for key in ("lulc", "scenes")},
            "epochs 3, was 1",
        ),
        (
            lambda: Path("models/scene/model.safetensors").write_bytes(b"another judge"),
            {"caption_agreement", "caption_agreement.class_agreement", "select"},
            "other weights of the feature extractor",
        ),
        # What is compared may differ: the model and how many images the classifier learned from.
        (lambda: rewrite_json("metrics/classify_lulc.json", n_train=9), set(), ""),
        (lambda: rewrite_json("metrics/diffusion.json", best_step=9), set(), ""),
    ]
    for change, expected, reason in changes:
        change()
        after = describe_here()
        differences = {key: describe_difference(after[key], before[key]) for key in before}
        changed = {key for key, difference in differences.items() if difference}
        parts = {key for key in changed if key.count(".") > 1 or key.startswith("images")}
        if expected == on_classes:
            assert in_mix == {key for key in changed if key.startswith("images")}
        assert changed - parts == expected - parts, reason
        assert {differences[key] for key in changed} <= {reason}
        before = after


def test_prompts_compare_by_their_numbers_and_by_the_words_of_the_classes(
    made, tmp_path, monkeypatch
):
    """Not by the number of images; and by words only what is measured with them."""
    before = described(made)
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "run"))

    def changed() -> dict[str, str]:
        after = describe_here()
        differences = {key: describe_difference(after[key], before[key]) for key in before}
        return {key: difference for key, difference in differences.items() if difference}

    rows = read_rows("data/synthetic")
    write_shards("data/synthetic", rows[:-1], SYNTHETIC_SCHEMA)
    reasons = changed()
    assert reasons["caption_agreement.class_agreement"] == "other numbers of images per class"
    assert not [key for key in reasons if key.startswith("prompts.")]
    write_shards("data/synthetic", rows, SYNTHETIC_SCHEMA)

    params = yaml.safe_load(Path("params.yaml").read_text())
    params["prompt"]["words"]["Bare Land"]["description"] = "sand and gravel"
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(yaml.safe_dump(params))
    on_words = "prompts.extractive.retrieval.class_agreement"
    assert changed() == {on_words: "other words of the classes"}
    assert find_description(before, f"{on_words}_chance") == before[on_words]
    Path("params.yaml").write_text(text)

    counts = Path("metrics/plots/images_per_class.csv")
    counts.write_text(counts.read_text().replace("Bare Land,2,", "Bare Land,3,"))
    of_prompts = {key for key in before if key.startswith("prompts.")}
    assert changed() == dict.fromkeys(of_prompts, "other numbers of prompts per class")


def test_another_device_is_named_and_compares(made):
    before = described(made)["diffusion"]
    after = before | {"device": {"finetune_sd": "gpu"}}
    assert describe_difference(after, before) == ""
    assert describe_devices(after, before) == ["finetune_sd on gpu, was cpu with 2 threads"]


# The page ----------------------------------------------------------------------------------------


def test_page_stands_alone(made):
    folder = made / "metrics/report"
    text = (folder / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(addresses) > 30
    assert not [address for address in addresses if address.startswith(("http", "//", "/"))]
    for address in addresses:
        assert address.startswith(("#", "data:")) or (folder / address).is_file()
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    anchors = {address[1:] for address in addresses if address.startswith("#")}
    assert anchors <= set(identifiers)
    assert "@import" not in text and "url(http" not in text
    assert not re.search(r"\bNone\b|undefined", text.split("<script>")[0])
    assert "&lt;b&gt;" in text and '"0" <b>' not in text, "prompts are text, not markup"
    assert "(03_fields), page 1" in text and "<i>from" not in text
    assert "4 held out, 1 unreadable, 2 copies left out), 1500 lines" in text
    assert "python -m tools.review add" in text, "no expert has rated: the page names the command"


def test_grids_have_a_row_per_scene_and_a_cell_per_caption(made):
    folder = made / "metrics/report/grids"
    size = {path.stem: Image.open(path).size for path in folder.glob("*.jpg")}
    assert set(size) == {"real", "base", "tuned", "base_tuned", "synthetic", "figures", "nearest"}
    pitch = grids.SIDE + grids.GAP
    expected_size = (32 + 130 + 2 * pitch - 4, 32 + 12 * pitch - 4)
    assert size["real"] == size["base"] == size["tuned"] == expected_size
    assert size["synthetic"][1] == size["figures"][1] == 2 * grids.MARGIN + 7 * pitch - 4

    # The first cell of each grid is the same row of another folder.
    left = grids.MARGIN + 130
    top = grids.MARGIN
    for name, path in (
        ("real", "data/imagery/test"),
        ("base", "data/samples/base"),
        ("tuned", "data/samples/tuned"),
    ):
        row = next(
            row for row in pq.read_table(made / path).to_pylist() if row["scene"] == "bareland"
        )
        expected = grids.resize_to_cell(Image.open(io.BytesIO(row["image"]["bytes"])))
        grid = Image.open(folder / f"{name}.jpg")
        shown = grid.crop((left, top, left + grids.SIDE, top + grids.SIDE))
        difference = np.abs(np.asarray(shown, int) - np.asarray(expected, int)).mean()
        assert difference < 4, "the tile, as well as JPEG keeps it"


def read_items(page: str) -> dict[str, dict]:
    """What the page tells of each picture."""
    return json.loads(re.search(r'id="items">(.*?)</script>', page, re.DOTALL)[1])


def section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1]


def test_gallery_tells_what_is_known_of_each_picture(made):
    """Prompt, seed, sources, the classifier's verdict, the nearest training tile."""
    items = read_items((made / "metrics/report/index.html").read_text())
    synthetic = {key: item for key, item in items.items() if key.startswith("pictures/synthetic")}
    assert len(synthetic) == 21  # all of them are among the extremes
    first = synthetic["pictures/synthetic-000000.webp"]
    second = synthetic["pictures/synthetic-000001.webp"]
    assert not first["agrees"] and "parking" in first["facts"]["predicted scene"]
    assert second["agrees"]
    assert first["title"] == 'satellite image, bare land "0" <b>'
    assert first["facts"]["seed"] == "7" and first["facts"]["scheduler"] == "pndm"
    assert second["passages"] == ["Fields <i>from</i> above (03_fields), page 1"]
    assert first["passages"] == []
    train = load_file(made / "data/features/real/train/scene.safetensors")["features"]
    features = load_file(made / "data/features/synthetic/scene.safetensors")["features"]
    distances = np.linalg.norm(train - features[1], axis=1)
    assert second["nearest"]["picture"] == f"pictures/training-{distances.argmin():06d}.webp"
    assert second["nearest"]["distance"] == f"{distances.min():.3g}"
    for item in items.values():
        assert (made / "metrics/report" / item["picture"]).is_file()
        if "nearest" in item:
            assert (made / "metrics/report" / item["nearest"]["picture"]).is_file()


def test_the_class_of_a_picture_is_that_of_its_scene(made):
    """Not the scene, which is a fact; a scene of no class has none."""
    class_of = {scene: label for label, scenes in CLASSES.items() for scene in scenes}
    items = read_items((made / "metrics/report/index.html").read_text())
    kinds = dict.fromkeys(("real", "base", "tuned"), 0)
    for address, item in items.items():
        kind = Path(address).name.partition("-")[0]
        if kind in kinds:
            kinds[kind] += 1
            assert item["label"] == class_of.get(item["facts"]["scene"], "")
        else:
            assert item["label"] in CLASSES
    labels = {item["label"] for item in items.values()}
    assert min(kinds.values()) > 7 and labels == {"", *CLASSES}


def test_page_shows_the_gallery_and_its_extremes(made):
    page = (made / "metrics/report/index.html").read_text()
    items = read_items(page)
    extremes = re.findall(r'data-item="(.*?)"', section(page, "extremes"))
    assert len(extremes) == 2 * 12  # the worst come first
    assert not any(items[address]["agrees"] for address in extremes[:7])
    assert all(items[address]["agrees"] for address in extremes[7:12])
    # report.gallery_per_class of tests/params.yaml is 2.
    assert section(page, "gallery").count('data-item="pictures/synthetic') == 2 * 7


def test_the_judge_says_nothing_of_classes_that_it_does_not_know(made, tmp_path, monkeypatch):
    """It would be wrong of all their images, which filled the list of the worst."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "run"))
    judge = read_json("models/scene/config.json")
    known = ["iceberg" if name == "snowfield" else name for name in judge["scenes"]]
    write_json("models/scene/config.json", judge | {"scenes": known})
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train_scene"]["source"] = "scratch"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    report.main()
    page = Path("metrics/report/index.html").read_text()
    images = [item for item in read_items(page).values() if "writer" in item]
    assert {item["label"] for item in images} == set(CLASSES)
    for item in images:
        unknown = item["label"] == "Snow Ice"
        assert ("agrees" in item) == ("predicted scene" in item["facts"]) == (not unknown)
        assert "nearest" in item
    extremes = re.findall(r'data-item="(.*?)"', section(page, "extremes"))
    assert len(extremes) == 24
    assert "Snow Ice" not in {read_items(page)[address]["label"] for address in extremes}
    assert "each of the 18 synthetic images of classes that it knows" in page
    assert "knows no scene of Snow Ice" in section(page, "gallery")
    # Beside the numbers at the top, too: it was trained on the tiles of real vs. real.
    top = page.split('<section id="images">')[0]
    assert "trained on these training tiles" in top
    assert "these training tiles" not in (made / "metrics/report/index.html").read_text()
    # It knows none at all.
    write_json("models/scene/config.json", judge | {"scenes": [f"x{i}" for i in range(12)]})
    report.main()
    page = Path("metrics/report/index.html").read_text()
    assert 'id="extremes"' not in page and 'name="agrees"' not in page
    assert "The scene classifier selected" not in page


def test_the_selector_says_nothing_of_the_images_that_it_selected(made, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "run"))
    selected = read_json("metrics/select.json")
    selected["per_class"]["Snow-Ice"]["unknown_scenes"] = 1
    write_json("metrics/select.json", selected | {"drawn": 3 * selected["kept"]})
    report.main()
    page = Path("metrics/report/index.html").read_text()
    for verdict in ("extremes", 'name="agrees"', "tile differs", "disagrees", "predicted scene"):
        assert verdict in (made / "metrics/report/index.html").read_text()
        assert verdict not in page.split("<script>")[0]
    images = [item for item in read_items(page).values() if "writer" in item]
    assert len(images) == section(page, "gallery").count('data-item="pictures/synthetic') == 14
    for item in images:
        assert not {"agrees", "nearest"} & set(item)
        assert item["facts"]["seed"] == "7"
    # No selection touches the tuned model's images of test captions.
    tuned = [item for key, item in read_items(page).items() if key.startswith("pictures/tuned")]
    assert tuned
    pairs = re.findall(r'data-item="(pictures/tuned[^"]*)"', section(page, "copies"))
    assert pairs and all("nearest" in read_items(page)[key] for key in pairs)
    # The tables name the class that it could not judge.
    note = Path("metrics/table.md").read_text().split("share that fails\n")[1].split("\n##")[0]
    (sentence,) = re.findall(r"knows no scene of ([^:]*):", note)
    assert sentence == "Snow Ice"


def test_run_js_holds_what_belongs_to_the_moment(made):
    text = (made / "metrics/run.js").read_text()
    run = json.loads(text.removeprefix("const run = ").removesuffix(";\n"))
    assert run["commit"] == "" and run["changed"] is False
    assert run["versions"]["torch"]
    assert run["device"]
    assert "gallery_per_class: 2" in run["params"]
    stages = {stage["name"]: stage for stage in run["stages"]}
    assert stages["features"]["seconds"] == 63.5
    assert stages["generate"]["seconds"] == 4.2
    assert stages["fid"]["seconds"] is None, "not run here"
    files = [*(made / "data/synthetic").iterdir(), made / "metrics/select.json"]
    size = sum(file.stat().st_size for file in files)
    assert stages["select"]["bytes"] == size
    assert stages["encode"]["bytes"] is None


def test_run_js_has_the_stages_in_the_order_data_flows(made):
    text = (made / "metrics/run.js").read_text()
    stages = json.loads(text.removeprefix("const run = ").removesuffix(";\n"))["stages"]
    names = [stage["name"] for stage in stages]
    assert names == list(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"])
    for number, stage in enumerate(stages):
        assert set(stage["reads"]) <= set(names[:number]), stage["name"]
    by_name = dict(zip(names, stages))
    assert by_name["fetch_model"]["items"] == 6
    assert by_name["scrape"]["items"] == 1
    assert by_name["scrape"]["reads"] == ["fetch_papers"]
    assert by_name["fid"]["reads"] == ["train_scene", "features"]


def test_a_stage_that_dvc_runs_leaves_its_time(tmp_path):
    """Only its first process does, only where DVC runs it, and not where it fails."""
    run_stage = "import sys, time; from stages.runtime.process import run_stage; run_stage"
    inner = f"{run_stage}(lambda: None, None)"
    starts_inner = f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    code = f"import subprocess; {run_stage}(lambda: time.sleep(0.3) or {starts_inner}, None)"
    failing = f"{run_stage}(lambda: sys.exit('error: a key'), None)"
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "DVC_STAGE": "features@real",
        "DVC_ROOT": str(tmp_path),
    }
    elsewhere = {"PYTHONPATH": str(REPOSITORY)}
    runs = ((code, environment), (code, elsewhere), (failing, environment | {"DVC_STAGE": "fid"}))
    for program, env in runs:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env)
        assert done.returncode == (program == failing)
    (file,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert file == tmp_path / ".dvc/tmp/stage_times/features@real"
    assert 0.3 <= float(file.read_text()) < 60


def test_a_sweep_is_a_chart(tmp_path):
    """The chart is drawn from the table that `tools.sweep` writes; another file is an error."""
    (tmp_path / "guidance.md").write_text(
        "| experiment | fid scene.standard.fid (lower is better) "
        "| classify_lulc real_test.overall_accuracy (higher is better) | Pareto |\n"
        "|---|---:|---:|---|\n"
        "| guidance-2.0-14 | 3.65 [2.08, 5.2] | 0.658 [0.45, 0.86] | yes |\n"
        "| guidance-5.0-14 | 9.1 [7, 11] | 0.5 [0.4, 0.6] |  |\n"
        "| guidance-5.0-28 | failed | failed |  |\n"
        "\nValues.\n"
    )
    (chart,) = sweeps.sweep_charts(tmp_path)
    assert re.findall(r"\d+", chart["text"])[:2] == ["2", "1"]  # experiments, failed ones
    assert "2.0-14" in chart["svg"]
    assert "5.0-28" not in chart["svg"]
    assert "fid scene.standard.fid (lower is better)" in chart["svg"]
    (tmp_path / "other.md").write_text("# Notes\n")
    with pytest.raises(SystemExit, match=r"other\.md"):
        sweeps.sweep_charts(tmp_path)


def test_same_bytes_at_another_time_and_place(made, tmp_path, monkeypatch):
    copy = shutil.copytree(made, tmp_path / "run")
    (copy / ".dvc/tmp/stage_times/generate").write_text("99.0\n")
    (copy / ".dvc/tmp/stage_times/encode").write_text("")  # as a power cut leaves it
    monkeypatch.chdir(copy)
    report.main()
    assert '"seconds": 99.0' in (copy / "metrics/run.js").read_text()
    assert outputs(copy) == outputs(made)


def test_a_refused_fid_is_in_the_table_and_a_missing_input_is_an_error(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    refused = {"refused": 1, "n": 5, "n_needed": 8, "infinity_singular": 1}
    write_json("metrics/fid.json", {"scene": {"standard": refused, "paper": refused}})
    Path("metrics/plots/accuracy_by_class_lulc.csv").write_text("class,accuracy,n\n")
    report.main()
    cells = table_row(Path("metrics/table.md").read_text(), "FID, scene features, all 5")
    assert cells[1] == "-"
    assert re.findall(r"\d+", cells[-1]) == ["5", "8"]
    page = Path("metrics/report/index.html").read_text()
    assert "Here that is far too high" in page
    cards = re.findall(r'<div class="card"><strong>(.*?)</strong>', page)
    assert len(cards) == 3 and "-" not in cards
    Path("metrics/caption_agreement.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "stages.report"],
        env={"PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert "metrics/caption_agreement.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_page_of_a_run_on_few_tiles(made, tmp_path, monkeypatch):
    """Two test tiles give an FID of one size, and no line; each n has its unit."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "run"))
    header = Path("metrics/plots/fid_curve.csv").read_text().splitlines()[0]
    Path("metrics/plots/fid_curve.csv").write_text(f"{header}\n2,0.5,3,9,1,,,\n,0.0,,,,,,\n")
    of_each = {f"{name}{end}": 1 for name in RATED for end in ("", "_lo", "_hi")}
    review = of_each | {f"{name}_n": 6 for name in RATED} | {"realism_real_n": 1}
    review |= {"ratings": 6, "experts": 2, "detection_chance": 0.5, "class_agreement_chance": 0.1}
    write_json("metrics/review.json", review | {"artifacts": {}, "ratings_of_other_runs": 0})
    fewer = {"n_tiles": 12, "n_train": 9}
    write_json("metrics/ceiling_lulc.json", read_json("metrics/ceiling_lulc.json") | fewer)
    report.main()
    text = Path("metrics/report/index.html").read_text()
    assert "9 real tiles instead of 245" in text.split('<section id="images">')[0]
    counts = re.findall(r'data-title="n">(.*?)</td>', section(text, "experts"))
    assert counts == ["1 tile", "6 tiles", *["6 ratings"] * 4]


RATED = (
    "realism_real",
    "realism_generated",
    "detection_accuracy",
    "undecided",
    "class_agreement_real",
    "class_agreement_generated",
)


def test_a_floor_of_other_scenes_than_the_test_tiles_is_said(metrics):
    same = rows.to_markdown(tables.build_tables(metrics, run_on_rsicd()), "small")
    assert "of the same scenes; 95 % PI" in same
    fid = json.loads(json.dumps(metrics["fid"]))
    fid["scene"]["standard"]["n_floor_other_scene"] = 7
    other = rows.to_markdown(tables.build_tables(metrics | {"fid": fid}, run_on_rsicd()), "small")
    assert "of the same scenes but for 7, of whose scenes there are too few; 95 % PI" in other


def test_a_curve_without_a_line_is_drawn_beside_one_that_has_a_line():
    """As where few training tiles give one size of real vs. real, and the others two."""
    columns = ("images", "one_over_n", "tuned", "base", "floor")
    columns += ("tuned_line", "base_line", "floor_line")
    values = (("6", "0.17", "3", "9", "1", "3", "9", ""), ("", "0.0", "", "", "", "2", "8", ""))
    fid = {"scene": {"standard": {"infinity_singular": 0}}}
    chart = page.fid_chart([dict(zip(columns, row)) for row in values], fid)
    for label in ("tuned", "base", "real vs. real"):
        assert f">{label}<" in chart["svg"]


def test_the_fid_chart_names_its_features_and_says_where_infinity_does_not_hold():
    columns = ("images", "one_over_n", "tuned", "base", "floor")
    columns += ("tuned_line", "base_line", "floor_line")
    values = (("6", "0.2", "3", "9", "", "3", "9", ""), ("", "0.0", "", "", "", "2", "8", ""))
    curve = [dict(zip(columns, row)) for row in values]
    for singular in (0, 1):
        fid = {"scene": {"standard": {"infinity_singular": 1 - singular}}}
        inception = {"inception2048": {"standard": {"infinity_singular": singular}}}
        chart = page.fid_chart(curve, fid | inception)
        assert "inception2048 features" in chart["text"]
        assert ("far too high" in chart["text"]) == bool(singular)
        assert "eal vs. real" not in chart["text"] + chart["svg"], "too few training tiles"
    assert "scene features" in page.fid_chart(curve, fid)["text"]


# Charts and pictures -----------------------------------------------------------------------------


def test_chart_text_is_text_and_colors_are_the_pages():
    arguments = ("a chart", ["<i>", "$x_1$"], {"one": [0.5, 1.0], "two": [0.0, 0.25]}, "share")
    arguments += ([(0.4, 0.6), (0.8, 1.0)],)
    svg = charts.bar_chart(*arguments)
    assert "&lt;i&gt;" in svg
    assert "$x_1$" in svg
    assert "var(--two)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert charts.bar_chart(*arguments) == svg


def test_lines_and_shades_are_of_the_values():
    segment = r'd="M (\S+) \S+\nL (\S+) \S+\n" \S+ style="fill: none; stroke: {}; stroke-width: 1.2'
    bars = charts.bar_chart("bars", ["a", "b"], {"one": [0.5, 0.9]}, "", [(0.4, 0.6), (0.8, 1.0)])
    ends = np.array(re.findall(segment.format("currentColor"), bars), float)  # error bars
    width = ends[1, 1] - ends[0, 0]  # from 0.4 to 1
    assert np.diff(ends)[:, 0] == pytest.approx([width / 3] * 2, rel=1e-4)
    points = [("a", 1, 2, True), ("b", 2, 3, True), ("c", 1.5, 4, False)]
    front = charts.pareto_chart("front", points, "x", "y")
    assert len(re.findall(segment.format(r"var\(--one\)"), front)) == 1  # past c
    pairs = [("a", "a")] + [("b", "b")] * 2 + [("b", "a")] * 2
    shades = re.findall(r"opacity: (\S+)\"", charts.confusion_matrix("matrix", pairs, ["a", "b"]))
    assert shades == ["0.6", "0.34", "0.34"]  # by their share of the actual class


def test_long_names_of_any_script_leave_room_for_a_chart():
    names = [f"{number}{'从空中俯瞰淡黄色的沙漠' * 5}" for number in range(7)]
    pairs = [(name, name) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, that no room is left for the axes
        bars = charts.bar_chart("bars", names, {"one": [0.5] * 7}, "share", [(0.4, 0.6)] * 7)
        matrix = charts.confusion_matrix("matrix", pairs, names)
    for svg in (bars, matrix):
        assert all(f">{name[:20]}" in svg and f">{name[:25]}" not in svg for name in names)
    latin = charts.confusion_matrix("matrix", [("a", "a")], [f"{n} name" for n in range(7)])
    widths = [float(re.search(r"max-width: (\S+)pt", svg)[1]) for svg in (latin, matrix)]
    assert widths[0] < widths[1]


def write_album(folder: Path, out: Path) -> None:
    """Write an album of a small and a large picture, the two rows of `folder`."""
    album = Album()
    out.mkdir()
    small, large = (album.add("real", folder, row) for row in (0, 1))
    assert (small, large) == ("pictures/real-000000.webp", "pictures/real-000001.webp")
    album.write(out)
    assert album.thumbnail_address(small) == small
    assert album.thumbnail_address(large) == "thumbs/real-000001.webp"


def test_large_pictures_have_thumbnails_and_fit_the_budget(tmp_path, monkeypatch):
    """Small pictures are lossless; large ones get the best quality that fits, or are refused."""
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    rows = [{"image": image_cell(noise[:side, :side])} for side in (64, 700)]
    write_shards(tmp_path / "rows", rows, pa.schema([("image", IMAGE)]))
    ample = tmp_path / "ample"
    tight = tmp_path / "tight"
    monkeypatch.setattr("stages.reporting.album.BUDGET", 10**6)
    write_album(tmp_path / "rows", ample)
    monkeypatch.setattr("stages.reporting.album.BUDGET", 150_000)
    write_album(tmp_path / "rows", tight)
    assert Image.open(ample / "pictures/real-000001.webp").size == (512, 512)
    assert Image.open(ample / "thumbs/real-000001.webp").size == (128, 128)
    ample_bytes = (ample / "pictures/real-000001.webp").stat().st_size
    tight_bytes = (tight / "pictures/real-000001.webp").stat().st_size
    assert tight_bytes < ample_bytes <= 10**6
    assert tight_bytes < 150_000
    small = Image.open(ample / "pictures/real-000000.webp").convert("RGB")
    assert small.tobytes() == noise[:64, :64].tobytes()
    monkeypatch.setattr("stages.reporting.album.BUDGET", 20_000)
    with pytest.raises(SystemExit, match=r"report\.gallery_per_class"):
        write_album(tmp_path / "rows", tmp_path / "refused")


def test_long_names_stay_in_their_column():
    font = fonts.load_font("", 15)
    text = "a_scene_whose_name_is_one_very_long_word and more words than fit"
    lines = grids.wrap_text(text, font, 100, 2)
    assert len(lines) == 2
    assert all(font.getlength(line) <= 100 for line in lines)
    assert lines[1].endswith("...")
    unspaced = "a_scene_whose_name_is_long_"
    lines = grids.wrap_text(f"{unspaced}1", font, 100, 3)
    assert "".join(lines) == f"{unspaced}1" and len(lines) == 3
    assert all(font.getlength(line) <= 100 for line in lines)


def test_a_standard_deviation_of_draws_is_no_interval():
    from stages.reporting.rows import Table, cell_texts, make_row

    row = make_row("fid.scene.paper.fid", "FID", {"fid": 3.4, "fid_std": 0.04})
    (texts,) = cell_texts(Table("", [row]))
    assert "95 % CI" not in texts
    assert texts["reference"] == "standard deviation over draws 0.040"


@pytest.mark.parametrize(
    ("value", "interval", "texts"),
    [
        (0.8532, (0.791, 0.912), ("0.85", "0.79 to 0.91")),
        (0.444, (0.189, 0.733), ("0.44", "0.19 to 0.73")),
        (25.75, (12.92, 42.95), ("26", "13 to 43")),
        (194.4, (171.3, 220.6), ("194", "171 to 221")),
        (-0.004, (-0.06, 0.05), ("0.00", "-0.06 to 0.05")),
        (0.0001234, (0.0001, 0.00015), ("0.000123", "0.000100 to 0.000150")),
        (1.0, (1.0, 1.0), ("1.000", "1.000 to 1.000")),
        (7, (3.2, 9.9), ("7", "3.2 to 9.9")),
    ],
)
def test_cards_round_to_what_the_interval_allows(value, interval, texts):
    row = rows.Row("key", "metric", value, "", interval=interval, references={"chance": 0.25})
    shown = page.summary_texts(row)
    assert (shown["value"], shown["interval"]) == texts


def test_references_keep_two_digits_of_their_own():
    references = {
        "real vs. real": 0.179,
        "its 95 % PI": (0.0, 0.517),
        "chance": 0.25,
        "base model": 74.3,
        "trained on real tiles": 81.94,
        "its 95 % CI": (81.2, 82.4),
    }
    row = rows.Row("key", "metric", 25.75, "", interval=(12.92, 42.95), references=references)
    shown = page.summary_texts(row)
    assert shown["value"] == "26" and shown["references"] == (
        "real vs. real 0.18, its 95 % PI 0.00 to 0.52, chance 0.25, base model 74, "
        "trained on real tiles 81.9, its 95 % CI 81.2 to 82.4"
    )
