"""A scene classifier, trained from scratch on real training tiles.

    python -m stages.train_scene

It is the `scene` feature extractor (what lies before its last layer) and the judge of whether an image shows the scene
of its caption.
"""

import math
from pathlib import Path

import torch
from torch.nn import functional as F

from stages.common.artifacts import read_rows
from stages.common.torch_setup import make_deterministic, torch_generator
from stages.evaluation.networks import create, load_images, normalize, save, statistics
from stages.params import TrainScene, load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar

WEIGHT_DECAY, LABEL_SMOOTHING, WARMUP = (
    0.05,
    0.1,
    0.15,
)  # AdamW; share of the target spread; share of the steps


def main():
    p = load()
    make_deterministic(p.seed)
    images, labels, scenes = tiles("data/imagery/train", None, p.train_scene.resolution)
    if len(scenes) < 2:
        exit_with_error(
            f"data/imagery/train: {len(scenes)} scene(s); a scene classifier needs at least 2"
        )
    mean, std = statistics(images)
    network = train(images, labels, mean, std, len(scenes), p.train_scene, p.seed)

    valid, valid_labels, _ = tiles("data/imagery/valid", scenes, p.train_scene.resolution)
    accuracy = (
        float((predict(network, valid, mean, std) == valid_labels).float().mean())
        if len(valid)
        else None
    )
    log(f"train_scene: accuracy {accuracy} on {len(valid)} valid tiles, {len(scenes)} scenes")
    with atomic_folder(Path("models/scene")) as part:
        save(
            part,
            network,
            {
                "model": p.train_scene.model,
                "resolution": p.train_scene.resolution,
                "scenes": scenes,
                "mean": mean,
                "std": std,
                "valid_accuracy": accuracy,
                "n_valid": len(valid),
                "n_train": len(images),
            },
        )


def tiles(
    folder: str, scenes: list[str] | None, resolution: int
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Tiles uint8 [N, 3, R, R], their scene numbers [N], the scenes' names. With `scenes`, tiles of others are left out."""
    shown = [row["scene"] for row in read_rows(folder, ["scene"])]
    scenes = sorted(set(shown)) if scenes is None else scenes
    places = [i for i, scene in enumerate(shown) if scene in scenes]
    labels = torch.tensor([scenes.index(shown[i]) for i in places], dtype=torch.long)
    return load_images(folder, resolution, places), labels, scenes


def train(
    images: torch.Tensor,
    labels: torch.Tensor,
    mean: list[float],
    std: list[float],
    classes: int,
    p: TrainScene,
    seed: int,
) -> torch.nn.Module:
    """Cross-entropy on every tile once per epoch, each time under one of its 8 flips and rotations."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = (
        create(p.model, classes, p.resolution, "train_scene.model")
        .to(device, memory_format=torch.channels_last)
        .train()
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=p.lr, weight_decay=WEIGHT_DECAY)
    per_epoch = max(len(images) // p.batch_size, 1)
    steps = p.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / (WARMUP * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        ),
    )
    draws = torch_generator(seed, "train_scene")
    for epoch in progress_bar(range(1, p.epochs + 1), what="train_scene", unit="epoch"):
        order = torch.randperm(len(images), generator=draws)
        for step in range(per_epoch):
            chosen = order[step * p.batch_size : (step + 1) * p.batch_size]
            turns = torch.randint(8, (len(chosen),), generator=draws).tolist()
            x = torch.stack(
                [turn(images[i], k) for i, k in zip(chosen.tolist(), turns)]
            )  # [B, 3, R, R]
            x = soften(x.to(device).float(), draws)
            x, y = normalize(x, mean, std), labels[chosen].to(device)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = F.cross_entropy(network(x).float(), y, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not loss.isfinite():
            exit_with_error(
                f"train_scene.lr: the loss is no number by epoch {epoch}. Try a lower lr than {p.lr}"
            )
    with torch.no_grad():
        if (
            not network.eval()(x).isfinite().all()
        ):  # the last step's update, or the running averages, which training doesn't use
            exit_with_error(
                f"train_scene.lr: the trained network's answers are no numbers. Try a lower lr than {p.lr}"
            )
    return network


def turn(image: torch.Tensor, k: int) -> torch.Tensor:
    """One of the 8 flips and rotations of an image [3, R, R]: a view from above has no preferred side."""
    image = image.flip(2) if k >= 4 else image
    return image.rot90(k % 4, (1, 2))


def soften(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Half of a batch [B, 3, R, R] loses detail: scaled down, to as little as a third, and up again.

    Scenes are to be told by shape and layout. Without this the network leans on sensor noise, which no VAE keeps: one in
    five real tiles that a VAE has merely encoded and decoded would count as something else.
    """
    half, size = len(images) // 2, images.shape[-1]
    small = int(size * (0.35 + 0.5 * torch.rand((), generator=draws).item()))
    soft = F.interpolate(images[:half], small, mode="bilinear", antialias=True)
    return torch.cat([F.interpolate(soft, size, mode="bilinear"), images[half:]])


@torch.inference_mode()
def predict(network, images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Scene numbers [N] of tiles uint8 [N, 3, R, R]."""
    device = next(network.parameters()).device
    return torch.cat(
        [
            network(normalize(x.to(device).float(), mean, std)).argmax(1).cpu()
            for x in images.split(256)
        ]
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
