"""What a stage script uses, read from its source: modules that it imports, params that it reads."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

# Modules that cannot change a result. A stage need not declare them: a change of one of them reruns
# nothing.
HARMLESS = {
    "stages/__init__.py",  # checks this Python
    "stages/params.py",  # checks the values, which `params:` tracks
    *(str(path) for path in Path("stages/runtime").glob("*.py")),
}
PACKAGES = ("stages", "tools", "benchmarks")


@cache
def parse(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def imported_names(path: str) -> Iterator[str]:
    """The dotted names that a file imports, at any depth of nesting; `from a import b` is a.b."""
    package = Path(path).parent
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.parts[: len(package.parts) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def modules(dep: str) -> list[str]:
    """The modules that a code dep of `dvc.yaml` stands for: a file, or those in a folder.

    Empty files and those that `.dvcignore` names (`__main__.py`) change nothing.
    """
    files = Path(dep).rglob("*.py") if Path(dep).is_dir() else [Path(dep)]
    return [
        str(file)
        for file in files
        if file.suffix == ".py" and file.name != "__main__.py" and file.stat().st_size
    ]


@cache
def direct_imports(path: str) -> frozenset[str]:
    """The project files that a file itself imports; packages count where their file holds code."""
    files = set()
    for name in imported_names(path):
        if name.split(".")[0] in PACKAGES:
            stem = Path(*name.split("."))
            files |= {stem.with_suffix(".py"), stem / "__init__.py"}
    return frozenset(str(file) for file in files if file.is_file() and file.stat().st_size)


@cache
def imports(path: str) -> frozenset[str]:
    """The project files that a file imports, directly or not, itself included.

    Not those that only harmless ones import: params.py checks names with stages/common.
    """
    seen = {"stages/__init__.py"}  # every import runs the __init__.py of its packages
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += [] if file in HARMLESS else direct_imports(file)
    return frozenset(seen)


def sections(path: str) -> set[str]:
    """The params that a stage script reads: `params.section` after `params = load()`.

    Params that are passed on whole could be read anywhere; they are in the result as an error text.
    """
    tree = parse(path)
    calls = {
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "load"
    }
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    read = {parents[call].attr for call in calls if isinstance(parents[call], ast.Attribute)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    of_method = sections_of_methods()
    for function in functions:
        names = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and node.value in calls
            for target in node.targets
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
                continue
            parent = parents[node]
            if node.id in names and isinstance(parent, ast.Attribute):
                read |= of_method.get(parent.attr, {parent.attr})
            elif node.id in names:
                read.add(f"<{path}:{node.lineno}: params passed on whole>")
    return read


@cache
def sections_of_methods() -> dict[str, set[str]]:
    """The params that each method of `Params` reads, itself or through others; by its name."""
    (params,) = [
        node
        for node in parse("stages/params.py").body
        if isinstance(node, ast.ClassDef) and node.name == "Params"
    ]
    read = {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"
        }
        for method in params.body
        if isinstance(method, ast.FunctionDef)
    }

    def resolve(name: str) -> set[str]:
        return set().union(*map(resolve, read[name])) if name in read else {name}

    return {name: resolve(name) for name in read}


def pipeline() -> dict[str, dict]:
    """stage -> {script, cmd, deps, params, outs} of dvc.yaml; a foreach stage counts once."""
    from tools.docs import list_params  # `tracing` imports this module outside the repository

    stages = {}
    for name, entry in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
        body = entry.get("do", entry)
        # python -m stages.<script>, or python -m stages.runtime.launch <script>
        words = body["cmd"].split()
        launched = words[2] == "stages.runtime.launch"
        script = words[3] if launched else words[2].removeprefix("stages.")
        outs = [out for kind in ("outs", "metrics", "plots") for out in body.get(kind, [])]
        stages[name] = {
            "script": f"stages/{script}.py",
            "cmd": body["cmd"],
            "deps": body.get("deps", []),
            "params": list_params(entry),
            "outs": [next(iter(out)) if isinstance(out, dict) else out for out in outs],
        }
    return stages
