"""The resume cache: where it lies, what is said when its disk is full, listing and emptying it."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.runtime import resume_cache
from stages.runtime.resume_cache import resume_folder
from tools import cache
from tools.rehearsal.measuring import folder_size


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A cache with two unfinished runs, beside a folder of someone else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", "~/cache")
    for stage, name in (("finetune_sd", "aaaa"), ("generate", "bbbb")):
        with pytest.raises(InterruptedError), resume_folder(stage, name) as folder:
            (folder / "finished").write_bytes(bytes(2000))
            raise InterruptedError
    root = tmp_path / "cache"
    (root / "photos").mkdir()
    (root / "photos/family.png").touch()
    return root


def run_tool(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cache", *arguments])
    monkeypatch.setattr(cache, "start_process", lambda: None)
    cache.main()


def test_entries_are_listed_with_size_age_and_origin(root, tmp_path, monkeypatch, capsys):
    os.utime(root / "generate/bbbb/finished", (0, 0))
    os.utime(root / "generate/bbbb", (0, 0))
    os.utime(root / "finetune_sd/aaaa", (2**32, 2**32))  # of a clock that is ahead
    run_tool(monkeypatch)
    total, first, second = capsys.readouterr().out.splitlines()
    assert f"{root}: 2 entries, 4 kB" == total
    assert first.split() == f"2 kB 0 min finetune_sd/aaaa unfinished run of {tmp_path}".split()
    assert "days  generate/bbbb" in second
    (root / "generate/bbbb.origin").write_text(str(tmp_path / "temporary copy"))
    with resume_folder("finetune_sd", "aaaa"):
        run_tool(monkeypatch)
    _, first, second = capsys.readouterr().out.splitlines()
    assert f"in use by process {os.getpid()} " in first and "gone" in second


def test_emptying_keeps_what_a_run_uses_and_what_is_not_the_caches(root, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="photos: .*no such"):
        run_tool(monkeypatch, "empty", "photos")
    with pytest.raises(InterruptedError), resume_folder("finetune_sd", "aaaa"):
        run_tool(monkeypatch, "empty")
        raise InterruptedError
    assert sorted(path.name for path in root.glob("*/*") if path.suffix != ".lock") == [
        "aaaa",
        "aaaa.origin",
        "family.png",
    ]
    assert "finetune_sd/aaaa: kept" in capsys.readouterr().out
    run_tool(monkeypatch, "empty", "finetune_sd", "finetune_sd/aaaa")
    assert not (root / "finetune_sd/aaaa").exists()
    assert (root / "photos/family.png").exists()
    with pytest.raises(InterruptedError), resume_folder("features_tuned", "bbbb"):
        raise InterruptedError
    run_tool(monkeypatch, "empty", "features@tuned")
    assert not (root / "features_tuned/bbbb").exists()


@pytest.mark.parametrize("measure", [cache.measure_size, folder_size])
def test_a_folder_that_is_removed_while_it_is_measured_counts_nothing(
    tmp_path, monkeypatch, measure
):
    (tmp_path / "kept/deep").mkdir(parents=True)
    (tmp_path / "kept/deep/file").write_bytes(bytes(8192))
    (tmp_path / "gone").mkdir()
    scandir = os.scandir

    def remove_and_scan(path):
        if Path(path).name == "gone":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_and_scan)
    assert measure(tmp_path) == 8192 and not (tmp_path / "gone").exists()


def test_a_kill_while_a_folder_is_removed_leaves_no_half_of_it(root, monkeypatch, capsys):
    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume_cache.shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt), resume_folder("generate", "bbbb"):
            pass
    (rest,) = root.glob("generate/bbbb.*.removed")
    run_tool(monkeypatch)
    assert f"{rest.relative_to(root)}  rest of a removed entry" in capsys.readouterr().out
    with pytest.raises(InterruptedError), resume_folder("generate", "bbbb") as folder:
        assert not list(folder.iterdir())
        run_tool(monkeypatch, "empty", "generate")
        assert rest.exists()
        raise InterruptedError
    run_tool(monkeypatch, "empty", f"generate/{rest.name}")
    assert not rest.exists() and folder.exists()
    with resume_folder("generate", "bbbb"):
        rest.mkdir()
    assert [path.suffix for path in (root / "generate").iterdir()] == [".lock"]


def test_a_home_folder_is_expanded_and_an_unknown_one_is_said(root, monkeypatch):
    assert resume_cache.cache_root() == root and not Path("~").exists()
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", "~no-such-user/cache")
    with pytest.raises(SystemExit, match="~no-such-user/cache: .*REMOTE_DIFFUSION_SCRATCH"):
        resume_cache.cache_root()


def test_a_relative_folder_is_refused_as_each_working_folder_has_another(root, monkeypatch):
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", "scratch")
    with pytest.raises(SystemExit, match="REMOTE_DIFFUSION_SCRATCH=scratch: .*absolute"):
        resume_cache.cache_root()
    assert not Path("scratch").exists()


def test_a_lock_of_another_account_is_named_as_such(root, monkeypatch):
    """As root, which tests may run as, no file refuses to be opened."""

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(resume_cache.FileLock, "acquire", refuse)
    with (
        pytest.raises(SystemExit, match="another account.*REMOTE_DIFFUSION_SCRATCH"),
        resume_folder("finetune_sd", "cccc"),
    ):
        pass


def test_a_full_disk_is_answered_by_copying_what_is_finished(root, monkeypatch):
    with pytest.raises(SystemExit) as stopped, resume_folder("finetune_sd", "aaaa"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = str(stopped.value)
    (command,) = re.findall("`(cp .*?)`", message)
    assert "REMOTE_DIFFUSION_SCRATCH=NEW" in message
    other = root.parent / "other"
    other.mkdir()
    subprocess.run(command.replace("NEW", str(other)), shell=True, check=True)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(other))
    with resume_folder("finetune_sd", "aaaa") as folder:
        assert (folder / "finished").stat().st_size == 2000
    assert not folder.exists() and not resume_cache.side_file(folder, "origin").exists()
