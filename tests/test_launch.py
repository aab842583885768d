"""The launcher: in place by default, on as many processes as the accelerate config says, and never silently on fewer."""

import shutil

import pytest
from conftest import REPOSITORY, shell

# One write a line: two processes share the pipe.
PROBE = """import os, sys
os.write(1, f"rank {os.environ.get('RANK', '-')} of {os.environ.get('WORLD_SIZE', '-')} {sys.argv[1:]}\\n".encode())
"""


@pytest.fixture
def probe(tmp_path):
    """`encode` as a stage that prints its rank, in a copy of the launcher's package."""
    shutil.copytree(
        REPOSITORY / "stages",
        tmp_path / "stages",
        ignore=shutil.ignore_patterns("embedded", "__pycache__"),
    )
    shutil.copyfile(REPOSITORY / "tests/params.yaml", tmp_path / "params.yaml")
    (tmp_path / "stages/encode.py").write_text(PROBE)
    return tmp_path


def run(probe, config: str | None, **env: str):
    home = probe / "hub/accelerate"
    home.mkdir(parents=True)
    if config is not None:
        (home / "default_config.yaml").write_text(config)
    return shell(
        "python",
        "-m",
        "stages.runtime.launch",
        "encode",
        "item",
        cwd=probe,
        env={"HF_HOME": str(probe / "hub"), **env},
    )


def test_in_place_without_a_config(probe):
    assert run(probe, None).stdout == "rank - of - ['item']\n"


def test_in_place_for_one_process(probe):
    assert (
        run(probe, "num_processes: 1\ndistributed_type: 'NO'\n").stdout == "rank - of - ['item']\n"
    )


def test_compiled_modules_are_kept_where_python_is_told_not_to(probe):
    assert run(probe, None, PYTHONDONTWRITEBYTECODE="1").returncode == 0
    assert list((probe / "stages/common/__pycache__").glob("fail.*.pyc"))


def test_two_cpu_processes(probe):
    done = run(probe, "num_processes: 2\ndistributed_type: MULTI_CPU\nuse_cpu: true\n")
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 ['item']", "rank 1 of 2 ['item']"], (
        done.stderr
    )


def test_gpus_that_are_not_there(probe):
    done = run(probe, "num_processes: 64\ndistributed_type: MULTI_GPU\nuse_cpu: false\n")
    assert (
        done.returncode == 1
        and "num_processes is 64, this machine has" in done.stderr
        and "default_config.yaml" in done.stderr
    )


@pytest.mark.parametrize(
    "text",
    ["- nothing\n", "num_processes: two\n", "num_processes: [2]\n", "num_machines: two\n", "{"],
)
def test_not_a_config(probe, text):
    done = run(probe, text)
    assert done.returncode == 1 and "not an accelerate config" in done.stderr


@pytest.mark.parametrize("words", [[], ["fid"], ["no_such"]])
def test_not_a_stage_of_several_processes(probe, words):
    done = shell("python", "-m", "stages.runtime.launch", *words, cwd=probe)
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and "encode, finetune_sd" in done.stderr
    )


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"method: full": "method: lora"}, ["peft"]),
        ({"optimizer: adamw ": "optimizer: adamw8bit "}, ["bitsandbytes"]),
    ],
)
def test_libraries_that_a_stage_has_no_use_for_are_hidden_from_it(probe, changed, found):
    """Looked for as accelerate and diffusers do. The features are measured with scipy, fine-tuning by params."""
    look = "import importlib.util as u\nprint([n for n in ('peft', 'bitsandbytes', 'boto3', 'scipy') if u.find_spec(n)])\n"
    params = (probe / "params.yaml").read_text()
    for old, new in changed.items():
        assert old in params
        params = params.replace(old, new)
    (probe / "params.yaml").write_text(params)
    for stage in ("finetune_sd", "features"):
        (probe / f"stages/{stage}.py").write_text(look)
    run = {
        stage: shell(
            "python", "-m", "stages.runtime.launch", stage, cwd=probe, env={"HF_HOME": str(probe)}
        ).stdout.strip()
        for stage in ("finetune_sd", "features")
    }
    assert run == {"finetune_sd": str(found), "features": "['scipy']"}
