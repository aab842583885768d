"""What changed against another revision, as the Markdown of a pull request's comment: params, metrics, loss curves.

    python -m stages.diff main              prints it
    python -m stages.diff main comment/     writes comment/comment.md and the pictures it shows

Reads what git holds (params.yaml, metrics/*.json, metrics/plots/*.csv), so it needs no data and no cache. A metric is better or
worse only beyond its 95 % intervals: where the two runs' intervals overlap it says so instead, and where metrics/context.json says
that the two measure different things (other imagery, another judge, another N) it says that.
"""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

from stages.common.fail import fail
from stages.reporting.comparable import differences

# Which way is better, by a key's last part. A key that is not here is shown without an arrow.
BETTER = {
    **dict.fromkeys(("fid", "fid_infinity", "kid_x1000", "cmmd", "sinkhorn", "loss", "train_loss", "validation_loss", "perplexity",
                     "bits_per_character", "memorised", "self_bleu"), "lower"),
    **dict.fromkeys(("precision", "recall", "density", "coverage", "text_agreement", "class_agreement", "overall_accuracy",
                     "average_accuracy", "f1", "f1_macro", "jaccard", "distinct_2", "groundedness", "clip_score"), "higher"),
}
# What a person compares first: the rest is folded away.
HEADLINES = {
    "metrics/fid.json": ("standard.fid", "standard.kid_x1000", "standard.precision", "standard.recall"),
    "metrics/agreement.json": ("text_agreement",),
    "metrics/classify_lulc.json": ("real_test.overall_accuracy", "synthetic_test.overall_accuracy"),
    "metrics/classify_scenes.json": ("real_test.overall_accuracy",),
    "metrics/diffusion.json": ("validation_loss",),
    "metrics/llm.json": ("perplexity",),
}
CURVES = {"diffusion_loss": "validation_loss", "llm_loss": "loss"}  # metrics/plots/<name>.csv -> the column drawn over `step`


def main(base: str, folder: str | None = None) -> None:
    if git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}") is None:
        fail(f"diff: {base} is no revision of this repository; a shallow clone lacks history (fetch-depth: 0)")
    pictures = loss_curves(base, Path(folder)) if folder else []
    text = comment(base, dvc("params", base), dvc("metrics", base, "--all"), incomparable(base), pictures)
    if folder:
        (Path(folder) / "comment.md").write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def comment(base: str, params: dict, metrics: dict, apart: dict[str, str], pictures: list[str]) -> str:
    """Markdown. `params`, `metrics`: {file: {dotted key: {old, new}}}, as DVC's `diff --json` prints them; None where there is none.

    `apart`: metric -> why its two values don't compare.
    """
    rows = {(file, key): values for file, keys in metrics.items() for key, values in keys.items()}
    told = {where: verdict(where, rows, apart) for where in rows}
    first = [where for where in rows if where[1].endswith(HEADLINES.get(where[0], ()))]
    changed = [where for where in rows if where not in first and rows[where].get("old") != rows[where].get("new")]
    lines = [f"## This run against `{base}`", ""]
    if all(values.get("old") is None for values in rows.values()):
        lines += [f"`{base}` has no metrics to compare with.", ""]

    def named(wheres: list) -> list:
        return [(f"{Path(file).stem} `{key}`", rows[file, key], told[file, key]) for file, key in wheres]

    options = [(f"`{key}`", values, "") for keys in params.values() for key, values in sorted(keys.items())]
    lines += ["### Params", "", *table(base, options), "", "### Metrics", "", *table(base, named(first))]
    if changed:
        lines += ["", f"<details><summary>{len(changed)} other numbers changed</summary>", "", *table(base, named(sorted(changed))), "",
                  "</details>"]
    return "\n".join([*lines, *(line for name in pictures for line in ("", f"![{name}](./{name})"))]) + "\n"


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
    ends = [rows.get((file, f"{key}{end}"), {}) for end in ("_lo", "_hi")]
    if all(end.get(side) is not None for end in ends for side in ("old", "new")):
        lo, hi = ends
        if max(lo["old"], lo["new"]) <= min(hi["old"], hi["new"]):
            return f"{arrow} within the intervals"
    return f"{arrow} **{'better' if (new > old) == (way == 'higher') else 'worse'}**"


def table(base: str, rows: list[tuple[str, dict, str]]) -> list[str]:
    if not rows:
        return ["No change."]

    def cell(value) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")

    return [f"| | `{base}` | here | |", "|---|---:|---:|---|",
            *(f"| {name} | {cell(v.get('old'))} | {cell(v.get('new'))} | {told} |" for name, v, told in rows)]


def incomparable(base: str) -> dict[str, str]:
    """Metric -> why the two revisions' values measure different things, by what each says of its numbers."""
    path = Path("metrics/context.json")
    before = git("show", f"{base}:./{path}")
    return differences(json.loads(path.read_text(encoding="utf-8")), json.loads(before)) if before and path.exists() else {}


def loss_curves(base: str, folder: Path) -> list[str]:
    """Draw each loss of both revisions over one another; returns the pictures' names."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, column in CURVES.items():
        path = Path(f"metrics/plots/{name}.csv")
        texts = {base: git("show", f"{base}:./{path}"), "here": path.read_text(encoding="utf-8") if path.exists() else None}
        curves = {label: list(csv.DictReader(io.StringIO(text))) for label, text in texts.items() if text}
        figure = Figure((6, 3), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=f"{name} {column}")
        for label, rows in curves.items():
            points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
            axes.plot(*zip(*points), label=label, marker="." if len(points) < 30 else None)
        if curves:
            axes.legend(frameon=False)
            figure.savefig(folder / f"{name}.png", dpi=120)
            drawn.append(f"{name}.png")
    return drawn


def dvc(kind: str, base: str, *options: str) -> dict:
    """{file: {key: {old, new}}} of params or metrics. DVC tells on stderr what it cannot read."""
    done = subprocess.run(["dvc", kind, "diff", "--json", *options, base], capture_output=True, text=True)
    if done.returncode:
        fail(f"diff: dvc {kind} diff {base}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout or "{}")


def git(*words: str) -> str | None:
    """What git prints, or None where it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
