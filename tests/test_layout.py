"""Where code lies, what it may import, what `--help` does, and how long functions are."""

import ast
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import audit
import pytest
from conftest import REPOSITORY, shell, write_smoke_params

SUBJECTS = ("fetching", "imagery", "text", "diffusion", "evaluation", "reporting", "publishing")
# What needs no download: it must work without the rest of the project.
SELF_CONTAINED = ("stages/embedded/scenes", "stages/embedded/notes_pdf.py")
FILES = sorted(
    str(path.relative_to(REPOSITORY))
    for package in audit.PACKAGES
    for path in (REPOSITORY / package).rglob("*.py")
)
# Longer ones are hard to take in at once.
MAX_FUNCTION_LINES = 60
MAX_NESTED_FUNCTION_LINES = 10
MAX_INDENTATION = 16  # spaces: four levels


# Layout and imports.


def layer(file: str) -> str:
    """The layer of a file: a key of `BELOW`."""
    parts = Path(file).parts
    if parts[0] in ("tools", "benchmarks"):
        return parts[0]
    if any(file.startswith(path) for path in SELF_CONTAINED):
        return "self-contained"
    if len(parts) == 2:
        return {"params.py": "params", "__init__.py": "package"}.get(parts[1], "script")
    return parts[1]


# Layer -> the layers that it may import, besides itself. "package" is stages/__init__.py;
# "embedded" trains the embedded models.
BELOW: dict[str, set[str]] = {
    "package": set(),
    "self-contained": set(),
    "runtime": {"package"},
    "common": {"package", "runtime"},
    "params": {"package", "common"},
}
for subject in SUBJECTS:
    BELOW[subject] = {"package", "runtime", "params", "common", "self-contained"}
BELOW["reporting"].add("evaluation")
BELOW["script"] = {*SUBJECTS, "package", "runtime", "params", "common", "self-contained"}
BELOW["embedded"] = {*BELOW["script"], "script"}
BELOW["tools"] = {*BELOW["embedded"], "embedded"}
BELOW["benchmarks"] = {*BELOW["tools"], "tools"}


def test_stages_holds_what_dvc_runs():
    scripts = {stage["script"] for stage in audit.pipeline().values()}
    here = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "stages").glob("*.py")}
    assert here == scripts | {"stages/params.py", "stages/__init__.py"}


def upward_imports(file: str) -> list[str]:
    """The files that a file imports from a layer that is not below its own."""
    allowed = BELOW[layer(file)]
    # A script is run, not imported: what two scripts share lies in a package.
    if layer(file) != "script":
        allowed = allowed | {layer(file)}
    return sorted(other for other in audit.direct_imports(file) if layer(other) not in allowed)


def test_imports_point_down():
    wrong = {file: upward_imports(file) for file in FILES}
    assert not {file: others for file, others in wrong.items() if others}


def test_self_contained_packages_import_only_themselves():
    for file in FILES:
        for package in SELF_CONTAINED:
            if file.startswith(package):
                others = audit.direct_imports(file)
                assert all(other.startswith(package) for other in others), file


def test_upward_imports_are_noticed(tmp_path, monkeypatch):
    """The check itself, on a runtime module that imports a stage script inside a function."""
    monkeypatch.chdir(tmp_path)
    for file in ("stages/encode.py", "stages/runtime/deep.py", "tools/deep.py"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("def run():\n    from stages import encode\n")
    assert upward_imports("stages/runtime/deep.py") == ["stages/encode.py"]
    assert upward_imports("tools/deep.py") == []


# Command lines.


def runnable_modules() -> list[str]:
    """The modules that `python -m` runs and that read their arguments."""
    modules = []
    for file in FILES:
        source = (REPOSITORY / file).read_text(encoding="utf-8")
        reads_arguments = re.search(r"\bargparse\b|\brun_stage\(", source)
        if reads_arguments and re.search(r'^if __name__ == "__main__":', source, re.MULTILINE):
            stem = file.removesuffix(".py").removesuffix("/__main__")
            modules.append(stem.replace("/", "."))
    return modules


@pytest.fixture
def folder(tmp_path):
    """A working folder with outputs that a stage which ran would delete."""
    (tmp_path / "data/latents").mkdir(parents=True)
    (tmp_path / "data/latents/marker").write_text("kept")
    write_smoke_params(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_python(folder: Path, environment: dict, *arguments: str):
    environment = {**environment, "PYTHONPATH": str(REPOSITORY)}
    return shell("python", *arguments, cwd=folder, env=environment, timeout=300)


# Runs `--help` of several modules in one process, which imports the large libraries once.
HELP = """
import contextlib, io, json, runpy, sys
answers = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    code = None
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    answers[module] = code, text.getvalue()
print(json.dumps(answers))
"""


def test_help_is_all_that_help_does(folder, environment):
    before = content(folder)
    modules = runnable_modules()
    scripts = {stage["script"] for stage in audit.pipeline().values()}
    assert {script.removesuffix(".py").replace("/", ".") for script in scripts} <= set(modules)

    def ask(some_modules: list[str]) -> dict:
        finished = run_python(folder, environment, "-c", HELP, *some_modules)
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout.splitlines()[-1])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, [modules[::2], modules[1::2]])
    answers = first | second
    assert set(answers) == set(modules)
    for module, (code, text) in answers.items():
        assert code == 0, (module, text)
        assert text.startswith(f"usage: python -m {module}"), (module, text)
    assert content(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        ("stages.encode", "again"),
        ("stages.sample", "nobody"),
        ("stages.params", "params.yaml", "again"),
        ("stages.runtime.launch", "fid"),
        ("tools.check_lock", "again"),
        ("tools.diff", "main", "again"),
    ],
    ids=" ".join,
)
def test_an_unknown_word_is_a_usage_line(folder, environment, words):
    before = content(folder)
    finished = run_python(folder, environment, "-m", *words)
    assert finished.returncode == 2 and not finished.stdout
    assert finished.stderr.startswith(f"usage: python -m {words[0]}")
    assert content(folder) == before


# The size of functions.


def too_long(source: str) -> list[str]:
    """The functions of a source that are too long and its statements that are nested too deep."""
    faults = []

    def visit(node: ast.AST, nested: bool) -> None:
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            faults.extend(size_faults(child, is_function, nested))
            visit(child, nested or is_function)

    visit(ast.parse(source), False)
    return faults


def size_faults(node: ast.AST, is_function: bool, nested: bool) -> list[str]:
    if is_function:
        lines = node.end_lineno - node.lineno + 1
        if lines > (MAX_NESTED_FUNCTION_LINES if nested else MAX_FUNCTION_LINES):
            return [f"line {node.lineno}: {node.name} has {lines} lines"]
    elif isinstance(node, ast.stmt) and node.col_offset > MAX_INDENTATION:
        return [f"line {node.lineno}: indented by {node.col_offset}"]
    return []


def test_functions_fit_a_screen():
    faults = {file: too_long((REPOSITORY / file).read_text(encoding="utf-8")) for file in FILES}
    assert not {file: lines for file, lines in faults.items() if lines}


def test_long_functions_are_noticed():
    body = "".join(f"    x = {i}\n" for i in range(MAX_FUNCTION_LINES - 1))
    assert not too_long(f"def run():\n{body}")
    assert too_long(f"def run():\n{body}    x = 0\n")
    nested = "".join(f"        x = {i}\n" for i in range(MAX_NESTED_FUNCTION_LINES))
    assert too_long(f"def run():\n    def inner():\n{nested}")
    deep = "".join(f"{'    ' * i}if x:\n" for i in range(5)) + " " * 20 + "x = 1\n"
    assert too_long(deep)
