"""Declared is true: `dvc.yaml` against what the stage scripts import and read."""

import audit
import pytest

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
    declared = [dep for dep in STAGES[stage]["deps"] if dep.endswith(".py") or dep == "stages/embedded/scenes"]
    unused = [dep for dep in declared if not any(covered(file, [dep]) for file in used)]
    assert not unused, f"{stage}: declared, but not imported: {unused}"


@pytest.mark.parametrize("stage", STAGES)
def test_params_read_are_params_declared(stage):
    read = audit.sections(STAGES[stage]["script"])
    declared = {param.split(".")[0] for param in STAGES[stage]["params"]}
    assert read == declared


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
    (tmp_path / "stages/one.py").write_text("def main():\n    p = load()\n    from stages import deep\n    return p.seed, helper(p)\n")
    assert audit.imports("stages/one.py") == {"stages/one.py", "stages/deep.py"}
    assert any("passed on whole" in name for name in audit.sections("stages/one.py"))
    assert "seed" in audit.sections("stages/one.py")
