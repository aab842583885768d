"""A sweep: one experiment per combination of params, then the trade-off between two metrics as a table and a Pareto plot.

    python -m tools.sweep guidance           guidance scale x steps: FID against accuracy on real tiles
    python -m tools.sweep prompts            prompt writer x technique: what the images show against accuracy on real tiles
    python -m tools.sweep guidance 3         only its experiment number 3: for a scheduler (docs/sweep.slurm)

Experiments run in temporary copies, as many at once as there are GPUs ($CUDA_VISIBLE_DEVICES, else all), each with one to itself. One
that this commit has already is not run again; one that fails is named in the table. Writes sweeps/<name>.md and sweeps/<name>.png.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from queue import Queue

from stages.params import TECHNIQUES, load
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log
from tools.git import git

# Sweep -> the two metrics that pull apart: (file, key, which way is better).
FID = ("metrics/fid.json", "scene.standard.fid", "lower")
REAL = ("metrics/classify_lulc.json", "real_test.overall_accuracy", "higher")
SHOWN = ("metrics/caption_agreement.json", "class_agreement", "higher")
AXES = {"guidance": (FID, REAL), "prompts": (SHOWN, REAL)}


def combinations(name: str) -> dict[str, dict[str, str]]:
    """Experiment -> the params it sets."""
    if name == "guidance":
        grid = product(("1.5", "2.0", "3.0", "5.0"), ("7", "14", "28"))
        return {
            f"guidance-{scale}-{steps}": {"sampling.guidance_scale": scale, "sampling.steps": steps}
            for scale, steps in grid
        }
    p = load()
    # Writers that there is a model for; `compare` would ask the same pair twice.
    there = {
        "extractive": True,
        "domain": True,
        "huggingface": p.fetch_model.writer != "none",
        "openai": bool(p.prompt.openai_model),
    }
    return {
        f"prompts-{writer}-{technique}".replace("_", "-"): {
            "prompt.writer": writer,
            "prompt.technique": technique,
            "prompt.compare": "[]",
        }
        for writer, techniques in TECHNIQUES.items()
        if there[writer]
        for technique in techniques
    }


def main(name: str = "", number: str | None = None) -> None:
    if name not in AXES:
        exit_with_error(f"sweep: say which: {', '.join(AXES)}")
    if git("rev-parse", "HEAD") is None:
        exit_with_error(
            "sweep: an experiment belongs to a commit: run it in a git repository that has one"
        )
    wanted = combinations(name)
    if number is not None and number not in map(str, range(len(wanted))):
        exit_with_error(
            f"sweep: {number}: the experiments of {name} are numbered 0 to {len(wanted) - 1}"
        )
    chosen = list(wanted) if number is None else [list(wanted)[int(number)]]
    devices: Queue[str | None] = Queue()
    found = gpus() or [None]
    for device in found:
        devices.put(device)
    with ThreadPoolExecutor(len(found)) as pool:
        list(
            pool.map(
                lambda experiment: run(experiment, wanted[experiment], devices),
                [e for e in chosen if not revision(e)],
            )
        )
    rows = {experiment: point(name, experiment) for experiment in wanted}
    if not any(rows.values()):
        exit_with_error(
            f"sweep: none of the {len(rows)} experiments ended well; see what they said above"
        )
    report(name, wanted, rows)


def gpus() -> list[str]:
    """What $CUDA_VISIBLE_DEVICES names, else every GPU of this machine."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def run(experiment: str, params: dict[str, str], devices: Queue) -> None:
    device = devices.get()
    log(f"sweep: {experiment}" + (f" on GPU {device}" if device else ""))
    # Those that start at the same time wait for each other, instead of giving up after DVC's three seconds.
    settings = [f"--set-param={key}={value}" for key, value in params.items()]
    command = ["dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", experiment, *settings]
    done = subprocess.run(
        command,
        text=True,
        capture_output=True,
        env=os.environ | ({"CUDA_VISIBLE_DEVICES": device} if device else {}),
    )
    devices.put(device)
    if done.returncode:
        log(f"sweep: {experiment} failed:", *(done.stdout + done.stderr).strip().splitlines()[-5:])


def revision(experiment: str) -> str | None:
    """The ref under which DVC keeps an experiment of the commit that is checked out, if it has run."""
    head = git("rev-parse", "HEAD").strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/{experiment}"
    return ref if git("rev-parse", "--verify", "--quiet", ref) else None


def point(name: str, experiment: str) -> list[dict] | None:
    """The two metrics of an experiment, {value, lo, hi} each; None where it did not run to its end."""
    ref, found = revision(experiment), []
    for file, key, _ in AXES[name] if ref else ():
        numbers = json.loads(git("show", f"{ref}:./{file}"))
        *path, last = key.split(".")
        for part in path:
            numbers = numbers[part]
        value = numbers[last]
        found.append(
            {
                "value": value,
                "lo": numbers.get(f"{last}_lo", value),
                "hi": numbers.get(f"{last}_hi", value),
            }
        )
    return found or None


def pareto(name: str, points: dict[str, list[dict]]) -> set[str]:
    """Experiments that no other one beats in one metric without losing in the other."""
    signs = [1 if better == "higher" else -1 for *_, better in AXES[name]]
    scores = {
        experiment: [sign * axis["value"] for sign, axis in zip(signs, axes)]
        for experiment, axes in points.items()
    }
    return {
        e
        for e, mine in scores.items()
        if not any(
            all(b >= a for a, b in zip(mine, other)) and other != mine for other in scores.values()
        )
    }


def report(name: str, wanted: dict[str, dict], rows: dict[str, list | None]) -> None:
    from matplotlib.figure import Figure

    points = {experiment: axes for experiment, axes in rows.items() if axes}
    best, labels = (
        pareto(name, points),
        [f"{Path(file).stem} {key} ({better} is better)" for file, key, better in AXES[name]],
    )
    lines = [f"| experiment | {' | '.join(labels)} | Pareto |", "|---|---:|---:|---|"]
    for experiment, axes in sorted(rows.items(), key=lambda row: (row[0] not in best, row[0])):
        told = (
            [f"{axis['value']:.4g} [{axis['lo']:.4g}, {axis['hi']:.4g}]" for axis in axes]
            if axes
            else ["failed", "failed"]
        )
        lines.append(
            f"| {experiment} | {' | '.join(told)} | {'yes' if experiment in best else ''} |"
        )
    out = Path("sweeps")
    out.mkdir(exist_ok=True)
    lines += ["", "Values with their 95 % intervals: where those overlap, the ranks may be chance."]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    figure = Figure((7, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1])
    for experiment, (x, y) in points.items():
        across, up = (
            [[axis["value"] - axis["lo"]], [axis["hi"] - axis["value"]]] for axis in (x, y)
        )
        axes.errorbar(
            x["value"],
            y["value"],
            up,
            across,
            fmt="o",
            color="C1" if experiment in best else "0.7",
            elinewidth=0.5,
        )
        axes.annotate(
            experiment.partition("-")[2],
            (x["value"], y["value"]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
        )
    front = sorted(
        (points[experiment][0]["value"], points[experiment][1]["value"]) for experiment in best
    )
    axes.plot(*zip(*front), color="C1", label="Pareto front")
    axes.legend(frameon=False)
    figure.savefig(out / f"{name}.png", dpi=120)
    print((out / f"{name}.md").read_text(), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
