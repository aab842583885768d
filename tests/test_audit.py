"""Declared is true: `dvc.yaml` against what the stage scripts import and read."""

import audit
import pytest
import yaml
from conftest import REPOSITORY

from stages.params import Params

STAGES = audit.pipeline()


def covered(file: str, deps: list[str]) -> bool:
    return any(file == dep or file.startswith(dep + "/") for dep in deps)


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_module_is_a_dep(stage):
    used = audit.imports(STAGES[stage]["script"]) - set(audit.HARMLESS)
    missing = sorted(file for file in used if not covered(file, STAGES[stage]["deps"]))
    assert not missing, f"{stage}: add to deps: {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_declared_module_is_unused(stage):
    used = audit.imports(STAGES[stage]["script"])
    declared = [
        dep
        for dep in STAGES[stage]["deps"]
        if dep.endswith(".py") or dep == "stages/embedded/scenes"
    ]
    unused = [dep for dep in declared if not any(covered(file, [dep]) for file in used)]
    assert not unused, f"{stage}: declared, but not imported: {unused}"


@pytest.mark.parametrize("stage", STAGES)
def test_params_read_are_params_declared(stage):
    read = audit.sections(STAGES[stage]["script"])
    declared = {param.split(".")[0] for param in STAGES[stage]["params"]}
    assert read == declared


def test_every_data_dep_is_made_by_a_stage_or_kept_in_git():
    entries = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    resolved = [
        (name, item, entry["do"] if "foreach" in entry else entry)
        for name, entry in entries.items()
        for item in (entry["foreach"] if "foreach" in entry else [None])
    ]

    def paths(body, kinds, name, item):
        value = (
            entries[name]["foreach"][item]
            if isinstance(entries[name].get("foreach"), dict)
            else item
        )
        for kind in kinds:
            for path in body.get(kind, []):
                path = next(iter(path)) if isinstance(path, dict) else path
                path = path.replace("${key}", str(item))
                for key, part in value.items() if isinstance(value, dict) else ():
                    path = path.replace("${item." + key + "}", part)
                yield path.replace("${item}", str(value))

    made = {
        path
        for name, item, body in resolved
        for path in paths(body, ("outs", "metrics"), name, item)
    }
    for name, item, body in resolved:
        for dep in paths(body, ("deps",), name, item):
            # What is inside an out of another stage must be there at every scale: whole outs, or files that it always writes.
            inside = any(dep == out or dep.startswith(out + "/") for out in made)
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
    """The audit itself: an import inside a function counts, and so does handing the params to somebody else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/deep.py").write_text("x = 1\n")
    (tmp_path / "stages/one.py").write_text(
        "def main():\n    p = load()\n    from stages import deep\n    return p.seed, helper(p)\n"
    )
    assert audit.imports("stages/one.py") == {"stages/one.py", "stages/deep.py"}
    assert any("passed on whole" in name for name in audit.sections("stages/one.py"))
    assert "seed" in audit.sections("stages/one.py")
