"""A small latent diffusion model from scratch: VAE, tokenizer, text encoder, untrained UNet.

What Stable Diffusion's parts are, at the size that minutes can train (Rombach et al. 2022): used by `train_base` on the
run's own imagery and by `stages.embedded.train_models` for the base model that ships with the repository.
"""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stages.common.artifacts import read_json, write_json
from stages.common.rng import rng
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import progress_bar

TEXT_TOKENS = 77  # CLIP's context


def train_vae(
    images: np.ndarray,
    channels: list[int],
    latent_channels: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
):
    """Train an AutoencoderKL on uint8 images [N,H,W,3]; returns it in eval mode with `scaling_factor` = 1 / std of its latents."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=channels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=images.shape[1],
    ).to(_device(), memory_format=torch.channels_last)
    for step, batch in _loop(vae, images, steps, batch_size, lr, seed, "VAE"):
        # The VAE is convolutional: quarters of an image teach it as well as wholes, at a quarter of the cost.
        x = _pixels(
            _quarter(images[batch], rng(seed, "crop", int(batch[0]), int(batch[-1])))
        )  # [B,3,H/2,W/2]
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
        # L1 keeps colors; the same on image gradients keeps edges and texture, which L1 alone blurs away.
        loss = (x - y).abs().mean() + sum(
            (_gradient(x, d) - _gradient(y, d)).abs().mean() for d in (2, 3)
        )
        step(loss + 1e-6 * posterior.kl().mean())
    with torch.no_grad():
        z = torch.cat(
            [
                vae.encode(_pixels(images[i : i + 64])).latent_dist.sample().float()
                for i in range(0, min(len(images), 1024), 64)
            ]
        )
        _check(z, "VAE", lr)
        _check(vae.decode(z[:1]).sample, "VAE", lr)
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 4))
    return vae.eval()


def train_tokenizer(texts: list[str], folder: Path, merges: int = 1500) -> None:
    """Learn CLIP's byte-pair encoding (Sennrich et al. 2016; lower case, `</w>` word ends) and save it as a CLIPTokenizer.

    Ours because the `tokenizers` trainer, with an end-of-word suffix, breaks ties differently in every process.
    """
    from transformers import CLIPTokenizer

    words = Counter(word for text in texts for word in text.lower().split())
    letters = [chr(c) for c in range(33, 127)]
    split = {
        word: [*word[:-1], word[-1] + "</w>"] for word in words if all(c in letters for c in word)
    }
    learned: list[tuple[str, str]] = []
    while len(learned) < merges:
        pairs = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        for parts in split.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    tokens = [
        *letters,
        *(c + "</w>" for c in letters),
        *("".join(pair) for pair in learned),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    CLIPTokenizer(
        vocab=vocabulary, merges=learned, model_max_length=TEXT_TOKENS, pad_token="<|endoftext|>"
    ).save_pretrained(folder)


def train_text_encoder(
    tokenizer,
    images: np.ndarray,
    captions: list[list[str]],
    width: int,
    layers: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    fillers: list[str] = (),
):
    """Train a CLIPTextModel by contrast of captions with their images (Radford et al. 2021), which are seen by a throw-away CNN.

    `fillers`: words scattered into half of the captions, so that words which mean nothing to it don't disturb it.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(
        CLIPTextConfig(
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
    )
    # Orthonormal-ish start: CLIP's init (std 0.02) is sized for widths of 512 and more and learns nothing in 500 steps at 64.
    nn.init.normal_(text.get_input_embeddings().weight, std=0.2)
    vision = nn.Sequential(
        *(
            layer
            for a, b in ((3, 32), (32, 64), (64, 128), (128, 128))
            for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, width),
    )
    both = nn.ModuleDict({"text": text, "vision": vision, "project": nn.Linear(width, width)}).to(
        _device()
    )
    both.scale = nn.Parameter(torch.tensor(2.3, device=_device()))  # logit scale: starts at 10
    for step, batch in _loop(both, images, steps, batch_size, lr, seed, "text encoder"):
        draw = rng(seed, "captions", int(batch[0]), int(batch[-1]))
        chosen = [
            scatter(captions[i][draw.integers(len(captions[i]))], fillers, draw) for i in batch
        ]
        ids = tokenize(tokenizer, chosen).to(_device())
        t = F.normalize(both.project(text(ids).pooler_output.float()), dim=-1)  # [B,width]
        v = F.normalize(vision(_pixels(images[batch])).float(), dim=-1)  # [B,width]
        logits = both.scale.exp() * t @ v.T  # [B,B]
        target = torch.arange(len(batch), device=logits.device)
        step((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    text.eval()
    with torch.no_grad():
        _check(
            text(tokenize(tokenizer, captions[0][:1]).to(_device())).last_hidden_state,
            "text encoder",
            lr,
        )
    return text


def scatter(caption: str, fillers: list[str], draw: np.random.Generator) -> str:
    """Half of the time, put one to six filler words into the caption."""
    words = caption.split()
    if fillers and draw.random() < 0.5:
        for _ in range(draw.integers(1, 7)):
            words.insert(draw.integers(len(words) + 1), fillers[draw.integers(len(fillers))])
    return " ".join(words)


def tokenize(tokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids [B,77], padded and truncated as CLIP does."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
    ).input_ids


def untrained_unet(
    channels: list[int],
    latent_channels: int,
    latent_size: int,
    text_width: int,
    attention_from: int = 1,
):
    """A UNet2DConditionModel with attention from that level down: on the first it costs as much as the convolutions and adds less."""
    from diffusers import UNet2DConditionModel

    attention = [level >= min(attention_from, len(channels) - 1) for level in range(len(channels))]
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


def save_pipeline(folder: Path, vae, text_encoder, unet, dtype=torch.float32) -> None:
    """Write a StableDiffusionPipeline folder around `folder/tokenizer`, v-prediction, PNDM (Salimans & Ho 2022; Liu et al. 2022)."""
    from diffusers import PNDMScheduler

    for name, model in (("vae", vae), ("text_encoder", text_encoder), ("unet", unet)):
        copy.deepcopy(model).to("cpu", dtype).save_pretrained(folder / name)
        settings = read_json(folder / name / "config.json")
        settings.pop("_name_or_path", None)  # a folder of this machine
        write_json(folder / name / "config.json", settings)
    PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
    ).save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _loop(model, images, steps, batch_size, lr, seed, what):
    """Yield (step function, row numbers) `steps` times: AdamW, one-cycle learning rate; bf16 autocast on a GPU."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=max(steps, 1), pct_start=0.1
    )
    bar = progress_bar(total=steps, what=what, unit="step")

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.update()
        if bar.n % 20 == 0:
            _check(loss, what, lr)
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)

    model.train()
    for number in range(steps):
        with torch.autocast(_device(), torch.bfloat16, enabled=_device() == "cuda"):
            yield (
                step,
                rng(seed, what, number).choice(
                    len(images), min(batch_size, len(images)), replace=False
                ),
            )
    bar.close()


def _check(values: torch.Tensor, what: str, lr: float) -> None:
    """Training that diverged ends the stage."""
    if not values.isfinite().all():
        exit_with_error(
            f"train_base.lr: training the {what} leads to values that are no numbers. Try a lower lr than {lr}"
        )


def _pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [B,H,W,3] -> float [B,3,H,W] in [-1, 1]."""
    x = torch.from_numpy(images).to(_device()).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _quarter(images: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A random crop of half the height and width, a multiple of 16 pixels."""
    side = max(16, images.shape[1] // 32 * 16)
    y, x = draw.integers(images.shape[1] - side + 1, size=2)
    return np.ascontiguousarray(images[:, y : y + side, x : x + side])


def _gradient(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.diff(dim=dim)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
