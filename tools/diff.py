"""Compare this run with another branch, as the Markdown of a pull request's comment.

    python -m tools.diff main > comment.md

It compares with the merge base, the commit at which this branch left the other one: what the
other branch did since then is no effect of this run. It shows the params, metrics and loss curves
that changed. The curves are Mermaid charts, which the comment renders by itself: nothing has to be
uploaded.

Only what git holds is read (params.yaml, dvc.lock, metrics/*.json, metrics/plots/*.csv), so it
needs no data and no cache.

Five metrics are judged: FID and recall (features `scene`), caption agreement, the accuracy of the
land-cover classifier on real tiles, and perplexity. One is better or worse only where

- metrics/context.json of both runs says that it was measured on the same (test tiles, N,
  resolution, weights of the feature extractor, ...),
- the 95 % CIs of the two runs don't overlap, and
- both runs have the same trained model in dvc.lock and, for the accuracy, several classifiers
  each: the CIs cover other images and other text, but not another training.

Of the other numbers it shows only how they changed. Where something can't be read, it ends with
exit code 1.
"""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from stages.common.markdown import code_span, escape_markdown
from stages.runtime.errors import exit_with_error
from stages.runtime.process import make_parser, start_process
from tools.commands import git
from tools.comparable import describe_devices, describe_difference, find_description

# The metrics that a run is judged by, one for each thing it makes, and which way is better. With
# more of them, one would be "better" by chance in most comparisons.
HEADLINES = {
    ("metrics/fid.json", "scene.standard.fid"): "lower",
    ("metrics/fid.json", "scene.standard.recall"): "higher",
    ("metrics/caption_agreement.json", "caption_agreement"): "higher",
    ("metrics/classify_lulc.json", "real_test.overall_accuracy"): "higher",
    ("metrics/llm.json", "perplexity"): "lower",
}
VALUE = "value [95 % CI; PI: 95 % prediction interval]"  # head of a table of metrics
# metrics/plots/<name>.csv -> the column drawn over `step`, and a metric measured on the same data.
CURVES = {
    "diffusion_loss": ("validation_loss", "diffusion.validation_loss"),
    "llm_loss": ("loss", "llm.train_loss"),
}
RETRAINED = "the 95 % CIs don't overlap; one training each"
NOTE_ON_TRAINING = (
    "One training each: the CIs cover other images and other text, not another training. Another "
    "seed alone may move a metric as far. Better or worse is said only where both runs have the "
    "same trained model and, for the accuracy, `classifier.seeds` is 2 or more."
)
CURVE_POINTS = 25

MetricKey = tuple[str, str]  # file, dotted key
# Values {old, new}; without `old` or `new` where a run does not have it.
Changes = dict[MetricKey, dict]


class Runs(NamedTuple):
    """What the metrics of two runs were measured on: `measured_on` of metrics/context.json.

    A metric is named as in that file, for example `llm.perplexity`.
    """

    old: dict[str, dict]
    new: dict[str, dict]
    old_models: dict[str, str]  # their hashes, by path
    new_models: dict[str, str]

    def difference(self, metric: str) -> str | None:
        """Why two values don't compare, "" if they do; None where a run does not describe it."""
        old = find_description(self.old, metric)
        new = find_description(self.new, metric)
        return None if old is None or new is None else describe_difference(new, old)

    def may_differ_by_training(self, metric: str) -> bool:
        """Whether another training may explain a difference: another model, or one classifier."""
        models = ["models/llm"] if metric.startswith("llm.") else ["models/diffusion"]
        if metric.startswith("classify_lulc."):  # trained on images that these may have influenced
            models += ["models/llm", "models/scene"]
        is_same = all(self.old_models.get(m, "none") == self.new_models.get(m) for m in models)
        return not is_same or (find_description(self.new, metric) or {}).get("seeds") == 1

    def devices(self, metric: str) -> list[str]:
        """Name the stages behind a metric that trained on another device or number of threads."""
        old = find_description(self.old, metric) or {}
        return describe_devices(find_description(self.new, metric) or {}, old)


def main() -> None:
    parser = make_parser("tools.diff", __doc__)
    parser.add_argument("revision", help="to compare with: a branch, a tag or a commit")
    revision = parser.parse_args().revision
    start_process()
    commit = find_merge_base(revision)
    params, metrics = read_changes(commit)
    runs = Runs(
        read_measured_on(commit),
        read_measured_on("workspace"),
        read_model_hashes(commit),
        read_model_hashes("workspace"),
    )
    comment = write_comment(revision, commit, params, metrics, runs)
    print("\n".join([*comment, *loss_charts(commit, runs)]))


# Reading both runs -------------------------------------------------------------------------------


def find_merge_base(revision: str) -> str:
    """Return the commit at which HEAD left `revision`, or origin's branch: all 40 digits."""
    names = [revision, f"origin/{revision}"]  # a clone may have no branch main of its own
    known = [n for n in names if git("rev-parse", "--verify", "--quiet", f"{n}^{{commit}}")]
    if not known:
        exit_with_error(f"diff: {revision} is no revision of this repository{shallow_hint()}")
    commit = git("merge-base", known[0], "HEAD")
    if commit:
        return commit.strip()
    exit_with_error(f"diff: HEAD and {revision} have no commit in common{shallow_hint()}")


def shallow_hint() -> str:
    """What may be missing in a shallow clone; "" in a full one."""
    if git("rev-parse", "--is-shallow-repository") != "true\n":
        return ""
    return "; this clone is shallow: `git fetch --unshallow` (in a workflow: fetch-depth: 0)"


def read_changes(commit: str) -> tuple[Changes, Changes]:
    """Read the params that changed since a commit, and all metrics of both runs.

    DVC tells which files hold metrics, for each run by its own dvc.yaml.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            params = repo.params.diff(a_rev=commit)
            listed = repo.metrics.show(revs=[commit], hide_workspace=False)
    except DvcException as error:
        exit_with_error(f"diff: {error}")
    if commit not in listed:
        exit_with_error(f"diff: commit {commit[:7]} has no dvc.yaml")
    metrics: Changes = {}
    for side, run in (("old", commit), ("new", "workspace")):
        errors = params.get("errors", {}).get(run) or listed[run].get("error")
        if isinstance(errors, dict):  # by file
            file, cause = next(iter(errors.items()))
            exit_with_error(f"diff: {where(file, run)}: {cause}")
        if errors:
            place = "working tree" if run == "workspace" else f"commit {run[:7]}"
            exit_with_error(f"diff: {place}: {errors}")
        for file in sorted(listed[run]["data"]):
            for key, value in read_metrics(file, run).items():
                metrics.setdefault((file, key), {})[side] = value
    changes = params.get("diff", {})
    return {(file, key): changes[file][key] for file in changes for key in changes[file]}, metrics


def where(path: str, run: str) -> str:
    """Name a file of the working tree, or of a commit. run: "workspace", or the commit."""
    return path if run == "workspace" else f"{path} in commit {run[:7]}"


def read_text(path: str, run: str) -> str | None:
    """Read a file of the working tree, or of a commit; None where it is missing."""
    if run != "workspace":
        return git("show", f"{run}:./{path}")
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else None


def read_json_of_run(path: str, run: str) -> dict | None:
    """Read a JSON object of the working tree, or of a commit; None where the file is missing.

    Raises:
        SystemExit: the file holds anything else.
    """
    try:
        text = read_text(path, run)
        content = None if text is None else json.loads(text)
    except ValueError as error:  # no JSON, or no UTF-8
        exit_with_error(f"diff: {where(path, run)}: not valid JSON: {error}")
    if text is not None and not isinstance(content, dict):
        exit_with_error(f"diff: {where(path, run)}: not a JSON object")
    return content


def read_metrics(path: str, run: str) -> dict[str, float]:
    """Read a metrics file as dotted key -> finite number.

    Raises:
        SystemExit: the file is missing, or holds anything else.
    """
    content = read_json_of_run(path, run)
    if content is None:
        exit_with_error(f"diff: {where(path, run)}: missing, though dvc.yaml names it")
    numbers: dict[str, float] = {}
    waiting = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}" if key else name, part) for name, part in value.items()]
        elif isinstance(value, (int, float)) and math.isfinite(value):
            numbers[key] = value
        else:
            exit_with_error(f"diff: {where(path, run)}: {key}: {value} is not a finite number")
    return numbers


def read_measured_on(run: str) -> dict[str, dict]:
    """Read what the metrics of a run were measured on; {} where it does not say so."""
    path = "metrics/context.json"
    measured_on = (read_json_of_run(path, run) or {}).get("measured_on", {})
    groups = measured_on.values() if isinstance(measured_on, dict) else [measured_on]
    if not all(isinstance(group, dict) for group in groups):
        exit_with_error(f"diff: {where(path, run)}: measured_on: expected an object of objects")
    return measured_on


def read_model_hashes(run: str) -> dict[str, str]:
    """The hash of each trained model of a run, by path, as in dvc.lock; {} without one."""
    lock = yaml.safe_load(read_text("dvc.lock", run) or "{}")
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


# Writing the comment -----------------------------------------------------------------------------


def write_comment(
    revision: str, commit: str, params: Changes, metrics: Changes, runs: Runs
) -> list[str]:
    """Write the comment as lines of Markdown, without the charts.

    Args:
        revision: the branch that the run is compared with.
        commit: the merge base.
        params: what changed of params.yaml.
        metrics: all metrics of both runs.
        runs: what they were measured on.
    """
    verdicts = {metric: describe_change(metric, metrics, runs) for metric in metrics}
    headlines = [metric for metric in HEADLINES if metric in metrics]
    others = [
        metric
        for metric, change in metrics.items()
        if metric not in HEADLINES
        and not is_end_of_interval(metric, metrics)
        and change.get("old") != change.get("new")
    ]
    lines = [f"## This run against `{revision}`", "", *notes(revision, commit, metrics, runs)]
    lines += ["### Params", ""]
    files = list(dict.fromkeys(file for file, _ in params))
    by_name = sorted(params, key=lambda param: (files.index(param[0]), param[1]))
    lines += table(commit, param_rows(by_name, params))
    lines += ["", "### Metrics", ""]
    lines += table(commit, metric_rows(headlines, metrics, verdicts), VALUE)
    if any(RETRAINED in verdict for verdict in verdicts.values()):
        lines += ["", NOTE_ON_TRAINING]
    if others:
        lines += ["", f"<details><summary>{len(others)} other numbers changed</summary>", ""]
        lines += table(commit, metric_rows(sorted(others), metrics, verdicts), VALUE)
        lines += ["", "</details>"]
    return lines


def notes(revision: str, commit: str, metrics: Changes, runs: Runs) -> list[str]:
    """Write what to know before reading the tables: lines of Markdown."""
    lines = [f"Compared with `{commit[:7]}`, the merge base of `{revision}` and HEAD.", ""]
    if git("rev-parse", "HEAD") == f"{commit}\n":
        lines += ["That is HEAD itself: only what is not committed yet can differ.", ""]
    if all(change.get("old") is None for change in metrics.values()):
        lines += [f"`{revision}` has no metrics to compare with.", ""]
    for run, measured_on in ((f"`{commit[:7]}`", runs.old), ("this run", runs.new)):
        if metrics and not measured_on:
            lines += [f"metrics/context.json of {run} describes no metric: none is judged.", ""]
    devices = {device: None for metric in metrics for device in runs.devices(context_key(metric))}
    if devices:
        lines += [
            f"Trained on another device: {'; '.join(devices)}. That alone gives other weights, as "
            "another seed would. To credit a difference to this change, run both on the same "
            "device.",
            "",
        ]
    return lines


def context_key(metric: MetricKey) -> str:
    """Name a metric as metrics/context.json does: `llm.perplexity`."""
    file, key = metric
    return f"{Path(file).stem}.{key}"


def param_rows(params: list[MetricKey], changes: Changes) -> list[tuple[str, dict, str]]:
    """The rows of a table: name and values, without a verdict."""
    rows = []
    for file, key in params:
        change = changes[file, key]
        cells = {side: format_value(value) for side, value in change.items()}
        rows.append((code_span(key), cells, ""))
    return rows


def metric_rows(
    metrics: list[MetricKey], changes: Changes, verdicts: dict[MetricKey, str]
) -> list[tuple[str, dict, str]]:
    """The rows of a table: name, values with their 95 % CI (of a floor: 95 % PI), verdict."""
    rows = []
    for metric in metrics:
        file, key = metric
        cells = {}
        for side, value in changes[metric].items():
            interval = interval_of(metric, side, changes)
            cells[side] = format_value(value)
            if interval:
                kind = "PI " if key.endswith("_floor") else ""  # of other samples of real tiles
                cells[side] += f" [{kind}{', '.join(map(format_value, interval))}]"
        rows.append((f"{Path(file).stem} `{key}`", cells, verdicts[metric]))
    return rows


def is_end_of_interval(metric: MetricKey, metrics: Changes) -> bool:
    """Whether a number is the `_lo` or `_hi` of another, in whose row it stands."""
    file, key = metric
    ends = re.finditer(r"_(lo|hi)(?=\.|$)", key)
    return any((file, key[: end.start()] + key[end.end() :]) in metrics for end in ends)


def interval_of(metric: MetricKey, side: str, metrics: Changes) -> tuple[float, float] | None:
    """Return the 95 % CI of a metric of one run; None where it has none. side: old or new.

    That of `per_scene.lake` is `per_scene_lo.lake` to `per_scene_hi.lake`.
    """
    file, key = metric
    for end in re.finditer(r"\.|$", key):
        group, name = key[: end.start()], key[end.start() :]
        low = metrics.get((file, f"{group}_lo{name}"), {}).get(side)
        high = metrics.get((file, f"{group}_hi{name}"), {}).get(side)
        if low is not None and high is not None:
            return low, high
    return None


def describe_change(metric: MetricKey, metrics: Changes, runs: Runs) -> str:
    """Describe the change of one metric, with an arrow that points the way it moved.

    Args:
        metric: a key of `metrics`.
        metrics: all metrics of both runs; intervals are separate metrics.
        runs: what they were measured on.
    """
    old = metrics[metric].get("old")
    new = metrics[metric].get("new")
    if old is None:
        return "new"
    if new is None:
        return "gone"
    difference = runs.difference(context_key(metric))
    if difference:  # with the reason of hundreds of other numbers, GitHub would refuse the text
        return "not comparable" + (f": {plain_text(difference)}" if metric in HEADLINES else "")
    if old == new:
        return "the same"
    if difference is None:
        return "not described in context.json"
    arrow = "▲" if new > old else "▼"
    if metric not in HEADLINES:
        return arrow
    verdict = judge(metric, metrics, runs)
    return "; ".join([f"{arrow} {verdict}", *runs.devices(context_key(metric))])


def judge(metric: MetricKey, metrics: Changes, runs: Runs) -> str:
    """Say whether the change of a headline metric is larger than its uncertainty."""
    intervals = [interval_of(metric, side, metrics) for side in ("old", "new")]
    # An interval of no width says that no spread was seen, not that there is none.
    ends = [interval for interval in intervals if interval and interval[0] < interval[1]]
    if len(ends) < 2:
        return "no 95 % CI"
    if max(low for low, _ in ends) <= min(high for _, high in ends):
        return "the 95 % CIs overlap"
    if runs.may_differ_by_training(context_key(metric)):
        return RETRAINED
    is_better = (metrics[metric]["new"] < metrics[metric]["old"]) == (HEADLINES[metric] == "lower")
    return "**better**" if is_better else "**worse**"


def table(commit: str, rows: list[tuple[str, dict, str]], title: str = "") -> list[str]:
    """The lines of a Markdown table.

    Args:
        commit: the merge base.
        rows: (name, {old, new}, verdict), all of them Markdown; a run may lack the value.
        title: of the first column.
    """
    if not rows:
        return ["No change."]
    lines = [f"| {title} | `{commit[:7]}` | here | |", "|---|---:|---:|---|"]
    for name, change, verdict in rows:
        old = change.get("old", "-")
        new = change.get("new", "-")
        lines.append(f"| {name} | {old} | {new} | {verdict} |")
    return lines


def format_value(value: object) -> str:
    """A param or a metric as the text of a table's cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return plain_text(str(value))


def plain_text(text: str) -> str:
    """Return text as Markdown that shows just that text, in one line, and mentions nobody."""
    # GitHub notifies whoever is named after an @, escaped or not, but for a zero-width space.
    return re.sub(r"(?<!\w)@", "@&#8203;", escape_markdown(text))


def loss_charts(commit: str, runs: Runs) -> list[str]:
    """Lines of Markdown: a chart per loss, with the curves of both runs at shared steps."""
    lines = []
    for name, (column, metric) in CURVES.items():
        difference = runs.difference(metric)
        if difference:
            lines += ["", f"`{column}` of {name} is not comparable: {plain_text(difference)}"]
            continue
        curves = {
            commit[:7]: read_curve(name, column, commit),
            "here": read_curve(name, column, "workspace"),
        }
        curves = {run: points for run, points in curves.items() if points.size}
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


def read_curve(name: str, column: str, run: str) -> np.ndarray:
    """The curve of a run: steps and losses, [2, points]; empty where it has none."""
    path = f"metrics/plots/{name}.csv"
    try:
        rows = csv.DictReader(io.StringIO(read_text(path, run) or ""))
        points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
    except (ValueError, KeyError) as error:
        exit_with_error(f"diff: {where(path, run)}: not a curve of {column} over step: {error}")
    finite = [point for point in points if np.isfinite(point).all()]
    return np.array(finite).T


if __name__ == "__main__":
    main()
