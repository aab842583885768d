"""The blind review: a page that keeps the answers secret, ratings from spreadsheets, statistics."""

import csv
import io
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from conftest import REPOSITORY, shell
from PIL import Image
from report_run import build
from review_run import ODD_NAMES, make_classes, write_params

from stages import review, review_page
from stages.common.class_names import slug
from stages.evaluation.intervals import wilson_interval
from stages.reporting import ratings
from tools import review as review_tool

RUN = "r0123456789"
TRUTHS = ["real", "generated"] * 3
LABELS = ["Bare Land", "Snow Ice", "Crop Land", "Snow Ice", "Bare Land", "Crop Land"]


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository in which a page of six tiles was made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/reviews").mkdir(parents=True)
    (tmp_path / "metrics").mkdir()
    rows = [(RUN, f"t{i}", truth, label) for i, (truth, label) in enumerate(zip(TRUTHS, LABELS))]
    lines = [",".join(row) for row in [ratings.KEY_COLUMNS, *rows]]
    Path(ratings.KEY).write_text("\n".join(lines) + "\n")
    return tmp_path


def saved_rows(rater: str = "Ada", **changes: dict) -> list[list[str]]:
    """What the page saves for all six tiles, all of them right.

    Args:
        rater: the expert.
        changes: tile -> values that differ.
    """
    rows = []
    for i, truth in enumerate(TRUTHS):
        row = dict.fromkeys(ratings.SAVED_COLUMNS, "") | {
            "run": RUN,
            "rater": rater,
            "tile": f"t{i}",
            "answer": truth,
            "realism": "3",
            "label_answer": LABELS[i],
        }
        row |= changes.get(f"t{i}", {})
        rows.append([row[name] for name in ratings.SAVED_COLUMNS])
    return [ratings.SAVED_COLUMNS, *rows]


def write_csv(
    folder: Path,
    rows: list[list[str]],
    delimiter: str = ",",
    line_end: str = "\r\n",
    byte_order_mark: str = "\ufeff",
) -> Path:
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator=line_end).writerows(rows)
    path = folder / "ratings.csv"
    path.write_bytes((byte_order_mark + sink.getvalue()).encode())
    return path


def run_review() -> dict:
    review.main()
    return json.loads(Path("metrics/review.json").read_text())


# The page ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository in which the page was made."""
    root = build(tmp_path_factory.mktemp("review"), per_scene=3, size=24, per_class=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        review_page.main()
    return root


def read_key(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((root / "metrics/review_key.csv").open()))


def test_the_key_has_as_many_real_as_generated_tiles_of_all_classes(made):
    key = read_key(made)
    truths = [row["truth"] for row in key]
    assert len(key) == 20  # report.review_tiles of tests/params.yaml
    assert truths.count("real") == truths.count("generated") == 10
    assert len({row["label"] for row in key}) == 7


def test_the_page_gives_no_answer_away(made):
    """Names, sizes in pixels and bytes, encoder, metadata and order are the same for both."""
    folder = made / "metrics/review"
    key = read_key(made)
    tiles = sorted((folder / "tiles").iterdir())
    assert [tile.stem for tile in tiles] == [row["tile"] for row in key]
    assert len({tile.stat().st_size for tile in tiles}) == 1
    properties = set()
    for tile in tiles:
        image = Image.open(tile)
        assert not image.getexif()
        encoding = (str(image.quantization), str(image.layer), str(image.info))
        properties.add((image.size, image.format, image.mode, *encoding))
    assert len(properties) == 1
    truths = [row["truth"] for row in key]
    assert sorted(truths) != truths != sorted(truths, reverse=True), "not one after the other"
    assert any(first == second for first, second in zip(truths, truths[1:])), "not in turns"
    text = (folder / "index.html").read_text()
    for secret in ("bareland", "00000.png", "satellite image", "truth", "extractive"):
        assert secret not in text
    assert {path.name for path in folder.iterdir()} == {"index.html", "tiles"}


def test_the_same_tiles_make_the_same_run(made, monkeypatch):
    paths = [made / "metrics/review_key.csv", *(made / "metrics/review").rglob("*.*")]
    before = {path: path.read_bytes() for path in paths}
    monkeypatch.chdir(made)
    review_page.main()
    assert {path: path.read_bytes() for path in paths} == before


def test_a_class_without_real_tiles_is_not_shown(made, tmp_path, monkeypatch):
    """Otherwise the class would give away that its tiles are generated."""
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    text = Path("params.yaml").read_text()
    assert "Snow Ice: [snowfield]" in text
    Path("params.yaml").write_text(text.replace("Snow Ice: [snowfield]", "Snow Ice: []"))
    review_page.main()
    assert "Snow Ice" not in {row["label"] for row in read_key(Path()) if row["tile"]}
    assert "Snow Ice" in offered_classes(Path())


# Any classes -------------------------------------------------------------------------------------


class Classes(HTMLParser):
    """Collects the classes of a page: the values of its choices, their names, their keys."""

    def __init__(self, page: Path):
        super().__init__()
        self.values: list[str] = []
        self.names: list[str] = []
        self.keys: list[str] = []
        self.is_name = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.is_name = tag == "bdi"
        if values.get("name") == "label_answer" and values["value"] != ratings.CANNOT_TELL:
            self.values.append(values["value"])
            self.keys.append(values["data-key"])

    def handle_data(self, text: str) -> None:
        if self.is_name:
            self.names.append(text)
        self.is_name = False


def offered_classes(root: Path) -> list[str]:
    return Classes(root / "metrics/review/index.html").values


@pytest.mark.parametrize("count", [2, 7, 30, 100])
def test_names_of_any_script_pass_from_the_page_to_the_metrics(tmp_path, monkeypatch, count):
    """Through the CSV that the page saves, with as many classes as there may be."""
    monkeypatch.chdir(tmp_path)
    names = [*ODD_NAMES, *(f"Zone {number}" for number in range(100))][:count]
    make_classes(tmp_path, names, 2 * count, names)
    review_page.main()
    page = Classes(tmp_path / "metrics/review/index.html")
    assert page.values == page.names == names

    answers = {row["tile"]: row for row in read_key(tmp_path)}
    assert len(answers) == 2 * count
    rows = [
        [row["run"], "Ada", tile, row["truth"], "3", row["label"], "blur", ""]
        for tile, row in answers.items()
    ]
    # The first real tile is named by another class.
    first = next(row for row in rows if row[3] == "real")
    first[5] = next(name for name in names if name != first[5])
    Path("data/reviews").mkdir()
    review_tool.add(write_csv(tmp_path, [ratings.SAVED_COLUMNS, *rows]))
    (file,) = Path("data/reviews").glob("*.csv")
    filed = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert [row["label_answer"] for row in filed] == [row[5] for row in rows]
    metrics = run_review()
    assert metrics["class_agreement_real"] == pytest.approx(1 - 1 / count)
    assert metrics["class_agreement_generated"] == 1
    assert metrics["class_agreement_chance"] == pytest.approx(1 / count)
    assert set(metrics["artifacts"]["generated"]) == set(map(slug, names))


@pytest.mark.parametrize("count", [2, 7, 19, 20, 30, 100])
def test_keys_choose_one_class_and_nothing_else(count):
    keys = review_page.class_keys(count)
    assert len(set(keys)) == count
    assert not {key[0] for key in keys} & set("rg0123459uiopk/")
    assert len(set(map(len, keys))) == 1, "no class's key begins another's"


def test_a_class_without_generated_images_is_neither_drawn_nor_offered(tmp_path, monkeypatch):
    """A class of 0 prompts, such as all images of which were rejected."""
    monkeypatch.chdir(tmp_path)
    make_classes(tmp_path, ODD_NAMES, 40, ODD_NAMES[2:])
    review_page.main()
    assert offered_classes(tmp_path) == ODD_NAMES[2:]
    assert {row["label"] for row in read_key(tmp_path)} == set(ODD_NAMES[2:])
    make_classes(tmp_path, ODD_NAMES, 40, [])
    with pytest.raises(SystemExit, match=r"report\.review_tiles: no class has both"):
        review_page.main()


def test_more_classes_than_tiles(tmp_path, monkeypatch):
    """Real and generated tiles show the same classes, drawn at random; the page offers all."""
    monkeypatch.chdir(tmp_path)
    names = [f"Zone {number}" for number in range(30)]
    make_classes(tmp_path, names, 20, names)
    review_page.main()
    shown: dict[str, list[str]] = {"real": [], "generated": []}
    for row in read_key(tmp_path):
        if row["tile"]:
            shown[row["truth"]].append(row["label"])
    assert sorted(shown["real"]) == sorted(shown["generated"])
    assert len(set(shown["real"])) == 10
    assert set(shown["real"]) != set(names[:10])
    assert offered_classes(tmp_path) == names
    assert len(ratings.read_key().classes) == 30


def test_each_class_has_as_many_real_as_generated_tiles(tmp_path, monkeypatch, capsys):
    """Otherwise an expert who knows the class of a tile knows more than chance."""
    monkeypatch.chdir(tmp_path)
    names = ["Zone A", "Zone B"]
    # Test tiles: 1 of zone A, 8 of zone B; generated: 6 and 4.
    make_classes(tmp_path, ["Zone A"] + ["Zone B"] * 8, 16, ["Zone A"] * 6 + ["Zone B"] * 4)
    write_params(tmp_path, names, 16)
    review_page.main()
    shown = Counter((row["truth"], row["label"]) for row in read_key(tmp_path))
    assert shown == {
        ("real", "Zone A"): 1,
        ("generated", "Zone A"): 1,
        ("real", "Zone B"): 4,
        ("generated", "Zone B"): 4,
    }
    assert "review_page: 10 tiles, not 16" in capsys.readouterr().err


def test_ratings_name_classes_of_their_own_run(repository):
    """Another run may have had other classes: its ratings are left out, and no error."""
    review_tool.add(write_csv(repository, saved_rows()))
    (file,) = Path("data/reviews").glob("*.csv")
    text = file.read_text()
    file.write_text(text.replace("Snow Ice", "\u51b0\u96ea").replace(RUN, "rother"))
    assert run_review()["ratings_of_other_runs"] == 6
    file.write_text(text.replace("Crop Land,", "\u51b0\u96ea,", 1))
    where = rf"data/reviews/{RUN}-ada\.csv:4: label is '\u51b0\u96ea'"
    with pytest.raises(SystemExit, match=where):
        review.main()


# Filing ratings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delimiter", "line_end", "byte_order_mark"),
    [(",", "\r\n", "\ufeff"), (";", "\r\n", "\ufeff"), (",", "\n", ""), ("\t", "\n", "")],
)
def test_changes_of_a_spreadsheet_are_repaired(repository, delimiter, line_end, byte_order_mark):
    """BOM, semicolons, tabs, CRLF, blank lines, spaces, 4.0; the answers come from the key.

    Excel leaves the last blank fields out where 16 rows have none.
    """
    rows = saved_rows(
        t0={"realism": "4.0", "artifacts": "blur;wrong scale", "comment": 'gray, "soft"; é'},
        t1={"answer": " real "},
    )
    blank = [""] * len(rows[0])
    while not rows[-1][-1]:
        rows[-1].pop()
    rows = [*rows[:3], blank, *rows[3:], blank]
    review_tool.add(write_csv(repository, rows, delimiter, line_end, byte_order_mark))
    (file,) = Path("data/reviews").glob("*.csv")
    assert file.name == f"{RUN}-ada.csv"
    filed = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert list(filed[0]) == ratings.FILED_COLUMNS
    assert len(filed) == 6
    assert filed[0]["realism"] == "4"
    assert filed[0]["truth"] == "real"
    assert filed[0]["comment"] == 'gray, "soft"; é'
    assert filed[1]["answer"] == "real"
    assert filed[1]["truth"] == "generated"
    assert filed[1]["label"] == "Snow Ice"
    assert run_review()["detection_accuracy"] == pytest.approx(5 / 6)


# Values of a wrong row -> what its message must name.
WRONG = [
    ({"realism": "6"}, ["realism", "'6'"]),
    ({"realism": "4.5"}, ["realism", "'4.5'"]),
    ({"answer": "fake"}, ["answer", "'fake'"]),
    ({"rater": " "}, ["rater"]),
    ({"label_answer": "Beach"}, ["label_answer", "'Beach'"]),
    ({"artifacts": "blur;ugly"}, ["artifacts", "'ugly'"]),
    ({"tile": "t9"}, ["tile", "'t9'"]),
    ({"tile": "t0"}, ["Ada", "t0", "ratings.csv:2"]),
    ({"run": "rother"}, ["run", "'rother'", RUN]),
    ({"rater": "Bob"}, ["rater", "'Bob'", "'Ada'"]),
]


@pytest.mark.parametrize(("change", "named"), WRONG)
def test_a_wrong_row_is_named_and_nothing_is_filed(repository, change, named):
    path = write_csv(repository, saved_rows(t3=change))
    with pytest.raises(SystemExit) as stopped:
        review_tool.add(path.relative_to(repository))
    message = str(stopped.value).splitlines()[0]
    assert message.startswith("error: ratings.csv:5: ")
    for word in named:
        assert word in message
    assert not list(Path("data/reviews").iterdir())


def test_the_key_of_an_earlier_run_is_found_as_the_message_says(tmp_path, monkeypatch):
    """By its commands, in a repository of two runs; git does not hold the key."""
    monkeypatch.chdir(tmp_path)

    def run(*command: str) -> str:
        done = shell(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    stage = {"cmd": f"cp key {ratings.KEY}", "deps": ["key"], "outs": [str(ratings.KEY)]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"review_page": stage}}))
    Path("metrics").mkdir()
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    for made in (RUN, "rother"):
        rows = [ratings.KEY_COLUMNS, [made, "t0", "real", "Bare Land"]]
        Path("key").write_text("".join(",".join(row) + "\n" for row in rows))
        run("dvc", "repro", "-q")
        run("git", "add", "-A")
        run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", made)
    path = write_csv(tmp_path, saved_rows()[:2])
    with pytest.raises(SystemExit) as stopped:
        ratings.check_saved(path)
    checkout, get, log = re.findall("`(.*?)`", str(stopped.value).splitlines()[0])
    for commit in run(*log.replace("log", "log --format=%h").split()).split():
        run(*get.replace("<commit>", commit).split(), "--force")
        if RUN in Path(ratings.KEY.name).read_text():
            break
    run("git", "checkout", "-q", commit)
    run(*checkout.split())
    assert [rating["label"] for rating in ratings.check_saved(path)] == ["Bare Land"]


def test_every_wrong_row_is_named(repository):
    path = write_csv(repository, saved_rows(t1={"realism": "0"}, t4={"answer": ""}))
    with pytest.raises(SystemExit) as stopped:
        review_tool.add(path.relative_to(repository))
    first, second, _ = str(stopped.value).splitlines()
    assert "ratings.csv:3: realism" in first
    assert "ratings.csv:6: answer" in second


def test_the_same_ratings_are_not_filed_twice(repository):
    path = write_csv(repository, saved_rows())
    review_tool.add(path)
    with pytest.raises(SystemExit, match=rf"Ada .* t0 .* data/reviews/{RUN}-ada\.csv:2"):
        review_tool.add(path)
    assert len(list(Path("data/reviews").iterdir())) == 1
    assert run_review()["ratings"] == 6


def test_further_ratings_of_an_expert_get_a_second_file(repository):
    header, *rows = saved_rows()
    review_tool.add(write_csv(repository, [header, *rows[:2]]))
    review_tool.add(write_csv(repository, [header, *rows[2:]]))
    names = {path.name for path in Path("data/reviews").iterdir()}
    assert names == {f"{RUN}-ada.csv", f"{RUN}-ada-2.csv"}
    assert run_review()["experts"] == 1


HEADER = ",".join(ratings.SAVED_COLUMNS).encode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"run,rater\n1,2\n", "tile"),
        (b"\xff\xfer\x00", "UTF-8"),
        (b"", "run"),
        (HEADER + b"\nr,ada,t,real,3,,,,x\n", "ratings.csv:2"),
        (HEADER + b"\n", "ratings"),
        (HEADER + b'\nr,"ada\n', "ratings.csv:2"),
    ],
)
def test_a_file_that_holds_no_ratings_is_an_error_of_one_line(repository, content, named):
    Path("ratings.csv").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        review_tool.add(Path("ratings.csv"))
    message = str(stopped.value)
    assert "ratings.csv" in message and named in message and "\n" not in message


def test_a_missing_file_or_key_is_named(repository):
    with pytest.raises(SystemExit, match=r"nowhere\.csv"):
        review_tool.add(Path("nowhere.csv"))
    Path(ratings.KEY).unlink()
    with pytest.raises(SystemExit, match=r"review_key\.csv"):
        review.main()


@pytest.mark.parametrize("arguments", [(), ("add",), ("ad", "x")])
def test_wrong_arguments_are_answered_with_the_usage(tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tools.review", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m tools.review")


# Statistics --------------------------------------------------------------------------------------


def test_without_ratings_the_metrics_are_zero(repository):
    (repository / "data/reviews/.gitkeep").touch()
    assert run_review() == {"ratings": 0, "experts": 0, "ratings_of_other_runs": 0}


def test_ratings_of_other_runs_are_not_counted(repository):
    review_tool.add(write_csv(repository, saved_rows()))
    Path(ratings.KEY).write_text(Path(ratings.KEY).read_text().replace(RUN, "rnew"))
    assert run_review() == {"ratings": 0, "experts": 0, "ratings_of_other_runs": 6}


def test_known_ratings_give_known_metrics(repository):
    """Realism by tile with Student's interval, detection by tile, artifacts by class."""
    rows = saved_rows(
        t0={"realism": "1"},
        t2={"realism": "3"},
        t4={"realism": "3", "answer": "generated"},
        t1={"label_answer": "Bare Land", "artifacts": "blur"},
        t3={"answer": "real", "artifacts": "blur;wrong scale"},
    )
    review_tool.add(write_csv(repository, rows))
    # A second expert gives the first tile a 3: its mean is 2, so the real tiles have 2, 3, 3.
    second = saved_rows("Bob", t0={"realism": "3"})
    review_tool.add(write_csv(repository, second[:2]))
    metrics = run_review()
    assert metrics["ratings"] == 7
    assert metrics["experts"] == 2

    realism = [metrics[f"realism_real{suffix}"] for suffix in ("", "_n")]
    assert realism == pytest.approx([8 / 3, 3])
    quantile = 4.302652729911275  # of Student's t with 2 degrees of freedom
    # Three equal ratings: a spread of whole numbers' rounding, 1 / sqrt(12), is left.
    error = quantile / math.sqrt(12) / math.sqrt(3)
    generated = [metrics[f"realism_generated{suffix}"] for suffix in ("", "_lo", "_hi")]
    assert generated == pytest.approx([3, 3 - error, 3 + error])
    assert metrics["detection_accuracy"] == pytest.approx(5 / 7)
    assert metrics["detection_chance"] == 0.5
    low, high = metrics["detection_accuracy_lo"], metrics["detection_accuracy_hi"]
    assert low < wilson_interval(5, 7)[0] and wilson_interval(5, 7)[1] < high
    # An expert who names all real tiles doesn't raise the agreement of the generated images.
    for truth, agreement, n in (("real", 1, 4), ("generated", 2 / 3, 3)):
        assert metrics[f"class_agreement_{truth}"] == pytest.approx(agreement)
        assert metrics[f"class_agreement_{truth}_n"] == n
    assert metrics["artifacts"]["generated"]["Snow-Ice"] == {
        "repetition": 0,
        "blur": 1,
        "deformation": 0,
        "wrong_scale": 0.5,
        "n": 2,
    }
    assert metrics["artifacts"]["real"]["Bare-Land"]["n"] == 3
    assert "alpha_answer" not in metrics, "one shared tile, one answer: not defined"


def test_where_nobody_can_tell_there_is_no_accuracy(repository):
    unsure = {"answer": ratings.CANNOT_TELL, "label_answer": ratings.CANNOT_TELL}
    for rater in ("Ada", "Bob"):
        rows = saved_rows(rater, **{f"t{i}": unsure for i in range(6)})
        review_tool.add(write_csv(repository, rows))
    metrics = run_review()
    assert (metrics["undecided"], metrics["undecided_n"]) == (1, 12)
    absent = {"detection_accuracy", "alpha_answer", "alpha_class"}
    absent |= {"class_agreement_real", "class_agreement_generated", "class_agreement_chance"}
    assert not absent & set(metrics)


def make_ratings(answers: np.ndarray, realism: np.ndarray | None = None) -> list[dict[str, str]]:
    """Ratings of real tiles: answers, and realism from 1 to 5, [experts, tiles]."""
    return [
        {
            "rater": f"expert {expert}",
            "tile": f"tile {tile}",
            "truth": "real",
            "answer": "real" if answers[expert, tile] else "generated",
            "realism": "3" if realism is None else str(int(realism[expert, tile])),
        }
        for expert, tile in np.ndindex(answers.shape)
    ]


def interval(answers: np.ndarray) -> tuple[float, float]:
    metrics = review.proportion("share", make_ratings(answers), "answer", "truth")
    return metrics["share_lo"], metrics["share_hi"]


def test_ratings_of_one_tile_or_of_one_expert_are_not_independent():
    """Three experts who answer alike say no more than one; experts who differ are the unit."""
    one = np.arange(20)[None] % 4 > 0  # 15 of 20 right
    assert interval(one) == pytest.approx(wilson_interval(15, 20))
    alike = interval(np.repeat(one, 3, 0))
    width = alike[1] - alike[0]
    assert width == pytest.approx(wilson_interval(15, 20)[1] - wilson_interval(15, 20)[0], rel=0.1)
    # Four experts, two of whom are always right: four units, not 80 ratings.
    of_experts = interval(np.repeat(np.array([True, True, False, False])[:, None], 20, 1))
    assert of_experts[1] - of_experts[0] > 0.6
    same = np.ones((2, 20), bool)
    assert interval(same) == pytest.approx(wilson_interval(20, 20))


def test_realism_interval_is_students_over_tiles_of_one_expert():
    realism = np.array([[1, 2, 4, 5, 3]])
    metrics = review.mean_realism(make_ratings(realism > 0, realism), "real")
    error = 2.776445 * realism.std(ddof=1) / math.sqrt(5)
    found = [metrics[f"realism_real{suffix}"] for suffix in ("", "_lo", "_hi")]
    assert found == pytest.approx([3, 3 - error, 3 + error], rel=1e-5)
    # A second expert who rates every tile higher widens it.
    both = np.vstack([realism.clip(1, 4), realism.clip(1, 4) + 1])
    wider = review.mean_realism(make_ratings(both > 0, both), "real")
    assert wider["realism_real_hi"] - wider["realism_real_lo"] > 2 * error


def test_agreement_between_experts_is_krippendorffs_alpha(repository):
    """Equal to that of the package's other input, raters x tiles with gaps; 1 where all agree."""
    generator = random.Random(0)
    realism: dict[str, list[int | None]] = {}
    for rater in ("Ada", "Bob", "Eve"):
        realism[rater] = [generator.randint(1, 5) for _ in range(6)]
    realism["Eve"][5] = None
    for rater, values in realism.items():
        changes = {f"t{i}": {"realism": str(value)} for i, value in enumerate(values)}
        header, *rows = saved_rows(rater, **changes)
        rated = [row for row, value in zip(rows, values) if value is not None]
        review_tool.add(write_csv(repository, [header, *rated]))
    metrics = run_review()
    table = np.array(list(realism.values()), dtype=float)  # None becomes NaN
    expected = krippendorff.alpha(table, level_of_measurement="ordinal")
    assert metrics["alpha_realism"] == pytest.approx(expected)
    assert metrics["alpha_answer"] == 1
    assert metrics["alpha_class"] == 1
