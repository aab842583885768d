"""The steps of .github/workflows/pipeline.yaml, run as the runner does, with a bare repository.

`gh` is a script that logs its arguments; everything else is real.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

WORKFLOW = yaml.safe_load((REPOSITORY / ".github/workflows/pipeline.yaml").read_text())
STEPS = {step["name"]: step for step in WORKFLOW["jobs"]["run"]["steps"] if "name" in step}


def branch(attempt: int) -> str:
    """The branch that the workflow names for an attempt of run 7."""
    name = STEPS["Pull request"]["env"]["BRANCH"].replace("${{ github.run_id }}", "7")
    return name.replace("${{ github.run_attempt }}", str(attempt))


class Runner:
    """A self-hosted runner: its home folder stays, its checkouts are new ones."""

    def __init__(self, folder: Path, environment: dict):
        self.folder = folder
        self.repository = folder / "repository.git"
        self.home = folder / "home"
        self.cache = self.home / ".cache/remote-diffusion-dvc"
        self.calls = folder / "gh.log"
        gh = folder / "bin/gh"
        gh.parent.mkdir()
        gh.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\n')
        gh.chmod(0o755)
        self.environment = {
            **environment,
            "PATH": f"{gh.parent}:{environment['PATH']}",
            "HOME": str(self.home),
            "RUNNER_TEMP": str(folder),
            "SCALE": "params.yaml",
            "BASE": "main",
            "CHECKS_START": "false",
        }

    def check_out(self) -> Path:
        """A new working tree, as actions/checkout leaves it on a machine that ran before."""
        checkout = self.folder / "checkout"
        shutil.rmtree(checkout, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", "-b", "main", self.repository, checkout], check=True)
        return checkout

    def run(self, *names: str, attempt: int = 1) -> subprocess.CompletedProcess:
        """Run steps of the job in their order, up to the first that fails; return the last."""
        for name in names:
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", STEPS[name]["run"]],
                cwd=self.folder / "checkout",
                env={**os.environ, **self.environment, "BRANCH": branch(attempt)},
                text=True,
                capture_output=True,
            )
            if done.returncode:
                return done
        return done

    def branches(self) -> set[str]:
        listed = subprocess.run(
            ["git", "for-each-ref", "--format=%(refname:short)", "refs/heads"],
            cwd=self.repository,
            text=True,
            capture_output=True,
            check=True,
        )
        return set(listed.stdout.split())


@pytest.fixture
def runner(committed, warm_environment, tmp_path):
    """A runner whose cache holds the smoke run, and a repository with a remote whose head it is."""
    clone, run = committed
    runner = Runner(tmp_path, warm_environment)
    shutil.copytree(run("dvc", "cache", "dir").strip(), runner.cache, copy_function=os.link)
    run("git", "branch", "-q", "-M", "main")
    run("git", "clone", "-q", "--bare", str(clone), str(runner.repository))
    run("git", "remote", "set-url", "origin", str(runner.repository))
    return runner, run


def test_what_the_runner_reads_beside_the_scripts():
    (checkout,) = [
        step for step in WORKFLOW["jobs"]["run"]["steps"] if "checkout" in step.get("uses", "")
    ]
    assert checkout["with"]["persist-credentials"] is False
    assert STEPS["Run"]["id"] == "run"
    condition = STEPS["Push"]["if"]
    assert "!cancelled()" in condition and "steps.run.outcome != 'skipped'" in condition
    assert branch(1) != branch(2)


def test_without_a_remote_nothing_runs(runner):
    """The outputs of a day on a GPU would be nowhere."""
    runner, _ = runner
    runner.check_out()
    done = runner.run("Pull")
    assert done.returncode == 1 and "dvc remote add" in done.stdout
    assert runner.branches() == {"main"}


def test_a_run_is_pushed_and_opened_once(runner, tmp_path):
    runner, run = runner
    store = tmp_path / "store"
    run("dvc", "remote", "add", "-q", "-d", "store", str(store))
    run("git", "commit", "-qam", "remote")
    run("git", "push", "-q", "origin", "main")

    # Nothing changed since the last run: a good end without a pull request.
    runner.check_out()
    done = runner.run("Pull", "Run", "Push", "Pull request")
    assert done.returncode == 0, done.stdout + done.stderr
    assert runner.branches() == {"main"} and not runner.calls.exists()

    # A stage fails: what the stages before it made reaches the remote.
    clone = Path(run("git", "rev-parse", "--show-toplevel").strip())
    (clone / "data/reviews/expert.csv").write_text("not,a,rating\n1,2,3\n")
    params = (clone / "params.yaml").read_text()
    assert "review_tiles: 20" in params, "the test's own premise"
    (clone / "params.yaml").write_text(params.replace("review_tiles: 20", "review_tiles: 22"))
    run("git", "add", "-A")
    run("git", "commit", "-qm", "other tiles, bad ratings")
    run("git", "push", "-q", "origin", "main")
    runner.check_out()
    before = set(store.rglob("*"))
    done = runner.run("Pull", "Run")
    assert done.returncode and "Running stage 'review_page'" in done.stdout
    assert "expert.csv" in done.stderr
    done = runner.run("Push")
    assert done.returncode == 0, done.stderr
    assert set(store.rglob("*")) > before

    # The next run, on another machine, finds the finished stage in the remote, and opens a pull
    # request.
    shutil.rmtree(runner.cache)
    run("git", "rm", "-q", "data/reviews/expert.csv")
    run("git", "commit", "-qm", "no ratings")
    run("git", "push", "-q", "origin", "main")
    # A job that is run again (here: the request could not be opened) has a branch of its own.
    for attempt in (1, 2):
        checkout = runner.check_out()
        done = runner.run("Pull", "Run")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Running stage 'review_page'" not in done.stdout
        done = runner.run("Push", "Pull request", attempt=attempt)
        assert done.returncode == 0, done.stdout + done.stderr
        assert branch(attempt) in runner.branches()
        call = runner.calls.read_text().splitlines()[-1]
        assert call.startswith(f"pr create --base main --head {branch(attempt)} ")
        assert "credential" not in (checkout / ".git/config").read_text()
    assert "close and reopen" in (tmp_path / "comment.md").read_text()
