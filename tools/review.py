"""File the ratings of an expert.

    python -m tools.review add ratings.csv

checks the CSV that the blind page saved, adds the answers from metrics/review_key.csv and files it
in data/reviews. Commit it and run `dvc repro`.
"""

import re
from pathlib import Path

from stages.common.csv_files import write_csv
from stages.reporting.ratings import FILED_COLUMNS, REVIEWS, check_saved
from stages.runtime.process import make_parser, start_process
from stages.runtime.progress import log


def main() -> None:
    parser = make_parser("tools.review", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("add", help="file the ratings of one expert")
    command.add_argument("file", type=Path, help="the CSV that the blind page saved")
    options = parser.parse_args()
    start_process()
    add(options.file)


def add(path: Path) -> None:
    """File the ratings of one expert: all of them or, where one is wrong, none."""
    ratings = check_saved(path)
    target = free_path(ratings[0]["run"], ratings[0]["rater"])
    write_csv(target, ratings, FILED_COLUMNS)
    log(
        f"review: {len(ratings)} ratings by {ratings[0]['rater']} in {target}; "
        "now run `dvc repro` and commit both"
    )


def free_path(run: str, rater: str) -> Path:
    """Return a file name that is free; a rater may send several files, or have a namesake."""
    name = re.sub(r"[^a-z0-9]+", "-", rater.casefold()).strip("-") or "expert"
    target = REVIEWS / f"{run}-{name}.csv"
    number = 1
    while target.exists():
        number += 1
        target = REVIEWS / f"{run}-{name}-{number}.csv"
    return target


if __name__ == "__main__":
    main()
