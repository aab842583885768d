"""The check of dvc.lock on clones without data, and of the remote behind it."""

import functools
import hashlib
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, copy_repository, shell
from dvc.repo import Repo

from tools.check_lock import changed_stages

# The stages.


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of the last commit, without data, as the current folder."""
    subprocess.run(["git", "clone", "-q", REPOSITORY, tmp_path / "clone"], check=True)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def find_changed() -> set[str]:
    with Repo() as repo:
        return set(changed_stages(repo))


def test_each_changed_stage_is_named_without_data(clone):
    before = find_changed()  # a commit may come before its run
    lock = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]

    scripts = sorted(str(path.relative_to(clone)) for path in clone.glob("stages/[a-z]*.py"))
    named = set()
    for changed in (scripts[::2], scripts[1::2]):
        for file in changed:
            with open(file, "a") as code:
                code.write("# changed\n")
        readers = {
            name
            for name, entry in lock.items()
            for dep in entry["deps"]
            if any(Path(file).is_relative_to(dep["path"]) for file in changed)
        }
        assert find_changed() == before | readers
        named |= readers
        subprocess.run(["git", "checkout", "-q", "."], check=True)
    assert named == set(lock)

    params = yaml.safe_load((clone / "params.yaml").read_text())
    for changed in (list(params)[::2], list(params)[1::2]):
        values = {name: "changed" if name in changed else params[name] for name in params}
        (clone / "params.yaml").write_text(yaml.safe_dump(values))
        readers = {
            name
            for name, entry in lock.items()
            for param in entry.get("params", {}).get("params.yaml", {})
            if param.split(".")[0] in changed
        }
        assert find_changed() == before | readers
    subprocess.run(["git", "checkout", "-q", "."], check=True)

    # The stage that writes the corpus ran alone.
    (corpus,) = (out for out in lock["scrape"]["outs"] if out["path"] == "data/corpus.parquet")
    corpus["md5"] = "0" * 32
    text = yaml.safe_dump({"schema": "2.0", "stages": lock}, sort_keys=False)
    (clone / "dvc.lock").write_text(text)
    readers = {
        name
        for name, entry in lock.items()
        if any(dep["path"] == corpus["path"] for dep in entry["deps"])
    }
    assert readers and find_changed() == before | readers


def test_a_clone_with_windows_line_ends_holds_the_same_bytes(tmp_path):
    copy = copy_repository(tmp_path / "copy")
    (copy / "data/reviews/excel.csv").write_bytes(b"tile,rating\r\n1,good\r\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "add", "-A"], cwd=copy, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "review"], cwd=copy, check=True)
    windows = ["git", "-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    subprocess.run([*windows, "clone", "-q", copy, tmp_path / "clone"], check=True)
    listed = subprocess.run(["git", "ls-files"], cwd=copy, text=True, capture_output=True)
    for name in listed.stdout.splitlines():
        assert (tmp_path / "clone" / name).read_bytes() == (copy / name).read_bytes(), name
    status = [*windows, "status", "--porcelain"]
    assert not subprocess.run(status, cwd=tmp_path / "clone", capture_output=True).stdout


# The files in git and the remote.

PIPELINE = """
stages:
  one:
    cmd: python -c "open('out.txt', 'w').write('x')"
    deps: [notes]
    outs: [out.txt]
  two:
    cmd: mkdir -p tiles; echo a > tiles/a; echo b > tiles/b
    outs: [tiles]
"""
CHECK = ("python", "-m", "tools.check_lock")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository whose two stages ran and were pushed to a folder beside it."""
    folder = tmp_path_factory.mktemp("finished") / "repository"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes/a.md").write_text("in git")
    (folder / "dvc.yaml").write_text(PIPELINE)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (
        ("git", "init", "-q"),
        ("dvc", "init", "-q"),
        ("dvc", "remote", "add", "-q", "-d", "store", "../store"),
        ("dvc", "repro", "-q"),
        ("dvc", "push", "-q"),
        ("git", "add", "-A"),
        (*git, "commit", "-qm", "run"),
    ):
        done = shell(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder.parent


@pytest.fixture
def repository(finished, tmp_path):
    """A copy of the finished repository, the folder that it was pushed to, and `run`."""
    copy = shutil.copytree(finished, tmp_path / "copy")

    def run(*command: str, **variables: str):
        environment = {"PYTHONPATH": str(REPOSITORY), "GITHUB_ACTIONS": "", **variables}
        return shell(*command, cwd=copy / "repository", env=environment)

    return copy / "repository", copy / "store", run


def test_a_changed_stage_and_a_hashed_file_that_git_ignores_are_named(repository):
    folder, _, run = repository
    (folder / "notes/a.md").write_text("changed")
    done = run(*CHECK)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert " one: " in line and "two" not in line and "`dvc repro`" in line

    (folder / ".git/info/exclude").write_text("*.png\n")
    (folder / "notes/plot.png").write_text("ignored by git")
    assert run("dvc", "repro", "-q").returncode == 0
    done = run(*CHECK)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "notes/plot.png" in line and "notes/a.md" not in line


class Server(SimpleHTTPRequestHandler):
    """Serves a folder, or answers every request with `server.refusal`."""

    def send_head(self):
        if self.server.refusal:
            return self.send_error(self.server.refusal)
        return super().send_head()

    def log_message(self, *arguments):
        pass


def test_a_remote_that_lacks_outputs_is_an_error_and_one_that_fails_a_warning(repository):
    _, store, run = repository
    handler = functools.partial(Server, directory=str(store))
    direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.refusal = None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert run("dvc", "remote", "modify", "store", "url", url).returncode == 0
        full = run(*CHECK, **direct)
        server.refusal = 503
        refused = run(*CHECK, GITHUB_ACTIONS="true", **direct)
        server.refusal = None
        shutil.rmtree(store)
        store.mkdir()
        empty = run(*CHECK, **direct)
        server.shutdown()
    assert full.returncode == 0 and not full.stderr, full.stderr
    assert refused.returncode == 0 and not refused.stderr, refused.stderr
    (warning,) = (line for line in refused.stdout.splitlines() if line.startswith("::warning::"))
    assert "503" in warning
    assert empty.returncode == 1
    (line,) = empty.stderr.splitlines()
    assert "not in the remote: out.txt, tiles/; run `dvc push`" in line


def test_a_file_of_a_folder_that_the_remote_lacks_is_named_with_what_a_push_needs(repository):
    folder, store, run = repository
    md5 = hashlib.md5((folder / "tiles/b").read_bytes()).hexdigest()
    (store / f"files/md5/{md5[:2]}/{md5[2:]}").unlink()
    done = run(*CHECK)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    (missing,) = re.findall(r"not in the remote: (.*?);", line)
    (listed,) = re.findall(r"files/md5/(\S+\.dir)", line)
    assert missing == "tiles/b" and "out.txt" not in line
    files = json.loads((store / "files/md5" / listed).read_text())
    assert [file["relpath"] for file in files] == ["a", "b"]


def test_a_disk_that_is_not_here_is_a_warning(repository):
    _, _, run = repository
    assert run("dvc", "remote", "modify", "store", "url", "/no-such-disk/store").returncode == 0
    done = run(*CHECK)
    assert done.returncode == 0
    assert "/no-such-disk" in done.stderr and done.stderr.startswith("warning: ")
