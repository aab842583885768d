"""Sharing a run over SSH, S3 and a folder: after push, clone and pull, `dvc repro` runs nothing.

The repository is a small one of the pipeline's shape: outputs of the same names (a data set,
checkpoints, a metric in git), filled with random bytes, so that a push takes seconds.
"""

import getpass
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import yaml
from conftest import shell, wait_until

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
STAGE = """
import random, sys
from pathlib import Path
folder, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
for i in range(count):
    (folder / f"{i:05d}.bin").write_bytes(random.Random(f"{folder}{i}").randbytes(size))
"""
PIPELINE = {
    "stages": {
        "finetune_sd": {
            "cmd": "python stage.py models/diffusion 4 2000000",
            "deps": ["stage.py"],
            "outs": ["models/diffusion"],
        },
        "generate": {
            "cmd": "python stage.py data/synthetic 30 20000",
            "deps": ["models/diffusion"],
            "outs": ["data/synthetic"],
        },
        "fid": {
            "cmd": "python stage.py metrics 1 40",
            "deps": ["data/synthetic"],
            "outs": [{"metrics": {"cache": False}}],
        },
    }
}
OBJECTS = 4 + 30 + 2  # the files, and a list for each of the two folders


def objects(store: Path) -> list[Path]:
    """The complete objects, named by the rest of their MD5; an interrupted push may leave parts."""
    return [
        path
        for path in store.rglob("*")
        if path.is_file() and len(path.name.removesuffix(".dir")) == 30
    ]


def corrupt_file(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"broken" + path.read_bytes()[6:])


# `dvc push`, killed when it opens the twelfth file to send.
INTERRUPTED_PUSH = """
import os, signal, sys
opened = set()
def watch(event, args):
    path = str(args[0]) if event == "open" else ""
    if "/cache/files/md5/" in path and not path.endswith(".dir"):
        opened.add(path)
        if len(opened) == 12:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from dvc.cli import main
main(["push", "-j", "1"])
"""


def accepts_connections(port: int) -> bool:
    """Whether a server of this machine listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def ssh(tmp_path):
    """An OpenSSH server on loopback that accepts one key, made here."""
    if SSHD is None:
        pytest.skip("no sshd here: apt-get install openssh-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path / "sshd"
    store = tmp_path / "store"
    home.mkdir()
    for key in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / key], check=True
        )
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": home / "host",
        "PidFile": home / "pid",
        "StrictModes": "no",
        "AuthorizedKeysFile": home / "user.pub",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (home / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", home / "config"], stderr=open(home / "log", "w")
    )
    try:
        wait_until(lambda: server.poll() is not None or accepts_connections(port))
        assert server.poll() is None, (home / "log").read_text()
        yield SimpleNamespace(
            url=f"ssh://{getpass.getuser()}@127.0.0.1:{port}{store}",
            options={"keyfile": str(home / "user")},
            environment={},
            objects=lambda: objects(store),
            corrupt=corrupt_file,
            delete=Path.unlink,
        )
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def s3():
    """A bucket of a server on loopback that speaks S3's protocol."""
    import boto3
    from moto.backends import get_backend
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        requests.post(f"{endpoint}/moto-api/reset", timeout=10)  # its store outlives the server
        keys = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket="bucket")

        def corrupt(key: str) -> None:
            body = client.get_object(Bucket="bucket", Key=key)["Body"].read()
            client.put_object(Bucket="bucket", Key=key, Body=b"broken" + body[6:])

        stored = get_backend("s3")["123456789012"]["aws"].buckets["bucket"].keys
        # DVC remembers by the name what a remote holds, so each server needs another name.
        yield SimpleNamespace(
            url=f"s3://bucket/{secrets.token_hex(4)}",
            options={"endpointurl": endpoint},
            environment=keys,
            corrupt=corrupt,
            delete=lambda key: client.delete_object(Bucket="bucket", Key=key),
            objects=lambda: list(stored),
        )
    finally:
        server.stop()


@pytest.fixture
def folder(tmp_path):
    store = tmp_path / "store"
    return SimpleNamespace(
        url=str(store),
        options={},
        environment={},
        objects=lambda: objects(store),
        corrupt=corrupt_file,
        delete=Path.unlink,
    )


@pytest.fixture(params=["ssh", "s3", "folder"])
def remote(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment) -> Path:
    """The small repository after its run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        done = shell(*command, cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def share(tmp_path, finished, remote, environment):
    """The finished run, with the remote set up as in docs/experiments.md.

    `clone()` makes another checkout of it, with a separate cache.
    """
    origin = shutil.copytree(finished, tmp_path / "origin")
    env = {**environment, **remote.environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def run(*command: str, cwd: Path, fails: bool = False):
        done = shell(*command, cwd=cwd, env=env)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def clone(name: str) -> Path:
        run("git", "clone", "-q", str(origin), name, cwd=tmp_path)
        # What only this machine has (a key file, a local server) is not in the repository.
        for option, value in remote.options.items():
            run("dvc", "remote", "modify", "--local", "store", option, value, cwd=tmp_path / name)
        return tmp_path / name

    for command in (
        ["dvc", "remote", "add", "-d", "store", remote.url],
        ["dvc", "remote", "modify", "store", "verify", "true"],
        *(
            ["dvc", "remote", "modify", "--local", "store", *pair]
            for pair in remote.options.items()
        ),
        ["git", "add", "-A"],
        ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "run"],
    ):
        run(*command, cwd=origin)
    return SimpleNamespace(origin=origin, clone=clone, run=run, env=env)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".bin"
    }


def test_a_clone_needs_only_what_was_pushed(share, remote):
    share.run("dvc", "push", cwd=share.origin)
    assert len(remote.objects()) == OBJECTS

    whole = share.clone("whole")
    share.run("dvc", "pull", cwd=whole)
    assert content(whole / "models/diffusion") == content(share.origin / "models/diffusion")
    assert "Running stage" not in share.run("dvc", "repro", cwd=whole)
    assert share.run("git", "status", "--porcelain", cwd=whole) == ""

    data = share.clone("data")
    share.run("dvc", "pull", "data/synthetic", cwd=data)
    assert (
        content(data / "data/synthetic") == content(share.origin / "data/synthetic")
        and not (data / "models/diffusion").exists()
    )


def test_the_next_push_completes_an_interrupted_one(share, remote):
    push = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_PUSH],
        cwd=share.origin,
        env={**os.environ, **share.env},
        capture_output=True,
    )
    assert push.returncode == -signal.SIGKILL
    assert 0 < len(remote.objects()) < OBJECTS, "the push was to be interrupted in the middle"

    # The check of a pull request sees that it is incomplete; the next push completes it.
    status = ("dvc", "data", "status", "--not-in-remote", "--json")
    assert json.loads(share.run(*status, cwd=share.origin)).get("not_in_remote")
    share.run("dvc", "push", cwd=share.origin)
    assert len(remote.objects()) == OBJECTS
    assert not json.loads(share.run(*status, cwd=share.origin)).get("not_in_remote")
    clone = share.clone("clone")
    share.run("dvc", "pull", cwd=clone)
    assert content(clone / "data/synthetic") == content(share.origin / "data/synthetic")


def test_a_corrupted_object_is_noticed_and_not_used(share, remote):
    share.run("dvc", "push", cwd=share.origin)
    good = content(share.origin / "data/synthetic")
    corrupted = random.Random(0).choice(sorted(good))
    listing = ("dvc", "ls", "--json", "--show-hash", ".", "data/synthetic")
    entries = json.loads(share.run(*listing, cwd=share.origin))
    md5 = next(entry["md5"] for entry in entries if entry["path"] == corrupted)
    name = f"{md5[:2]}/{md5[2:]}"
    remote.corrupt(next(stored for stored in remote.objects() if str(stored).endswith(name)))

    clone = share.clone("clone")
    output = share.run("dvc", "pull", cwd=clone, fails=True)
    assert "data/synthetic" in output
    assert not (clone / "data/synthetic").exists()
    assert content(clone / "models/diffusion") == content(share.origin / "models/diffusion")

    # The repair of docs/experiments.md.
    lock = yaml.safe_load((share.origin / "dvc.lock").read_text())
    listed = lock["stages"]["generate"]["outs"][0]["md5"]
    for key in (name, f"{listed[:2]}/{listed[2:]}"):
        remote.delete(next(stored for stored in remote.objects() if str(stored).endswith(key)))
    share.run("dvc", "push", cwd=share.origin)
    share.run("dvc", "pull", cwd=clone)
    assert content(clone / "data/synthetic") == good
