"""Time from the start of `finetune_sd`'s process to the end of its first training step.

    python -m benchmarks.startup

At demo size.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.workspace import make_demo, run_module
from stages.runtime.process import make_parser

ROUNDS = 5


def main() -> None:
    parser = make_parser("benchmarks.startup", __doc__)
    parser.add_argument(
        "part",
        nargs="?",
        choices=["all", "first_step"],
        default="all",
        help="first_step: the process that `all` times",
    )
    if parser.parse_args().part == "first_step":
        run_first_step()
    else:
        time_first_step()


def time_first_step() -> None:
    """Print the wall time of processes that end after the first step."""
    seconds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_demo(Path(temporary), 1800)
        run_module(folder, "stages.encode")
        for _ in range(ROUNDS):
            started = time.perf_counter()
            run_module(folder, "benchmarks.startup", "first_step")
            seconds.append(time.perf_counter() - started)
    print(f"| start-up to the end of the first step | s, median of {ROUNDS} | lowest to highest |")
    print("|---|---|---|")
    spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
    print(f"| finetune_sd, demo size | {statistics.median(seconds):.1f} | {spread} |")


def run_first_step() -> None:
    """Run the stage as the launcher does, and end the process when its second step begins."""
    from stages.runtime.process import start_process

    start_process()
    from stages import finetune_sd

    learning_rate = finetune_sd.learning_rate

    def learning_rate_of_first_step(step: int, *arguments: Any) -> float:
        if step == 1:
            sys.exit(0)
        return learning_rate(step, *arguments)

    with patch.object(finetune_sd, "learning_rate", learning_rate_of_first_step):
        finetune_sd.main()


if __name__ == "__main__":
    main()
