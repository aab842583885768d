"""All measurements that need a GPU, in one command of at most eight minutes.

    python -m benchmarks.gpu                 Stable Diffusion v1.5's size, random weights (a GPU)
    python -m benchmarks.gpu --seconds 900   with time for the last row, whose model is compiled
    python -m benchmarks.gpu --tiny          the demo's model, to try the script itself (any device)

The rows run in order of worth, each in a process of its own with its own time limit. The table is
written after every row (not with --tiny), at the end of benchmarks/results/gpu.md, which keeps what
it had: an interruption loses nothing that was measured. A row that fails or finds no time left says
so.

Needs only torch, diffusers, transformers, accelerate, peft, safetensors, pyarrow, pydantic, pillow,
tqdm, pyyaml, filelock and platformdirs. No network: tiles are rendered, weights are random.
"""

import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.finetune import describe_mfu, time_reference_loop, time_stage_loop
from benchmarks.workspace import (
    LITTLE_MEASURING,
    REPOSITORY,
    make_demo,
    make_rsicd_scale,
    make_stable_diffusion,
    read_scale,
    write_params,
)
from stages.common.artifacts import read_json, write_atomically
from stages.common.torch_setup import device_type
from stages.runtime.process import interrupt_on_signals, make_parser, start_process

TABLE = REPOSITORY / "benchmarks/results/gpu.md"
TILES = 64  # rendered tiles per resolution, before the split
PROMPT = "an aerial image of a field beside a road"
Results = dict[str, str]  # quantity -> value with unit


@dataclass(frozen=True)
class Row:
    """One measurement: `measure(folder, tiny, **options)`, stopped after `limit` seconds."""

    name: str
    limit: float
    measure: Callable[..., Results]
    options: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    parser = make_parser("benchmarks.gpu", __doc__)
    parser.add_argument("--tiny", action="store_true", help="the demo's model on any device")
    parser.add_argument("--seconds", type=float, default=480, help="of the whole command")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    if not tiny and not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; --tiny runs without one")
    start_process()
    interrupt_on_signals()  # a row is in a session of its own, which only `run_row` ends
    with tempfile.TemporaryDirectory() as folder:
        run_rows(ROWS, Path(folder), tiny, None if tiny else TABLE, arguments.seconds)


# Running rows


def run_rows(
    rows: list[Row], folder: Path, tiny: bool, table: Path | None, time_limit: float
) -> None:
    """Run the rows one after another until the time is over; print each, and append the table."""
    earlier = table.read_text(encoding="utf-8") + "\n" if table and table.exists() else ""
    started = time.monotonic()
    lines: list[str] = []
    for row in rows:
        time_left = time_limit - (time.monotonic() - started)
        line = format_row(row, folder, tiny, time_left)
        print(line, flush=True)
        lines.append(line)
        if table:
            section = format_table(lines, time.monotonic() - started)
            write_atomically(table, (earlier + section).encode())


def format_row(row: Row, folder: Path, tiny: bool, time_left: float) -> str:
    """Run a row; its line of the table."""
    if time_left < 10:
        return f"| {row.name} | not run: no time left | |"
    started = time.monotonic()
    results = run_row(row, folder, tiny, min(row.limit, time_left))
    cells = ", ".join(f"{name} {value}" for name, value in results.items())
    return f"| {row.name} | {cells} | {time.monotonic() - started:.0f} s |"


def run_row(row: Row, folder: Path, tiny: bool, limit: float) -> Results:
    """Run a measurement in a new process; what it returned, or why it returned nothing.

    What it started ends with it, and its temporary files are removed: a checkpoint alone takes
    many gigabytes, and a row that is killed removes none.
    """
    context = multiprocessing.get_context("spawn")  # CUDA allows no fork
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        process = context.Process(target=_measure, args=(row, folder, temporary, tiny, sender))
        process.start()
        sender.close()
        try:
            if not receiver.poll(limit):
                return {"not measured:": f"stopped after {limit:.0f} s"}
            return receiver.recv()
        except EOFError:
            process.join()
            return {"not measured:": f"ended with exit code {process.exitcode}"}
        finally:
            kill_session(process)
            process.join()


def kill_session(process: BaseProcess) -> None:
    """Kill a row's process and all that it started, which would go on using the GPU."""
    assert process.pid is not None
    with suppress(ProcessLookupError):  # it has no session yet, or nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _measure(row: Row, folder: Path, temporary: str, tiny: bool, sender: Connection) -> None:
    os.setsid()
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    start_process()  # as a stage starts: it keeps compiled modules, which saves seconds a row
    try:
        sender.send(row.measure(folder, tiny, **row.options))
    except (Exception, SystemExit) as error:  # every failure becomes the row's result
        traceback.print_exc()
        message = " ".join(str(error).split())[-200:]
        sender.send({"failed:": f"{type(error).__name__}: {message}"})


def format_table(lines: list[str], seconds: float) -> str:
    """A section of Markdown: device, versions, commit and the rows so far."""
    libraries = ("torch", "diffusers", "transformers", "accelerate", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return "\n".join(
        [
            f"## {device_name()}, commit {commit()}",
            "",
            f"`python -m benchmarks.gpu`, {versions}; {seconds:.0f} s so far. Stable Diffusion "
            "v1.5's size with random weights, rendered tiles, unless a row says otherwise. MFU: "
            "share of the dense bf16 peak.",
            "",
            "| what | measured | took |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


def commit() -> str:
    """The commit of the code; `unknown` in a copy without git."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


# Measurements: each runs in a process of its own


def prepare(folder: Path, tiny: bool) -> Results:
    """Render the tiles at 512 and 224 px; write the model once, with random weights."""
    started = time.monotonic()
    if tiny:
        make_demo(folder / "512", 16, encode={"base_domain": "none"})
        make_demo(folder / "224", 16, encode={"base_domain": "none"})
    else:
        make_stable_diffusion(folder / "512", TILES, 512)
        make_stable_diffusion(
            folder / "224", TILES, 224, model=folder / "512/models/base/diffusion"
        )
    return {"ready after": f"{time.monotonic() - started:.0f} s"}


def measure_encoding(folder: Path, tiny: bool, resolution: int) -> Results:
    """`encode` itself: eight flips and rotations of each tile, and the captions."""
    from stages import encode
    from stages.common.artifacts import read_rows

    enter(folder, str(resolution))
    started = time.perf_counter()
    encode.main()
    seconds = time.perf_counter() - started
    splits = [Path("data/imagery/train"), Path("data/imagery/valid")]
    tiles = sum(len(read_rows(split, ["scene"])) for split in splits)
    rate = f"{tiles / seconds:.2f} (8 variants of each; loading the model included)"
    return {"tiles/s": rate} | peak_memory()


def measure_training(
    folder: Path, tiny: bool, resolution: int, reference: bool = False, **changes: Any
) -> Results:
    """A few steps of `finetune_sd`, or of diffusers' loop, which encodes at every step."""
    enter(folder, str(resolution))
    write_training_params(tiny, changes)
    with without_dvclive():
        rate = time_reference_loop() if reference else time_stage_loop()
    results = {"images/s": f"{rate:.1f}"} | peak_memory()
    is_full = not reference and changes.get("method") != "lora"  # the FLOPs are of that
    if not tiny and is_full:
        results["MFU"] = describe_mfu(resolution, rate, device_name())
    return results


def write_training_params(tiny: bool, changes: dict[str, Any]) -> None:
    """Write params.yaml for a fine-tuning that goes on until it is stopped.

    It is the paper's, with these changes: AdamW, as in diffusers' loop, and no moving average.
    """
    config = read_scale("paper")["finetune_sd"] | {
        "epochs": 100_000,
        "checkpoint_steps": 10**6,
        **LITTLE_MEASURING,
    }
    config |= changes
    if tiny:
        config |= {"batch_size": 4, "precision": "fp32", "compile": False}
    write_params(Path(), finetune_sd=config)


@contextmanager
def without_dvclive() -> Iterator[None]:
    """Within the block `finetune_sd` logs no metrics, so that it runs without DVCLive."""
    from stages import finetune_sd

    @contextmanager
    def no_tracking(*arguments: Any, **keywords: Any) -> Iterator[Callable[..., None]]:
        yield lambda *values: None

    with patch.object(finetune_sd, "track_metrics", no_tracking):
        yield


def measure_generation(
    folder: Path, tiny: bool, schedules: dict[str, int], pipeline: bool = False
) -> Results:
    """Our sampler in groups of 16 in fp16, or diffusers' `pipe(prompt)`, a prompt at a time.

    `schedules`: scheduler -> denoising steps.
    """
    from benchmarks.generate import load_pipeline, time_pipeline, time_sampler
    from stages.diffusion.sampler import Sampler
    from stages.diffusion.schedulers import load_scheduler
    from stages.params import Sampling, load

    enter(folder, "512")
    settings = load().sampling.model_dump()
    settings["batch_size"] = 4 if tiny else 16
    if not tiny:
        settings |= {"resolution": 512, "precision": "fp16"}
    model = Path("models/base/diffusion").resolve()
    device = torch.device(device_type())
    if pipeline:
        network: Any = load_pipeline(model, torch.float32 if tiny else torch.float16, device)
    else:
        network = Sampler(model, Sampling(**settings), device)
    results = {}
    for scheduler, steps in schedules.items():
        sampling = Sampling(**settings | {"scheduler": scheduler, "steps": steps})
        network.scheduler = load_scheduler(model, scheduler)
        if pipeline:
            rates = [time_pipeline(network, [PROMPT] * 2, sampling) for _ in range(2)]
        else:
            network.sampling = sampling
            prompts = [PROMPT] * sampling.batch_size
            rates = [time_sampler(network, prompts) for _ in range(2)]
        # The first run chooses kernels.
        results[f"{scheduler}, {steps} steps:"] = f"{max(rates):.2f} images/s"
    return results | peak_memory()


def measure_rsicd_scale(folder: Path, tiny: bool) -> Results:
    """Fine-tuning at RSICD's scale (params/rsicd.yaml: 64 px, from scratch), on rendered tiles."""
    make_rsicd_scale(folder / "rsicd", 64 if tiny else 1024, vae_steps=10, text_steps=10)
    enter(folder, "rsicd")
    with without_dvclive():
        rate = time_stage_loop()
    hours = 150 * 8234 / rate / 3600  # epochs of params/rsicd.yaml, its training tiles
    return {"images/s": f"{rate:.0f}", "150 epochs of RSICD": f"{hours:.2f} h"} | peak_memory()


def measure_checkpoint(folder: Path, tiny: bool) -> Results:
    """What a checkpoint costs: training waits only while the tensors are copied to the CPU."""
    from benchmarks.checkpoints import fill_state, time_checkpoint
    from stages.diffusion import models

    enter(folder, "512")
    unet = models.load_trainable_unet(models.start_folder(), "full", seed=0)
    unet.to(device_type())
    adamw = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)
    fill_state(adamw)
    size, copying, writing = time_checkpoint(unet, adamw, with_ema=True, rounds=1)
    return {
        "size": f"{size:.2f} GB",
        "training waits": f"{copying:.2f} s",
        "written in": f"{writing:.1f} s",
    }


def measure_resuming(folder: Path, tiny: bool) -> Results:
    """Train the demo's model with and without a kill in between: is the last loss the same?

    On a GPU in fp16, so that the state of the gradient scaler is resumed, too.
    """
    config: dict[str, Any] = LITTLE_MEASURING | {
        "epochs": 1,  # 10 steps
        "batch_size": 8,
        "warmup_steps": 4,
        "checkpoint_steps": 4,
        "validation_images": 16,
    }
    if not tiny:
        config |= {"precision": "fp16", "optimizer": "adamw", "lr": 1.0e-4}
    make_demo(folder / "resuming", 100, finetune_sd=config, encode={"base_domain": "none"})
    enter(folder, "resuming")
    run_stage("encode")
    run_stage("finetune_sd")
    uninterrupted = read_validation_loss()
    run_stage("finetune_sd", kill_at_step=6)
    run_stage("finetune_sd")
    resumed = read_validation_loss()
    return {
        "validation loss": f"{uninterrupted:.6f}, after SIGKILL and resume {resumed:.6f}",
        "same": "yes" if resumed == uninterrupted else "NO",
    }


def run_stage(name: str, kill_at_step: int | None = None) -> None:
    """Run a stage in a new process, killed when it begins this optimizer step."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_stage, args=(name, kill_at_step))
    process.start()
    process.join()
    expected = 0 if kill_at_step is None else -signal.SIGKILL
    if process.exitcode != expected:
        raise RuntimeError(f"{name} ended with exit code {process.exitcode}")


def _stage(name: str, kill_at_step: int | None) -> None:
    from stages import encode, finetune_sd

    if name == "encode":
        encode.main()
        return
    learning_rate = finetune_sd.learning_rate

    def learning_rate_or_kill(step: int, *rest: Any) -> float:
        if step == kill_at_step:
            # Written in another thread: a GPU's next steps may be done before.
            while not list(Path("scratch/finetune_sd").glob("*/step_*.safetensors")):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return learning_rate(step, *rest)

    with without_dvclive(), patch.object(finetune_sd, "learning_rate", learning_rate_or_kill):
        finetune_sd.main()


def read_validation_loss() -> float:
    """The validation loss at the last step, also where an earlier one is saved."""
    return read_json("metrics/diffusion.json")["validation_loss_last"]


def enter(folder: Path, name: str) -> None:
    """Work in this folder, with a resume cache of its own."""
    os.chdir(folder / name)
    os.environ["REMOTE_DIFFUSION_SCRATCH"] = str(Path("scratch").resolve())


def peak_memory() -> Results:
    """The most GPU memory that tensors of this process held."""
    if not torch.cuda.is_available():
        return {}
    return {"peak memory": f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"}


# Rows, in order of worth. A limit is 1.5 to 2 times what the row took on an H200 or, where it has
# not run yet, should take by those that have. By the same times all but the last take some 480 s.

FULL_512 = {
    "resolution": 512,
    "precision": "bf16",
    "batch_size": 32,
    "gradient_accumulation": 1,
}
PAPER = {"resolution": 224}  # fp16, 4 x 4 images a step
PAPER_AT_ONCE = PAPER | {"batch_size": 16, "gradient_accumulation": 1}
SCHEDULES = {"schedules": {"pndm": 50, "dpm": 20}}
ROWS = [
    Row("tiles and model", 120, prepare),
    Row("encode, 512 px", 45, measure_encoding, {"resolution": 512}),
    Row("fine-tuning, 512 px, bf16", 70, measure_training, FULL_512),
    Row("diffusers' loop, 512 px, bf16", 60, measure_training, FULL_512 | {"reference": True}),
    Row("generation, 512 px", 65, measure_generation, SCHEDULES),
    Row("pipe(prompt), the same", 50, measure_generation, SCHEDULES | {"pipeline": True}),
    Row("encode, 224 px", 30, measure_encoding, {"resolution": 224}),
    Row("fine-tuning, 224 px, the paper's fp16 with loss scaling", 50, measure_training, PAPER),
    Row("resume, the demo's model, fp16", 100, measure_resuming),
    Row("checkpoint, with EMA", 80, measure_checkpoint),
    Row("RSICD's scale, 64 px", 75, measure_rsicd_scale),
    Row("LoRA, 512 px, bf16", 60, measure_training, FULL_512 | {"method": "lora"}),
    Row(
        "diffusers' loop, 224 px, fp16, its 16 images at once",
        40,
        measure_training,
        PAPER_AT_ONCE | {"reference": True},
    ),
    # Compilation took more than 150 s on 16 cores.
    Row("fine-tuning, 512 px, bf16, compiled", 400, measure_training, FULL_512 | {"compile": True}),
]


if __name__ == "__main__":
    main()
