"""The report: the paper's lines, known numbers, a page that stands alone, the same bytes twice."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY
from PIL import Image
from report_run import build, cell_row
from safetensors.numpy import load_file

from stages import report
from stages.common.artifacts import IMAGE, write_json, write_shards
from stages.params import LULC_CLASSES
from stages.reporting import charts, grids, sweeps, tables
from stages.reporting.album import Album
from stages.reporting.comparable import differences


def outputs(root: Path) -> dict[str, bytes]:
    # All but run.js, which holds what belongs to the moment.
    found = [
        file
        for file in (root / "metrics/report").rglob("*")
        if file.is_file() and file.name != "run.js"
    ]
    found += [root / "metrics/table.md", root / "metrics/context.json"]
    return {str(file.relative_to(root)): file.read_bytes() for file in found}


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


# Report -------------------------------------------------------------------------------------------------------------------


def test_table_has_every_line_of_the_papers_tables(made):
    text = (made / "metrics/table.md").read_text()
    for value in (
        *tables.TABLE_1.values(),
        *tables.TABLE_2.values(),
        "245.3629",
        "0.2",
        "30.5",
        "3.3855",
    ):
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
    assert (
        len(number["weights"]) == 16
        and number["generator"] == "0123456789abcdef"
        and number["comparable"].startswith("no")
    )
    assert "demo" in context["scale"] and context["sources"]["papers"]["source"] == "embedded"
    assert context["sampling"]["resolution"] == 16 and context["sampling"]["scheduler"] == "pndm"


def test_what_compares_depends_on_what_was_run(made):
    sources = {
        role: {"source": "hub:someone/" + role} for role in ("imagery", "papers", "diffusion")
    }
    sources |= {"language": {"source": "hub:microsoft/phi-1_5"}}
    facts = tables.Facts(
        sources,
        {},
        {"lulc": {"classes_without_real": ["Snow Ice"]}, "scenes": {}},
        {"resolution": 512, "scheduler": "pndm", "steps": 50, "guidance_scale": 7.5, "model": "0"},
        {},
        {},
    )
    metrics = {
        path.stem: json.loads(path.read_text()) for path in (made / "metrics").glob("*.json")
    }
    metrics["fid"]["inception2048"] = {
        "paper": {"n": 250, "fid": 100.5, "fid_floor": 60.0},
        "paper_padded": {"n": 250, "fid": 240.5, "fid_floor": 230.0},
    }
    found = {row.key: row for table in tables.tables(metrics, facts) for row in table.rows}
    assert found["fid.inception2048.paper.fid"].comparable.startswith("in part")
    assert found["fid.inception2048.paper_padded.fid"].comparable.startswith("in part")
    assert (
        "alone moves FID (inception2048 features) from 100.5 to 240.5; real training tiles without one score 230.0"
        in (tables.tables(metrics, facts)[2].note)
    )
    assert found["fid.scene.paper.fid"].comparable.startswith("no: scene features")
    assert found["llm.perplexity"].comparable.startswith("in part: the same model")
    assert found["classify_lulc.synthetic_test.loss"].comparable.startswith("in part")
    assert (
        "No real tile shows Snow Ice" in tables.tables(metrics, facts)[0].note
        and "demo" not in facts.scale
    )


def test_copies_look_alikes_and_mismatches_are_told(made):
    text = (made / "metrics/table.md").read_text()
    assert (
        "| FID at infinitely many images, scene features | 1.100 | 0.990 to 1.210 | "
        "floor 0.275, other floors 0.138 to 0.550, base 9.900 |"
    ) in text
    assert "| Sinkhorn divergence of scene features | 0.300 |" in text
    assert (
        "test captions, pixels, flips and rotations included | 0.020 | 0.010 to 0.050 | expected 0.010 |"
        in text
    )
    assert (
        "**The images of tuned are compressed, resized or blurred" in text
        and "images of synthetic" not in text
    )
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
    assert (
        set(found) == {"fid.scene.standard.fid", "llm.perplexity"}
        and found["llm.perplexity"] == "only in the first run"
    )
    assert (
        "n: 24 and 1093" in found["fid.scene.standard.fid"]
        and "weights: " in found["fid.scene.standard.fid"]
    )


def test_page_stands_alone(made):
    folder = made / "metrics/report"
    text = (folder / "index.html").read_text()
    local = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert (
        len(local) > 30
        and "run.js" in local
        and not [address for address in local if address.startswith(("http", "//", "/"))]
    )
    assert all(
        (folder / address).is_file() for address in local if not address.startswith(("#", "data:"))
    )
    assert {address[1:] for address in local if address.startswith("#")} <= set(
        re.findall(r'id="([^"]*)"', text)
    )
    assert (
        "@import" not in text
        and "url(http" not in text
        and not re.search(r"\bNone\b|undefined", text.split("<script>")[0])
    )
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert "&lt;b&gt;" in text and '"0" <b>' not in text, "prompts are text, not markup"
    assert "No expert has rated" in text and "(03_fields), page 1" in text and "<i>from" not in text


def test_grids_have_a_row_per_scene_and_a_cell_per_caption(made):
    folder = made / "metrics/report/grids"
    size = {path.stem: Image.open(path).size for path in folder.glob("*.jpg")}
    assert set(size) == {"real", "base", "tuned", "base_tuned", "synthetic", "figures", "nearest"}
    pitch = grids.SIDE + grids.GAP
    assert (
        size["real"]
        == size["base"]
        == size["tuned"]
        == (32 + 130 + 2 * pitch - 4, 32 + 12 * pitch - 4)
    )
    assert size["synthetic"][1] == size["figures"][1] == 2 * grids.MARGIN + 7 * pitch - 4

    # The first cell of each grid is the same row of its own folder.
    for name, path in (
        ("real", "data/imagery/test"),
        ("base", "data/samples/base"),
        ("tuned", "data/samples/tuned"),
    ):
        row = next(
            row for row in pq.read_table(made / path).to_pylist() if row["scene"] == "bareland"
        )
        expected = grids.tile(Image.open(io.BytesIO(row["image"]["bytes"])))
        box = (
            grids.MARGIN + 130,
            grids.MARGIN,
            grids.MARGIN + 130 + grids.SIDE,
            grids.MARGIN + grids.SIDE,
        )
        shown = Image.open(folder / f"{name}.jpg").crop(box)
        assert np.abs(np.asarray(shown, int) - np.asarray(expected, int)).mean() < 4, (
            "the tile, as well as JPEG keeps it"
        )


def test_gallery_says_what_is_known_of_each_picture(made):
    """Prompt, seed, sources, the nearest training tile; agreement by the classifier; the extremes by its probabilities."""
    text = (made / "metrics/report/index.html").read_text()
    items = json.loads(re.search(r'id="items">(.*?)</script>', text, re.DOTALL)[1])
    drawn = {key: item for key, item in items.items() if key.startswith("pictures/synthetic")}
    assert len(drawn) == 21  # all of them are among the extremes
    first, second = drawn["pictures/synthetic-000000.webp"], drawn["pictures/synthetic-000001.webp"]
    assert not first["agrees"] and "parking" in first["facts"]["shows"] and second["agrees"]
    assert first["title"] == 'satellite image, bare land "0" <b>' and (
        first["facts"]["seed"],
        first["facts"]["scheduler"],
    ) == ("7", "pndm")
    assert (
        second["passages"] == ["Fields <i>from</i> above (03_fields), page 1"]
        and first["passages"] == []
    )
    train, made_features = (
        load_file(made / f"data/features/{place}/scene.safetensors")["features"]
        for place in ("real/train", "synthetic")
    )
    distances = np.linalg.norm(train - made_features[1], axis=1)
    assert second["nearest"]["picture"] == f"pictures/training-{distances.argmin():06d}.webp"
    assert second["nearest"]["distance"] == f"{distances.min():.3g}"
    for item in items.values():
        assert (made / "metrics/report" / item["picture"]).is_file()
        assert (
            "nearest" not in item
            or (made / "metrics/report" / item["nearest"]["picture"]).is_file()
        )
    worst = re.search(r"Least like their class(.*?)Most like", text, re.DOTALL)[1]
    shown = re.findall(r'data-item="(.*?)"', worst)
    assert (
        len(shown) == 12
        and not any(items[each]["agrees"] for each in shown[:7])
        and all(items[each]["agrees"] for each in shown[7:])
    )
    gallery = text[text.index('<section id="gallery">') : text.index('<section id="extremes">')]
    assert (
        gallery.count('data-item="pictures/synthetic') == 2 * 7
    )  # report.gallery_per_class of tests/params.yaml


def test_run_js_holds_what_belongs_to_the_moment(made):
    text = (made / "metrics/report/run.js").read_text()
    run = json.loads(text.removeprefix("const run = ").removesuffix(";\n"))
    assert (
        run["commit"] == ""
        and run["versions"]["torch"]
        and run["device"]
        and "gallery_per_class: 2" in run["params"]
    )
    assert (
        run["stages"]["features"]["seconds"] == 63.5 and run["stages"]["generate"]["seconds"] == 4.2
    )
    assert run["stages"]["fid"]["seconds"] is None, "not run here"
    size = sum(file.stat().st_size for file in (made / "data/synthetic").iterdir())
    assert run["stages"]["generate"]["bytes"] == size and run["stages"]["chunk"]["bytes"] is None
    assert "fetch_model <tspan" in run["flow"] and "× 6" in run["flow"]
    for stage in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]:
        assert f'data-stage="{stage}"' in run["flow"]


def test_a_stage_that_dvc_runs_leaves_its_time(tmp_path):
    """Once, by its first process; outside DVC nothing is written."""
    code = "import stages, subprocess, sys, time; time.sleep(0.3); subprocess.run([sys.executable, '-c', 'import stages'])"
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "DVC_STAGE": "features@real",
        "DVC_ROOT": str(tmp_path),
    }
    for env in (environment, {"PYTHONPATH": str(REPOSITORY)}):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    (file,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert (
        file == tmp_path / ".dvc/tmp/stage_times/features@real"
        and 0.3 <= float(file.read_text()) < 60
    )


def test_a_sweep_is_a_chart_with_its_front(tmp_path):
    """The table that `tools.sweep` writes; a file that is none is said."""
    (tmp_path / "guidance.md").write_text(
        "| experiment | fid scene.standard.fid (lower is better) | classify_lulc real_test.overall_accuracy (higher is better) | Pareto |\n"
        "|---|---:|---:|---|\n| guidance-2.0-14 | 3.65 [2.08, 5.2] | 0.658 [0.45, 0.86] | yes |\n"
        "| guidance-5.0-14 | 9.1 [7, 11] | 0.5 [0.4, 0.6] |  |\n| guidance-5.0-28 | failed | failed |  |\n\nValues.\n"
    )
    (chart,) = sweeps.charts_of(tmp_path)
    assert (
        chart["text"].startswith("2 experiments, 1 more failed")
        and "2.0-14" in chart["svg"]
        and "5.0-28" not in chart["svg"]
    )
    assert "fid scene.standard.fid (lower is better)" in chart["svg"]
    (tmp_path / "other.md").write_text("# Notes\n")
    with pytest.raises(SystemExit, match="other.md: not the table of a sweep"):
        sweeps.charts_of(tmp_path)


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
    Path("metrics/caption_agreement.json").unlink()
    with pytest.raises(SystemExit, match="metrics/caption_agreement.json: missing"):
        report.main()


def test_chart_text_is_text_and_colors_are_the_pages():
    drawn = charts.bars(
        "a chart", ["<i>", "$x_1$"], {"one": [0.5, 1.0], "two": [0.0, 0.25]}, "share"
    )
    assert (
        "&lt;i&gt;" in drawn
        and "$x_1$" in drawn
        and "var(--two)" in drawn
        and not re.search(r"#[0-9a-f]{6}\b", drawn)
    )
    assert drawn == charts.bars(
        "a chart", ["<i>", "$x_1$"], {"one": [0.5, 1.0], "two": [0.0, 0.25]}, "share"
    )


def test_large_pictures_have_thumbnails_and_fit_the_budget(tmp_path, monkeypatch):
    """Small ones are kept exactly; a folder of large ones gets the best quality at which it fits, or is refused."""
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    write_shards(
        tmp_path / "rows",
        [cell_row(noise[:side, :side]) for side in (64, 700)],
        pa.schema([("image", IMAGE)]),
    )

    def stored(budget: int) -> Path:
        monkeypatch.setattr("stages.reporting.album.BUDGET", budget)
        album, out = Album(), tmp_path / f"out{budget}"
        out.mkdir()
        for place in (0, 1):
            assert album.add("real", tmp_path / "rows", place) == f"pictures/real-{place:06d}.webp"
        album.write(out)
        assert album.thumb("pictures/real-000000.webp") == "pictures/real-000000.webp"
        assert album.thumb("pictures/real-000001.webp") == "thumbs/real-000001.webp"
        return out / "pictures/real-000001.webp"

    ample, tight = stored(10**6), stored(150_000)
    assert Image.open(ample).size == (512, 512) and Image.open(
        ample.parent.parent / "thumbs/real-000001.webp"
    ).size == (128, 128)
    assert tight.stat().st_size < ample.stat().st_size <= 10**6 and tight.stat().st_size < 150_000
    assert (
        Image.open(ample.with_name("real-000000.webp")).convert("RGB").tobytes()
        == noise[:64, :64].tobytes()
    )
    with pytest.raises(SystemExit, match="report.gallery_per_class: 2 pictures come to"):
        stored(20_000)


def test_long_names_stay_in_their_column():
    font = grids.ImageFont.load_default(15)
    lines = grids.wrap(
        "a_scene_whose_name_is_one_very_long_word and more words than fit", font, 100, 2
    )
    assert (
        len(lines) == 2
        and all(font.getlength(line) <= 100 for line in lines)
        and lines[1].endswith("...")
    )
