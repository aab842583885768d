"""The course of a long stage, to watch while it runs: in DVCLive and in Weights & Biases.

Curves and pictures go to `dvclive/<stage>/`, which git and the pipeline ignore: a stage writes the
outputs that it declares itself. Weights & Biases is used where $WANDB_PROJECT is set.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import is_first_process

LogMetrics = Callable[..., None]  # (step, numbers: dict[str, float], picture: Path | None = None)


@contextmanager
def track_metrics(stage: str, config: dict, run_id: str, resume: bool) -> Iterator[LogMetrics]:
    """Yield a function `log_metrics(step, numbers, picture=None)`.

    Args:
        stage: the name of the stage.
        config: its params, shown with the curves.
        run_id: by which Weights & Biases knows a resumed run.
        resume: whether the curves of an earlier run continue.
    """
    if not is_first_process():  # the first logs for all
        yield lambda *_: None
        return
    wandb_run = start_wandb(stage, config, run_id) if os.environ.get("WANDB_PROJECT") else None
    with ExitStack() as stack:
        live = None

        def log_metrics(step: int, numbers: dict[str, float], picture: Path | None = None) -> None:
            nonlocal live
            if live is None:
                live = stack.enter_context(open_dvclive(stage, resume))
            log_to_dvclive(live, step, numbers, picture)
            if wandb_run:
                log_to_wandb(wandb_run, step, numbers, picture)

        yield log_metrics
    if wandb_run:
        wandb_run.finish()


def open_dvclive(stage: str, resume: bool) -> Any:
    """The DVCLive logger of a stage."""
    from dvclive import Live  # imports dvc, which takes seconds: training need not wait for it

    # A kill may have left an incomplete summary, which DVCLive would read; the curves are in other
    # files.
    Path(f"dvclive/{stage}/metrics.json").unlink(missing_ok=True)
    # `dvc exp run` saves the experiment, and the pipeline has its own dvc.yaml.
    return Live(f"dvclive/{stage}", resume=resume, save_dvc_exp=False, dvcyaml=None)


def log_to_dvclive(live: Any, step: int, numbers: dict[str, float], picture: Path | None) -> None:
    live.step = step
    for name, value in numbers.items():
        live.log_metric(name, value)
    if picture:
        live.log_image(f"{step:08d}{picture.suffix}", picture)
    live.make_summary()


def start_wandb(stage: str, config: dict, run_id: str) -> Any:
    """A Weights & Biases run in the project that $WANDB_PROJECT names."""
    try:
        import wandb
    except ImportError:
        exit_with_error(
            "WANDB_PROJECT: it asks for Weights & Biases, which is not installed: pip install wandb"
        )
    return wandb.init(name=stage, config=config, id=f"{stage}-{run_id}", resume="allow")


def log_to_wandb(
    wandb_run: Any, step: int, numbers: dict[str, float], picture: Path | None
) -> None:
    import wandb

    values: dict[str, Any] = dict(numbers)
    if picture:
        values["grid"] = wandb.Image(str(picture))
    wandb_run.log(values, step=step)
