"""Does dvc.lock agree with the pipeline, and is what it names in the remote? Needs no data: a pull request's first check.

    python -m tools.check_lock

Exit code 1 names the stages whose params, code or inputs changed without a run, or the outputs that nobody pushed.
"""

import json
import re
import subprocess

from stages.runtime.errors import exit_with_error


def main() -> None:
    done = dvc("repro", "--dry", "--allow-missing")
    if done.returncode:
        exit_with_error(f"lock: dvc repro --dry: {done.stderr}")
    if stale := re.findall(r"Running stage '([^']+)'", done.stdout):
        exit_with_error(
            f"lock: {', '.join(stale)}: changed since the run in dvc.lock; run `dvc repro` and commit what it changes"
        )
    print("lock: dvc.lock agrees with the pipeline")
    if not dvc("config", "core.remote").stdout.strip():
        print("lock: there is no remote: whether the outputs were pushed is not checked")
        return
    # Exits 0 whatever it finds: its JSON tells.
    done = dvc("data", "status", "--not-in-remote", "--json")
    if done.returncode:
        exit_with_error(f"lock: the remote cannot be read: {done.stderr}")
    if absent := json.loads(done.stdout).get("not_in_remote"):
        exit_with_error(f"lock: not in the remote: {', '.join(absent)}; run `dvc push`")
    print("lock: everything that it names is in the remote")


def dvc(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["dvc", *words], text=True, capture_output=True)


if __name__ == "__main__":
    main()
