"""Inputs of a rehearsal that stand in for those of the hub: models, imagery, papers."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

from stages.runtime.errors import exit_with_error
from tools.rehearsal.cuts import Params

ROLES = ("diffusion", "language", "writer", "embedder", "classifier", "vision")
# Images of each split of the hub's data sets.
HUB_IMAGES = {"arampacha/rsicd": {"train": 8734, "valid": 1094, "test": 1093}}
SPLITS = ("train", "valid", "test")
NOTES = Path("stages/embedded/notes")


def write_text(params: Params, file: Path) -> None:
    """Write the run's own text, for tokenizers: the field notes and what the params say."""
    parts = [note.read_text(encoding="utf-8") for note in sorted(NOTES.glob("*.md"))]
    for _ in range(20):  # so that the words of the prompts are single tokens
        parts += [params["prompt"]["positive_cues"], params["prompt"]["negative_prompt"]]
    file.write_text("\n".join(parts), encoding="utf-8")


def make_models(params: Params, folder: Path, layers: int | None) -> dict[str, int]:
    """Make models of random weights for the sources that are not here, and set these in `params`.

    Returns:
        role -> bytes that the hub's model has.
    """
    from tools.rehearsal.models import MODELS, make_model

    folder.mkdir()
    text = folder / "text.txt"
    write_text(params, text)
    sizes = {}
    for role in ROLES:
        source = params["fetch_model"][role]
        name = source.partition(":")[2].partition("@")[0]
        if role == "vision" and source.startswith(("path:$", "hub:")):
            name = "vision"
        elif not source.startswith("hub:"):
            continue
        if name not in MODELS:
            known = ", ".join(MODELS)
            exit_with_error(f"fetch_model.{role}: {source}: --random-weights makes only {known}")
        sizes[role] = make_model(name, folder / role, text, layers)
        params["fetch_model"][role] = f"path:{folder / role}"
    return sizes


def count_images(params: Params) -> dict[str, int]:
    """split -> images that `fetch_imagery` would keep, near-duplicates not subtracted."""
    from stages.fetch_imagery import open_configured_source
    from stages.imagery.skip_report import SkipReport
    from stages.imagery.splits import match_splits
    from stages.imagery.survey import survey_items
    from stages.params import FetchImagery

    config = FetchImagery(**params["fetch_imagery"])
    source, _ = open_configured_source(config, params["seed"])
    survey = survey_items(source, SkipReport())
    requested = config.splits.model_dump()
    splits, missing = match_splits(survey.image_counts(), requested, "fetch_imagery.splits")
    counts: Counter[str] = Counter()
    for name, split in splits.items():
        counts[split] += min(
            len(survey.usable[name]), config.max_images or len(survey.usable[name])
        )
    for split in missing:
        share = getattr(config, split)
        carved = int(share if share >= 1 else share * counts["train"])
        counts[split] = carved
    counts["train"] -= sum(counts[split] for split in missing)
    return dict(counts)


def render_imagery(params: Params, folder: Path, images: int) -> None:
    """Write `images` rendered tiles per split in RSICD's layout: image, captions, filename.

    Their scenes are named after those of the classes in `params`; their content is the embedded
    scenes'.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.common.artifacts import IMAGE
    from stages.imagery.embedded_scenes import SceneId, render_scene

    scenes = [scene for shown in params["classes"].values() for scene in shown]
    schema = pa.schema(
        [("image", IMAGE), ("captions", pa.list_(pa.string())), ("filename", pa.string())]
    )
    folder.mkdir()
    for split_number, split in enumerate(SPLITS):
        rows = []
        for i in range(images):
            index = split_number * images + i
            image, captions = render_scene(SceneId(0, index), params["fetch_imagery"]["resolution"])
            filename = f"rsicd_images/{scenes[i % len(scenes)]}_{index}.jpg"
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=95)
            cell = {"bytes": encoded.getvalue(), "path": filename}
            rows.append({"image": cell, "captions": captions, "filename": filename})
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{split}-00000.parquet")


def copy_first_rows(params: Params, source: Path, folder: Path, images: int) -> Counter[str]:
    """Copy the first rows of Parquet files, with all scenes of the classes among them.

    Args:
        params: of the scale.
        source: a folder of Parquet files, whose names begin with their split's.
        folder: is made.
        images: rows per split.

    Returns:
        split -> rows of the source.
    """
    import pyarrow.parquet as pq

    scenes = [scene for shown in params["classes"].values() for scene in shown]
    rows_of: Counter[str] = Counter()
    folder.mkdir()
    for file in sorted(source.rglob("*.parquet")):
        split = next((name for name in SPLITS if file.name.startswith(name)), "train")
        parquet = pq.ParquetFile(file)
        first_file = not rows_of[split]
        rows_of[split] += parquet.metadata.num_rows
        if first_file:
            table = first_rows_of_scenes(parquet, scenes, images)
            pq.write_table(table, folder / f"{split}-00000.parquet")
    if not rows_of:
        exit_with_error(f"--imagery: {source}: no Parquet files")
    return rows_of


def first_rows_of_scenes(parquet: Any, scenes: list[str], images: int) -> Any:
    """The first rows in which the scenes take turns, as a table."""
    names = parquet.read(columns=["filename"])["filename"].to_pylist()
    turn: Counter[str] = Counter()
    ranked = []
    for number, name in enumerate(names):
        scene = Path(name).stem.rpartition("_")[0]
        rank = scenes.index(scene) if scene in scenes else len(scenes)
        ranked.append((turn[scene], rank, number))
        turn[scene] += 1
    chosen = sorted(number for _, _, number in sorted(ranked)[:images])
    return parquet.read().take(chosen)
