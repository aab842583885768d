"""Write params.yaml at another scale: the demo's, with the values of other files in their place.

    python -m tools.scale paper               with the values of params/paper.yaml
    python -m tools.scale paper mine.yaml     of both files; the later wins
    python -m tools.scale rsicd rsicd30       a label set with a scale: RSICD's thirty classes
    python -m tools.scale demo                the way back: params/demo.yaml as it is

Each file holds only what differs from params/demo.yaml, and brings the comments beside its values.
`classes`, `prompt.per_class`, `prompt.words`, `fetch_imagery.splits` and lists are replaced whole.
Where a file names other `classes`, the words and numbers of prompts of the earlier classes are
dropped. The first line of params.yaml names its scales.

Prints the values that change. Writes nothing if params.yaml holds values that none of its scales
has: they would be lost. --force drops them.
"""

import difflib
import io
import itertools
import json
import re
import shlex
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from stages.common.artifacts import write_atomically
from stages.params import Params, Section, check, explain_unknown_key, load_yaml, read
from stages.runtime.errors import exit_with_error
from stages.runtime.process import make_parser, start_process

PARAMS = Path("params.yaml")
# A copy of what this tool wrote last, as the files of params/ may have changed since then.
WRITTEN = Path(".dvc/tmp/scale.yaml")
FIRST_LINE = "# Scale: "
SECTIONS = [
    name
    for name, field in Params.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
]
MAX_SHOWN = 300  # characters of a value; the words of thirty classes are more
# Stands for the value of a key that a file lacks.
MISSING = object()


def main() -> None:
    parser = make_parser("tools.scale", __doc__)
    parser.add_argument(
        "scale", nargs="*", help=f"{', '.join(scale_names())}, or a path that ends in .yaml"
    )
    parser.add_argument("--force", action="store_true", help="drop edits of params.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check and print, write nothing")
    arguments = parser.parse_args()
    start_process()
    if not arguments.scale:
        exit_with_error(f"name a scale: {', '.join(scale_names())} (make scale SCALE=paper)")

    text, _ = compose(arguments.scale)
    new = flatten(load_yaml(text))
    present = read_present(arguments.force)
    edits = [] if arguments.force or not present else find_edits(present, new)
    if edits:
        advice = f'make scale SCALE="{shlex.join(arguments.scale)} --force"'
        sys.exit("\n".join([*edits, f"nothing written; to drop these edits: {advice}"]))

    if not arguments.dry_run:
        write_atomically(PARAMS, text.encode())
        write_atomically(WRITTEN, text.encode())
    for key in present | new:
        old_value = present.get(key, MISSING)
        new_value = new.get(key, MISSING)
        if present and old_value != new_value:
            print(f"{key}: {' -> '.join(_show_difference(old_value, new_value))}")
    first_line = text.partition("\n")[0]
    dry_run = " (not written: --dry-run)" if arguments.dry_run else ""
    print(f"{PARAMS}: {first_line.removeprefix('# ')}{dry_run}")


@dataclass(frozen=True)
class ScaleFile:
    """A file of params/."""

    path: str  # from the repository's root
    text: str
    header: list[str]  # the comment lines that it begins with
    values: CommentedMap


class PlainRepresenter(RoundTripRepresenter):
    """Writes `null`, where ruamel leaves the value out, and values without their anchors.

    Each place of an alias holds its value, and an anchor that stands twice is an error.
    """

    def represent_scalar(
        self, tag: Any, value: Any, style: Any = None, anchor: Any = None
    ) -> ScalarNode:
        return super().represent_scalar(tag, value, style=style)


PlainRepresenter.add_representer(
    type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
)


# The text of params.yaml at some scales.


def compose(scales: list[str], folder: Path = Path()) -> tuple[str, Params]:
    """Return the text of params.yaml at these scales, and its values.

    Args:
        scales: names of files in params/, or paths that end in .yaml. Each begins with the demo's
            values; of several, the last wins.
        folder: the repository.

    Raises:
        SystemExit: code 1, one line per fault.
    """
    scales = [_short_name(scale) for scale in scales]
    if "demo" in scales[1:]:
        exit_with_error("demo: every scale starts from it; name it first or not at all")
    scales = [scale for scale in scales if scale != "demo"]
    demo = read_scale("demo", folder)
    name = " + ".join([demo.path, *(_path(scale) for scale in scales)])
    if not scales:
        return demo.text, check(demo.values, name)

    demo_values = deepcopy(demo.values)
    header = [FIRST_LINE + shlex.join(scales)]
    for scale in scales:
        file = read_scale(scale, folder)
        _refuse_unknown_keys(file, demo)
        header += [line for line in file.header if not line.startswith(FIRST_LINE)]
        before = demo.values["classes"]
        _replace_values(demo.values, file.values)
        classes = demo.values["classes"]
        if isinstance(classes, dict) and (not isinstance(before, dict) or {*classes} != {*before}):
            _fit_to_classes(demo.values, file.values.get("prompt", {}), demo_values)
    demo.values.ca.comment = None  # the demo's header
    text = io.StringIO()
    _yaml().dump(demo.values, text)
    body = _space_sections(text.getvalue().strip())
    return "\n".join([*header, "", body, ""]), check(load_yaml(body), name)


def _space_sections(text: str) -> str:
    """Leave a blank line before each section and none elsewhere.

    ruamel counts a blank line to the value before it, so it goes where that value is replaced.
    """
    spaced = re.sub(r"\n{2,}(?=  )", "\n", re.sub(r"\n+(?=\w)", "\n\n", text))
    # A value of several lines may hold blank ones itself.
    return spaced if load_yaml(spaced) == load_yaml(text) else text


def _replace_values(target: CommentedMap, source: CommentedMap) -> None:
    """Replace the values that a source has, those of a section key by key."""
    for name, value in source.items():
        if name not in SECTIONS:
            _take(target, source, name)
            continue
        for key in value:
            _take(target[name], value, key)


def _fit_to_classes(values: CommentedMap, given: CommentedMap, demo: CommentedMap) -> None:
    """Drop words and numbers of prompts of earlier classes; the demo's classes get the demo's.

    Words of a class that stays are dropped, too: those of "Water Body" hold "river", which may be
    another of the new classes.

    Args:
        values: of the file and those before it.
        given: the file's own values of `prompt`, which are left as they are.
        demo: the demo's values, with words for its classes and one number for all.
    """
    prompt = values["prompt"]
    classes = values["classes"]
    if "words" not in given and set(classes) == set(demo["classes"]):
        _take(prompt, demo["prompt"], "words")
    elif "words" not in given:
        prompt["words"] = CommentedMap()
        prompt["words"].fa.set_flow_style()  # `{}` on the line of its key
    counts = prompt["per_class"]
    if "per_class" not in given and isinstance(counts, dict) and set(counts) != set(classes):
        _take(prompt, demo["prompt"], "per_class")


def _take(target: CommentedMap, source: CommentedMap, key: str) -> None:
    """Replace the value of a key and the comment beside it.

    Comment lines below it that are indented as far are part of it; others belong to the next key.
    """
    target[key] = source[key]
    target.ca.items.pop(key, None)
    if key in source.ca.items:
        comment = source.ca.items[key][2]
        first, *below = comment.value.splitlines()
        kept = itertools.takewhile(lambda line: re.match(r" {5,}#", line), below)
        comment.value = "\n".join([first, *kept, ""])
        target.ca.items[key] = source.ca.items[key]


def _yaml() -> YAML:
    """A reader and writer that keeps comments, quotes, and the lines as they are."""
    yaml = YAML()
    yaml.Representer = PlainRepresenter
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda value: True
    return yaml


def _refuse_unknown_keys(file: ScaleFile, demo: ScaleFile) -> None:
    known = flatten(demo.values)
    faults = []
    for key in flatten(file.values).keys() - known.keys():
        section, _, name = str(key).partition(".")
        location: list[int | str] = [section, name] if section in SECTIONS else [key]
        faults.append(f"{file.path}: {explain_unknown_key(location)}")
    if faults:
        sys.exit("\n".join(sorted(faults)))


def read_scale(scale: str, folder: Path = Path()) -> ScaleFile:
    """Read a file of params/.

    Raises:
        SystemExit: code 1, one line: there is no such file, it can't be read or has no values.
    """
    path = _path(scale)
    if (folder / path).resolve() == (folder / PARAMS).resolve():
        exit_with_error(f"{scale}: is what this writes; copy it to params/<name>.yaml first")
    if not (folder / path).exists():
        names = scale_names(folder)
        if "demo" not in names:
            exit_with_error("params/demo.yaml: not found; start this in the repository's folder")
        similar = difflib.get_close_matches(scale, names, n=1)
        hint = f"did you mean {similar[0]}? " if similar else ""
        exit_with_error(f"{scale}: there is no {path}; {hint}Scales: {', '.join(names)}")
    read(folder / path)  # its faults are one line each
    # utf-8-sig: Windows editors begin a file with a byte order mark.
    text = (folder / path).read_text(encoding="utf-8-sig")
    header = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    values = _yaml().load(text)
    for section in SECTIONS:
        if not isinstance(values.get(section, {}), dict):
            exit_with_error(f"{path}: {section}: expected keys, not {values[section]!r}")
    return ScaleFile(path, text, header, values)


def _path(scale: str) -> str:
    return scale if scale.endswith(".yaml") else f"params/{scale}.yaml"


def scale_names(folder: Path = Path()) -> list[str]:
    """The names of the files in params/, the demo first."""
    names = sorted(path.stem for path in (folder / "params").glob("*.yaml"))
    return sorted(names, key=lambda name: name != "demo")


def _short_name(scale: str) -> str:
    """`paper` for `params/paper.yaml`."""
    path = Path(scale)
    return path.stem if path.parent == Path("params") and path.suffix == ".yaml" else scale


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """`{section: {key: value}}` as `{section.key: value}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTIONS and isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


# The present params.yaml.


def read_present(force: bool) -> dict[str, Any]:
    """Return the values of params.yaml; none if there is no such file.

    Raises:
        SystemExit: code 1, one line: it can't be read, and `force` is off.
    """
    if not PARAMS.exists():
        return {}
    try:
        return flatten(read(PARAMS))
    except SystemExit as unreadable:
        if not force:
            exit_with_error(f"{unreadable}; nothing written, --force writes over it")
        return {}


def find_edits(present: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line per value of params.yaml that no scale made and that `new` hasn't, either.

    Raises:
        SystemExit: code 1, one line: a scale that its first line names can't be read.
    """
    first_line = _first_line(PARAMS)
    names = "demo"
    if first_line.startswith(FIRST_LINE):
        names = first_line.removeprefix(FIRST_LINE).strip()
    try:
        text, _ = compose(shlex.split(names))
    except (SystemExit, ValueError) as fault:
        exit_with_error(
            f"{PARAMS}: its first line names the scales {names}, which can't be read "
            f"({str(fault).removeprefix('error: ')}); nothing written, --force writes over it"
        )
    scale = flatten(load_yaml(text))
    written: dict[str, Any] = {}
    if WRITTEN.exists() and _first_line(WRITTEN) == first_line:
        try:
            written = flatten(read(WRITTEN))
        except SystemExit:
            pass  # a copy that is damaged tells nothing
    edits = []
    for key, value in present.items():
        if all(value != values.get(key, MISSING) for values in (scale, written, new)):
            edited, original = _show_difference(value, scale.get(key, MISSING))
            edits.append(f"{PARAMS}: {key}: {edited} is an edit; {names} has {original}")
    return edits


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0]


def _show_difference(first: Any, second: Any) -> list[str]:
    """Each of two values in a few words; of two mappings only the entries that differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        same = [key for key in first.keys() & second.keys() if first[key] == second[key]]
        first, second = (
            {key: value for key, value in values.items() if key not in same}
            for values in (first, second)
        )
    return [_show(first), _show(second)]


def _show(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


if __name__ == "__main__":
    main()
