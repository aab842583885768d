"""The gallery: which pictures, what is told of each, and which show their class best and worst.

What a picture shows is said by the scene classifier that was trained on real tiles, from features that are stored already.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file
from scipy.special import softmax

from stages.common.artifacts import read_rows
from stages.evaluation.memorization import nearest_neighbors
from stages.reporting.album import Album
from stages.reporting.selection import REAL, SYNTHETIC, TRAINING, TUNED, spread

FEATURES, PASSAGES = Path("data/features"), Path("models/index/passages.parquet")
SETTINGS = ("prompt", "negative_prompt", "seed", "scheduler", "steps", "guidance_scale")
EXTREMES = 12  # images shown on either side


class Judged(NamedTuple):
    """Of each synthetic image: the scene seen in it, how likely that is its class; its nearest training tile."""

    scene: list[str]
    share: np.ndarray  # [N] probability of the scenes of its class
    agrees: list[bool]  # the most likely scene is one of its class's
    distance: np.ndarray  # [N] to the nearest training tile, in features of the scene classifier
    training: np.ndarray  # [N] that tile's row
    percentile: np.ndarray  # [N] share of real test tiles that are nearer to theirs


def judge(labels: list[str], scenes: list[str], classes: dict[str, list[str]]) -> Judged:
    """labels [N]: the class of each synthetic image; scenes: names of the classifier's outputs."""
    made, train, test = (
        load_file(FEATURES / place / "scene.safetensors")
        for place in ("synthetic", "real/train", "real/test")
    )
    shares = softmax(made["logits"].astype(np.float64), axis=1)  # [N, scenes]
    member = np.array(
        [[scene in classes[label] for scene in scenes] for label in labels]
    )  # [N, scenes]
    seen = shares.argmax(1)
    distance, training = nearest_neighbors(made["features"], train["features"])
    held_out = np.sort(nearest_neighbors(test["features"], train["features"])[0])
    percentile = np.searchsorted(held_out, distance, side="right") / len(held_out)
    return Judged(
        [scenes[i] for i in seen],
        (shares * member).sum(1),
        [bool(row[i]) for row, i in zip(member, seen)],
        distance,
        training,
        percentile,
    )


class Gallery:
    """Collects what the page shows; a picture that stands in several places is told of and stored once."""

    def __init__(self, album: Album, synthetic: list[dict], judged: Judged):
        self.album, self.synthetic, self.judged = album, synthetic, judged
        self.training = [row["filename"] for row in read_rows(TRAINING, ["filename"])]
        titles = pq.read_table(PASSAGES, columns=["paper", "title"]).to_pydict()
        self.titles = dict(zip(titles["paper"], titles["title"]))
        self.items: dict[str, dict] = {}  # address -> what the page tells of it

    def real(self, row: dict, place: int, label: str) -> dict:
        address = self.album.add("real", REAL, place)
        return self.items.setdefault(
            address,
            {
                "picture": address,
                "kind": "real",
                "label": label,
                "title": f"Real: {row['scene']}",
                "facts": {"scene": row["scene"], "file": row["filename"]},
            },
        )

    def generated(self, place: int) -> dict:
        """A synthetic image. Text only: JavaScript would round a 63-bit seed."""
        row, judged = self.synthetic[place], self.judged
        address = self.album.add("synthetic", SYNTHETIC, place)
        facts = {name.replace("_", " "): str(row[name]) for name in SETTINGS if name != "prompt"}
        facts |= {
            "writer": f"{row['writer']}, {row['technique']}",
            "shows": f"{judged.scene[place]} "
            f"({'agrees' if judged.agrees[place] else 'not the class asked for'}; its class {judged.share[place]:.0%} likely)",
        }
        return self.items.setdefault(
            address,
            {
                "picture": address,
                "kind": "generated",
                "label": row["label"],
                "title": row["prompt"],
                "writer": facts["writer"],
                "agrees": judged.agrees[place],
                "facts": facts,
                "passages": [
                    f"{self.titles.get(cited['paper'], cited['paper'])} ({cited['paper']}), page {cited['page']}"
                    for cited in row["passages"] or []
                ],
                "nearest": self.near(
                    judged.training[place], judged.distance[place], judged.percentile[place]
                ),
            },
        )

    def near(self, place: int, distance: float, percentile: float) -> dict:
        """The training tile that is nearest to an image."""
        return {
            "picture": self.album.add("training", TRAINING, int(place)),
            "file": self.training[place],
            "distance": f"{distance:.3g}",
            "closer": f"{percentile:.0%} of real test tiles are nearer to a training tile",
        }

    def by_class(self, real: list[dict], classes: dict[str, list[str]], most: int) -> list[dict]:
        """{label, slug, real: [item], generated: [item]}, so many of each."""
        found = []
        for label, scenes in classes.items():
            tiles = [place for place, row in enumerate(real) if row["scene"] in scenes][:most]
            found.append(
                {
                    "label": label,
                    "slug": label.lower().replace(" ", "-"),
                    "real": [self.real(real[place], place, label) for place in tiles],
                    "generated": [
                        self.generated(place) for place in spread(self.synthetic, label, most)
                    ],
                }
            )
        return found

    def extremes(self) -> dict[str, list[dict]]:
        """The images that show their class most and least clearly."""
        order = [int(place) for place in np.argsort(self.judged.share, kind="stable")]
        return {
            "worst": [self.generated(place) for place in order[:EXTREMES]],
            "best": [self.generated(place) for place in order[::-1][:EXTREMES]],
        }

    def pairs(self, closest: list[dict], tuned: list[dict]) -> list[dict]:
        """The images of test captions that lie nearest to a training tile (rows of nearest_training.csv), with those tiles."""
        at, training = (
            {row["filename"]: place for place, row in enumerate(tuned)},
            {name: i for i, name in enumerate(self.training)},
        )
        found = []
        for pair in closest:
            place = at[pair["generated"]]
            address, row = self.album.add("tuned", TUNED, place), tuned[place]
            facts = {
                name.replace("_", " "): str(row[name]) for name in SETTINGS if name != "prompt"
            }
            near = self.near(
                training[pair["training"]], float(pair["distance"]), float(pair["real_percentile"])
            )
            found.append(
                self.items.setdefault(
                    address,
                    {
                        "picture": address,
                        "kind": "generated",
                        "label": row["scene"],
                        "title": row["prompt"],
                        "facts": facts | {"held-out tile of the caption": row["filename"]},
                        "nearest": near,
                    },
                )
            )
        return found
