"""Download papers from arXiv, politely: one at a time, with a pause and a name."""

import csv
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from stages.common.fail import fail
from stages.common.progress import progress, say

# arXiv asks for one connection and three seconds between requests (https://info.arxiv.org/help/api/tou.html).
PAUSE, TIMEOUT, MEGABYTES = 3.0, 60, 50
AGENT = "remote-diffusion/0.1 (research pipeline; one request at a time)"


def download(list_csv: Path, out: Path) -> tuple[list[Path], dict[str, str]]:
    """Fetch every paper of a CSV with columns id, title. Returns the files and {id: why it failed}.

    `$REMOTE_DIFFUSION_ARXIV` stands in for https://arxiv.org (a mirror or a test).
    """
    with open(list_csv, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"id", "title"} <= set(rows[0]):
        fail(f"{list_csv}: expected the columns id, title and a row per paper")
    base = os.environ.get("REMOTE_DIFFUSION_ARXIV", "https://arxiv.org").rstrip("/")
    pause = PAUSE if base.startswith("https://") else 0.0
    files, failed = [], {}
    for number, row in enumerate(progress(rows, what="arxiv", unit="paper")):
        if number:
            time.sleep(pause)
        try:
            request = urllib.request.Request(f"{base}/pdf/{row['id']}", headers={"User-Agent": AGENT})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                content = answer.read(MEGABYTES * 2**20 + 1)
        except (urllib.error.URLError, TimeoutError, OSError) as fault:
            failed[row["id"]] = str(fault)
        else:
            if not content.startswith(b"%PDF") or len(content) > MEGABYTES * 2**20:
                failed[row["id"]] = f"not a PDF of at most {MEGABYTES} MB"
                continue
            files.append(out / f"{row['id'].replace('/', '_')}.pdf")
            files[-1].write_bytes(content)
    for name, reason in failed.items():
        say(f"arxiv: {name} skipped: {reason}")
    return files, failed
