"""Run a stage in this process, or on all the devices that the accelerate config asks for.

    python -m stages.runtime.launch <stage> [item]

`dvc.yaml` holds this same command on every machine; `accelerate config`, answered once per machine,
decides how many processes run it, on which devices; $CUDA_VISIBLE_DEVICES may name others. Without
a config, or for a single process, the stage runs right here. docs/scale.md says what several
processes change.
"""

import argparse
import os
import runpy
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import yaml

from stages.runtime.errors import exit_with_error
from stages.runtime.process import PROCESSES, make_parser, note_time, start_process

# Stages that share their work between processes.
DISTRIBUTED = ("encode", "finetune_sd", "sample", "generate", "features")
# Stages that run in one process with any config. They are launched because the choice of a device,
# and settings such as OpenMP's, must be made before torch is imported.
SINGLE_PROCESS = (
    "train_base",
    "train_scene",
    "finetune_llm",
    "index_rag",
    "prompt",
    "select",
    "ceiling",
    "classify",
)

DISTRIBUTED_TYPES = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")  # of accelerate


def main() -> None:
    parser = make_parser("stages.runtime.launch", __doc__)
    parser.add_argument("stage", choices=DISTRIBUTED + SINGLE_PROCESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the stage")
    options = parser.parse_args()
    start_process()
    launch(options.stage, options.arguments)


def launch(stage: str, arguments: list[str]) -> None:
    """Run `stages.<stage>` with these arguments; ends the process where others do the work."""
    if PROCESSES in os.environ:  # this is one of those others
        run_here(stage, arguments)
        return
    config = read_config(config_file())
    on_cpu = config["use_cpu"] or config["distributed_type"] == "MULTI_CPU"
    if not on_cpu and config["num_machines"] == 1:
        limit_to_visible_devices(config)
    if stage in SINGLE_PROCESS or config["num_processes"] == config["num_machines"] == 1:
        choose_device(config)
        run_here(stage, arguments)
        return
    environment = dict(os.environ)
    # The stage checks that all these processes started (stages.runtime.processes).
    environment[PROCESSES] = str(config["num_processes"])
    if on_cpu and config["num_machines"] == 1:
        # `accelerate launch --cpu` starts only one process without MPI.
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node"]
        launcher += [str(config["num_processes"])]
        environment["ACCELERATE_USE_CPU"] = "true"
        environment["ACCELERATE_MIXED_PRECISION"] = config["mixed_precision"]
    else:
        if not on_cpu:
            check_gpu_count(config)
        launcher = ["accelerate.commands.launch", "--config_file", str(config_file())]
        launcher += ["--num_processes", str(config["num_processes"])]
        launcher += ["--gpu_ids", config["gpu_ids"]]
    # Each process runs this module too, so that errors are lines from its first imports on.
    command = [sys.executable, "-m", "stages.runtime.supervise", *launcher]
    command += ["--module", "stages.runtime.launch", stage, *arguments]
    status = run_to_its_end(command, environment)
    if status == 0:
        note_time()
    sys.exit(status)


def run_here(stage: str, arguments: list[str]) -> None:
    """Run a stage in this process."""
    sys.argv = [stage, *arguments]
    runpy.run_module(f"stages.{stage}", run_name="__main__")


def run_to_its_end(command: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit status; signals that would end this process end it."""
    # A second signal would interrupt torch's launcher while it ends its processes. In its own
    # session it gets only those that are sent here, not Ctrl-C or `kill` of a process group.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` sets it
            signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status  # as a shell counts what a signal ended


def limit_to_visible_devices(config: dict) -> None:
    """Where $CUDA_VISIBLE_DEVICES lacks a device of the config, take its devices instead.

    If there are more of them than processes, take the first ones; if fewer, start one process for
    each. So one experiment per GPU can run on a machine whose config is for all of them. Exits with
    an error where the machine hasn't got these devices.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # As CUDA reads it: what stands behind a negative number is not visible either.
    visible = takewhile(lambda device: not device.strip().startswith("-"), named.split(","))
    devices = [device.strip() for device in visible if device.strip()]
    if not devices or set(config["gpu_ids"].split(",")) <= set(devices):
        return
    config["gpu_ids"] = ",".join(devices[: config["num_processes"]])
    if len(devices) < config["num_processes"]:
        config["num_processes"] = len(devices)
        check_gpu_count(config)


def choose_device(config: dict) -> None:
    """Let this process see the device that the config names, before torch looks for any."""
    if config["use_cpu"]:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif config["gpu_ids"] != "all":
        # Of several machines, each has devices of its own: what is set there counts.
        if config["num_machines"] == 1 or "CUDA_VISIBLE_DEVICES" not in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = config["gpu_ids"]


def config_file() -> Path:
    """Where `accelerate config` keeps its answers."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return home.expanduser() / "accelerate" / "default_config.yaml"


def read_config(path: Path) -> dict:
    """The answers of `accelerate config` that decide how a stage is started, defaults filled in.

    Keys: num_processes, num_machines, use_cpu, gpu_ids, distributed_type, mixed_precision.
    Exits with an error where the stages can't run as the config says.
    """
    try:
        answers = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        fsdp_version = int((answers.get("fsdp_config") or {}).get("fsdp_version") or 1)
        config = {
            "num_processes": int(answers.get("num_processes") or 1),
            "num_machines": int(answers.get("num_machines") or 1),
            "use_cpu": bool(answers.get("use_cpu")),
            "gpu_ids": str(answers.get("gpu_ids") or "all"),
            "distributed_type": str(answers.get("distributed_type") or "NO"),
            "mixed_precision": str(answers.get("mixed_precision") or "no"),
        }
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        exit_with_error(f"{path}: not an accelerate config; run `accelerate config` again")
    kind = config["distributed_type"]
    if kind not in DISTRIBUTED_TYPES:
        exit_with_error(
            f"{path}: distributed_type {kind} is not supported: {', '.join(DISTRIBUTED_TYPES)} are"
        )
    if kind == "FSDP" and fsdp_version != 2:
        exit_with_error(f"{path}: fsdp_config.fsdp_version {fsdp_version}: FSDP needs version 2")
    return config


def check_gpu_count(config: dict) -> None:
    """Fail where this machine has fewer GPUs than the config of one machine asks for."""
    import torch

    gpus = torch.cuda.device_count()
    if config["num_machines"] == 1 and gpus < config["num_processes"]:
        exit_with_error(
            f"{config_file()}: {config['num_processes']} processes need as many GPUs, and "
            f"{gpus} are visible here (num_processes, $CUDA_VISIBLE_DEVICES)"
        )


if __name__ == "__main__":
    main()
