"""A version is written once, or the same everywhere."""

import re
from collections import defaultdict

import pytest
import yaml
from conftest import REPOSITORY, shell

# How files say which Python the project needs: "Python 3.11", `python-version: "3.11"`, py311, ...
PYTHON = r'(?:Python |python:|python-version: "|version_info < \(|= "py)(3(?:\.|, )?\d+)'
PACKAGE = r"\b([a-z][\w.-]*)(?:\[[\w,]+\])?==(\d[\w.]*\w)"


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The project's text files by name, without code."""
    listed = shell("git", "ls-files", "-co", "--exclude-standard", cwd=REPOSITORY).stdout
    names = [name for name in listed.splitlines() if not name.startswith("stages/embedded/")]
    return {
        name: (REPOSITORY / name).read_text()
        for name in [*names, "stages/__init__.py"]
        if re.search(r"(\.(cff|md|slurm|toml|txt|yaml)|file|stages/__init__.py)$", name)
        and (REPOSITORY / name).is_file()
    }


def find_pythons(texts: dict[str, str]) -> dict[str, set[str]]:
    """Return the minor versions of Python 3 that the texts name, and the files that do."""
    found = defaultdict(set)
    for file, text in texts.items():
        for version in re.findall(PYTHON, text):
            found[re.sub(r"\D", "", version)].add(file)
    return found


def find_packages(texts: dict[str, str]) -> dict[str, set[str]]:
    """Return the pinned versions of each package."""
    found = defaultdict(set)
    for text in texts.values():
        for package, version in re.findall(PACKAGE, text):
            found[package].add(version)
    return found


def test_python(texts):
    found = find_pythons(texts)
    assert len(found) == 1, found
    assert {"Dockerfile", "Makefile", "README.md", "pyproject.toml"} < found.popitem()[1]


def test_packages(texts):
    found = find_packages(texts)
    assert "torch" in found
    assert not {package: versions for package, versions in found.items() if len(versions) > 1}


def test_a_second_version_is_noticed():
    assert set(find_pythons({"Makefile": "version_info < (3, 11)", "a.md": "Python 3.12"})) == {
        "311",
        "312",
    }
    texts = {"requirements.txt": "ruff==0.17.6\n", "hooks.yaml": "[ruff==0.17.5]"}
    assert find_packages(texts) == {"ruff": {"0.17.6", "0.17.5"}}


def test_citation(texts):
    """The paper that README.md links is the cited one, and the project has one version."""
    citation = yaml.safe_load(texts["CITATION.cff"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", citation["version"])
    paper = citation["preferred-citation"]
    assert paper["url"] in texts["README.md"]
    assert paper["doi"].endswith(paper["url"].rpartition("/")[2])
