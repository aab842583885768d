"""Train the tiny diffusion model that ships in `stages/embedded/models/diffusion/`.

    python -m stages.embedded.train_models diffusion

It takes two and a half hours on 2 cores. A killed run resumes from its last checkpoint, in the
resume cache, and ends with the same bytes. While the UNet trains, the folder always holds a whole
model: the averaged weights so far, with a README.md that says how many steps they took and how good
they are.

    python -m stages.embedded.train_models diffusion --start <model> --folder <new folder>

trains the UNet of a finished model further, on tiles that it hasn't seen. On a GPU, `--unet-batch
512` keeps it busy; it trains in bfloat16 there.

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
from stages.diffusion import from_scratch, loss, models, muon, perceptual, train_decoder
from stages.diffusion.clip_tokenizer import tokenize, train_tokenizer
from stages.diffusion.ema import update_ema
from stages.diffusion.muon import Muon
from stages.diffusion.resumable import MinuteCheckpoints
from stages.embedded.image_detail import mean_psnr, relative_detail
from stages.embedded.scenes import SCENES, render_tiles
from stages.imagery.base_domain import UNSEEN_SCENES
from stages.runtime.atomic import atomic_folder
from stages.runtime.parallel import ordered_map
from stages.runtime.progress import log, progress_bar
from stages.runtime.resume_cache import resume_folder
from stages.runtime.tensor_files import Tensors, compute_checksum, load_undamaged, save

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
UNET_LR = 1e-3  # for batches of 32; it grows with the batch (`unet_lr`)
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
RENDERED_TILES = 100  # by a process at a time
SHARD_TILES = 1000  # rendered and encoded at a time
ENCODING_BATCH = 64  # images
MEASURE_STEPS = 1000  # UNet steps between two measurements, after which the model is saved

Publish = Callable[[Any, dict], None]  # of a UNet and what `training.json` says of it


class Amounts(NamedTuple):
    """How much is trained: VAE, decoder and text encoder on tiles of both looks."""

    both_looks_tiles: int = 6000
    vae_steps: int = 2500
    decoder_tiles: int = 36000
    decoder_steps: int = 6600
    text_steps: int = 800
    unet_tiles: int = 24000
    unet_steps: int = 10000
    unet_batch: int = 32


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
        settings[part] = compute_checksum(weights, "")
    code: list[str | Path] = [__file__, from_scratch.__file__, loss.__file__]
    code += [train_decoder.__file__, perceptual.__file__, muon.__file__]
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
        train_tokenizer(all_captions + notes, folder / "tokenizer", letters)
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
        seen = amounts.text_steps * TEXT_BATCH
        record(folder, "text_encoder", amounts.text_steps, seen, len(tiles), {})
    train_vae_parts(folder, parts, amounts, images, cache)
    return fillers


def train_vae_parts(
    folder: Path, parts: Sequence[str], amounts: Amounts, images: np.ndarray, cache: Path
) -> None:
    """Train the VAE, on images [N, H, W, 3], and its decoder further, where asked."""
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
        tiles = both_looks_tiles(SEED, amounts.decoder_tiles)
        vae = train_decoder.train_decoder(
            start_of_decoder(folder, cache),
            np.stack([tile["image"] for tile in tiles]),
            [tile["captions"] for tile in tiles],
            amounts.decoder_steps,
            VAE_BATCH,
            SEED,
            cache / "decoder",
        )
        save_vae(folder, "decoder", vae, amounts.decoder_steps, len(tiles))


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
    record(folder, part, steps, steps * VAE_BATCH, tiles, measured)


def both_looks_tiles(seed: int, count: int) -> list[dict]:
    """Tiles of all scenes, the first half in the `domain` look, the second in the `base` look."""
    half = count // 2
    parts = []
    for begin, end, look in ((0, half, "domain"), (half, count, "base")):
        for first in range(begin, end, RENDERED_TILES):
            parts.append((seed, first, min(first + RENDERED_TILES, end), look))
    rendered = ordered_map(render_part, ((None, part) for part in parts), batch=1)
    bar = progress_bar(rendered, total=len(parts), desc="render", unit="part")
    return list(chain.from_iterable(tiles for _, tiles in bar))


def render_part(part: tuple[int, int, int, str]) -> list[dict]:
    """Tiles of all scenes from a seed, the first index, the one after the last, and a look."""
    seed, begin, end, look = part
    return list(render_tiles(seed, begin, end, SIZE, look))


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
    before = {"steps": 0, "images": 0, "tiles": 0}
    if start:
        before = read_json(start / "training.json")["unet"]
    device = device_type()
    vae = models.load(folder, "vae")
    text_encoder = models.load(folder, "text_encoder")
    tokenizer = models.load_tokenizer(folder)

    def publish(unet: Any, measured: dict) -> None:
        from_scratch.save_pipeline(folder, vae, text_encoder, unet, torch.float16)
        steps = int(measured.pop("step"))
        images = before["images"] + steps * amounts.unet_batch
        tiles = before["tiles"] + amounts.unet_tiles
        planned = before["steps"] + amounts.unet_steps
        record(folder, "unet", before["steps"] + steps, images, tiles, measured, planned)

    vae.to(device)
    text_encoder.to(device)
    first = before["tiles"]
    end = first + amounts.unet_tiles
    latents, token_ids = encode_tiles(vae, tokenizer, fillers, first, end, cache / "tiles")
    held_out = held_out_batches(vae, tokenizer, text_encoder)
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
    tiles = TrainingTiles(latents.to(device), token_ids.to(device), text_encoder)
    train_unet(unet, tiles, held_out, amounts, cache / "unet", publish)


def render_unet_tiles(span: tuple[int, int]) -> tuple[np.ndarray, list[list[str]]]:
    """Images uint8 [N, H, W, 3] and captions of the UNet's tiles from span[0] to span[1] - 1.

    They are in the `base` look, and of the scenes that the UNet may see.
    """
    tiles = list(render_tiles(SEED + 1, *span, SIZE, "base", UNET_SCENES))
    return np.stack([tile["image"] for tile in tiles]), [tile["captions"] for tile in tiles]


def encode_tiles(
    vae: Any, tokenizer: Any, fillers: Sequence[str], first: int, end: int, cache: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's tiles from the first to end - 1, as the UNet takes them.

    Returns latents fp16 [N, C, h, w] and token ids int32 [N, K + 1, L] (`tokenize_captions`).
    `cache` keeps finished shards.
    """
    cache.mkdir(exist_ok=True)
    files = {begin: cache / f"{begin:08d}.safetensors" for begin in range(first, end, SHARD_TILES)}
    shards: dict[int, Tensors] = {}
    for begin, file in files.items():
        shard = load_undamaged(file) if file.exists() else None
        if shard:
            shards[begin] = shard[0]
    missing = [begin for begin in files if begin not in shards]
    bar = progress_bar(
        total=len(files), initial=len(files) - len(missing), desc="tiles", unit="thousand"
    )
    spans = [(begin, (begin, min(begin + SHARD_TILES, end))) for begin in missing]
    for begin, (images, captions) in ordered_map(render_unet_tiles, spans, batch=1):
        tensors = {
            "latents": encode_latents(vae, images, begin),
            "token_ids": tokenize_captions(tokenizer, captions, fillers, begin),
        }
        save(files[begin], tensors, {})
        shards[begin] = tensors
        bar.update()
    bar.close()
    latents, token_ids = (
        torch.cat([shards[begin][name] for begin in files]) for name in ("latents", "token_ids")
    )
    return latents, token_ids


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


def tokenize_captions(
    tokenizer: Any, captions: list[list[str]], fillers: Sequence[str], begin: int
) -> torch.Tensor:
    """Token ids int32 [N, K + 1, L] of the K captions of each tile, and of the empty one.

    Half of the captions get filler words. `begin`, the index of the first tile, seeds them.
    """
    generator = rng(SEED, "fillers", begin)
    texts = []
    for tile_captions in captions:
        texts += [from_scratch.insert_fillers(c, fillers, generator) for c in tile_captions]
        texts.append("")
    token_ids = tokenize(tokenizer, texts)
    return token_ids.int().unflatten(0, (len(captions), -1))


def held_out_batches(vae: Any, tokenizer: Any, text_encoder: Any) -> list[dict[str, torch.Tensor]]:
    """Batches of tiles that nothing trains on, with fixed noise and evenly spread timesteps."""
    tiles = list(render_tiles(HELD_OUT_SEED + 1, 0, HELD_OUT_TILES, SIZE, "base", UNET_SCENES))
    latents = encode_latents(vae, np.stack([tile["image"] for tile in tiles]), 0).float()
    noise = torch.randn(latents.shape, generator=torch_generator(HELD_OUT_SEED, "noise"))
    order = rng(HELD_OUT_SEED, "timesteps").permutation(len(tiles))
    timesteps = loss.stratified_timesteps(len(tiles), 1000)[order]
    batches = []
    for begin in range(0, len(tiles), ENCODING_BATCH):
        rows = slice(begin, begin + ENCODING_BATCH)
        batch = {"latents": latents[rows], "noise": noise[rows], "timesteps": timesteps[rows]}
        batch = {name: tensor.to(vae.device) for name, tensor in batch.items()}
        captions = [tile["captions"][0] for tile in tiles[rows]]
        token_ids = tokenize(tokenizer, captions).to(vae.device)
        with torch.no_grad():
            batch["text"] = text_encoder(token_ids).last_hidden_state  # [B, L, D]
        batches.append(batch)
    return batches


class TrainingTiles(NamedTuple):
    """What the UNet is trained on, where it is trained."""

    latents: torch.Tensor  # fp16 [N, C, h, w]
    token_ids: torch.Tensor  # int32 [N, K + 1, L] (`tokenize_captions`)
    text_encoder: Any

    @torch.no_grad()
    def draw_batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """The batch of a training step, as `denoising_loss` takes it. Some captions are dropped."""
        device = self.latents.device
        seed = int(rng(SEED, "unet", size, step).integers(2**63))
        generator = torch.Generator(device).manual_seed(seed)

        def draw(high: int) -> torch.Tensor:
            return torch.randint(high, (size,), generator=generator, device=device)

        rows = draw(len(self.latents))
        empty = self.token_ids.shape[1] - 1
        kept = torch.rand(size, generator=generator, device=device) >= CAPTION_DROPOUT
        token_ids = self.token_ids[rows, torch.where(kept, draw(empty), empty)].long()
        x = self.latents[rows].float()
        return {
            "latents": x,
            "noise": torch.randn(x.shape, generator=generator, device=device),
            "timesteps": draw(1000),
            "text": self.text_encoder(token_ids).last_hidden_state,
        }


def train_unet(
    unet: Any,
    tiles: TrainingTiles,
    held_out: list[dict[str, torch.Tensor]],
    amounts: Amounts,
    cache: Path,
    publish: Publish,
) -> None:
    """Train a UNet to predict the velocity (Salimans & Ho 2022, eq. 12).

    All timesteps have the same weight: with Min-SNR weighting (Hang et al. 2023), those of much
    noise, where the layout of an image is decided, are hardly learned by so small a UNet.

    Args:
        unet: a UNet2DConditionModel in training mode.
        tiles: to train on.
        held_out: the batches of `held_out_batches`.
        amounts: the steps and the batch size.
        cache: holds the checkpoints.
        publish: called with the averaged UNet and its measurements, every `MEASURE_STEPS` steps and
            after the last.
    """
    weights = dict(unet.named_parameters())
    ema = {name: weight.detach().clone() for name, weight in weights.items()}
    alphas_cumprod = from_scratch.make_scheduler().alphas_cumprod.to(unet.device)  # [T]
    steps, batch_size = amounts.unet_steps, amounts.unet_batch
    peak_lr = unet_lr(batch_size)
    optimizer = Muon(weights, peak_lr, weight_decay=0.01)
    saver = MinuteCheckpoints(cache, "UNet", weights, ema, optimizer)
    state = saver.resume()
    bar = progress_bar(total=steps, initial=state.step, desc="UNet", unit="step")
    while state.step < steps:
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * learning_rate_factor(state.step, steps)
        batch = tiles.draw_batch(state.step, batch_size)
        with torch.autocast(unet.device.type, torch.bfloat16, enabled=unet.device.type == "cuda"):
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
            state.curve.append(
                {"step": state.step, "loss": measure_unet(averaged, held_out, alphas_cumprod)}
            )
            log(f"UNet: step {state.step}, held-out loss {state.curve[-1]['loss']:.5f}")
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
    unet: Any, held_out: list[dict[str, torch.Tensor]], alphas_cumprod: torch.Tensor
) -> float:
    """The loss of held-out tiles."""
    losses = [
        loss.denoising_loss(unet, batch, alphas_cumprod, "v_prediction") for batch in held_out
    ]
    return torch.cat(losses).mean().item()


def unet_lr(batch_size: int) -> float:
    """The peak learning rate: larger batches have less noise, and take larger steps."""
    return UNET_LR * (batch_size / 32) ** 0.25


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 200 steps, then half a cosine down to a hundredth."""
    return min(1, step / 200) * 0.5 * (1.02 + np.cos(np.pi * step / steps))


def record(
    folder: Path,
    part: str,
    steps: int,
    images: int,
    tiles: int,
    measured: dict[str, float],
    planned: int | None = None,
) -> None:
    """Note in `training.json` what a part was trained with; write README.md from all notes.

    Args:
        folder: of the model.
        part: one of `train_models.PARTS`.
        steps: done.
        images: seen in these steps.
        tiles: that were trained on.
        measured: on held-out tiles.
        planned: steps; None: those done.
    """
    path = folder / "training.json"
    notes = read_json(path) if path.exists() else {}
    notes[part] = {
        "steps": steps,
        "planned": planned or steps,
        "images": images,
        "tiles": tiles,
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    write_json(path, notes)
    write_atomically(folder / "README.md", "\n".join(readme_lines(notes)).encode())


def readme_lines(notes: dict[str, dict]) -> Iterator[str]:
    """The lines of README.md."""
    shown = {
        "vae": (f"VAE of {VAE_CHANNELS} channels, {LATENT_CHANNELS} in the latents", "both looks"),
        "decoder": ("its decoder alone, with adversarial and perceptual losses", "both looks"),
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
