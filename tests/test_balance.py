"""How many images each class and each prompt gets, and that no image depends on it."""

import csv
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY
from tiny_diffusion import run, write_params

from stages import balance, generate
from stages.common.artifacts import read_rows, write_shards
from stages.common.class_balance import share_among_classes, share_among_prompts

PROMPTS = {"a": 4, "b": 0, "c": 2, "d": 1}


@pytest.mark.parametrize(
    "balanced, expected",
    [
        (None, {"a": 12, "c": 6, "d": 3}),
        ("equal", {"a": 12, "c": 12, "d": 12}),
        ({"to": 5}, {"a": 5, "c": 5, "d": 5}),
        # 21 images as 30 : 10 : 2 tiles: 15, 5 and 1; the tiles of b, without prompts, don't count.
        ({"like": "real"}, {"a": 15, "c": 5, "d": 1}),
    ],
)
def test_images_of_each_class(balanced, expected):
    real = {"a": 30, "b": 7, "c": 10, "d": 2}
    assert share_among_classes(balanced, PROMPTS, 3, real) == expected
    assert list(share_among_classes(balanced, PROMPTS, 3, real)) == list(expected)


def test_the_largest_remainders_get_the_last_images():
    prompts = dict.fromkeys("abc", 1)
    like_real = {"like": "real"}
    # 10 images: 3 1/3 each; the first of three equal remainders has the tenth.
    alike = share_among_classes(like_real, prompts | {"d": 7}, 1, {"a": 5, "b": 5, "c": 5})
    assert alike == {"a": 4, "b": 3, "c": 3, "d": 0}
    # 3 images as 5 : 4 : 1 tiles: 1.5, 1.2 and 0.3.
    assert share_among_classes(like_real, prompts, 1, {"a": 5, "b": 4, "c": 1}) == {
        "a": 2,
        "b": 1,
        "c": 0,
    }
    for images_per_prompt in range(1, 40):
        shares = share_among_classes(like_real, prompts, images_per_prompt, {"a": 7, "b": 11})
        assert sum(shares.values()) == 3 * images_per_prompt
        assert shares["c"] == 0


def test_images_are_spread_evenly_over_the_prompts_of_a_class():
    assert share_among_prompts(12, 4) == [3, 3, 3, 3]
    assert share_among_prompts(14, 4) == [4, 4, 3, 3]
    assert share_among_prompts(2, 4) == [1, 1, 0, 0]
    assert share_among_prompts(0, 2) == [0, 0]


@pytest.mark.parametrize(
    "images, draw, drawn", [(5, 1, 5), (5, 3.0, 15), (5, 1.5, 8), (100, 1.1, 110), (0, 2.0, 0)]
)
def test_images_to_draw_are_rounded_up_as_decimal_numbers(
    tmp_path, monkeypatch, images, draw, drawn
):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/images_per_prompt.csv").write_text(f"row,images\n7,{images}\n")
    assert generate.read_image_counts(draw) == {7: drawn}


# The stages


CLASSES = {"Forest": ["forest"], "Water": ["lake", "sea"], 'Ice, "old"': []}
PASSAGES = pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))


def write_prompts(labels: list[str]) -> None:
    rows = [
        {
            "row": row,
            "label": label,
            "prompt": f"{label}, number {row}",
            "negative_prompt": "",
            "writer": "extractive",
            "technique": "retrieval",
            "passages": [{"paper": "a", "page": 1}],
        }
        for row, label in enumerate(labels)
    ]
    names = ("label", "prompt", "negative_prompt", "writer", "technique")
    columns = [(name, pa.string()) for name in names]
    schema = pa.schema([("row", pa.int32()), *columns, ("passages", PASSAGES)])
    Path("data").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), "data/prompts.parquet")


def read_csv(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two prompts of each of three classes; 6 training tiles of water, 2 of forest, none of ice."""
    monkeypatch.chdir(tmp_path)
    write_prompts([label for label in CLASSES for _ in range(2)])
    scenes = ["lake", "forest", "sea", "town"] * 2 + ["lake"] * 2
    rows = [{"scene": scene} for scene in scenes]
    write_shards("data/imagery/train", rows, pa.schema([("scene", pa.string())]))
    return tmp_path


def balance_with(**values) -> None:
    params = yaml.safe_load((REPOSITORY / "params/demo.yaml").read_text())
    params["classes"] = CLASSES
    params["prompt"] |= {"per_class": 2, "words": {}}
    params["generate"] |= {"images_per_prompt": 4, "balance": None, "keep": None} | values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    balance.main()


@pytest.mark.parametrize(
    "value, per_prompt",
    [
        (None, [4, 4, 4, 4, 4, 4]),
        ({"to": 3}, [2, 1, 2, 1, 2, 1]),
        ({"like": "real"}, [3, 3, 9, 9, 0, 0]),
    ],
)
def test_balance_writes_the_images_of_each_prompt_and_class(project, capsys, value, per_prompt):
    balance_with(balance=value)
    header, *rows = read_csv("data/images_per_prompt.csv")
    assert header == ["row", "images"]
    assert rows == [[str(row), str(images)] for row, images in enumerate(per_prompt)]
    of_class = [sum(per_prompt[i : i + 2]) for i in (0, 2, 4)]
    assert read_csv("metrics/plots/images_per_class.csv") == [
        ["class", "prompts", "images", "real"],
        ["Forest", "2", str(of_class[0]), "2"],
        ["Water", "2", str(of_class[1]), "6"],
        ['Ice, "old"', "2", str(of_class[2]), "0"],
    ]
    assert ('Ice, "old" (0 real training tiles)' in capsys.readouterr().err) == (not of_class[2])


def test_a_balance_that_leaves_a_classifier_nothing_to_learn_is_refused(project):
    scenes = pa.schema([("scene", pa.string())])
    write_shards("data/imagery/train", [{"scene": "town"}], scenes)
    with pytest.raises(SystemExit, match="^error: generate.balance: like: real: no training tile"):
        balance_with(balance={"like": "real"})
    write_shards("data/imagery/train", [{"scene": "lake"}], scenes)
    with pytest.raises(SystemExit, match=r"^error: generate.balance: images of 1 class\(es\)"):
        balance_with(balance={"like": "real"})
    assert not Path("data/images_per_prompt.csv").exists()


def test_other_numbers_of_images_change_no_image(workspace, monkeypatch):
    """The image of a prompt's copy is the same whatever is generated beside it."""
    monkeypatch.chdir(workspace)
    write_prompts(["Snow Ice", "Bare Land", "Bare Land"])
    shutil.copytree("models/base/diffusion", "models/diffusion")
    images = []
    for counts, keep in (([2, 2, 1], None), ([1, 0, 3], {"draw": 1.5})):
        write_params(workspace, generate={"keep": keep})
        lines = [f"{row},{count}\n" for row, count in enumerate(counts)]
        Path("data/images_per_prompt.csv").write_text("row,images\n" + "".join(lines))
        code, log = run(workspace, generate.main)
        assert code == 0, log
        rows = read_rows("data/generated")
        by_prompt = [[], [], []]
        for row in rows:
            by_prompt[row["row"]].append(row["image"]["bytes"])
        images.append(by_prompt)
        shutil.rmtree("data/generated")
    assert [len(copies) for copies in images[0]] == [2, 2, 1]
    assert [len(copies) for copies in images[1]] == [2, 0, 5]
    assert images[0][0] == images[1][0]
    assert images[0][2] == images[1][2][:1]
