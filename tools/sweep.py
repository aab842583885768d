"""Run a sweep: one experiment per combination of params, then a table and a Pareto plot.

    python -m tools.sweep guidance       guidance scale x steps: FID against accuracy on real tiles
    python -m tools.sweep prompts        prompt writer x technique: class agreement of the images
                                         against accuracy on real tiles
    python -m tools.sweep guidance 3     only experiment 3, for a scheduler (docs/sweep.slurm)

Experiments run in temporary copies, each on its own GPU ($CUDA_VISIBLE_DEVICES, else all
GPUs), or one after another without a GPU. An experiment that this commit has already is not run
again; one that fails is marked in the table. Writes sweeps/<name>.md and sweeps/<name>.png.
"""

import argparse
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from queue import Queue

from stages.params import WRITER_TECHNIQUES, load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import start_process
from stages.runtime.progress import log
from tools.git import git

OUT = Path("sweeps")


@dataclass(frozen=True)
class Metric:
    """A metric of an experiment."""

    file: str
    key: str
    better: str  # higher or lower

    @property
    def label(self) -> str:
        """The name in the table and on the axes."""
        return f"{Path(self.file).stem} {self.key} ({self.better} is better)"


@dataclass(frozen=True)
class Value:
    """The value of a metric with its 95 % interval; the value itself where it has none."""

    value: float
    lo: float
    hi: float


FID = Metric("metrics/fid.json", "scene.standard.fid", "lower")
REAL_ACCURACY = Metric("metrics/classify_lulc.json", "real_test.overall_accuracy", "higher")
CLASS_AGREEMENT = Metric("metrics/caption_agreement.json", "class_agreement", "higher")
# The two metrics of each sweep, which trade off against each other.
METRICS = {"guidance": (FID, REAL_ACCURACY), "prompts": (CLASS_AGREEMENT, REAL_ACCURACY)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", choices=METRICS)
    parser.add_argument("number", type=int, nargs="?", help="of one experiment, from 0")
    options = parser.parse_args()
    start_process()
    run_sweep(options.sweep, options.number)


def run_sweep(name: str, number: int | None) -> None:
    """Run the experiments of a sweep that have not run yet, or one of them; write the report."""
    if git("rev-parse", "HEAD") is None:
        exit_with_error(
            "sweep: an experiment belongs to a commit: run it in a git repository that has one"
        )
    experiments = list_experiments(name)
    selected = list(experiments)
    if number is not None:
        if not 0 <= number < len(experiments):
            exit_with_error(
                f"sweep: {number}: the experiments of {name} are numbered 0 to "
                f"{len(experiments) - 1}"
            )
        selected = [selected[number]]
    pending = [experiment for experiment in selected if not find_ref(experiment)]
    run_experiments({experiment: experiments[experiment] for experiment in pending})

    values = {experiment: read_values(name, experiment) for experiment in experiments}
    if not any(values.values()):
        exit_with_error(
            f"sweep: none of the {len(values)} experiments succeeded; their messages are above"
        )
    report(name, values)


def list_experiments(name: str) -> dict[str, dict[str, str]]:
    """Return the params that each experiment of a sweep sets, by experiment."""
    if name == "guidance":
        grid = product(("1.5", "2.0", "3.0", "5.0"), ("7", "14", "28"))
        return {
            f"guidance-{scale}-{steps}": {"sampling.guidance_scale": scale, "sampling.steps": steps}
            for scale, steps in grid
        }
    params = load()
    # Whether the model that a writer needs is configured.
    available = {
        "extractive": True,
        "domain": True,
        "huggingface": params.fetch_model.writer != "none",
        "openai": bool(params.prompt.openai_model),
    }
    experiments = {}
    for writer, techniques in WRITER_TECHNIQUES.items():
        if not available[writer]:
            continue
        for technique in techniques:
            experiments[f"prompts-{writer}-{technique}".replace("_", "-")] = {
                "prompt.writer": writer,
                "prompt.technique": technique,
                # The pair itself may be in `compare`, and must not be asked twice.
                "prompt.compare": "[]",
            }
    return experiments


def run_experiments(experiments: dict[str, dict[str, str]]) -> None:
    """Run experiments side by side, one per GPU, or one after another without a GPU."""
    devices: list[str | None] = [*list_gpus()] or [None]
    free_devices: Queue[str | None] = Queue()
    for device in devices:
        free_devices.put(device)
    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [
            pool.submit(run_experiment, experiment, params, free_devices)
            for experiment, params in experiments.items()
        ]
    for future in futures:
        future.result()  # raises what `run_experiment` raised


def list_gpus() -> list[str]:
    """Return the devices that $CUDA_VISIBLE_DEVICES names, else all GPUs of this machine."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def run_experiment(
    experiment: str, params: dict[str, str], free_devices: "Queue[str | None]"
) -> None:
    """Run one experiment on a free device; log the end of its output if it fails."""
    device = free_devices.get()
    log(f"sweep: {experiment}" + (f" on GPU {device}" if device else ""))
    settings = [f"--set-param={key}={value}" for key, value in params.items()]
    # Experiments that start at the same time wait for DVC's lock; by default they would give up
    # after three seconds.
    command = ["dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", experiment, *settings]
    environment = dict(os.environ)
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = device
    finished = subprocess.run(command, text=True, capture_output=True, env=environment)
    free_devices.put(device)
    if finished.returncode:
        output = (finished.stdout + finished.stderr).strip()
        log(f"sweep: {experiment} failed:", *output.splitlines()[-5:])


def find_ref(experiment: str) -> str | None:
    """Return the git ref of an experiment of the checked-out commit; None if it has not run."""
    head = git("rev-parse", "HEAD")
    assert head is not None  # `run_sweep` has checked it
    head = head.strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/{experiment}"
    return ref if git("rev-parse", "--verify", "--quiet", ref) else None


def read_values(name: str, experiment: str) -> list[Value] | None:
    """Return an experiment's values of the sweep's two metrics; None if it has not succeeded."""
    ref = find_ref(experiment)
    if not ref:
        return None
    values = []
    for metric in METRICS[name]:
        content = git("show", f"{ref}:./{metric.file}")
        if content is None:
            exit_with_error(f"sweep: {experiment}: {metric.file} is not in its commit")
        metrics = json.loads(content)
        *path, key = metric.key.split(".")
        for part in path:
            metrics = metrics[part]
        value = metrics[key]
        values.append(
            Value(value, metrics.get(f"{key}_lo", value), metrics.get(f"{key}_hi", value))
        )
    return values


def pareto_front(name: str, values: dict[str, list[Value]]) -> set[str]:
    """Return the experiments that no other one dominates.

    One dominates another if it is at least as good in both metrics and better in one.
    """
    signs = [1 if metric.better == "higher" else -1 for metric in METRICS[name]]
    scores = {
        experiment: [sign * value.value for sign, value in zip(signs, pair)]
        for experiment, pair in values.items()
    }
    return {
        experiment
        for experiment, score in scores.items()
        if not any(dominates(other, score) for other in scores.values())
    }


def dominates(first: list[float], second: list[float]) -> bool:
    """Return whether the first scores dominate the second ones; higher is better."""
    return first != second and all(a >= b for a, b in zip(first, second))


def report(name: str, values: dict[str, list[Value] | None]) -> None:
    """Write the table and the plot of a sweep; print the table."""
    succeeded = {experiment: pair for experiment, pair in values.items() if pair}
    front = pareto_front(name, succeeded)
    OUT.mkdir(exist_ok=True)
    table = format_table(name, values, front)
    (OUT / f"{name}.md").write_text(table)
    plot(name, succeeded, front)
    print(table, end="")


def format_table(name: str, values: dict[str, list[Value] | None], front: set[str]) -> str:
    """Format a Markdown table: a row per experiment, those of the Pareto front first."""
    labels = [metric.label for metric in METRICS[name]]
    lines = [f"| experiment | {' | '.join(labels)} | Pareto |", "|---|---:|---:|---|"]
    for experiment in sorted(values, key=lambda experiment: (experiment not in front, experiment)):
        pair = values[experiment]
        cells = ["failed", "failed"]
        if pair:
            cells = [f"{value.value:.4g} [{value.lo:.4g}, {value.hi:.4g}]" for value in pair]
        on_front = "yes" if experiment in front else ""
        lines.append(f"| {experiment} | {' | '.join(cells)} | {on_front} |")
    lines += ["", "Values with their 95 % intervals: where those overlap, the ranks may be chance."]
    return "\n".join(lines) + "\n"


def plot(name: str, values: dict[str, list[Value]], front: set[str]) -> None:
    """Plot the experiments with their intervals, and the Pareto front as a line."""
    from matplotlib.figure import Figure

    x_metric, y_metric = METRICS[name]
    figure = Figure((7, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=x_metric.label, ylabel=y_metric.label)
    for experiment, (x, y) in values.items():
        axes.errorbar(
            x.value,
            y.value,
            xerr=[[x.value - x.lo], [x.hi - x.value]],
            yerr=[[y.value - y.lo], [y.hi - y.value]],
            fmt="o",
            color="C1" if experiment in front else "0.7",
            elinewidth=0.5,
        )
        axes.annotate(
            experiment.partition("-")[2],
            (x.value, y.value),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
        )
    front_values = [values[experiment] for experiment in front]
    points = sorted((x.value, y.value) for x, y in front_values)
    axes.plot(*zip(*points), color="C1", label="Pareto front")
    axes.legend(frameon=False)
    figure.savefig(OUT / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
