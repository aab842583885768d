"""The report: the paper's tables beside ours, image grids, a gallery, curves. For people to look at.

    python -m stages.report

reads   report, classes; every metrics/*.json and metrics/plots/*.csv, data/imagery, data/samples, data/synthetic
writes  metrics/report/          index.html with its pictures (opens from disk), grids/*.png
        metrics/table.md         the paper's tables line by line
        metrics/context.json     the words behind the numbers: sources, protocols, digests, what compares and what doesn't
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from stages.common.artefacts import digest, read_json, replace, write_json
from stages.common.fail import fail
from stages.common.progress import say
from stages.common.whole import whole
from stages.params import load
from stages.reporting import page, selection, tables
from stages.reporting.grids import pictures

OUT = Path("metrics/report")
METRICS = ("corpus", "llm", "prompts", "diffusion", "fid", "images", "agreement", "ceiling_lulc", "ceiling_scenes",
           "classify_lulc", "classify_scenes", "review")
PLOTS = ("diffusion_loss", "llm_loss", "agreement_by_scene", "nearest_training", "confusion_lulc", "confusion_scenes",
         "accuracy_by_class_lulc")
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

    with whole(OUT) as out:
        sheets = selection.grids(real, tuned, synthetic, p.classes) | {
            "figures": selection.figures(figure_of), "nearest": selection.nearest(plots["nearest_training"], tuned)}
        (out / "grids").mkdir()
        for name, sheet in sheets.items():
            sheet.save(out / "grids" / f"{name}.png")
        gallery = selection.gallery(out, real, synthetic, p.classes, p.report.gallery_per_class)
        page.write(out, facts=found, tables=shown, metrics=metrics, gallery=gallery,
                   charts=page.charts_of(plots, list(p.classes)), imagery=read("data/imagery/REPORT.json"))
    replace("metrics/table.md", tables.markdown(shown, found).encode())
    write_json("metrics/context.json", tables.context(shown, found))
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    say(f"report: {OUT}/index.html, {size / 1e6:.1f} MB with its pictures")


def read(path: str):
    """A JSON file, or the rows of a CSV."""
    if not Path(path).is_file():
        fail(f"{path}: missing; `dvc repro` makes it")
    if path.endswith(".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return read_json(path)


def facts(tuned: list[dict], synthetic: list[dict]) -> tables.Facts:
    """What was run: sources, judges, sampler."""
    sources = {"imagery": read("data/imagery/SOURCE.json"), "papers": read("data/papers/SOURCE.json")}
    sources |= {role: read(f"models/base/{role}/SOURCE.json") for role in ROLES}
    scene = read("models/scene/config.json")
    extractors = {name: {"weights": tables.weights(sources["vision"], f"{name}/")} for name in VISION}
    extractors["scene"] = {"model": scene["model"], "resolution": scene["resolution"], "weights": digest("models/scene")}
    classifiers = {}
    for key in ("lulc", "scenes"):
        config, words = (read(f"models/classifier/{key}/{name}.json") for name in ("config", "context"))
        classifiers[key] = {"model": config["model"], "resolution": config["resolution"], **words}
    side = next(iter(pictures(selection.TUNED, {0}).values())).width
    settings = {"resolution": side, **{name: tuned[0][name] for name in ("scheduler", "steps", "guidance_scale", "model")}}
    alike = read("data/imagery/REPORT.json").get("near_duplicates", {})
    return tables.Facts(sources, extractors, classifiers, settings, Counter(row["label"] for row in synthetic), alike)


if __name__ == "__main__":
    main(*sys.argv[1:])
