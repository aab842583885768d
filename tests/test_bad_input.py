"""Bad input of any stage: a source in an output folder, missing inputs, odd names, no space."""

import csv
import importlib
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path

import audit
import pytest
from conftest import (
    REPOSITORY,
    copy_repository,
    heed_signals,
    replace_in_params,
    shell,
    write_smoke_params,
)

from stages.common import sources
from stages.common.artifacts import read_json
from stages.diffusion.latents import allocate
from stages.runtime.atomic import atomic_folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project that has params.yaml."""
    monkeypatch.chdir(tmp_path)
    write_smoke_params(tmp_path)
    return tmp_path


def error_line(done) -> str:
    """The only error line of a command that failed without a traceback."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


def run_module(folder: Path, *arguments: str, **env):
    """`python -m <arguments>` of the repository, in another folder."""
    env = {"PYTHONPATH": str(REPOSITORY), **env}
    return shell("python", "-m", *arguments, cwd=folder, env=env)


# Sources


@pytest.mark.parametrize(
    "source",
    [
        "path:data/papers",
        "path:data/papers/mine",
        "path:data",
        "path:.",
        "path:link",
        "path:metrics/plots",
        "path:data/imagery.part",
    ],
)
def test_a_source_in_an_output_folder_is_refused(project, source):
    for folder in ("data/papers/mine", "metrics/plots", "data/imagery.part"):
        (project / folder).mkdir(parents=True)
    (project / "link").symlink_to("data/papers")
    with pytest.raises(SystemExit, match=f"^error: fetch_papers.source: {source}: "):
        sources.local_path(source, "fetch_papers.source")


def test_a_relative_source_that_an_experiment_lacks_gets_a_hint(project, monkeypatch):
    copy = project / ".dvc/tmp/exps/tmp0"
    copy.mkdir(parents=True)
    for source in ("path:mine", "path:/mine", "path:~mine"):
        with pytest.raises(SystemExit, match=f"^error: key: {source}: no such file or folder$"):
            sources.local_path(source, "key")
    monkeypatch.chdir(copy)
    with pytest.raises(SystemExit, match="no such file or folder .*absolute"):
        sources.local_path("path:mine", "key")
    with pytest.raises(SystemExit, match="no such file or folder$"):
        sources.local_path("path:/mine", "key")


@pytest.mark.parametrize("source", ["$RD_DATA/tiles", "${RD_DATA}/tiles", "${RD_DATA}"])
def test_a_variable_may_stand_in_braces(project, monkeypatch, source):
    monkeypatch.delenv("RD_DATA", raising=False)
    with pytest.raises(SystemExit, match="variable RD_DATA is not set"):
        sources.local_path(f"path:{source}", "key")
    (project / "in/tiles").mkdir(parents=True)
    monkeypatch.setenv("RD_DATA", str(project / "in"))
    path = sources.local_path(f"path:{source}", "key")
    assert path == project / ("in/tiles" if "tiles" in source else "in")


@pytest.mark.parametrize("stage", ["fetch_papers", "fetch_imagery"])
def test_links_from_a_source_to_an_output_folder_are_refused(project, stage):
    """The old output, which the links lead to, is deleted when the new one is complete."""
    for number, name in enumerate(("forest", "lake")):
        mine = project / "data" / stage.removeprefix("fetch_") / "mine" / name
        mine.mkdir(parents=True)
        (mine / f"{number}.txt").write_text("mine")
        (mine / f"{number}.png").write_bytes(b"mine")
        (project / "given").mkdir(exist_ok=True)
        (project / "given" / name).symlink_to(mine)
    replace_in_params(project, f"{stage}:\n  source: embedded", f"{stage}:\n  source: path:given")
    replace_in_params(
        project, "train_scene:\n  source: embedded", "train_scene:\n  source: scratch"
    )
    output = f"data/{stage.removeprefix('fetch_')}"
    error = f"^error: {stage}.source: .*given/(forest|lake): .*{output}"
    with pytest.raises(SystemExit, match=error):
        importlib.import_module(f"stages.{stage}").main()
    assert len(list((project / "data").rglob("mine/*/*"))) == 4


def test_linked_folders_of_papers_are_followed(project):
    os.makedirs("far/away")
    Path("far/away/a.txt").write_text("A line about land.\n" * 40)
    os.makedirs("papers")
    Path("papers/near.txt").write_text("A line about water.\n" * 40)
    Path("papers/linked").symlink_to("../far")
    replace_in_params(
        project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:papers"
    )
    importlib.import_module("stages.fetch_papers").main()
    assert sorted(read_json("data/papers/SOURCE.json")["files"]) == [
        "linked__away__a.txt",
        "near.txt",
    ]


def test_every_output_folder_is_listed():
    outputs = [Path(out) for entry in audit.pipeline().values() for out in entry["outs"]]
    folders = [out for out in outputs if not out.suffix]
    assert len(folders) > 15
    for folder in folders:
        assert any(folder.is_relative_to(listed) for listed in sources.OUTPUT_FOLDERS), folder


def test_files_of_the_user_in_an_output_folder_survive_dvc_repro(tmp_path, environment):
    """Without `persist: true` DVC would delete the folder before the stage can refuse it."""
    copy = copy_repository(tmp_path / "copy")
    write_smoke_params(copy)
    mine = copy / "data/papers/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    replace_in_params(
        copy, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:data/papers"
    )
    done = shell("dvc", "repro", "fetch_papers", cwd=copy, env=environment)
    assert done.returncode != 0 and "fetch_papers.source: path:data/papers: " in done.stderr
    assert mine.read_text() == "years of work"


def test_the_old_folder_stays_until_the_new_one_is_complete(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as part:
        (part / "first").touch()
    with pytest.raises(KeyError), atomic_folder(out) as part:
        (part / "second").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "first"]
    with atomic_folder(out) as part:
        (part / "third").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "third"]
    out.rename(tmp_path / "out.old")  # as after a kill between the two renames
    with pytest.raises(KeyError), atomic_folder(out):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "third"]
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(SystemExit, match=f"^error: {link}: "), atomic_folder(link):
        pass
    assert (out / "third").exists()


# Papers


def test_papers_of_the_same_or_odd_names_are_all_copied(project):
    from test_text_papers import make_pdf

    os.makedirs("papers/sub")
    for name in ("DUP.txt", "dup.txt", "zero.txt", "sub/zero.txt"):
        Path("papers", name).write_text(f"The land of {name} is green.\n" * 40)
    with open(b"papers/caf\xe9.txt", "w") as file:
        file.write("A line about fields.\n" * 40)
    make_pdf(Path("papers/zero.pdf"), ["A page about fields. " * 30])
    replace_in_params(
        project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:papers"
    )
    importlib.import_module("stages.fetch_papers").main()
    copies = sorted(read_json("data/papers/SOURCE.json")["files"])
    assert copies == [
        "DUP.txt",
        "caf\ufffd.txt",
        "dup_2.txt",
        "sub__zero.txt",
        "zero.pdf",
        "zero_2.txt",
    ]
    written = sorted(path.name for path in Path("data/papers").iterdir())
    assert written == sorted([*copies, "SOURCE.json"])
    assert Path("data/papers/zero_2.txt").read_text().startswith("The land of zero.txt")


def test_papers_without_readable_text_are_reported(project):
    os.makedirs("data/papers")
    for n in range(12):
        text = f"Line about field {n}, and a\0 stray byte.\n" * 40
        Path(f"data/papers/good{n}.txt").write_text(text)
    Path("data/papers/bom.txt").write_text("\ufeff" + "first line.\n" * 40, encoding="utf-8")
    Path("data/papers/latin.txt").write_bytes("Les for\xeats brûlent.\n".encode("latin-1") * 40)
    Path("data/papers/binary.txt").write_bytes(bytes(range(128)) * 10)
    Path("data/papers/blank.txt").write_text(" \n\n")
    importlib.import_module("stages.scrape").main()
    with open("data/papers_report.csv", newline="") as file:
        failed = {
            row["paper"]: row["reason"] for row in csv.DictReader(file) if row["status"] == "failed"
        }
    assert list(failed) == ["binary", "blank", "latin"]
    assert "byte 7" in failed["latin"] and all(failed.values())
    counts = read_json("metrics/corpus.json")
    assert (counts["papers"], counts["papers_failed"]) == (13, 3)


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"n" * 240 + b".txt"])
def test_a_single_paper_of_an_odd_name(project, name, monkeypatch):
    with open(name, "w") as file:
        file.writelines(f"Line {n} about fields.\n" for n in range(4000))
    monkeypatch.setenv("PAPER", os.fsdecode(name))
    replace_in_params(
        project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:$PAPER"
    )
    replace_in_params(project, "min_test_papers: ", "min_test_papers: 1 # ")
    for stage in ("fetch_papers", "scrape"):
        importlib.import_module(f"stages.{stage}").main()
    assert read_json("metrics/corpus.json")["lines"] == 4000


@pytest.mark.parametrize(
    "content",
    [
        *(b"id,title\na\0b,A title\n", b"id,title\n2101.00001\n", b"id,title\n../x y,A title\n"),
        *(b"id,title\n2101.00001,A title, and more\n", b"id,title\n,\n"),
        b"id,title\nexport.arxiv.org/abs/2101.00001,A title\n",
    ],
)
def test_rows_that_are_no_papers_end_the_stage_before_a_download(project, content):
    Path("list.csv").write_bytes(content)
    replace_in_params(
        project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: arxiv:list.csv"
    )
    with pytest.raises(SystemExit, match="^error: list.csv: "):
        importlib.import_module("stages.fetch_papers").main()


@pytest.mark.parametrize("content", ["id,title\n1,\xe9t\xe9\n".encode("latin-1"), None])
def test_a_list_of_papers_that_is_not_csv(project, content):
    if content is None:
        os.makedirs("list.csv")
    else:
        Path("list.csv").write_bytes(content)
    replace_in_params(
        project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: arxiv:list.csv"
    )
    with pytest.raises(SystemExit, match="^error: list.csv: "):
        importlib.import_module("stages.fetch_papers").main()


# Missing inputs, wrong arguments, nowhere to write


@pytest.mark.parametrize(
    "command, missing",
    [
        ("stages.scrape", "data/papers"),
        ("stages.chunk", "data/corpus.parquet"),
        ("stages.fid", "data/features/real"),
        ("stages.ceiling", "data/imagery/test"),
        ("stages.review_page", "data/imagery/test"),
        ("stages.runtime.launch generate", "data/prompts.parquet"),
        ("stages.finetune_llm", "models/base/language"),
    ],
)
def test_a_stage_run_too_early_names_what_is_missing(project, warm_environment, command, missing):
    assert missing in error_line(run_module(project, *command.split(), **warm_environment))


@pytest.mark.parametrize(
    "command, word",
    [
        ("stages.fetch_model diffusion language", " language"),
        ("stages.fetch_model difusion", "'difusion'"),
        ("stages.chunk quickly", " quickly"),
        ("stages.runtime.launch report", "'report'"),
    ],
)
def test_wrong_arguments_are_a_usage_line(project, command, word):
    module, *arguments = command.split()
    done = run_module(project, module, *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"usage: python -m {module} ")
    assert word in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_sweep_outside_a_git_repository_is_one_line(project):
    ceiling = str(project.parent)
    done = run_module(project, "tools.sweep", "guidance", GIT_CEILING_DIRECTORIES=ceiling)
    assert "git" in error_line(done)


def test_an_experiment_that_the_sweep_does_not_have_is_one_line():
    line = error_line(run_module(REPOSITORY, "tools.sweep", "guidance", "99"))
    assert {"0", "11"} <= set(re.findall(r"\d+", line))


def test_only_file_errors_are_one_line(project):
    """Any other exception is a bug, so it keeps its traceback."""
    starts = "from stages.runtime.process import start_process\nstart_process()\n"
    (project / "bug.py").write_text(starts + "1 + None\n")
    done = run_module(project, "bug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "TypeError" in done.stderr
    (project / "no_file.py").write_text(starts + 'open("nowhere.txt")\n')
    assert "nowhere.txt" in error_line(run_module(project, "no_file"))


def test_a_merge_conflict_in_a_metrics_file_is_one_line(project):
    (project / "fid.json").write_text("<<<<<<< HEAD\n{}\n")
    (project / "conflict.py").write_text(
        "from stages.common.artifacts import read_json\n"
        "from stages.runtime.process import start_process\n"
        'start_process()\nread_json("fid.json")\n'
    )
    assert "fid.json: not valid JSON" in error_line(run_module(project, "conflict"))


def test_ctrl_c_is_one_line(project):
    starts = "from stages.runtime.process import start_process\nstart_process()\n"
    # A shell starts what runs in the background with Ctrl-C ignored.
    kill = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    kill += "signal.raise_signal(signal.SIGINT)\n"
    (project / "interrupted.py").write_text(starts + kill)
    done = run_module(project, "interrupted")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "tool, words, work",
    [
        ("evaluate", ["real", "generated"], "read_images"),
        ("export", ["hub", "owner"], "write_repositories"),
        ("rehearse", ["paper"], "prepare"),
    ],
)
def test_signals_leave_no_temporary_files(tmp_path, monkeypatch, tool, words, work, number):
    module = importlib.import_module(f"tools.{tool}")
    for before in ("start_process", "check_options", "load_extractor", "read_commit"):
        monkeypatch.setattr(module, before, lambda *_, **__: None, raising=False)
    monkeypatch.setattr(module, work, lambda *_, **__: signal.raise_signal(number))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [tool, *words])
    monkeypatch.setenv("HF_TOKEN", "token")
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heed_signals()
    try:
        with pytest.raises(KeyboardInterrupt):
            module.main()
    finally:
        for changed, handler in handlers.items():
            signal.signal(changed, handler)
    assert not list(tmp_path.iterdir())


def test_a_resume_cache_that_cannot_be_written_names_the_variable(project):
    code = "from stages.runtime.resume_cache import cache_root; cache_root()"
    env = {"PYTHONPATH": str(REPOSITORY), "REMOTE_DIFFUSION_SCRATCH": "/etc/passwd"}
    line = error_line(shell("python", "-c", code, cwd=project, env=env))
    assert "/etc/passwd: " in line and "REMOTE_DIFFUSION_SCRATCH" in line


def test_outputs_that_cannot_be_written_name_the_file(project):
    (project / "data").symlink_to("/proc")
    assert "data/papers.part" in error_line(run_module(project, "stages.fetch_papers"))


def test_latents_that_do_not_fit_on_the_disk_are_named(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
        with pytest.raises(OSError, match=r"no space for its 2.0 MiB: .*latents.safetensors"):
            allocate(tmp_path / "latents.safetensors", {"mean": (2**20,)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
