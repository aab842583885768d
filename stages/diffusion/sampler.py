"""Text-to-image in fixed, padded groups: what `sample` and `generate` share.

An image is decided by its prompt, negative prompt and seed: the noise is drawn per image, and a group is always
`sampling.batch_size` images, padded at the end, so that it comes out bit-identical from one process or eight, and after
a restart. Finished groups are kept in the scratch folder until all are done.
"""

import math
from collections.abc import Iterable
from copy import deepcopy
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn

from stages.common.artifacts import encode_png, fingerprint, stream_rows, write_shard, write_shards
from stages.common.rng import rng
from stages.diffusion import models
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.denoising import denoise
from stages.params import Sampling
from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.processes import process_state
from stages.runtime.progress import log, progress_bar

FIRST_GROUP = 10**8  # group numbers of equal length: their files sort by name as by number
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def image_seed(seed: int, *item: int | str) -> int:
    """The seed of one image's noise, from the run's seed and the row's id: what `torch.Generator().manual_seed` takes."""
    return int(rng(seed, "image", *item).integers(2**63))


class Sampler:
    """A pipeline folder ready to draw: UNet and VAE in `settings.precision`, text encoder in float32."""

    def __init__(self, folder: str | Path, settings: Sampling, device: torch.device | str = "cpu"):
        factor = models.vae_factor(folder)
        if settings.resolution % factor:
            exit_with_error(
                f"sampling.resolution: {settings.resolution} px is not a multiple of {factor}, the VAE's factor"
            )
        if settings.precision == "fp16" and torch.device(device).type != "cuda":
            exit_with_error("sampling.precision: fp16 needs a GPU; use bf16 or fp32")
        self.settings, self.device, self.dtype = (
            settings,
            torch.device(device),
            DTYPES[settings.precision],
        )
        self.unet, self.vae = (self.place(models.load(folder, part)) for part in ("unet", "vae"))
        self.tokenizer, self.text_encoder = (
            models.load_tokenizer(folder),
            models.load(folder, "text_encoder").to(device),
        )
        self.negatives: dict[str, torch.Tensor] = {}
        self.scheduler = models.load_scheduler(folder, settings.scheduler)
        self.scale, self.statistics = models.latent_scale(folder), models.pixel_statistics(folder)
        side = settings.resolution // factor
        self.shape = (self.unet.config.in_channels, side, side)  # (C,h,w)

    def place(self, model: nn.Module) -> nn.Module:
        """On the device, with the weights that autocast would cast at every call cast once.

        The rest stays in float32: with norms and residuals in bfloat16 too, a small model's images are off by 14/255.
        """
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(self.dtype)
        return model.to(self.device, memory_format=torch.channels_last)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def attempt(self, count: int) -> None:
        """What `draw` does in memory, for groups of `count` images."""
        text = self.embed_negative("").expand(
            2 * count if self.settings.guidance_scale > 1 else count, -1, -1
        )
        noise = torch.zeros(count, *self.shape, device=self.device)
        with torch.inference_mode(), self.autocast():
            latents = denoise(
                self.unet, self.scheduler, noise, text, self.settings.guidance_scale, 1
            )
            self.vae.decode(latents, return_dict=False)

    @torch.inference_mode()
    def draw(self, prompts: list[str], negatives: list[str], seeds: list[int]) -> np.ndarray:
        """Images uint8 [n,H,W,3] of at most `batch_size` prompts; the group is padded to that size whatever n is."""
        count, size, guidance = len(prompts), self.settings.batch_size, self.settings.guidance_scale
        pad = [0] * (size - count)
        noise = [
            torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
            for seed in seeds + pad
        ]
        noise = torch.stack(noise).to(self.device)  # [B,C,h,w]
        texts = [
            models.embed(self.tokenizer, self.text_encoder, prompts + [""] * len(pad))
        ]  # [B,L,D]
        if guidance > 1:
            texts.insert(0, torch.cat([*map(self.embed_negative, negatives + [""] * len(pad))]))

        @torch.inference_mode()
        def images_of(part: slice) -> torch.Tensor:
            text = torch.cat([t[part] for t in texts])  # [b,L,D], with guidance [2b,L,D]
            with self.autocast():
                latents = (
                    denoise(
                        self.unet,
                        deepcopy(self.scheduler),
                        noise[part],
                        text,
                        guidance,
                        self.settings.steps,
                    )
                    / self.scale
                )
                return self.vae.decode(
                    latents.contiguous(memory_format=torch.channels_last), return_dict=False
                )[0]

        images = (
            torch.cat(CpuChunks(size, self.device).map(images_of))[:count].float().cpu().numpy()
        )  # [n,3,H,W]
        if not np.isfinite(images).all():
            exit_with_error(
                f"sampling.precision: in {self.settings.precision} the model's images are no numbers; use bf16 or fp32"
            )
        return models.to_pixels(images, self.statistics)

    def embed_negative(self, text: str) -> torch.Tensor:
        """Text embedding [1,L,D], made once: negative prompts repeat. Alone in its batch it has the same bytes in any group."""
        if text not in self.negatives:
            self.negatives = {text: models.embed(self.tokenizer, self.text_encoder, [text])}
        return self.negatives[text]


def draw_shards(
    stage: str,
    out: Path,
    folder: Path,
    rows: Iterable[dict],
    total: int,
    schema: pa.Schema,
    settings: Sampling,
    seed: int,
    inputs: list[Path],
) -> None:
    """Draw an image for each of `total` rows {prompt, negative_prompt, item: ids its noise is drawn from, ...} into shards.

    `schema` names the columns: those of the rows and image, seed, scheduler, steps, guidance_scale, model. Rows stream in,
    images stream out. `inputs`, the files that decide the rows (the stage's script is one), key the scratch with `total`, the model,
    `settings` and `seed`.
    """
    if not total:
        exit_with_error(f"{inputs[0]}: no rows to draw")
    state = process_state()
    drawn_by = {
        "scheduler": settings.scheduler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "model": models.model_digest(folder),
    }
    mark = fingerprint(
        {
            "sampling": settings.model_dump(),
            "seed": seed,
            "model": drawn_by["model"],
            "total": total,
        },
        [*inputs, *sorted(Path(__file__).parent.glob("*.py"))],
    )
    with resume_cache.resume_folder(stage.replace("@", "_"), mark) as cache:
        rows, size = iter(rows), settings.batch_size
        kept = len(list(cache.glob("*.parquet")))
        if kept:
            log(f"{stage}: {kept} finished groups of an earlier run are kept")
        if kept * size < total:
            sampler = Sampler(folder, settings, state.device)
        bar = progress_bar(total=total, what=stage, unit="image")
        for number in range(math.ceil(total / size)):
            group = list(islice(rows, size))
            number += FIRST_GROUP
            if (
                number % state.num_processes == state.process_index
                and not (cache / f"{number}.parquet").exists()
            ):
                seeds = [image_seed(seed, *row["item"]) for row in group]
                prompts, negatives = (
                    [row[name] for row in group] for name in ("prompt", "negative_prompt")
                )
                with report_out_of_memory("sampling.batch_size", size, sampler.attempt):
                    images = sampler.draw(prompts, negatives, seeds)
                done = [
                    row
                    | drawn_by
                    | {
                        "seed": s,
                        "image": {"bytes": encode_png(Image.fromarray(image)), "path": None},
                    }
                    for row, s, image in zip(group, seeds, images)
                ]
                write_shard(cache, number, done, schema)
            bar.update(len(group))
        bar.close()
        state.wait_for_everyone()
        if state.is_main_process:
            if (found := len(list(cache.glob("*.parquet")))) != math.ceil(total / size):
                exit_with_error(
                    f"{cache}: {found} of {math.ceil(total / size)} groups of images are here: set REMOTE_DIFFUSION_SCRATCH to a folder "
                    "that all machines see"
                )
            for stale in out.glob("*.parquet"):
                stale.unlink()
            write_shards(out, stream_rows(cache), schema)
        state.wait_for_everyone()
