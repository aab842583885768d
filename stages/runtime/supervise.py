"""Run torch's or accelerate's launcher, which starts the processes of a stage and watches them.

    python -m stages.runtime.supervise torch.distributed.run [arguments]

A process that fails has printed one line. The launcher would add tracebacks of its own below it.
"""

import logging
import runpy
import signal
import sys

from stages.runtime.errors import excepthook, exit_with_error


def main() -> None:
    sys.excepthook = excepthook
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # of how each process ended
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            # Neither a line of its own, nor ended by the launcher because another one failed.
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                exit_with_error(
                    f"process {rank} of the stage was ended by {failure.signal_name()}; with "
                    "SIGKILL, the system frees memory where there is too little"
                )
        if all(failure.exitcode == -signal.SIGTERM for failure in error.failures.values()):
            exit_with_error("a process of the stage was ended by SIGTERM")
        sys.exit(1)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            print("interrupted", file=sys.stderr)
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
