"""Which images `select` keeps, and why what selected a set doesn't score it."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, change_params
from PIL import Image

from stages import ceiling, select
from stages.common.artifacts import IMAGE, digest, encode_png, read_json, read_rows, write_shards
from stages.embedded.scenes import render
from stages.evaluation.frechet import fid
from stages.evaluation.selection import Candidates, Selection, farthest_points, select_images


def group_equal(thumbnails: np.ndarray) -> np.ndarray:
    """The first image with the same thumbnail [N, T], of each."""
    _, first, group = np.unique(thumbnails, axis=0, return_index=True, return_inverse=True)
    return first[group.reshape(-1)]


# The rules


def test_farthest_points_of_a_line():
    """Nearest to the mean (3.2) is 3, far from it 10; then 0 and 6 are as far: 0 comes first."""
    line = np.array([[0.0], [10], [3], [2], [1], [6], [3], [3], [2], [2]])
    chosen = [set(farthest_points(line, count)) for count in range(6)]
    newest = [(chosen[i + 1] - chosen[i]).pop() for i in range(5)]
    assert [line[i, 0] for i in newest] == [3, 10, 0, 6, 2]
    assert newest[0] == 2 and newest[4] == 3  # the first of several
    assert farthest_points(line, 10).tolist() == list(range(10))
    assert farthest_points(line, 99).tolist() == list(range(10))
    assert farthest_points(line[:0], 3).tolist() == []


def random_candidates(seed: int, count: int = 60) -> Candidates:
    """Images of three scenes; of 40 different looks, so that some are alike."""
    rng = np.random.default_rng(seed)
    scenes = rng.choice(["lake", "coast", "town"], count)
    thumbnails = rng.integers(0, 40, (count, 1))
    return Candidates(scenes, rng.normal(size=(count, 8)).astype(np.float32), thumbnails)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_follows_the_rules(seed):
    candidates = random_candidates(seed)
    scenes = {"lake", "coast"}
    every = select_images(candidates, scenes, 60, group_equal)
    shows_class = np.isin(candidates.scenes, ["lake", "coast"])
    looks = candidates.thumbnails[:, 0]
    # Where all that pass are wanted: of each look, the first image that shows the class.
    expected = [np.flatnonzero(shows_class & (looks == look))[:1] for look in range(40)]
    assert every.kept.tolist() == sorted(np.concatenate(expected).tolist())
    assert every.rejected_diversity == 0
    wanted = len(every.kept) // 2
    half = select_images(candidates, scenes, wanted, group_equal)
    assert len(half.kept) == wanted
    assert set(half.kept) < set(every.kept) and (np.diff(half.kept) > 0).all()
    for selection in (every, half):
        rejected = sum(selection[1:])
        assert len(selection.kept) + rejected == 60
        assert selection.rejected_caption == (~shows_class).sum()


def test_a_class_without_known_scenes_skips_the_caption_rule():
    selection = select_images(random_candidates(0), set(), 10, group_equal)
    assert selection.rejected_caption == 0 and len(selection.kept) == 10


def test_no_candidate_left_is_an_empty_selection():
    selection = select_images(random_candidates(0), {"airport"}, 10, group_equal)
    assert selection.kept.tolist() == [] and selection.rejected_caption == 60


def test_selection_flatters_the_network_that_selected_and_no_other():
    """Why a selected set is scored in another network's features.

    Real images of a class are bright in both halves. A generator that knows no class draws each
    half bright or dark, with equal chances, and still does after a selection that looks at the left
    half alone. In features of the left half, FID is 1 + (sqrt(1 + s^2) - s)^2 for all images.
    """
    rng = np.random.default_rng(0)
    spread = 0.25
    count = 4000
    real = rng.normal(1, spread, (count, 2))  # brightness of the left and the right half
    drawn = rng.choice([-1, 1], (count, 2)) + rng.normal(0, spread, (count, 2))
    seen = np.where(drawn[:, 0] > 0, "bright", "dark")
    candidates = Candidates(seen, drawn[:, :1], np.arange(count)[:, None])
    kept = select_images(candidates, {"bright"}, count, group_equal).kept

    before = 1 + (np.sqrt(1 + spread**2) - spread) ** 2
    assert fid(real[:, :1], drawn[:, :1]) == pytest.approx(before, rel=0.05)
    assert (seen == "bright").mean() == pytest.approx(0.5, abs=0.03)
    # By what selected them, the images are perfect now.
    assert fid(real[:, :1], drawn[kept, :1]) < 0.01 * before
    assert (seen[kept] == "bright").all()
    # By another network, they are what they were.
    assert fid(real[:, 1:], drawn[:, 1:]) == pytest.approx(before, rel=0.05)
    assert fid(real[:, 1:], drawn[kept, 1:]) == pytest.approx(before, rel=0.05)


# The stage, with the shipped scene classifier


CLASSES = {"Water, still": ["lake", "coast"], "Forest": ["forest"], "Sea / Ice": []}
SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("row", pa.int32()),
        ("label", pa.string()),
        ("passages", pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))),
        ("seed", pa.int64()),  # here a number of the image
    ]
)
# Class -> its prompt and the scenes that its images show; after a dash, what was done to a copy of
# the first image of that scene.
DRAWN = {
    "Water, still": (0, ["lake"] * 5 + ["lake-copied", "forest", "forest", "desert"]),
    "Forest": (1, ["forest", *["lake"] * 5]),
    "Sea / Ice": (2, ["forest", "forest-copied", "airport", "desert", "forest-same", "parking"]),
}
WANTED = {0: 3, 1: 2, 2: 2}


def draw_image(scene: str, number: int) -> bytes:
    scene, _, copied = scene.partition("-")
    pixels, *_ = render(scene, 0, 0 if copied else number, 64, "domain")
    image = Image.fromarray(pixels)
    if copied == "copied":
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=85)
        image = Image.open(jpeg)
    return encode_png(image)


def draw_rows() -> list[dict]:
    rows = []
    for label, (prompt, scenes) in DRAWN.items():
        for number, scene in enumerate(scenes):
            row = {
                "image": {"bytes": draw_image(scene, number), "path": None},
                "row": prompt,
                "label": label,
                "passages": [{"paper": scene, "page": number}],
                "seed": len(rows),
            }
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    params = yaml.safe_load((REPOSITORY / "params/demo.yaml").read_text())
    params["classes"] = CLASSES
    params["prompt"] |= {"per_class": 1, "words": {}}
    params["generate"] |= {"balance": None, "keep": {"draw": 3}}
    params["features"]["extractors"] = ["scene", "efficientnet"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    write_shards(folder / "data/generated", draw_rows(), SCHEMA)
    lines = [f"{prompt},{count}\n" for prompt, count in WANTED.items()]
    (folder / "data/images_per_prompt.csv").write_text("row,images\n" + "".join(lines) + "3,0\n")
    shutil.copytree(REPOSITORY / "stages/embedded/models/scene", folder / "models/scene")
    return folder


@pytest.fixture
def project(drawn, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(shutil.copytree(drawn, tmp_path / "project"))
    return tmp_path / "project"


def kept_numbers() -> list[int]:
    return [row["seed"] for row in read_rows("data/synthetic", ["seed"])]


def test_the_stage_keeps_what_shows_the_class_and_differs(project, capsys):
    select.main()
    metrics = read_json("metrics/select.json")
    per_class = metrics.pop("per_class")
    assert list(per_class) == ["Water-still", "Forest", "Sea-Ice"]
    assert per_class["Water-still"] == {
        "drawn": 9,
        "kept": 3,
        "missing": 0,
        "rejected_caption": 3,
        "rejected_duplicate": 1,
        "rejected_diversity": 2,
        "rejection_rate": pytest.approx(4 / 9),
        "unknown_scenes": 0,
    }
    # Forest: of two wanted images, one is left. Sea / Ice: no scene of it is known.
    assert list(per_class["Forest"].values()) == [6, 1, 1, 5, 0, 0, pytest.approx(5 / 6), 0]
    assert list(per_class["Sea-Ice"].values()) == [6, 2, 0, 0, 2, 2, pytest.approx(2 / 6), 1]
    assert list(metrics.values()) == [21, 6, 1, 8, 3, 4, pytest.approx(11 / 21), 1]
    logged = capsys.readouterr().err.splitlines()
    assert [line for line in logged if "select: Forest: 1 of 2 images" in line]
    (unjudged,) = [line for line in logged if "knows no scene of" in line]
    assert "Sea / Ice" in unjudged and "Forest" not in unjudged
    # The ceiling learns from as many real tiles as images were planned; of a class that was not
    # drawn, from none.
    planned, n_kept = ceiling.count_planned(["Forest", "Unused", "Water, still", "Sea / Ice"])
    assert (planned, n_kept) == ({0: 2, 1: 0, 2: 3, 3: 2}, 6)

    generated = read_rows("data/generated")
    kept = read_rows("data/synthetic")
    assert kept == [generated[number] for number in kept_numbers()]
    assert pq.read_schema("data/synthetic/00000.parquet").equals(
        pq.read_schema("data/generated/00000.parquet"), check_metadata=True
    )
    # None of the copies, of the forests and the desert among the waters, of the forest's lakes.
    assert not set(kept_numbers()) & {5, 6, 7, 8, *range(10, 15), 16, 19}


def test_of_a_perfect_generator_no_image_fails():
    """Of three times as many as wanted, all show the class, and no two look alike."""
    seen = np.array(["lake"] * 12)
    features = np.arange(12.0)[:, None]
    candidates = Candidates(seen, features, np.arange(12)[:, None])
    selection = select_images(candidates, {"lake"}, 4, group_equal)
    metrics = select.describe_selection(12, 4, selection, {"lake"})
    assert metrics["rejection_rate"] == 0
    assert (metrics["kept"], metrics["rejected_diversity"], metrics["missing"]) == (4, 8, 0)
    # Two in three show another scene: they fail, whatever else is left out.
    fails = select.describe_selection(12, 4, Selection(np.arange(4), 8, 0, 0), {"lake"})
    assert fails["rejection_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch_size", [1, 5, 21])
def test_the_selection_does_not_depend_on_the_batch_size(project, monkeypatch, batch_size):
    select.main()
    expected = digest("data/synthetic", "metrics/select.json")
    select.main()
    assert digest("data/synthetic", "metrics/select.json") == expected
    monkeypatch.setattr(select, "BATCH_SIZE", batch_size)
    select.main()
    assert digest("data/synthetic", "metrics/select.json") == expected


def test_the_selection_does_not_depend_on_the_order_of_classes(project):
    select.main()
    kept = set(kept_numbers())
    rows = sorted(read_rows("data/generated"), key=lambda row: row["passages"][0]["page"])
    write_shards("data/generated", rows, SCHEMA)
    assert len({row["label"] for row in rows[:3]}) == 3  # they take turns
    select.main()
    assert set(kept_numbers()) == kept
    order = [row["seed"] for row in rows]
    assert kept_numbers() == sorted(kept, key=order.index)


def test_without_a_selection_the_shards_stay_as_they_are(project, monkeypatch):
    change_params("generate", {"keep": None})
    shutil.rmtree("models/scene")  # not even read
    select.main()
    shard = Path("data/synthetic/00000.parquet")
    assert digest("data/synthetic") == digest("data/generated")
    assert shard.samefile("data/generated/00000.parquet")  # one file on the disk
    metrics = read_json("metrics/select.json")
    assert metrics["per_class"].pop("Forest") == {
        "drawn": 6,
        "kept": 6,
        "missing": 0,
        "rejected_caption": 0,
        "rejected_duplicate": 0,
        "rejected_diversity": 0,
        "rejection_rate": 0,
        "unknown_scenes": 0,
    }
    assert metrics["drawn"] == metrics["kept"] == 21 and metrics["rejection_rate"] == 0

    # What DVC checks out as links, and a file system without hard links.
    Path("data/generated").rename("cache")
    Path("data/generated").mkdir()
    Path("data/generated/00000.parquet").symlink_to("../../cache/00000.parquet")
    select.main()
    assert not shard.is_symlink() and digest("data/synthetic") == digest("cache")

    def no_links(*paths) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    select.main()
    assert not shard.samefile("cache/00000.parquet") and digest("data/synthetic") == digest("cache")


@pytest.mark.parametrize("numbers", [[*range(10, 15)], [0, 1, *range(10, 15)]])
def test_a_selection_without_images_of_two_classes_is_refused(project, numbers):
    """All images drawn for a forest show lakes; without others, or beside two of a lake."""
    rows = [row for row in read_rows("data/generated") if row["seed"] in numbers]
    write_shards("data/generated", rows, SCHEMA)
    lines = [f"{prompt},2\n" for prompt in sorted({row["row"] for row in rows})]
    Path("data/images_per_prompt.csv").write_text("row,images\n" + "".join(lines))
    Path("data/synthetic").mkdir()
    error = f"^error: generate.keep: images of {int(0 in numbers)} class.*for Forest;"
    with pytest.raises(SystemExit, match=error):
        select.main()
    assert not list(Path("data/synthetic").iterdir())
    assert not Path("metrics/select.json").exists()
