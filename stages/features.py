"""Extract features of a set of images, once per extractor.

    python -m stages.runtime.launch features real|base|tuned|synthetic

reads   features, seed; models/scene, models/base/vision; data/imagery/{train,test} (real),
        data/samples/{base,tuned} (base, tuned) or data/synthetic (synthetic)
writes  data/features/<set>/<extractor>.safetensors    features [N, D]; logits (scene), captions
                                                       (clip), blocking and detail (pixels)
        data/features/<set>/rows.parquet               filename, scene (of synthetic: row, label),
                                                       site

The sets of real are real/train, real/test and, with black frames, real/test_padded.
Images go through in fixed batches, the last one padded, dealt out over the processes: the bytes are
the same for any number of them. Finished batches are kept in the resume cache until all are done.
Of several images of one caption the first is taken.
"""

import shutil
from pathlib import Path

import pyarrow as pa
from accelerate import PartialState
from safetensors.torch import save_file

from stages.common.artifacts import fingerprint, read_rows, write_table
from stages.common.torch_setup import make_deterministic
from stages.evaluation import networks
from stages.evaluation.extraction import FinishedBatches, Outputs, Prepare, extract
from stages.evaluation.extractors import caption_embeddings, load_extractor, weights_folder
from stages.evaluation.networks import add_black_frame
from stages.params import Features, load
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.process import run_stage
from stages.runtime.processes import process_state
from stages.runtime.progress import log
from stages.runtime.resume_cache import resume_folder

FEATURES = Path("data/features")
# Argument of the stage -> {folder in data/features: folder of images}.
SOURCES = {
    "real": {"real/train": "data/imagery/train", "real/test": "data/imagery/test"},
    "base": {"base": "data/samples/base"},
    "tuned": {"tuned": "data/samples/tuned"},
    "synthetic": {"synthetic": "data/synthetic"},
}


def main(which: str) -> None:
    params = load()
    features = params.features
    make_deterministic(params.seed)
    state = process_state()
    columns = ["row", "label"] if which == "synthetic" else ["filename", "scene"]
    rows = read_first_rows(which, columns)
    if state.is_main_process:
        shutil.rmtree(FEATURES / which, ignore_errors=True)

    with resume_folder(f"features_{which}", run_fingerprint(which, features)) as cache:
        for name in [*features.extractors, "pixels"]:
            extract_sets(which, name, rows, features, state, cache)
        if state.is_main_process:
            for folder, kept_rows in rows.items():
                write_table(FEATURES / folder / "rows.parquet", pa.Table.from_pylist(kept_rows))


def run_fingerprint(which: str, features: Features) -> str:
    """`fingerprint` of all that decides the outputs: params, images, weights and this code."""
    inputs: list[str | Path] = [*SOURCES[which].values()]
    weights = [weights_folder(name) for name in features.extractors]
    # A missing one ends the stage later, in `load_extractor`.
    inputs += [folder for folder in weights if folder.exists()]
    inputs += [Path(__file__), *sorted(Path(networks.__file__).parent.glob("*.py"))]
    return fingerprint({"features": features.model_dump()}, inputs)


def extract_sets(
    which: str,
    name: str,
    rows: dict[str, list[dict]],
    features: Features,
    state: PartialState,
    cache: Path,
) -> None:
    """Write the features of one extractor for each set of images of the stage.

    Args:
        which: the argument of the stage.
        name: of the extractor.
        rows: of each folder in data/features.
        features: the params.
        state: of the processes.
        cache: keeps the finished batches.
    """
    network = load_extractor(name).to(state.device)
    batch_size = features.batch_size
    sets: list[tuple[str, str, Prepare | None]] = [(key, key, None) for key in SOURCES[which]]
    if which == "real" and features.padded and name != "pixels":
        sets.append(("real/test_padded", "real/test", add_black_frame))
    for folder, source, prepare in sets:
        images, count = SOURCES[which][source], len(rows[source])
        title = f"{name} of {'padded tiles' if prepare else folder}"
        finished = FinishedBatches(cache / name / folder)
        outputs = extract(network, images, count, batch_size, state, title, prepare, finished)
        if name == "clip" and which in ("base", "tuned"):
            captions = [row["caption"] for row in read_rows(images, ["caption"])]
            outputs["captions"] = caption_embeddings(network, captions[:count], batch_size)
        write_features(folder, name, outputs, state)


def read_first_rows(which: str, columns: list[str]) -> dict[str, list[dict]]:
    """The rows of each folder whose features are extracted, with the site of tiles that have one.

    Further samples of the same captions come after all first ones: the rows are those up to where
    file names begin to repeat.

    Raises:
        SystemExit: a folder holds no images.
    """
    rows = {}
    for folder, images in SOURCES[which].items():
        all_rows = read_rows(images, columns, optional=["site"])
        if not all_rows:
            exit_with_error(f"{images}: no images in it")
        if "filename" in columns:
            filenames = {row["filename"] for row in all_rows}
            all_rows = all_rows[: len(filenames)]
        rows[folder] = all_rows
    return rows


def write_features(folder: str, name: str, outputs: Outputs, state: PartialState) -> None:
    """Write `data/features/<folder>/<name>.safetensors`, from the first process alone."""
    if not state.is_main_process:
        return
    (FEATURES / folder).mkdir(parents=True, exist_ok=True)
    features_file = FEATURES / folder / f"{name}.safetensors"
    save_file(outputs, features_file)
    follow_umask(features_file)
    count, dimensions = outputs["features"].shape
    log(f"features: {folder}: {name}, {count} x {dimensions}")


if __name__ == "__main__":
    run_stage(main, __doc__, which=SOURCES)
