"""Download papers from arXiv, one at a time, at arXiv's rate and no byte twice.

The list that ships is stages/embedded/ml4rs.csv. Its column `seen_in` names a text that contains
the id and the title of the row.
"""

import csv
import os
import re
import shutil
import time
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import requests
from requests.adapters import HTTPAdapter, Retry

from stages.common.csv_files import write_csv
from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log, progress_bar
from stages.text import pdf

ARXIV = "https://arxiv.org"
USER_AGENT = "remote-diffusion/0.1 (research pipeline; one request at a time)"
# Seconds between requests; arXiv also asks for one connection at a time
# (https://info.arxiv.org/help/api/tou.html).
PAUSE = 3.0
CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 60  # seconds between two blocks
PAPER_TIMEOUT = 600  # seconds
MAX_RETRY_AFTER = 300  # seconds; a longer Retry-After is not waited for
MAX_MEGABYTES = 50  # per paper
ATTEMPTS = 4  # per paper
BLOCK_BYTES = 1 << 14  # a download that breaks off loses less than this
# The rest of the list is not tried after this number of papers in a row without an answer.
MAX_UNANSWERED = 3
BUSY = (429, 500, 502, 503, 504)  # HTTP states of a server that may answer later
BLOCKED = 403  # that of one that refuses a client for a while
# What stands around the id 2405.04717 where arXiv itself names a paper.
AROUND_ID = re.compile(
    r"^((https?://)?(www\.)?arxiv\.org/(abs|pdf|html)/|arxiv:\s*)|(\.pdf|/)$", re.I
)
NGRAM_LETTERS = 8
MIN_TITLE_OVERLAP = 0.7  # of a paper's title with its first page, see `title_overlap`


class Fetched(NamedTuple):
    """What came of a download."""

    reason: str  # why it failed; "" if it didn't
    answered: bool  # the server has answered, other than that it is busy or blocks us
    is_outage: bool  # no answer, one that broke off, or HTTP 403, 429 and server errors


def download(list_csv: Path, out: Path) -> tuple[list[Path], dict[str, str], list[str]]:
    """Download every paper of a CSV file with the columns id and title into the folder `out`.

    Finished and partial downloads stay in the resume cache. A run after a kill, or with a longer
    list, downloads only what is missing. `out/arxiv.csv` records of each paper whether it came and
    why not. `$REMOTE_DIFFUSION_ARXIV` replaces https://arxiv.org, by a mirror or a test's server.

    Returns:
        The PDFs, {id: reason} for the papers that are not among them, and the ids of those that
        another run may get: the server had no answer for them, or broke off.

    Raises:
        SystemExit: the list is not a CSV of ids and titles.
    """
    papers = _read_list(list_csv)
    base_url = os.environ.get("REMOTE_DIFFUSION_ARXIV", ARXIV).rstrip("/")
    cache = resume_cache.cache_root() / "arxiv"
    with resume_cache.lock_folder(cache, "arxiv"):  # one connection at a time
        files, failed, unanswered = _download_papers(papers, base_url, cache, out)
    _write_report(out / "arxiv.csv", papers, failed)
    for paper_id, reason in failed.items():
        log(f"arxiv: {paper_id} not downloaded: {reason}")
    log(f"arxiv: {len(files)} of {len(papers)} papers downloaded, {len(failed)} not (arxiv.csv)")
    return files, failed, unanswered


def _read_list(list_csv: Path) -> list[dict[str, str]]:
    """Return the rows of the list, one per id; exit where a row has no id or no title."""
    try:
        with open(list_csv, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            papers = [paper for paper in reader if any("".join(v or "") for v in paper.values())]
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        exit_with_error(f"{list_csv}: not a CSV file in UTF-8 ({error})")
    if not papers or not {"id", "title"} <= set(papers[0]):
        exit_with_error(f"{list_csv}: expected the columns id and title, and a row per paper")
    for paper in papers:
        paper["id"] = AROUND_ID.sub("", (paper["id"] or "").strip())
        if not paper["title"] or not re.fullmatch(r"[\w.-]{1,50}(/\w{1,50})?", paper["id"]):
            exit_with_error(
                f"{list_csv}: expected the id (2405.04717) and the title of a paper, not "
                f"{paper['id'][:40]!a} and {str(paper['title'])[:40]!a}"
            )
        if any(paper.get(None, [])):  # values beyond the columns
            exit_with_error(
                f"{list_csv}: {paper['id']}: put a title with a comma in quotation marks"
            )
    return list({paper["id"]: paper for paper in papers}.values())


def _download_papers(
    papers: list[dict[str, str]], base_url: str, cache: Path, out: Path
) -> tuple[list[Path], dict[str, str], list[str]]:
    """Fill the cache and copy its papers into `out`; return what `download` does."""
    pause = PAUSE if base_url.startswith("https://") else 0.0
    session = _make_session(pause)
    files = []
    failed = {}
    unanswered = []
    in_a_row = 0  # papers without any answer, or with one that the server is busy or blocks us
    is_first_request = True
    for paper in progress_bar(papers, desc="arxiv", unit="paper"):
        cached = cache / f"{paper['id'].replace('/', '_')}.pdf"
        reason = ""
        if not cached.exists():
            if in_a_row == MAX_UNANSWERED:
                failed[paper["id"]] = (
                    f"not tried: {base_url} did not answer, or blocked us, {MAX_UNANSWERED} times "
                    "in a row"
                )
                unanswered.append(paper["id"])
                continue
            time.sleep(0 if is_first_request else pause)
            is_first_request = False
            url = f"{base_url}/pdf/{paper['id']}"
            fetched = _fetch(session, url, cached, pause)
            reason = fetched.reason
            in_a_row = 0 if fetched.answered else in_a_row + 1
            if fetched.is_outage:
                unanswered.append(paper["id"])
        if not reason:
            reason = _rejection_reason(cached, paper["title"])
        if reason:
            failed[paper["id"]] = reason
            cached.unlink(missing_ok=True)
        else:
            files.append(Path(shutil.copyfile(cached, out / cached.name)))
    return files, failed, unanswered


def _make_session(pause: float) -> requests.Session:
    """Return a session that repeats a request after HTTP 429 and server errors.

    It waits for the time in Retry-After, else longer each time. Proxies come from the environment.
    """
    retry = Retry(
        total=None,
        connect=1,
        read=0,
        other=0,
        status=ATTEMPTS - 1,
        backoff_factor=pause,
        raise_on_status=False,
        status_forcelist=BUSY,
        retry_after_max=MAX_RETRY_AFTER,
    )
    session = requests.Session()
    session.headers["User-Agent"] = USER_AGENT
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _fetch(session: requests.Session, url: str, target: Path, pause: float) -> Fetched:
    """Download one file. Each attempt resumes where the one before it, or a killed run, stopped."""
    part = target.with_suffix(".part")
    deadline = time.monotonic() + PAPER_TIMEOUT
    answered = False
    is_outage = False
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(pause * 2**attempt if attempt else 0)
        try:
            response = _request(session, url, part)
            answered = True
            reason, retry = _save(response, part, deadline)
            is_outage = False
        except requests.RequestException as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            is_outage = True
            # Without an answer, and after HTTP 429 and the like, the session has tried again; a
            # server that blocks us is left in peace.
            answered = answered and not isinstance(error, requests.HTTPError)
            retry = answered and time.monotonic() < deadline
        if not retry:
            break
    if not reason:
        part.replace(target)
    return Fetched(reason, answered, is_outage)


def _request(session: requests.Session, url: str, part: Path) -> requests.Response:
    """Request the bytes of a file that `part` does not have yet."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={size}-"} if size else {}
    return session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))


def _save(response: requests.Response, part: Path, deadline: float) -> tuple[str, bool]:
    """Write the body of a response to `part`, or behind what `part` has.

    Returns:
        The reason of a failure, else "", and whether another attempt could succeed.

    Raises:
        requests.RequestException: the server is busy or blocks us, the body breaks off, or time
            is up.
    """
    with response:
        is_rest = response.status_code == 206
        if response.status_code == 416 or (is_rest and not _continues(response, part)):
            part.unlink(missing_ok=True)  # it does not fit the server's file: start again
            return "the server cannot resume the download", True
        if response.status_code in (BLOCKED, *BUSY):
            raise requests.HTTPError(f"HTTP {response.status_code}")
        if response.status_code not in (200, 206):
            return f"HTTP {response.status_code}", False
        return _write_body(response, part, "ab" if is_rest else "wb", deadline), False


def _continues(response: requests.Response, part: Path) -> bool:
    """Whether a partial response starts where the file `part` ends."""
    size = part.stat().st_size if part.exists() else 0
    return response.headers.get("Content-Range", "").startswith(f"bytes {size}-")


def _write_body(response: requests.Response, part: Path, mode: str, deadline: float) -> str:
    """Write the body of a response to a file; return the reason of a failure, else ""."""
    with open(part, mode) as file:
        for block in response.iter_content(BLOCK_BYTES):
            file.write(block)
            if file.tell() > MAX_MEGABYTES << 20:
                part.unlink()
                return f"larger than {MAX_MEGABYTES} MB"
            if time.monotonic() > deadline:
                raise requests.Timeout(f"not complete after {PAPER_TIMEOUT} s")
    return ""


def _rejection_reason(path: Path, title: str) -> str:
    """Return why a file is not the paper of that title; "" if its first page has the title."""
    with closing(pdf.Worker(max_pages=1)) as worker:
        result = worker.read(path)
    if "reason" in result:
        return result["reason"]
    if title_overlap(result["pages"][0], title) < MIN_TITLE_OVERLAP:
        return f"mismatch: the first page does not have the title ({title})"
    return ""


def title_overlap(page: str, title: str) -> float:
    """Return the share of a title's letter n-grams that stand close together on a page, 0 to 1.

    It is 1 where the page has the title word for word; spaces, hyphens and case are ignored.
    """
    page_letters = _letters(page)
    title_letters = _letters(title)
    starts = range(max(1, len(title_letters) - NGRAM_LETTERS + 1))
    ngrams = {title_letters[start : start + NGRAM_LETTERS] for start in starts}
    matches = [
        (match.start(), ngram)
        for ngram in ngrams
        for match in re.finditer(f"(?={re.escape(ngram)})", page_letters)
    ]
    window = 1.2 * len(title_letters)
    counts = [
        len({ngram for position, ngram in matches if start <= position <= start + window})
        for start, _ in matches
    ]
    return max(counts, default=0) / len(ngrams)


def _letters(text: str) -> str:
    """Return the letters and digits of a text in lower case."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text).lower())


def _write_report(path: Path, papers: list[dict[str, str]], failed: dict[str, str]) -> None:
    """Write a row for each paper of the list: id, title, got (yes or no), reason."""
    rows = []
    for paper in papers:
        reason = failed.get(paper["id"], "")
        got = "no" if reason else "yes"
        rows.append({"id": paper["id"], "title": paper["title"], "got": got, "reason": reason})
    write_csv(path, rows, ["id", "title", "got", "reason"])
