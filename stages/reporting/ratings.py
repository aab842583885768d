"""Ratings of the blind review: what a file of them must hold, and what a spreadsheet did to it on the way back."""

import csv
import io
import re
from pathlib import Path

from stages.params import LULC_CLASSES
from stages.runtime.errors import exit_with_error

REVIEWS, KEY = Path("data/reviews"), Path("metrics/review_key.csv")
KEY_COLUMNS = ["run", "tile", "truth", "label"]
GIVEN = [
    "run",
    "rater",
    "tile",
    "answer",
    "realism",
    "label_answer",
    "artifacts",
    "comment",
]  # what the page saves
COLUMNS = [
    "run",
    "rater",
    "tile",
    "truth",
    "answer",
    "realism",
    "label",
    "label_answer",
    "artifacts",
    "comment",
]  # as filed
TRUTHS = ("real", "generated")
ARTIFACTS = ("repetition", "blur", "deformation", "wrong scale")
Row = tuple[str, dict[str, str]]  # where it stands ("file:line"), its values


def table(path: Path, columns: list[str]) -> list[Row]:
    """The rows of a CSV as text. Repaired: a byte-order mark, semicolons or tabs for commas, CRLF, blank lines, spaces around
    values, 4.0 for 4. A file that is no such table ends the run."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as fault:
        exit_with_error(f"{path}: cannot be read: {fault.strerror}")
    except UnicodeDecodeError:
        exit_with_error(f"{path}: cannot be read: not UTF-8; a spreadsheet saves it as `CSV UTF-8`")
    first = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True
    )
    rows = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in columns if name not in header]:
            exit_with_error(
                f"{path}: no column {missing[0]}; a ratings file has {','.join(columns)}"
            )
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                exit_with_error(f"{where}: expected {len(header)} fields, found {len(values)}")
            row = {name: value.strip() for name, value in zip(header, values) if name in columns}
            if "realism" in row:
                row["realism"] = re.sub(r"^(\d)[.,]0+$", r"\1", row["realism"])
            rows.append((where, row))
    except csv.Error as fault:
        exit_with_error(f"{path}:{reader.line_num}: cannot be read: {fault}")
    return rows


def fault(row: dict[str, str]) -> str:
    """What is wrong with a row's own values, or ""."""
    for name in ("run", "rater", "tile"):
        if not row[name]:
            return f"{name} is blank"
    for name in ("truth", "answer"):
        if name in row and row[name] not in TRUTHS:
            return f"{name} is {row[name]!r}, not real or generated"
    if row["realism"] not in tuple("12345"):
        return f"realism is {row['realism']!r}, not a whole number from 1 to 5"
    for name in ("label", "label_answer"):
        if row.get(name) and row[name] not in LULC_CLASSES:
            return f"{name} is {row[name]!r}, not blank or one of {', '.join(LULC_CLASSES)}"
    if strange := [
        name
        for name in row["artifacts"].split(";")
        if name.strip() and name.strip() not in ARTIFACTS
    ]:
        return f"artifacts has {strange[0].strip()!r}, not one of {', '.join(ARTIFACTS)}"
    return ""


def filed() -> list[Row]:
    """All ratings under data/reviews; the first bad one ends the run."""
    rows, seen = [], {}
    for path in sorted(REVIEWS.glob("*.csv")):
        for where, row in table(path, COLUMNS):
            if message := fault(row) or twice(row, seen):
                exit_with_error(f"{where}: {message}")
            seen[identity(row)] = where
            rows.append((where, row))
    return rows


def key() -> dict[tuple[str, str], dict[str, str]]:
    """(run, tile) -> {truth, label} of the pages that were made here last."""
    if not KEY.is_file():
        exit_with_error(
            f"{KEY}: missing; `dvc repro review_page` makes it with the page that is rated"
        )
    return {(row["run"], row["tile"]): row for _, row in table(KEY, KEY_COLUMNS)}


def checked(path: Path) -> list[dict[str, str]]:
    """The ratings of a file that came back, with their answers beside them; all its faults are named, one a line."""
    answers, seen, rows, faults = key(), {identity(row): where for where, row in filed()}, [], []
    run = next(iter(answers), ("none", ""))[0]
    for where, row in table(path, GIVEN):
        message = fault(row)
        if not message and row["run"] != run:
            message = (
                f"run is {row['run']!r}, the key here is of {run}: check out the commit whose {KEY} has that run "
                f"(git log -S {row['run']} -- {KEY})"
            )
        if not message and (row["run"], row["tile"]) not in answers:
            message = f"tile is {row['tile']!r}, which is none of this run's {len(answers)}"
        if not message and rows and row["rater"] != rows[0]["rater"]:
            message = (
                f"rater is {row['rater']!r}, above it is {rows[0]['rater']!r}: one file per expert"
            )
        if message := message or twice(row, seen):
            faults.append(f"{where}: {message}")
            continue
        seen[identity(row)] = where
        answer = answers[row["run"], row["tile"]]
        rows.append(
            {
                name: (row | {"truth": answer["truth"], "label": answer["label"]})[name]
                for name in COLUMNS
            }
        )
    if faults:
        raise SystemExit("\n".join(f"error: {each}" for each in faults) + "\nNothing was added.")
    if not rows:
        exit_with_error(f"{path}: no ratings in it")
    return rows


def identity(row: dict[str, str]) -> tuple[str, str, str]:
    return row["run"], row["rater"].casefold(), row["tile"]


def twice(row: dict[str, str], seen: dict[tuple, str]) -> str:
    where = seen.get(identity(row))
    return f"{row['rater']} rated tile {row['tile']} already in {where}" if where else ""
