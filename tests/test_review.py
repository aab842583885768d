"""The blind review: a page that doesn't give the answers away, ratings that come back from a spreadsheet, known numbers."""

import csv
import io
import json
import math
import random
import shutil
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from PIL import Image
from report_run import build

from stages import review, review_page
from stages.reporting import ratings

RUN = "r0123456789"
TRUTHS = ["real", "generated"] * 3
LABELS = ["Bare Land", "Snow Ice", "Crop Land", "Snow Ice", "Bare Land", "Crop Land"]


@pytest.fixture
def filing(tmp_path, monkeypatch) -> Path:
    """A repository in which a page of six tiles was made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/reviews").mkdir(parents=True)
    (tmp_path / "metrics").mkdir()
    rows = [(RUN, f"t{i}", truth, label) for i, (truth, label) in enumerate(zip(TRUTHS, LABELS))]
    Path(ratings.KEY).write_text(
        "\n".join(",".join(row) for row in [ratings.KEY_COLUMNS, *rows]) + "\n"
    )
    return tmp_path


def given(rater: str = "Ada", **changes: dict) -> list[list[str]]:
    """What the page saves for all six tiles; changes: tile -> values that differ."""
    rows = []
    for i, truth in enumerate(TRUTHS):
        row = dict.fromkeys(ratings.GIVEN, "") | {
            "run": RUN,
            "rater": rater,
            "tile": f"t{i}",
            "answer": truth,
            "realism": "3",
            "label_answer": LABELS[i],
        }
        rows.append([(row | changes.get(f"t{i}", {}))[name] for name in ratings.GIVEN])
    return [ratings.GIVEN, *rows]


def saved(
    folder: Path,
    rows: list[list[str]],
    delimiter: str = ",",
    end: str = "\r\n",
    mark: str = "\ufeff",
) -> Path:
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter, lineterminator=end).writerows(rows)
    (folder / "ratings.csv").write_bytes((mark + sink.getvalue()).encode())
    return folder / "ratings.csv"


def measured() -> dict:
    review.main()
    return json.loads(Path("metrics/review.json").read_text())


# The page -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The blind page of rendered tiles, some of another size and generated without JPEG or detail."""
    root = build(tmp_path_factory.mktemp("review"), per_scene=3, size=24, per_class=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        review_page.main()
    return root


def test_the_page_gives_nothing_away(made):
    """Names, sizes in pixels and bytes, encoder, metadata and order are the same for both; no answer is in the folder."""
    folder, key = (
        made / "metrics/review",
        list(csv.DictReader((made / "metrics/review_key.csv").open())),
    )
    assert {row["truth"] for row in key} == {"real", "generated"} and len(
        key
    ) == 20  # report.review_tiles
    assert [row["truth"] for row in key].count("real") == 10 and len(
        {row["label"] for row in key}
    ) == 7
    tiles = sorted((folder / "tiles").iterdir())
    assert [tile.stem for tile in tiles] == [row["tile"] for row in key]
    images = [Image.open(tile) for tile in tiles]
    assert (
        len(
            {
                (
                    image.size,
                    image.format,
                    image.mode,
                    str(image.quantization),
                    str(image.layer),
                    str(image.info),
                )
                for image in images
            }
        )
        == 1
    )
    assert len({tile.stat().st_size for tile in tiles}) == 1 and not any(
        image.getexif() for image in images
    )
    runs = [row["truth"] for row in key]
    assert sorted(runs) != runs != sorted(runs, reverse=True) and any(
        a == b for a, b in zip(runs, runs[1:])
    ), "mixed, not in turns"
    text = (folder / "index.html").read_text()
    for secret in ("bareland", "00000.png", "satellite image", "truth", "extractive"):
        assert secret not in text
    assert {path.name for path in folder.iterdir()} == {"index.html", "tiles"}


def test_the_same_tiles_make_the_same_run(made, monkeypatch):
    before = {
        path: path.read_bytes()
        for path in [made / "metrics/review_key.csv", *(made / "metrics/review").rglob("*.*")]
    }
    monkeypatch.chdir(made)
    review_page.main()
    assert {path: path.read_bytes() for path in before} == before


def test_a_class_without_real_tiles_is_not_asked(made, tmp_path, monkeypatch):
    """Otherwise each of its tiles would be known to be generated."""
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    text = Path("params.yaml").read_text()
    assert "Snow Ice: [snowfield]" in text
    Path("params.yaml").write_text(text.replace("Snow Ice: [snowfield]", "Snow Ice: []"))
    review_page.main()
    assert "Snow Ice" not in {
        row["label"] for row in csv.DictReader(open("metrics/review_key.csv"))
    }


# Filing -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delimiter", "end", "mark"),
    [(",", "\r\n", "\ufeff"), (";", "\r\n", "\ufeff"), (",", "\n", ""), ("\t", "\n", "")],
)
def test_ratings_come_back_from_a_spreadsheet(filing, delimiter, end, mark):
    """BOM, semicolons, tabs, CRLF, blank lines, spaces and 4.0 are repaired; the answers are added from the key."""
    rows = given(
        t0={"realism": "4.0", "artifacts": "blur;wrong scale", "comment": 'grey, "soft"; é'},
        t1={"answer": " real "},
    )
    review.main(
        "add",
        str(
            saved(
                filing,
                [*rows[:3], [""] * len(rows[0]), *rows[3:], [""] * len(rows[0])],
                delimiter,
                end,
                mark,
            )
        ),
    )
    (file,) = Path("data/reviews").glob("*.csv")
    assert file.name == f"{RUN}-ada.csv"
    found = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert list(found[0]) == ratings.COLUMNS and len(found) == 6
    assert (
        found[0]["realism"] == "4"
        and found[0]["truth"] == "real"
        and found[0]["comment"] == 'grey, "soft"; é'
    )
    assert (
        found[1]["answer"] == "real"
        and found[1]["truth"] == "generated"
        and found[1]["label"] == "Snow Ice"
    )
    assert measured()["detection_accuracy"] == pytest.approx(5 / 6)


BAD = [
    ({"realism": "6"}, "realism is '6', not a whole number from 1 to 5"),
    ({"realism": "4.5"}, "realism is '4.5'"),
    ({"answer": "fake"}, "answer is 'fake', not real or generated"),
    ({"rater": " "}, "rater is blank"),
    ({"label_answer": "Beach"}, "label_answer is 'Beach', not blank or one of"),
    ({"artifacts": "blur;ugly"}, "artifacts has 'ugly'"),
    ({"tile": "t9"}, "tile is 't9', which is none of this run's 6"),
    ({"tile": "t0"}, "Ada rated tile t0 already in ratings.csv:2"),
    ({"run": "rother"}, f"run is 'rother', the key here is of {RUN}"),
    ({"rater": "Bob"}, "rater is 'Bob', above it is 'Ada'"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_bad_row_is_named_and_nothing_is_added(filing, change, said):
    saved(filing, given(t3=change))
    with pytest.raises(SystemExit) as end:
        review.main("add", "ratings.csv")
    assert f"error: ratings.csv:5: {said}" in str(end.value) and "Nothing was added" in str(
        end.value
    )
    assert not list(Path("data/reviews").iterdir())


def test_every_bad_row_is_named(filing):
    saved(filing, given(t1={"realism": "0"}, t4={"answer": ""}))
    with pytest.raises(SystemExit) as end:
        review.main("add", "ratings.csv")
    assert "ratings.csv:3: realism is '0'" in str(
        end.value
    ) and "ratings.csv:6: answer is ''" in str(end.value)


def test_the_same_ratings_are_not_added_twice(filing):
    path = saved(filing, given())
    review.main("add", str(path))
    with pytest.raises(
        SystemExit, match=rf"Ada rated tile t0 already in data/reviews/{RUN}-ada.csv:2"
    ):
        review.main("add", str(path))
    assert len(list(Path("data/reviews").iterdir())) == 1 and measured()["ratings"] == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"run,rater\n1,2\n", "no column tile"),
        (b"\xff\xfer\x00", "not UTF-8"),
        (b"", "no column run"),
        (",".join(ratings.GIVEN).encode() + b"\nr,ada,t\n", ":2: expected 8 fields, found 3"),
        (",".join(ratings.GIVEN).encode() + b"\n", "no ratings"),
        (",".join(ratings.GIVEN).encode() + b'\nr,"ada\n', "cannot be read"),
    ],
)
def test_a_file_that_is_no_ratings_file_is_one_line(filing, content, said):
    Path("ratings.csv").write_bytes(content)
    with pytest.raises(SystemExit) as end:
        review.main("add", "ratings.csv")
    assert "ratings.csv" in str(end.value) and said in str(end.value) and "\n" not in str(end.value)


def test_a_missing_file_or_key_and_a_wrong_word_are_one_line(filing):
    for words, said in (
        (("add", "nowhere.csv"), "nowhere.csv: cannot be read"),
        (("add",), "files ratings"),
        (("ad", "x"), "files ratings"),
    ):
        with pytest.raises(SystemExit, match=said):
            review.main(*words)
    Path(ratings.KEY).unlink()
    with pytest.raises(SystemExit, match="review_key.csv: missing"):
        review.main()


# Statistics ---------------------------------------------------------------------------------------------------------------


def test_no_ratings_is_a_clean_empty_state(filing):
    (filing / "data/reviews/.gitkeep").touch()
    assert measured() == {"ratings": 0, "experts": 0, "ratings_of_other_runs": 0}


def test_ratings_of_other_images_are_left_out(filing):
    review.main("add", str(saved(filing, given())))
    Path(ratings.KEY).write_text(Path(ratings.KEY).read_text().replace(RUN, "rnew"))
    assert measured() == {"ratings": 0, "experts": 0, "ratings_of_other_runs": 6}


def test_known_ratings_give_known_numbers(filing):
    """Realism by tile with Student's interval, detection with Wilson's, artifacts by class."""
    review.main(
        "add",
        str(
            saved(
                filing,
                given(
                    t0={"realism": "1"},
                    t2={"realism": "3"},
                    t4={"realism": "3", "answer": "generated"},
                    t1={"label_answer": "Bare Land", "artifacts": "blur"},
                    t3={"answer": "real", "artifacts": "blur;wrong scale"},
                ),
            )
        ),
    )
    # A second expert marks the first tile 3: its mean is 2, so the real tiles' are 2, 3, 3.
    second = given("Bob", t0={"realism": "3"})
    review.main("add", str(saved(filing, second[:2])))
    found = measured()
    assert found["ratings"] == 7 and found["experts"] == 2
    mean, error = (
        8 / 3,
        4.302652729911275 * math.sqrt(1 / 3) / math.sqrt(3),
    )  # Student's t with 2 degrees of freedom
    assert [found[f"realism_real{end}"] for end in ("", "_lo", "_hi", "_n")] == pytest.approx(
        [mean, mean - error, mean + error, 3]
    )
    assert (
        found["realism_generated"]
        == found["realism_generated_lo"]
        == found["realism_generated_hi"]
        == 3
    )
    # 5 of 7 right; the ends p of Wilson's interval solve |p - 5/7| = z sqrt(p (1 - p) / 7).
    assert found["detection_accuracy"] == pytest.approx(5 / 7) and found["detection_chance"] == 0.5
    for bound in (found["detection_accuracy_lo"], found["detection_accuracy_hi"]):
        assert abs(bound - 5 / 7) == pytest.approx(
            1.959964 * math.sqrt(bound * (1 - bound) / 7), rel=1e-6
        )
    assert found["class_agreement"] == pytest.approx(6 / 7) and found["class_agreement_n"] == 7
    assert found["artifacts"]["generated"]["Snow Ice"] == {
        "repetition": 0,
        "blur": 1,
        "deformation": 0,
        "wrong_scale": 0.5,
        "n": 2,
    }
    assert found["artifacts"]["real"]["Bare Land"]["n"] == 3
    assert "alpha_answer" not in found, "one shared tile, one answer: not defined"


def test_agreement_between_experts_is_krippendorffs(filing):
    """Against the package's other input, raters x tiles with gaps; 1 where all agree."""
    draws, marks = random.Random(0), {}
    for rater in ("Ada", "Bob", "Eve"):
        marks[rater] = [
            None if rater == "Eve" and i == 5 else draws.randint(1, 5) for i in range(6)
        ]
        rows = given(
            rater,
            **{f"t{i}": {"realism": str(mark)} for i, mark in enumerate(marks[rater]) if mark},
        )
        review.main(
            "add",
            str(saved(filing, [row for row, mark in zip(rows, [True, *marks[rater]]) if mark])),
        )
    found = measured()
    table = np.array([[np.nan if mark is None else mark for mark in row] for row in marks.values()])
    assert found["alpha_realism"] == pytest.approx(
        krippendorff.alpha(table, level_of_measurement="ordinal")
    )
    assert found["alpha_answer"] == 1 and found["alpha_class"] == 1
