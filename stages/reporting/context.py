"""What identifies a run: sources, classifiers, sampler. It goes to metrics/context.json."""

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from stages.common.artifacts import read_json
from stages.common.csv_files import read_csv
from stages.params import ROLES
from stages.reporting import image_grids
from stages.reporting.grids import image_width
from stages.reporting.rows import Table

CLASS_COUNTS = Path("metrics/plots/images_per_class.csv")
DEMO = "demo: numbers of small models on rendered scenes, not comparable with the paper's"


@dataclass(frozen=True)
class RunContext:
    """What the tables need to know besides the metrics."""

    sources: dict[str, dict]  # imagery, papers or the role of a base model -> its SOURCE.json
    classifiers: dict[str, dict]  # lulc, scenes -> {model, resolution, weights, ...}
    sampling: dict  # resolution, scheduler, steps, guidance_scale, model
    image_counts: dict[str, int]  # class -> number of synthetic images
    class_counts: dict[str, dict[str, int]]  # class that is used -> {prompts, images, real}
    unused_classes: list[str]  # those of 0 prompts
    near_duplicates: dict[str, int]  # groups, train_test, excluded_from_test
    trained_judge: bool  # the scene classifier was trained on this run's training tiles

    def is_embedded(self, role: str) -> bool:
        """Whether an input is the tiny one that this repository renders or trains itself."""
        return self.sources[role]["source"] == "embedded"

    @property
    def is_on_rsicd(self) -> bool:
        """Whether the imagery is the paper's."""
        return "rsicd" in self.sources["imagery"]["source"].lower()

    @property
    def scale(self) -> str:
        if self.is_embedded("imagery"):
            return DEMO
        return f"imagery: {self.sources['imagery']['source']}"


def read_context(
    tuned: list[dict],
    synthetic: list[dict],
    classes: dict[str, list[str]],
    trained_judge: bool,
) -> RunContext:
    """Collect the context of this run from data/, models/ and metrics/plots.

    Args:
        tuned: rows of data/samples/tuned, without images.
        synthetic: rows of data/synthetic, without images.
        classes: those of the params that are used.
        trained_judge: whether the scene classifier was trained on the training tiles.
    """
    counts = _read_class_counts()
    sources = {
        "imagery": read_json("data/imagery/SOURCE.json"),
        "papers": read_json("data/papers/SOURCE.json"),
    }
    for role in ROLES:
        sources[role] = read_json(f"models/base/{role}/SOURCE.json")
    return RunContext(
        sources=sources,
        classifiers={key: _read_classifier(key) for key in ("lulc", "scenes")},
        sampling=_read_sampling(tuned[0]),
        image_counts=Counter(row["label"] for row in synthetic),
        class_counts={name: counts[name] for name in classes},
        unused_classes=[name for name in counts if name not in classes],
        near_duplicates=read_json("data/imagery/REPORT.json")["near_duplicates"],
        trained_judge=trained_judge,
    )


def _read_class_counts() -> dict[str, dict[str, int]]:
    """Class -> number of its prompts, of its planned images and of its real training tiles."""
    return {
        row["class"]: {name: int(row[name]) for name in ("prompts", "images", "real")}
        for row in read_csv(CLASS_COUNTS)
    }


def _read_classifier(key: str) -> dict:
    config = read_json(f"models/classifier/{key}/config.json")
    description = read_json(f"models/classifier/{key}/context.json")
    return {"model": config["model"], "resolution": config["resolution"], **description}


def _read_sampling(row: dict) -> dict:
    """row: the first of data/samples/tuned; all of them were sampled with the same settings."""
    settings = ("scheduler", "steps", "guidance_scale", "model")
    return {"resolution": image_width(image_grids.TUNED), **{name: row[name] for name in settings}}


def weight_digests(source: dict, prefix: str = "") -> dict[str, str]:
    """Return weight file -> SHA-256 (16 hex digits) from a SOURCE.json."""
    return {
        name: sha256[:16]
        for name, sha256 in source.get("files", {}).items()
        if name.endswith(".safetensors") and name.startswith(prefix)
    }


def context_json(tables: list[Table], context: RunContext, measured_on: dict[str, dict]) -> dict:
    """Return the content of metrics/context.json.

    Args:
        tables: for each of their numbers, what it is in words, and the paper's number.
        context: what identifies the run.
        measured_on: what must be equal for numbers of two runs to compare, as data.
    """
    numbers: dict[str, dict] = {}
    for row in chain.from_iterable(table.rows for table in tables):
        numbers[row.key] = {"metric": row.metric}
        if row.paper:
            numbers[row.key]["paper"] = float(row.paper)
        if row.comparable:
            numbers[row.key]["comparable"] = row.comparable
    return {
        "scale": context.scale,
        "sources": context.sources,
        "sampling": context.sampling,
        "numbers": numbers,
        "measured_on": measured_on,
    }
