"""The report: the paper's tables beside ours, image grids, a gallery, curves. For people to look at.

    python -m stages.report

reads   report, classes; every metrics/*.json, metrics/plots/*.csv and sweeps/*.md, data/imagery, data/samples,
        data/synthetic, data/features
writes  metrics/report/          index.html with its pictures (opens from disk), grids/*.jpg, and run.js: commit, versions,
                                 device, times and sizes of the stages, the one file that differs from run to run
        metrics/table.md         the paper's tables line by line
        metrics/context.json     the words behind the numbers: sources, protocols, digests, what compares and what doesn't
"""

import csv
from collections import Counter
from pathlib import Path

from stages.common.artifacts import digest, read_json, write_atomically, write_json
from stages.params import load
from stages.reporting import flow, page, rows, run, selection, sweeps, tables
from stages.reporting.album import Album
from stages.reporting.gallery import Gallery, judge
from stages.reporting.grids import pictures
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

OUT, SWEEPS = Path("metrics/report"), Path("sweeps")
METRICS = (
    "corpus",
    "llm",
    "prompts",
    "diffusion",
    "fid",
    "images",
    "caption_agreement",
    "ceiling_lulc",
    "ceiling_scenes",
    "classify_lulc",
    "classify_scenes",
    "review",
)
PLOTS = (
    "diffusion_loss",
    "llm_loss",
    "caption_agreement_by_scene",
    "fid_curve",
    "nearest_training",
    "confusion_lulc",
    "confusion_scenes",
    "accuracy_by_class_lulc",
)
LIMIT = 15 * 10**6  # bytes of the folder
VISION = ("inception2048", "dinov2", "clip")
ROLES = ("diffusion", "language", "writer", "embedder", "classifier", "vision")


def main() -> None:
    p = load()
    metrics = {name: read(f"metrics/{name}.json") for name in METRICS}
    plots = {name: read(f"metrics/plots/{name}.csv") for name in PLOTS}
    real, tuned, synthetic = selection.rows()
    figure_of = {row["prompt"]: row["figure"] for row in read("stages/embedded/figures.csv")}
    found = facts(tuned, synthetic)
    shown = tables.tables(metrics, found)

    judged = judge(
        [row["label"] for row in synthetic], read("models/scene/config.json")["scenes"], p.classes
    )
    album = Album()
    gallery = Gallery(album, synthetic, judged)
    shown_by_class = gallery.by_class(real, p.classes, p.report.gallery_per_class)
    extremes, pairs = gallery.extremes(), gallery.pairs(plots["nearest_training"], tuned)
    stages, outs = flow.graph()

    with atomic_folder(OUT) as out:
        sheets = selection.grids(real, tuned, synthetic, p.classes) | {
            "figures": selection.figures(figure_of),
            "nearest": selection.nearest(plots["nearest_training"], tuned),
        }
        (out / "grids").mkdir()
        for name, sheet in sheets.items():
            sheet.save(out / "grids" / f"{name}.jpg", quality=90, subsampling=0)
        album.write(out)
        page.write(
            out,
            thumb=album.thumb,
            facts=found,
            tables=shown,
            metrics=metrics,
            gallery=shown_by_class,
            extremes=extremes,
            pairs=pairs,
            items=gallery.items,
            sizes={name: sheet.size for name, sheet in sheets.items()},
            charts=page.charts_of(plots, list(p.classes)),
            sweeps=sweeps.charts_of(SWEEPS),
            imagery=read("data/imagery/REPORT.json"),
        )
        (out / "run.js").write_text(
            run.script(flow.diagram(stages), outs | {"report": [out]}), encoding="utf-8"
        )
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        if size > LIMIT:
            exit_with_error(
                f"report.gallery_per_class: the page comes to {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}: show fewer"
            )
    write_atomically("metrics/table.md", rows.markdown(shown, found.scale).encode())
    write_json("metrics/context.json", tables.context(shown, found))
    log(f"report: {OUT}/index.html, {size / 1e6:.1f} MB with its pictures")


def read(path: str):
    """A JSON file, or the rows of a CSV."""
    if not Path(path).is_file():
        exit_with_error(f"{path}: missing; `dvc repro` makes it")
    if path.endswith(".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return read_json(path)


def facts(tuned: list[dict], synthetic: list[dict]) -> tables.Facts:
    """What was run: sources, judges, sampler."""
    sources = {
        "imagery": read("data/imagery/SOURCE.json"),
        "papers": read("data/papers/SOURCE.json"),
    }
    sources |= {role: read(f"models/base/{role}/SOURCE.json") for role in ROLES}
    scene = read("models/scene/config.json")
    extractors = {
        name: {"weights": tables.weights(sources["vision"], f"{name}/")} for name in VISION
    }
    extractors["scene"] = {
        "model": scene["model"],
        "resolution": scene["resolution"],
        "weights": digest("models/scene"),
    }
    classifiers = {}
    for key in ("lulc", "scenes"):
        config, words = (
            read(f"models/classifier/{key}/{name}.json") for name in ("config", "context")
        )
        classifiers[key] = {"model": config["model"], "resolution": config["resolution"], **words}
    side = next(iter(pictures(selection.TUNED, {0}, largest=10**4).values())).width
    settings = {
        "resolution": side,
        **{name: tuned[0][name] for name in ("scheduler", "steps", "guidance_scale", "model")},
    }
    alike = read("data/imagery/REPORT.json").get("near_duplicates", {})
    return tables.Facts(
        sources,
        extractors,
        classifiers,
        settings,
        Counter(row["label"] for row in synthetic),
        alike,
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
