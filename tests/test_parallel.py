"""Ordered work in other processes and threads."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import alive

from stages.runtime.parallel import ordered_map, read_ahead

WAITS = """
import os, time
from stages.runtime.parallel import ordered_map

def print_process(i):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)

if __name__ == "__main__":
    list(ordered_map(print_process, ((i, i) for i in range(2)), batch=1, processes=2))
"""


def square(i: int) -> int:
    return i * i


def test_results_are_in_order_with_any_number_of_processes():
    expected = [(f"label {i}", i * i) for i in range(50)]
    for processes in (1, 3):
        items = ((f"label {i}", i) for i in range(50))
        assert list(ordered_map(square, items, batch=4, processes=processes)) == expected


def test_the_next_item_is_computed_while_one_is_in_use():
    computed = []

    def compute():
        for i in range(3):
            computed.append(i)
            yield i

    items = read_ahead(compute())
    assert next(items) == 0
    deadline = time.monotonic() + 60
    while computed != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert computed == [0, 1]
    assert list(items) == [1, 2]


def test_an_error_in_the_thread_ends_the_run():
    def compute():
        yield 1
        sys.exit("error: a.png is not square")

    items = read_ahead(compute())
    assert next(items) == 1
    with pytest.raises(SystemExit, match=r"a\.png"):
        next(items)


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    with subprocess.Popen(
        [sys.executable, tmp_path / "waits.py"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as run:
        children = [int(run.stdout.readline()) for _ in range(2)]
        assert all(map(alive, children))
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))
