"""The arXiv list and its downloader, over real HTTP against a server that misbehaves in every way arXiv's could."""

import csv
import importlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_text_papers import WORDS, make_pdf

from stages.text import arxiv

TITLE = "Rows of Trees: Orchards Found in Aerial Imagery"
ROOT = Path(__file__).parents[1]


def test_the_list_that_ships():
    with open(ROOT / "stages/embedded/ml4rs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 50 and len({row["id"] for row in rows}) == len(
        {row["title"].lower() for row in rows}
    ) == len(rows)
    assert all(
        arxiv.re.fullmatch(r"\d{4}\.\d{4,5}", row["id"])
        and len(row["title"]) > 15
        and row["seen_in"]
        for row in rows
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of /pdf/<id>; `behave[id]` answers the n-th request (from 0). Records (id, n, time, headers)."""
    paper = make_pdf(tmp_path / "paper.pdf", [f"{TITLE}\n{' '.join(WORDS * 5)}"]).read_bytes()
    behave, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            name = self.path.rsplit("/", 1)[1]
            number = sum(1 for entry in asked if entry[0] == name)
            asked.append((name, number, time.monotonic(), dict(self.headers)))
            behave[name](self, number)

        def give(self, status=200, body=paper, length=None, **headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            if length:
                self.close_connection = True

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("REMOTE_DIFFUSION_ARXIV", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(arxiv, "SILENCE", 0.5)
    monkeypatch.setattr(arxiv, "BLOCK", 100)
    (tmp_path / "out").mkdir()

    def run(**behavior):
        behave.clear(), asked.clear()
        behave.update(behavior)
        text = "id,title\n" + "".join(f'{name},"{TITLE}"\n' for name in behave)
        (tmp_path / "list.csv").write_text(text)
        files, failed = arxiv.download(tmp_path / "list.csv", tmp_path / "out")
        table = {row["id"]: row for row in csv.DictReader((tmp_path / "out/arxiv.csv").open())}
        return {file.stem for file in files}, failed, table

    yield run, asked, paper, tmp_path
    httpd.shutdown()
    httpd.server_close()


def truncate_then_resume(paper):
    def answer(handler, number):
        if number == 0:
            handler.give(body=paper[:700], length=len(paper))
        else:
            start = int(handler.headers["Range"].removeprefix("bytes=").rstrip("-"))
            handler.give(
                206, paper[start:], Content_Range=f"bytes {start}-{len(paper) - 1}/{len(paper)}"
            )

    return answer


def stall_then_give(handler, number):
    if number:
        return handler.give()
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    time.sleep(1.5)
    handler.close_connection = True


def test_every_kind_of_answer(server):
    run, asked, paper, folder = server
    other = make_pdf(
        folder / "other.pdf", ["A Survey of Something Else\n" + " ".join(WORDS * 5)]
    ).read_bytes()
    got, failed, table = run(
        good=lambda h, n: h.give(),
        missing=lambda h, n: h.give(404, b"gone"),
        busy=lambda h, n: h.give(429, b"slow down", Retry_After="1") if n == 0 else h.give(),
        down=lambda h, n: h.give(503, b"down") if n < 2 else h.give(),
        dead=lambda h, n: h.give(503, b"down"),
        stalls=stall_then_give,
        cut=truncate_then_resume(paper),
        moved=lambda h, n: h.give(302, b"", Location="/pdf/movedhere"),
        html=lambda h, n: h.give(
            body=b"<html><body>are you a robot?</body></html>" * 40, Content_Type="application/pdf"
        ),
        wrong=lambda h, n: h.give(body=other),
        movedhere=lambda h, n: h.give(),
    )
    assert got == {"good", "busy", "down", "stalls", "cut", "moved", "movedhere"}
    assert (
        failed["missing"] == "HTTP 404"
        and failed["dead"] == "HTTP 503"
        and failed["html"] == "not a PDF"
    )
    assert failed["wrong"].startswith("mismatch: the first page does not carry the title")
    assert set(failed) == {"missing", "dead", "html", "wrong"}
    assert {name for name, row in table.items() if row["got"] == "yes"} == got and table["dead"][
        "reason"
    ] == "HTTP 503"
    assert all((folder / "out" / f"{name}.pdf").read_bytes() == paper for name in got)

    times = {(name, number): at for name, number, at, _ in asked}
    assert times["busy", 1] - times["busy", 0] >= 1  # as Retry-After says
    assert all(headers["User-Agent"] == arxiv.AGENT for *_, headers in asked)
    assert [headers.get("Range") for name, *_, headers in asked if name == "cut"] == [
        None,
        "bytes=700-",
    ]
    assert (
        sum(name == "missing" for name, *_ in asked) == 1
        and sum(name == "dead" for name, *_ in asked) == arxiv.ATTEMPTS
    )


def test_what_is_there_is_kept_and_a_half_goes_on(server):
    run, asked, paper, folder = server
    run(one=lambda h, n: h.give())
    (folder / "scratch/arxiv/two.part").write_bytes(paper[:500])  # left by a kill
    rest = truncate_then_resume(paper)
    got, failed, _ = run(
        one=lambda h, n: h.give(500, b""),
        two=lambda h, n: rest(h, 1),
        three=lambda h, n: h.give(416, b""),
    )
    assert [(name, headers.get("Range")) for name, *_, headers in asked if name != "three"] == [
        ("two", "bytes=500-")
    ]
    assert got == {"one", "two"} and "cannot go on" in failed["three"]


def test_too_large_and_nobody_there(server, monkeypatch):
    run, asked, paper, folder = server
    monkeypatch.setattr(arxiv, "MEGABYTES", 0)
    assert run(large=lambda h, n: h.give())[1] == {"large": "larger than 0 MB"}
    monkeypatch.setenv("REMOTE_DIFFUSION_ARXIV", "http://127.0.0.1:9")
    _, failed, _ = run(**{f"paper{n}": None for n in range(5)})
    assert len(failed) == 5 and failed["paper4"].startswith(
        "not tried: http://127.0.0.1:9 gave no answer 3 times"
    )
    assert "refused" in failed["paper0"].lower()


def test_no_paper_at_all_ends_the_stage_in_one_line(server, monkeypatch):
    run, asked, paper, folder = server
    run(gone=lambda h, n: h.give(404, b""))
    monkeypatch.chdir(folder)
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("  source: embedded             # the field notes", "  source: arxiv:list.csv # ")
    )
    Path("params.yaml").write_text(text)
    with pytest.raises(
        SystemExit, match="^error: fetch_papers.source: arxiv:list.csv: none of 1 papers"
    ):
        importlib.import_module("stages.fetch_papers").main()
