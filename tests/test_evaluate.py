"""tools.evaluate: `fid`'s metrics for two folders of images, whoever made them."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import REPOSITORY, write_smoke_params
from PIL import Image
from test_evaluation_features import (
    CLASSES,
    LABELED_SCHEMA,
    SCENES,
    SCHEMA,
    render_cell,
    tile_rows,
)
from test_imagery_rasters import UTM, write_raster

from stages.common.artifacts import decode_image, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run leaves behind: real tiles, images of two models, and a (random) scene network."""
    import torch

    from stages.evaluation.networks import create_network, save_network

    path = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        write_smoke_params(path)
        torch.manual_seed(0)
        config = {
            "model": "test_byobnet",
            "resolution": 32,
            "scenes": sorted(SCENES),
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }
        save_network("models/scene", create_network("test_byobnet", 3, 32, "test"), config)
        write_shards("data/imagery/train", tile_rows(0, 40), SCHEMA)
        dates = [row | {"site": "day0.tif"} for row in tile_rows(40, 30)]  # of one place
        write_shards("data/imagery/test", dates, SCHEMA.append(pa.field("site", pa.string())))
        write_shards("data/samples/tuned", tile_rows(40, 30, seed=7), SCHEMA)
        write_shards("data/samples/base", tile_rows(40, 30, seed=8), SCHEMA)
        synthetic = [
            {"image": render_cell(scene, i, 9), "row": i, "label": CLASSES[scene]}
            for i in range(4)
            for scene in CLASSES
        ]
        write_shards("data/synthetic", synthetic, LABELED_SCHEMA)
    return path


@pytest.fixture
def evaluate(folder, monkeypatch, tmp_path, capsys):
    """Runs the tool in `folder`; returns its JSON and what it printed, or its error line."""

    def run(*words: object) -> tuple[dict, str]:
        from tools import evaluate

        file = tmp_path / "result.json"
        arguments = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["evaluate", "--json", str(file), *arguments])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the tool sets its own
        capsys.readouterr()
        evaluate.main()
        output = capsys.readouterr()
        return json.loads(file.read_text()), output.out + output.err

    monkeypatch.chdir(folder)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    return run


def save_images(folder: Path, count: int = 12, seed: int = 0, suffix: str = "png") -> Path:
    """A folder of rendered tiles of 32 px, forest_0.png and so on."""
    folder.mkdir(parents=True)
    for row in tile_rows(0, count, seed):
        decode_image(row["image"]).save(folder / f"{Path(row['filename']).stem}.{suffix}")
    return folder


def refusal(evaluate, *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate(*words)
    assert str(stopped.value).startswith("error: ")
    return str(stopped.value)


def test_the_folders_of_a_run_give_its_metrics_up_to_rounding(evaluate):
    """But for what depends on which image belongs to which tile."""
    from stages import features, fid

    for which in ("real", "tuned", "base", "synthetic"):
        features.main(which)
    fid.main()
    expected = json.loads(Path("metrics/fid.json").read_text())["scene"]["standard"]
    of_pairs = ("_lo", "_hi", "_base", "_floor", "_floor_other_scene", "fid_infinity", "kid_x1000")
    same = {key: value for key, value in expected.items() if not key.endswith(of_pairs)}
    assert {"fid", "recall", "density", "sinkhorn", "n"} <= same.keys()
    folders = ("data/imagery/test", "data/samples/tuned")

    result, text = evaluate(*folders)
    assert "rendered scenes only" not in text
    found = result["scene"]["standard"]
    assert {key: found[key] for key in same} == pytest.approx(same, rel=1e-5)
    assert found["kid_x1000"] < expected["kid_x1000"]
    assert "real vs. real" not in text
    result, text = evaluate(*folders, "--train", "data/imagery/train")
    found = result["scene"]["standard"]
    assert {key: found[key] for key in same} == pytest.approx(same, rel=1e-5)
    of_base = {key for key in expected if key.endswith("_base")}
    assert found.keys() == expected.keys() - of_base - {"n_floor_other_scene"}
    assert re.search(rf"^FID +{found['fid']:.3f} +- ", text, re.MULTILINE)
    assert "note: the 30 test tiles were cut from 1 site(s)" in text
    assert "real vs. real" in text
    agreement = json.loads(Path("metrics/caption_agreement.json").read_text())
    for key in ("caption_agreement", "caption_agreement_lo", "ceiling"):
        assert result["captions"][key] == agreement[key]
    for metrics in (agreement, result["captions"]):
        assert (metrics["ceiling_lo"], metrics["ceiling_hi"]) == (0, 1)
    assert "separability" not in json.loads(Path("metrics/fid.json").read_text())["scene"]


def test_tiles_of_one_scene_and_images_of_one_caption_count_as_one():
    """Tiles as in `fid`; there, each image has a caption of its own."""
    from tools.evaluate import measure_agreement

    logits = np.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]
    outputs = {"tuned": {"logits": logits}, "test": {"logits": logits}}
    wanted = {"tuned": ["lake"] * 8, "test": ["lake"] * 8}  # half of them is seen rightly
    sites = [f"{'ab'[i // 4]}.tif" for i in range(8)]
    each = np.arange(8)
    of_scenes, of_tiles, of_captions = (
        measure_agreement(outputs, wanted, ["lake", "forest"], names, units)
        for names, units in (
            (sites, each),
            ([f"{i}.tif" for i in range(8)], each),
            (sites, each // 2),
        )
    )
    for metrics in (of_scenes, of_tiles):
        assert metrics["ceiling"] == 0.5 and metrics["ceiling_n"] == 8
    assert of_scenes["ceiling_lo"] < of_tiles["ceiling_lo"] - 0.1
    assert of_scenes["caption_agreement_lo"] == of_tiles["caption_agreement_lo"]
    assert of_captions["caption_agreement_lo"] < of_tiles["caption_agreement_lo"] - 0.05
    unknown = {"tuned": ["dune", *["lake"] * 7], "test": ["lake"] * 8}
    metrics = measure_agreement(outputs, unknown, ["lake", "forest"], sites, each)
    assert metrics["caption_agreement_n"] == 7


def test_the_embedded_judge_is_said_to_know_rendered_scenes_only():
    from tools import evaluate

    (note,) = evaluate.describe_judge(REPOSITORY / "stages/embedded/models/scene")
    assert "rendered scenes only" in note


@pytest.mark.parametrize(
    "n, dimensions, said",
    [(64, 70, ["large bias", "far too high"]), (64, 40, ["far too high"]), (64, 20, [])],
)
def test_notes_say_where_fid_and_its_infinity_do_not_hold(capsys, n, dimensions, said):
    from tools.evaluate import print_results

    metrics = {"n": n, "n_real": n, "fid": 2.0, "fid_infinity": 9.0}
    metrics |= {"singular": int(n <= dimensions), "infinity_singular": int(n // 2 <= dimensions)}
    print_results(metrics, {}, "clip", [])
    text = capsys.readouterr().out
    assert [words for words in ("large bias", "far too high") if words in text] == said
    assert "real vs. real" not in text, "no floor"


def test_images_of_any_format_mode_and_size(evaluate, tmp_path):
    real = save_images(tmp_path / "real", suffix="jpg")
    generated = save_images(tmp_path / "generated/some class", seed=7).parent
    odd = generated / "some class"
    photo = Image.open(real / "forest_0.jpg").resize((80, 60))
    photo.convert("L").save(odd / "gray.png")
    photo.convert("RGBA").save(odd / "alpha.png")
    photo.convert("P").save(odd / "palette.gif")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(odd / "deep.png")
    (odd / "broken.png").write_bytes((odd / "gray.png").read_bytes()[:-40])
    photo.resize((9, 9)).save(odd / "tiny.png")
    (odd / "notes.txt").write_text("made by a model")

    line = refusal(evaluate, real, generated)
    assert "80 x 60 px" in line and "--resolution" in line
    result, text = evaluate(real, generated, "--resolution", 32)
    metrics = result["scene"]["standard"]
    assert metrics["n_real"] == 12 and metrics["n"] == 15
    assert metrics["fid_lo"] <= metrics["fid"] <= metrics["fid_hi"]
    skipped = result["measured_on"]["tuned"]["skipped"]
    names = sorted(name for entry in skipped.values() for name in entry["names"])
    # What is black and white in 16 bits, only the whole data set tells.
    left_out = ("broken.png", "deep.png", "notes.txt", "tiny.png")
    assert names == [f"some class/{name}" for name in left_out]
    assert "broken.png" in text


@pytest.mark.parametrize("bands", [1, 4])
def test_16_bit_tiles_are_told_where_8_bit_ones_are(evaluate, tmp_path, bands):
    """A run decodes them by its `stretch` and `bands`."""
    generated = save_images(tmp_path / "generated", seed=7)
    deep = np.full((bands, 32, 32), 3000, np.uint16)
    for number in range(12):
        write_raster(tmp_path / f"real/forest_{number}.tif", deep + number, **UTM)
    line = refusal(evaluate, tmp_path / "real", generated)
    assert "data/imagery/test" in line and "tools.export imagefolder test <folder>" in line


def test_the_same_images_twice_and_sets_of_two_sizes_are_said(evaluate, tmp_path):
    real = save_images(tmp_path / "real")
    copy = shutil.copytree(real, tmp_path / "copy")
    for generated in (real, copy):
        result, text = evaluate(real, generated)
        assert result["scene"]["standard"]["fid"] < 1e-6
        assert "12 images are both in" in text
    large = tmp_path / "large"
    large.mkdir()
    for file in real.iterdir():
        Image.open(file).resize((48, 48)).save(large / file.name)
    _, text = evaluate(real, large)
    assert "32 px" in text and "48 px" in text
    _, text = evaluate(real, large, "--resolution", 32)
    assert "48 px" not in text


def test_copies_of_training_images_and_repeated_images_are_said(evaluate, tmp_path):
    real, train = (save_images(tmp_path / name, seed=i) for i, name in enumerate(("real", "train")))
    generated = shutil.copytree(train, tmp_path / "generated")
    _, text = evaluate(real, generated, "--train", train)
    assert f"12 images are both in {generated} and in {train}" in text
    assert "copies of others" not in text
    for file in sorted(generated.iterdir())[:3]:
        shutil.copy(file, file.with_stem(f"{file.stem}1"))
    _, text = evaluate(real, generated, "--train", train)
    assert f"12 images are both in {generated} and in {train}" in text
    assert f"{generated}: 3 of 15 images are copies of others" in text


@pytest.mark.parametrize(
    "real, generated, is_alike",
    [
        ([17] * 12, [34] * 12, True),  # in one proportion
        ([18] * 12, [18] * 11 + [17], True),  # all but one file
        ([300, 100, 30], [300, 100, 30], True),
        ([18] * 12, [25, 11] * 6, False),  # as independent sets
        ([18] * 12, [18] * 11, False),
        ([18], [34], False),
        ([1] * 100, [1] * 50 + [0] * 50 + [1] * 50, False),  # scenes of one image each
        ([1] * 100, [2] * 100, True),
    ],
)
def test_sets_whose_scenes_are_more_alike_than_by_chance_are_said(real, generated, is_alike):
    from tools.evaluate import compare_scenes
    from tools.image_sets import ImageSet

    sets = [
        ImageSet(Path(), Path(), scenes=np.repeat(range(len(counts)), counts).astype(str).tolist())
        for counts in (real, generated)
    ]
    assert bool(compare_scenes(*sets)) == is_alike


def test_sets_of_the_same_share_of_images_of_each_scene_are_said(evaluate, tmp_path):
    """Class-balanced sets match better than independent ones, of which the metrics are."""
    said = "nearly the same share of images of each scene"
    real, generated = (save_images(tmp_path / f"{seed}", seed=seed) for seed in (0, 7))
    _, text = evaluate(real, generated)
    assert said in text
    (generated / "forest_0.png").unlink()
    _, text = evaluate(real, generated)
    assert said not in text
    (real / "forest_0.png").unlink()
    for folder in (real, generated):
        for number, file in enumerate(sorted(folder.iterdir())):
            file.rename(folder / f"{number}.png")
    _, text = evaluate(real, generated)
    assert said not in text, "scenes are not known"


def test_images_that_were_enlarged_are_said(evaluate, tmp_path):
    real = save_images(tmp_path / "real")
    (tmp_path / "large").mkdir()
    for i, file in enumerate(sorted(real.iterdir())):
        size = (40, 90) if i == 0 else (48, 60)
        Image.open(file).resize(size).save(tmp_path / "large" / file.name)
    _, text = evaluate(real, real)
    assert "were enlarged to" not in text
    result, text = evaluate(real, tmp_path / "large", "--resolution", 48)
    described = result["measured_on"]
    assert f"{real}: 12 of 12 images were enlarged to 48 px, the smallest from 32 px" in text
    assert f"{tmp_path / 'large'}: 1 of 12 images were enlarged to 48 px" in text
    assert described["test"]["smallest_source_px"] == 32
    assert described["tuned"]["smallest_source_px"] == 40
    assert described["tuned"]["side_px"] == 48


def test_names_and_order_of_the_images_do_not_matter(evaluate, tmp_path):
    """Intervals are of random halves; those of a set in another order would be others."""
    rows = tile_rows(0, 24, seed=7)
    for name, order in (("rows", rows), ("reversed", rows[::-1])):
        renamed = [
            row | {"filename": f"{row['scene']}_{name}{i}.jpg"} for i, row in enumerate(order)
        ]
        write_shards(tmp_path / name, renamed, SCHEMA)
    results = [
        evaluate("data/imagery/test", tmp_path / name, "--train", "data/imagery/train")[0]
        for name in ("rows", "reversed")
    ]
    assert results[0] == results[1]
    assert results[0]["captions"]["caption_agreement_n"] == 24


def test_images_need_no_captions_under_a_known_name(evaluate, tmp_path):
    """The pipeline's own synthetic set has a column `prompt`, which `fetch_imagery` refuses."""
    rows = [
        {
            "image": row["image"],
            "row": i,
            "label": CLASSES.get(row["scene"], "Other"),
            "prompt": f"a lake seen from far above, {i}",
        }
        for i, row in enumerate(tile_rows(0, 12, seed=7))
    ]
    schema = LABELED_SCHEMA.append(pa.field("prompt", pa.string()))
    write_shards(tmp_path / "synthetic", rows, schema)
    result, _ = evaluate("data/imagery/test", tmp_path / "synthetic")
    assert result["scene"]["standard"]["n"] == 12
    without_labels = [{key: row[key] for key in ("image", "prompt")} for row in rows]
    schema = pa.schema([schema.field("image"), schema.field("prompt")])
    write_shards(tmp_path / "prompted", without_labels, schema)
    assert evaluate("data/imagery/test", tmp_path / "prompted")[0]["scene"]["standard"]["n"] == 12
    listed = save_images(tmp_path / "listed")
    lines = [
        {"file_name": file.name, "prompt": f"a lake seen from far above, {file.stem}"}
        for file in listed.iterdir()
    ]
    (listed / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluate("data/imagery/test", listed)[0]["scene"]["standard"]["n"] == 12


def test_what_gives_no_number_is_refused_in_one_line(evaluate, tmp_path):
    real = save_images(tmp_path / "real")
    few = save_images(tmp_path / "few", 5)
    (tmp_path / "empty").mkdir()
    assert "5 usable image(s); at least 8" in refusal(evaluate, real, few)
    assert "no images in it" in refusal(evaluate, tmp_path / "empty", real)
    assert f"{tmp_path}/nowhere: no such" in refusal(evaluate, real, tmp_path / "nowhere")
    assert "splits test and train" in refusal(evaluate, "data/imagery", real)
    assert "scene classifier" in refusal(evaluate, real, real, "--weights", tmp_path)
    (tmp_path / "config.json").write_text('{"model": "resnet18"}')
    assert "lacks mean" in refusal(evaluate, real, real, "--weights", tmp_path)
    line = refusal(evaluate, real, real, "--features", "dinov2")
    assert "dinov2/model.safetensors is missing" in line and "fetch_model" in line
    assert "at least 16" in refusal(evaluate, real, real, "--resolution", 8)
    for file in (tmp_path, tmp_path / "nowhere/result.json"):  # before the work
        line = refusal(evaluate, real, real, "--json", file)
        assert f"--json {file}: can't be written" in line


def test_images_of_two_classes_may_have_one_name(evaluate, tmp_path):
    """A table of class folders that keeps base names alone."""
    rows = [
        {
            "image": row["image"] | {"path": f"{i // len(CLASSES)}.png"},
            "row": i,
            "label": list(CLASSES.values())[i % len(CLASSES)],
        }
        for i, row in enumerate(tile_rows(0, 12, seed=7))
    ]
    write_shards(tmp_path / "table", rows, LABELED_SCHEMA)
    assert evaluate("data/imagery/test", tmp_path / "table")[0]["scene"]["standard"]["n"] == 12
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"file_name": "0.png", "text": "a lake"}\n')
    line = refusal(evaluate, "data/imagery/test", tmp_path / "table", "--captions", captions)
    assert "0.png" in line and "--captions" in line


def test_captions_give_the_scenes_or_the_clip_score(evaluate, tmp_path):
    real = save_images(tmp_path / "real")
    generated = save_images(tmp_path / "generated", seed=7)
    write_clip(tmp_path / "vision/clip")
    captions = tmp_path / "captions.jsonl"
    clip = ("--features", "clip", "--weights", tmp_path / "vision", "--captions", captions)

    def write_lines(**changes: object) -> None:
        lines = [
            {"file_name": f"{file.stem}.jpg", "text": f"a picture of a {file.stem}"} | changes
            for file in generated.iterdir()
        ]
        captions.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write_lines(text="a lake")
    result, text = evaluate(real, generated, *clip)
    assert "clip_score_lo" not in result["captions"] and "12 images of 1 caption(s)" in text
    write_lines()
    result, text = evaluate(real, generated, *clip)
    scores = result["captions"]
    assert "too narrow" not in text, "each image has its caption"
    assert 0 <= scores["clip_score_lo"] < scores["clip_score"] < scores["clip_score_hi"] <= 100
    assert "cmmd" in result["clip"]["standard"]
    assert "CLIP score" in text
    write_lines(scene="lake", text="a lake")
    result, text = evaluate(real, generated, "--captions", captions)
    assert result["captions"]["caption_agreement_n"] == 12
    assert result["captions"]["caption_agreement_hi"] == 1 and "12 images of 1 caption(s)" in text
    write_lines(text=["one", "two"])
    assert "2 captions" in refusal(evaluate, real, generated, *clip)
    write_lines(file_name="other.png")
    assert "line 2" in refusal(evaluate, real, generated, *clip)  # other captions of one image
    captions.write_text('{"file_name": "other.png", "text": "a lake"}\n')
    line = refusal(evaluate, real, generated, *clip)
    assert "no line for 12 of 12" in line and "other.png" in line
    captions.write_text('{"text": "a lake"}\n')
    assert "line 1" in refusal(evaluate, real, generated, *clip)
    (tmp_path / "captions.txt").write_text("a lake\n")
    line = refusal(evaluate, real, real, "--captions", tmp_path / "captions.txt")
    assert "not a .jsonl or .csv file" in line
    line = refusal(evaluate, real, real, "--features", "dinov2", "--captions", captions)
    assert "no use" in line


def test_captions_that_are_not_read_and_captions_without_a_scene_are_said(evaluate, tmp_path):
    real = save_images(tmp_path / "real")
    generated = tmp_path / "generated"
    generated.mkdir()
    lines = ["file_name,text"]
    for number, file in enumerate(sorted(save_images(tmp_path / "named", seed=7).iterdir())):
        file.rename(generated / f"{number}.png")
        lines.append(f"{number}.png,a picture of a lake")
    captions = generated / "captions.csv"
    captions.write_text("\n".join(lines))
    result, text = evaluate(real, generated)
    assert f"{generated}: captions.csv seems to hold captions" in text
    assert "12 images of 1 caption(s)" not in text and "no scene" not in text
    result, text = evaluate(real, generated, "--captions", captions)
    assert "seems to hold" not in text and "12 images of 1 caption(s)" in text
    assert not result["captions"] and f"{captions} has no scene" in text
    of_excel = tmp_path / "captions.csv"
    of_excel.write_text("\n".join(lines).replace(",", ";"))
    assert "separate them by commas" in refusal(evaluate, real, generated, "--captions", of_excel)
    captions.rename(generated / "metadata.csv")
    _, text = evaluate(real, generated)
    assert "seems to hold" not in text and "12 images of 1 caption(s)" in text


def write_clip(folder: Path) -> None:
    """A tiny CLIP with random weights, in the layout of the Hugging Face hub."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(
        REPOSITORY / "stages/embedded/models/diffusion/tokenizer"
    )
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tiny["num_attention_heads"] = 2
    text = tiny | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text["eos_token_id"] = tokenizer.eos_token_id
    vision = tiny | {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessing = {"crop_size": 28, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
