"""The gallery of the report: which pictures it shows and what it tells of each.

What a generated image shows is judged by the scene classifier, which was trained on real tiles,
from the features and logits that the `features` stage stored.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file
from scipy.special import softmax

from stages.common.artifacts import read_rows
from stages.common.class_names import slug
from stages.evaluation.memorization import nearest_neighbors
from stages.reporting.album import Album
from stages.reporting.image_grids import (
    BASE,
    FIGURES,
    REAL,
    SAMPLING_COLUMNS,
    SYNTHETIC,
    TRAINING,
    TUNED,
    figure_prompts,
    name_figure,
    pick_by_prompt,
    rows_by_scene,
)
from stages.runtime.progress import log

FEATURES = Path("data/features")
PASSAGES = Path("models/index/passages.parquet")
MAX_PER_SIDE = 200  # real tiles, and generated images, in the gallery; each class has 2 at least
EXTREMES = 12  # images shown as the best, and as the worst


class Assessment(NamedTuple):
    """The scene classifier's answers on N synthetic images, in the order of data/synthetic."""

    scenes: list[str]  # the most likely one of each
    known: np.ndarray  # bool [N]: the classifier knows a scene of its class, so it can judge it
    probability: np.ndarray  # [N] sum over the scenes of its class
    agrees: list[bool]  # the most likely scene is one of its class
    distance: np.ndarray  # [N] to the nearest training tile, in features of the classifier
    training_row: np.ndarray  # [N] row number of that tile
    percentile: np.ndarray  # [N] share of real test tiles that are as near to a training tile


def assess(labels: list[str], scenes: list[str], classes: dict[str, list[str]]) -> Assessment:
    """Assess the synthetic images.

    Args:
        labels: [N] class of each.
        scenes: names of the classifier's outputs.
        classes: class -> scenes that show it.
    """
    synthetic = load_file(FEATURES / "synthetic/scene.safetensors")
    train = load_file(FEATURES / "real/train/scene.safetensors")
    test = load_file(FEATURES / "real/test/scene.safetensors")
    probabilities = softmax(synthetic["logits"].astype(np.float64), axis=1)  # [N, scenes]
    outputs = {
        label: [scene in classes.get(label, []) for scene in scenes] for label in set(labels)
    }
    of_class = np.array([outputs[label] for label in labels])  # [N, scenes]
    most_likely = probabilities.argmax(1)  # [N]
    distance, training_row = nearest_neighbors(synthetic["features"], train["features"])
    test_distance, _ = nearest_neighbors(test["features"], train["features"])
    closer = np.searchsorted(np.sort(test_distance), distance, side="right")
    return Assessment(
        scenes=[scenes[i] for i in most_likely],
        known=np.array([any(outputs[label]) for label in labels]),
        probability=(probabilities * of_class).sum(1),
        agrees=[bool(row[i]) for row, i in zip(of_class, most_likely)],
        distance=distance,
        training_row=training_row,
        percentile=closer / len(test_distance),
    )


class Gallery:
    """Collect the pictures of the page. One that stands in several places is stored once.

    Attributes:
        judged: number of synthetic images that the classifier can judge; 0 where it selected them.
        unjudged: classes whose scenes it doesn't know, in alphabetical order; none where it
            selected the images.
        items: address of a picture -> what the page tells of it. All values are text: JavaScript
            would round a 63-bit seed.
    """

    def __init__(
        self,
        album: Album,
        synthetic: list[dict],
        assessment: Assessment | None,
        classes: dict[str, list[str]],
    ) -> None:
        """Make an empty gallery.

        Args:
            album: takes the pictures.
            synthetic: rows of data/synthetic.
            assessment: of all synthetic images; None: the classifier selected them.
            classes: class -> scenes that show it, used or not.
        """
        self.album = album
        # A scene that shows no class is missing.
        self.class_of = {scene: label for label, scenes in classes.items() for scene in scenes}
        self.synthetic = synthetic
        self.assessment = assessment
        known = [] if assessment is None else assessment.known.tolist()
        self.judged = sum(known)
        unjudged = {row["label"] for row, is_known in zip(synthetic, known) if not is_known}
        self.unjudged = sorted(unjudged)
        self.training_files = [row["filename"] for row in read_rows(TRAINING, ["filename"])]
        passages = pq.read_table(PASSAGES, columns=["paper", "title"]).to_pydict()
        self.paper_titles = dict(zip(passages["paper"], passages["title"]))
        self.items: dict[str, dict] = {}

    def real_item(self, row: dict, number: int) -> dict:
        """Add a real test tile. row: of data/imagery/test; number: of that row."""
        address = self.album.add("real", REAL, number)
        item = {
            "picture": address,
            "kind": "real",
            "label": self.class_of.get(row["scene"], ""),
            "title": f"Real: {row['scene']}",
            "facts": {"scene": row["scene"], "file": row["filename"]},
        }
        return self.items.setdefault(address, item)

    def synthetic_item(self, number: int) -> dict:
        """Add a synthetic image, by its row number."""
        row = self.synthetic[number]
        address = self.album.add("synthetic", SYNTHETIC, number)
        writer = f"{row['writer']}, {row['technique']}"
        passages = [
            f"{self.paper_titles.get(cited['paper'], cited['paper'])} ({cited['paper']}), "
            f"page {cited['page']}"
            for cited in row["passages"] or []
        ]
        item = {
            "picture": address,
            "kind": "generated",
            "label": row["label"],
            "title": row["prompt"],
            "writer": writer,
            "facts": sampling_facts(row) | {"writer": writer},
            "passages": passages,
        }
        if self.assessment is not None:
            self.add_verdict(item, number, self.assessment)
        return self.items.setdefault(address, item)

    def add_verdict(self, item: dict, number: int, assessment: Assessment) -> None:
        """Add to an item what the classifier says of that synthetic image, and its nearest tile."""
        if assessment.known[number]:
            agrees = assessment.agrees[number]
            item["agrees"] = agrees
            item["facts"]["predicted scene"] = (
                f"{assessment.scenes[number]} "
                f"({'agrees' if agrees else 'disagrees'} with its class, which has probability "
                f"{assessment.probability[number]:.1%})"
            )
        item["nearest"] = self.nearest_tile(
            int(assessment.training_row[number]),
            assessment.distance[number],
            assessment.percentile[number],
        )

    def nearest_tile(self, training_row: int, distance: float, percentile: float) -> dict:
        """Add the training tile that is nearest to an image."""
        return {
            "picture": self.album.add("training", TRAINING, training_row),
            "file": self.training_files[training_row],
            "distance": f"{distance:.3g}",
            "closer": f"{percentile:.1%} of real test tiles are as near to a training tile",
        }

    def by_class(
        self, real: list[dict], classes: dict[str, list[str]], per_class: int
    ) -> list[dict]:
        """Add up to `per_class` real and as many synthetic images of each class.

        Args:
            real: rows of data/imagery/test.
            classes: class -> scenes that show it.
            per_class: number of images; fewer are shown where there are many classes.

        Returns:
            {label, slug, real: [item], generated: [item]} per class.
        """
        shown = min(per_class, max(MAX_PER_SIDE // len(classes), 2))
        if shown < per_class:
            log(f"report: {len(classes)} classes: {shown} pictures of each, not {per_class}")
        entries = []
        for label, scenes in classes.items():
            tiles = [number for number, row in enumerate(real) if row["scene"] in scenes]
            images = pick_by_prompt(self.synthetic, label, shown)
            entry = {
                "label": label,
                "slug": slug(label),
                "real": [self.real_item(real[number], number) for number in tiles[:shown]],
                "generated": [self.synthetic_item(number) for number in images],
            }
            entries.append(entry)
        return entries

    def best_and_worst(self) -> dict[str, list[dict]]:
        """Add the synthetic images whose class the classifier finds most and least probable.

        {} where there are none: it selected the images, or knows no scene of any class.
        """
        if self.assessment is None or not self.assessment.known.any():
            return {}
        order = np.argsort(self.assessment.probability, kind="stable")
        ascending = [int(i) for i in order if self.assessment.known[i]]
        return {
            "worst": [self.synthetic_item(number) for number in ascending[:EXTREMES]],
            "best": [self.synthetic_item(number) for number in ascending[::-1][:EXTREMES]],
        }

    def sample_item(
        self, collection: str, folder: Path, number: int, row: dict, label: str, scene: str = ""
    ) -> dict:
        """Add a sample of the base or the tuned model.

        Args:
            collection: the name of the folder in addresses.
            folder: of the samples.
            number: that of the row in the folder.
            row: its settings and prompt.
            label: its class; "" for a scene of none.
            scene: that of its caption; "" for a prompt of a class, or a tile without scene.
        """
        address = self.album.add(collection, folder, number)
        item = {
            "picture": address,
            "kind": "generated",
            "label": label,
            "title": row["prompt"],
            "facts": ({"scene": scene} if scene else {}) | sampling_facts(row),
        }
        return self.items.setdefault(address, item)

    def before_and_after(
        self, real: list[dict], tuned: list[dict], classes: dict[str, list[str]]
    ) -> list[dict]:
        """Add the first test caption of each scene: its tile, and both models' images.

        Args:
            real: rows of data/imagery/test.
            tuned: rows of data/samples/tuned.
            classes: class -> scenes that show it.

        Returns:
            {scene, caption, items: {real, base, tuned}} per scene.
        """
        real_row_of = {row["filename"]: number for number, row in enumerate(real)}
        entries = []
        for scene, (number, *_) in rows_by_scene(tuned, classes).items():
            row = tuned[number]
            tile = real_row_of[row["filename"]]
            label = self.class_of.get(scene, "")
            items = {
                "real": self.real_item(real[tile], tile),
                "base": self.sample_item("base", BASE, number, row, label, scene),
                "tuned": self.sample_item("tuned", TUNED, number, row, label, scene),
            }
            entries.append({"scene": scene, "caption": row["caption"], "items": items})
        return entries

    def figures(self, figure_of: dict[str, str]) -> list[dict]:
        """Add the tuned model's images of the prompts of the paper's figures.

        Args:
            figure_of: prompt -> number of the figure.

        Returns:
            {name, label, prompt, unseen: words that no caption of a training tile has, items} per
            prompt.
        """
        # `scene` is the class of the prompt.
        samples = read_rows(FIGURES, ["scene", *SAMPLING_COLUMNS])
        captions = (row["captions"] for row in read_rows(TRAINING, ["captions"]))
        known = {word for texts in captions for text in texts for word in split_words(text)}
        entries = []
        for prompt, rows in figure_prompts().items():
            label = samples[rows[0]]["scene"]
            entry = {
                "name": name_figure(figure_of.get(prompt), label),
                "label": label,
                "prompt": prompt,
                "unseen": [word for word in split_words(prompt) if word not in known],
                "items": [
                    self.sample_item("figures", FIGURES, i, samples[i] | {"prompt": prompt}, label)
                    for i in rows
                ],
            }
            entries.append(entry)
        return entries

    def nearest_to_training(self, pairs: list[dict], tuned: list[dict]) -> list[dict]:
        """Add the images of test captions that are nearest to a training tile.

        Args:
            pairs: rows of metrics/plots/nearest_training.csv.
            tuned: rows of data/samples/tuned.
        """
        tuned_row_of = {row["filename"]: number for number, row in enumerate(tuned)}
        training_row_of = {name: number for number, name in enumerate(self.training_files)}
        items = []
        for pair in pairs:
            number = tuned_row_of[pair["generated"]]
            row = tuned[number]
            label = self.class_of.get(row["scene"], "")
            item = self.sample_item("tuned", TUNED, number, row, label, row["scene"])
            item["facts"]["held-out tile of the caption"] = row["filename"]
            item["nearest"] = self.nearest_tile(
                training_row_of[pair["training"]],
                float(pair["distance"]),
                float(pair["real_percentile"]),
            )
            items.append(item)
        return items


def split_words(text: str) -> list[str]:
    """Return the distinct words of a text in lower case, in their order."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))


def sampling_facts(row: dict) -> dict[str, str]:
    """Return the settings with which an image was sampled. row: of a folder of samples."""
    return {name.replace("_", " "): str(row[name]) for name in SAMPLING_COLUMNS}
