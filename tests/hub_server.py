"""As much of the Hugging Face hub's HTTP API as huggingface_hub needs to create a repository, upload a folder and download a snapshot.

Repositories live in memory. `HF_ENDPOINT` points a client here; `HF_HUB_DISABLE_XET=1` makes it use plain HTTP for large files.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """What the server holds and what it saw. `cut`: file -> how many times its download breaks off in the middle."""

    def __init__(self, token: str):
        self.token, self.gated = token, set()
        self.repositories: dict[
            str, dict[str, bytes]
        ] = {}  # "datasets/owner/name" or "owner/name" -> {file: content}
        self.objects: dict[str, bytes] = {}  # uploaded large files by SHA-256
        self.cut: dict[str, int] = {}
        self.served: list[tuple[str, str | None]] = []  # (file, Range) of each download
        self.refused: list[str] = []  # paths that were asked for with a bad token
        self.url = ""

    def commit(self, repository: str) -> str:
        """The id of what a repository holds now."""
        content = b"".join(
            name.encode() + hashlib.sha1(data).digest()
            for name, data in sorted(self.repositories[repository].items())
        )
        return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(token: str = "hf_of_the_test"):
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(
        self, status: int, value=None, headers: dict | None = None, content: bytes | None = None
    ) -> None:
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def do_POST(self):  # noqa: N802
        path, body = (
            unquote(urlsplit(self.path).path),
            self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )
        if not self.known():
            self.hub.refused.append(path)
            return self.answer(
                401,
                {"error": "Invalid credentials in Authorization header"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{'datasets/' if asked['type'] == 'dataset' else ''}{asked['organization']}/{asked['name']}"
            status = 409 if name in self.hub.repositories else 200
            self.hub.repositories.setdefault(name, {})
            return self.answer(status, {"url": f"{self.hub.url}/{name}", "error": "exists"})
        if path.endswith(".git/info/lfs/objects/batch"):
            # An object that is here already gets no upload action.
            objects = [
                {"oid": entry["oid"], "size": entry["size"]}
                | (
                    {}
                    if entry["oid"] in self.hub.objects
                    else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}}
                )
                for entry in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        repository, action = re.fullmatch(
            r"/api/(?:models/)?(.+?)/(preupload|commit)/main", path
        ).groups()
        if action == "preupload":
            files = [
                {
                    "path": entry["path"],
                    "shouldIgnore": False,
                    "uploadMode": "regular" if entry["path"].endswith((".json", ".md")) else "lfs",
                }
                for entry in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        files = self.hub.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            match line["key"], line["value"]:
                case "file", value:
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile", value:
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile", value:
                    del files[value["path"]]
        sha = self.hub.commit(repository)
        self.answer(
            200, {"commitUrl": f"{self.hub.url}/{repository}/commit/{sha}", "commitOid": sha}
        )

    def do_PUT(self):  # noqa: N802
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.answer(200)

    def do_GET(self):  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(
            r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path
        ):
            repository, kind, revision = found.groups()
        else:
            repository, revision, file = re.fullmatch(
                r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path
            ).groups()
            kind = "file"
        if repository not in self.hub.repositories:
            return self.answer(
                401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"}
            )
        if repository in self.hub.gated and not self.known():
            return self.answer(401, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        sha, files = self.hub.commit(repository), self.hub.repositories[repository]
        if revision not in (None, "main", sha):
            return self.answer(
                404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
            )
        if kind == "tree":
            return self.answer(
                200,
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(data),
                        "oid": hashlib.sha1(data).hexdigest(),
                    }
                    for name, data in files.items()
                ],
            )
        if kind != "file":
            return self.answer(
                200,
                {
                    "id": repository.removeprefix("datasets/"),
                    "sha": sha,
                    "private": False,
                    "gated": False,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in files],
                    "cardData": {"license": "cc-by-4.0"},
                },
            )
        if file not in files:
            return self.answer(
                404,
                {"error": "no such file"},
                {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha},
            )
        self.send_file(file, files[file], sha)

    do_HEAD = do_GET  # noqa: N815

    def send_file(self, file: str, content: bytes, sha: str) -> None:
        about = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": sha,
            "Accept-Ranges": "bytes",
        }
        if self.command == "HEAD":
            return self.answer(200, headers=about, content=content)
        asked = self.headers.get("Range")
        self.hub.served.append((file, asked))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        if self.hub.cut.get(file, 0):
            self.hub.cut[file] -= 1
            self.send_response(206 if start else 200)
            for name, text in (about | {"Content-Length": len(rest)}).items():
                self.send_header(name, str(text))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, headers=about, content=rest)
