"""A perceptual loss for a decoder, in the features of a small CNN that learns the captions' words.

A blurred reconstruction is near in pixels; a network that must tell an orchard from a forest sees
the difference (LPIPS, Zhang et al. 2018). The network is trained here, on the images themselves,
and is not kept: no metric uses its features.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stages.common.rng import rng
from stages.common.torch_setup import device_type
from stages.diffusion.from_scratch import Trainer, normalize_pixels, random_crop

CHANNELS = (32, 64, 96, 128)  # of the levels, at 1, 1/2, 1/4 and 1/8 of the images' size
WORDS = 256  # that are learned, at most: the most frequent
WORD_STEPS = 1500  # of the network's training, at most
LR = 3e-3


class WordNetwork(nn.Module):
    """A CNN from images [B, 3, H, W] to a logit for each word that a caption may hold."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        channels_in = 3
        for level, channels in enumerate(CHANNELS):
            layers: list[nn.Module] = []
            for stride in (2 if level else 1, 1):
                layers.append(nn.Conv2d(channels_in, channels, 3, stride, padding=1))
                layers.append(nn.GroupNorm(8, channels))
                layers.append(nn.SiLU())
                channels_in = channels
            self.levels.append(nn.Sequential(*layers))
        self.head = nn.Linear(channels_in, words)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The features [B, C, H / f, W / f] of each level."""
        features = []
        x = images
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, words]."""
        return self.head(self.features(images)[-1].mean((2, 3)))


def train_word_network(
    images: np.ndarray,
    captions: list[list[str]],
    steps: int,
    batch_size: int,
    factor: int,
    seed: int,
    cache: Path,
) -> WordNetwork:
    """Train a network to tell which words the captions of an image hold; returns it frozen.

    Args:
        images: uint8 [N, H, W, 3].
        captions: of each image.
        steps, batch_size, seed: of the training.
        factor: a multiple of it is the size of the crops that the network sees.
        cache: holds the checkpoints.
    """
    counts = Counter(word for texts in captions for word in sorted(words_of(texts)))
    vocabulary = [word for word, _ in counts.most_common(WORDS)] or [""]
    torch.manual_seed(seed)
    network = WordNetwork(len(vocabulary))
    network.to(device_type())
    network.to(memory_format=torch.channels_last)
    trainer = Trainer(network, "perceptual loss", steps, LR, cache)
    for rows in trainer.batches(len(images), batch_size, seed):
        generator = rng(seed, "perceptual crop", trainer.state.step)
        x = normalize_pixels(random_crop(images[rows], generator, factor))
        words = [words_of(captions[row]) for row in rows]
        present = [[word in image_words for word in vocabulary] for image_words in words]
        target = torch.tensor(present, dtype=torch.float32, device=x.device)  # [B, words]
        trainer.step(F.binary_cross_entropy_with_logits(network(x).float(), target))
    return network.eval().requires_grad_(False)


def words_of(texts: list[str]) -> set[str]:
    """The words of an image's captions, in lower case."""
    return set(" ".join(texts).lower().split())


def perceptual_loss(network: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How far images x and y [B, 3, H, W] lie apart in a network's features: a mean [].

    Squared distances of features of length 1 at each position, summed over the levels (Zhang et al.
    2018, eq. 1, with equal weights).
    """
    with torch.no_grad():
        wanted = network.features(x)
    distances = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
        for a, b in zip(wanted, network.features(y))
    ]
    return torch.stack(distances).sum()
