"""Download papers from arXiv, politely: one at a time, with a pause and a name, and no byte twice.

Where the list that ships (stages/embedded/ml4rs.csv) has its pairs of id and title from says its column `seen_in`: each
stands, title before id, in that text.
"""

import csv
import io
import os
import re
import shutil
import time
import unicodedata
from pathlib import Path

import requests
from filelock import FileLock
from requests.adapters import HTTPAdapter, Retry

from stages.common.artifacts import write_atomically
from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log, progress_bar
from stages.text import pdf

# arXiv asks for one connection and three seconds between requests (https://info.arxiv.org/help/api/tou.html).
PAUSE = 3.0
CONNECT, SILENCE, WHOLE = 10, 60, 600  # seconds: to connect, between two blocks, for one paper
MEGABYTES, ATTEMPTS, PATIENCE = 50, 4, 300  # PATIENCE: seconds of a Retry-After that are waited for
BLOCK = 1 << 14  # bytes; what is lost of a download that breaks off is less
UNREACHABLE = 3  # papers in a row without any answer, after which the rest is not tried
AGENT = "remote-diffusion/0.1 (research pipeline; one request at a time)"
GRAM, TITLE = (
    8,
    0.7,
)  # share of the runs of 8 letters of a title that the first page must hold, in one place


def download(list_csv: Path, out: Path) -> tuple[list[Path], dict[str, str]]:
    """Fetch every paper of a CSV with columns id, title. Returns the files and {id: why it is not among them}.

    Finished and half-finished downloads stay in the scratch folder, so that a run that was killed or asked for more papers
    fetches only what is missing. `out/arxiv.csv` is the table of what came and what didn't.
    `$REMOTE_DIFFUSION_ARXIV` stands in for https://arxiv.org (a mirror or a test).
    """
    try:
        with open(list_csv, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as fault:
        exit_with_error(f"{list_csv}: not a CSV in UTF-8 ({fault})")
    if not rows or not {"id", "title"} <= set(rows[0]):
        exit_with_error(f"{list_csv}: expected the columns id, title and a row per paper")
    if odd := [
        row
        for row in rows
        if not row["title"] or not re.fullmatch(r"[\w./-]{1,100}", row["id"] or "")
    ]:
        exit_with_error(
            f"{list_csv}: {str(odd[0]['id'])[:40]!a}, {str(odd[0]['title'])[:40]!a} are no id and title of a paper"
        )
    base = os.environ.get("REMOTE_DIFFUSION_ARXIV", "https://arxiv.org").rstrip("/")
    pause = PAUSE if base.startswith("https://") else 0.0
    http = requests.Session()  # proxies as the environment says
    http.headers["User-Agent"] = AGENT
    wait = Retry(
        total=None,
        connect=1,
        read=0,
        other=0,
        status=ATTEMPTS - 1,
        backoff_factor=pause,
        raise_on_status=False,
        status_forcelist=(429, 500, 502, 503, 504),
        retry_after_max=PATIENCE,
    )
    for scheme in ("http://", "https://"):
        http.mount(scheme, HTTPAdapter(max_retries=wait))
    store = resume_cache.cache_root() / "arxiv"
    store.mkdir(parents=True, exist_ok=True)

    files, failed, silent, asked = [], {}, 0, False
    with FileLock(store / "lock"):
        for row in progress_bar(rows, what="arxiv", unit="paper"):
            name = f"{row['id'].replace('/', '_')}.pdf"
            kept, reason = store / name, ""
            if not kept.exists():
                if silent == UNREACHABLE:
                    failed[row["id"]] = (
                        f"not tried: {base} gave no answer {UNREACHABLE} times in a row"
                    )
                    continue
                time.sleep(pause if asked else 0)
                asked = True
                reason, answered = _fetch(http, f"{base}/pdf/{row['id']}", kept, pause)
                silent = 0 if answered else silent + 1
            reason = reason or _mismatch(kept, row["title"])
            if reason:
                failed[row["id"]] = reason
                kept.unlink(missing_ok=True)
            else:
                files.append(Path(shutil.copyfile(kept, out / name)))

    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [
            ("id", "title", "got", "reason"),
            *(
                (
                    row["id"],
                    row["title"],
                    "no" if row["id"] in failed else "yes",
                    failed.get(row["id"], ""),
                )
                for row in rows
            ),
        ]
    )
    write_atomically(out / "arxiv.csv", table.getvalue().encode())
    for name, reason in failed.items():
        log(f"arxiv: {name} not got: {reason}")
    log(f"arxiv: {len(files)} of {len(rows)} papers got, {len(failed)} not (arxiv.csv)")
    return files, failed


def _fetch(http: requests.Session, url: str, target: Path, pause: float) -> tuple[str, bool]:
    """Bring one file, going on where an earlier try broke off. Returns ("" or why not, whether anybody answered)."""
    part, answered, reason, end = target.with_suffix(".part"), False, "", time.monotonic() + WHOLE
    for attempt in range(ATTEMPTS):
        time.sleep(pause * 2**attempt if attempt else 0)
        have = part.stat().st_size if part.exists() else 0
        try:
            with http.get(
                url,
                headers={"Range": f"bytes={have}-"} if have else {},
                stream=True,
                timeout=(CONNECT, SILENCE),
            ) as answer:
                answered, more = True, answer.status_code == 206
                if (
                    answer.status_code == 416
                    or more
                    and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
                ):
                    part.unlink(
                        missing_ok=True
                    )  # what is there does not fit what the server has: from the start
                    reason = "the server cannot go on where the download broke off"
                    continue
                if answer.status_code not in (200, 206):
                    return f"HTTP {answer.status_code}", True
                with open(part, "ab" if more else "wb") as file:
                    for block in answer.iter_content(BLOCK):
                        file.write(block)
                        if file.tell() > MEGABYTES << 20:
                            part.unlink()
                            return f"larger than {MEGABYTES} MB", True
                        if time.monotonic() > end:
                            return f"not done after {WHOLE} s", True
        except requests.RequestException as fault:
            reason = f"{type(fault).__name__}: {fault}"[:300]
            if not answered:
                break  # nobody there, and `Retry` tried twice
        else:
            part.replace(target)
            return "", True
    return reason, answered


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text).lower())


def carries(page: str, title: str) -> float:
    """How much of a title stands in one piece on a page: 1 where word for word, whatever the blanks, hyphens and capitals."""
    page, title = _letters(page), _letters(title)
    grams = {title[at : at + GRAM] for at in range(max(1, len(title) - GRAM + 1))}
    found = [
        (match.start(), gram)
        for gram in grams
        for match in re.finditer(f"(?={re.escape(gram)})", page)
    ]
    near = [
        len({gram for at, gram in found if start <= at <= start + 1.2 * len(title)})
        for start, _ in found
    ]
    return max(near, default=0) / len(grams)


def _mismatch(path: Path, title: str) -> str:
    """Why a file is not the paper of that title; "" if it is a PDF whose first page carries the title."""
    worker = pdf.Worker(pdf.SECONDS, pdf.MEGABYTES, pages=1)
    try:
        answer = worker.read(path)
    finally:
        worker.close()
    if "reason" in answer:
        return answer["reason"]
    return (
        ""
        if carries(answer["pages"][0], title) >= TITLE
        else f"mismatch: the first page does not carry the title ({title})"
    )
