"""Files of ratings from the blind review: reading, repairing what spreadsheets change, checking."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from stages.runtime.errors import exit_with_error

REVIEWS = Path("data/reviews")
KEY = Path("metrics/review_key.csv")
KEY_COLUMNS = ["run", "tile", "truth", "label"]
# Columns of a file in data/reviews. The file that the page saves lacks two: those of the key.
FILED_COLUMNS = "run rater tile truth answer realism label label_answer artifacts comment".split()
SAVED_COLUMNS = [name for name in FILED_COLUMNS if name not in ("truth", "label")]
TRUTHS = ("real", "generated")
CANNOT_TELL = "can't tell"  # an answer to "real or generated?" and to "which class?"
ARTIFACTS = ("repetition", "blur", "deformation", "wrong scale")
Rating = dict[str, str]  # column -> text


class Key(NamedTuple):
    """The answers to the page that was made here last."""

    run: str
    tiles: dict[str, Rating]  # name of a tile -> its row of the key
    classes: list[str]  # those that the page offers


def read_table(path: Path, columns: list[str]) -> list[tuple[str, Rating]]:
    """Read a CSV as text.

    What spreadsheets change is repaired: a byte-order mark, semicolons or tabs for commas, CRLF,
    blank lines, spaces around values, 4.0 for 4, blank fields that are missing at a row's end.

    Args:
        path: the file.
        columns: those that it must have; others are left out.

    Returns:
        ("file:line", row) for each row.

    Raises:
        SystemExit: where the file can't be read or is no such table.
    """
    text = _read_text(path)
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        for name in columns:
            if name not in header:
                exit_with_error(f"{path}: no column {name}; expected {','.join(columns)}")
        for values in reader:
            where = f"{path}:{reader.line_num}"
            values = [value.strip() for value in values]
            if not any(values):
                continue
            values += [""] * (len(header) - len(values))
            if len(values) != len(header):
                exit_with_error(f"{where}: expected {len(header)} fields, found {len(values)}")
            row = {name: value for name, value in zip(header, values) if name in columns}
            if "realism" in row:
                row["realism"] = re.sub(r"^(\d)[.,]0+$", r"\1", row["realism"])
            rows.append((where, row))
    except csv.Error as error:
        exit_with_error(f"{path}:{reader.line_num}: cannot be read: {error}")
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        exit_with_error(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        exit_with_error(
            f"{path}: cannot be read: not UTF-8; save it as `CSV UTF-8` in the spreadsheet"
        )


def find_error(rating: Rating, key: Key) -> str:
    """Describe the error in a rating's own values; "" if there is none.

    The classes of another run are not known here.
    """
    for name in ("run", "rater", "tile"):
        if not rating[name]:
            return f"{name} is blank"
    if "truth" in rating and rating["truth"] not in TRUTHS:
        return f"truth is {rating['truth']!r}, not real or generated"
    if rating["answer"] not in (*TRUTHS, CANNOT_TELL):
        return f"answer is {rating['answer']!r}, not real, generated or {CANNOT_TELL}"
    if rating["realism"] not in ("1", "2", "3", "4", "5"):
        return f"realism is {rating['realism']!r}, not a whole number from 1 to 5"
    for name in ("label", "label_answer"):
        is_known = not rating.get(name) or rating[name] in (*key.classes, CANNOT_TELL)
        if rating["run"] == key.run and not is_known:
            return f"{name} is {rating[name]!r}, not blank, {CANNOT_TELL} or a class of this run"
    for artifact in map(str.strip, rating["artifacts"].split(";")):
        if artifact and artifact not in ARTIFACTS:
            return f"artifacts has {artifact!r}, not one of {', '.join(ARTIFACTS)}"
    return ""


def find_duplicate(rating: Rating, seen: dict[tuple[str, str, str], str]) -> str:
    """Name the place where the rater rated this tile before; "" if there is none.

    Args:
        rating: the one to check.
        seen: identity of a rating -> "file:line".
    """
    where = seen.get(identity(rating))
    return f"{rating['rater']} rated tile {rating['tile']} already in {where}" if where else ""


def identity(rating: Rating) -> tuple[str, str, str]:
    """Return (run, rater, tile), of which there may be one rating."""
    return rating["run"], rating["rater"].casefold(), rating["tile"]


def read_filed(key: Key) -> list[tuple[str, Rating]]:
    """Read all ratings in data/reviews, of whatever run.

    Returns:
        ("file:line", rating) for each.

    Raises:
        SystemExit: at the first wrong one.
    """
    ratings = []
    seen: dict[tuple[str, str, str], str] = {}
    for path in sorted(REVIEWS.glob("*.csv")):
        for where, rating in read_table(path, FILED_COLUMNS):
            error = find_error(rating, key) or find_duplicate(rating, seen)
            if error:
                exit_with_error(f"{where}: {error}")
            seen[identity(rating)] = where
            ratings.append((where, rating))
    return ratings


def read_key() -> Key:
    """Read the answers to the page that was made here last.

    Raises:
        SystemExit: where there are none.
    """
    if not KEY.is_file():
        exit_with_error(f"{KEY}: missing; `dvc repro review_page` makes it, with the page to rate")
    rows = [row for _, row in read_table(KEY, KEY_COLUMNS)]
    if not rows:
        exit_with_error(f"{KEY}: holds no tiles; `dvc repro review_page` makes it again")
    tiles = {row["tile"]: row for row in rows if row["tile"]}
    return Key(rows[0]["run"], tiles, list(dict.fromkeys(row["label"] for row in rows)))


def check_saved(path: Path) -> list[Rating]:
    """Check the file of an expert; return its ratings with the answers.

    Raises:
        SystemExit: where a rating is wrong; the message names each, one per line.
    """
    key = read_key()
    seen = {identity(rating): where for where, rating in read_filed(key)}
    ratings: list[Rating] = []
    errors = []
    for where, rating in read_table(path, SAVED_COLUMNS):
        error = (
            find_error(rating, key)
            or _find_mismatch(rating, ratings, key)
            or find_duplicate(rating, seen)
        )
        if error:
            errors.append(f"error: {where}: {error}")
            continue
        seen[identity(rating)] = where
        answered = key.tiles[rating["tile"]] | rating
        ratings.append({name: answered[name] for name in FILED_COLUMNS})
    if errors:
        raise SystemExit("\n".join([*errors, "Nothing was added."]))
    if not ratings:
        exit_with_error(f"{path}: holds no ratings")
    return ratings


def _find_mismatch(rating: Rating, above: list[Rating], key: Key) -> str:
    """Describe what in a rating doesn't match the key or the ratings above it; "" if all does."""
    if rating["run"] != key.run:
        return (
            f"run is {rating['run']!r}, the key here is of {key.run}: check out the commit of that "
            f"run and `dvc checkout {KEY}`; `dvc get . {KEY} --rev <commit>` fetches the key of "
            "each commit of `git log -- dvc.lock`, to find it"
        )
    if rating["tile"] not in key.tiles:
        return f"tile is {rating['tile']!r}, not one of this run's {len(key.tiles)}"
    if above and rating["rater"] != above[0]["rater"]:
        return (
            f"rater is {rating['rater']!r}, above it is {above[0]['rater']!r}: "
            "a file has the ratings of one expert"
        )
    return ""
