"""Features of a set of images, once per extractor.

    python -m stages.features real|base|tuned|synthetic

Images go through in fixed groups, the last one padded, dealt out over the processes: the same bytes for any number of them.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

from stages.common.artefacts import read_rows, stream_rows, write_table
from stages.common.fail import fail
from stages.common.processes import processes
from stages.common.progress import progress, say
from stages.common.torch_setup import deterministic
from stages.evaluation.extractors import extractor
from stages.evaluation.networks import pixels
from stages.params import load

SOURCES = {"real": {"real/train": "data/imagery/train", "real/test": "data/imagery/test"},
           "base": {"base": "data/samples/base"}, "tuned": {"tuned": "data/samples/tuned"},
           "synthetic": {"synthetic": "data/synthetic"}}


def main(which: str = ""):
    if which not in SOURCES:
        fail(f"features: say which: {', '.join(SOURCES)}")
    p = load()
    deterministic(p.seed)
    state = processes()
    if state.is_main_process:
        shutil.rmtree(f"data/features/{which}", ignore_errors=True)
    for name in p.features.extractors:
        network = extractor(name).to(state.device)
        for place, images in SOURCES[which].items():
            found = extract(network, images, p.features.batch_size, state, f"{name} of {place}")
            if state.is_main_process:
                folder = Path("data/features", place)
                folder.mkdir(parents=True, exist_ok=True)
                save_file(found, folder / f"{name}.safetensors")
                say(f"features: {place}: {name}, {len(found['features'])} x {found['features'].shape[1]}")
    if state.is_main_process:
        for place, images in SOURCES[which].items():
            columns = ["row", "label"] if which == "synthetic" else ["filename", "scene"]
            write_table(Path("data/features", place, "rows.parquet"), pa.Table.from_pylist(read_rows(images, columns)))


@torch.inference_mode()
def extract(network: torch.nn.Module, images: str, size: int, state: PartialState, what: str) -> dict[str, torch.Tensor]:
    """float32 [N, ...] of each output of the network, in the order of the rows."""
    mine = []
    for number, rows in enumerate(progress(groups_of(stream_rows(images, ["image"]), size), what=what, unit="group")):
        if number % state.num_processes == state.process_index:
            padded = rows + [rows[-1]] * (size - len(rows))
            output = network(pixels(padded).to(state.device))
            mine.append((number, {key: value[:len(rows)].float().cpu() for key, value in output.items()}))
    groups = sorted(gather_object(mine), key=lambda group: group[0])
    return {key: torch.cat([output[key] for _, output in groups]).contiguous() for key in groups[0][1]}


def groups_of(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while group := list(islice(rows, size)):
        yield group


if __name__ == "__main__":
    main(*sys.argv[1:])
