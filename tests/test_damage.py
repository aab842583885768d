"""A damaged DVC cache: the error line names the file, its stage, and commands that mend it."""

import re

import pytest
import yaml
from conftest import REPOSITORY, shell

MAKE = """
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from safetensors.numpy import save_file
Path("model").mkdir(exist_ok=True)
Path("model/config.json").write_text('{"width": 2}')
pq.write_table(pa.table({"x": range(3000)}), "table.parquet")
save_file({"x": np.arange(3000)}, "model/model.safetensors")
np.save("model/mapped.npy", np.arange(4000))
"""
READ = """
import json
from pathlib import Path
import numpy as np, pyarrow.parquet as pq
from safetensors.numpy import load_file
from stages.runtime.process import start_process
start_process()
config = json.loads(Path("model/config.json").read_text())
np.load("model/mapped.npy", mmap_mode="r")
rows = len(pq.read_table("table.parquet")) + len(load_file("model/model.safetensors")["x"])
Path("sum.txt").write_text(str(rows + config["width"]))
"""
STAGES = {
    "make": {"cmd": "python make.py", "deps": ["make.py"], "outs": ["table.parquet", "model"]},
    "read": {
        "cmd": "python read.py",
        "deps": ["read.py", "table.parquet", "model"],
        "outs": ["sum.txt"],
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository whose two stages ran, and `run` for commands in it."""
    folder = tmp_path_factory.mktemp("finished")

    def run(*command: str):
        return shell(*command, cwd=folder, env={"PYTHONPATH": str(REPOSITORY)})

    (folder / "make.py").write_text(MAKE)
    (folder / "read.py").write_text(READ)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "remote", "add", "-q", "-d", "store", str(folder / "store")],
        ["dvc", "repro", "-q"],
        ["dvc", "push", "-q"],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    return folder, run


@pytest.mark.parametrize(
    ("file", "mend"),
    [
        ("table.parquet", ["dvc", "pull", "-q", "table.parquet"]),
        ("model/model.safetensors", ["dvc", "repro", "-q"]),
        ("model/mapped.npy", ["dvc", "pull", "-q", "model"]),
    ],
)
def test_a_truncated_object_is_named_and_the_advice_mends_it(finished, file, mend):
    folder, run = finished
    content = (folder / file).read_bytes()
    (cached,) = (
        path
        for path in (folder / ".dvc/cache/files/md5").rglob("*")
        if path.is_file() and path.read_bytes() == content
    )
    cached.chmod(0o644)
    cached.write_bytes(content[: len(content) // 2])
    (folder / file).unlink()
    assert run("dvc", "checkout", "-q", "-f").returncode == 0

    done = run("dvc", "repro", "-q", "-f", "-s", "read")
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{file} is damaged" in line and "the stage make wrote" in line
    assert "Traceback" not in done.stderr

    delete, *other = re.findall(r"`(.*?)`", line)
    assert " ".join(mend).replace(" -q", "") in other
    assert run(*delete.split()).returncode == 0
    assert run(*mend).returncode == 0
    assert (folder / file).read_bytes() == content == cached.read_bytes()
    assert run("dvc", "repro", "-q", "-f", "-s", "read").returncode == 0


def test_a_stage_that_another_has_replaced_does_not_make_its_files_damaged(finished):
    """DVC keeps the entry of a removed stage in dvc.lock, with the hashes of then."""
    folder, run = finished
    text = (folder / "dvc.lock").read_text()
    lock = yaml.safe_load(text)
    stale = {"path": "table.parquet", "hash": "md5", "md5": "0" * 32}
    lock["stages"] = {"removed": {"cmd": "python old.py", "outs": [stale]}, **lock["stages"]}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    (folder / "model/config.json").write_bytes(b"{")
    done = run("dvc", "repro", "-q", "-f", "-s", "read")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "model/config.json is damaged" in line and "table.parquet" not in line
    assert run("dvc", "checkout", "-q", "-f", "model").returncode == 0
    (folder / "dvc.lock").write_text(text)


def test_a_file_that_was_changed_here_comes_back_from_the_cache(finished):
    folder, run = finished
    content = (folder / "model/config.json").read_bytes()
    (folder / "model/config.json").write_bytes(content[:5])
    # By hand, it may be of other params: the error comes first, and no object is to be deleted.
    done = run("python", "read.py")
    assert done.returncode == 1 and "JSONDecodeError" in done.stderr
    assert done.stderr.endswith(
        "note: model/config.json is not the file of dvc.lock (stage make)\n"
    )
    assert "rm -f" not in done.stderr

    done = run("dvc", "repro", "-q", "-f", "-s", "read")
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "model/config.json is damaged" in line
    (command,) = re.findall(r"`(.*?)`", line)
    assert run("sh", "-c", command).returncode == 0
    assert (folder / "model/config.json").read_bytes() == content
