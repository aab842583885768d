"""A local server for the part of the Hugging Face hub's HTTP API that huggingface_hub needs.

It creates repositories, takes uploads of folders and serves snapshots. Repositories live in memory.
`HF_ENDPOINT` points a client here; with `HF_HUB_DISABLE_XET=1` it uses plain HTTP for large files.
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
    """What the server holds, and the requests that it got."""

    def __init__(self, token: str):
        self.token = token
        self.url = ""
        # "owner/name" or "datasets/owner/name" -> {file: content}
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()  # repositories that need a token
        self.withheld: dict[str, str] = {}  # repository -> why a token gets none of its files
        self.objects: dict[str, bytes] = {}  # uploaded large files by SHA-256
        self.breaks: dict[str, int] = {}  # file -> how many of its downloads break off halfway
        self.downloads: list[tuple[str, str | None]] = []  # (file, Range header)
        self.refused: list[str] = []  # paths of requests with a wrong token

    def commit(self, repository: str) -> str:
        """The commit id of a repository: a hash of its content."""
        content = b"".join(
            name.encode() + hashlib.sha1(data).digest()
            for name, data in sorted(self.repositories[repository].items())
        )
        return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(token: str = "hf_of_the_test"):
    """Run a server with an empty hub in a thread."""
    hub = Hub(token)
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
    """Answers the requests of huggingface_hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_POST(self):  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.has_token():
            self.hub.refused.append(path)
            message = "Invalid credentials in Authorization header"
            return self.send_json(401, {"error": message}, {"X-Error-Message": message})
        if path == "/api/validate-yaml":
            return self.send_json(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create_repository(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.send_upload_actions(json.loads(body)["objects"])
        match = re.fullmatch(r"/api/(?:models/)?(.+?)/(preupload|commit)/main", path)
        repository, action = match.groups()
        if action == "preupload":
            return self.send_upload_modes(json.loads(body)["files"])
        self.add_commit(repository, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self):  # noqa: N802
        content = self.rfile.read(int(self.headers["Content-Length"]))
        sha256 = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == sha256
        self.hub.objects[sha256] = content
        self.send_json(200)

    def do_GET(self):  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        file = None
        match = re.fullmatch(
            r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path
        )
        if match:
            repository, kind, revision = match.groups()
        else:
            match = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if not match:  # an address of the hub that has nothing to do with a repository
                return self.send_error_code(404, "EntryNotFound")
            repository, revision, file = match.groups()
            kind = "file"
        if repository not in self.hub.repositories:
            return self.send_error_code(401, "RepoNotFound")
        if repository in self.hub.gated and not self.has_token():
            return self.send_error_code(401, "GatedRepo")
        commit = self.hub.commit(repository)
        files = self.hub.repositories[repository]
        if revision not in (None, "main", commit):
            return self.send_error_code(404, "RevisionNotFound")
        if kind == "tree":
            return self.send_tree(files)
        if kind != "file":
            return self.send_repository(repository, commit, files)
        if repository in self.hub.withheld:
            return self.send_json(403, {}, {"X-Error-Message": self.hub.withheld[repository]})
        if file not in files:
            return self.send_error_code(404, "EntryNotFound", {"X-Repo-Commit": commit})
        self.send_file(file, files[file], commit)

    do_HEAD = do_GET  # noqa: N815

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def send_json(self, status: int, value=None, headers: dict | None = None) -> None:
        self.send_content(status, json.dumps(value).encode(), headers or {})

    def send_error_code(self, status: int, code: str, headers: dict | None = None) -> None:
        """Send one of the hub's error codes, which huggingface_hub turns into exceptions."""
        self.send_json(status, {"error": code}, {"X-Error-Code": code, **(headers or {})})

    def send_content(self, status: int, content: bytes, headers: dict) -> None:
        self.send_headers(status, {"Content-Length": len(content), **headers})
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_headers(self, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def create_repository(self, request: dict) -> None:
        name = f"{request['organization']}/{request['name']}"
        if request["type"] == "dataset":
            name = f"datasets/{name}"
        status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, {})
        self.send_json(status, {"url": f"{self.hub.url}/{name}", "error": "exists"})

    def send_upload_actions(self, objects: list[dict]) -> None:
        """Tell where to upload large files; those that are here already need no upload."""
        answers = []
        for entry in objects:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.objects:
                url = f"{self.hub.url}/lfs/{entry['oid']}"
                answer["actions"] = {"upload": {"href": url}}
            answers.append(answer)
        self.send_json(200, {"transfer": "basic", "objects": answers})

    def send_upload_modes(self, files: list[dict]) -> None:
        """Tell which files are large: all but JSON and Markdown."""
        answers = []
        for entry in files:
            is_text = entry["path"].endswith((".json", ".md"))
            mode = "regular" if is_text else "lfs"
            answers.append({"path": entry["path"], "shouldIgnore": False, "uploadMode": mode})
        self.send_json(200, {"files": answers})

    def add_commit(self, repository: str, operations: list[dict]) -> None:
        files = self.hub.repositories[repository]
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repository)
        url = f"{self.hub.url}/{repository}/commit/{commit}"
        self.send_json(200, {"commitUrl": url, "commitOid": commit})

    def send_tree(self, files: dict[str, bytes]) -> None:
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        self.send_json(200, tree)

    def send_repository(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        about = {
            "id": repository.removeprefix("datasets/"),
            "sha": commit,
            "private": False,
            "gated": False,
            "tags": [],
            "siblings": [{"rfilename": name} for name in files],
            "cardData": {"license": "cc-by-4.0"},
        }
        self.send_json(200, about)

    def send_file(self, file: str, content: bytes, commit: str) -> None:
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if self.command == "HEAD":
            return self.send_content(200, content, headers)
        byte_range = self.headers.get("Range")
        self.hub.downloads.append((file, byte_range))
        start = int(re.fullmatch(r"bytes=(\d+)-", byte_range)[1]) if byte_range else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = 206 if start else 200
        rest = content[start:]
        if self.hub.breaks.get(file, 0) == 0:
            return self.send_content(status, rest, headers)
        self.hub.breaks[file] -= 1
        self.send_headers(status, {"Content-Length": len(rest), **headers})
        self.wfile.write(rest[: len(rest) // 2])
        self.close_connection = True
