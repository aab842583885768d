"""Cards for the Hugging Face hub, made of a run's params, metrics, inputs and commit."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from stages.common.artifacts import read_json
from stages.common.class_names import slug
from stages.common.classifier_inputs import describe_absent_classes, describe_real_tiles
from stages.common.markdown import code_span, escape_markdown
from stages.common.rounding import (
    format_decimals,
    interval_decimals,
    read_interval,
    reference_decimals,
)
from stages.params import read
from stages.publishing.pixel_values import describe_pixel_values
from stages.publishing.repositories import (
    CEILING,
    EVALUATION_DATA,
    FID,
    Metric,
    Repository,
)

TEMPLATE = Path(__file__).parent / "card.md"
# Input of a run -> the folder whose SOURCE.json names its source.
INPUTS = {
    "imagery": "data/imagery",
    "papers": "data/papers",
    "diffusion model": "models/base/diffusion",
    "language model": "models/base/language",
    "prompt writer": "models/base/writer",
    "passage embedder": "models/base/embedder",
    "classifier's first weights": "models/base/classifier",
}
# A path of this machine, whose folders are not to be published; a source has its kind before it,
# and the scale of a run the input: "imagery: path:...".
LOCAL_PATH = re.compile(
    r"((?:\w+: )?(?:path|arxiv):)?(.*[/\\])([^/\\]+)[/\\]*",
    re.DOTALL,
)


def make_card(
    repository: Repository, commit: str, classes: dict[str, list[str]]
) -> DatasetCard | ModelCard:
    """Make the card of a repository; `save(path)` writes it as README.md.

    A model's metrics are also in the card's metadata, as the hub's evaluation results.

    Args:
        repository: what is published.
        commit: of the run.
        classes: those that are used, with the scenes that show each; the card lists them where
            the repository depends on them.
    """
    sources = read_sources(repository.inputs)
    scores, ceiling = (read_json(f"metrics/{name}_lulc.json") for name in ("classify", "ceiling"))
    all_embedded = all(source["source"] in ("embedded", "none") for source in sources.values())
    license = "mit" if all_embedded else "other"  # other: the hub's word for "read the card"
    metrics = measured_metrics(repository)
    sections = {
        "title": repository.title,
        "about": repository.about.format(weights=describe_weights(scores["seeds"])),
        "use": repository.use.format(real_tiles=describe_real_tiles(scores, ceiling)),
        "limits": repository.limits + describe_classes(repository.params, classes),
        "misuse": repository.misuse,
        "commit": commit,
        "class_rows": list_classes(classes) if "classes" in repository.params else [],
        "params": quote_params(repository.params),
        "scale": hide_local_folders(read_json("metrics/context.json")["scale"]),
        "metric_rows": [format_metric(metric) for metric in metrics],
        "trained_judge": (
            FID in repository.metrics and read()["train_scene"]["source"] == "scratch"
        ),
        "pixel_values": quote_pixel_values() if "imagery" in repository.inputs else "",
        "input_rows": [
            format_input(name, source)
            for name, source in sources.items()
            if source["source"] != "none"
        ],
    }
    if repository.type == "dataset":
        dataset_data = DatasetCardData(license=license, **repository.card_data)
        return DatasetCard.from_template(dataset_data, template_path=str(TEMPLATE), **sections)
    task = repository.card_data["pipeline_tag"]
    model_data = ModelCardData(
        license=license,
        model_name=repository.title,
        # The ceiling is another network's.
        eval_results=[make_eval_result(each, task) for each in metrics if each != CEILING],
        **repository.card_data,
    )
    return ModelCard.from_template(model_data, template_path=str(TEMPLATE), **sections)


def read_sources(inputs: tuple[str, ...]) -> dict[str, dict]:
    """Return input -> its source and license, as in its SOURCE.json. inputs: keys of INPUTS."""
    sources = {name: read_json(f"{INPUTS[name]}/SOURCE.json") for name in inputs}
    prompt = read()["prompt"]
    if "prompt writer" in inputs and prompt["writer"] == "openai":
        # The model behind an endpoint was not fetched; its name may be a folder of the server.
        model = hide_local_folders(prompt["openai_model"])
        sources["prompt writer"] = {"source": f"openai: {model}", "license": None}
    return sources


def list_classes(classes: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return the table rows of the classes: name, number of images, scenes that show it."""
    counts = read_json("metrics/select.json")["per_class"]
    return [
        {
            "name": escape_markdown(name),
            "images": str(counts.get(slug(name), {"kept": 0})["kept"]),
            "scenes": ", ".join(map(escape_markdown, scenes)) or "none",
        }
        for name, scenes in classes.items()
    ]


def describe_weights(seeds: int) -> str:
    """Say which of the classifiers of several seeds is published, or that there is one."""
    if seeds == 1:
        return (
            " One classifier was trained: the intervals of its accuracies cover other test tiles, "
            "not another training."
        )
    return (
        f" The weights are those of the first of {seeds} classifiers; the accuracies are means "
        "over all of them."
    )


def describe_classes(sections: tuple[str, ...], classes: dict[str, list[str]]) -> str:
    """Say how the synthetic images were selected, and which classes are absent.

    It is "" where a repository does not depend on the classes.

    Args:
        sections: of params.yaml that the repository depends on.
        classes: those that are used.
    """
    if "classes" not in sections:
        return ""
    tested = read_json("models/classifier/lulc/context.json")
    untested, unseen = (
        [escape_markdown(name) for name in tested.get(key, [])]
        for key in ("classes_without_real", "classes_without_images")
    )
    note = describe_absent_classes(untested, unseen)
    if read()["generate"].get("keep") is None:
        return note
    return describe_selection(classes) + note


def describe_selection(classes: dict[str, list[str]]) -> str:
    """Say how the synthetic images were selected. classes: those that are used."""
    selected = read_json("metrics/select.json")
    note = (
        f" Of {selected['drawn']} synthetic images drawn, {selected['kept']} are kept: of those in "
        "which a scene classifier of real tiles saw their class, without near-duplicates, the ones "
        "that differ most. They are no sample of what the model draws, and that classifier can't "
        "measure them."
    )
    counts = {name: selected["per_class"].get(slug(name), {}) for name in classes}
    unjudged = [escape_markdown(name) for name in classes if counts[name].get("unknown_scenes")]
    if unjudged:
        note += (
            f" It knows no scene of {', '.join(unjudged)}: that their images show their class was "
            "not checked."
        )
    return note


def quote_params(names: tuple[str, ...]) -> str:
    """Return sections of params.yaml as YAML, without the local folders and private addresses."""
    params = read()
    sections = {name: hide_local_folders(params[name]) for name in names}
    if sections.get("prompt", {}).get("openai_base_url"):
        sections["prompt"]["openai_base_url"] = "..."  # it may hold a password, or a private host
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=100)
    return text.strip()


def quote_pixel_values() -> str:
    """Return what bytes of the images mean, as YAML; "" where they were not stretched."""
    values = describe_pixel_values()
    if not values:
        return ""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100).strip()


def hide_local_folders(value: Any) -> Any:
    """Replace the folders of paths in values of a run, which are private; the last name stays.

    Paths are those of `path:` and `arxiv:` sources, and texts that begin as absolute ones do.
    """
    if isinstance(value, dict):
        return {key: hide_local_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hide_local_folders(part) for part in value]
    path = LOCAL_PATH.fullmatch(value) if isinstance(value, str) else None
    if path and (path[1] or re.match(r"[/\\~$]|[A-Za-z]:[/\\]", path[2])):
        return f"{path[1] or ''}.../{path[3]}"
    return value


def measured_metrics(repository: Repository) -> list[Metric]:
    """Return the metrics that this run has; without held-out papers, there is no perplexity."""
    parts = [(metric, *read_metric(metric)) for metric in repository.metrics]
    return [metric for metric, values, name in parts if name in values]


def make_eval_result(metric: Metric, task: str) -> EvalResult:
    """Return a metric as an evaluation result of the hub's model index."""
    values, name = read_metric(metric)
    return EvalResult(
        task_type=task,
        dataset_type=metric.data,
        dataset_name=EVALUATION_DATA[metric.data],
        metric_type=metric.type,
        metric_name=f"{metric.file} {metric.key}",
        metric_value=values[name],
    )


def read_metric(metric: Metric) -> tuple[dict, str]:
    """Return the part of a metrics file that holds a metric, and the metric's key in it."""
    *path, name = metric.key.split(".")
    values = read_json(f"metrics/{metric.file}.json")
    for part in path:
        values = values.get(part, {})
    return values, name


def format_metric(metric: Metric) -> dict[str, str]:
    """Return the table row of a metric: its value, 95 % interval and reference values."""
    values, name = read_metric(metric)
    references = {
        reference: values[f"{name}_{reference}"]
        for reference in ("floor", "base", "chance", "expected")
        if f"{name}_{reference}" in values
    }
    if metric.type == "accuracy":
        scores = read_json("metrics/classify_lulc.json")
        references["chance"] = scores["chance"]
        if metric.data == "real-test":
            references["majority class"] = scores["majority"]
    decimals, interval = 3, "-"
    if ends := read_interval(values, name):
        decimals = interval_decimals(*ends)
        interval = " to ".join(format_decimals(end, decimals) for end in ends)
    texts = []
    for reference, value in references.items():
        its_own = read_interval(values, f"{name}_{reference}")
        shown = format_decimals(value, reference_decimals(value, its_own, decimals))
        texts.append(f"{reference} {shown}")
    return {
        "name": f"{metric.file} {metric.key}",
        "data": EVALUATION_DATA[metric.data],
        "value": format_decimals(values[name], decimals),
        "interval": interval,
        "references": ", ".join(texts) or "-",
        "better": metric.better,
    }


def format_input(name: str, source: dict) -> dict[str, str]:
    """Return the table row of an input from its SOURCE.json."""
    license = source.get("license") or "not recorded"
    if source["source"] == "embedded":
        license = "this repository's (MIT)"
    return {
        "name": name,
        "source": code_span(hide_local_folders(source["source"])),
        "license": escape_markdown(str(license)),
    }
