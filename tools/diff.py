"""What changed against another revision, as the Markdown of a pull request's comment: params, metrics, loss curves.

    python -m tools.diff main > comment.md

The curves are Mermaid charts, which a comment shows by itself: nothing has to be uploaded anywhere for it to be complete.
Reads what git holds (params.yaml, metrics/*.json, metrics/plots/*.csv), so it needs no data and no cache. A metric is better or
worse only beyond its 95 % intervals: where the two runs' intervals overlap it says so instead, as it does where a metric has none,
and where metrics/context.json says that the two measure different things (other imagery, another judge, another N) it says that.
"""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from stages.reporting.comparable import differences
from stages.runtime.errors import exit_with_error
from tools.git import git

# Which way is better, by a key's last part. The change of a key that is not here is an arrow, called neither better nor worse.
BETTER = {
    **dict.fromkeys(
        (
            "fid",
            "fid_infinity",
            "kid_x1000",
            "cmmd",
            "sinkhorn",
            "loss",
            "train_loss",
            "validation_loss",
            "perplexity",
            "bits_per_character",
            "memorized",
            "self_bleu",
        ),
        "lower",
    ),
    **dict.fromkeys(
        (
            "precision",
            "recall",
            "density",
            "coverage",
            "caption_agreement",
            "class_agreement",
            "overall_accuracy",
            "average_accuracy",
            "f1",
            "f1_macro",
            "jaccard",
            "distinct_2",
            "groundedness",
            "clip_score",
        ),
        "higher",
    ),
}
# What a person compares first: the rest is folded away.
HEADLINES = {
    "metrics/fid.json": (
        "standard.fid",
        "standard.kid_x1000",
        "standard.precision",
        "standard.recall",
    ),
    "metrics/caption_agreement.json": ("caption_agreement",),
    "metrics/classify_lulc.json": ("real_test.overall_accuracy", "synthetic_test.overall_accuracy"),
    "metrics/classify_scenes.json": ("real_test.overall_accuracy",),
    "metrics/diffusion.json": ("validation_loss",),
    "metrics/llm.json": ("perplexity",),
}
CURVES = {
    "diffusion_loss": "validation_loss",
    "llm_loss": "loss",
}  # metrics/plots/<name>.csv -> the column drawn over `step`


def main(base: str) -> None:
    if git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}") is None:
        exit_with_error(
            f"diff: {base} is no revision of this repository; a shallow clone lacks history (fetch-depth: 0)"
        )
    print(
        comment(
            base,
            dvc("params", base),
            dvc("metrics", base, "--all"),
            incomparable(base),
            loss_curves(base),
        ),
        end="",
    )


def comment(
    base: str, params: dict, metrics: dict, apart: dict[str, str], charts: list[str]
) -> str:
    """Markdown. `params`, `metrics`: {file: {dotted key: {old, new}}}, as DVC's `diff --json` prints them; None where there is none.

    `apart`: metric -> why its two values don't compare.
    """
    rows = {(file, key): values for file, keys in metrics.items() for key, values in keys.items()}
    told = {where: verdict(where, rows, apart) for where in rows}
    first = [where for where in rows if where[1].endswith(HEADLINES.get(where[0], ()))]
    changed = [
        where
        for where in rows
        if where not in first and rows[where].get("old") != rows[where].get("new")
    ]
    lines = [f"## This run against `{base}`", ""]
    if all(values.get("old") is None for values in rows.values()):
        lines += [f"`{base}` has no metrics to compare with.", ""]

    def named(wheres: list) -> list:
        return [
            (f"{Path(file).stem} `{key}`", rows[file, key], told[file, key]) for file, key in wheres
        ]

    options = [
        (f"`{key}`", values, "") for keys in params.values() for key, values in sorted(keys.items())
    ]
    lines += [
        "### Params",
        "",
        *table(base, options),
        "",
        "### Metrics",
        "",
        *table(base, named(first)),
    ]
    if changed:
        lines += [
            "",
            f"<details><summary>{len(changed)} other numbers changed</summary>",
            "",
            *table(base, named(sorted(changed))),
            "",
            "</details>",
        ]
    return "\n".join([*lines, *charts]) + "\n"


def verdict(where: tuple[str, str], rows: dict, apart: dict[str, str]) -> str:
    """One metric's change in words, with an arrow that points the way it moved."""
    (file, key), old, new = where, rows[where].get("old"), rows[where].get("new")
    if old is None or new is None:
        return "new" if old is None else "gone"
    if why := apart.get(f"{Path(file).stem}.{key}"):
        return f"not comparable: {why}"
    if old == new:
        return "the same"
    arrow, way = "▲" if new > old else "▼", BETTER.get(key.rsplit(".")[-1])
    if way is None:
        return arrow
    word = "better" if (new > old) == (way == "higher") else "worse"
    lo, hi = (rows.get((file, f"{key}{end}"), {}) for end in ("_lo", "_hi"))
    if any(end.get(side) is None for end in (lo, hi) for side in ("old", "new")):
        return f"{arrow} {word}, no interval"
    return (
        f"{arrow} within the intervals"
        if max(lo["old"], lo["new"]) <= min(hi["old"], hi["new"])
        else f"{arrow} **{word}**"
    )


def table(base: str, rows: list[tuple[str, dict, str]]) -> list[str]:
    if not rows:
        return ["No change."]

    def cell(value) -> str:
        return (
            "-"
            if value is None
            else f"{value:.4g}"
            if isinstance(value, float)
            else str(value).replace("|", "\\|")
        )

    return [
        f"| | `{base}` | here | |",
        "|---|---:|---:|---|",
        *(
            f"| {name} | {cell(v.get('old'))} | {cell(v.get('new'))} | {told} |"
            for name, v, told in rows
        ),
    ]


def incomparable(base: str) -> dict[str, str]:
    """Metric -> why the two revisions' values measure different things, by what each says of its numbers."""
    path = Path("metrics/context.json")
    before = git("show", f"{base}:./{path}")
    return (
        differences(json.loads(path.read_text(encoding="utf-8")), json.loads(before))
        if before and path.exists()
        else {}
    )


def loss_curves(base: str) -> list[str]:
    """Lines of Markdown: each loss of both revisions over one another, at 25 steps that both have."""
    lines = []
    for name, column in CURVES.items():
        path = Path(f"metrics/plots/{name}.csv")
        texts = {
            base: git("show", f"{base}:./{path}"),
            "here": path.read_text(encoding="utf-8") if path.exists() else None,
        }
        rows = {
            label: [row for row in csv.DictReader(io.StringIO(text)) if row.get(column)]
            for label, text in texts.items()
            if text
        }
        curves = {
            label: np.array([(float(row["step"]), float(row[column])) for row in found]).T
            for label, found in rows.items()
            if found
        }
        first = max((steps.min() for steps, _ in curves.values()), default=0)
        last = min((steps.max() for steps, _ in curves.values()), default=0)
        if first >= last:
            continue
        at = np.linspace(first, last, 25)
        drawn = [
            ", ".join(f"{value:.4g}" for value in np.interp(at, *curve))
            for curve in curves.values()
        ]
        lines += [
            "",
            "```mermaid",
            "xychart-beta",
            f'  title "{column} of {name}: {", then ".join(curves)}"',
            f'  x-axis "step" {first:g} --> {last:g}',
            *(f"  line [{values}]" for values in drawn),
            "```",
        ]
    return lines


def dvc(kind: str, base: str, *options: str) -> dict:
    """{file: {key: {old, new}}} of params or metrics. DVC tells on stderr what it cannot read."""
    done = subprocess.run(
        ["dvc", kind, "diff", "--json", *options, base], capture_output=True, text=True
    )
    if done.returncode:
        exit_with_error(f"diff: dvc {kind} diff {base}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout or "{}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
