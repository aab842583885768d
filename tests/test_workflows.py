"""The workflows of .github/: their permissions, their pins, and that their commands exist here."""

import re
import subprocess

import pytest
import yaml
from conftest import REPOSITORY

WORKFLOWS = {path.stem: path for path in sorted((REPOSITORY / ".github/workflows").glob("*.yaml"))}
# Anybody's pull request starts these.
FORKED = ("pull-request", "pull-request-comment")


def steps(name: str) -> list[dict]:
    return [
        step
        for job in yaml.safe_load(WORKFLOWS[name].read_text())["jobs"].values()
        for step in job["steps"]
    ]


def test_there_are_four_workflows():
    assert set(WORKFLOWS) == {*FORKED, "pipeline", "pages"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_commit_and_permissions_are_stated(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in used)
    workflow = yaml.safe_load(WORKFLOWS[name].read_text())
    granted = [
        workflow["permissions"],
        *(job["permissions"] for job in workflow["jobs"].values() if "permissions" in job),
    ]
    allowed = {
        "pull-request": {("contents", "read")},
        "pull-request-comment": {("actions", "read"), ("pull-requests", "write")},
        "pipeline": {("contents", "read"), ("contents", "write"), ("pull-requests", "write")},
        "pages": {("contents", "read"), ("pages", "write"), ("id-token", "write")},
    }[name]
    assert {pair for permissions in granted for pair in permissions.items()} == allowed


@pytest.mark.parametrize("name", FORKED)
def test_a_fork_reaches_no_secret_and_injects_no_command(name):
    text = WORKFLOWS[name].read_text()
    assert "secrets." not in text and "pull_request_target" not in text
    assert all("${{" not in step.get("run", "") for step in steps(name)), (
        "an event's text is passed through env, never into the script"
    )


def test_no_test_is_skipped_for_want_of_a_tool():
    install = next(step["run"] for step in steps("pull-request") if step.get("name") == "Install")
    for script in (install, (REPOSITORY / ".ci/run").read_text()):
        assert all(tool in script for tool in ("openssh-server", "strace", "chromium", "/run/sshd"))


def test_the_job_that_may_write_checks_out_nothing():
    assert not [
        step for step in steps("pull-request-comment") if "checkout" in step.get("uses", "")
    ]


def test_the_code_of_a_pull_request_runs_without_the_checkouts_token():
    checkout = next(step for step in steps("pull-request") if "checkout" in step.get("uses", ""))
    assert checkout["with"]["persist-credentials"] is False and checkout["with"]["fetch-depth"] == 0


@pytest.mark.parametrize("name", WORKFLOWS)
def test_scripts_are_bash_and_name_what_is_here(name):
    for script in (step["run"] for step in steps(name) if "run" in step):
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
        for module in re.findall(r"python -m ((?:stages|tools)\.\w+)", script):
            assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists(), module


def test_a_cancelled_check_posts_nothing():
    job = yaml.safe_load(WORKFLOWS["pull-request-comment"].read_text())["jobs"]["comment"]
    assert "workflow_run.conclusion != 'cancelled'" in job["if"]


COMMENT = next(step["run"] for step in steps("pull-request-comment") if step.get("name") == "Post")


@pytest.mark.parametrize(
    ("number", "head", "posted"),
    [("7", "abc", True), ("7", "other", False), ("7; rm -rf /", "abc", False), ("", "abc", False)],
)
def test_the_comment_goes_only_to_the_pull_request_it_was_made_for(tmp_path, number, head, posted):
    """The posting script itself, with a `gh` that logs its arguments."""
    (tmp_path / "comment").mkdir()
    (tmp_path / "comment/number").write_text(number)
    (tmp_path / "comment/comment.md").write_text("## This run\n")
    gh = tmp_path / "bin/gh"
    gh.parent.mkdir()
    gh.write_text('#!/bin/sh\n[ "$2" = view ] && echo abc\necho "$@" >> calls\n')
    gh.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", COMMENT],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={"PATH": f"{gh.parent}:/usr/bin:/bin", "HEAD": head, "RUN": "https://example.org/run"},
    )
    # A newer push may have moved the head: no fault of this run.
    assert done.returncode == (0 if posted or number == "7" else 1)
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert ("pr comment 7 --body-file body.md" in calls) == posted
    if posted:
        assert (tmp_path / "body.md").read_text().startswith("## This run\n")
    else:
        assert done.stdout.startswith(("error: ", "::notice::"))
