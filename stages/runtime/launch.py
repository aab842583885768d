"""Run a stage in place, or on all the devices that this machine's accelerate config asks for.

    python -m stages.runtime.launch <stage> [item]

`dvc.yaml` holds this same command everywhere; `accelerate config`, once per machine, decides on how many processes. With
no config, or one for a single process, the stage runs right here. Cannot change a result.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import yaml

from stages.params import load
from stages.runtime.errors import exit_with_error

STAGES = ("encode", "finetune_sd", "sample", "generate", "features")


def config_file() -> Path:
    """Where `accelerate config` keeps its answers."""
    home = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    return Path(home) / "accelerate" / "default_config.yaml"


def main(stage: str = "", *args: str) -> None:
    if stage not in STAGES:
        exit_with_error(
            f"launch: {stage or 'nothing'} is no stage that runs on several processes: {', '.join(STAGES)}"
        )
    module, config = f"stages.{stage}", config_file()
    try:
        answers = yaml.safe_load(config.read_text()) if config.exists() else {}
        processes, machines = (
            int(answers.get(key) or 1) for key in ("num_processes", "num_machines")
        )
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        exit_with_error(f"{config}: not an accelerate config; run `accelerate config` again")
    if processes == 1 and machines == 1:
        spare(stage)
        sys.argv = [stage, *args]
        runpy.run_module(module, run_name="__main__")
        return
    cpu = answers.get("use_cpu") or answers.get("distributed_type") == "MULTI_CPU"
    if cpu and machines == 1:
        # `accelerate launch --cpu` runs one process without MPI whatever it is told; torchrun starts them all.
        command = [
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--standalone",
            "--module",
            module,
        ]
        environment = {
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_MIXED_PRECISION": str(answers.get("mixed_precision") or "no"),
        }
    else:
        command, environment = (
            ["accelerate.commands.launch", "--config_file", str(config), "--module", module],
            {},
        )
        if not cpu and machines == 1 and (found := _gpus()) < processes:
            exit_with_error(
                f"{config}: num_processes is {processes}, this machine has {found} GPU(s)"
            )
    # The stage checks that so many really came up (stages.runtime.processes).
    environment["REMOTE_DIFFUSION_PROCESSES"] = str(processes)
    sys.exit(
        subprocess.run(
            [sys.executable, "-m", *command, *args], env={**os.environ, **environment}
        ).returncode
    )


def spare(stage: str) -> None:
    """Hide what this stage has no use for: accelerate and diffusers import it wherever they find it, a third of the start."""
    p = load().finetune_sd
    trains = stage == "finetune_sd"
    used = {
        "peft": trains and p.method == "lora",
        "bitsandbytes": trains and p.optimizer == "adamw8bit",
        "scipy": stage == "features",
        "boto3": False,
    }
    for name in used:
        if not used[name]:
            sys.modules[name] = None  # "not installed", to whoever looks


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    main(*sys.argv[1:])
