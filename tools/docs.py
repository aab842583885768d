"""Write the pages of docs/ that are generated: the params and the pipeline's graph.

    python -m tools.docs

docs/params.md comes from stages/params.py, dvc.yaml and params/demo.yaml, docs/pipeline.md from
`dvc dag`. Run it after a change of one of these; a test compares.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from stages.params import Params, read
from stages.runtime.errors import exit_with_error
from stages.runtime.process import make_parser, start_process
from tools.commands import run_command

PARAMS_PAGE = """\
# Params

Written by `python -m tools.docs` from [stages/params.py](../stages/params.py),
[dvc.yaml](../dvc.yaml) and [params/demo.yaml](../params/demo.yaml). A number may be written in any
form of YAML 1.2 (`0.00001`, `1e-5`). "Paper" is Kasodekar 2024, *Remote Diffusion*, with the value
that it uses.

A source is `embedded` (part of this repository), `path:<folder or file>`,
`hub:<repo>[@revision]` (the Hugging Face hub), `arxiv:<csv>` (papers only), `torchgeo:<data set>`
(imagery only), `package:<name>` (an installed Python package, models only) or `none`:
[data.md](data.md).

## Which params run what again

A stage runs again when a params section that it reads changes, or the code that it imports, or the
data it reads. The stages after it run only if its outputs changed. Where a stage reads only some
keys of a section, they follow its name.

{reruns}

{sections}
"""
PIPELINE_PAGE = """\
# The pipeline as a graph

Written by `python -m tools.docs`: the output of `dvc dag --md`. [dvc.yaml](../dvc.yaml) says what
each stage reads and writes.

{graph}
"""


def main() -> None:
    parser = make_parser("tools.docs", __doc__)
    parser.parse_args()
    start_process()
    for path, text in make_pages().items():
        Path(path).write_text(text, encoding="utf-8")


def make_pages() -> dict[str, str]:
    """Return the text of each generated page by its path."""
    finished = run_command("dvc", "dag", "--md")
    if finished.returncode:
        exit_with_error(f"dvc dag: {finished.stderr}")
    graph = finished.stdout.strip()
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    reruns = make_rerun_table(stages, read_graph(graph))
    sections = "\n\n".join(make_params_tables())
    return {
        "docs/params.md": PARAMS_PAGE.format(reruns=reruns, sections=sections),
        "docs/pipeline.md": PIPELINE_PAGE.format(graph=graph),
    }


# What a change reruns.


def read_graph(mermaid: str) -> dict[str, set[str]]:
    """Return, for each stage, the stages that read its outputs; `stage@item` counts as `stage`."""
    names = {
        node: stage.split("@")[0] for node, stage in re.findall(r'(node\d+)\["(.+?)"\]', mermaid)
    }
    readers: dict[str, set[str]] = {stage: set() for stage in names.values()}
    for maker, reader in re.findall(r"(node\d+)-->(node\d+)", mermaid):
        readers[names[maker]].add(names[reader])
    return readers


def make_rerun_table(stages: dict[str, Any], readers: dict[str, set[str]]) -> str:
    """Return a table of the stages that a change of each params section reruns.

    Args:
        stages: `stages` of dvc.yaml.
        readers: for each stage, the stages that read its outputs.
    """
    sections: dict[str, dict[str, list[str]]] = {}  # section -> stage -> the keys that it reads
    for stage, entry in stages.items():
        for param in list_params(entry):
            section, _, key = param.partition(".")
            sections.setdefault(section, {}).setdefault(stage, []).append(key)
    lines = [
        "| section | stages that read it and rerun | stages that rerun if their inputs changed |",
        "|---|---|---|",
    ]
    for section, direct in sections.items():
        first = ", ".join(format_reader(stage, keys) for stage, keys in direct.items())
        reached: set[str] = set()
        waiting = list(direct)
        while waiting:
            stage = waiting.pop()
            if stage not in reached:
                reached.add(stage)
                waiting += readers[stage]
        later = [stage for stage in stages if stage in reached and stage not in direct]
        lines.append(f"| `{section}` | {first} | {', '.join(later)} |")
    return "\n".join(lines)


def list_params(entry: dict[str, Any]) -> list[str]:
    """Return the params of a stage, those of all items where it is a foreach stage; each once."""
    params = []
    for param in entry.get("do", entry).get("params", []):
        if key := re.fullmatch(r"\$\{item\.(\w+)\}", param):
            params += [item[key[1]] for item in entry["foreach"].values()]
        else:
            params.append(param)
    return list(dict.fromkeys(params))


def format_reader(stage: str, keys: list[str]) -> str:
    """Return the name of a stage and the keys that it reads of a section.

    Args:
        stage: its name.
        keys: "" is the whole section, `${item}` a key per item of the stage.
    """
    named = [f"`{key}`" for key in keys if key and not key.startswith("$")]
    return f"{stage} ({', '.join(named)})" if named else stage


# The params.


def make_params_tables() -> list[str]:
    """Return the heading and the table of each section; values outside sections come first."""
    schema = Params.model_json_schema()
    demo = read("params/demo.yaml")
    single = {}
    tables = []
    for name, field in schema["properties"].items():
        if "$ref" in field:
            rows = make_rows(follow(field, schema)["properties"], demo[name], schema)
            tables.append(make_table(f"`{name}`", rows))
        else:
            single[name] = field
    return [make_table("Outside the sections", make_rows(single, demo, schema)), *tables]


def make_table(heading: str, rows: list[str]) -> str:
    head = ["| key | values | demo | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {heading}", "", *head, *rows])


def make_rows(fields: dict[str, Any], demo: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return a table row per field. Those of a section within follow: of each class, the first's.

    Args:
        fields: key -> its JSON schema.
        demo: key -> its value at demo scale.
        schema: the JSON schema of the whole file.
    """
    rows = []
    for key, field in fields.items():
        if "$ref" in field:
            inner = follow(field, schema)["properties"]
            nested = {f"{key}.{name}": field for name, field in inner.items()}
            values = {f"{key}.{name}": value for name, value in demo[key].items()}
            rows += make_rows(nested, values, schema)
            continue
        value = f"`{format_value(demo[key])}`"
        of_class = field.get("additionalProperties", {})
        if "$ref" in of_class:
            name = next(iter(demo[key]))
            value = f"those of {len(demo[key])} classes; here of `{name}`"
        allowed = describe_values(field, schema)
        rows.append(f"| `{key}` | {allowed} | {value} | {field['description']} |")
        if "$ref" in of_class:
            inner = {f"{key}.<class>": of_class}
            rows += make_rows(inner, {f"{key}.<class>": demo[key][name]}, schema)
    return rows


def follow(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the section that a JSON schema refers to."""
    return schema["$defs"][field["$ref"].rpartition("/")[2]]


def format_value(value: Any) -> str:
    """Return a value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()  # a scalar's end of document


def describe_values(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Say in words which values a JSON schema allows."""
    if "format" in field:
        return field["format"]
    if "anyOf" in field:
        return " or ".join(describe_values(option, schema) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return f"{{{', '.join(follow(field, schema)['properties'])}}}"
    kind = field["type"]
    if kind == "array":
        return f"list of: {describe_values(field['items'], schema)}"
    if kind == "object":
        return f"for each class: {describe_values(field['additionalProperties'], schema)}"
    if kind in ("integer", "number"):
        return " ".join([kind, ", ".join(describe_range(field))])
    words = {"boolean": "`true` or `false`", "null": "`null`", "string": "text"}
    return words[kind]


def describe_range(field: dict[str, Any]) -> list[str]:
    """Return the bounds of a number's JSON schema, such as `> 0`."""
    words = {
        "exclusiveMinimum": ">",
        "minimum": ">=",
        "exclusiveMaximum": "<",
        "maximum": "<=",
        "multipleOf": "multiple of",
    }
    return [f"{word} {field[key]}" for key, word in words.items() if key in field]


if __name__ == "__main__":
    main()
