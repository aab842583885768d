"""A `python` that has imported the stages' libraries already, for tests that run whole pipelines.

At smoke scale a stage spends most of its time importing torch. Here a server imports the libraries
once; each `python -m <module>` that DVC runs, and each `dvc`, is a fork of it, with the command's
folder, environment, arguments, input and output. Where the environment names a folder as TRACES,
strace notes there which files a stage opens. What this hides, an import that a stage lacks, is seen
where stages start anew: in `make`, whose results are committed.

    python warm_python.py serve <socket>
    python warm_python.py run <socket> -m <module> <argument>...
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    "accelerate",
    "albumentations",
    "bitsandbytes",
    "chromadb",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "dvc.cli",
    "dvc.commands.repro",
    "dvclive",
    "lightning.pytorch",
    "llama_index.core",
    "matplotlib.pyplot",
    "peft",
    "pyarrow.parquet",
    "scipy.optimize",
    "sklearn.linear_model",
    "timm",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torchgeo.trainers",
    "tracing",
)
VARIABLES = {
    # A fork has none of its parent's threads, such as OpenBLAS and Arrow's allocator would start.
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
LENGTH_BYTES = 8
REQUEST_FDS = 3  # standard input, output and errors


@contextmanager
def warm_python(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start a server in a folder; yields the environment with its `python` first on PATH.

    What the libraries read from the environment while they are imported is read from this one.
    Without Linux's processes there is no server, and the environment stays as it is.
    """
    if sys.platform != "linux":
        yield environment
        return
    address = folder / "socket"
    command = [sys.executable, __file__, "serve", str(address)]
    server = subprocess.Popen(command, env={**os.environ, **environment, **VARIABLES})
    shims = folder / "bin"
    shims.mkdir()
    for name, module in (("python", ""), ("dvc", "-m dvc ")):
        # Without site-packages Python starts in 20 ms.
        start = f'exec "{sys.executable}" -IS {__file__} run {address} {module}"$@"'
        (shims / name).write_text(f"#!/bin/sh\n{start}\n")
        (shims / name).chmod(0o755)
    try:
        while not address.exists():
            assert server.poll() is None, "the server of warm_python.py has ended"
            time.sleep(0.1)
        path = [str(shims), str(Path(sys.executable).parent), os.environ["PATH"]]
        yield {**environment, "PATH": os.pathsep.join(path)}
    finally:
        server.terminate()
        server.wait()


def serve(address: str) -> None:
    """Fork a process for each request, which runs the module."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # the forks share the pages of what was imported: no collection walks through it
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, "a process with threads can't be forked"
    # The kernel reaps the forks that wait for a stage.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stage = os.fork()
        if stage:
            _, status = os.waitpid(stage, 0)
            connection.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
            os._exit(0)
        end(run_module(connection))


def run_module(connection: socket.socket) -> int:
    """Do what `python -m` does, for the request of a connection; returns the exit code."""
    import tracing  # here: `run` finds no module that lies beside this file

    header, descriptors, _, _ = socket.recv_fds(connection, LENGTH_BYTES, REQUEST_FDS)
    request = json.loads(receive(connection, int.from_bytes(header)))
    connection.close()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _, module, *arguments = request["arguments"]
    sys.argv = [module, *arguments]
    more = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [request["folder"], *more]
    if "TRACES" in os.environ and module.startswith("stages."):
        tracing.trace_me(Path(os.environ["TRACES"], " ".join(request["arguments"])))
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(code: int) -> NoReturn:
    """End this process, without the seconds that Python takes to free what was imported."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def receive(connection: socket.socket, length: int) -> bytes:
    """The next bytes of a connection."""
    with connection.makefile("rb") as file:
        return file.read(length)


def run(address: str, arguments: list[str]) -> None:
    """Ask the server to run a module; exit with its code. Any other command runs as it is."""
    if arguments[:1] != ["-m"]:
        os.execv(sys.executable, [sys.executable, *arguments])
    request = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
    message = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [len(message).to_bytes(LENGTH_BYTES)], range(REQUEST_FDS))
    connection.sendall(message)
    code = connection.recv(1)
    sys.exit(code[0] if code else "the server of warm_python.py has ended")


if __name__ == "__main__":
    action, where, *rest = sys.argv[1:]
    if action == "serve":
        serve(where)
    else:
        run(where, rest)
