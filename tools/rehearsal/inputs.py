"""Inputs of a rehearsal: local ones, and those that stand in for the hub's."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from stages.common import sources
from stages.params import ROLES, FetchImagery
from stages.runtime.errors import exit_with_error
from tools.rehearsal.cuts import Counts, Params, prompts_per_class

SourceCounts = dict[str | None, int]  # split of the source -> images; None: those in no split
# Data sets of the hub that rendered tiles can stand in for.
HUB_IMAGES: dict[str, SourceCounts] = {
    "arampacha/rsicd": {"train": 8734, "valid": 1094, "test": 1093},
}
SPLITS = ("train", "valid", "test")
NOTES = Path("stages/embedded/notes")


def local_sources(params: Params) -> Iterator[tuple[str, str, str, str]]:
    """Section, key, kind and location of each source that names a file or folder."""
    keys = [("fetch_papers", "source"), ("fetch_imagery", "source"), ("encode", "base_domain")]
    keys += [("fetch_model", role) for role in ROLES]
    for section, name in keys:
        kind, _, location = params[section][name].partition(":")
        if kind in ("path", "arxiv"):
            yield section, name, kind, location


def resolve_paths(params: Params) -> list[Path]:
    """Make sources relative to the repository absolute in `params`: the copy doesn't hold them.

    Sources that begin with $ or ~ are left as they are.

    Returns:
        The files and folders that the sources name.

    Raises:
        SystemExit: such a folder is an output of the run, which would replace it.
    """
    paths = []
    for section, name, kind, location in local_sources(params):
        text = location
        if location.startswith("$"):
            variable, rest = sources.split_variable(location)
            if variable not in os.environ:  # the stage says so
                continue
            text = os.environ[variable] + rest
        path = Path(os.path.abspath(os.path.expanduser(text)))
        # The stage would not notice: it runs in the copy, whose outputs lie elsewhere.
        label = f"{section}.{name}: {kind}:{location}"
        sources.refuse_output_folders(path, label)
        if not location.startswith(("$", "~")):
            params[section][name] = f"{kind}:{path}"
        paths.append(path)
    return paths


def absolute_variables(params: Params) -> dict[str, str]:
    """The variables that sources are located by, made absolute: a stage runs in the copy."""
    variables = {}
    names = [
        sources.split_variable(location)[0]
        for _, _, _, location in local_sources(params)
        if location.startswith("$")
    ]
    for name in [*names, "TORCHGEO_DATA"]:
        if os.environ.get(name):
            variables[name] = os.path.abspath(os.path.expanduser(os.environ[name]))
    return variables


def write_text(params: Params, file: Path) -> None:
    """Write the run's own text, for tokenizers: the field notes and what the params say."""
    parts = [note.read_text(encoding="utf-8") for note in sorted(NOTES.glob("*.md"))]
    for _ in range(20):  # so that the words of the prompts are single tokens
        parts += [params["prompt"]["positive_cues"], params["prompt"]["negative_prompt"]]
    file.write_text("\n".join(parts), encoding="utf-8")


def make_models(params: Params, folder: Path, layers: int | None) -> tuple[dict[str, int], Params]:
    """Make models of random weights for the sources that are not here.

    Returns:
        role -> bytes that the hub's model has; `params` with the models as sources.
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
    return sizes, params


def count_images(params: Params, source: str) -> dict[str, int]:
    """Count the images that `fetch_imagery` would keep of a source.

    Near-duplicates, and tiles that lie between splits or have too few valid pixels, are counted.

    Args:
        params: of the scale.
        source: in place of the scale's.

    Returns:
        split -> images.
    """
    from stages.fetch_imagery import configured_reading, open_configured_source
    from stages.imagery.mask_files import skip_mask_files
    from stages.imagery.scene_tiles import cut_scenes
    from stages.imagery.skip_report import SkipReport
    from stages.imagery.splits import take_named_folders
    from stages.imagery.survey import survey_items

    config = FetchImagery(**params["fetch_imagery"] | {"source": source})
    opened, _ = open_configured_source(config, params["seed"])
    images = take_named_folders(skip_mask_files(opened, config.mask), config.splits.model_dump())
    reading = configured_reading(config, opened)
    survey = survey_items(cut_scenes(images, config.tile, config.labels, reading), SkipReport())
    return count_splits(params, survey.image_counts())


def count_splits(params: Params, images: SourceCounts) -> Counts:
    """Return the sizes of train, valid and test that a scale's params make of a source's splits.

    Raises:
        SystemExit: none are left to train on.
    """
    from stages.imagery.splits import match_splits

    config = params["fetch_imagery"]
    splits, missing = match_splits(images, config["splits"], "fetch_imagery.splits")
    counts: Counter[str] = Counter()
    for name, split in splits.items():
        counts[split] += min(images[name], config["max_images"] or images[name])
    for split in missing:
        share = config[split]
        counts[split] = int(share if share >= 1 else share * counts["train"])
    total = counts["train"]
    counts["train"] -= sum(counts[split] for split in missing)
    if counts["train"] < 1:
        keys = ", ".join(f"fetch_imagery.{split}" for split in missing)
        held_out = total - counts["train"]
        exit_with_error(
            f"{keys}: they leave no image to train on: {held_out} of {total} are held out"
        )
    return dict(counts)


def scenes_in_turn(params: Params) -> list[str]:
    """The scenes of the classes that get prompts: the classes take turns, and so do their scenes.

    Each class then has as many of the first tiles as any other, for its classifier to learn from.
    """
    counts = prompts_per_class(params)
    shown = [scenes for name, scenes in params["classes"].items() if scenes and counts[name]]
    turns = max(map(len, shown), default=0)
    return [scenes[turn % len(scenes)] for turn in range(turns) for scenes in shown]


def render_imagery(params: Params, folder: Path, images: int) -> None:
    """Write `images` rendered tiles per split in RSICD's layout: image, captions, filename.

    Their scenes are named after those of the rehearsal's classes; their content is the embedded
    scenes'.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.common.artifacts import IMAGE
    from stages.imagery.embedded_scenes import SceneId, render_scene

    scenes = scenes_in_turn(params)
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


def copy_first_rows(params: Params, source: Path, folder: Path, images: int) -> None:
    """Copy the first rows of each split of Parquet tables, with the scenes of the rehearsal.

    The copy has the tables of the source, most of them empty, so that it is read as the source is.

    Args:
        params: of the rehearsal.
        source: a folder of Parquet tables.
        folder: is made.
        images: rows per split, at most.

    Raises:
        SystemExit: there are no such tables, or they can't be read as imagery.
    """
    import pyarrow.parquet as pq

    from stages.imagery.readers.items import scene_of
    from stages.imagery.readers.open_source import open_source

    key = "--imagery"
    root = sources.local_path(f"path:{source}", key)
    if not any(root.rglob("*.parquet")):
        exit_with_error(f"{key}: {source}: no Parquet files")
    tables = open_source(root, key, params["fetch_imagery"]["caption"])
    shown = scenes_in_turn(params)
    items = tables.read_items(False)  # those of the first table, then those of the second, ...
    begun = set()
    for file in tables.files:
        parquet = pq.ParquetFile(file)
        of_file = islice(items, parquet.metadata.num_rows)
        rows = [(item.split, scene_of(item)) for item in of_file]
        table = parquet.schema_arrow.empty_table()
        if rows and rows[0][0] not in begun:
            begun.add(rows[0][0])
            table = parquet.read().take(choose_rows([scene for _, scene in rows], shown, images))
        copy = folder / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, copy)


def choose_rows(scenes: list[str], shown: list[str], count: int) -> list[int]:
    """The numbers of the first rows in which the scenes take turns, first those that are shown.

    Args:
        scenes: of each row.
        shown: scenes in the order of their turns, each one or several times.
        count: rows, at most.
    """
    places: dict[str, list[int]] = {}  # of each scene in a turn
    for place, scene in enumerate(shown):
        places.setdefault(scene, []).append(place)
    seen: Counter[str] = Counter()
    ranked = []
    for number, scene in enumerate(scenes):
        of_scene = places.get(scene, [len(shown)])
        turn, which = divmod(seen[scene], len(of_scene))
        ranked.append((turn, of_scene[which], number))
        seen[scene] += 1
    return sorted(number for _, _, number in sorted(ranked)[:count])
