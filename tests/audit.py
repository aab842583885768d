"""What a stage script really uses: the modules it imports and the params it reads, found in its source (no import runs)."""

import ast
from functools import cache
from pathlib import Path

import yaml

# Modules that cannot change a result, with the reason: a stage needn't declare them, so touching one rebuilds nothing.
HARMLESS = {
    "stages/params.py": "the schema: it refuses values, it doesn't choose them; `params:` tracks the values themselves",
    "stages/runtime/launch.py": "decides on how many processes a stage runs; results don't depend on that (tested)",
    "stages/runtime/progress.py": "prints",
    "stages/runtime/errors.py": "prints, then stops the stage: nothing is written",
    "stages/runtime/pretrained.py": "loads as its callers say, or stops the stage: a model that lacks weights is refused",
    "stages/runtime/tracking.py": "shows the course of a run in a folder that nothing reads",
    "stages/runtime/gpu_memory.py": "says which batch size fits, then stops the stage",
    "stages/runtime/resume_cache.py": "where unfinished work waits, keyed by params and inputs; a resumed run gives the same bytes (tested)",
    "stages/runtime/parallel.py": "an ordered map: the same results on any number of processes (tested)",
    "stages/runtime/processes.py": "stops a run that came up with fewer processes than asked for",
    "stages/__init__.py": "sets how long idle threads spin, how often the collector looks and what malloc keeps; notes how long a stage took",
    "stages/runtime/atomic.py": "makes a folder appear whole; doesn't choose what is in it",
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
