"""Faults that no one stage owns: a source among the outputs, a stage run too early, odd names, nowhere to write."""

import importlib
import os
import resource
import shutil
from pathlib import Path

import audit
import pytest
from conftest import REPOSITORY, copy_repository, shell

from stages.common import sources
from stages.common.artifacts import read_json
from stages.diffusion.latents import allocate
from stages.runtime.atomic import atomic_folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project that has params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(REPOSITORY / "tests/params.yaml", "params.yaml")
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "params.yaml").read_text()
    assert old in text, "the test's own premise"
    (folder / "params.yaml").write_text(text.replace(old, new, 1))


def one_line(done) -> str:
    """The error that a command ended in, if that is all it ended in."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


def stage(folder: Path, *words: str, **env):
    return shell("python", "-m", *words, cwd=folder, env={"PYTHONPATH": str(REPOSITORY), **env})


# Sources ---------------------------------------------------------------------------------------------------------------


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
def test_a_source_among_the_outputs_is_refused(project, source):
    for folder in ("data/papers/mine", "metrics/plots", "data/imagery.part"):
        (project / folder).mkdir(parents=True)
    (project / "link").symlink_to("data/papers")
    with pytest.raises(SystemExit, match="^error: fetch_papers.source: .*a run replaces"):
        sources.local(source, "fetch_papers.source")


@pytest.mark.parametrize("stage", ["fetch_papers", "fetch_imagery"])
def test_links_from_a_source_into_the_outputs_are_refused(project, stage):
    """The old output goes when the new one is whole: by then it would be the only copy."""
    for number, name in enumerate(("forest", "lake")):
        mine = project / "data" / stage.removeprefix("fetch_") / "mine" / name
        mine.mkdir(parents=True)
        (mine / f"{number}.txt").write_text("mine")
        (mine / f"{number}.png").write_bytes(b"mine")
        (project / "given").mkdir(exist_ok=True)
        (project / "given" / name).symlink_to(mine)
    change(project, f"{stage}:\n  source: embedded", f"{stage}:\n  source: path:given")
    with pytest.raises(
        SystemExit, match=f"^error: {stage}.source: .*given/(forest|lake): a run replaces data/"
    ):
        importlib.import_module(f"stages.{stage}").main()
    assert len(list((project / "data").rglob("mine/*/*"))) == 4


def test_linked_folders_of_papers_are_followed(project):
    os.makedirs("far/away")
    Path("far/away/a.txt").write_text("A line about land.\n" * 40)
    os.makedirs("papers")
    Path("papers/near.txt").write_text("A line about water.\n" * 40)
    Path("papers/linked").symlink_to("../far")
    change(project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:papers")
    importlib.import_module("stages.fetch_papers").main()
    assert sorted(read_json("data/papers/SOURCE.json")["files"]) == [
        "linked__away__a.txt",
        "near.txt",
    ]


def test_every_output_is_known_to_be_one():
    made = [Path(out) for entry in audit.pipeline().values() for out in entry["outs"]]
    folders = [out for out in made if not out.suffix]
    assert len(folders) > 15
    assert [
        out for out in folders if not any(out.is_relative_to(known) for known in sources.OUTPUTS)
    ] == []


def test_files_put_where_a_stage_writes_survive_dvc_repro(tmp_path, environment):
    """DVC itself empties an output before its stage runs, unless told not to: the stage's own check would come too late."""
    copy = copy_repository(tmp_path / "copy")
    shutil.copyfile(copy / "tests/params.yaml", copy / "params.yaml")
    mine = copy / "data/papers/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    change(copy, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:data/papers")
    done = shell("dvc", "repro", "fetch_papers", cwd=copy, env=environment)
    assert (
        done.returncode != 0
        and "fetch_papers.source: path:data/papers: a run replaces data/papers" in done.stderr
    )
    assert mine.read_text() == "years of work"


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path):
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
    out.rename(tmp_path / "out.old")  # as a kill between the two renames leaves it
    with pytest.raises(KeyError), atomic_folder(out):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "third"]
    link = tmp_path / "link"
    link.symlink_to(out)
    with (
        pytest.raises(SystemExit, match="link: a mount point or a link can't be replaced"),
        atomic_folder(link),
    ):
        pass
    assert (out / "third").exists()


# Papers ----------------------------------------------------------------------------------------------------------------


def test_papers_of_like_or_foreign_names_all_come(project):
    from test_text_papers import make_pdf

    os.makedirs("papers/sub")
    for name in ("DUP.txt", "dup.txt", "zero.txt", "sub/zero.txt"):
        Path("papers", name).write_text(f"The land of {name} is green.\n" * 40)
    with open(b"papers/caf\xe9.txt", "w") as file:
        file.write("A line about fields.\n" * 40)
    make_pdf(Path("papers/zero.pdf"), ["A page about fields. " * 30])
    change(project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:papers")
    importlib.import_module("stages.fetch_papers").main()
    found = sorted(read_json("data/papers/SOURCE.json")["files"])
    assert found == [
        "DUP.txt",
        "caf\ufffd.txt",
        "dup_2.txt",
        "sub__zero.txt",
        "zero.pdf",
        "zero_2.txt",
    ]
    assert sorted(path.name for path in Path("data/papers").iterdir()) == sorted(
        [*found, "SOURCE.json"]
    )
    assert Path("data/papers/zero_2.txt").read_text().startswith("The land of zero.txt")


def test_text_that_is_none_is_named_and_counted(project):
    os.makedirs("data/papers")
    for n in range(12):
        Path(f"data/papers/good{n}.txt").write_text(
            f"Line about field {n}, and a\0 stray byte.\n" * 40
        )
    Path("data/papers/bom.txt").write_text("\ufeff" + "first line.\n" * 40, encoding="utf-8")
    Path("data/papers/latin.txt").write_bytes("Les for\xeats brûlent.\n".encode("latin-1") * 40)
    Path("data/papers/binary.txt").write_bytes(bytes(range(128)) * 10)
    Path("data/papers/blank.txt").write_text(" \n\n")
    importlib.import_module("stages.scrape").main()
    report = Path("data/papers_report.csv").read_text()
    assert "latin,0,0,failed,not UTF-8 text (byte 7 on); iconv converts it" in report
    assert (
        "binary,0,0,failed,not text: control characters in it" in report
        and "blank,0,0,failed,no text left after cleaning" in report
    )
    counts = read_json("metrics/corpus.json")
    assert (counts["papers"], counts["papers_failed"]) == (13, 3)


@pytest.mark.parametrize("file", [b"caf\xe9.txt", b"n" * 240 + b".txt"])
def test_a_single_paper_of_an_odd_name(project, file, monkeypatch):
    with open(file, "w") as text:
        text.write("A line about fields.\n" * 4000)
    monkeypatch.setenv("PAPER", os.fsdecode(file))
    change(project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: path:$PAPER")
    change(project, "min_test_papers: ", "min_test_papers: 1 # ")
    for stage in ("fetch_papers", "scrape"):
        importlib.import_module(f"stages.{stage}").main()
    assert read_json("metrics/corpus.json")["lines"] == 4000


@pytest.mark.parametrize(
    "content",
    [b"id,title\na\0b,A title\n", b"id,title\n2101.00001\n", b"id,title\n../x y,A title\n"],
)
def test_rows_that_are_no_papers_end_the_stage_before_anything_is_asked(project, content):
    Path("list.csv").write_bytes(content)
    change(project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: arxiv:list.csv")
    with pytest.raises(SystemExit, match="^error: list.csv: .*are no id and title of a paper"):
        importlib.import_module("stages.fetch_papers").main()


@pytest.mark.parametrize("content", ["id,title\n1,\xe9t\xe9\n".encode("latin-1"), None])
def test_a_list_of_papers_that_is_no_csv(project, content):
    os.makedirs("list.csv") if content is None else Path("list.csv").write_bytes(content)
    change(project, "fetch_papers:\n  source: embedded", "fetch_papers:\n  source: arxiv:list.csv")
    with pytest.raises(SystemExit, match="^error: list.csv: not a CSV in UTF-8"):
        importlib.import_module("stages.fetch_papers").main()


# Too early, nowhere to write, a word too many -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, missing",
    [
        ("scrape", "data/papers"),
        ("chunk", "data/corpus.parquet"),
        ("fid", "data/features/real"),
        ("ceiling", "data/imagery/test"),
        ("review_page", "data/imagery/test"),
        ("launch generate", "data/prompts.parquet"),
        ("finetune_llm", "models/base/language"),
    ],
)
def test_a_stage_run_too_early_names_what_is_missing(project, words, missing):
    module, *rest = words.split()
    assert missing in one_line(stage(project, f"stages.{module}", *rest))


@pytest.mark.parametrize(
    "words, line",
    [
        (
            "fetch_model diffusion language",
            "takes from 0 to 1 positional arguments but 2 were given",
        ),
        ("sweep guidance", "run it in a git repository"),
        ("chunk quickly", "takes 0 positional arguments but 1 was given"),
    ],
)
def test_a_command_that_cannot_be(project, words, line):
    module, *rest = words.split()
    assert line in one_line(
        stage(project, f"stages.{module}", *rest, GIT_CEILING_DIRECTORIES=str(project.parent))
    )


def test_a_number_that_the_sweep_has_not():
    assert "numbered 0 to 11" in one_line(stage(REPOSITORY, "tools.sweep", "guidance", "99"))


def test_faults_of_our_own_keep_their_traceback(project):
    done = stage(project, "stages.runtime.launch", "encode", HF_HOME=str(project))
    assert "Traceback" not in done.stderr
    (project / "broken.py").write_text(
        "import stages\n\n\ndef work():\n    return 1 + None\n\n\nwork()\n"
    )
    (project / "early.py").write_text("import stages\nX = len(5)\n")
    assert "Traceback" in stage(project, "early").stderr
    done = stage(project, "broken")
    assert done.returncode == 1 and "Traceback" in done.stderr and "TypeError" in done.stderr


def test_no_place_for_scratch_names_the_variable(project):
    (project / "data/imagery").mkdir(parents=True)
    done = shell(
        "python",
        "-c",
        "import stages; from stages.common import scratch; scratch.root()",
        cwd=project,
        env={"PYTHONPATH": str(REPOSITORY), "REMOTE_DIFFUSION_SCRATCH": "/etc/passwd"},
    )
    assert "/etc/passwd: " in one_line(done) and "set REMOTE_DIFFUSION_SCRATCH" in done.stderr


def test_no_place_for_outputs_names_the_file(project):
    (project / "data").symlink_to("/proc")
    assert "data/papers.part" in one_line(stage(project, "stages.fetch_papers"))


def test_no_room_for_latents_is_a_line_and_no_signal(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
        with pytest.raises(SystemExit, match=r"latents.safetensors: no room for its 2.0 MiB"):
            allocate(tmp_path / "latents.safetensors", {"mean": (2**20,)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
