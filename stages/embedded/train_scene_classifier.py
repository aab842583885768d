"""Train the scene classifier that ships in `stages/embedded/models/scene/`.

    python -m stages.embedded.train_models scene

It judges the embedded scenes: a classifier that each run trained for itself would differ between
CPUs, and with it every metric of its features. The tiles are rendered, as a run's are, from seeds
that no run can have. It takes ten minutes on one core, and one thread. Another kind of CPU gives
other weights, so they ship with the repository.
"""

from pathlib import Path

import numpy as np
import torch

from stages.common.torch_setup import make_deterministic
from stages.embedded.scenes import SCENES, render_tiles
from stages.evaluation.networks import channel_statistics, save_network
from stages.params import TrainScene
from stages.runtime.progress import log, progress_bar
from stages.train_scene import EMBEDDED, predict, train

# The seeds of runs are below 2**32, so no run has a tile of these.
SEED = 2**32 + 20260104  # of the training tiles
HELD_OUT_SEED = SEED + 1  # of the tiles that its accuracy is measured on
TRAINING_TILES = 12000
HELD_OUT_TILES = 2400
CONFIG = TrainScene(
    source="scratch", model="test_resnet", resolution=64, epochs=10, batch_size=64, lr=6.0e-3
)


def main(folder: Path = EMBEDDED) -> None:
    """Train on rendered tiles; write the weights in half precision and their configuration."""
    torch.set_num_threads(1)
    make_deterministic(SEED)
    scenes = sorted(SCENES)
    images, labels = render_labeled_tiles(SEED, TRAINING_TILES, scenes)
    mean, std = channel_statistics(images)
    network = train(images, labels, mean, std, len(scenes), CONFIG, SEED)
    network = network.half().float()  # measure what ships

    held_out_images, held_out_labels = render_labeled_tiles(HELD_OUT_SEED, HELD_OUT_TILES, scenes)
    correct = predict(network, held_out_images, mean, std) == held_out_labels
    for number, scene in enumerate(scenes):
        log(f"{scene}: accuracy {correct[held_out_labels == number].float().mean():.3f}")
    accuracy = correct.double().mean().item()
    log(f"accuracy {accuracy:.4f} on {HELD_OUT_TILES} held-out tiles")
    config = {
        "model": CONFIG.model,
        "resolution": CONFIG.resolution,
        "scenes": scenes,
        "mean": mean,
        "std": std,
        "valid_accuracy": accuracy,
        "n_valid": HELD_OUT_TILES,
        "n_train": TRAINING_TILES,
    }
    save_network(folder, network.half(), config)


def render_labeled_tiles(
    seed: int, count: int, scenes: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles uint8 [N, 3, R, R] in the `domain` look, and the numbers [N] of their scenes."""
    tiles = render_tiles(seed, 0, count, CONFIG.resolution, "domain")
    images = np.empty((count, CONFIG.resolution, CONFIG.resolution, 3), np.uint8)
    labels = []
    for i, tile in enumerate(progress_bar(tiles, total=count, desc="render", unit="tile")):
        images[i] = tile["image"]
        labels.append(scenes.index(tile["scene"]))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
