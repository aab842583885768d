"""What a stage script really uses: the modules it imports and the params it reads, found in its source (no import runs)."""

import ast
from functools import cache
from pathlib import Path

import yaml

# What cannot change a result: a stage needn't declare it, so touching it rebuilds nothing.
HARMLESS = {
    "stages/__init__.py",  # a docstring
    "stages/params.py",  # refuses values, doesn't choose them; `params:` tracks the values themselves
    *(str(path) for path in Path("stages/runtime").glob("*.py")),  # by its definition
}


@cache
def imports(path: str) -> frozenset[str]:
    """Project files that a file imports, itself included, transitively, at any depth of nesting."""
    found, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        package = Path(file).parent
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            names = ["stages"]  # every import runs its packages' __init__.py
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = (
                    ".".join(package.parts[: len(package.parts) - node.level + 1])
                    if node.level
                    else ""
                )
                module = ".".join(part for part in (base, node.module) if part)
                names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.split(".")[0] == "stages":
                    stem = Path(*name.split("."))
                    waiting += [
                        str(f)
                        for f in (stem.with_suffix(".py"), stem / "__init__.py")
                        if f.is_file() and f.stat().st_size
                    ]
    return frozenset(found)


def sections(path: str) -> set[str]:
    """Params that a stage script reads: `p.section` where `p = load()`, or `load().section`."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    calls = {
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "load"
    }
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = {parents[call].attr for call in calls if isinstance(parents[call], ast.Attribute)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and node.value in calls
            for target in node.targets
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load):
                parent = parents[node]
                # Handed on whole it could be read anywhere: forbidden.
                found.add(
                    parent.attr
                    if isinstance(parent, ast.Attribute)
                    else f"<{path}:{node.lineno}: params passed on whole>"
                )
    return found


def pipeline() -> dict[str, dict]:
    """stage -> {script, deps, params, outs} as dvc.yaml declares them; a foreach stage once, its items merged."""
    stages = {}
    for name, entry in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
        body = entry.get("do", entry)
        command = body["cmd"].split()
        module = (
            command[3]
            if command[2] == "stages.runtime.launch"
            else command[2].removeprefix("stages.")
        )
        stages[name] = {
            "script": f"stages/{module}.py",
            "cmd": body["cmd"],
            "deps": body.get("deps", []),
            "params": [str(param) for param in body.get("params", [])],
            "outs": [
                next(iter(out)) if isinstance(out, dict) else out
                for kind in ("outs", "metrics", "plots")
                for out in body.get(kind, [])
            ],
        }
    return stages
