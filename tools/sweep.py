"""Run a sweep: one experiment per combination of params, then a table with the Pareto front.

    python -m tools.sweep guidance       guidance scale x steps: FID against accuracy on real tiles
    python -m tools.sweep prompts        prompt writer x technique: class agreement of the images
                                         against accuracy on real tiles
    python -m tools.sweep guidance 3     only experiment 3, for a scheduler (docs/sweep.slurm)

Experiments run in temporary copies, each on its own GPU ($CUDA_VISIBLE_DEVICES, else all GPUs), or
one after another without a GPU. They take uncommitted edits with them. An experiment counts as done
if it ran to its end with this params.yaml, these stages, this code and these fetched data;
otherwise it runs, as <name>-run2 where an older one has the name. Writes sweeps/<name>.md: a row
for each experiment, with the reason where it has no result.
"""

import copy
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, product
from pathlib import Path
from queue import Queue
from typing import Any

import pyarrow.parquet as pq
from dvc.repo import Repo
from pydantic import ValidationError

from stages.params import WRITER_TECHNIQUES, Params, check, load_yaml, read
from stages.reporting.ratings import REVIEWS
from stages.runtime.dvc_lock import current_entries, has_params
from stages.runtime.errors import exit_with_error
from stages.runtime.process import make_parser, start_process
from stages.runtime.progress import log
from tools.commands import git, run_command
from tools.sweep_report import CLASS_AGREEMENT, FID, METRICS, OUT, Row, Value, read_metric, report

TEST_IMAGERY = Path("data/imagery/test")
# The author of experiments, which are commits, where git knows no other.
IDENTITY = {"name": "sweep", "email": "sweep@localhost"}


@dataclass(frozen=True)
class Workspace:
    """What an experiment that starts now is made of.

    Attributes:
        params: the values of params.yaml.
        stages: those of dvc.yaml.
        commit: of the tracked files as they are, uncommitted edits included; on no branch.
        fetched: path -> hash of what the fetch_* stages fetched with these params.
    """

    params: dict[str, Any]
    stages: dict[str, Any]
    commit: str
    fetched: dict[str, str]


def main() -> None:
    parser = make_parser("tools.sweep", __doc__)
    parser.add_argument("sweep", choices=METRICS)
    parser.add_argument("number", type=int, nargs="?", help="of one experiment, from 0")
    options = parser.parse_args()
    start_process()
    run_sweep(options.sweep, options.number)


def run_sweep(name: str, number: int | None) -> None:
    """Run the experiments of a sweep that have not run yet, or one of them; write the report.

    Raises:
        SystemExit: with code 1 where no experiment of those asked for has a result.
    """
    experiments = list_experiments(name)
    selected = list(experiments)
    if number is not None:
        if not 0 <= number < len(experiments):
            exit_with_error(
                f"sweep: {number}: the experiments of {name} are numbered 0 to "
                f"{len(experiments) - 1}"
            )
        selected = [selected[number]]
    refuse_repository()
    workspace = read_workspace()
    pending = {
        experiment: experiments[experiment]
        for experiment in selected
        if not find_ref(experiment, experiments[experiment], workspace)
    }
    if CLASS_AGREEMENT in METRICS[name] and workspace.params.get("generate", {}).get("keep"):
        exit_with_error(
            f"sweep: {name} compares the class agreement, which generate.keep selects by and so "
            "can't be measured: set it to null"
        )
    if pending and FID in METRICS[name]:
        warn_of_refused_fid(workspace.params)
    failures = run_experiments(pending)

    rows: dict[str, Row] = {}
    succeeded = 0
    for experiment, params in experiments.items():
        ref = find_ref(experiment, params, workspace)
        if ref:
            rows[ref.rpartition("/")[2]] = read_row(name, ref)
            succeeded += experiment in selected
        elif experiment in pending:
            note = failures.get(experiment) or "params.yaml or code was edited before it started"
            rows[experiment] = Row(("failed", "failed"), note)
        else:
            rows[experiment] = Row(("not run", "not run"))
    report(name, rows)
    if not succeeded:
        exit_with_error(f"sweep: no experiment succeeded; {OUT / name}.md has the reasons")


def refuse_repository() -> None:
    """Exit with an error where git could not keep the result of an experiment."""
    if git("rev-parse", "HEAD") is None:
        exit_with_error(
            "sweep: an experiment belongs to a commit: run it in a git repository that has one"
        )
    if (git("rev-parse", "--is-shallow-repository") or "").strip() == "true":
        exit_with_error(
            "sweep: this clone is shallow, and DVC loses what an experiment in a temporary copy of "
            "it has found: `git fetch --unshallow`"
        )
    with Repo() as repo:
        cache = repo.cache.local_cache_dir
    if not cache.isascii():  # DVC writes it into the copy's settings, in ASCII
        exit_with_error(
            f"sweep: {cache}: DVC can't run an experiment in a temporary copy where the path of "
            "its cache has letters outside ASCII: move this clone, or the cache: `mv "
            f"'{cache}' /a/new/path && dvc cache dir --local /a/new/path`"
        )


def list_experiments(name: str) -> dict[str, dict[str, str]]:
    """Return the params that each experiment of a sweep sets, by experiment."""
    if name == "guidance":
        grid = product(("1.5", "2.0", "3.0", "5.0"), ("7", "14", "28"))
        return {
            f"guidance-{scale}-{steps}": {"sampling.guidance_scale": scale, "sampling.steps": steps}
            for scale, steps in grid
        }
    values = read()
    check(values, "params.yaml")
    experiments = {}
    for writer, techniques in WRITER_TECHNIQUES.items():
        for technique in techniques:
            params = {
                "prompt.writer": writer,
                "prompt.technique": technique,
                # The pair itself may be in `compare`, and must not be asked twice.
                "prompt.compare": "[]",
            }
            if is_accepted(set_params(values, params)):
                experiments[f"prompts-{writer}-{technique}".replace("_", "-")] = params
    return experiments


def is_accepted(values: dict[str, Any]) -> bool:
    """Whether the schema accepts these values of params.yaml.

    It refuses a writer whose model isn't configured, and techniques that the model can't follow.
    """
    try:
        Params.model_validate(values)
    except ValidationError:
        return False
    return True


def read_workspace() -> Workspace:
    """Return what an experiment that starts now is made of."""
    # A commit of the working tree; git prints nothing where that is the checked-out commit.
    identity = (("-c", f"user.{key}={value}") for key, value in IDENTITY.items())
    commit = git(*chain(*identity), "stash", "create") or git("rev-parse", "HEAD")
    assert commit is not None  # `refuse_repository` has checked it
    params = read()
    stages = read("dvc.yaml")["stages"]
    locked = read("dvc.lock")["stages"] if Path("dvc.lock").exists() else {}
    fetched = fetched_hashes(current_entries(locked, stages), params)
    return Workspace(params, stages, commit.strip(), fetched)


def find_ref(experiment: str, params: dict[str, str], workspace: Workspace) -> str | None:
    """Return the git ref of an experiment's newest finished run of this workspace; None: no run.

    Args:
        experiment: its name.
        params: those that the experiment sets.
        workspace: with which other params, stages, code and data it must have run.
    """
    expected = set_params(workspace.params, params)
    for ref in list_refs(experiment):
        if read_yaml(ref, "params.yaml") != expected:
            continue
        if read_yaml(ref, "dvc.yaml")["stages"] != workspace.stages:
            continue
        locked = current_entries(read_yaml(ref, "dvc.lock")["stages"], workspace.stages)
        if not is_finished(locked, expected):
            continue
        if not workspace.fetched.items() <= fetched_hashes(locked, expected).items():
            continue
        inputs = {dep["path"] for stage in locked.values() for dep in stage.get("deps", [])}
        inputs -= {out["path"] for stage in locked.values() for out in stage.get("outs", [])}
        inputs -= {str(OUT), str(REVIEWS)}  # tables and ratings: only the report reads them
        if git("diff", "--name-only", workspace.commit, ref, "--", *sorted(inputs)) == "":
            return ref
    return None


def is_finished(locked: dict[str, dict], params: dict[str, Any]) -> bool:
    """Whether all stages of a dvc.lock ran with these params and with each other's outputs."""
    outs = {
        out["path"]: out.get("md5") for stage in locked.values() for out in stage.get("outs", [])
    }
    for stage in locked.values():
        if not has_params(stage, params):
            return False
        for dep in stage.get("deps", []):
            if dep["path"] in outs and dep.get("md5") != outs[dep["path"]]:
                return False
    return True


def fetched_hashes(locked: dict[str, dict], params: dict[str, Any]) -> dict[str, str]:
    """Return path -> hash of what the fetch_* stages fetched: a source's files may have changed.

    Stages that ran with other params are left out: they will run again.
    """
    return {
        out["path"]: out["md5"]
        for name, stage in locked.items()
        if name.startswith("fetch_") and has_params(stage, params)
        for out in stage.get("outs", [])
    }


def list_refs(experiment: str) -> list[str]:
    """Return the git refs of all runs of an experiment, from any commit, the newest first."""
    patterns = [f"refs/exps/*/*/{experiment}", f"refs/exps/*/*/{experiment}-run*"]
    refs = git("for-each-ref", "--sort=-committerdate", "--format=%(refname)", *patterns)
    return (refs or "").split()


def read_yaml(ref: str, file: str) -> Any:
    """Return the values of a YAML file in a commit."""
    return load_yaml(git("show", f"{ref}:./{file}") or "")


def set_params(values: dict[str, Any], params: dict[str, str]) -> dict[str, Any]:
    """Return a copy of the values of params.yaml with some set, as `dvc exp run -S` does it."""
    values = copy.deepcopy(values)
    for name, text in params.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = load_yaml(text)
    return values


def warn_of_refused_fid(params: dict[str, Any]) -> None:
    """Log, before the first run, that the experiments will have no FID for want of test tiles."""
    reason: Value | str = ""
    if Path(FID.file).exists():
        reason = read_metric(Path(FID.file).read_text(encoding="utf-8"), FID)
    needed = params.get("fid", {}).get("standard_min_n", 0)
    tiles = sum(pq.read_metadata(shard).num_rows for shard in TEST_IMAGERY.glob("*.parquet"))
    if tiles:  # counted now: the metrics may be of a run with other params
        reason = f"no FID ({tiles} of {needed} images)" if tiles < needed else ""
    if isinstance(reason, str) and reason:
        log(
            f"sweep: {reason}, so the experiments will have none either: it needs more test tiles "
            "(fetch_imagery.test) or a lower fid.standard_min_n"
        )


def run_experiments(experiments: dict[str, dict[str, str]]) -> dict[str, str]:
    """Run experiments side by side, one per GPU, or one after another without a GPU.

    Returns:
        why an experiment failed, for each that did.
    """
    devices: list[str | None] = [*list_gpus()] or [None]
    free_devices: Queue[str | None] = Queue()
    for device in devices:
        free_devices.put(device)
    pool = ThreadPoolExecutor(len(devices))
    try:
        futures = {
            experiment: pool.submit(run_experiment, experiment, params, free_devices)
            for experiment, params in experiments.items()
        }
        reasons = {experiment: future.result() for experiment, future in futures.items()}
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C starts no further experiment
    return {experiment: reason for experiment, reason in reasons.items() if reason}


def list_gpus() -> list[str]:
    """Return the devices that $CUDA_VISIBLE_DEVICES names, else all GPUs of this machine."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def run_experiment(
    experiment: str, params: dict[str, str], free_devices: "Queue[str | None]"
) -> str:
    """Run one experiment on a free device; return, and log, why it failed, else ""."""
    device = free_devices.get()
    log(f"sweep: {experiment}" + (f" on GPU {device}" if device else ""))
    settings = [f"--set-param={key}={value}" for key, value in params.items()]
    # Experiments that start at the same time wait for DVC's lock; by default they would give up
    # after three seconds.
    command = ["dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", free_name(experiment)]
    environment = add_identity(os.environ)
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = device
    try:
        finished = run_command(*command, *settings, environment=environment)
    finally:
        free_devices.put(device)
    if not finished.returncode:
        return ""
    lines = (finished.stdout + finished.stderr).strip().splitlines()
    log(f"sweep: {experiment} failed: {' '.join(lines[-5:])}")
    errors = [line for line in lines if line.lower().startswith("error:")]
    return errors[0] if errors else f"dvc exp run: exit code {finished.returncode}"


def add_identity(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of the environment that has an author and a committer.

    Without them, DVC can't save uncommitted edits: name and address must both be in the config of
    git, or both in the environment.
    """
    defaults = {
        f"GIT_{role}_{key.upper()}": (git("config", f"user.{key}") or value).strip()
        for key, value in IDENTITY.items()
        for role in ("AUTHOR", "COMMITTER")
    }
    return {**defaults, **environment}


def free_name(experiment: str) -> str:
    """Return the name of an experiment, with a number where an earlier run has it."""
    taken = {ref.rpartition("/")[2] for ref in list_refs(experiment)}
    names = chain([experiment], (f"{experiment}-run{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def read_row(name: str, ref: str) -> Row:
    """Return the row of an experiment that has run."""
    x, y = (
        read_metric(git("show", f"{ref}:./{metric.file}") or "{}", metric)
        for metric in METRICS[name]
    )
    return Row((x, y))


if __name__ == "__main__":
    main()
