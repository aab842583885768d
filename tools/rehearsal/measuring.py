"""Run a command and measure it: time, memory of its processes, memory of the GPU, disk."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import psutil

from tools.cache import read_stats
from tools.rehearsal.device import visible_gpu

POLL = 0.1  # seconds between two looks at the memory
# Measuring the resume cache may take long: the pause after it is this many times as long.
DISK_PAUSE = 20
BAR = re.compile(r"\d+%\|")
# The last line of a progress bar: `a: 100%|###| 8/8 [00:09<00:00, 1.2s/tile]`, with `12.3tile/s`
# where that is more than one; without a total `a: 8tile [00:09, 1.2s/tile]`.
SPEED = r" \[.*?, +(?P<number>[\d.]+)(?P<inverse>s/)?\w+"
FINISHED = re.compile(r"(?P<title>.*): 100%\|.*\| (?P<done>\d+)/\d+" + SPEED)
WITHOUT_TOTAL = re.compile(r"(?P<title>.*): (?P<done>\d+)[a-z]+" + SPEED)
NOT_CUT = ("perplexity", "scenes", "retrieval")  # bars of work that a rehearsal does whole


@dataclass(frozen=True)
class Measurement:
    """What running a command took.

    Attributes:
        seconds: from its start to its end.
        bar_seconds: of these, the time in the progress bars of work that a rehearsal cuts.
        memory: the highest sum of the resident memory of its processes, bytes. It includes the
            pages of memory-mapped files; those that processes share count in each.
        gpu_memory: the highest use of the GPU less that before the start, bytes; None: there is no
            GPU, or it has no memory of its own.
        cache: what the resume cache grew by at most, bytes.
        error: "" where it succeeded, else the line that says why not.
        log: what it printed.
    """

    seconds: float
    bar_seconds: float
    memory: int
    gpu_memory: int | None
    cache: int
    error: str
    log: str


def measure(command: str, folder: Path, environment: dict[str, str], cache: Path) -> Measurement:
    """Run a command of the shell in a folder.

    Args:
        command: as in dvc.yaml.
        folder: where it runs.
        environment: its variables.
        cache: the folder of its resume cache.
    """
    log_file = folder.parent / "log.txt"
    with open(log_file, "wb") as log, watch_gpus() as gpus:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, shell=True, cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            memory, cache_size = watch(process, cache)
        finally:
            if process.poll() is None:  # this process is interrupted
                end_tree(process.pid)
        seconds = time.perf_counter() - started
    text = log_file.read_text(encoding="utf-8", errors="replace")
    error = error_line(text, process.returncode) if process.returncode else ""
    return Measurement(seconds, bar_seconds(text), memory, gpus.peak(), cache_size, error, text)


def watch(process: subprocess.Popen[bytes], cache: Path) -> tuple[int, int]:
    """Wait for a process; return the peaks of its memory and its cache's growth, bytes."""
    memory = cache_size = 0
    cache_before = folder_size(cache)
    next_look = 0.0
    while process.poll() is None:
        memory = max(memory, resident_memory(process.pid))
        look = time.perf_counter()
        if look > next_look:
            cache_size = max(cache_size, folder_size(cache) - cache_before)
            now = time.perf_counter()
            next_look = now + DISK_PAUSE * (now - look)
        time.sleep(POLL)
    return memory, cache_size


def resident_memory(pid: int) -> int:
    """The sum of the resident memory of a process and all that it started, bytes."""
    total = 0
    for process in process_tree(pid):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started; none where it has just ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_tree(pid: int) -> None:
    """End a process and all that it started."""
    for process in process_tree(pid):
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue


def bar_seconds(log: str) -> float:
    """The seconds that the finished progress bars of a log have taken, without those of `NOT_CUT`.

    tqdm's last line of a bar has the mean rate, as `1.23tile/s` or `12.3s/tile`. After a slow item
    it prints that line twice, the second time over the first.
    """
    total = 0.0
    without_total = {}  # title -> seconds, of the last line
    for line in log.split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2]
        match = FINISHED.search(last) or WITHOUT_TOTAL.search(last)
        if not match or not float(match["number"]) or match["title"] in NOT_CUT:
            continue
        rate = float(match["number"])
        seconds = int(match["done"]) * (rate if match["inverse"] else 1 / rate)
        if match.re is FINISHED:
            total += seconds
        else:
            without_total[match["title"]] = seconds
    return total + sum(without_total.values())


def error_line(log: str, code: int) -> str:
    """The line of a log that says why a command failed; `code` is its exit code."""
    if code < 0 or code > 128:  # of the shell; or of what it started, plus 128
        number = -code if code < 0 else code - 128
        return f"ended by signal {number}{' (out of memory?)' if number == signal.SIGKILL else ''}"
    lines = [line.strip() for line in re.split(r"[\r\n]+", log)]
    lines = [line for line in lines if line and not BAR.search(line)]
    errors = [line for line in lines if line.startswith(("error: ", "params.yaml: "))]
    return [f"exit code {code}", *lines[-1:], *errors[-1:]][-1]


def folder_size(folder: Path) -> int:
    """The bytes of the files in a folder, or of a file."""
    if folder.is_file():
        return folder.stat().st_size
    # What is allocated: some files are made large and filled later.
    return sum(info.st_blocks * 512 for info in read_stats(folder) if S_ISREG(info.st_mode))


# GPUs.


class GpuWatch:
    """The memory of the GPU while a command runs: what nvidia-smi printed."""

    output = ""

    def peak(self) -> int | None:
        """The highest use less the first, bytes; None without a GPU."""
        used = [int(line) for line in self.output.split() if line.isdigit()]
        return (max(used) - used[0]) * 2**20 if used else None


@contextmanager
def watch_gpus() -> Iterator[GpuWatch]:
    """Let nvidia-smi look at the GPU's memory five times a second."""
    process = None
    gpu = visible_gpu()
    if gpu is not None:
        query = "--query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200"
        command = ["nvidia-smi", *query.split(), f"--id={gpu}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = GpuWatch()
    try:
        yield watch
    finally:
        if process:
            process.terminate()
            watch.output = process.communicate()[0]
