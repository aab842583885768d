"""What a changed param runs again: docs/experiments.md against the DAG, and against a real `dvc repro --dry` for every section."""

import re
from functools import cache

import audit
import pytest
import yaml
from conftest import REPOSITORY, shell

STAGES = audit.pipeline()
SECTIONS = list(dict.fromkeys(param.split(".")[0] for stage in STAGES.values() for param in stage["params"]))


@cache
def followers() -> dict[str, set[str]]:
    """stage -> the stages that read what it makes, as DVC's own graph has them."""
    edges = re.findall(r'"(.*?)" -> "(.*?)"', shell("dvc", "dag", "--dot", cwd=REPOSITORY).stdout)
    found = {stage: set() for stage in STAGES}
    for maker, reader in edges:
        found[maker.split("@")[0]].add(reader.split("@")[0])
    return found


def readers(section: str) -> list[str]:
    return [name for name, stage in STAGES.items() if any(param.split(".")[0] == section for param in stage["params"])]


def table() -> str:
    """The table of docs/experiments.md."""
    lines = ["| section | reads it, so it runs | runs if what it reads came out different |", "|---|---|---|"]
    for section in SECTIONS:
        first, reached = readers(section), set(readers(section))
        while more := set().union(*(followers()[stage] for stage in reached)) - reached:
            reached |= more
        after = [name for name in STAGES if name in reached - set(first)]
        lines.append(f"| `{section}` | {', '.join(first)} | {', '.join(after)} |")
    return "\n".join(lines)


def test_the_documented_table_is_the_dag():
    assert table() in (REPOSITORY / "docs/experiments.md").read_text(), f"docs/experiments.md should hold:\n{table()}"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_changed_section_reaches_its_readers_and_nothing_else(section, smoke, environment):
    path = smoke / "params.yaml"
    original = path.read_text()
    params = yaml.safe_load(original)

    def other(value):
        """The same, every leaf changed."""
        if isinstance(value, dict):
            return {key: other(inner) for key, inner in value.items()}
        return value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else f"not {value}"

    params[section] = other(params[section])
    path.write_text(yaml.safe_dump(params))
    try:
        done = shell("dvc", "repro", "--dry", cwd=smoke, env=environment)
    finally:
        path.write_text(original)
    assert done.returncode == 0, done.stderr
    # `--dry` runs nothing, so it names what the params themselves reach; what follows depends on what those stages would make.
    assert {stage.split("@")[0] for stage in re.findall(r"Running stage '([^']+)'", done.stdout)} == set(readers(section))
