"""The arXiv list, and its downloader over real HTTP against a server that fails in many ways."""

import csv
import importlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_text_papers import WORDS, make_pdf

from stages.text import arxiv

TITLE = "Rows of Trees: Orchards Found in Aerial Imagery"
ROOT = Path(__file__).parents[1]


def test_shipped_list_has_ids_titles_and_sources():
    with open(ROOT / "stages/embedded/ml4rs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 50
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["title"].lower() for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", row["id"])
        assert len(row["title"]) > 15 and row["seen_in"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """run(**answers), the requests so far as (id, n, time, headers), a PDF's bytes, the folder.

    `answers[id]` is called with the handler of a request for /pdf/<id> and its number n (from 0).
    `run` downloads all of them: -> names of the files, {id: reason}, the rows of arxiv.csv by id.
    """
    paper = make_pdf(tmp_path / "paper.pdf", [f"{TITLE}\n{' '.join(WORDS * 5)}"]).read_bytes()
    answers = {}
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            name = self.path.rsplit("/", 1)[1]
            number = sum(1 for request in requests if request[0] == name)
            requests.append((name, number, time.monotonic(), dict(self.headers)))
            answers[name](self, number)

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
    monkeypatch.setattr(arxiv, "READ_TIMEOUT", 0.5)
    monkeypatch.setattr(arxiv, "BLOCK_BYTES", 100)
    (tmp_path / "out").mkdir()

    def run(**new_answers):
        requests.clear()
        answers.clear()
        answers.update(new_answers)
        text = "id,title\n" + "".join(f'{name},"{TITLE}"\n' for name in answers)
        (tmp_path / "list.csv").write_text(text)
        files, failed, _ = arxiv.download(tmp_path / "list.csv", tmp_path / "out")
        table = {row["id"]: row for row in csv.DictReader((tmp_path / "out/arxiv.csv").open())}
        return {file.stem for file in files}, failed, table

    yield run, requests, paper, tmp_path
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


def test_ids_are_read_as_arxiv_writes_them(server):
    run, requests, _, folder = server
    run(**{"2405.04717": lambda h, n: h.give()})
    names = ["arXiv:2405.04717", "2405.04717 ", "https://arxiv.org/abs/2405.04717/"]
    names += ["http://arxiv.org/pdf/2405.04717.pdf", "arxiv.org/html/2405.04717"]
    rows = [f'{name}, "{TITLE}",\n' for name in names]
    (folder / "list.csv").write_text("".join(["ID, Title\n", *rows, ",\n,,,\n"]))
    files, failed, _ = arxiv.download(folder / "list.csv", folder / "out")
    assert [file.name for file in files] == ["2405.04717.pdf"] and not failed
    assert len(requests) == 1


def test_every_kind_of_answer(server):
    run, requests, paper, folder = server
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
    assert set(failed) == {"missing", "dead", "html", "wrong"}
    assert "404" in failed["missing"] and "503" in failed["dead"]
    assert "PDF" in failed["html"] and TITLE in failed["wrong"]
    assert {name for name, row in table.items() if row["got"] == "yes"} == got
    assert {name: row["reason"] for name, row in table.items() if row["reason"]} == failed
    assert all((folder / "out" / f"{name}.pdf").read_bytes() == paper for name in got)

    times = {(name, number): when for name, number, when, _ in requests}
    assert times["busy", 1] - times["busy", 0] >= 1  # the seconds of Retry-After
    assert all(headers["User-Agent"] == arxiv.USER_AGENT for *_, headers in requests)
    ranges = [headers.get("Range") for name, *_, headers in requests if name == "cut"]
    assert ranges == [None, "bytes=700-"]
    assert sum(name == "missing" for name, *_ in requests) == 1
    assert sum(name == "dead" for name, *_ in requests) == arxiv.ATTEMPTS


def test_finished_papers_are_kept_and_a_partial_one_resumes(server):
    run, requests, paper, folder = server
    run(one=lambda h, n: h.give())
    (folder / "scratch/arxiv/two.part").write_bytes(paper[:500])  # left by a kill
    rest = truncate_then_resume(paper)
    got, failed, _ = run(
        one=lambda h, n: h.give(500, b""),
        two=lambda h, n: rest(h, 1),
        three=lambda h, n: h.give(416, b""),
    )
    ranges = [(name, headers.get("Range")) for name, *_, headers in requests]
    assert ranges == [("two", "bytes=500-"), *[("three", None)] * arxiv.ATTEMPTS]
    assert got == {"one", "two"} and set(failed) == {"three"}


def test_too_large_paper_and_unreachable_server(server, monkeypatch):
    run, requests, paper, folder = server
    monkeypatch.setattr(arxiv, "MAX_MEGABYTES", 0)
    _, failed, _ = run(large=lambda h, n: h.give())
    assert "0 MB" in failed["large"]
    monkeypatch.setenv("REMOTE_DIFFUSION_ARXIV", "http://127.0.0.1:9")
    _, failed, _ = run(**{f"paper{n}": None for n in range(5)})
    assert len(failed) == 5 and "http://127.0.0.1:9" in failed["paper4"]
    refused = [name for name, reason in failed.items() if "refused" in reason.lower()]
    assert refused == ["paper0", "paper1", "paper2"]  # the other two were not tried


def test_server_that_blocks_a_client_is_an_outage_and_is_left_in_peace(server):
    run, requests, paper, folder = server
    answers = {f"paper{n}": lambda h, n: h.give(403, b"denied") for n in range(5)}
    got, failed, _ = run(good=lambda h, n: h.give(), **answers)
    assert got == {"good"} and len(failed) == 5
    assert [name for name, *_ in requests] == ["good", "paper0", "paper1", "paper2"]
    *_, unanswered = arxiv.download(folder / "list.csv", folder / "out")
    assert unanswered == list(answers)


def test_paper_that_is_listed_twice_counts_once(server, capsys):
    run, requests, paper, folder = server
    run(one=lambda h, n: h.give(), two=lambda h, n: h.give())
    with open(folder / "list.csv", "a") as file:
        file.write(f'one,"{TITLE}"\n')
    files, *_ = arxiv.download(folder / "list.csv", folder / "out")
    assert [file.stem for file in files] == ["one", "two"]
    assert "2 of 2 papers downloaded" in capsys.readouterr().err.splitlines()[-1]


def write_params() -> None:
    """Write params.yaml with the papers of list.csv."""
    text = (
        (ROOT / "params/demo.yaml")
        .read_text()
        .replace("  source: embedded             # the field notes", "  source: arxiv:list.csv # ")
    )
    Path("params.yaml").write_text(text)


def test_stage_fails_after_an_outage_and_the_next_run_continues(server, monkeypatch):
    run, requests, paper, folder = server
    monkeypatch.chdir(folder)
    write_params()
    stage = importlib.import_module("stages.fetch_papers")
    outage = {
        "one": lambda h, n: h.give(),
        "gone": lambda h, n: h.give(404, b""),
        "down": lambda h, n: h.give(503, b"down"),
        "short": lambda h, n: h.give(body=paper[:700], length=len(paper)),
    }
    run(**outage)
    error = (
        "^error: fetch_papers.source: arxiv:list.csv: 2 papers got no answer .*down: .*503.*repro"
    )
    with pytest.raises(SystemExit, match=error):
        stage.main()
    assert not Path("data/papers").exists()
    run(**outage | {"down": outage["one"], "short": outage["one"]})
    stage.main()
    assert {path.stem for path in Path("data/papers").glob("*.pdf")} == {"one", "down", "short"}
    assert not any(name == "one" for name, *_ in requests)


def test_stage_fails_without_any_paper(server, monkeypatch):
    run, requests, paper, folder = server
    run(gone=lambda h, n: h.give(404, b""))
    monkeypatch.chdir(folder)
    write_params()
    error = "^error: fetch_papers.source: arxiv:list.csv: .*gone.*404"
    with pytest.raises(SystemExit, match=error):
        importlib.import_module("stages.fetch_papers").main()
