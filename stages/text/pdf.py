"""Extract the text of PDFs with pypdf in worker processes: a bad file cannot stop the others.

    python -m stages.text.pdf MEGABYTES [PAGES]

is a worker. It reads one path (JSON) per line from standard input and writes one line of JSON, the
result of `extract_pages`, to standard output. A worker that exceeds the time for a file or its
memory, or that crashes, is replaced; the reason stands in for that file's text.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Event, Timer, local

from stages.runtime.parallel import available_cores
from stages.text import legibility
from stages.text.reading_order import PageText, read_page

SECONDS = 60  # per file
MEGABYTES = 2048  # of memory per worker


class Worker:
    """A worker process and the pipes to it."""

    def __init__(
        self, seconds: float = SECONDS, megabytes: int = MEGABYTES, max_pages: int | None = None
    ):
        """Start a worker with these limits; `max_pages` None reads all pages of a file."""
        self.seconds = seconds
        self.errors = tempfile.TemporaryFile()
        limits = [str(limit) for limit in (megabytes, max_pages) if limit]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.text.pdf", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=Path(__file__).parents[2],
        )

    def read(self, path: Path) -> dict:
        """Return the result of `extract_pages`; {"reason": why} where the worker has none."""
        assert self.process.stdin and self.process.stdout
        timed_out = Event()

        def kill_late_worker() -> None:
            timed_out.set()
            self.process.kill()

        timer = Timer(self.seconds, kill_late_worker)
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
        if timed_out.is_set():
            return {"reason": f"took more than {self.seconds:g} s"}
        return {"reason": self._failure()}

    def _failure(self) -> str:
        """Return why the worker process ended, from the last line of its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        if not lines:
            return f"broken: worker died (exit {self.process.returncode})"
        return "out of memory" if "MemoryError" in lines[-1] else f"broken: {lines[-1]}"[:200]

    def close(self) -> None:
        """Stop the worker process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


def read_all(paths: list[Path]) -> Iterator[tuple[Path, dict]]:
    """Yield (path, result of `Worker.read`) in the order of `paths`, with one worker per core."""
    of_thread = local()
    workers: list[Worker] = []

    def read(path: Path) -> dict:
        worker = getattr(of_thread, "worker", None)
        if worker is None or worker.process.poll() is not None:
            worker = Worker()
            of_thread.worker = worker
            workers.append(worker)
        return worker.read(path)

    threads = max(1, min(available_cores(), len(paths)))
    pool = ThreadPoolExecutor(threads)
    remaining = iter(paths)
    submitted: deque[Future] = deque()
    try:
        for path in paths:
            # Only a few files are read ahead, so that memory does not grow with their number.
            for next_path in islice(remaining, 2 * threads - len(submitted)):
                submitted.append(pool.submit(read, next_path))
            yield path, submitted.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def extract_pages(path: str, max_pages: int | None) -> dict:
    """Return the text of a file's pages, or {"reason": why there is none}.

    The text is {"pages": [text per page], "heights": [per page, the height of each line in points
    or None], "jumbled": pages whose columns are mixed}; a page that is not legible is empty. Any
    other error of the parser ends the worker, whose last line names it.
    """
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
        pages = [read_page(page) for page in islice(reader.pages, max_pages)]
    except (FileNotDecryptedError, DependencyError) as error:
        return {"reason": f"encrypted: {error}"}
    except PyPdfError as error:
        return {"reason": f"broken: {type(error).__name__}: {error}"[:200]}
    texts = [page.text for page in pages]
    if reason := legibility.failure(texts):
        return {"reason": reason}
    legible = [page if legibility.is_legible(page.text) else PageText("", []) for page in pages]
    return {
        "pages": [page.text for page in legible],
        "heights": [page.heights for page in legible],
        "jumbled": sum(page.is_jumbled for page in pages),
    }


def serve(megabytes: int, max_pages: int | None) -> None:
    """Answer each path on standard input with a line on standard output, within a memory limit."""
    import logging
    import resource

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    # Linux alone enforces the limit; a file that unpacks to more ends in a MemoryError there.
    # Elsewhere only the timer guards.
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(extract_pages(json.loads(line), max_pages)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.text.pdf", description=serve.__doc__)
    parser.add_argument("megabytes", type=int, help="memory limit")
    parser.add_argument("max_pages", type=int, nargs="?", help="pages read of each file")
    arguments = parser.parse_args()
    serve(arguments.megabytes, arguments.max_pages)
