"""Extract features of a set of images, once per extractor.

    python -m stages.runtime.launch features real|base|tuned|synthetic

Images go through in fixed batches, the last one padded, dealt out over the processes: the bytes are
the same for any number of them. Of several images of one caption the first is taken.
"""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

from stages.common.artifacts import read_rows, stream_rows, write_table
from stages.common.torch_setup import make_deterministic
from stages.evaluation.extractors import caption_embeddings, load_extractor
from stages.evaluation.networks import add_black_frame, batched, decode_batch
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.process import run_stage
from stages.runtime.processes import process_state
from stages.runtime.progress import log, progress_bar

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

    for name in [*features.extractors, "pixels"]:
        network = load_extractor(name).to(state.device)
        for folder, images in SOURCES[which].items():
            title = f"{name} of {folder}"
            outputs = extract(network, images, len(rows[folder]), features.batch_size, state, title)
            if name == "clip" and which in ("base", "tuned"):
                captions = [row["caption"] for row in read_rows(images, ["caption"])]
                outputs["captions"] = caption_embeddings(
                    network, captions[: len(rows[folder])], features.batch_size
                )
            write_features(folder, name, outputs, state)
        if which == "real" and features.padded and name != "pixels":
            outputs = extract(
                network,
                SOURCES["real"]["real/test"],
                len(rows["real/test"]),
                features.batch_size,
                state,
                f"{name} of padded tiles",
                prepare=add_black_frame,
            )
            write_features("real/test_padded", name, outputs, state)

    if state.is_main_process:
        for folder, kept_rows in rows.items():
            table = pa.Table.from_pylist(kept_rows).select(columns)
            write_table(FEATURES / folder / "rows.parquet", table)


def read_first_rows(which: str, columns: list[str]) -> dict[str, list[dict]]:
    """The rows of each folder whose features are extracted.

    Further samples of the same captions come after all first ones: the rows are those up to where
    file names begin to repeat.

    Raises:
        SystemExit: a folder holds no images.
    """
    rows = {}
    for folder, images in SOURCES[which].items():
        all_rows = read_rows(images, columns)
        if not all_rows:
            exit_with_error(f"{images}: no images in it")
        if "filename" in columns:
            filenames = {row["filename"] for row in all_rows}
            all_rows = all_rows[: len(filenames)]
        rows[folder] = all_rows
    return rows


@torch.inference_mode()
def extract(
    network: torch.nn.Module,
    images: str,
    count: int,
    batch_size: int,
    state: PartialState,
    title: str,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Each output of the network for the first images of a folder of shards, float32 [N, ...].

    Args:
        network: an extractor.
        images: the folder.
        count: N.
        batch_size: images per forward pass; the last batch is padded to it.
        state: of the processes, which share the batches.
        title: of the progress bar.
        prepare: changes images uint8 [B, 3, H, W] before they enter the network.
    """
    numbered_outputs = []
    batches = batched(islice(stream_rows(images, ["image"]), count), batch_size)
    for number, rows in enumerate(progress_bar(batches, desc=title, unit="batch")):
        if number % state.num_processes != state.process_index:
            continue
        padding = [rows[-1]] * (batch_size - len(rows))
        x = decode_batch(rows + padding).to(state.device)  # [B, 3, H, W]
        if prepare:
            x = prepare(x)
        outputs = network(x)
        kept = {key: value[: len(rows)].float().cpu() for key, value in outputs.items()}
        numbered_outputs.append((number, kept))
    gathered = sorted(gather_object(numbered_outputs), key=lambda item: item[0])
    first_outputs = gathered[0][1]
    return {
        key: torch.cat([outputs[key] for _, outputs in gathered]).contiguous()
        for key in first_outputs
    }


def write_features(
    folder: str, name: str, outputs: dict[str, torch.Tensor], state: PartialState
) -> None:
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
