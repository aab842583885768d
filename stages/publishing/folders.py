"""Upload folders: what a repository on the Hugging Face hub would hold, file by file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.common.artifacts import read_json, shard_paths, write_json, write_table
from stages.publishing.card import hide_local_folders, make_card
from stages.publishing.pixel_values import describe_pixel_values
from stages.publishing.repositories import Repository


def copy_output(repository: Repository, folder: Path, classes: list[str]) -> None:
    """Copy the published output into a new folder; a data set's labels become the hub's."""
    if repository.type == "dataset":
        write_labeled_shards(Path(repository.path), folder / "data", classes)
    else:
        shutil.copytree(repository.path, folder)


def hide_folders_in_model(folder: Path) -> None:
    """Hide the local folders that the JSON files of a copied model name.

    context.json names the start weights; a configuration, the folder that a library loaded it from.
    The rest of a configuration stays as it is: a token or the name of a class may look like a path.
    """
    for file in sorted(folder.rglob("*.json")):
        is_config = file.name == "model_index.json" or file.name.endswith("config.json")
        if not is_config and file.name != "context.json":
            continue
        content = read_json(file)
        hidden = hide_origins(content) if is_config else hide_local_folders(content)
        if hidden != content:
            write_json(file, hidden)


def hide_origins(config: Any) -> Any:
    """Hide the local folders in `_name_or_path` of a configuration and of its parts."""
    if not isinstance(config, dict):
        return config
    return {
        key: hide_local_folders(value) if key.endswith("name_or_path") else hide_origins(value)
        for key, value in config.items()
    }


def write_labeled_shards(source: Path, target: Path, classes: list[str]) -> None:
    """Write shards with their label as the hub's `ClassLabel`, one in memory at a time.

    A label becomes the index of its class in `classes`; the names are part of the schema.
    """
    paths = shard_paths(source)
    for number, path in enumerate(paths):
        table = pq.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])
        features["info"]["features"]["label"] = {"_type": "ClassLabel", "names": classes}
        labels = pc.index_in(table["label"], pa.array(classes)).cast(pa.int64())
        table = table.set_column(table.schema.get_field_index("label"), "label", labels)
        write_table(
            target / f"train-{number:05d}-of-{len(paths):05d}.parquet",
            table.replace_schema_metadata({"huggingface": json.dumps(features)}),
        )


def add_card_and_metrics(
    repository: Repository, folder: Path, commit: str, classes: dict[str, list[str]]
) -> None:
    """Write README.md (the card), metrics.json, metrics_context.json, perhaps pixel_values.json.

    pixel_values.json holds the bands, the stretch and its inverse, where the imagery's values
    were stretched. No file names a local folder.
    """
    metrics = {
        path.stem: read_json(path)
        for path in sorted(Path("metrics").glob("*.json"))
        if path.stem != "context"
    }
    write_json(folder / "metrics.json", metrics)
    context = hide_local_folders(read_json("metrics/context.json"))
    write_json(folder / "metrics_context.json", context)
    pixel_values = describe_pixel_values()
    if pixel_values and "imagery" in repository.inputs:
        write_json(folder / "pixel_values.json", pixel_values)
    make_card(repository, commit, classes).save(folder / "README.md")
