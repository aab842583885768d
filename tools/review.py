"""File the ratings of an expert.

    python -m tools.review add ratings.csv

checks the CSV that the blind page saved, adds the answers from metrics/review_key.csv and files it
under data/reviews. Commit it, and run `dvc repro`.
"""

import argparse
import csv
import io
import re
from pathlib import Path

from stages.common.artifacts import write_atomically
from stages.reporting import ratings
from stages.runtime.process import start_process
from stages.runtime.progress import log


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.review",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("add", help="file the ratings of one expert")
    command.add_argument("file", type=Path, help="the CSV that the blind page saved")
    options = parser.parse_args()
    start_process()
    add(options.file)


def add(path: Path) -> None:
    """File the ratings of one expert: all of them or none."""
    rows = ratings.checked(path)
    name = re.sub(r"[^a-z0-9]+", "-", rows[0]["rater"].casefold()).strip("-") or "expert"
    target, number = ratings.REVIEWS / f"{rows[0]['run']}-{name}.csv", 1
    while target.exists():  # the same expert's further tiles, or a namesake
        number += 1
        target = target.with_name(f"{rows[0]['run']}-{name}-{number}.csv")
    sink = io.StringIO()
    writer = csv.DictWriter(sink, ratings.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(target, sink.getvalue().encode())
    log(
        f"review: {len(rows)} ratings by {rows[0]['rater']} in {target}; now `dvc repro`, and commit both"
    )


if __name__ == "__main__":
    main()
