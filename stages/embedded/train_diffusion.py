"""Train the tiny diffusion model that ships in `stages/embedded/models/diffusion/`.

    python -m stages.embedded.train_models diffusion

It takes an hour and a half on 2 cores. A killed run resumes from its last checkpoint, in the resume
cache, and ends with the same bytes. While the UNet trains, the folder always holds a whole model:
the averaged weights so far, with a README.md that says how many steps they took and how good they
are.

    python -m stages.embedded.train_models diffusion --start <model> --folder <new folder>

trains the UNet of a finished model further, on tiles that it hasn't seen.

The model stands in for Stable Diffusion v1.5. Its VAE and text encoder are trained on both looks
and all scenes, as SD's were on the web. Its UNet is trained on the `base` look only, without the
scenes of `UNSEEN_SCENES`, so that fine-tuning has a domain to learn.
"""

import copy
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from stages.common.artifacts import fingerprint, read_json, write_atomically, write_json
from stages.common.rng import rng
from stages.common.torch_setup import device_type, make_deterministic, torch_generator
from stages.diffusion import checkpoints, from_scratch, loss, models, muon, train_decoder
from stages.diffusion.ema import update_ema
from stages.diffusion.image_detail import mean_psnr, relative_detail
from stages.diffusion.muon import Muon
from stages.diffusion.resumable import MinuteCheckpoints
from stages.embedded.scenes import SCENES, render_tiles
from stages.imagery.base_domain import UNSEEN_SCENES
from stages.runtime.atomic import atomic_folder
from stages.runtime.progress import log, progress_bar
from stages.runtime.resume_cache import resume_folder

PARTS = ("vae", "decoder", "text_encoder", "unet")
SEED = 20260101  # no run uses it: base imagery and domain imagery never share a tile
HELD_OUT_SEED = 2**32 + SEED  # seeds of runs are below 2**32
HELD_OUT_TILES = 512
SIZE = 64  # pixels per side
VAE_CHANNELS = [24, 48, 96]
VAE_BATCH = 32
TEXT_BATCH = 96
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
UNET_CHANNELS = [32, 64, 128]
UNET_SCENES = tuple(scene for scene in SCENES if scene not in UNSEEN_SCENES)
UNET_BATCH = 32
UNET_LR = 1e-3
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
SHARD_TILES = 1000  # rendered and encoded at a time
ENCODING_BATCH = 64  # images
MEASURE_STEPS = 1000  # UNet steps between two measurements, after which the model is saved

Publish = Callable[[Any, dict], None]  # of a UNet and what `training.json` says of it


class Amounts(NamedTuple):
    """How much is trained: tiles of both looks for VAE and text encoder, others for the UNet."""

    both_looks_tiles: int = 6000
    vae_steps: int = 2500
    decoder_steps: int = 600
    text_steps: int = 800
    unet_tiles: int = 24000
    unet_steps: int = 10000


def main(folder: Path, parts: Sequence[str], amounts: Amounts, start: Path | None = None) -> None:
    """Train these parts of the model in a folder, which has the others.

    With `start`, a finished model, only its UNet is trained further; the folder gets the others.
    """
    make_deterministic(SEED)
    if start:
        parts = ["unet"]
        shutil.copytree(start, folder, ignore=shutil.ignore_patterns("unet"), dirs_exist_ok=True)
    # A run resumes only checkpoints of the same amounts, code and given weights.
    settings: dict[str, Any] = {"parts": sorted(parts), "amounts": amounts._asdict()}
    given = {part: folder / part for part in ("vae", "text_encoder") if part not in parts}
    if start:
        given["unet"] = start / "unet"
    for part, where in given.items():
        (file,) = where.glob("*.safetensors")
        weights = load_file(file)
        if "decoder" in parts:  # it is replaced before the UNet's training begins
            replaced = ("decoder.", "post_quant_conv.")
            weights = {n: weight for n, weight in weights.items() if not n.startswith(replaced)}
        settings[part] = checkpoints.compute_checksum(weights, "")
    code: list[str | Path] = [__file__, from_scratch.__file__, loss.__file__]
    code += [train_decoder.__file__, muon.__file__]
    code += [Path(__file__).parent / "scenes", Path(__file__).parent / "notes"]
    with resume_folder("embedded_diffusion", fingerprint(settings, code)) as cache:
        notes = read_notes()
        fillers = train_encoders(folder, parts, amounts, notes, cache)
        if "unet" in parts:
            train_unet_part(folder, fillers, amounts, cache, start)


def train_encoders(
    folder: Path, parts: Sequence[str], amounts: Amounts, notes: list[str], cache: Path
) -> list[str]:
    """Train the VAE and the text encoder, where asked; returns the filler words of the captions."""
    from transformers import CLIPTokenizer

    tiles = both_looks_tiles(SEED, amounts.both_looks_tiles)
    images = np.stack([tile["image"] for tile in tiles])  # [N, H, W, 3]
    captions = [tile["captions"] for tile in tiles]
    all_captions = [caption for tile_captions in captions for caption in tile_captions]
    fillers = filler_words(notes, all_captions)
    if "text_encoder" in parts:
        # The shipped text encoder has this vocabulary. Its captions and notes are English.
        letters = [chr(code) for code in range(33, 127)]
        from_scratch.train_tokenizer(all_captions + notes, folder / "tokenizer", letters)
        text_encoder = from_scratch.train_text_encoder(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            images,
            captions,
            width=TEXT_WIDTH,
            layers=2,
            steps=amounts.text_steps,
            batch_size=TEXT_BATCH,
            lr=2e-3,
            seed=SEED,
            cache=cache,
            fillers=fillers,
        )
        from_scratch.save_part(folder / "text_encoder", text_encoder, torch.float16)
        record(folder, "text_encoder", amounts.text_steps, TEXT_BATCH, len(tiles), {})
    train_vae_parts(folder, parts, amounts, images, cache)
    return fillers


def train_vae_parts(
    folder: Path, parts: Sequence[str], amounts: Amounts, images: np.ndarray, cache: Path
) -> None:
    """Train the VAE and its decoder further, where asked, on images [N, H, W, 3]."""
    if "vae" in parts:
        torch.manual_seed(SEED)
        vae = from_scratch.train_vae(
            from_scratch.make_vae(VAE_CHANNELS, LATENT_CHANNELS, SIZE),
            images,
            steps=amounts.vae_steps,
            batch_size=VAE_BATCH,
            lr=3e-3,
            seed=SEED,
            cache=cache,
        )
        save_vae(folder, "vae", vae, amounts.vae_steps, len(images))
    if "decoder" in parts:
        vae = train_decoder.train_decoder(
            start_of_decoder(folder, cache),
            images,
            amounts.decoder_steps,
            VAE_BATCH,
            SEED,
            cache / "decoder",
        )
        save_vae(folder, "decoder", vae, amounts.decoder_steps, len(images))


def start_of_decoder(folder: Path, cache: Path) -> Any:
    """The VAE whose decoder is trained further, from `cache` where the folder has the result."""
    if not (cache / "start/vae").exists():
        with atomic_folder(cache / "start") as copy:
            shutil.copytree(folder / "vae", copy / "vae")
    return models.load(cache / "start", "vae")


def save_vae(folder: Path, part: str, vae: Any, steps: int, tiles: int) -> None:
    """Save the VAE after the training of `part`; note what it was trained with, and measure it."""
    from_scratch.save_part(folder / "vae", vae, torch.float16)
    measured = measure_vae(models.load(folder, "vae"))
    record(folder, part, steps, VAE_BATCH, tiles, measured)


def both_looks_tiles(seed: int, count: int) -> list[dict]:
    """Tiles of all scenes, the first half in the `domain` look, the second in the `base` look."""
    half = count // 2
    domain = render_tiles(seed, 0, half, SIZE, "domain")
    base = render_tiles(seed, half, count, SIZE, "base")
    return list(progress_bar(chain(domain, base), total=count, desc="render", unit="tile"))


def read_notes() -> list[str]:
    """The field notes that ship with the repository, as lower-case letters and spaces."""
    paths = sorted(Path("stages/embedded/notes").glob("*.md"))
    return [re.sub(r"[^a-z ]", " ", path.read_text("utf-8").lower()) for path in paths]


def filler_words(notes: list[str], captions: list[str]) -> list[str]:
    """Words of the notes that no caption uses, sorted: to the text encoder, general English."""
    note_words = {word for note in notes for word in note.split()}
    caption_words = {word for caption in captions for word in caption.split()}
    return sorted(note_words - caption_words)


@torch.no_grad()
def measure_vae(vae: Any) -> dict[str, float]:
    """PSNR, and detail and chroma relative to the tiles', of reconstructions of held-out tiles."""
    vae = vae.to(device_type())
    tiles = both_looks_tiles(HELD_OUT_SEED, HELD_OUT_TILES)
    images = np.stack([tile["image"] for tile in tiles])
    decoded = []
    for begin in range(0, len(images), ENCODING_BATCH):
        x = from_scratch.normalize_pixels(images[begin : begin + ENCODING_BATCH])
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
        decoded.append(models.to_pixels(y.float().cpu().numpy()))
    reconstructions = np.concatenate(decoded)
    return {"psnr": mean_psnr(images, reconstructions)} | relative_detail(reconstructions, images)


def train_unet_part(
    folder: Path, fillers: Sequence[str], amounts: Amounts, cache: Path, start: Path | None
) -> None:
    """Train the UNet on what the folder's VAE and text encoder make of tiles and captions.

    `start`: the model whose UNet is trained further; None: a new UNet.
    """
    before = read_json(start / "training.json")["unet"] if start else {"steps": 0, "tiles": 0}
    device = device_type()
    vae = models.load(folder, "vae")
    text_encoder = models.load(folder, "text_encoder")
    tokenizer = models.load_tokenizer(folder)

    def publish(unet: Any, measured: dict) -> None:
        from_scratch.save_pipeline(folder, vae, text_encoder, unet, torch.float16)
        steps = before["steps"] + int(measured.pop("step"))
        tiles = before["tiles"] + amounts.unet_tiles
        planned = before["steps"] + amounts.unet_steps
        record(folder, "unet", steps, UNET_BATCH, tiles, measured, planned)

    vae.to(device)
    text_encoder.to(device)
    first = before["tiles"]
    latents, captions = encode_tiles(vae, first, first + amounts.unet_tiles, cache / "latents")
    embed = Embedder(tokenizer, text_encoder, fillers)
    held_out = held_out_batches(vae, embed)
    if start:
        unet = models.load(start, "unet").requires_grad_(True)
    else:
        torch.manual_seed(SEED)
        # Attention starts at the lowest level, of 4 x 4 latents. At 8 x 8 it would cost a quarter
        # of a step.
        unet = from_scratch.make_unet(
            UNET_CHANNELS, LATENT_CHANNELS, SIZE // 4, TEXT_WIDTH, attention_from=2
        )
    unet.to(device, memory_format=torch.channels_last).train()
    train_unet(
        unet, latents, captions, embed, held_out, amounts.unet_steps, cache / "unet", publish
    )


def render_unet_tiles(begin: int, end: int) -> tuple[np.ndarray, list[list[str]]]:
    """Images uint8 [N, H, W, 3] and captions of the UNet's tiles begin to end - 1.

    They are in the `base` look, and of the scenes that the UNet may see.
    """
    tiles = list(render_tiles(SEED + 1, begin, end, SIZE, "base", UNET_SCENES))
    return np.stack([tile["image"] for tile in tiles]), [tile["captions"] for tile in tiles]


def encode_tiles(
    vae: Any, first: int, end: int, cache: Path
) -> tuple[torch.Tensor, list[list[str]]]:
    """Latents fp16 [N, C, h, w] and captions of the UNet's tiles from the first to end - 1.

    `cache` keeps finished shards.
    """
    cache.mkdir(exist_ok=True)
    files = {begin: cache / f"{begin:08d}.safetensors" for begin in range(first, end, SHARD_TILES)}
    shards: dict[int, tuple[checkpoints.Tensors, dict]] = {}
    for begin, file in files.items():
        shard = checkpoints.load_undamaged(file) if file.exists() else None
        if shard:
            shards[begin] = shard
    missing = [begin for begin in files if begin not in shards]
    bar = progress_bar(
        total=len(files), initial=len(files) - len(missing), desc="tiles", unit="thousand"
    )
    for begin in missing:
        images, captions = render_unet_tiles(begin, min(begin + SHARD_TILES, end))
        tensors = {"latents": encode_latents(vae, images, begin)}
        checkpoints.save(files[begin], tensors, {"captions": captions})
        shards[begin] = tensors, {"captions": captions}
        bar.update()
    bar.close()
    latents = torch.cat([shards[begin][0]["latents"] for begin in files])
    return latents, [captions for begin in files for captions in shards[begin][1]["captions"]]


@torch.no_grad()
def encode_latents(vae: Any, images: np.ndarray, begin: int) -> torch.Tensor:
    """Latents of images [N, H, W, 3], each under a random flip or rotation: fp16 [N, C, h, w].

    `begin`, the index of the first tile, seeds the flips and rotations.
    """
    variants = rng(SEED, "turns", begin).integers(8, size=len(images))
    images = np.stack(
        [
            np.rot90(image, variant % 4)[:, :: -1 if variant > 3 else 1]
            for image, variant in zip(images, variants)
        ]
    )
    latents = []
    for first in range(0, len(images), ENCODING_BATCH):
        x = from_scratch.normalize_pixels(images[first : first + ENCODING_BATCH])  # [B, 3, H, W]
        latents.append(vae.encode(x).latent_dist.mean.half().cpu() * vae.config.scaling_factor)
    return torch.cat(latents).contiguous()


class Embedder(NamedTuple):
    """The text encoder with what it needs; it embeds captions for the UNet to attend to."""

    tokenizer: Any
    text_encoder: Any
    fillers: Sequence[str]

    @torch.no_grad()
    def embed(self, texts: list[str]) -> torch.Tensor:
        """The last hidden states of texts: [B, 77, D]."""
        token_ids = from_scratch.tokenize(self.tokenizer, texts).to(self.text_encoder.device)
        return self.text_encoder(token_ids).last_hidden_state


def held_out_batches(vae: Any, embedder: Embedder) -> list[dict[str, torch.Tensor]]:
    """Batches of tiles that nothing trains on, with fixed noise and evenly spread timesteps."""
    tiles = list(render_tiles(HELD_OUT_SEED + 1, 0, HELD_OUT_TILES, SIZE, "base", UNET_SCENES))
    latents = encode_latents(vae, np.stack([tile["image"] for tile in tiles]), 0).float()
    noise = torch.randn(latents.shape, generator=torch_generator(HELD_OUT_SEED, "noise"))
    order = rng(HELD_OUT_SEED, "timesteps").permutation(len(tiles))
    timesteps = loss.stratified_timesteps(len(tiles), 1000)[order]
    batches = []
    for begin in range(0, len(tiles), UNET_BATCH):
        rows = slice(begin, begin + UNET_BATCH)
        batch = {"latents": latents[rows], "noise": noise[rows], "timesteps": timesteps[rows]}
        batch["text"] = embedder.embed([tile["captions"][0] for tile in tiles[rows]])
        batches.append(to_device(batch))
    return batches


def to_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch where training runs."""
    device = device_type()
    return {name: tensor.to(device) for name, tensor in batch.items()}


def train_unet(
    unet: Any,
    latents: torch.Tensor,
    captions: list[list[str]],
    embedder: Embedder,
    held_out: list[dict[str, torch.Tensor]],
    steps: int,
    cache: Path,
    publish: Publish,
) -> None:
    """Train a UNet to predict the velocity (Salimans & Ho 2022, eq. 12).

    All timesteps have the same weight: with Min-SNR weighting (Hang et al. 2023), those of much
    noise, where the layout of an image is decided, are hardly learned by so small a UNet.

    Args:
        unet: a UNet2DConditionModel in training mode.
        latents: fp16 [N, C, h, w].
        captions: of each of them.
        embedder: of the captions.
        held_out: the batches of `held_out_batches`.
        steps: optimizer steps.
        cache: holds the checkpoints.
        publish: called with the averaged UNet and its measurements, every `MEASURE_STEPS` steps and
            after the last.
    """
    weights = dict(unet.named_parameters())
    ema = {name: weight.detach().clone() for name, weight in weights.items()}
    alphas_cumprod = from_scratch.make_scheduler().alphas_cumprod.to(unet.device)  # [T]
    optimizer = Muon(weights, UNET_LR, weight_decay=0.01)
    saver = MinuteCheckpoints(cache, "UNet", weights, ema, optimizer)
    state = saver.resume()
    bar = progress_bar(total=steps, initial=state.step, desc="UNet", unit="step")
    while state.step < steps:
        for group in optimizer.param_groups:
            group["lr"] = UNET_LR * learning_rate_factor(state.step, steps)
        batch = draw_batch(state.step, latents, captions, embedder)
        step_loss = loss.denoising_loss(unet, batch, alphas_cumprod, "v_prediction").mean()
        optimizer.zero_grad()
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        update_ema(ema, weights, state.step, EMA_DECAY)
        state.step += 1
        bar.update()
        if state.step % 100 == 0:
            bar.set_postfix(loss=f"{step_loss.item():.4f}", refresh=False)
        if state.step % MEASURE_STEPS == 0 or state.step == steps:
            averaged = average_of(unet, ema)
            state.curve.append(measure_unet(averaged, held_out, alphas_cumprod, state.step))
            publish(averaged, dict(state.curve[-1]))
        saver.save_if_due(state, steps)
    bar.close()


@torch.no_grad()
def average_of(unet: Any, ema: dict[str, torch.Tensor]) -> Any:
    """A copy of the UNet with the averaged weights."""
    averaged = copy.deepcopy(unet).eval()
    for name, weight in averaged.named_parameters():
        weight.copy_(ema[name])
    return averaged


@torch.no_grad()
def measure_unet(
    unet: Any, held_out: list[dict[str, torch.Tensor]], alphas_cumprod: torch.Tensor, step: int
) -> dict[str, float]:
    """The step, and the loss of held-out tiles; a line of the log."""
    losses = [
        loss.denoising_loss(unet, batch, alphas_cumprod, "v_prediction") for batch in held_out
    ]
    value = torch.cat(losses).mean().item()
    log(f"UNet: step {step}, {step * UNET_BATCH} images seen, held-out loss {value:.5f}")
    return {"step": step, "loss": value}


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 200 steps, then half a cosine down to a hundredth."""
    return min(1, step / 200) * 0.5 * (1.02 + np.cos(np.pi * step / steps))


def draw_batch(
    step: int, latents: torch.Tensor, captions: list[list[str]], embedder: Embedder
) -> dict[str, torch.Tensor]:
    """The batch of a training step, as `denoising_loss` takes it. Some captions are dropped."""
    generator = rng(SEED, "unet", UNET_BATCH, step)
    noise_generator = torch_generator(SEED, "unet noise", UNET_BATCH, step)
    rows = generator.integers(len(latents), size=UNET_BATCH)
    texts = []
    for row in rows:
        if generator.random() < CAPTION_DROPOUT:
            texts.append("")
        else:
            caption = captions[row][generator.integers(5)]
            texts.append(from_scratch.insert_fillers(caption, embedder.fillers, generator))
    x = latents[rows].float()  # [B, C, h, w]
    return to_device(
        {
            "latents": x,
            "noise": torch.randn(x.shape, generator=noise_generator),
            "timesteps": torch.randint(1000, (UNET_BATCH,), generator=noise_generator),
            "text": embedder.embed(texts),
        }
    )


def record(
    folder: Path,
    part: str,
    steps: int,
    batch_size: int,
    tiles: int,
    measured: dict[str, float],
    planned: int | None = None,
) -> None:
    """Note in `training.json` what a part was trained with; write README.md from all notes.

    Args:
        folder: of the model.
        part: one of `PARTS`.
        steps: done.
        batch_size: images per step.
        tiles: that were trained on.
        measured: on held-out tiles.
        planned: steps; None: those done.
    """
    path = folder / "training.json"
    notes = read_json(path) if path.exists() else {}
    notes[part] = {
        "steps": steps,
        "planned": planned or steps,
        "images": steps * batch_size,
        "tiles": tiles,
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    write_json(path, notes)
    write_atomically(folder / "README.md", "\n".join(readme_lines(notes)).encode())


def readme_lines(notes: dict[str, dict]) -> Iterator[str]:
    """The lines of README.md."""
    shown = {
        "vae": (f"VAE of {VAE_CHANNELS} channels, {LATENT_CHANNELS} in the latents", "both looks"),
        "decoder": ("its decoder alone, against a discriminator", "both looks"),
        "text_encoder": (f"CLIP text encoder, 2 layers of width {TEXT_WIDTH}", "both looks"),
        "unet": (
            f"UNet of {UNET_CHANNELS} channels, v-prediction",
            f"the `base` look without {' and '.join(UNSEEN_SCENES)}",
        ),
    }
    yield "# A tiny StableDiffusionPipeline, trained on rendered scenes\n"
    yield "`python -m stages.embedded.train_models diffusion` trained it, stored it in fp16 and"
    yield "wrote this file. It stands in for Stable Diffusion v1.5: it knows scenes in a look of"
    yield "its own, so that fine-tuning has a domain to learn.\n"
    yield "| part | steps | images seen | tiles | held-out tiles |\n|---|---:|---:|---|---|"
    for part, (title, look) in shown.items():
        if part in notes:
            note = notes[part]
            unfinished = f" of {note['planned']:,}" if note["steps"] < note["planned"] else ""
            measured = ", ".join(f"{key} {value}" for key, value in note["measured"].items())
            yield (
                f"| {title} | {note['steps']:,}{unfinished} | {note['images']:,} | "
                f"{note['tiles']:,} in {look} | {measured or '-'} |"
            )
    yield "\nLosses are of the velocity. PSNR is in dB; the power in each octave, in"
    yield f"cycles per {SIZE} px, and the chroma are those of reconstructions, divided by those of"
    yield "the tiles.\n"
