"""A temporary copy of the repository, and the stages of its pipeline."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from stages.runtime.errors import exit_with_error
from tools.commands import git, run_command

# For a commit whatever the user's settings are: none may ask for a key, run a hook or refuse.
GIT_SETTINGS = (
    "user.name=rehearsal",
    "user.email=rehearsal@localhost",
    "commit.gpgsign=false",
    "core.hooksPath=/dev/null",
)


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml.

    Attributes:
        name: such as `sample@base`.
        command: of the shell.
        needs: the names of the stages whose outputs it reads.
        outs: its outputs, relative to the repository.
    """

    name: str
    command: str
    needs: tuple[str, ...]
    outs: tuple[str, ...]


def copy_repository(target: Path, data: list[Path]) -> None:
    """Copy the tracked files and those to be added, with uncommitted changes; no outputs.

    The copy is a git repository of its own, as DVC wants it, with an empty commit.

    Args:
        target: its folder.
        data: files and folders, absolute. What git doesn't track of them is not copied.
    """
    tracked = git("ls-files", "-z")
    to_add = git("ls-files", "-o", "--exclude-standard", "-z")
    if tracked is None or to_add is None:
        exit_with_error("git ls-files failed; start this in the repository's folder")
    names = tracked.split("\0")
    for name in to_add.split("\0"):
        if not any(Path.cwd().joinpath(name).is_relative_to(path) for path in data):
            names.append(name)
    for name in names:
        if name and os.path.isfile(name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target / name)
    # DVCLive asks for the last commit.
    settings = [word for setting in GIT_SETTINGS for word in ("-c", setting)]
    environment = without_git(os.environ)
    for command in (["init", "-q"], [*settings, "commit", "-q", "--allow-empty", "-m", "copy"]):
        finished = run_command("git", "-C", str(target), *command, environment=environment)
        if finished.returncode:
            exit_with_error(finished.stderr)


def without_git(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables without those of git, which may name another repository, index or template."""
    return {name: value for name, value in environment.items() if not name.startswith("GIT_")}


def read_stages(folder: Path) -> list[Stage]:
    """The stages of the pipeline in a folder, as DVC reads them, in an order that it can run."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(folder) as repo:
            graph = repo.index.graph  # an edge leads from a stage to one that it needs
            stages = {
                stage.name: Stage(
                    stage.name,
                    stage.cmd,
                    tuple(sorted(needed.name for needed in graph.successors(stage))),
                    tuple(out.def_path for out in stage.outs),
                )
                for stage in repo.index.stages
            }
    except DvcException as error:
        exit_with_error(f"dvc.yaml: {error}")
    sorter = TopologicalSorter({stage.name: stage.needs for stage in stages.values()})
    return [stages[name] for name in sorter.static_order()]


def remove_outputs(folder: Path, stages: list[Stage]) -> None:
    """Remove the outputs of stages, such as metrics that are in git."""
    for stage in stages:
        for out in stage.outs:
            path = folder / out
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)  # as DVC does
