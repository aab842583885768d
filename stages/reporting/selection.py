"""Which images the grids show, and where."""

from pathlib import Path

from PIL import Image

from stages.common.artifacts import read_rows
from stages.reporting.grids import Line, grid, pictures

REAL, TRAINING, SYNTHETIC = (
    Path("data/imagery/test"),
    Path("data/imagery/train"),
    Path("data/synthetic"),
)
BASE, TUNED, FIGURES = (
    Path("data/samples/base"),
    Path("data/samples/tuned"),
    Path("data/samples/figures"),
)
ACROSS, PER_FIGURE = 8, 4  # tiles in a row of a grid; images per figure's prompt


def rows() -> tuple[list[dict], list[dict], list[dict]]:
    """What is known of the real test tiles, the tuned model's samples and the synthetic images, without the images."""
    drawn = ["prompt", "negative_prompt", "seed", "scheduler", "steps", "guidance_scale"]
    tuned = read_rows(TUNED, ["filename", "scene", "caption", "model", *drawn])
    return (
        read_rows(REAL, ["filename", "scene"]),
        tuned[: len({row["filename"] for row in tuned})],  # one per caption
        read_rows(SYNTHETIC, ["label", "row", "writer", "technique", "passages", *drawn]),
    )


def grids(
    real: list[dict], tuned: list[dict], synthetic: list[dict], classes: dict[str, list[str]]
) -> dict[str, Image.Image]:
    """The image grids. The same cell of real, base and tuned has the same caption."""
    class_of = {scene: label for label, scenes in classes.items() for scene in scenes}
    order = list(class_of) + sorted({row["scene"] for row in tuned} - set(class_of))
    at = {row["filename"]: place for place, row in enumerate(real)}
    cells = {
        scene: [place for place, row in enumerate(tuned) if row["scene"] == scene][:ACROSS]
        for scene in order
    }
    cells = {scene: places for scene, places in cells.items() if places}
    wanted = {place for places in cells.values() for place in places}
    images = {
        "real": pictures(REAL, {at[tuned[place]["filename"]] for place in wanted}),
        "base": pictures(BASE, wanted),
        "tuned": pictures(TUNED, wanted),
    }
    images["real"] = {place: images["real"][at[tuned[place]["filename"]]] for place in wanted}

    sheets = {
        name: grid(
            [
                Line(scene, class_of.get(scene, ""), [[of[place]] for place in places])
                for scene, places in cells.items()
            ]
        )
        for name, of in images.items()
    }
    # Side by side: the first caption of each scene, two scenes in a row.
    firsts = [(scene, places[0]) for scene, places in cells.items()]
    lines = [
        Line(
            "",
            "",
            [[of[place] for of in images.values()] for _, place in pair],
            [(scene, tuned[place]["caption"]) for scene, place in pair],
        )
        for pair in (firsts[i : i + 2] for i in range(0, len(firsts), 2))
    ]
    sheets["base_tuned"] = grid(lines, list(images), names=0)

    chosen = {label: spread(synthetic, label, ACROSS) for label in classes}
    made = pictures(SYNTHETIC, {place for places in chosen.values() for place in places})
    sheets["synthetic"] = grid(
        [Line(label, "", [[made[place]] for place in places]) for label, places in chosen.items()]
    )
    return sheets


def figures(number: dict[str, str]) -> Image.Image:
    """The prompts of the paper's Figures 4-10, each beside the tuned model's images. number: prompt -> figure."""
    rows = read_rows(FIGURES, ["scene", "caption"])
    places = {
        caption: [place for place, row in enumerate(rows) if row["caption"] == caption][:PER_FIGURE]
        for caption in dict.fromkeys(row["caption"] for row in rows)
    }
    images = pictures(FIGURES, {place for each in places.values() for place in each})
    lines = []
    for caption, each in places.items():
        label = rows[each[0]]["scene"]
        name = f"Figure {number[caption]}: {label}" if caption in number else label
        lines.append(Line(name, caption, [[images[place]] for place in each]))
    return grid(lines, names=220)


def nearest(pairs: list[dict], tuned: list[dict]) -> Image.Image:
    """The generated images that lie closest to a training tile, each beside that tile. pairs: rows of nearest_training.csv."""
    pairs, training = (
        pairs[: 2 * ACROSS],
        [row["filename"] for row in read_rows(TRAINING, ["filename"])],
    )
    at = {row["filename"]: place for place, row in enumerate(tuned)}
    places = [(at[pair["generated"]], training.index(pair["training"])) for pair in pairs]
    made, tiles = (
        pictures(TUNED, {i for i, _ in places}),
        pictures(TRAINING, {j for _, j in places}),
    )
    cells = [[made[i], tiles[j]] for i, j in places]
    captions = [
        (
            f"distance {float(pair['distance']):.3g}",
            f"{100 * float(pair['real_percentile']):.0f} % of real test tiles are closer",
        )
        for pair in pairs
    ]
    return grid(
        [Line("", "", cells[i : i + 4], captions[i : i + 4]) for i in range(0, len(cells), 4)],
        ["generated", "training"],
        names=0,
    )


def spread(synthetic: list[dict], label: str, most: int) -> list[int]:
    """Rows of a class, from as many different prompts as there are: every prompt's first image before any second."""
    seen: dict[int, int] = {}
    ranked = []
    for place, row in enumerate(synthetic):
        if row["label"] == label:
            seen[row["row"]] = seen.get(row["row"], 0) + 1
            ranked.append((seen[row["row"]], place))
    return [place for _, place in sorted(ranked)[:most]]
