"""The image grids of the report: which images they show, and in which cells."""

from pathlib import Path

from stages.common.artifacts import read_rows
from stages.reporting.grids import Grid, GridRow, draw_grid, load_scaled_images

REAL = Path("data/imagery/test")
TRAINING = Path("data/imagery/train")
SYNTHETIC = Path("data/synthetic")
BASE = Path("data/samples/base")
TUNED = Path("data/samples/tuned")
FIGURES = Path("data/samples/figures")
# How an image was drawn, besides its prompt.
SAMPLING_COLUMNS = ("negative_prompt", "seed", "scheduler", "steps", "guidance_scale")
COLUMNS = 8  # images in a row of a grid
MAX_CELLS = 240  # images in a grid: it has fewer columns where it has many rows


def read_shown_rows() -> tuple[list[dict], list[dict], list[dict]]:
    """Read the rows of real test tiles, tuned samples and synthetic images, without the images.

    Of the tuned model's samples only the first of each caption.
    """
    sampled = ["prompt", *SAMPLING_COLUMNS]
    real = read_rows(REAL, ["filename", "scene"])
    tuned = read_rows(TUNED, ["filename", "scene", "caption", "model", *sampled])
    captions = len({row["filename"] for row in tuned})
    synthetic = read_rows(SYNTHETIC, ["label", "row", "writer", "technique", "passages", *sampled])
    return real, tuned[:captions], synthetic


def rows_by_scene(tuned: list[dict], classes: dict[str, list[str]]) -> dict[str, list[int]]:
    """Return the rows of `tuned` that are shown of each scene; the scenes of classes come first."""
    of_classes = dict.fromkeys(scene for scenes in classes.values() for scene in scenes)
    shown_scenes = {row["scene"] for row in tuned}
    columns = count_columns(len(shown_scenes))
    cells = {}
    for scene in [*of_classes, *sorted(shown_scenes - set(of_classes))]:
        rows = [number for number, row in enumerate(tuned) if row["scene"] == scene]
        if rows:
            cells[scene] = rows[:columns]
    return cells


def sample_grids(
    real: list[dict], tuned: list[dict], classes: dict[str, list[str]]
) -> dict[str, Grid]:
    """Draw the real test tiles and both models' images of their captions, a row per scene.

    Returns:
        "real", "base", "tuned": the same cell of each has the same caption.
        "base_tuned": the three side by side, the first caption of each scene.
    """
    cells = rows_by_scene(tuned, classes)
    shown = {row for rows in cells.values() for row in rows}
    real_row_of = {row["filename"]: number for number, row in enumerate(real)}
    real_rows = {row: real_row_of[tuned[row]["filename"]] for row in shown}
    real_images = load_scaled_images(REAL, set(real_rows.values()))
    images = {
        "real": {row: real_images[real_row] for row, real_row in real_rows.items()},
        "base": load_scaled_images(BASE, shown),
        "tuned": load_scaled_images(TUNED, shown),
    }

    # A scene that is a class by itself has one name.
    class_of = {scene: label for label, scenes in classes.items() for scene in scenes}
    notes = {scene: label for scene, label in class_of.items() if scene != label}
    grids = {}
    for name, image_of in images.items():
        grids[name] = draw_grid(
            [
                GridRow(scene, notes.get(scene, ""), [[image_of[row]] for row in rows])
                for scene, rows in cells.items()
            ]
        )
    firsts = [(scene, rows[0]) for scene, rows in cells.items()]
    side_by_side = []
    for start in range(0, len(firsts), 2):  # two scenes in a row of the grid
        pair = firsts[start : start + 2]
        groups = [[image_of[row] for image_of in images.values()] for _, row in pair]
        captions = [(scene, tuned[row]["caption"]) for scene, row in pair]
        side_by_side.append(GridRow("", "", groups, captions))
    grids["base_tuned"] = draw_grid(side_by_side, titles=list(images), names_width=0)
    return grids


def synthetic_grid(synthetic: list[dict], labels: list[str]) -> Grid:
    """Draw synthetic images, a row per class that has any. synthetic: rows of data/synthetic."""
    columns = count_columns(len(labels))
    cells = {label: pick_by_prompt(synthetic, label, columns) for label in labels}
    images = load_scaled_images(SYNTHETIC, {row for rows in cells.values() for row in rows})
    return draw_grid(
        [
            GridRow(label, "", [[images[row]] for row in rows])
            for label, rows in cells.items()
            if rows
        ]
    )


def figure_prompts() -> dict[str, list[int]]:
    """Return the rows of data/samples/figures of each prompt."""
    prompts: dict[str, list[int]] = {}
    for number, sample in enumerate(read_rows(FIGURES, ["caption"])):
        prompts.setdefault(sample["caption"], []).append(number)
    return prompts


def name_figure(number: str | None, label: str) -> str:
    """Name a figure of the paper by its number, which is None for other prompts, and its class."""
    return f"Figure {number}: {label}" if number else label


def figure_grid(figure_of: dict[str, str]) -> Grid:
    """Draw the tuned model's images of the prompts of the paper's Figures 4 to 10.

    Args:
        figure_of: prompt -> number of the figure.
    """
    samples = read_rows(FIGURES, ["scene"])
    prompts = figure_prompts()
    images = load_scaled_images(FIGURES, {row for rows in prompts.values() for row in rows})
    grid_rows = []
    for prompt, rows in prompts.items():
        name = name_figure(figure_of.get(prompt), samples[rows[0]]["scene"])
        grid_rows.append(GridRow(name, prompt, [[images[row]] for row in rows]))
    return draw_grid(grid_rows, names_width=220)


def nearest_grid(pairs: list[dict], tuned: list[dict]) -> Grid:
    """Draw the generated images that are nearest to a training tile, each beside that tile.

    Args:
        pairs: rows of metrics/plots/nearest_training.csv, nearest first.
        tuned: rows of data/samples/tuned.
    """
    pairs = pairs[: 2 * COLUMNS]
    tuned_row_of = {row["filename"]: number for number, row in enumerate(tuned)}
    training = read_rows(TRAINING, ["filename"])
    training_row_of = {row["filename"]: number for number, row in enumerate(training)}
    tuned_rows = [tuned_row_of[pair["generated"]] for pair in pairs]
    training_rows = [training_row_of[pair["training"]] for pair in pairs]
    generated = load_scaled_images(TUNED, set(tuned_rows))
    tiles = load_scaled_images(TRAINING, set(training_rows))
    groups = []
    captions = []
    for pair, tuned_row, training_row in zip(pairs, tuned_rows, training_rows):
        groups.append([generated[tuned_row], tiles[training_row]])
        distance = f"distance {float(pair['distance']):.3g}"
        percent = 100 * float(pair["real_percentile"])
        captions.append((distance, f"{percent:.1f} % of test tiles are as close"))
    grid_rows = [
        GridRow("", "", groups[start : start + 4], captions[start : start + 4])
        for start in range(0, len(groups), 4)
    ]
    return draw_grid(grid_rows, titles=["generated", "training"], names_width=0)


def count_columns(rows: int) -> int:
    """Return the number of images in each of so many rows of a grid."""
    return min(COLUMNS, max(MAX_CELLS // max(rows, 1), 2))


def pick_by_prompt(synthetic: list[dict], label: str, count: int) -> list[int]:
    """Pick up to `count` images of a class, from as many prompts as there are.

    Every prompt's first image comes before any prompt's second one.

    Args:
        synthetic: rows of data/synthetic.
        label: a class.
        count: how many.

    Returns:
        row numbers.
    """
    images_of_prompt: dict[int, int] = {}
    ranked = []
    for number, row in enumerate(synthetic):
        if row["label"] == label:
            rank = images_of_prompt.get(row["row"], 0)
            images_of_prompt[row["row"]] = rank + 1
            ranked.append((rank, number))
    return [number for _, number in sorted(ranked)[:count]]
