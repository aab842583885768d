"""Train a small latent diffusion model from scratch: VAE, text encoder, untrained UNet.

These are Stable Diffusion's parts at a size that minutes can train (Rombach et al. 2022).
`train_base` trains them on the run's own imagery, `stages.embedded.train_models` for the base model
that ships with the repository. Where training was killed it resumes from its last checkpoint, and
ends with the same bytes.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stages.common.artifacts import read_json, write_json
from stages.common.rng import rng
from stages.common.torch_setup import device_type, torch_generator
from stages.diffusion import models
from stages.diffusion.clip_tokenizer import TEXT_TOKENS, tokenize
from stages.diffusion.resumable import MinuteCheckpoints
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.progress import progress_bar

ENCODING_BATCH = 64  # images, at most; fewer where they have more than 64 px
SCALING_IMAGES = 1024  # images that the VAE's scaling factor is measured on, at most


def make_vae(channels: list[int], latent_channels: int, resolution: int) -> Any:
    """An untrained AutoencoderKL; `resolution` is the pixels per side of its images."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=channels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=resolution,
    )


def train_vae(
    vae: Any,
    images: np.ndarray,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    cache: Path,
) -> Any:
    """Train an AutoencoderKL on uint8 images [N, H, W, 3], with checkpoints in `cache`.

    Returns it in eval mode, with a `scaling_factor` of 1 / std of its latents.
    """
    vae.requires_grad_(True)
    vae.to(device_type(), memory_format=torch.channels_last)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels per latent
    trainer = Trainer(vae, "VAE", steps, lr, cache / "vae")
    for batch in trainer.batches(len(images), batch_size, seed):
        # A VAE is convolutional: crops of a quarter of an image teach it as well as whole images,
        # at a quarter of the cost.
        generator = rng(seed, "crop", trainer.state.step)
        x = normalize_pixels(random_crop(images[batch], generator, factor))  # [B, 3, H/2, W/2]
        posterior = vae.encode(x).latent_dist
        latents = posterior.sample(torch_generator(seed, "VAE noise", trainer.state.step))
        y = vae.decode(latents).sample.float()  # [B, 3, H/2, W/2]
        trainer.step(reconstruction_loss(x, y) + 1e-6 * posterior.kl().mean())
    vae.register_to_config(scaling_factor=_measure_scaling(vae, images, lr, seed))
    return vae.eval()


@torch.no_grad()
def _measure_scaling(vae: Any, images: np.ndarray, lr: float, seed: int) -> float:
    """1 / std of the latents of images. Exits with an error where training has diverged."""
    generator = torch_generator(seed, "scaling factor")
    batch_size = max(1, min(ENCODING_BATCH, ENCODING_BATCH * 64**2 // images.shape[1] ** 2))
    samples = []
    for i in range(0, min(len(images), SCALING_IMAGES), batch_size):
        posterior = vae.encode(normalize_pixels(images[i : i + batch_size])).latent_dist
        samples.append(posterior.sample(generator))
    latents = torch.cat(samples).float()  # [N, C, h, w]
    _check_finite(latents, "VAE", lr)
    _check_finite(vae.decode(latents[:1]).sample, "VAE", lr)
    return round(1 / latents.std().item(), 4)


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How far reconstructions y lie from images x, both [B, 3, H, W]: a mean [].

    L1 of pixels keeps colors, but blurs edges and texture, which L1 of image gradients keeps.
    """
    pixel_loss = (x - y).abs().mean()
    return pixel_loss + sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))


def train_text_encoder(
    tokenizer: Any,
    images: np.ndarray,
    captions: list[list[str]],
    width: int,
    layers: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    cache: Path,
    fillers: Sequence[str] = (),
) -> Any:
    """Train a CLIPTextModel by contrasting captions with their images (Radford et al. 2021).

    A small CNN encodes the images; it is not kept.

    Args:
        tokenizer: a CLIPTokenizer.
        images: uint8 [N, H, W, 3].
        captions: of each image.
        width, layers: size of the text encoder.
        steps, batch_size, lr, seed: of the training.
        cache: holds the checkpoints.
        fillers: words that are inserted into half of the captions, so that the encoder learns to
            ignore words that no image shows.
    """
    torch.manual_seed(seed)
    text_encoder = _make_text_encoder(tokenizer, width, layers)
    image_encoder = _make_image_encoder(width)
    projection = nn.Linear(width, width)
    model = nn.ModuleDict(
        {"text": text_encoder, "vision": image_encoder, "project": projection}
    ).to(device_type())
    # The logarithm of the logit scale, which starts at 10.
    model.log_scale = nn.Parameter(torch.tensor(2.3, device=device_type()))
    trainer = Trainer(model, "text encoder", steps, lr, cache / "text_encoder")
    for batch in trainer.batches(len(images), batch_size, seed):
        generator = rng(seed, "captions", trainer.state.step)
        texts = []
        for i in batch:
            caption = captions[i][generator.integers(len(captions[i]))]
            texts.append(insert_fillers(caption, fillers, generator))
        token_ids = tokenize(tokenizer, texts).to(device_type())
        text_features = projection(text_encoder(token_ids).pooler_output.float())
        text_features = F.normalize(text_features, dim=-1)  # [B, width]
        image_features = image_encoder(normalize_pixels(images[batch])).float()
        image_features = F.normalize(image_features, dim=-1)  # [B, width]
        logits = model.log_scale.exp() * text_features @ image_features.T  # [B, B]
        labels = torch.arange(len(batch), device=logits.device)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        trainer.step(loss)
    text_encoder.eval()
    with torch.no_grad():
        token_ids = tokenize(tokenizer, captions[0][:1]).to(device_type())
        _check_finite(text_encoder(token_ids).last_hidden_state, "text encoder", lr)
    return text_encoder


def _make_text_encoder(tokenizer: Any, width: int, layers: int) -> Any:
    """An untrained CLIPTextModel."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=TEXT_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = CLIPTextModel(config)
    # CLIP initializes the embeddings with a standard deviation of 0.02, for widths of 512 and more.
    # At a width of 64 it would learn nothing in 500 steps.
    embeddings: Any = text_encoder.get_input_embeddings()
    nn.init.normal_(embeddings.weight, std=0.2)
    return text_encoder


def _make_image_encoder(width: int) -> nn.Sequential:
    """An untrained CNN from images [B, 3, H, W] to features [B, width]."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 64), (64, 128), (128, 128)):
        layers.append(nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1))
        layers.append(nn.GroupNorm(8, channels_out))
        layers.append(nn.SiLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, width))


def insert_fillers(caption: str, fillers: Sequence[str], generator: np.random.Generator) -> str:
    """Insert one to six filler words into the caption, in half of the cases."""
    words = caption.split()
    if fillers and generator.random() < 0.5:
        for _ in range(generator.integers(1, 7)):
            position = int(generator.integers(len(words) + 1))
            words.insert(position, fillers[int(generator.integers(len(fillers)))])
    return " ".join(words)


def make_unet(
    channels: list[int],
    latent_channels: int,
    latent_size: int,
    text_width: int,
    attention_from: int = 1,
) -> Any:
    """An untrained UNet2DConditionModel.

    It has attention from the level `attention_from` down. On the first level, attention would cost
    as much as the convolutions and improve less.
    """
    from diffusers import UNet2DConditionModel

    first = min(attention_from, len(channels) - 1)
    attention = [level >= first for level in range(len(channels))]
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        cross_attention_dim=text_width,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def save_pipeline(
    folder: Path, vae: Any, text_encoder: Any, unet: Any, dtype: torch.dtype = torch.float32
) -> None:
    """Save a StableDiffusionPipeline folder around `folder/tokenizer`, which is already there.

    It predicts the velocity (Salimans & Ho 2022) and samples with PNDM (Liu et al. 2022).
    """
    from diffusers import StableDiffusionPipeline

    for name, model in (("vae", vae), ("text_encoder", text_encoder), ("unet", unet)):
        save_part(folder / name, model, dtype)
    scheduler = make_scheduler()
    scheduler.save_pretrained(folder / "scheduler")
    parts = (vae, text_encoder, models.load_tokenizer(folder), unet, scheduler)
    pipeline = StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)
    pipeline.save_config(folder)  # model_index.json


def save_part(folder: Path, model: Any, dtype: torch.dtype = torch.float32) -> None:
    """Save a model of a pipeline in its folder."""
    from transformers import CLIPTextModel

    # The method `to` of diffusers' class warns of modules to keep in float32, though it has none.
    model = torch.nn.Module.to(copy.deepcopy(model), "cpu", dtype)
    if isinstance(model, CLIPTextModel):
        models.save_text_encoder(model, folder)
    else:
        model.save_pretrained(folder)
        follow_umask(folder)
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(folder / "config.json", config)


def make_scheduler() -> Any:
    """Stable Diffusion's noise schedule, for a UNet that predicts the velocity."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
    )


class Trainer:
    """AdamW with a one-cycle learning rate (Smith & Topin 2018), and bf16 autocast on a GPU.

    It begins where the checkpoints in `cache` end.
    """

    def __init__(self, model: nn.Module, name: str, steps: int, lr: float, cache: Path) -> None:
        self.model = model
        self.name = name
        self.steps = steps
        self.lr = lr
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
        # At 10 steps a warm-up of 0.1 would end at step 0, and OneCycleLR divides by where it ends.
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, lr, total_steps=max(steps, 1), pct_start=0.2 if steps == 10 else 0.1
        )
        weights = dict(model.named_parameters())
        self.checkpoints = MinuteCheckpoints(cache, name, weights, {}, self.optimizer)
        self.state = self.checkpoints.resume()
        if self.state.step:
            self._restore_schedule()
        self.bar = progress_bar(total=steps, initial=self.state.step, desc=name, unit="step")

    def _restore_schedule(self) -> None:
        """Set the learning rate and the momentum of the next step."""
        step = self.state.step
        self.schedule.load_state_dict({"last_epoch": step - 1, "_step_count": step + 1})
        self.schedule.step()

    def batches(self, count: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
        """Yield the row numbers [B], out of `count`, of each step left, under autocast."""
        self.model.train()
        device = device_type()
        for step in range(self.state.step, self.steps):
            generator = rng(seed, self.name, step)
            rows = generator.choice(count, min(batch_size, count), replace=False)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                yield rows
        self.bar.close()

    def step(self, loss: torch.Tensor) -> None:
        """Update the weights; exit with an error when the loss is not finite."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.state.step += 1
        self.bar.update()
        if self.state.step % 20 == 0:
            _check_finite(loss, self.name, self.lr)
            self.bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        self.checkpoints.save_if_due(self.state, self.steps)


def _check_finite(values: torch.Tensor, name: str, lr: float) -> None:
    """Exit with an error when training has diverged."""
    if not values.isfinite().all():
        exit_with_error(
            f"train_base.lr: training the {name} at {lr} diverges to NaN or inf; try a lower lr"
        )


def normalize_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]."""
    x = torch.from_numpy(images).to(device_type()).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def random_crop(images: np.ndarray, generator: np.random.Generator, factor: int) -> np.ndarray:
    """A random crop of half the height and width, a multiple of 16 pixels and of `factor`."""
    unit = max(16, factor)
    size = max(unit, images.shape[1] // (2 * unit) * unit)
    y, x = generator.integers(images.shape[1] - size + 1, size=2)
    return np.ascontiguousarray(images[:, y : y + size, x : x + size])
