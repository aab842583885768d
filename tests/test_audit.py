"""What `dvc.yaml` declares is what the stage scripts import and read."""

import audit
import pytest
import yaml
from conftest import REPOSITORY

from stages.params import Params

STAGES = audit.pipeline()
# A needless rerun costs GPU hours, or may change what such a stage reads, or the judge.
BY_FILE = (
    "train_base",
    "train_scene",
    "finetune_llm",
    "index_rag",
    "prompt",
    "encode",
    "finetune_sd",
    "sample",
    "balance",
    "generate",
    "select",
)
# Sections that a stage reads only to end early, in one line, where a later stage would: no output
# depends on them.
CHECKED_EARLY = {"encode": {"sampling", "finetune_sd"}}


def covered(file: str, deps: list[str]) -> bool:
    return any(file == dep or file.startswith(dep + "/") for dep in deps)


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_module_is_a_dep(stage):
    used = audit.imports(STAGES[stage]["script"]) - set(audit.HARMLESS)
    missing = sorted(file for file in used if not covered(file, STAGES[stage]["deps"]))
    assert not missing, f"{stage}: add to deps: {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_declared_module_is_unused(stage):
    """A folder is used where one of its modules is; where a rerun costs hours, all must be."""
    used = audit.imports(STAGES[stage]["script"])
    declared = {dep: audit.modules(dep) for dep in STAGES[stage]["deps"]}
    if stage in BY_FILE:
        declared = {file: [file] for files in declared.values() for file in files}
    unused = [dep for dep, files in declared.items() if files and not used.intersection(files)]
    assert not unused, f"{stage}: declared, but not imported: {unused}"


@pytest.mark.parametrize("stage", STAGES)
def test_params_read_are_params_declared(stage):
    read = audit.sections(STAGES[stage]["script"])
    declared = {param.split(".")[0] for param in STAGES[stage]["params"]}
    assert read == declared | CHECKED_EARLY.get(stage, set())


def resolved_stages() -> list[tuple[str, dict]]:
    """(name, entry) of each stage of dvc.yaml, with the items of foreach stages filled in."""
    stages = []
    for name, entry in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items():
        if "foreach" not in entry:
            stages.append((name, entry))
            continue
        items = entry["foreach"]
        if isinstance(items, list):
            items = {item: item for item in items}
        for key, value in items.items():
            text = yaml.safe_dump(entry["do"]).replace("${key}", key)
            for part, part_value in value.items() if isinstance(value, dict) else ():
                text = text.replace("${item." + part + "}", part_value)
            stages.append((f"{name}@{key}", yaml.safe_load(text.replace("${item}", str(value)))))
    return stages


def paths(entry: dict, *kinds: str) -> list[str]:
    """The paths of a stage's deps, outs, metrics or plots."""
    listed = [path for kind in kinds for path in entry.get(kind, [])]
    return [next(iter(path)) if isinstance(path, dict) else path for path in listed]


def test_every_data_dep_is_made_by_a_stage_or_kept_in_git():
    stages = resolved_stages()
    made = {path for _, entry in stages for path in paths(entry, "outs", "metrics", "plots")}
    for name, entry in stages:
        for dep in paths(entry, "deps"):
            # Deps inside an out must exist at every scale: an entire out, or files always written.
            inside = any(dep == out or dep.startswith(f"{out}/") for out in made)
            assert inside or (REPOSITORY / dep).exists(), (
                f"{name}: {dep} is made by no stage and is not in the repository"
            )


def test_every_section_is_declared_by_some_stage():
    declared = {param.split(".")[0] for stage in STAGES.values() for param in stage["params"]}
    assert declared == set(Params.model_fields)


def test_commands_do_not_depend_on_the_machine():
    for stage in STAGES.values():
        assert stage["cmd"].startswith("python -m stages."), stage["cmd"]


def test_audit_sees_nested_imports_and_params_passed_on(tmp_path, monkeypatch):
    """The audit itself: an import inside a function counts, and so do params passed on whole."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/deep.py").write_text("x = 1\n")
    (tmp_path / "stages/one.py").write_text(
        "def main():\n    p = load()\n    from stages import deep\n    return p.seed, helper(p)\n"
    )
    assert {"stages/one.py", "stages/deep.py"} <= audit.imports("stages/one.py")
    assert any("passed on whole" in name for name in audit.sections("stages/one.py"))
    assert "seed" in audit.sections("stages/one.py")
