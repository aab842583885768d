"""From process start to the end of the first training step, at demo size.

python -m benchmarks.startup
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workspace import demo, stage

ROUNDS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = demo(Path(place), 1800)
        stage(folder, "stages.encode")
        found = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            stage(folder, "benchmarks.startup", "first_step")
            found.append(time.perf_counter() - began)
    print(
        f"| start-up to the end of the first step | s, median of {ROUNDS} | lowest to highest |\n|---|---|---|"
    )
    print(
        f"| finetune_sd, demo size | {statistics.median(found):.1f} | {min(found):.1f} to {max(found):.1f} |"
    )


def first_step() -> None:
    """The stage as the launcher starts it, ended when it begins its second step."""
    from stages.runtime.launch import spare

    spare("finetune_sd")
    from stages import finetune_sd

    rate = finetune_sd.learning_rate

    def learning_rate(step: int, *rest) -> float:
        if step == 1:
            raise SystemExit(0)
        return rate(step, *rest)

    finetune_sd.learning_rate = learning_rate
    finetune_sd.main()


if __name__ == "__main__":
    first_step() if sys.argv[1:] == ["first_step"] else main()
