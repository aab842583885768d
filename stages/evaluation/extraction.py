"""Run an extractor over a folder of images in fixed batches, kept for a run after a kill."""

import math
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from stages.common.artifacts import stream_rows
from stages.evaluation.networks import decode_batch
from stages.runtime.parallel import batched
from stages.runtime.progress import log, progress_bar
from stages.runtime.tensor_files import load_undamaged, save

SECONDS = 60.0  # between two files of finished batches: what a kill may cost

Outputs = dict[str, torch.Tensor]
Prepare = Callable[[torch.Tensor], torch.Tensor]


class FinishedBatches:
    """Outputs of finished batches in a folder of the resume cache, one file a minute."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.unwritten: dict[int, Outputs] = {}  # by number of batch
        self.written = time.monotonic()

    def read(self) -> dict[int, Outputs]:
        """The outputs of earlier runs by number of batch. Damaged files are named in the log."""
        finished: dict[int, Outputs] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            kept = load_undamaged(path)
            for name, value in (kept[0] if kept else {}).items():
                number, key = name.split(".", 1)
                finished.setdefault(int(number), {})[key] = value
        return finished

    def add(self, number: int, outputs: Outputs) -> None:
        """Keep the outputs of a batch; write all that are new a minute after the last file."""
        self.unwritten[number] = outputs
        if time.monotonic() - self.written > SECONDS:
            self.write()

    def write(self) -> None:
        """Write the new outputs to a file, complete or not at all, that the first batch names."""
        if self.unwritten:
            tensors = {
                f"{number}.{key}": value
                for number, outputs in self.unwritten.items()
                for key, value in outputs.items()
            }
            save(self.folder / f"{min(self.unwritten)}.safetensors", tensors, {})
        self.unwritten = {}
        self.written = time.monotonic()


@torch.inference_mode()
def extract(
    network: torch.nn.Module,
    images: str,
    count: int,
    batch_size: int,
    state: PartialState,
    title: str,
    prepare: Prepare | None = None,
    finished: FinishedBatches | None = None,
) -> Outputs:
    """Each output of the network for the first images of a folder of shards, float32 [N, ...].

    Args:
        network: an extractor.
        images: the folder.
        count: N.
        batch_size: images per forward pass; the last batch is padded to it.
        state: of the processes, which share the batches.
        title: of the progress bar.
        prepare: changes images uint8 [B, 3, H, W] before they enter the network.
        finished: those of earlier runs, which are not repeated, and where new ones are kept.
    """
    earlier = finished.read() if finished else {}
    if earlier:
        log(f"features: {title}: {len(earlier)} finished batches of an earlier run are kept")
    numbered_outputs = []
    batches = batched(islice(stream_rows(images, ["image"]), count), batch_size)
    total = math.ceil(count / batch_size)
    for number, rows in enumerate(progress_bar(batches, total=total, desc=title, unit="batch")):
        if number % state.num_processes != state.process_index:
            continue
        outputs = earlier.get(number)
        if outputs is None:
            padding = [rows[-1]] * (batch_size - len(rows))
            x = decode_batch(rows + padding).to(state.device)  # [B, 3, H, W]
            if prepare:
                x = prepare(x)
            outputs = {key: value[: len(rows)].float().cpu() for key, value in network(x).items()}
            if finished:
                finished.add(number, outputs)
        numbered_outputs.append((number, outputs))
    if finished:
        finished.write()
    gathered = sorted(gather_object(numbered_outputs), key=lambda item: item[0])
    first_outputs = gathered[0][1]
    return {
        key: torch.cat([outputs[key] for _, outputs in gathered]).contiguous()
        for key in first_outputs
    }
