"""The course of fine-tuning as outputs: `metrics/diffusion.json`, the curve behind the DVC plots, the sample grids."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq

from stages.common.artifacts import write_atomically, write_json

COLUMNS = (
    "step",
    "train_loss",
    "validation_loss",
    "base_domain_loss",
    "diversity",
)  # base_domain_loss: None without such a set
GRIDS = Path("metrics/plots/diffusion_grid")


def grid_file(cache: Path, step: int) -> Path:
    """Where the grid of a step waits for the end."""
    return cache / "grid" / f"{step:08d}.png"


def write(state: dict, steps: int, cache: Path, latents: Path) -> None:
    """`state`: best_step and curve, a row of COLUMNS per checkpoint, the first before any training."""
    rows = [dict(zip(COLUMNS, row)) for row in state["curve"]]
    first, best, last = (
        rows[0],
        next(row for row in rows if row["step"] == state["best_step"]),
        rows[-1],
    )
    truncated = pq.read_table(latents / "captions.parquet", columns=["truncated"])[
        "truncated"
    ].to_pylist()
    metrics = {"train_loss": best["train_loss"]}
    for name in COLUMNS[2:]:
        if first[name] is not None:
            metrics |= {name: best[name], f"{name}_base": first[name], f"{name}_last": last[name]}
    write_json(
        "metrics/diffusion.json",
        metrics
        | {"best_step": state["best_step"], "steps": steps, "truncated_captions": sum(truncated)},
    )
    lines = [
        ",".join(COLUMNS),
        *(
            ",".join("" if value is None else repr(value) for value in row)
            for row in state["curve"]
        ),
    ]
    write_atomically("metrics/plots/diffusion_loss.csv", ("\n".join(lines) + "\n").encode())
    shutil.rmtree(GRIDS, ignore_errors=True)
    shutil.copytree(cache / "grid", GRIDS)
