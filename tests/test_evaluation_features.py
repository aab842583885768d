"""train_scene, features and fid on a few rendered tiles, in a new folder."""

import csv
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tiny_diffusion import run

from stages.common.artifacts import IMAGE, digest, encode_png, read_rows, write_shards
from stages.common.sources import file_hashes
from stages.embedded.scenes import SCENES as ALL_SCENES
from stages.embedded.scenes import render

SCENES = ("forest", "lake", "parking")  # easily told apart
SCHEMA = pa.schema([("image", IMAGE), ("filename", pa.string()), ("scene", pa.string())])
LABELED_SCHEMA = pa.schema([("image", IMAGE), ("row", pa.int32()), ("label", pa.string())])
CLASSES = {"forest": "Woody Vegetation", "lake": "Water Body"}


def render_cell(scene: str, i: int, seed: int = 0) -> dict:
    """The `image` cell of a rendered tile of 32 px."""
    pixels, *_ = render(scene, seed, i, 32, "domain")
    return {"bytes": encode_png(Image.fromarray(pixels)), "path": None}


def tile_rows(start: int, count: int, seed: int = 0) -> list[dict]:
    """Rows of tiles `start` to `start + count`, whose scenes take turns."""
    rows = []
    for i in range(start, start + count):
        scene = SCENES[i % 3]
        image = render_cell(scene, i, seed)
        rows.append({"image": image, "filename": f"{scene}_{i}.png", "scene": scene})
    return rows


def write_params(**sections) -> None:
    """params.yaml: the demo's with a judge trained here, and these changes to its sections."""
    import yaml

    values = yaml.safe_load((Path(__file__).parent.parent / "params/demo.yaml").read_text())
    values["train_scene"]["source"] = "scratch"
    for name, changes in sections.items():
        values[name] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """A resume cache for each test."""
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path_factory.mktemp("scratch")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with imagery, samples and a trained scene network."""
    path = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        write_params(
            train_scene={
                "model": "test_byobnet",
                "resolution": 32,
                "epochs": 12,
                "batch_size": 16,
                "lr": 4e-3,
            },
            features={"extractors": ["scene"], "batch_size": 16, "padded": True},
            fid={"standard_min_n": 20, "paper_n": 20, "paper_draws": 2},
        )
        write_shards("data/imagery/train", tile_rows(0, 120), SCHEMA)
        write_shards("data/imagery/valid", tile_rows(120, 30), SCHEMA)
        write_shards("data/imagery/test", tile_rows(150, 45), SCHEMA)
        write_shards("data/samples/tuned", tile_rows(150, 45, seed=7), SCHEMA)
        # The base model draws the same forest for every caption.
        base_rows = [row | {"image": render_cell("forest", 9)} for row in tile_rows(150, 45)]
        write_shards("data/samples/base", base_rows, SCHEMA)
        synthetic_rows = [
            {"image": render_cell(scene, i, 9), "row": i, "label": CLASSES[scene]}
            for i in range(10)
            for scene in CLASSES
        ]
        write_shards("data/synthetic", synthetic_rows, LABELED_SCHEMA)
        from stages import train_scene

        train_scene.main()
    return path


@pytest.fixture
def in_folder(folder, monkeypatch):
    """The test runs in `folder`."""
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def in_copy(folder, monkeypatch, tmp_path):
    """The test runs in a copy of `folder`, which it may change."""
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def extract_features(*sets: str) -> None:
    from stages import features

    for which in sets:
        features.main(which)


def read_metrics(name: str) -> dict:
    return json.loads(Path(f"metrics/{name}.json").read_text())


def run_fid() -> tuple[dict, dict]:
    """Metrics of the features `scene`, and caption agreement."""
    from stages import fid

    fid.main()
    return read_metrics("fid")["scene"], read_metrics("caption_agreement")


def read_curve_sizes() -> list[str]:
    """Images per set at each point of the FID curve."""
    header, *lines = Path("metrics/plots/fid_curve.csv").read_text().splitlines()
    assert header == "images,one_over_n,tuned,base,floor,tuned_line,base_line,floor_line"
    assert lines[-1].startswith(",0.0,,,,")  # where the lines meet the axis
    return [line.split(",")[0] for line in lines[:-1]]


def test_the_scene_network_learns_and_its_config_holds_its_accuracy(in_folder):
    config = json.loads(Path("models/scene/config.json").read_text())
    assert config["scenes"] == sorted(SCENES)
    assert config["valid_accuracy"] > 0.8
    assert config["n_valid"] == 30


def test_the_shipped_judge_knows_fresh_tiles():
    """Of seeds that a run can have, which it was not trained on: its training seed is no such."""
    import torch

    from stages import train_scene
    from stages.embedded import train_scene_classifier
    from stages.evaluation.networks import load_scene_network

    assert min(train_scene_classifier.SEED, train_scene_classifier.HELD_OUT_SEED) >= 2**32
    network, config = load_scene_network(train_scene.EMBEDDED)
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
    images, labels = train_scene_classifier.render_labeled_tiles(5, 360, config["scenes"])
    predicted = train_scene.predict(network, images, config["mean"], config["std"])
    assert (predicted == labels).double().mean() >= 0.95


def test_the_embedded_judge_goes_through_the_stage(monkeypatch, tmp_path):
    """It has the same bytes whatever the run's tiles. A scene that it doesn't know is refused."""
    from stages import train_scene
    from stages.evaluation.extractors import load_extractor

    monkeypatch.chdir(tmp_path)
    names = ("config.json", "model.safetensors")
    shipped = file_hashes([train_scene.EMBEDDED / name for name in names])
    for seed in (0, 1):
        write_params(train_scene={"source": "embedded"})
        write_shards("data/imagery/train", tile_rows(0, 6, seed), SCHEMA)
        write_shards("data/imagery/valid", tile_rows(6, 3, seed), SCHEMA)
        train_scene.main()
        assert file_hashes(list(Path("models/scene").iterdir())) == shipped
    assert load_extractor("scene").config["scenes"] == sorted(ALL_SCENES)

    cloudy = [row | {"scene": "cloud"} for row in tile_rows(6, 1)]
    write_shards("data/imagery/valid", cloudy, SCHEMA)
    with pytest.raises(SystemExit, match="^error: data/imagery/valid: .*cloud.*scratch$"):
        train_scene.main()
    assert file_hashes(list(Path("models/scene").iterdir())) == shipped


def test_train_scene_writes_the_same_bytes_twice(in_folder):
    from stages import train_scene

    first = Path("models/scene/model.safetensors").read_bytes()
    train_scene.main()
    assert Path("models/scene/model.safetensors").read_bytes() == first


def train_killed_at(step: int) -> None:
    """Run `train_scene` with a checkpoint at every step, and kill it when this one is written."""
    from stages import train_scene
    from stages.diffusion import checkpoints, resumable

    resumable.SECONDS = 0
    save_step = checkpoints.save_step

    def save_step_then_kill(folder, tensors, state, keep):
        save_step(folder, tensors, state, keep)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_step = save_step_then_kill
    train_scene.main()


@pytest.mark.parametrize("model", ["test_byobnet", "test_vit_relpos"])
def test_killed_training_resumes_and_ends_with_the_same_bytes(in_copy, model):
    """In an epoch and after both; a network with batch normalization, and one with dropout."""
    from stages import train_scene

    config = {"model": model, "resolution": 32, "epochs": 2, "batch_size": 16, "lr": 4e-3}
    write_params(train_scene=config)  # two epochs of 7 steps
    code, log = run(in_copy, train_scene.main)
    assert code == 0 and "resuming" not in log, log
    expected = digest("models/scene")
    assert not list(Path("scratch").rglob("*.safetensors"))
    shutil.rmtree("models/scene")

    for step in (3, 9, 14):
        assert run(in_copy, train_killed_at, step)[0] == -signal.SIGKILL
        assert not Path("models/scene").exists()
    code, log = run(in_copy, train_scene.main)
    assert code == 0 and "train_scene: resuming from step 14\n" in log, log
    assert digest("models/scene") == expected


def test_other_params_or_tiles_train_from_the_beginning(in_copy):
    from stages import train_scene

    config = {"model": "test_byobnet", "resolution": 32, "epochs": 1, "batch_size": 16}
    write_params(train_scene=config)
    assert run(in_copy, train_killed_at, 5)[0] == -signal.SIGKILL
    write_params(train_scene=config | {"batch_size": 15})
    code, log = run(in_copy, train_scene.main)
    assert code == 0 and "resuming" not in log, log
    write_params(train_scene=config)
    write_shards("data/imagery/train", tile_rows(0, 119), SCHEMA)
    code, log = run(in_copy, train_scene.main)
    assert code == 0 and "resuming" not in log, log


def test_metrics_with_their_intervals_floor_base_and_ceiling(in_folder):
    extract_features("real", "tuned", "base", "synthetic")
    distances, agreement = run_fid()
    standard = distances["standard"]
    paper = distances["paper"]
    assert standard["n"] == 45
    assert standard["fid_lo"] <= standard["fid"] <= standard["fid_hi"]
    assert standard["fid"] < standard["fid_base"] / 3
    assert standard["recall_base"] < 0.1 < standard["recall"]
    assert standard["sinkhorn_lo"] <= standard["sinkhorn"] <= standard["sinkhorn_hi"]
    for name in ("fid_infinity", "sinkhorn"):
        assert standard[name] < standard[f"{name}_base"]
    # Of fewer images than dimensions, FID infinity has an unknown bias.
    assert standard["infinity_singular"] == 1 and "fid_infinity_lo" not in standard
    assert "fid_infinity_floor_lo" not in standard
    assert paper["n"] == 20
    assert paper["fid"] > standard["fid"]  # of fewer images
    assert paper["fid"] < paper["fid_base"] / 3
    assert paper["fid_std"] > 0

    assert agreement["caption_agreement"] > 0.7
    assert agreement["ceiling"] > 0.7
    assert agreement["class_agreement"] > 0.7
    assert agreement["caption_agreement_base"] == pytest.approx(1 / 3, abs=0.01)  # all forests
    assert set(agreement["per_scene"]) == set(SCENES)
    assert min(agreement["per_scene"].values()) == agreement["per_scene_min"]
    with open("metrics/plots/caption_agreement_by_scene.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == "scene,tuned,tuned_lo,tuned_hi,base,real,n".split(",")
    assert [(row["scene"], float(row["base"])) for row in table] == [
        ("forest", 1),
        ("lake", 0),
        ("parking", 0),
    ]
    for column, share in (("tuned", "caption_agreement"), ("real", "ceiling")):  # 15 of each scene
        shares = [float(row[column]) for row in table]
        assert np.mean(shares) == pytest.approx(agreement[share])
    assert read_curve_sizes() == ["45", "22", "15", "11"]


def test_a_selected_set_is_not_scored_by_the_classifier_that_selected_it(in_copy):
    """Its images that show their class to that classifier are all that is left: it would score 1.

    The same images without a selection are scored, and the other sets have the same numbers.
    """
    # A generator that draws the wrong class half of the time.
    rows = read_rows("data/synthetic")
    for i, row in enumerate(rows):
        row["image"] = render_cell(list(CLASSES)[(i + i // 2) % 2], i, 9)
    shutil.rmtree("data/synthetic")
    write_shards("data/synthetic", rows, LABELED_SCHEMA)
    extract_features("real", "tuned", "base", "synthetic")
    _, before = run_fid()
    images_before = read_metrics("images")

    # Only what the classifier accepts is kept.
    scenes = json.loads(Path("models/scene/config.json").read_text())["scenes"]
    seen = load_file("data/features/synthetic/scene.safetensors")["logits"].argmax(1)
    kept = [row for row, i in zip(rows, seen) if CLASSES.get(scenes[i]) == row["label"]]
    assert before["class_agreement"] == len(kept) / len(rows) < 0.7
    shutil.rmtree("data/synthetic")
    write_shards("data/synthetic", kept, LABELED_SCHEMA)
    extract_features("synthetic")
    _, unaware = run_fid()
    assert unaware["class_agreement"] == 1, "the self-grading"

    # A run that knows of the selection refrains from it.
    write_params(
        generate={"keep": {"draw": 2.0}},
        fid={"standard_min_n": 20, "paper_n": 20, "paper_draws": 2},
    )
    _, agreement = run_fid()
    of_selected = {key for key in before if key.startswith("class_agreement")}
    assert of_selected
    assert agreement == {key: before[key] for key in before.keys() - of_selected}
    images = read_metrics("images")
    assert set(images["scene"]) == {"tuned"} and set(images["pixels"]) == {"tuned", "synthetic"}
    assert images["scene"]["tuned"] == images_before["scene"]["tuned"]


def test_a_black_frame_raises_the_fid_of_a_perfect_generator_too(in_folder):
    """In the released script's protocol even real training tiles are far from the framed tiles."""
    extract_features("real", "tuned", "base", "synthetic")
    distances, _ = run_fid()
    plain = distances["paper"]
    padded = distances["paper_padded"]
    assert padded["fid"] > 2 * plain["fid"]
    assert padded["fid_floor"] > 2 * plain["fid_floor"]


def change_images(folder: str, change) -> None:
    """Replace each image of a folder of shards by `change(image, its row number)`."""
    from stages.common.artifacts import decode_image

    rows = read_rows(folder)
    for i, row in enumerate(rows):
        row["image"] = {"bytes": encode_png(change(decode_image(row["image"]), i)), "path": None}
    shutil.rmtree(folder)
    write_shards(folder, rows, SCHEMA)


def test_a_generator_that_copies_training_tiles_is_caught(in_copy, capsys):
    """Copies, plain or rotated or mirrored, in pixels; plain ones in features too."""
    from stages.common.artifacts import decode_image

    train = [decode_image(row["image"]) for row in read_rows("data/imagery/train", ["image"])]
    extract_features("real", "base", "synthetic")
    change_images("data/samples/tuned", lambda image, i: train[i].transpose(i % 7))
    extract_features("tuned")
    capsys.readouterr()
    run_fid()
    images = read_metrics("images")
    assert images["pixels"]["tuned"]["memorized"] > 0.9
    assert images["pixels"]["synthetic"]["memorized"] < 0.3
    (warning,) = re.findall("fid: tuned: warning: ([0-9.]+) .* pixels", capsys.readouterr().err)
    assert float(warning) == pytest.approx(images["pixels"]["tuned"]["memorized"], abs=0.0006)

    change_images("data/samples/tuned", lambda image, i: train[i])
    extract_features("tuned")
    run_fid()
    images = read_metrics("images")
    assert images["pixels"]["tuned"]["memorized"] > 0.9
    assert images["pixels"]["synthetic"]["memorized"] < 0.3
    assert images["scene"]["tuned"]["memorized"] > 0.9
    # Sample i is a copy of training tile i, and its file name has 150 + i.
    with open("metrics/plots/nearest_training.csv") as file:
        closest = next(csv.DictReader(file))
    generated = int(re.search(r"_(\d+)", closest["generated"])[1])
    training = int(re.search(r"_(\d+)", closest["training"])[1])
    assert generated - 150 == training


def test_jpeg_compression_or_resizing_of_one_set_is_warned_of(in_folder, capsys):
    """Every set went through the same renderer; then one is compressed, or resized twice."""
    from stages.common.artifacts import decode_image
    from stages.evaluation.compression_artifacts import compare_compression_artifacts
    from stages.evaluation.extractors import PixelExtractor
    from stages.evaluation.networks import decode_batch

    def measure(images) -> dict:
        rows = [{"image": {"bytes": encode_png(image), "path": None}} for image in images]
        outputs = PixelExtractor()(decode_batch(rows))
        return {key: value.numpy() for key, value in outputs.items()}

    def compress(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=75)
        return Image.open(file)

    def resize_twice(image):
        small = image.resize((20, 20), Image.Resampling.BICUBIC)
        return small.resize((32, 32), Image.Resampling.BICUBIC)

    train, test = (
        [decode_image(row["image"]) for row in read_rows(f"data/imagery/{split}", ["image"])]
        for split in ("train", "test")
    )
    real = measure(train)
    assert compare_compression_artifacts(real, measure(test), "test")["warned"] == 0
    assert not capsys.readouterr().err

    compressed = measure([compress(image) for image in test])
    result = compare_compression_artifacts(real, compressed, "samples")
    assert result["warned"] == 1
    assert result["blocking"] - result["blocking_real"] > 0.1
    text = capsys.readouterr().err
    assert "fid: samples: warning: brightness steps at the borders of 8 x 8 blocks differ" in text

    resized = measure([resize_twice(image) for image in test])
    result = compare_compression_artifacts(real, resized, "samples")
    assert result["warned"] == 1
    assert result["detail_ratio"] < 0.8
    assert "fid: samples: " in capsys.readouterr().err


def extract_counting(which: str, kill_after: int = -1) -> None:
    """Run `features`, keep each batch at once, and write how many went through to `batches.txt`.

    The first process is killed when this number of files of batches is written.
    """
    from stages import features
    from stages.evaluation import extraction

    extraction.SECONDS = 0
    save = extraction.save
    written: list[Path] = []

    def save_then_kill(path: Path, *content: dict) -> None:
        save(path, *content)
        written.append(path)
        if len(written) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    extraction.save = save_then_kill
    features.main(which)
    Path("batches.txt").write_text(str(len(written)))


def test_a_killed_run_repeats_no_finished_batch_and_ends_with_the_same_bytes(in_copy):
    """Killed in the second extractor and run again by more processes; a damaged file is redone."""
    assert run(in_copy, extract_counting, "real")[0] == 0
    expected = digest("data/features/real")
    # Batches of 16: 8 of train, 3 of test, 3 of padded tiles; then 8 and 3 of pixels.
    assert Path("batches.txt").read_text() == "25"

    for processes in (1, 2):
        assert run(in_copy, extract_counting, "real", 16)[0] == -signal.SIGKILL
        kept = sorted(Path("scratch").rglob("*.safetensors"))
        assert len(kept) == 16
        kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"?")
        code, log = run(in_copy, extract_counting, "real", processes=processes)
        assert code == 0, log
        assert f"{kept[0].name}: incomplete or damaged" in log
        assert "features: scene of padded tiles: 3 finished batches of an earlier run" in log
        assert processes == 2 or Path("batches.txt").read_text() == "10"
        assert digest("data/features/real") == expected
        assert not list(Path("scratch").rglob("*.safetensors"))


def test_other_params_images_or_weights_take_no_kept_batch(in_copy):
    assert run(in_copy, extract_counting, "synthetic", 4)[0] == -signal.SIGKILL
    assert len(list(Path("scratch").rglob("*.safetensors"))) == 4

    def count_batches() -> str:
        code, log = run(in_copy, extract_counting, "synthetic")
        assert code == 0 and "of an earlier run" not in log, log
        return Path("batches.txt").read_text()

    params = Path("params.yaml").read_text()
    write_params(features={"extractors": ["scene"], "batch_size": 10, "padded": True})
    assert count_batches() == "4"
    Path("params.yaml").write_text(params)
    config = json.loads(Path("models/scene/config.json").read_text())
    Path("models/scene/config.json").write_text(json.dumps(config | {"mean": [0.4] * 3}))
    assert count_batches() == "4"
    Path("models/scene/config.json").write_text(json.dumps(config))
    rows = read_rows("data/synthetic")
    write_shards("data/synthetic", rows[::-1], LABELED_SCHEMA)
    assert count_batches() == "4"


def test_of_several_images_per_caption_the_first_is_measured(in_copy):
    extract_features("tuned")
    before = {path.name: path.read_bytes() for path in Path("data/features/tuned").iterdir()}
    rows = read_rows("data/samples/tuned")
    further = [row | {"image": render_cell("forest", 3)} for row in rows]
    write_shards("data/samples/tuned", rows + further, SCHEMA)
    extract_features("tuned")
    after = {path.name: path.read_bytes() for path in Path("data/features/tuned").iterdir()}
    assert after == before


def test_shuffled_captions_bring_agreement_to_chance(in_copy):
    rows = read_rows("data/samples/tuned")
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [row | {"image": rows[i]["image"]} for row, i in zip(rows, order)]
    shutil.rmtree("data/samples/tuned")
    write_shards("data/samples/tuned", shuffled, SCHEMA)
    extract_features("real", "tuned", "base", "synthetic")
    distances, agreement = run_fid()
    chance = agreement["caption_agreement_chance"]
    assert agreement["caption_agreement_lo"] < chance < agreement["caption_agreement_hi"]
    assert (chance, agreement["class_agreement_chance"]) == pytest.approx((1 / 3, 1 / 3))
    # The images themselves are as good as before.
    assert distances["standard"]["fid"] < distances["standard"]["fid_base"] / 3


def test_too_few_images_are_refused_by_both_protocols(in_folder, capsys):
    from stages.evaluation.pairing import Pairing
    from stages.evaluation.protocols import paper_protocol, standard_protocol
    from stages.params import load

    config = load().fid.model_copy(update={"standard_min_n": 200, "paper_n": 250})
    refused = {"refused": 1, "n": 45, "n_needed": 200}
    # Their curve is drawn all the same, and may not meet the FID of infinitely many images.
    for dimensions, singular in ((22, 1), (4, 0)):
        features = np.zeros((45, dimensions), np.float32)
        sets = dict.fromkeys(("test", "train", "tuned", "base"), features)
        found = standard_protocol(sets, {}, config, 0, "scene")
        assert found == refused | {"infinity_singular": singular}
    assert "fid.standard_min_n" in capsys.readouterr().err
    scenes = np.repeat("lake", 45)
    pairing = Pairing(np.arange(45), scenes, scenes)
    assert paper_protocol(sets, pairing, config, 0) == refused | {"n_needed": 250}
    assert "fid.paper_n" in capsys.readouterr().err


def test_features_do_not_depend_on_the_rest_of_the_batch(in_folder):
    """Another batch size changes rounding only."""
    import torch

    from stages.evaluation.extractors import load_extractor
    from stages.evaluation.networks import decode_batch

    images = decode_batch(read_rows("data/imagery/test", ["image"]))
    network = load_extractor("scene")
    with torch.inference_mode():
        together = network(images)["features"]
        alone = network(images[:1])["features"]
    assert torch.allclose(together[:1], alone, rtol=1e-4, atol=1e-4)
    extract_features("tuned")
    stored = load_file("data/features/tuned/scene.safetensors")
    assert stored["features"].dtype == np.float32
    assert len(stored["features"]) == len(stored["logits"]) == 45


def test_a_pretrained_extractor_stands_beside_the_judge(in_copy):
    """EfficientNet-Lite0 from its Python package: base > fine-tuned, and its resize is its own."""
    from stages import fetch_model

    extractors = ["scene", "efficientnet"]
    write_params(
        train_scene={"model": "test_byobnet", "resolution": 32},
        features={"extractors": extractors, "batch_size": 12, "padded": False},
        fid={"standard_min_n": 20, "paper_n": 20, "paper_draws": 2, "subsets": 4},
    )
    write_shards("data/imagery/train", tile_rows(0, 24), SCHEMA)
    write_shards("data/imagery/test", tile_rows(150, 24), SCHEMA)
    write_shards("data/samples/tuned", tile_rows(150, 24, seed=7), SCHEMA)
    base_rows = [row | {"image": render_cell("forest", 9)} for row in tile_rows(150, 24)]
    write_shards("data/samples/base", base_rows, SCHEMA)
    shutil.rmtree("data/features", ignore_errors=True)
    fetch_model.main("vision")
    extract_features("real", "base", "tuned", "synthetic")
    run_fid()
    metrics = read_metrics("fid")
    assert sorted(metrics) == sorted(extractors)
    for extractor in extractors:
        values = metrics[extractor]["standard"]
        assert values["fid_floor"] <= values["fid"] < values["fid_base"]
        assert values["kid_x1000"] < values["kid_x1000_base"]
    assert metrics["efficientnet"]["standard"]["singular"] == 1  # 24 images, 112 features
    assert {"pixels", *extractors} < set(read_metrics("images"))


def test_a_network_of_one_fixed_size_is_built_for_the_resolution(in_folder, monkeypatch, tmp_path):
    """A vision transformer, published for 160 px, reads tiles of 32."""
    import torch

    from stages import train_scene
    from stages.evaluation.extractors import load_extractor

    monkeypatch.chdir(tmp_path)
    shutil.copytree(in_folder / "data/imagery", "data/imagery")
    write_params(train_scene={"model": "test_vit", "resolution": 32, "epochs": 1, "batch_size": 16})
    train_scene.main()
    with torch.inference_mode():
        output = load_extractor("scene")(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    assert output["logits"].shape == (2, 3)


@pytest.mark.parametrize(
    "model, batch_size, epoch",
    [
        ("test_resnet", 16, "epoch 1"),  # the loss diverges
        ("test_byobnet", 120, ""),  # a single step: only the trained network's answers show it
    ],
)
def test_training_that_diverges_replaces_nothing(
    in_folder, monkeypatch, tmp_path, model, batch_size, epoch
):
    from stages import train_scene

    monkeypatch.chdir(tmp_path)
    shutil.copytree(in_folder / "data/imagery", "data/imagery")
    shutil.copytree(in_folder / "models/scene", "models/scene")
    before = Path("models/scene/model.safetensors").read_bytes()
    write_params(
        train_scene={
            "model": model,
            "resolution": 32,
            "batch_size": batch_size,
            "lr": 1.0e30,
            "epochs": 1,
        }
    )
    with pytest.raises(SystemExit, match=rf"^error: train_scene.lr: .*{epoch}.*1e\+30"):
        train_scene.main()
    assert Path("models/scene/model.safetensors").read_bytes() == before


def replace_tiles(train: int, test: int) -> None:
    """Write this number of training and test tiles, and the features of all sets."""
    for split, start, count in (("train", 0, train), ("test", 150, test)):
        shutil.rmtree(f"data/imagery/{split}")
        write_shards(f"data/imagery/{split}", tile_rows(start, count), SCHEMA)
    for which, seed in (("tuned", 7), ("base", 8)):
        write_shards(f"data/samples/{which}", tile_rows(150, test, seed), SCHEMA)
    extract_features("real", "tuned", "base", "synthetic")


def test_one_test_tile_or_none_exits_with_an_error_that_names_the_folder(in_copy):
    from stages import fid

    replace_tiles(train=120, test=1)
    named = "^error: data/features/real/test: 1 .*fetch_imagery.test"
    with pytest.raises(SystemExit, match=named):
        fid.main()
    shutil.rmtree("data/imagery/test")
    write_shards("data/imagery/test", [], SCHEMA)
    with pytest.raises(SystemExit, match="^error: data/imagery/test: "):
        extract_features("real")


def test_fewer_training_than_test_tiles_have_no_real_vs_real(in_copy):
    replace_tiles(train=4, test=45)
    distances, _ = run_fid()
    for protocol in ("standard", "paper"):
        assert "fid" in distances[protocol] and "fid_floor" not in distances[protocol]
    assert read_curve_sizes() == ["45", "22", "15", "11"]
