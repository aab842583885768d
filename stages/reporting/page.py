"""The report page: a template, numbers, pictures. One folder that opens from disk; no server, no outside request."""

import re
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup, escape

from stages.reporting import charts, templates
from stages.reporting.rows import NUMERIC, number, texts

# The first numbers of the page.
SUMMARY = {
    "caption_agreement.caption_agreement": "generated images show their caption's scene",
    "fid.scene.standard.fid": "FID to real tiles, in features of a scene classifier; less is better",
    "classify_lulc.real_test.overall_accuracy": "of real tiles right, by a classifier trained on generated images",
    "llm.perplexity": "perplexity of the domain language model; less is better",
}


def strong(note: str) -> Markup:
    """The notes are Markdown, of which they use bold."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(note))))


def write(folder: Path, **content) -> None:
    """Fill the template into `folder/index.html`."""
    rows = {row.key: row for table in content["tables"] for row in table.rows}
    content["summary"] = [(rows[key], title) for key, title in SUMMARY.items() if key in rows]
    content["numeric"] = NUMERIC
    content["writers"] = sorted(
        {item["writer"] for item in content["items"].values() if "writer" in item}
    )
    content["numbers"] = list(flat(content["metrics"]))
    filters = {"number": number, "texts": texts, "strong": strong}
    (folder / "index.html").write_text(
        templates.render("report.html", filters, **content), encoding="utf-8"
    )


def flat(value, key: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, number) of nested metrics."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def charts_of(plots: dict[str, list[dict]], classes: list[str]) -> list[dict]:
    """The charts of the page from the rows of metrics/plots/*.csv: {title, text, svg}. classes: LULC names, in order."""

    def column(name: str, key: str, kind=float) -> list:
        return [kind(row[key]) for row in plots[name]]

    def figure(title: str, text: str, chart, *what) -> dict:
        return {"title": title, "text": text, "svg": Markup(chart(title, *what))}

    def pairs(name: str) -> list[tuple[str, str]]:
        return [(row["actual"], row["predicted"]) for row in plots[name]]

    scenes = sorted({scene for pair in pairs("confusion_scenes") for scene in pair})
    agreement = {
        "tuned": column("caption_agreement_by_scene", "tuned"),
        "base": column("caption_agreement_by_scene", "base"),
        "real (ceiling)": column("caption_agreement_by_scene", "real"),
    }
    losses = {
        "training": column("diffusion_loss", "train_loss"),
        "validation": column("diffusion_loss", "validation_loss"),
    }
    curve = {
        "tuned": column("fid_curve", "tuned"),
        "base": column("fid_curve", "base"),
        "floor": column("fid_curve", "floor"),
    }
    return [
        figure(
            "Agreement by scene",
            "Share of images in which a classifier of real tiles sees the scene of the caption.",
            charts.bars,
            column("caption_agreement_by_scene", "scene", str),
            agreement,
            "share recognized",
        ),
        figure(
            "FID and the number of images",
            "FID of ever fewer images, over one by their number: the lines meet the left edge at FID "
            "of infinitely many. Floor: real training tiles.",
            charts.curves,
            column("fid_curve", "one_over_n"),
            curve,
            "1 / number of images",
            "FID",
        ),
        figure(
            "Diffusion fine-tuning",
            "Denoising loss; step 0 is the base model.",
            charts.curves,
            column("diffusion_loss", "step"),
            losses,
            "step",
            "loss",
        ),
        figure(
            "Language model fine-tuning",
            "Training loss per token.",
            charts.curves,
            column("llm_loss", "step"),
            {"training": column("llm_loss", "loss")},
            "step",
            "loss (nats)",
        ),
        figure(
            "Land cover: accuracy by class",
            "On real tiles, of the classifier trained on generated ones.",
            charts.bars,
            column("accuracy_by_class_lulc", "class", str),
            {"accuracy": column("accuracy_by_class_lulc", "accuracy")},
            "accuracy",
        ),
        figure(
            "Land cover: real tiles, classifier of generated ones",
            "Counts, shaded by the share of the actual class.",
            charts.confusion,
            pairs("confusion_lulc"),
            classes,
        ),
        figure(
            "Scenes: real tiles, classifier of generated ones",
            "Counts, shaded by the share of the actual scene.",
            charts.confusion,
            pairs("confusion_scenes"),
            scenes,
        ),
    ]
