"""The whole pipeline, run a second time."""

import shutil

import yaml
from conftest import copy_repository, shell


def test_two_runs_give_the_same_bytes(smoke, warm_environment, tmp_path_factory):
    """A second run from nothing, with a new resume cache, gives the same hashes."""
    copy = copy_repository(tmp_path_factory.mktemp("again"))
    shutil.copyfile(smoke / "params.yaml", copy / "params.yaml")
    done = shell(
        "dvc",
        "repro",
        cwd=copy,
        env={**warm_environment, "REMOTE_DIFFUSION_SCRATCH": str(copy / "scratch")},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (
        yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in (smoke, copy)
    )
    differ = [
        out["path"]
        for name in first
        for out, other in zip(first[name]["outs"], second[name]["outs"], strict=True)
        if out["md5"] != other["md5"]
    ]
    assert not differ
