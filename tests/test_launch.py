"""The launcher starts one process by default, else the number in the accelerate config."""

import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import REPOSITORY, alive, heed_signals, shell, wait_until, write_smoke_params

from stages.runtime import launch

# A single write for the line: two processes share the pipe.
PROBE = """import os, sys
rank, count = (os.environ.get(name, "-") for name in ("RANK", "WORLD_SIZE"))
os.write(1, f"rank {rank} of {count} {sys.argv[1:]}\\n".encode())
"""


@pytest.fixture
def probe(tmp_path):
    """A copy of `stages` in which `encode` prints its rank."""
    shutil.copytree(
        REPOSITORY / "stages",
        tmp_path / "stages",
        ignore=shutil.ignore_patterns("embedded", "__pycache__"),
    )
    write_smoke_params(tmp_path)
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


def test_a_stage_runs_in_the_same_process_without_a_config(probe):
    assert run(probe, None).stdout == "rank - of - ['item']\n"


def test_a_stage_runs_in_the_same_process_for_one_process(probe):
    assert (
        run(probe, "num_processes: 1\ndistributed_type: 'NO'\n").stdout == "rank - of - ['item']\n"
    )


def test_compiled_modules_are_kept_where_the_environment_forbids_it(probe):
    """The modules that the stage imports; those of the launcher itself are read before."""
    (probe / "stages/encode.py").write_text("import stages.runtime.atomic\n")
    assert run(probe, None, PYTHONDONTWRITEBYTECODE="1").returncode == 0
    assert list((probe / "stages/runtime/__pycache__").glob("atomic.*.pyc"))


WAITING = """import os, sys, torch
from stages.runtime.processes import process_state
process_state()
timeout = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
hours = timeout.total_seconds() / 3600
os.write(1, f"rank {os.environ['RANK']} {sys.argv[1:]} waits {hours} hours\\n".encode())
"""


def test_two_cpu_processes_wait_for_each_other_for_hours(probe):
    """While the first one moves files, merges shards or saves a model. They leave one time."""
    (probe / "stages/encode.py").write_text(WAITING)
    done = run(probe, TWO_PROCESSES, DVC_STAGE="encode", DVC_ROOT=str(probe))
    expected = [f"rank {rank} ['item'] waits 24.0 hours" for rank in (0, 1)]
    assert sorted(done.stdout.splitlines()) == expected, done.stderr
    assert float((probe / ".dvc/tmp/stage_times/encode").read_text()) > 0


FAILING = """import os, time
from stages.runtime.errors import exit_with_error
if os.environ["RANK"] == "0":  # the launcher ends it when the other one has failed
    time.sleep(600)
exit_with_error("finetune_sd.batch_size: 7 images")
"""
KILLED = """import os, signal
from stages.runtime.processes import process_state
state = process_state()
if state.process_index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
state.wait_for_everyone()
"""
ENDED = KILLED.replace("SIGKILL", "SIGTERM").replace("state.wait_for_everyone()", "")


@pytest.mark.parametrize(
    "stage, words",
    [
        (FAILING, "finetune_sd.batch_size: 7 images"),
        (KILLED, "process 1 of the stage was ended"),
        (ENDED, "a process of the stage was ended by SIGTERM"),
    ],
    ids=["failing", "killed", "ended"],
)
def test_the_error_of_two_processes_is_a_line_of_each(probe, stage, words):
    """Nothing of torch's launcher follows, which would hide it."""
    (probe / "stages/encode.py").write_text(stage)
    done = run(probe, TWO_PROCESSES)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and words in lines[-1], done.stderr
    assert len(lines) <= 2 and all("error: " in line for line in lines), done.stderr


SLEEPING = """import os, time
os.write(1, f"{os.getpid()}\\n".encode())
time.sleep(600)
"""
IN_A_STAGE = "from stages.runtime.process import start_process\nstart_process()\n"
# As DVC starts a stage; the shell stays, as it has another command to run.
DVC = """import os, subprocess, sys
command = f"{sys.executable} -m stages.runtime.launch encode; true"
subprocess.run(command, shell=True, env=os.environ | {"DVC_STAGE": "encode", "DVC_ROOT": "."})
"""
TWO_PROCESSES = "num_processes: 2\ndistributed_type: MULTI_CPU\nuse_cpu: true\n"


def start_sleeping(
    probe, processes: int, *command: str, imports: str = IN_A_STAGE
) -> tuple[subprocess.Popen, list[int]]:
    """Start a stage that sleeps in this number of processes; returns also their ids.

    `imports` is what it does before.
    """
    (probe / "stages/encode.py").write_text(imports + SLEEPING)
    home = probe / "hub/accelerate"
    home.mkdir(parents=True)
    if processes == 2:
        (home / "default_config.yaml").write_text(TWO_PROCESSES)
    environment = {**os.environ, "HF_HOME": str(probe / "hub")}
    started = subprocess.Popen(
        [sys.executable, *command],
        cwd=probe,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    return started, [int(started.stdout.readline()) for _ in range(processes)]


LAUNCH = ("-m", "stages.runtime.launch", "encode")


@pytest.mark.parametrize(
    "number, imports",
    [
        (signal.SIGINT, ""),
        (signal.SIGINT, IN_A_STAGE),
        (signal.SIGTERM, IN_A_STAGE),
    ],
    ids=["importing", "SIGINT", "SIGTERM"],
)
def test_signals_to_the_launcher_end_its_processes(probe, number, imports):
    with start_sleeping(probe, 2, *LAUNCH, imports=imports)[0] as launcher:
        stage = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(number)
        assert launcher.wait(600) == 128 + number
        assert not any(alive(process.pid) for process in stage)
        said = "interrupted\n" if number == signal.SIGINT else ""
        assert launcher.stderr.read() == said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stage_ends_with_dvc(probe, processes):
    """Killed, DVC can't end it; the stage would overwrite what the next run writes."""
    dvc, pids = start_sleeping(probe, processes, "-c", DVC)
    with dvc:
        dvc.kill()
        wait_until(lambda: not any(map(alive, pids)))


def test_gpus_that_are_not_there(probe):
    done = run(probe, "num_processes: 64\ndistributed_type: MULTI_GPU\nuse_cpu: false\n")
    assert (
        done.returncode == 1
        and len(done.stderr.splitlines()) == 1
        and all(words in done.stderr for words in ("default_config.yaml", "num_processes", "64"))
    )


EIGHT_GPUS = "num_processes: 8\ndistributed_type: MULTI_GPU\nuse_cpu: false\n"


@pytest.mark.parametrize(
    "config, visible, used",
    [
        (EIGHT_GPUS, "3,5", "3,5"),
        (EIGHT_GPUS.replace("8", "2") + "gpu_ids: 0,1\n", "5,2,3", "5,2"),
    ],
)
def test_visible_devices_are_those_of_the_processes(probe, config, visible, used):
    """As experiments on parts of a machine run there, whose config is for all of it."""
    launcher = probe / "stages/runtime/launch.py"
    count = "torch.cuda.device_count()"  # of a machine that has these GPUs
    assert count in launcher.read_text()
    launcher.write_text(launcher.read_text().replace(count, "2"))
    on_devices = PROBE.replace("\\n", " on {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
    (probe / "stages/encode.py").write_text(on_devices)
    done = run(probe, config, CUDA_VISIBLE_DEVICES=visible)
    expected = [f"rank {rank} of 2 ['item'] on {used}" for rank in (0, 1)]
    assert sorted(done.stdout.splitlines()) == expected, done.stderr


@pytest.mark.parametrize(
    "visible, processes, devices",
    [
        ("3", 1, "3"),  # one experiment per GPU
        ("2,3", 2, "2,3"),
        ("5,2,3", 2, "5,2"),
        ("3,1,0", 2, "0,1"),  # those of the config are among them
        (" 3, 5,-1,0", 2, "3,5"),
    ],
)
def test_visible_devices_replace_those_of_the_config_that_are_not_among_them(
    monkeypatch, visible, processes, devices
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(launch, "check_gpu_count", lambda _: None)
    config = {"num_processes": 2, "gpu_ids": "0,1"}
    launch.limit_to_visible_devices(config)
    assert config == {"num_processes": processes, "gpu_ids": devices}


@pytest.mark.parametrize("devices", ["", "-1", "7"])
def test_devices_that_are_not_there_are_one_line(probe, devices):
    """CUDA sees none of them on a machine without a GPU; the CPU doesn't train in their place."""
    done = run(probe, EIGHT_GPUS, CUDA_VISIBLE_DEVICES=devices)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "0 are visible here" in done.stderr and "CUDA_VISIBLE_DEVICES" in done.stderr


@pytest.mark.parametrize(
    "config, visible, cpu, devices",
    [
        ("num_processes: 1\nuse_cpu: true\n", None, "true", ""),
        ("num_processes: 1\ngpu_ids: '3'\n", None, None, "3"),
        ("num_processes: 1\ngpu_ids: '3'\n", "0,3", None, "3"),
        ("num_processes: 1\ngpu_ids: '3'\n", "5,0", None, "5"),
        ("num_processes: 1\ngpu_ids: all\n", None, None, None),
    ],
)
def test_one_process_sees_the_device_of_the_config(probe, config, visible, cpu, devices):
    (probe / "stages/encode.py").write_text(
        "import os\n"
        "print([os.environ.get(n) for n in ('ACCELERATE_USE_CPU', 'CUDA_VISIBLE_DEVICES')])\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert run(probe, config, **environment).stdout == f"{[cpu, devices]}\n"


@pytest.mark.parametrize(
    "config, named",
    [
        ("num_processes: 2\ndistributed_type: DEEPSPEED\n", "DEEPSPEED"),
        ("num_processes: 2\ndistributed_type: FSDP\nfsdp_config: {}\n", "fsdp_version 1"),
    ],
)
def test_what_no_stage_runs_on_is_one_line(probe, config, named):
    done = run(probe, config)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "default_config.yaml: " in line and named in line


@pytest.mark.parametrize(
    "text",
    ["- nothing\n", "num_processes: two\n", "num_processes: [2]\n", "num_machines: two\n", "{"],
)
def test_not_a_config(probe, text):
    done = run(probe, text)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "default_config.yaml" in done.stderr


@pytest.mark.parametrize("words", [[], ["fid"], ["no_such"]])
def test_not_a_stage_of_the_launcher(probe, words):
    done = shell("python", "-m", "stages.runtime.launch", *words, cwd=probe)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("usage: python -m stages.runtime.launch")
    assert "encode" in done.stderr
