"""The report: the paper's tables beside this run's numbers, image grids, a gallery, charts.

    python -m stages.report

reads   report, classes, prompt.per_class, prompt.words, train_scene.source, what of encode,
        finetune_sd, finetune_llm and classifier decides whether numbers compare; every
        metrics/*.json, metrics/plots/*.csv and sweeps/*.md, data/imagery, data/samples,
        data/synthetic, data/features, data/chunks.parquet, models/start
writes  metrics/report/      index.html with its pictures (opens from disk), grids/*.jpg
        metrics/table.md     the paper's tables line by line
        metrics/context.json what each number is in words, and what it was measured on as data
        metrics/run.js       commit, versions, device, times and sizes of the stages: no output of
                             DVC, since it differs from run to run
"""

from pathlib import Path

from stages.common.artifacts import fingerprint, read_json, write_atomically, write_json
from stages.common.class_names import slug
from stages.common.csv_files import read_csv
from stages.params import load
from stages.reporting import image_grids
from stages.reporting.album import Album
from stages.reporting.context import context_json, read_context
from stages.reporting.gallery import Gallery, assess
from stages.reporting.grids import Grid
from stages.reporting.measured_on import measured_on
from stages.reporting.page import build_charts, write_page
from stages.reporting.rows import to_markdown
from stages.reporting.run import write_run_script
from stages.reporting.sweeps import sweep_charts
from stages.reporting.tables import build_tables, is_selected
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text.class_words import complete_words

OUT = Path("metrics/report")
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
    "select",
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
FIGURE_PROMPTS = "stages/embedded/figures.csv"
MAX_SIZE = 15 * 10**6  # bytes of the report's folder
GRIDS_SIZE = 55 * 10**5  # bytes of the grids in it, but for those of the lowest quality


def main() -> None:
    params = load()
    classes = params.used_classes()

    # What the run made.
    metrics = {name: read_json(f"metrics/{name}.json") for name in METRICS}
    plots = {name: read_csv(f"metrics/plots/{name}.csv") for name in PLOTS}
    real, tuned, synthetic = image_grids.read_shown_rows()
    context = read_context(tuned, synthetic, classes, params.train_scene.source == "scratch")
    tables = build_tables(metrics, context)

    # The pictures of the page. The classifier that selected images has no say on them.
    assessment = None
    if not is_selected(metrics["select"]):
        labels = [row["label"] for row in synthetic]
        assessment = assess(labels, read_json("models/scene/config.json")["scenes"], classes)
    album = Album()
    gallery = Gallery(album, synthetic, assessment, params.classes)
    by_class = gallery.by_class(real, classes, params.report.gallery_per_class)
    extremes = gallery.best_and_worst()
    nearest = gallery.nearest_to_training(plots["nearest_training"], tuned)
    figure_of = {row["prompt"]: row["figure"] for row in read_csv(FIGURE_PROMPTS)}
    before_and_after = gallery.before_and_after(real, tuned, classes)
    figures = gallery.figures(figure_of)
    grids = draw_grids(real, tuned, synthetic, classes, plots["nearest_training"], figure_of)
    log_numbered_names(grids)
    report_id = fingerprint(metrics, [])

    with atomic_folder(OUT) as out:
        write_grids(out / "grids", grids)
        album.write(out)
        write_page(
            out,
            tables,
            metrics,
            gallery.items,
            context,
            gallery=by_class,
            extremes=extremes,
            judged=gallery.judged,
            unjudged=gallery.unjudged,
            nearest=nearest,
            before_and_after=before_and_after,
            figures=figures,
            thumbnail=album.thumbnail_address,
            grids=grids,
            class_names={slug(name): name for name in params.classes},
            charts=build_charts(plots, list(classes), metrics) + sweep_charts(Path("sweeps")),
            imagery=read_json("data/imagery/REPORT.json"),
            report_id=report_id,
        )
        size = check_size(out)
    write_atomically("metrics/table.md", to_markdown(tables, context.scale).encode())
    words = complete_words(params.classes, params.prompt.words)
    sections = params.encode, params.finetune_sd, params.finetune_llm, params.classifier
    described = measured_on(metrics, context, classes, words, *sections)
    write_json("metrics/context.json", context_json(tables, context, described))
    write_run_script(report_id)
    log(f"report: {OUT}/index.html, {size / 1e6:.1f} MB with its pictures")


def draw_grids(
    real: list[dict],
    tuned: list[dict],
    synthetic: list[dict],
    classes: dict[str, list[str]],
    nearest_training: list[dict],
    figure_of: dict[str, str],
) -> dict[str, Grid]:
    """Draw all image grids.

    Args:
        real, tuned, synthetic, nearest_training: rows of tables.
        classes: those of the params.
        figure_of: prompt -> number of its figure in the paper.
    """
    return {
        **image_grids.sample_grids(real, tuned, classes),
        "synthetic": image_grids.synthetic_grid(synthetic, list(classes)),
        "figures": image_grids.figure_grid(figure_of),
        "nearest": image_grids.nearest_grid(nearest_training, tuned),
    }


def write_grids(folder: Path, grids: dict[str, Grid]) -> None:
    """Write all grids into a new folder, in the best quality at which they fit their budget."""
    folder.mkdir()
    for quality in (90, 80, 70, 60):
        for name, grid in grids.items():
            grid.image.save(folder / f"{name}.jpg", quality=quality, subsampling=0)
        if sum(file.stat().st_size for file in folder.iterdir()) <= GRIDS_SIZE:
            break


def log_numbered_names(grids: dict[str, Grid]) -> None:
    """Log how many names the grids show as numbers, since no font has their letters."""
    names = {name for grid in grids.values() for name in grid.names}
    if names:
        log(
            f"report: no font of this machine has all letters of {len(names)} names, such as "
            f"{min(names)}: the grids show numbers, which the page explains"
        )


def check_size(folder: Path) -> int:
    """Return the bytes of the report's folder; stop where they are too many."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MAX_SIZE:
        exit_with_error(
            f"report.gallery_per_class: the report comes to {size / 1e6:.1f} MB, more than "
            f"{MAX_SIZE / 1e6:.0f}: show fewer"
        )
    return size


if __name__ == "__main__":
    run_stage(main, __doc__)
