"""params.yaml and its schema: all scales are valid; a fault is a line with its key and remedy."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, shell

from stages.params import RENAMED, Params, load

SCALES = [
    "params.yaml",
    "tests/params.yaml",
    *sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("params/*.yaml")),
]
DEMO = (REPOSITORY / "params.yaml").read_text()


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_valid(scale):
    load(REPOSITORY / scale)


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
        ("lr: 1.2e-3", "lr: 8e-4", ["finetune_sd.lr", "8.0e-04", "text"]),
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
            "extractors: [scene]",
            "extractors: [scene, clip]",
            ["features.extractors", "fetch_model.vision"],
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
        ("steps: 14", "steps: 1001", ["sampling.steps", " 1000,", " 1001"]),
        ("seed: 0", "seed: 4294967296", ["seed", " 4294967296,"]),
        ("seed: 0", "seed: 2026-13-01", ["1..12"]),
        ("  steps: 14", "  steps: 14\n  steps: 15", ["steps", "twice"]),
        (
            "test_fraction: 0.2 ",
            "test_fraction: 0.95 ",
            ["scrape.test_fraction", " 0.5,", " 0.95"],
        ),
        ("extractors: [scene]", "extractors: [scene, scene]", ["features.extractors", "once"]),
        ("extractors: [scene]", "extractors: [clip]", ["features.extractors", "scene"]),
        ("Water Body: [", "Water Body: [lake, lake, ", ["classes", "lake", "twice"]),
        ("guidance_scale: 2.5", "guidance_scale: .inf", ["sampling.guidance_scale", "finite"]),
        (
            "  batch_size: 64               # images per step",
            "  batch_size: 1                # images per step",
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
    done = shell("python", "-m", "stages.params", str(file), cwd=REPOSITORY)
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if all(word in line for word in words))
    assert str(file) in line
    assert "Traceback" not in done.stderr


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


def test_every_value_has_a_comment():
    """A value's meaning stands beside it."""
    for scale in SCALES:
        lines = (REPOSITORY / scale).read_text().splitlines()
        bare = [
            line
            for line in lines
            if line.strip() and "#" not in line and not line.rstrip().endswith(":")
        ]
        assert not bare, f"{scale}: {bare}"


@pytest.mark.parametrize("scale", SCALES)
def test_experiments_can_rewrite_it(tmp_path, scale):
    """`dvc exp run -S` rewrites the file, wrapped at 80 columns: only what was set may change."""
    from dvc.utils.serialize import modify_yaml

    file = tmp_path / "params.yaml"
    file.write_text((REPOSITORY / scale).read_text())
    with modify_yaml(str(file)) as values:
        values["sampling"]["guidance_scale"] = 5
    before = load(REPOSITORY / scale).model_dump()
    before["sampling"]["guidance_scale"] = 5
    assert load(file).model_dump() == before


def test_readme_names_every_scale():
    text = (REPOSITORY / "README.md").read_text()
    for scale in SCALES:
        assert Path(scale).name in text
