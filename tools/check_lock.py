"""Check that dvc.lock agrees with the pipeline, and that the remote holds what it names.

    python -m tools.check_lock

It needs no data, so it is a pull request's first check. Exit code 1 comes with the stages whose
params, code or inputs changed since their last run, or with the outputs that were not pushed.
"""

import argparse
import json
import re
import subprocess

from stages.runtime.errors import exit_with_error
from stages.runtime.process import start_process


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_lock",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    start_process()
    check_stages()
    check_remote()


def check_stages() -> None:
    """Fail where `dvc repro` would run a stage."""
    finished = dvc("repro", "--dry", "--allow-missing")
    if finished.returncode:
        exit_with_error(f"lock: dvc repro --dry: {finished.stderr}")
    stale = re.findall(r"Running stage '([^']+)'", finished.stdout)
    if stale:
        exit_with_error(
            f"lock: {', '.join(stale)}: changed since the run in dvc.lock; "
            "run `dvc repro` and commit what it changes"
        )
    print("lock: dvc.lock agrees with the pipeline")


def check_remote() -> None:
    """Fail where the remote lacks an output that dvc.lock names."""
    if not dvc("config", "core.remote").stdout.strip():
        print("lock: there is no remote: whether the outputs were pushed is not checked")
        return
    # The exit code is 0 even where outputs are missing: only the JSON tells.
    finished = dvc("data", "status", "--not-in-remote", "--json")
    if finished.returncode:
        exit_with_error(f"lock: the remote cannot be read: {finished.stderr}")
    missing = json.loads(finished.stdout).get("not_in_remote")
    if missing:
        exit_with_error(f"lock: not in the remote: {', '.join(missing)}; run `dvc push`")
    print("lock: everything that it names is in the remote")


def dvc(*arguments: str) -> subprocess.CompletedProcess:
    """Run dvc and capture what it prints."""
    return subprocess.run(["dvc", *arguments], text=True, capture_output=True)


if __name__ == "__main__":
    main()
