"""Read PDFs with pypdf in worker processes, so that a bad file costs only itself.

    python -m stages.text.pdf MEGABYTES [PAGES]    a worker: paths on standard input, one JSON line of text per path on
                                                   standard output

A file may take `SECONDS` and its worker `MEGABYTES`; a worker that hangs, runs out of memory or crashes is killed, its
file named with the reason, and another worker started.
"""

import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Timer, local

from stages.runtime.parallel import available_cores

SECONDS, MEGABYTES, WORDS = 60, 2048, 20


class Worker:
    """One worker process and its pipe."""

    def __init__(self, seconds: float, megabytes: int, pages: int | None = None):
        """`pages`: read only so many."""
        self.seconds, self.errors = seconds, tempfile.TemporaryFile()
        limits = [str(limit) for limit in (megabytes, pages) if limit]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.text.pdf", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=Path(__file__).parents[2],
        )

    def read(self, path: Path) -> dict:
        """{"pages": [text per page]} or {"reason": why there is none}."""
        late = []
        timer = Timer(self.seconds, lambda: (late.append(True), self.process.kill()))
        timer.start()
        try:
            self.process.stdin.write(json.dumps(str(path.resolve())).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
        if answer.endswith(b"\n"):
            return json.loads(answer)
        self.process.kill()
        self.process.wait()
        if late:
            return {"reason": f"took more than {self.seconds:g} s"}
        self.errors.seek(0)
        last = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        reason = last[0] if last else f"worker died (exit {self.process.returncode})"
        return {"reason": "out of memory" if "MemoryError" in reason else f"broken: {reason}"[:200]}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


def read_all(
    paths: list[Path], seconds: float = SECONDS, megabytes: int = MEGABYTES
) -> Iterator[tuple[Path, dict]]:
    """(path, answer of `Worker.read`) in the order of `paths`, one worker per core."""
    mine, everyone = local(), []

    def read(path: Path) -> dict:
        worker = getattr(mine, "worker", None)
        if worker is None or worker.process.poll() is not None:
            worker = mine.worker = Worker(seconds, megabytes)
            everyone.append(worker)
        return worker.read(path)

    workers, waiting, ahead = max(1, min(available_cores(), len(paths))), deque(), iter(paths)
    pool = ThreadPoolExecutor(workers)
    try:
        for path in paths:
            # A few papers ahead, no more: memory does not grow with their number.
            waiting.extend(
                pool.submit(read, later) for later in islice(ahead, 2 * workers - len(waiting))
            )
            yield path, waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in everyone:
            worker.close()


def pages_of(path: str, first: int | None = None) -> dict:
    """The text of each page as pypdf gives it, or the reason there is none. Faults of the parser itself end the worker."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

    with open(path, "rb") as file:
        start = file.read(1024)
    if not start.strip():
        return {"reason": "empty file"}
    if b"%PDF" not in start:
        return {"reason": "not a PDF"}
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return {"reason": "encrypted: needs a password"}
        pages = [page.extract_text() for page in islice(reader.pages, first)]
    except (FileNotDecryptedError, DependencyError) as fault:
        return {"reason": f"encrypted: {fault}"}
    except PyPdfError as fault:
        return {"reason": f"broken: {type(fault).__name__}: {fault}"[:200]}
    if not pages:
        return {"reason": "no pages"}
    if sum(len(text.split()) for text in pages) < WORDS:
        return {"reason": f"fewer than {WORDS} words (scanned, or pictures only)"}
    return {"pages": pages}


def worker(megabytes: int, first: int | None = None) -> None:
    import logging
    import resource

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    if sys.platform == "linux":  # elsewhere the limit can't be set, and only the timer guards
        resource.setrlimit(
            resource.RLIMIT_AS, (megabytes << 20, megabytes << 20)
        )  # a bomb ends in MemoryError
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(pages_of(json.loads(line), first)), flush=True)


if __name__ == "__main__":
    worker(*map(int, sys.argv[1:]))
