"""Make the judge: a scene classifier, the shipped one or one trained on real training tiles.

    python -m stages.runtime.launch train_scene

reads   train_scene, seed; data/imagery/{train,valid}, stages/embedded/models/scene
        (source: embedded)
writes  models/scene: model.safetensors, config.json (timm's, with scenes, mean, std, ...)

It is the `scene` feature extractor (what lies before its last layer), and it judges whether an
image shows the scene of its caption. Training that was killed resumes from its last checkpoint.
"""

import math
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

import torch
from torch.nn import functional as F

from stages.common.artifacts import fingerprint, read_rows
from stages.common.dihedral import dihedral
from stages.common.rng import rng
from stages.common.torch_setup import device_type, make_deterministic, torch_generator
from stages.diffusion.checkpoints import TrainingState
from stages.diffusion.resumable import MinuteCheckpoints
from stages.evaluation import networks
from stages.evaluation.networks import (
    channel_statistics,
    create_network,
    load_images,
    load_scene_network,
    normalize,
    save_network,
)
from stages.params import TrainScene, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar
from stages.runtime.resume_cache import resume_folder

TRAIN = Path("data/imagery/train")
OUT = Path("models/scene")
# The judge of the embedded scenes. A judge that each run trained would differ between CPUs, and
# with it all that is measured in its features. `stages/embedded/train_models.py` trained it.
EMBEDDED = Path(__file__).parent / "embedded" / "models" / "scene"
WEIGHT_DECAY = 0.05  # of AdamW
LABEL_SMOOTHING = 0.1  # share of the target that is spread over all classes
WARMUP = 0.15  # share of the steps


def main() -> None:
    params = load()
    config = params.train_scene
    make_deterministic(params.seed)
    if config.source == "embedded":
        with atomic_folder(OUT) as folder:
            copy_embedded(folder)
    else:
        train_from_scratch(config, params.seed)


def copy_embedded(folder: Path) -> None:
    """Copy the shipped judge, and log its accuracy on this run's tiles.

    The accuracy stands in no file: rounding that differs between CPUs may change the answer for a
    tile, and the judge is to have the same bytes everywhere.

    Raises:
        SystemExit: tiles show a scene that the judge doesn't know.
    """
    network, network_config = load_scene_network(EMBEDDED)
    for split in ("train", "valid"):
        scenes = {row["scene"] for row in read_rows(f"data/imagery/{split}", ["scene"])}
        unknown = sorted(scenes - set(network_config["scenes"]))
        if unknown:
            exit_with_error(
                f"data/imagery/{split}: the embedded judge doesn't know {', '.join(unknown)}; "
                "train one with train_scene.source: scratch"
            )
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(EMBEDDED / name, folder / name)
    images, labels, _ = read_tiles(
        "data/imagery/valid", network_config["scenes"], network_config["resolution"]
    )
    measure_accuracy(network, images, labels, network_config)


def train_from_scratch(config: TrainScene, seed: int) -> None:
    """Train a judge on the training tiles, and measure it on the valid tiles."""
    images, labels, scenes = read_tiles(str(TRAIN), None, config.resolution)
    if len(scenes) < 2:
        exit_with_error(f"{TRAIN}: {len(scenes)} scene(s); a scene classifier needs at least 2")
    mean, std = channel_statistics(images)
    # A run resumes only checkpoints of the same params, tiles and code.
    settings = {"train_scene": config.model_dump(), "seed": seed}
    code = [Path(__file__), Path(__file__).parent / "common/dihedral.py", Path(networks.__file__)]
    run_id = fingerprint(settings, [TRAIN, *code])
    with resume_folder("train_scene", run_id) as cache, atomic_folder(OUT) as folder:
        network = train(images, labels, mean, std, len(scenes), config, seed, cache)
        network_config = {
            "model": config.model,
            "resolution": config.resolution,
            "scenes": scenes,
            "mean": mean,
            "std": std,
        }
        valid_images, valid_labels, _ = read_tiles("data/imagery/valid", scenes, config.resolution)
        accuracy = measure_accuracy(network, valid_images, valid_labels, network_config)
        network_config |= {
            "valid_accuracy": accuracy,
            "n_valid": len(valid_images),
            "n_train": len(images),
        }
        save_network(folder, network, network_config)


def measure_accuracy(
    network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, network_config: dict
) -> float | None:
    """The accuracy, logged, on valid tiles uint8 [N, 3, R, R]; None where there are none."""
    accuracy = None
    if len(images):
        predicted = predict(network, images, network_config["mean"], network_config["std"])
        accuracy = float((predicted == labels).float().mean())
    measured = "not measured" if accuracy is None else f"{accuracy:.3f}"
    log(
        f"train_scene: accuracy {measured} on {len(images)} valid tiles, "
        f"{len(network_config['scenes'])} scenes"
    )
    return accuracy


def read_tiles(
    folder: str, scenes: list[str] | None, resolution: int
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Tiles uint8 [N, 3, R, R], their class numbers [N], and the scenes in that order.

    Tiles of other scenes than `scenes` are left out; None means all scenes of the folder. So are
    tiles without a scene.
    """
    tile_scenes = [row["scene"] for row in read_rows(folder, ["scene"])]
    if scenes is None:
        scenes = sorted(set(tile_scenes) - {""})
    indices = [i for i, scene in enumerate(tile_scenes) if scene in scenes]
    labels = torch.tensor([scenes.index(tile_scenes[i]) for i in indices], dtype=torch.long)
    return load_images(folder, resolution, indices), labels, scenes


def train(
    images: torch.Tensor,
    labels: torch.Tensor,
    mean: list[float],
    std: list[float],
    class_count: int,
    config: TrainScene,
    seed: int,
    cache: Path | None = None,
) -> torch.nn.Module:
    """Train on every tile once per epoch, each time under one of its 8 flips and rotations.

    Args:
        images: uint8 [N, 3, R, R].
        labels: class numbers [N].
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, likewise.
        class_count: number of scenes.
        config: the section `train_scene`.
        seed: of the order, the augmentation and what the network itself draws.
        cache: a folder for checkpoints, from which training resumes; None: there are none.

    Raises:
        SystemExit: the loss, or what the trained network answers, is NaN or inf.
    """
    device = device_type()
    network = create_network(config.model, class_count, config.resolution, "train_scene.model")
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = max(len(images) // config.batch_size, 1)
    total_steps = config.epochs * steps_per_epoch
    checkpoints = None
    state = TrainingState()
    if cache:
        weights = network.state_dict(keep_vars=True)  # and the averages of batch normalization
        checkpoints = MinuteCheckpoints(cache, "train_scene", weights, {}, optimizer)
        state = checkpoints.resume()
    draws = islice(draw_steps(len(images), steps_per_epoch, config, seed), state.step, None)
    bar = progress_bar(
        draws, total=total_steps, initial=state.step, desc="train_scene", unit="step"
    )
    for rows, variants, scale in bar:
        torch.manual_seed(int(rng(seed, "train_scene", state.step).integers(2**63)))  # of dropout
        optimizer.param_groups[0]["lr"] = config.lr * lr_factor(state.step, total_steps)
        x = augment(images[rows], variants).to(device)  # [B, 3, R, R]
        x = normalize(reduce_detail(x.float(), scale), mean, std)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = network(x).float()  # [B, scenes]
            loss = F.cross_entropy(logits, labels[rows].to(device), label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        state.step += 1
        if state.step % steps_per_epoch == 0 and not loss.isfinite():
            epoch = state.step // steps_per_epoch
            exit_as_diverged(f"the loss is NaN or inf by epoch {epoch}", config.lr)
        if checkpoints:
            checkpoints.save_if_due(state, total_steps)
    check_answers(network.eval(), images[: config.batch_size], mean, std, config.lr)
    return network


@torch.no_grad()
def check_answers(
    network: torch.nn.Module, images: torch.Tensor, mean: list[float], std: list[float], lr: float
) -> None:
    """Exit with an error where a trained network's answers for uint8 [B, 3, R, R] are NaN or inf.

    The last step's update, or the running averages that training doesn't use, may have diverged.
    """
    device = next(network.parameters()).device
    if not network(normalize(images.to(device).float(), mean, std)).isfinite().all():
        exit_as_diverged("the trained network's answers are NaN or inf", lr)


def exit_as_diverged(fault: str, lr: float) -> NoReturn:
    exit_with_error(f"train_scene.lr: {fault}. Try a lower lr than {lr}")


def draw_steps(
    count: int, steps_per_epoch: int, config: TrainScene, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Yield row numbers [B] out of `count`, their variants [B] for `augment`, and a scale per step.

    A resumed run draws those of the steps that were done, too: the following ones are the same.
    """
    generator = torch_generator(seed, "train_scene")
    for _ in range(config.epochs):
        order = torch.randperm(count, generator=generator)
        for rows in order.split(config.batch_size)[:steps_per_epoch]:
            variants = torch.randint(8, (len(rows),), generator=generator)
            yield rows, variants, 0.35 + 0.5 * torch.rand((), generator=generator).item()


def lr_factor(step: int, total_steps: int) -> float:
    """Factor of the peak learning rate: linear warm-up, then cosine decay to 0."""
    warmup = (step + 1) / (WARMUP * total_steps)
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / total_steps)
    return min(warmup, cosine)


def augment(images: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
    """Each image of [B, 3, R, R] under one of its 8 flips and rotations, by number [B]."""
    return torch.stack(
        [dihedral(image, variant) for image, variant in zip(images, variants.tolist())]
    )


def reduce_detail(images: torch.Tensor, scale: float) -> torch.Tensor:
    """Scale half of a batch [B, 3, R, R] down, to as little as 35 %, and up again.

    Scenes should be told by shape and layout. Without this the network relies on sensor noise,
    which no VAE keeps: one in five real tiles that a VAE has merely encoded and decoded would be
    classified differently.
    """
    half = len(images) // 2
    side = images.shape[-1]
    small = F.interpolate(images[:half], int(side * scale), mode="bilinear", antialias=True)
    return torch.cat([F.interpolate(small, side, mode="bilinear"), images[half:]])


@torch.inference_mode()
def predict(
    network: torch.nn.Module, images: torch.Tensor, mean: list[float], std: list[float]
) -> torch.Tensor:
    """Class numbers [N] of tiles uint8 [N, 3, R, R]."""
    device = next(network.parameters()).device
    predictions = []
    for batch in images.split(256):
        logits = network(normalize(batch.to(device).float(), mean, std))  # [B, scenes]
        predictions.append(logits.argmax(1).cpu())
    return torch.cat(predictions)


if __name__ == "__main__":
    run_stage(main, __doc__)
