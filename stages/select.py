"""Make the synthetic data set of the images that were drawn: of all of them, or of the best.

    python -m stages.runtime.launch select

reads   generate.keep, classes, seed; data/generated, data/images_per_prompt.csv, models/scene
writes  data/synthetic         rows of data/generated, in their order
        metrics/select.json    images drawn, kept, rejected by each rule: in all, and `per_class`

`stages/evaluation/selection.py` holds the rules.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from stages.common.artifacts import (
    read_json,
    read_rows,
    shard_paths,
    stream_rows,
    write_json,
    write_shards,
)
from stages.common.class_names import slug
from stages.common.csv_files import read_csv
from stages.evaluation.selection import Candidates, Selection, select_images
from stages.imagery.near_duplicates import group_near_duplicates, thumbnail_bytes
from stages.params import load
from stages.runtime.atomic import atomic_folder, link_or_copy
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import batched
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar

GENERATED = Path("data/generated")
SCENE = Path("models/scene")
BATCH_SIZE = 64  # images per forward pass; the last batch is padded


def main() -> None:
    params = load()
    rows = read_rows(GENERATED, ["row", "label"])
    labels = [row["label"] for row in rows]
    drawn = Counter(labels)
    with atomic_folder(Path("data/synthetic")) as out:
        if params.generate.keep is None:
            link_shards(out)
            per_class = {
                name: describe_selection(count, count, Selection(np.arange(count), 0, 0, 0))
                for name, count in drawn.items()
            }
        else:
            wanted = count_wanted(rows)
            known = find_known_scenes(params.classes)
            selections = select_by_class(labels, wanted, known, params.seed)
            per_class = {
                name: describe_selection(drawn[name], wanted[name], selections[name], known[name])
                for name in drawn
            }
            log_unjudged(per_class)
            log_missing(per_class)
            refuse_lost_classes(per_class)
            write_kept(out, labels, selections)
    write_metrics(per_class)


def link_shards(out: Path) -> None:
    """Give `out` the shards of data/generated as hard links, or as copies where there are none.

    That is safe: no stage changes a shard in place, and DVC removes data/synthetic before this
    stage runs, which takes a name from a file and leaves the other. A shard that DVC checked out
    as a symbolic link is followed into its cache.
    """
    for shard in shard_paths(GENERATED):
        link_or_copy(shard.resolve(), out / shard.name)


def count_wanted(rows: list[dict]) -> dict[str, int]:
    """The number of images of each class to keep; rows: `row` and `label` of the images drawn."""
    label_of_prompt = {row["row"]: row["label"] for row in rows}
    wanted: Counter[str] = Counter()
    for line in read_csv("data/images_per_prompt.csv"):
        if int(line["images"]):  # else none was drawn
            wanted[label_of_prompt[int(line["row"])]] += int(line["images"])
    return wanted


def find_known_scenes(classes: dict[str, list[str]]) -> dict[str, set[str]]:
    """The scenes of each class that the scene classifier knows."""
    scenes = set(read_json(SCENE / "config.json")["scenes"])
    return {name: scenes.intersection(members) for name, members in classes.items()}


def select_by_class(
    labels: list[str], wanted: dict[str, int], known: dict[str, set[str]], seed: int
) -> dict[str, Selection]:
    """Select among the images of each class; those of finished classes are no longer in memory.

    Args:
        labels: the class of each image drawn.
        wanted: the number of images of each class to keep.
        known: the scenes of each class that the scene classifier knows.
        seed: of the run.
    """
    drawn = Counter(labels)
    views = progress_bar(judge_images(seed), total=len(labels), desc="select", unit="image")
    waiting: dict[str, list[tuple]] = {}
    selections = {}
    for label, view in zip(labels, views):
        of_class = waiting.setdefault(label, [])
        of_class.append(view)
        if len(of_class) == drawn[label]:
            scenes, features, thumbnails = zip(*waiting.pop(label))
            candidates = Candidates(np.array(scenes), np.array(features), np.array(thumbnails))
            selections[label] = select_images(
                candidates, known[label], wanted[label], group_near_duplicates
            )
    return selections


def judge_images(seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The scene that the classifier sees in each image drawn, its features and a thumbnail."""
    # Imported late: a set of all images needs no network.
    import torch

    from stages.common.torch_setup import device_type, make_deterministic
    from stages.evaluation.extractors import load_extractor
    from stages.evaluation.networks import decode_batch

    make_deterministic(seed)
    device = device_type()
    classifier = load_extractor("scene").to(device)
    scenes = read_json(SCENE / "config.json")["scenes"]
    for rows in batched(stream_rows(GENERATED, ["image"]), BATCH_SIZE):
        padding = [rows[-1]] * (BATCH_SIZE - len(rows))
        pixels = decode_batch(rows + padding)  # [B, 3, H, W]
        with torch.inference_mode():
            outputs = classifier(pixels.to(device))
        seen = outputs["logits"].argmax(1).tolist()  # [B]
        features = outputs["features"].float().cpu().numpy()  # [B, D]
        images = pixels[: len(rows)].permute(0, 2, 3, 1).numpy()  # [B, H, W, 3]
        for image, scene, feature in zip(images, seen, features):
            thumbnail = thumbnail_bytes(Image.fromarray(image))
            yield scenes[scene], feature, np.frombuffer(thumbnail, "<u2")


def write_kept(out: Path, labels: list[str], selections: dict[str, Selection]) -> None:
    """Write the rows of the images that are kept."""
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    kept = {rows_of[name][i] for name, selection in selections.items() for i in selection.kept}
    schema = pq.read_schema(shard_paths(GENERATED)[0])
    write_shards(out, (row for i, row in enumerate(stream_rows(GENERATED)) if i in kept), schema)


def describe_selection(
    drawn: int, wanted: int, selection: Selection, known: set[str] | None = None
) -> dict[str, float]:
    """The metrics of a class; `known` as in `find_known_scenes`, None where nothing was judged."""
    return {
        "drawn": drawn,
        "kept": len(selection.kept),
        "missing": wanted - len(selection.kept),
        "rejected_caption": selection.rejected_caption,
        "rejected_duplicate": selection.rejected_duplicate,
        "rejected_diversity": selection.rejected_diversity,
        "rejection_rate": (selection.rejected_caption + selection.rejected_duplicate) / drawn,
        "unknown_scenes": int(known is not None and not known),
    }


def log_unjudged(per_class: dict[str, dict[str, float]]) -> None:
    """Log the classes whose images were not checked for their class."""
    names = [name for name, counts in per_class.items() if counts["unknown_scenes"]]
    if names:
        log(
            f"select: the scene classifier knows no scene of {', '.join(names)}: that their images "
            "show their class is not checked"
        )


def log_missing(per_class: dict[str, dict[str, float]]) -> None:
    """Log the classes of which fewer images than wanted are left."""
    for name, counts in per_class.items():
        if counts["missing"]:
            log(
                f"select: {name}: {counts['kept']} of {counts['kept'] + counts['missing']} images, "
                f"of {counts['drawn']} drawn: {counts['rejected_caption']} show another scene, "
                f"{counts['rejected_duplicate']} look like another one"
            )


def refuse_lost_classes(per_class: dict[str, dict[str, float]]) -> None:
    """Exit with an error if no image is left, or images of one class where more were drawn."""
    lost = [name for name, counts in per_class.items() if not counts["kept"]]
    if len(per_class) - len(lost) < min(2, len(per_class)):
        exit_with_error(
            f"generate.keep: images of {len(per_class) - len(lost)} class(es) are left: the scene "
            f"classifier recognizes none of those drawn for {', '.join(lost)}; raise draw, train "
            "longer, or write null to keep them all"
        )


def write_metrics(per_class: dict[str, dict[str, float]]) -> None:
    """Write metrics/select.json: sums over the classes, and the metrics of each."""
    keys = next(iter(per_class.values()))
    total: dict = {key: sum(counts[key] for counts in per_class.values()) for key in keys}
    failed = total["rejected_caption"] + total["rejected_duplicate"]
    total["rejection_rate"] = failed / total["drawn"]
    by_slug = {slug(name): counts for name, counts in per_class.items()}
    write_json("metrics/select.json", total | {"per_class": by_slug})


if __name__ == "__main__":
    run_stage(main, __doc__)
