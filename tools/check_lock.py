"""Check that dvc.lock agrees with the pipeline, and that git and the remote hold what it names.

    python -m tools.check_lock

It needs no data, so it is a pull request's first check. Exit code 1 comes with the stages whose
params, code or inputs changed since their last run, with the files that are not in git, or with
the outputs that were not pushed. A remote that cannot be read is a warning.
"""

import json
import os
import sys
from pathlib import Path

import aiohttp
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.runtime.errors import exit_with_error
from stages.runtime.process import make_parser, start_process
from stages.runtime.redaction import redact
from tools.commands import git, run_command

CONFIG_ERROR = 251  # DVC's exit code


def main() -> None:
    parser = make_parser("tools.check_lock", __doc__)
    parser.parse_args()
    start_process()
    try:
        with Repo() as repo:
            check_stages(repo)
            check_files(repo)
            check_remote(repo)
    except DvcException as error:
        exit_with_error(f"lock: {error}")


# The stages.


def check_stages(repo: Repo) -> None:
    """Fail where `dvc repro` would run a stage."""
    changed = changed_stages(repo)
    if changed:
        exit_with_error(
            f"lock: {', '.join(changed)}: changed since the run in dvc.lock; "
            "run `dvc repro` and commit what it changes"
        )
    print("lock: dvc.lock agrees with the pipeline")


def changed_stages(repo: Repo) -> list[str]:
    """Return the stages whose params, code, inputs or outputs are not those in dvc.lock.

    Data that is missing here is taken to be as dvc.lock says. Stages that would only run because
    one before them does are not among them.
    """
    written = {str(out): out.hash_info for out in repo.index.outs}
    status = repo.status()
    changed = []
    for stage in repo.index.stages:
        inputs_differ = any(
            dep.hash_info != written.get(str(dep), dep.hash_info) for dep in stage.deps
        )
        reported = status.get(stage.addressing, [])
        if inputs_differ or any(is_change(part, repo) for part in reported):
            changed.append(stage.addressing)
    return changed


def is_change(reported: str | dict[str, dict], repo: Repo) -> bool:
    """Whether an entry of `dvc status` is a change, and not only data that is missing here.

    Args:
        reported: "changed command", or {"changed deps": {path: state}}, or the same with outs.
    """
    if isinstance(reported, str):
        return True
    states = [state for paths in reported.values() for state in paths.items()]
    absent = ("deleted", "not in cache")
    return any(state not in absent or not is_data(path, repo) for path, state in states)


def is_data(path: str, repo: Repo) -> bool:
    """Whether a path is an output, or in one, that DVC keeps and git does not."""
    return any(Path(path).is_relative_to(str(out)) for out in repo.index.outs if out.use_cache)


# The files in git.


def check_files(repo: Repo) -> None:
    """Fail where dvc.lock holds the hash of a file that neither DVC nor git keeps."""
    deps = {str(dep) for dep in repo.index.deps if not is_data(str(dep), repo)}
    outs = {str(out) for out in repo.index.outs if not out.use_cache}
    # Files that git ignores count, too; those that DVC ignores don't.
    listed = git(
        "-c",
        "core.quotePath=off",
        "ls-files",
        "--others",
        "--exclude-from=.dvcignore",
        "--",
        *deps,
        *outs,
    )
    if listed is None:
        exit_with_error("lock: `git ls-files` failed: is this the root of a git repository?")
    if listed:
        exit_with_error(
            f"lock: not in git, but in dvc.lock: {', '.join(listed.splitlines())}; "
            "a clone cannot agree with it: commit these files, or move them elsewhere"
        )
    print("lock: every file that it names, except data, is in git")


# The remote.


def check_remote(repo: Repo) -> None:
    """Fail where the remote lacks an output that dvc.lock names; warn where it cannot be read."""
    if not repo.config["core"].get("remote"):
        print("lock: there is no remote: whether the outputs were pushed is not checked")
        return
    # The exit code is 0 even where outputs are missing: only the JSON tells.
    finished = run_command("dvc", "data", "status", "--not-in-remote", "--granular", "--json")
    if finished.returncode == CONFIG_ERROR:
        exit_with_error(f"lock: {finished.stderr}")
    if finished.returncode:
        problem = finished.stderr.strip().split("\n\n")[0]  # then DVC offers its help
        return warn(f"the remote cannot be read: {problem}")
    missing = json.loads(finished.stdout).get("not_in_remote", [])
    if not missing:
        print("lock: everything that it names is in the remote")
        return
    # Where a whole folder is missing, its files are listed, too.
    data = {str(out): out.hash_info.value for out in repo.index.outs if out.use_cache}
    outputs = [path for path in missing if path.rstrip("/") in data]
    reason = why_unreadable(repo, next(iter(data.values()))) if len(outputs) == len(data) else None
    if reason:
        return warn(f"the remote cannot be read: {reason}")
    if outputs:
        exit_with_error(f"lock: not in the remote: {', '.join(outputs)}; run `dvc push`")
    # DVC takes a folder whose list of files is in the remote for complete, and pushes nothing.
    lists = [
        f"files/md5/{value[:2]}/{value[2:]}"
        for path, value in data.items()
        if any(file.startswith(f"{path}/") for file in missing)
    ]
    exit_with_error(
        f"lock: not in the remote: {', '.join(missing)}; delete {', '.join(lists)} there, which "
        "says that the folder is complete, then run `dvc push`"
    )


def why_unreadable(repo: Repo, missing: str) -> str | None:
    """Say why a remote in which DVC finds nothing at all cannot be read; None if it answers.

    DVC reports a file as missing also where a web server is down or refuses, or where the remote is
    a folder on a disk that this machine does not have.

    Args:
        missing: the hash of an object that DVC does not find.
    """
    remote = repo.cloud.get_remote()
    if remote.fs.protocol == "local" and not Path(remote.path).exists():
        return f"there is no folder {remote.path}"
    if remote.fs.protocol not in ("http", "https"):
        return None
    try:
        remote.fs.fs.cat_file(remote.odb.oid_to_path(missing))
    except FileNotFoundError:
        return None
    except (OSError, aiohttp.ClientError) as error:
        return str(error)
    return None


def warn(message: str) -> None:
    """Print a warning, which GitHub shows on the pull request."""
    message = redact(" ".join(f"lock: {message}".split()))
    if os.environ.get("GITHUB_ACTIONS"):
        print(f"::warning::{message.replace('%', '%25')}")
    else:
        print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
