"""The scales: what their files hold, what `tools.scale` writes to params.yaml and what it keeps."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, shell, skip_unless_demo_is_committed

from stages.params import Params, load, read
from tools import scale
from tools.scale import compose, flatten

DEMO = (REPOSITORY / "params/demo.yaml").read_text()
# By their names: params/ may also hold a user's own files, for which the tests below aren't meant.
SCALES = ["paper", "recommended", "rsicd", "rsicd_cpu", "small"]
LABEL_SETS = ["eurosat", "rsicd30", "seven", "worldcover"]
OVERLAYS = [*sorted([*SCALES, *LABEL_SETS]), "tests/params.yaml"]
LABEL_KEYS = {"classes", "prompt.per_class", "prompt.words"}
# A line of a class's words: what its key means stands beside the first class's of the demo.
WORDS = re.compile(r" {6}(names|kinds|description|looks|parts): ")


def read_overlay(name: str) -> dict:
    path = name if name.endswith(".yaml") else f"params/{name}.yaml"
    return flatten(read(REPOSITORY / path))


def values_of(text: str, folder: Path) -> dict:
    """The values of a text as the stages read them from a file."""
    (folder / "text.yaml").write_text(text)
    return flatten(read(folder / "text.yaml"))


def is_label_set(name: str) -> bool:
    """Whether a file of params/ says what the classes are and nothing else."""
    return read_overlay(name).keys() <= LABEL_KEYS


# The files of params/.


def test_the_committed_params_are_the_demo():
    """Here, or in the last commit: who tries another scale may run the tests."""
    skip_unless_demo_is_committed()
    here = (REPOSITORY / "params.yaml").read_text()
    committed = shell("git", "show", "HEAD:params.yaml", cwd=REPOSITORY).stdout
    assert DEMO in (here, committed)
    assert DEMO.startswith("# Scale: demo\n")


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "seven"])
def test_an_overlay_holds_what_differs_from_the_demo(name):
    demo = flatten(read(REPOSITORY / "params/demo.yaml"))
    repeated = {key: value for key, value in read_overlay(name).items() if demo[key] == value}
    assert not repeated


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_scale_is_the_demo_with_the_overlays_values(name, tmp_path):
    text, params = compose([name], REPOSITORY)
    expected = flatten(yaml.safe_load(DEMO)) | read_overlay(name)
    assert values_of(text, tmp_path) == expected
    assert flatten(params.model_dump(exclude_unset=True)) == expected
    assert text.splitlines()[0] == f"# Scale: {name}"
    # Each line comes from one of the files, and each comment of the overlay is there.
    path = name if name.endswith(".yaml") else f"params/{name}.yaml"
    overlay = (REPOSITORY / path).read_text()
    lines = text.splitlines()[1:]
    assert set(lines) <= {*DEMO.splitlines(), *overlay.splitlines()}
    assert {line for line in overlay.splitlines() if "#" in line} <= set(lines)


@pytest.mark.parametrize("name", ["demo", *OVERLAYS])
def test_every_value_has_a_comment(name):
    """A value's meaning, or its source, stands beside it."""
    for line in compose([name], REPOSITORY)[0].splitlines():
        assert not line or "#" in line or line.endswith(":") or WORDS.match(line), line


def test_the_paper_has_the_papers_values():
    """Where it agrees with the demo, the file doesn't say so: this holds it to the schema."""
    values = flatten(compose(["paper"], REPOSITORY)[1].model_dump())
    stated = {}
    for name, field in Params.model_fields.items():
        for key, inner in getattr(field.annotation, "model_fields", {}).items():
            number = re.search(r"[Pp]aper(?:, [\w ]+)?: ([\d.e-]+)\)", inner.description or "")
            if number:
                stated[f"{name}.{key}"] = float(number[1])
    assert len(stated) > 20
    assert {key: values[key] for key in stated} == stated


@pytest.mark.parametrize("name", ["demo", *OVERLAYS])
def test_experiments_can_rewrite_it(tmp_path, name):
    """`dvc exp run -S` rewrites the file, wrapped at 80 columns: only what was set may change."""
    from dvc.utils.serialize import modify_yaml

    text, params = compose([name], REPOSITORY)
    (tmp_path / "params.yaml").write_text(text)
    with modify_yaml(str(tmp_path / "params.yaml")) as values:
        values["sampling"]["guidance_scale"] = 5
    expected = params.model_dump()
    expected["sampling"]["guidance_scale"] = 5
    assert load(tmp_path / "params.yaml").model_dump() == expected
    assert (tmp_path / "params.yaml").read_text().startswith(text.partition("\n")[0])


def test_every_scale_is_offered_and_described():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/pipeline.yaml").read_text())
    # PyYAML reads the key `on` as true.
    choices = workflow[True]["workflow_dispatch"]["inputs"]["scale"]["options"]
    assert set(choices) == {"params.yaml", "demo", *SCALES}
    readme = (REPOSITORY / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in ["demo", *SCALES])
    assert all(f"`{name}`" in readme for name in LABEL_SETS)
    assert [name for name in OVERLAYS if is_label_set(name)] == LABEL_SETS


# What the command writes.


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the scales that ship, and the demo as params.yaml."""
    (tmp_path / "params").mkdir()
    for name in ("demo", *OVERLAYS[:-1]):
        shutil.copy(REPOSITORY / f"params/{name}.yaml", tmp_path / "params")
    (tmp_path / "params.yaml").write_text(DEMO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scale, "start_process", lambda: None)
    return tmp_path


@pytest.fixture
def run(project, monkeypatch, capsys):
    """Run the command: its exit code, its lines, and the text of params.yaml after it."""

    def run(*arguments: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.argv", ["scale", *arguments])
        code = 0
        try:
            scale.main()
        except SystemExit as end:
            code = 1
            print(end.code)
        params = project / "params.yaml"
        text = params.read_text(errors="replace") if params.exists() else ""
        return code, capsys.readouterr().out.splitlines(), text

    return run


TEN = "[AnnualCrop, Forest, HerbaceousVegetation, Highway, Industrial, Pasture, PermanentCrop, "
TEN += "Residential, River, SeaLake]"


def test_ten_names_are_a_label_set(project, run):
    """Nothing is left of the words and numbers of the classes before."""
    names = yaml.safe_load(TEN)
    (project / "ten.yaml").write_text(yaml.safe_dump({"classes": {name: [] for name in names}}))
    for scales in (["ten.yaml"], ["paper", "ten.yaml"], ["eurosat", "rsicd", "ten.yaml"]):
        code, lines, text = run(*scales)
        assert code == 0, lines
        params = load(project / "params.yaml")
        assert list(params.classes) == names and params.prompt.per_class == 10
        assert params.prompt.words == {} and "\n  words: {}  " in text
        assert all(len(line) < 1000 for line in lines)


@pytest.mark.parametrize("scales", [[], ["eurosat"], ["rsicd"]])
def test_names_are_enough_where_some_are_the_demos(tmp_path, scales):
    """The words of "Water Body" in the demo hold "river"."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("classes: {Water Body: [lake], River: [river], Forest: [forest]}\n")
    _, params = compose([*scales, str(mine)], REPOSITORY)
    assert params.prompt.words == {} and list(params.classes) == ["Water Body", "River", "Forest"]


@pytest.mark.parametrize(
    ("scales", "words_of"),
    [(["mine"], "demo"), (["eurosat", "mine"], "eurosat"), (["eurosat", "rsicd"], "demo")],
)
def test_the_same_classes_with_other_scenes_keep_their_words(tmp_path, scales, words_of):
    """The seven's come back with the seven."""
    mine = tmp_path / "mine.yaml"
    names = reversed(read_overlay(words_of)["classes"])
    mine.write_text(yaml.safe_dump({"classes": {name: [f"my {name}"] for name in names}}))
    scales = [str(mine) if scale == "mine" else scale for scale in scales]
    _, params = compose(scales, REPOSITORY)
    words = params.prompt.model_dump(exclude_unset=True)["words"]
    assert words == read_overlay(words_of)["prompt.words"]
    assert set(params.classes) == set(words)


def test_new_classes_keep_what_fits_them(project, run):
    classes = "classes: {Water Body: [lake], Sand: []}\n"
    numbers = "prompt: {per_class: {Water Body: 3, Sand: 2}}\n"
    # The numbers that it gives itself.
    (project / "two.yaml").write_text(classes + numbers)
    assert run("eurosat", "two.yaml")[0] == 0
    prompt = load(project / "params.yaml").prompt
    assert prompt.per_class == {"Water Body": 3, "Sand": 2} and prompt.words == {}
    # The numbers of a scale with the same classes stay, and words that a file gives are all.
    (project / "same.yaml").write_text("classes: {Sand: [dune], Water Body: [sea]}\n")
    (project / "words.yaml").write_text("prompt: {words: {Sand: {looks: [dry, flat]}}}\n")
    assert run("two.yaml", "same.yaml", "words.yaml")[0] == 0
    params = load(project / "params.yaml")
    assert params.prompts_per_class() == {"Sand": 2, "Water Body": 3}
    assert list(params.prompt.words) == ["Sand"]
    assert run("demo")[2] == DEMO


def test_a_changed_word_is_shown_alone(project, run):
    edited = DEMO.replace("looks: [brown, dry,", "looks: [brown, arid,")
    (project / "params.yaml").write_text(edited)
    code, lines, text = run("paper")
    assert code == 1 and text == edited and len(lines) == 2
    assert "prompt.words" in lines[0] and "arid" in lines[0] and "Crop Land" not in lines[0]


LABELS = """\
# Two labels, for a test.

classes:  # two of them
  Bare Land: [dune]
  Crop Land: []
  Cultivated Vegetation: []
  Natural Vegetation: []
  Snow Ice: []
  Water Body: [sea]  # salt water
  Woody Vegetation: []

sampling: {steps: 3}
train_scene:
    epochs: 7  # few
               # of them
    # for the learning rate
    lr: 1e-3
"""


def test_scales_combine_and_lead_back(project, run):
    (project / "labels.yaml").write_text(LABELS)
    code, lines, text = run("paper", "labels.yaml")
    assert code == 0
    assert text.startswith("# Scale: paper labels.yaml\n# The PAPER's recipe")
    assert "# Two labels" in text and re.search(r"\n  epochs: 7 +# few\n +# of them\n", text)
    assert "learning rate" not in text.partition("epochs: 7")[2].partition("lr:")[0]
    params = load(project / "params.yaml")
    assert params.sampling.steps == 3 and params.sampling.scheduler == "pndm"
    assert params.classes["Bare Land"] == ["dune"] and params.classes["Water Body"] == ["sea"]
    assert params.train_scene.epochs == 7 and params.train_scene.model == "resnet18"
    assert "sampling.steps: 10 -> 3" in lines

    # The later one wins.
    assert run("labels.yaml", "paper")[0] == 0
    assert load(project / "params.yaml").sampling.steps == 50
    # Always from the demo, whatever came before; a path in params/ is the scale of that name.
    assert run("params/rsicd.yaml")[2] == compose(["rsicd"], REPOSITORY)[0]
    assert run("demo")[2] == DEMO


def test_edits_are_kept(project, run):
    params = project / "params.yaml"
    assert run("paper")[0] == 0
    edited = params.read_text().replace("steps: 50 ", "steps: 40 ").replace("seed: 0", "seed: 9")
    edited = edited.replace("lr: 1.0e-6 ", "lr: 1e-06 ")  # another way to write the same number
    params.write_text(edited)
    for arguments in (["demo"], ["paper"], ["--dry-run", "rsicd"]):
        code, lines, text = run(*arguments)
        assert code == 1 and text == edited
        assert ["seed" in lines[0], "sampling.steps" in lines[1], len(lines)] == [True, True, 3]
        assert "40" in lines[1] and "50" in lines[1]
    code, lines, text = run("demo", "--force")
    assert code == 0 and text == DEMO and "seed: 9 -> 0" in lines
    # A key that is gone is nothing to keep, and a value that stays isn't lost.
    params.write_text(DEMO.replace("seed: 0", "# seed").replace("  steps: 10 ", "  steps: 50 "))
    assert run("paper")[0] == 0 and "seed: 0 " in params.read_text()


def test_a_changed_scale_is_no_edit(project, run):
    """Whoever tunes a scale's file applies it again and again."""
    mine = project / "params/mine.yaml"
    for steps in (20, 30, 40):
        mine.write_text(f"sampling:\n  steps: {steps}  # tried\n")
        code, _, text = run("mine")
        assert code == 0 and f"  steps: {steps}  # tried\n" in text
    (project / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    mine.write_text("sampling:\n  steps: 50  # tried\n")
    code, lines, _ = run("mine")
    assert code == 1 and "seed" in lines[0] and not any("steps" in line for line in lines)
    # Without its file nobody can tell what was edited.
    mine.unlink()
    code, (line,), _ = run("demo")
    assert code == 1 and "params/mine.yaml" in line and "--force" in line
    assert run("demo", "--force")[2] == DEMO


def test_params_that_are_missing_or_broken(project, run):
    params = project / "params.yaml"
    params.unlink()
    assert run("demo")[2] == DEMO
    for broken in (b"seed: [", b"seed: \xff", b"- a list", b"", b"# only a comment\n"):
        params.write_bytes(broken)
        code, (line,), _ = run("demo")
        assert code == 1 and "params.yaml: " in line and params.read_bytes() == broken
        assert run("--dry-run", "--force", "demo")[0] == 0 and params.read_bytes() == broken
        assert run("--force", "demo")[2] == DEMO
    # A scale's file in its place, as `cp` leaves it, holds nothing that the scale hasn't.
    shutil.copy(project / "params/paper.yaml", params)
    code, _, text = run("paper")
    assert code == 0 and text == compose(["paper"], REPOSITORY)[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"sampling:\n  stepz: 3\n", ["sampling.stepz", "did you mean steps?"]),
        (b"smpling:\n  steps: 3\n", ["smpling", "did you mean sampling?"]),
        (b"generate:\n  guidance_scale: 3\n", ["did you mean sampling.guidance_scale?"]),
        (b"sampling.steps: 3\n", ["write the key steps into the section sampling"]),
        (b"sampling:\n  steps: 0\n", ["sampling.steps", "greater than 0"]),
        (b"prompt:\n  per_class: {Bare Land: 3}\n", ["prompt.per_class", "Crop Land"]),
        (
            b"prompt:\n  words: {Bare Land: {name: [x]}}\n",
            ["Bare Land.name", "did you mean names?"],
        ),
        (b"prompt:\n  words: 3\nclasses: {A: [], B: []}\n", ["prompt.words", "3"]),
        (b"classes: [A, B]\n", ["classes", "dictionary"]),
        (b"classes: {Only: []}\n", ["classes", "Only"]),
        (b"sampling: 3\n", ["sampling", "expected keys"]),
        (b"sampling:\n", ["sampling", "expected keys"]),
        (b"seed: 1\nseed: 2\n", ["line 2", "duplicate"]),
        (b"seed: [\n", ["cannot be read", "line 2"]),
        (b"seed: \xff\n", ["cannot be read", "utf-8"]),
        (b"1: 2\n", ["1: unknown key"]),
        (b"", ["expected sections"]),
        (b"- seed\n", ["expected sections", "list"]),
        (b"seed: &a 1\nsampling:\n  steps: *a\n---\n", ["cannot be read"]),
        (b"sampling: &s\n  steps: 3\nencode:\n  <<: *s\n", ["encode.steps", "unknown key"]),
    ],
)
def test_a_faulty_scale_is_one_line(project, run, content, words):
    (project / "mine.yaml").write_bytes(content)
    code, (line,), text = run("mine.yaml")
    assert code == 1 and text == DEMO
    assert "mine.yaml: " in line and all(word in line for word in words), line


def test_an_unknown_scale_is_one_line(project, run):
    code, (line,), _ = run("papper")
    assert code == 1 and "did you mean paper?" in line and ", ".join(OVERLAYS[:-1]) in line
    code, (line,), _ = run("params.yaml")
    assert code == 1 and "params.yaml: " in line
    code, (line,), _ = run("paper", "demo")
    assert code == 1 and "demo" in line and run("--dry-run", "demo", "paper")[0] == 0
    code, (line,), _ = run()
    assert code == 1 and ", ".join(OVERLAYS[:-1]) in line


@pytest.mark.parametrize(
    "content",
    [
        "{sampling: {steps: 3, guidance_scale: 2}, seed: 4}",
        '{"sampling": {"steps": 3, "guidance_scale": 2}, "seed": 4}',
        "seed:\n    4\nsampling: {\n steps: 3,  # few\n guidance_scale: 2}\n",
        "\ufeff# mine\r\nseed: 4\r\nsampling:\r\n    guidance_scale: 2\r\n    steps: 3\r\n...\r\n",
        "seed: 4\nsampling: {steps: 3, guidance_scale: 2}\n"
        "prompt:\n  negative_prompt: |\n    a\n\n    b\n",
        "seed: &n 4\nsampling: {steps: &s 3, guidance_scale: &g 2}\n"
        "train_base: {latent_channels: *n}\nclassifier: {seeds: *s}\nencode: {variants: *g}\n"
        "finetune_sd: {compile: &b false, gradient_checkpointing: *b}",
        "---\nseed: !!int '4'\n'sampling':\n  \"steps\":\n    3\n  guidance_scale: 2",
    ],
)
def test_any_way_to_write_yaml_gives_its_values(project, run, content):
    Path("mine.yaml").write_text(content, encoding="utf-8", newline="")
    code, lines, text = run("mine.yaml")
    assert code == 0, lines
    expected = flatten(yaml.safe_load(DEMO))
    expected |= {"seed": 4, "sampling.steps": 3, "sampling.guidance_scale": 2}
    if "negative_prompt" in content:
        expected["prompt.negative_prompt"] = "a\n\nb\n"
    assert values_of(text, project) == expected


def test_a_file_of_params_says_how_to_apply_it(project):
    """What a user does who takes one for a whole file."""
    for path, words in (("params/paper.yaml", "SCALE=paper`"), ("params.yaml", "make scale ")):
        shutil.copy(REPOSITORY / "params/paper.yaml", "params.yaml")
        done = shell(
            "python", "-m", "stages.params", path, cwd=project, env={"PYTHONPATH": str(REPOSITORY)}
        )
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1 and line.startswith(f"{path}: ") and words in line


def test_make_scale(project):
    """The command as people type it, without installing anything."""
    for name in ("stages", "tools", "requirements.txt"):
        (project / name).symlink_to(REPOSITORY / name)
    make = ["make", "-f", str(REPOSITORY / "Makefile"), "-o", "setup", "RUN=python -m", "scale"]
    done = shell(*make, "SCALE=params/rsicd.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert Path("params.yaml").read_text() == compose(["rsicd"], REPOSITORY)[0]
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert shell(*make, "SCALE=demo", cwd=project).returncode != 0
    assert shell(*make, "SCALE=demo --force", cwd=project).returncode == 0
    assert Path("params.yaml").read_text() == DEMO
    done = shell(*make, cwd=project)
    assert done.returncode != 0 and ", ".join(OVERLAYS[:-1]) in done.stderr
