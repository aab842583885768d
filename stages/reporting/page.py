"""The report's page: one folder that opens from disk, without a server or an outside request."""

import re
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup, escape

from stages.common.classifier_inputs import describe_real_tiles
from stages.common.rounding import interval_decimals, reference_decimals
from stages.reporting import charts, templates
from stages.reporting.context import RunContext
from stages.reporting.rows import NUMERIC, Row, Table, cell_texts, format_number

# The numbers at the top of the page: key -> its description.
SUMMARY = {
    "caption_agreement.caption_agreement": (
        "of generated images are classified as the scene of their caption"
    ),
    "fid.scene.standard.fid": (
        "FID to held-out real images, features of the scene classifier; lower is better"
    ),
    "classify_lulc.real_test.overall_accuracy": (
        "accuracy on real tiles of a land-cover classifier trained on generated images"
    ),
    "llm.perplexity": "perplexity of the domain language model; lower is better",
}


# What the cards judge their numbers by: title of a reference -> its meaning.
REFERENCES = {
    "real vs. real": "held-out real tiles against training tiles, of the same scenes where there "
    "are enough, the floor: a perfect generator would score about that{judge}",
    "its 95 % PI": "the interval in which that floor would lie for other tiles",
    "base model": "the model before fine-tuning",
    "real tiles": "the same measure of held-out real tiles",
    "its 95 % CI": "the confidence interval of the number before it",
    "chance": "guessing among all classes or scenes alike",
    "majority class": "always answering the most frequent class",
    "trained on real tiles": "the same network trained on {real_tiles}, the ceiling",
}


def write_page(
    folder: Path,
    tables: list[Table],
    metrics: dict,
    items: dict[str, dict],
    context: RunContext,
    **variables,
) -> None:
    """Write `folder/index.html`.

    Args:
        folder: of the report.
        tables: this run beside the paper.
        metrics: file name without `.json` -> content of metrics/*.json.
        items: address of a picture -> what the page tells of it.
        context: what identifies the run.
        variables: what else the template report.html shows.
    """
    rows = {row.key: row for table in tables for row in table.rows}
    # A table has a row, without a number, of an FID of too few images.
    measured = {key: row for key, row in rows.items() if row.ours is not None}
    summary = [(measured[key], title) for key, title in SUMMARY.items() if key in measured]
    real_tiles = describe_real_tiles(metrics["classify_lulc"], metrics["ceiling_lulc"])
    judge = ""
    if context.trained_judge:
        judge = ", or better: the scene classifier was trained on these training tiles"
    writers = sorted({item["writer"] for item in items.values() if "writer" in item})
    page = templates.render(
        "report.html",
        {"format_number": format_number, "cell_texts": cell_texts, "bold_markup": bold_markup},
        tables=tables,
        metrics=metrics,
        items=items,
        context=context,
        summary=[(summary_texts(row), title) for row, title in summary],
        references={
            name: meaning.format(real_tiles=real_tiles, judge=judge)
            for name, meaning in REFERENCES.items()
            if any(name in row.references for row, _ in summary)
        },
        writers=writers,
        numeric=NUMERIC,
        numbers=list(flatten(metrics)),
        **variables,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def summary_texts(row: Row) -> dict[str, str]:
    """Return {value, interval, references}, rounded to what the intervals allow."""
    decimals = interval_decimals(*row.interval) if row.interval else None
    return {
        "value": format_number(row.ours, decimals),
        "interval": format_number(row.interval, decimals) if row.interval else "",
        "references": ", ".join(_reference_texts(row, decimals)),
    }


def _reference_texts(row: Row, decimals: int | None) -> Iterator[str]:
    values = list(row.references.values())
    # The interval of a reference is the one after it.
    for (name, value), following in zip(row.references.items(), [*values[1:], None]):
        shown = decimals
        if decimals is not None:
            interval = value if isinstance(value, tuple) else following
            number = value[0] if isinstance(value, tuple) else value
            own = interval if isinstance(interval, tuple) else None
            shown = reference_decimals(number, own, decimals)
        yield f"{name} {format_number(value, shown)}"


def bold_markup(note: str) -> Markup:
    """Turn the **bold** of a note in Markdown into HTML; everything else is text."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(note))))


def flatten(metrics: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (dotted key, number) of nested metrics."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def build_charts(
    plots: dict[str, list[dict]], classes: list[str], metrics: dict[str, dict]
) -> list[dict]:
    """Draw the charts of the page.

    Args:
        plots: file name without `.csv` -> rows of metrics/plots/*.csv.
        classes: those of the params that are used, in their order.
        metrics: file name without `.json` -> content of metrics/*.json.

    Returns:
        {title, text, svg, perhaps wide: whether it needs the page's width} per chart.
    """
    scene_pairs = plots["confusion_scenes"]
    scenes = sorted({row[column] for row in scene_pairs for column in ("actual", "predicted")})
    return [
        agreement_chart(plots["caption_agreement_by_scene"]),
        fid_chart(plots["fid_curve"], metrics["fid"]),
        diffusion_chart(plots["diffusion_loss"]),
        language_model_chart(plots["llm_loss"]),
        accuracy_chart(plots["accuracy_by_class_lulc"], metrics["classify_lulc"]["seeds"]),
        confusion_chart(
            "Land cover", plots["confusion_lulc"], classes, metrics["classify_lulc"]["seeds"]
        ),
        confusion_chart("Scenes", scene_pairs, scenes, metrics["classify_scenes"]["seeds"]),
    ]


def numbers(rows: list[dict], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def intervals(rows: list[dict], column: str) -> list[tuple[float, float]]:
    return list(zip(numbers(rows, f"{column}_lo"), numbers(rows, f"{column}_hi")))


def agreement_chart(rows: list[dict]) -> dict:
    """Chart caption_agreement_by_scene.csv: bars of the tuned and base model and of real tiles."""
    title = "Caption agreement by scene"
    series = {
        "tuned": numbers(rows, "tuned"),
        "base": numbers(rows, "base"),
        "real tiles": numbers(rows, "real"),
    }
    scenes = [row["scene"] for row in rows]
    svg = charts.bar_chart(title, scenes, series, "share recognized", intervals(rows, "tuned"))
    return {
        "title": title,
        "text": "Share of images that a classifier of real tiles recognizes as the scene of "
        "their caption. Lines: 95 % CI of the tuned model's.",
        "svg": Markup(svg),
    }


def fid_chart(rows: list[dict], fid: dict) -> dict:
    """Draw the FID curves. fid: metrics/fid.json; the curves are Inception's where it has them."""
    title = "FID by the number of images"
    extractor = "inception2048" if "inception2048" in fid else "scene"
    columns = {"tuned": "tuned", "base": "base", "real vs. real": "floor"}
    measured = [row for row in rows if row["images"]]
    text = f"FID of subsets, {extractor} features, over one by their size. The fitted lines meet "
    text += "the left edge at the FID of infinitely many images."
    if fid[extractor]["standard"].get("infinity_singular"):
        text += " Here that is far too high: half of the images are not more than the features' "
        text += "dimensions."
    if any(row["floor"] for row in measured):
        text += " Real vs. real: held-out real images against training images, of the same scenes "
        text += "where there are enough."
    else:  # fewer training tiles than images
        del columns["real vs. real"]
    # A curve of one size, of 2 or 3 test tiles, has no line: matplotlib draws nothing of NaN.
    lines = {
        label: [float(row[f"{column}_line"] or "nan") for row in rows]
        for label, column in columns.items()
    }
    svg = charts.fid_curve_chart(
        title,
        numbers(measured, "one_over_n"),
        {label: numbers(measured, column) for label, column in columns.items()},
        numbers(rows, "one_over_n"),
        lines,
    )
    return {"title": title, "text": text, "svg": Markup(svg)}


def diffusion_chart(rows: list[dict]) -> dict:
    """Chart diffusion_loss.csv: training and validation loss over optimizer steps."""
    title = "Diffusion fine-tuning"
    series = {
        "training": numbers(rows, "train_loss"),
        "validation": numbers(rows, "validation_loss"),
    }
    return {
        "title": title,
        "text": "Denoising loss; step 0 is the base model. Where finetune_sd.min_snr_gamma is set, "
        "the training loss is weighted by it and is lower than the validation loss, which isn't.",
        "svg": Markup(charts.line_chart(title, numbers(rows, "step"), series, "loss")),
    }


def language_model_chart(rows: list[dict]) -> dict:
    """Chart llm_loss.csv: nats per token over optimizer steps."""
    title = "Language model fine-tuning"
    series = {"training": numbers(rows, "loss")}
    svg = charts.line_chart(title, numbers(rows, "step"), series, "loss (nats)")
    return {"title": title, "text": "Training loss per token.", "svg": Markup(svg)}


def accuracy_chart(rows: list[dict], seeds: int) -> dict:
    """Chart accuracy_by_class_lulc.csv. seeds: number of classifiers that it is of."""
    title = "Land cover: accuracy by class"
    series = {"accuracy": numbers(rows, "accuracy")}
    classes = [row["class"] for row in rows]
    svg = charts.bar_chart(title, classes, series, "accuracy", intervals(rows, "accuracy"))
    spread = "and other training runs" if seeds > 1 else "but not other training runs"
    return {
        "title": title,
        "text": f"Accuracy on real tiles of {name_classifiers(seeds)}. Lines: 95 % CI; it covers "
        f"other tiles {spread}.",
        "svg": Markup(svg),
    }


def name_classifiers(seeds: int) -> str:
    """Name the classifiers that a chart is of. seeds: their number."""
    if seeds == 1:
        return "the classifier trained on generated images"
    return f"the {seeds} classifiers trained on generated images, with a seed each, together"


def confusion_chart(subject: str, rows: list[dict], names: list[str], seeds: int) -> dict:
    """Chart a confusion matrix.

    Args:
        subject: what the classifiers tell apart, for the title.
        rows: {actual, predicted} of each tile and classifier.
        names: of the classes, in their order.
        seeds: number of classifiers.
    """
    title = f"{subject}: confusion matrix on real tiles"
    pairs = [(row["actual"], row["predicted"]) for row in rows]
    is_wide = len(names) > charts.WIDE  # too small for numbers
    text = f"Tiles in the answers of {name_classifiers(seeds)}, shaded by the share of the "
    text += "actual class."
    if not is_wide:
        text += " The numbers are counts" + (f", {seeds} of each tile." if seeds > 1 else ".")
    return {
        "title": title,
        "text": text,
        "svg": Markup(charts.confusion_matrix(title, pairs, names)),
        "wide": is_wide,
    }
