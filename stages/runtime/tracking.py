"""The course of a long stage, to be watched while it runs: DVCLive always, Weights & Biases where $WANDB_PROJECT is set.

It goes to `dvclive/<stage>/`, which git and the pipeline ignore: what the stage declares as outputs, it writes itself.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stages.runtime.errors import exit_with_error

Log = Callable[..., None]  # log(step, numbers: dict[str, float], picture: Path | None = None)


@contextmanager
def track_metrics(stage: str, settings: dict, mark: str, resume: bool) -> Iterator[Log]:
    """Yields `log(step, numbers, picture)`. A resumed run goes on in the same curves; W&B knows it by `mark`.

    Only the first of several processes logs.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield lambda *_: None
        return
    wandb_run = start_wandb(stage, settings, mark) if os.environ.get("WANDB_PROJECT") else None
    with ExitStack() as stack:
        live = None

        def log(step: int, numbers: dict[str, float], picture: Path | None = None) -> None:
            nonlocal live
            if live is None:
                from dvclive import Live  # late: it imports dvc, and training needn't wait for that

                # A kill may have torn its summary, which it would read; the curves are other files.
                Path(f"dvclive/{stage}/metrics.json").unlink(missing_ok=True)
                # Neither an experiment nor a dvc.yaml of its own: `dvc exp run` and the pipeline's dvc.yaml are those.
                live = stack.enter_context(
                    Live(f"dvclive/{stage}", resume=resume, save_dvc_exp=False, dvcyaml=None)
                )
            live.step = step
            for name, value in numbers.items():
                live.log_metric(name, value)
            if picture:
                live.log_image(f"{step:08d}{picture.suffix}", picture)
            live.make_summary()
            if wandb_run:
                import wandb

                wandb_run.log(
                    numbers | ({"grid": wandb.Image(str(picture))} if picture else {}), step=step
                )

        yield log
    if wandb_run:
        wandb_run.finish()


def start_wandb(stage: str, settings: dict, mark: str):
    """A W&B run of the project that the environment names."""
    try:
        import wandb
    except ImportError:
        exit_with_error(
            "WANDB_PROJECT: Weights & Biases is asked for, but not installed: pip install wandb"
        )
    return wandb.init(name=stage, config=settings, id=f"{stage}-{mark}", resume="allow")
