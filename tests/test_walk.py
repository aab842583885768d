"""Two people: A publishes a run; B takes the data set alone, changes one param, opens a request."""

import subprocess
import sys
from pathlib import Path

from conftest import shell


def test_from_publishing_to_a_checked_request(committed, warm_environment, tmp_path):
    a, run_a = committed
    hosted = tmp_path / "hosted.git"
    # A: a remote for the outputs, a repository for the rest.
    run_a("git", "checkout", "-q", "-B", "main")
    run_a("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    run_a("git", "commit", "-qam", "A remote for the outputs")
    run_a("dvc", "push")
    run_a("git", "clone", "-q", "--bare", str(a), str(hosted))

    # B: the data set alone.
    b = tmp_path / "b"
    subprocess.run(["git", "clone", "-q", hosted, b], check=True)

    def run_b(*command: str, cwd: Path = b) -> subprocess.CompletedProcess:
        identity = {
            "GIT_AUTHOR_NAME": "b",
            "GIT_AUTHOR_EMAIL": "b@localhost",
            "GIT_COMMITTER_NAME": "b",
            "GIT_COMMITTER_EMAIL": "b@localhost",
        }
        return shell(*command, cwd=cwd, env={**warm_environment, **identity})

    def succeed(*command: str) -> str:
        done = run_b(*command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    succeed("dvc", "pull", "data/synthetic")
    from datasets import load_dataset

    rows = load_dataset("parquet", data_dir=str(b / "data/synthetic"), split="train")
    assert rows.num_rows > 0 and rows[0]["image"].size == (32, 32)
    assert not (b / "data/imagery").exists() and not (b / "models/diffusion").exists()

    # B changes one param: what it needs is fetched, what depends on it runs, the rest stays away.
    succeed("git", "switch", "-qc", "other-intervals")
    params = (b / "params.yaml").read_text()
    assert "subsets: 4" in params, "the test's own premise"
    (b / "params.yaml").write_text(params.replace("subsets: 4", "subsets: 5"))
    done = run_b("dvc", "repro", "--pull", "--allow-missing")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if "Running stage" in line}
    assert ran == {"fid", "report"}
    assert not (b / "models/diffusion").exists()

    # B opens a request.
    succeed("git", "commit", "-qam", "Five subsets")
    succeed("dvc", "push")
    succeed("git", "push", "-q", "origin", "other-intervals")

    # The request's checks, in a clone without data.
    checked = tmp_path / "checked"
    subprocess.run(["git", "clone", "-q", "-b", "other-intervals", hosted, checked], check=True)
    done = run_b(sys.executable, "-m", "tools.check_lock", cwd=checked)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_b(sys.executable, "-m", "tools.diff", "origin/main", cwd=checked)
    assert done.returncode == 0, done.stderr
    assert "fid.subsets" in done.stdout
    # A takes it over: the report of B's run, without running anything.
    run_a("git", "pull", "-q", str(hosted), "other-intervals")
    run_a("dvc", "pull")
    assert "up to date" in run_a("dvc", "status")
