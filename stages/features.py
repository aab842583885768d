"""Features of a set of images, once per extractor.

    python -m stages.features real|base|tuned|synthetic

Images go through in fixed groups, the last one padded, dealt out over the processes: the same bytes for any number of
them. Of each caption's samples the first counts (`classifier.images_per_caption` may ask for more).
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

from stages.common.artifacts import read_rows, stream_rows, write_table
from stages.common.torch_setup import make_deterministic
from stages.evaluation.extractors import caption_embeddings, extractor
from stages.evaluation.networks import framed, pixels
from stages.params import load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.processes import process_state
from stages.runtime.progress import log, progress_bar

SOURCES = {
    "real": {"real/train": "data/imagery/train", "real/test": "data/imagery/test"},
    "base": {"base": "data/samples/base"},
    "tuned": {"tuned": "data/samples/tuned"},
    "synthetic": {"synthetic": "data/synthetic"},
}


def main(which: str) -> None:
    p = load()
    make_deterministic(p.seed)
    state = process_state()
    captioned = which in ("base", "tuned") and "clip" in p.features.extractors
    keys = (["row", "label"] if which == "synthetic" else ["filename", "scene"]) + [
        "caption"
    ] * captioned
    rows = {place: firsts(read_rows(images, keys)) for place, images in SOURCES[which].items()}
    if empty := [images for place, images in SOURCES[which].items() if not rows[place]]:
        exit_with_error(f"{empty[0]}: no images in it")
    if state.is_main_process:
        shutil.rmtree(f"data/features/{which}", ignore_errors=True)
    for name in [*p.features.extractors, "pixels"]:
        network = extractor(name).to(state.device)
        for place, images in SOURCES[which].items():
            found = extract(
                network,
                images,
                len(rows[place]),
                p.features.batch_size,
                state,
                f"{name} of {place}",
            )
            if name == "clip" and captioned:
                found["captions"] = caption_embeddings(
                    network, [row["caption"] for row in rows[place]], p.features.batch_size
                )
            write(place, name, found, state)
        if which == "real" and p.features.padded and name != "pixels":
            found = extract(
                network,
                SOURCES["real"]["real/test"],
                len(rows["real/test"]),
                p.features.batch_size,
                state,
                f"{name} of padded tiles",
                framed,
            )
            write("real/test_padded", name, found, state)
    if state.is_main_process:
        for place, kept in rows.items():
            write_table(
                Path("data/features", place, "rows.parquet"),
                pa.Table.from_pylist(kept).select(keys[:2]),
            )


def firsts(rows: list[dict]) -> list[dict]:
    """The rows up to where file names begin to repeat: further samples of the same captions come after all first ones."""
    return (
        rows[: len({row["filename"] for row in rows})] if rows and "filename" in rows[0] else rows
    )


def write(place: str, name: str, found: dict[str, torch.Tensor], state: PartialState) -> None:
    if state.is_main_process:
        folder = Path("data/features", place)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(found, folder / f"{name}.safetensors")
        log(f"features: {place}: {name}, {len(found['features'])} x {found['features'].shape[1]}")


@torch.inference_mode()
def extract(
    network: torch.nn.Module,
    images: str,
    count: int,
    size: int,
    state: PartialState,
    what: str,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
) -> dict[str, torch.Tensor]:
    """float32 [N, ...] of each output of the network, of the first `count` rows, in groups of `size`."""
    mine = []
    groups = groups_of(islice(stream_rows(images, ["image"]), count), size)
    for number, rows in enumerate(progress_bar(groups, what=what, unit="group")):
        if number % state.num_processes == state.process_index:
            padded = rows + [rows[-1]] * (size - len(rows))
            output = network(prepare(pixels(padded).to(state.device)))
            mine.append(
                (number, {key: value[: len(rows)].float().cpu() for key, value in output.items()})
            )
    outputs = [output for _, output in sorted(gather_object(mine), key=lambda group: group[0])]
    return {key: torch.cat([output[key] for output in outputs]).contiguous() for key in outputs[0]}


def groups_of(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while group := list(islice(rows, size)):
        yield group


if __name__ == "__main__":
    run_stage(main, __doc__, which=SOURCES)
