"""Compare this run with another revision, as the Markdown of a pull request's comment.

    python -m tools.diff main > comment.md

It shows the params, metrics and loss curves that changed. The curves are Mermaid charts, which the
comment renders by itself: nothing has to be uploaded.

Only what git holds is read (params.yaml, metrics/*.json, metrics/plots/*.csv), so it needs no data
and no cache. A metric is called better or worse only where the 95 % intervals of the two runs are
disjoint. Where metrics/context.json says that the two values measure different things (other
imagery, another feature extractor, another N), the comment says so instead.
"""

import argparse
import csv
import io
import json
import subprocess
from pathlib import Path

import numpy as np

from stages.reporting.comparable import differences
from stages.runtime.errors import exit_with_error
from stages.runtime.process import start_process
from tools.git import git

# Metrics by the last part of their key. Any other change is an arrow, neither better nor worse.
LOWER_IS_BETTER = {
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
}
HIGHER_IS_BETTER = {
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
}
# What a person compares first, by the end of the key. The other metrics are folded away.
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
# metrics/plots/<name>.csv -> the column drawn over `step`.
CURVES = {"diffusion_loss": "validation_loss", "llm_loss": "loss"}
CURVE_POINTS = 25

# (file, dotted key) -> {old, new}; DVC leaves out what a revision does not have.
Changes = dict[tuple[str, str], dict]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.diff",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revision", help="to compare with: a branch, a tag or a commit")
    revision = parser.parse_args().revision
    start_process()
    if git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None:
        exit_with_error(
            f"diff: {revision} is no revision of this repository; "
            "a shallow clone lacks history (fetch-depth: 0)"
        )
    params = dvc_diff("params", revision)
    metrics = dvc_diff("metrics", revision, "--all")
    reasons = incomparable_metrics(revision)
    print(write_comment(revision, params, metrics, reasons, loss_charts(revision)), end="")


def dvc_diff(kind: str, revision: str, *options: str) -> Changes:
    """The changes of `params` or `metrics` since a revision; DVC logs what it cannot read."""
    command = ["dvc", kind, "diff", "--json", *options, revision]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        last_line = finished.stderr.strip().splitlines()[-1]
        exit_with_error(f"diff: dvc {kind} diff {revision}: {last_line}")
    files = json.loads(finished.stdout or "{}")
    return {(file, key): change for file, keys in files.items() for key, change in keys.items()}


def incomparable_metrics(revision: str) -> dict[str, str]:
    """Metric, such as `llm.perplexity` -> why its values at the two revisions don't compare."""
    path = Path("metrics/context.json")
    old_text = git("show", f"{revision}:./{path}")
    if not old_text or not path.exists():
        return {}
    return differences(json.loads(path.read_text(encoding="utf-8")), json.loads(old_text))


def write_comment(
    revision: str, params: Changes, metrics: Changes, reasons: dict[str, str], charts: list[str]
) -> str:
    """Write the comment as Markdown.

    Args:
        revision: the one compared with.
        params: what changed of params.yaml.
        metrics: all metrics of both revisions.
        reasons: metric, as `incomparable_metrics` names it -> why its two values don't compare.
        charts: lines of Markdown to end with.
    """
    verdicts = {metric: describe_change(metric, metrics, reasons) for metric in metrics}
    headlines = [
        metric
        for file, key_ends in HEADLINES.items()
        for metric in sorted(metrics)
        if metric[0] == file and metric[1].endswith(key_ends)
    ]
    others = [
        metric
        for metric, change in metrics.items()
        if metric not in headlines and change.get("old") != change.get("new")
    ]
    lines = [f"## This run against `{revision}`", ""]
    if all(change.get("old") is None for change in metrics.values()):
        lines += [f"`{revision}` has no metrics to compare with.", ""]

    lines += ["### Params", ""]
    files = list(dict.fromkeys(file for file, _ in params))
    by_name = sorted(params, key=lambda param: (files.index(param[0]), param[1]))
    lines += table(revision, [(f"`{key}`", params[file, key], "") for file, key in by_name])
    lines += ["", "### Metrics", ""]
    lines += table(revision, metric_rows(headlines, metrics, verdicts))
    if others:
        lines += ["", f"<details><summary>{len(others)} other numbers changed</summary>", ""]
        lines += table(revision, metric_rows(sorted(others), metrics, verdicts))
        lines += ["", "</details>"]
    return "\n".join([*lines, *charts]) + "\n"


def metric_rows(
    metrics: list[tuple[str, str]], changes: Changes, verdicts: dict[tuple[str, str], str]
) -> list[tuple[str, dict, str]]:
    """The rows of a table: name, values, verdict."""
    return [
        (f"{Path(file).stem} `{key}`", changes[file, key], verdicts[file, key])
        for file, key in metrics
    ]


def describe_change(metric: tuple[str, str], metrics: Changes, reasons: dict[str, str]) -> str:
    """Describe the change of one metric, with an arrow that points the way it moved.

    Args:
        metric: a key of `metrics`.
        metrics: all metrics of both revisions; intervals are separate metrics.
        reasons: metric, as `incomparable_metrics` names it -> why its two values don't compare.
    """
    file, key = metric
    old = metrics[metric].get("old")
    new = metrics[metric].get("new")
    if old is None:
        return "new"
    if new is None:
        return "gone"
    reason = reasons.get(f"{Path(file).stem}.{key}")
    if reason:
        return f"not comparable: {reason}"
    if old == new:
        return "the same"

    arrow = "▲" if new > old else "▼"
    name = key.rpartition(".")[2]
    if name in LOWER_IS_BETTER:
        verdict = "better" if new < old else "worse"
    elif name in HIGHER_IS_BETTER:
        verdict = "better" if new > old else "worse"
    else:
        return arrow
    lows = metrics.get((file, f"{key}_lo"), {})
    highs = metrics.get((file, f"{key}_hi"), {})
    bounds = [end.get(side) for end in (lows, highs) for side in ("old", "new")]
    if None in bounds:
        return f"{arrow} {verdict}, no interval"
    if max(lows["old"], lows["new"]) <= min(highs["old"], highs["new"]):
        return f"{arrow} within the intervals"
    return f"{arrow} **{verdict}**"


def table(revision: str, rows: list[tuple[str, dict, str]]) -> list[str]:
    """The lines of a Markdown table of (name, {old, new}, verdict)."""
    if not rows:
        return ["No change."]
    lines = [f"| | `{revision}` | here | |", "|---|---:|---:|---|"]
    for name, change, verdict in rows:
        old = format_value(change.get("old"))
        new = format_value(change.get("new"))
        lines.append(f"| {name} | {old} | {new} | {verdict} |")
    return lines


def format_value(value: object) -> str:
    """A param or a metric as the text of a table's cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def loss_charts(revision: str) -> list[str]:
    """Lines of Markdown: a chart per loss, with the curves of both revisions at shared steps."""
    lines = []
    for name, column in CURVES.items():
        curves = read_curves(name, column, revision)
        first = max((steps.min() for steps, _ in curves.values()), default=0)
        last = min((steps.max() for steps, _ in curves.values()), default=0)
        if first >= last:
            continue
        shared_steps = np.linspace(first, last, CURVE_POINTS)
        lines += [
            "",
            "```mermaid",
            "xychart-beta",
            f'  title "{column} of {name}: {", then ".join(curves)}"',
            f'  x-axis "step" {first:g} --> {last:g}',
        ]
        for steps, losses in curves.values():
            values = np.interp(shared_steps, steps, losses)
            lines.append(f"  line [{', '.join(f'{value:.4g}' for value in values)}]")
        lines.append("```")
    return lines


def read_curves(name: str, column: str, revision: str) -> dict[str, np.ndarray]:
    """The curve of each of the two runs that has one: steps and losses, [2, points]."""
    path = Path(f"metrics/plots/{name}.csv")
    texts = {
        revision: git("show", f"{revision}:./{path}"),
        "here": path.read_text(encoding="utf-8") if path.exists() else None,
    }
    curves = {}
    for run, text in texts.items():
        rows = csv.DictReader(io.StringIO(text or ""))
        points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
        if points:
            curves[run] = np.array(points).T
    return curves


if __name__ == "__main__":
    main()
