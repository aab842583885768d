"""The site of .github/workflows/pages.yaml, built by the workflow's own commands in a clone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import yaml
from conftest import REPOSITORY

from stages.report import METRICS
from stages.reporting.page import flatten
from stages.reporting.rows import format_number

WORKFLOW = yaml.safe_load((REPOSITORY / ".github/workflows/pages.yaml").read_text())
BUILD = WORKFLOW["jobs"]["build"]["steps"]


class Addresses(HTMLParser):
    """Collects what a page refers to, its gallery's pictures included."""

    def __init__(self, page: Path):
        super().__init__()
        self.found: list[str] = []
        self.is_items = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.is_items = values.get("id") == "items"
        self.found += [values[name] for name in ("src", "href") if values.get(name)]
        if values.get("http-equiv") == "refresh":
            self.found.append(values["content"].partition("url=")[2])

    def handle_data(self, text: str) -> None:
        if self.is_items:
            self.found += re.findall(r'"picture": ?"([^"]+)"', text)


def run_build(run) -> None:
    """Run the shell steps of the build job as GitHub's runner does, but for the installation."""
    for step in BUILD:
        if "run" in step and step["name"] != "Install":
            run("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"])


def test_the_site_shows_the_committed_numbers_and_its_links_resolve(committed):
    clone, run = committed
    # As of another machine: this one makes other numbers and another report.
    lock = (clone / "dvc.lock").read_text()
    outputs = {out["path"]: out for out in yaml.safe_load(lock)["stages"]["report"]["outs"]}
    (clone / "dvc.lock").write_text(
        lock.replace(outputs["metrics/report"]["md5"], f"{'0' * 32}.dir")
    )
    metrics = clone / "metrics/llm.json"
    numbers = json.loads(metrics.read_text())
    numbers["perplexity"] = 4321.5
    metrics.write_text(json.dumps(numbers))
    run("git", "commit", "-qam", "run of another machine")

    run_build(run)

    upload = BUILD[-1]
    assert upload["uses"].startswith("actions/upload-pages-artifact@")
    site = (clone / upload["with"]["path"]).resolve()
    pages = sorted(site.rglob("*.html"))
    assert site / "index.html" in pages and len(pages) > 1
    for page in pages:
        addresses = Addresses(page).found
        assert addresses
        for address in addresses:
            if address.startswith(("#", "data:")):
                continue
            target = (page.parent / address).resolve()
            assert target.is_relative_to(site) and target.is_file(), f"{page}: {address}"
    report = (site / "report/index.html").read_text(encoding="utf-8")
    shown = dict(
        re.findall(r'<tr><td><code>(.+?)</code></td><td class="number">(.+?)</td>', report)
    )
    committed_numbers = {
        f"{name}.{key}": format_number(value)
        for name in METRICS
        for key, value in flatten(json.loads((clone / f"metrics/{name}.json").read_text()))
    }
    assert shown == committed_numbers and shown["llm.perplexity"] == "4321.5"
    assert run("git", "rev-parse", "HEAD").strip() in report and "made again" in report
    for path in site.rglob("*"):  # what Pages asks for
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o044 == 0o044, path
