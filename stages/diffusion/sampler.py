"""Text-to-image sampling in fixed, padded groups, shared by `sample` and `generate`.

An image depends only on its prompt, its negative prompt and its seed. The noise is drawn per image,
and a group always has `sampling.batch_size` images, padded at the end. So an image has the same
bytes from one process or eight, and after a restart. Finished groups are kept in the resume cache
until all are done.
"""

import io
import math
from collections.abc import Iterable
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from stages.common.artifacts import fingerprint, stream_rows, write_shard, write_shards
from stages.common.rng import rng
from stages.common.torch_setup import DTYPES, autocast
from stages.diffusion import models, schedulers
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.denoising import denoise
from stages.diffusion.marked_png import encode_marked_png
from stages.diffusion.param_checks import check_sampling
from stages.params import Sampling
from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.parallel import BackgroundWriter
from stages.runtime.pretrained import check_vocabulary
from stages.runtime.processes import once, process_state
from stages.runtime.progress import log, progress_bar

# Added to a group's number, so that all file names have the same length and sort by number.
FIRST_GROUP = 10**8
# Columns that say how an image was made. `generate_shards` fills them in.
PROVENANCE = [
    ("seed", pa.int64()),
    ("scheduler", pa.string()),
    ("steps", pa.int32()),
    ("guidance_scale", pa.float64()),
    ("model", pa.string()),  # its digest
]


def image_seed(seed: int, *item: int | str) -> int:
    """The seed of an image's noise, for `torch.Generator().manual_seed`.

    Args:
        seed: the seed of the run.
        item: identifies the image, as in `rng`.
    """
    return int(rng(seed, "image", *item).integers(2**63))


class Sampler:
    """A diffusion model, loaded to generate images.

    The UNet and the VAE compute in `sampling.precision`, the text encoder in float32.
    """

    def __init__(
        self, folder: str | Path, sampling: Sampling, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        check_sampling(sampling, folder, self.device)
        self.folder = folder
        self.sampling = sampling
        self.dtype = DTYPES[sampling.precision]
        self.unet = self._prepare(models.load(folder, "unet"))
        self.vae = self._prepare(models.load(folder, "vae"))
        self.tokenizer = models.load_tokenizer(folder)
        self.text_encoder = models.load(folder, "text_encoder").to(device)
        check_vocabulary(folder, self.tokenizer, self.text_encoder)
        self.scheduler = schedulers.load_scheduler(folder, sampling.scheduler)
        self.scaling_factor = models.scaling_factor(folder)
        latent_size = sampling.resolution // models.downsampling_factor(folder)
        self.latent_shape = (self.unet.config.in_channels, latent_size, latent_size)  # (C, h, w)
        self._negative_embedding: dict[str, torch.Tensor] = {}  # by prompt; only the last one's

    def _prepare(self, model: Any) -> Any:
        """Move a model to the device; cast its convolutions and linear layers to the precision.

        Autocast would cast their weights again at each call. The other weights stay float32: with
        norms and residuals in bfloat16 too, the images of a small model change by up to 14/255.
        """
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(self.dtype)
        return model.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def generate_images(
        self, prompts: list[str], negative_prompts: list[str], seeds: list[int]
    ) -> np.ndarray:
        """Generate an image per prompt: uint8 [N, H, W, 3].

        The N prompts, at most `sampling.batch_size`, are padded to a group of that size.
        """
        count = len(prompts)
        group_size = self.sampling.batch_size
        padding = group_size - count
        noise = torch.stack(
            [
                torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed))
                for seed in seeds + [0] * padding
            ]
        ).to(self.device)  # [B, C, h, w]
        text = models.embed_text(
            self.tokenizer, self.text_encoder, prompts + [""] * padding
        )  # [B, L, D]
        negative_text = None
        if self.sampling.guidance_scale > 1:
            negative_text = torch.cat(
                [self._embed_negative(negative) for negative in negative_prompts + [""] * padding]
            )  # [B, L, D]

        def generate_chunk(chunk: slice) -> torch.Tensor:
            chunk_text = text[chunk]
            if negative_text is not None:
                chunk_text = torch.cat([negative_text[chunk], chunk_text])
            return self._denoise_and_decode(noise[chunk], chunk_text, self.sampling.steps)

        chunks = CpuChunks(group_size, self.device)
        images = torch.cat(chunks.map(generate_chunk))[:count]  # [N, 3, H, W]
        decoded = images.float().cpu().numpy()
        if not np.isfinite(decoded).all():
            exit_with_error(
                f"{self.folder}: the images of this model are NaN or inf. {self._nan_advice()}"
            )
        return models.to_pixels(decoded)

    def _nan_advice(self) -> str:
        """What may make images NaN or inf: params with values to try, and the model itself."""
        causes = []
        wider = {"fp16": "bf16 or fp32", "bf16": "fp32", "fp32": None}[self.sampling.precision]
        if wider:
            causes.append(f"sampling.precision (try {wider})")
        if self.sampling.guidance_scale > 1:
            causes.append(
                f"sampling.guidance_scale (try less than {self.sampling.guidance_scale:g})"
            )
        causes.append("the model's weights or its noise schedule")
        return f"The cause may be {', or '.join(causes)}"

    @torch.inference_mode()
    def _denoise_and_decode(
        self, noise: torch.Tensor, text: torch.Tensor, steps: int
    ) -> torch.Tensor:
        """Decoded images [B, 3, H, W] from noise [B, C, h, w] and text [B, L, D].

        With guidance text is [2B, L, D], the negative prompts first.
        """
        with autocast(self.sampling.precision, self.device):
            latents = denoise(
                self.unet,
                deepcopy(self.scheduler),  # it keeps a history, and threads work side by side
                noise,
                text,
                self.sampling.guidance_scale,
                steps,
            )  # [B, C, h, w]
            latents = (latents / self.scaling_factor).contiguous(memory_format=torch.channels_last)
            return self.vae.decode(latents, return_dict=False)[0]

    def _embed_negative(self, negative_prompt: str) -> torch.Tensor:
        """The text embedding [1, L, D] of a negative prompt; the last one is kept, as most repeat.

        Embedded alone in its batch, a prompt has the same embedding in any group.
        """
        if negative_prompt not in self._negative_embedding:
            embedding = models.embed_text(self.tokenizer, self.text_encoder, [negative_prompt])
            self._negative_embedding = {negative_prompt: embedding}
        return self._negative_embedding[negative_prompt]

    def try_group_size(self, count: int) -> None:
        """Use as much memory as `generate_images` does for a group of `count` images."""
        noise = torch.zeros(count, *self.latent_shape, device=self.device)
        texts = 2 * count if self.sampling.guidance_scale > 1 else count
        text = self._embed_negative("").expand(texts, -1, -1)
        self._denoise_and_decode(noise, text, steps=1)


def generate_shards(
    stage: str,
    out: Path,
    model: Path,
    rows: Iterable[dict],
    total: int,
    schema: pa.Schema,
    sampling: Sampling,
    seed: int,
    inputs: list[Path],
) -> None:
    """Generate an image for each row and write the rows as Parquet shards, all of it streamed.

    Args:
        stage: its name, for the log and the resume cache.
        out: the folder to write to.
        model: the diffusion model.
        rows: with `prompt`, `negative_prompt` and `item`, which `image_seed` takes.
        total: number of rows.
        schema: the columns to write: those of the rows, `image` and `PROVENANCE`.
        sampling: the params.
        seed: the seed of the run.
        inputs: the files that decide the rows, and the stage's script. When one changes, groups
            that were finished before are not used.
    """
    if not total:
        exit_with_error(f"{inputs[0]}: no rows to draw")
    state = process_state()
    digest = models.model_digest(model)
    provenance = {
        "scheduler": sampling.scheduler,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "model": digest,
    }
    settings = {"sampling": sampling.model_dump(), "seed": seed, "model": digest, "total": total}
    code = sorted(Path(__file__).parent.glob("*.py"))
    key = fingerprint(settings, [*inputs, *code])
    group_count = math.ceil(total / sampling.batch_size)
    rows = iter(rows)
    with resume_cache.resume_folder(stage.replace("@", "_"), key) as cache:
        kept = _count_kept_images(cache, sampling.batch_size, total)
        if kept:
            log(f"{stage}: {len(kept)} finished groups of an earlier run are kept")
        sampler = None
        writer = BackgroundWriter()  # of a group, while the next one is on the GPU
        bar = progress_bar(total=total, initial=sum(kept.values()), desc=stage, unit="image")
        for number in range(FIRST_GROUP, FIRST_GROUP + group_count):
            group = list(islice(rows, sampling.batch_size))
            is_own = number % state.num_processes == state.process_index
            if is_own and not _is_finished(cache / f"{number}.parquet", len(group)):
                sampler = sampler or Sampler(model, sampling, state.device)
                finished = _generate_group(sampler, group, seed, provenance)
                writer.submit(_write_group, cache, number, schema, *finished)
            bar.update(0 if number in kept else len(group))
        writer.wait()
        bar.close()
        state.wait_for_everyone()
        once(state, _merge_groups, cache, group_count, out, schema)


def _count_kept_images(cache: Path, group_size: int, total: int) -> dict[int, int]:
    """The images in each group of an earlier run, by its number; the last of all may have fewer."""
    numbers = [int(file.stem) for file in cache.glob("*.parquet")]
    return {n: min(group_size, total - group_size * (n - FIRST_GROUP)) for n in numbers}


def _is_finished(file: Path, count: int) -> bool:
    """Whether a group of `count` images is there; a damaged one is named in the log, and is not."""
    if not file.exists():
        return False
    try:
        cells = pq.read_table(file)["image"].to_pylist()  # damage in any column is found
        for cell in cells:
            with Image.open(io.BytesIO(cell["bytes"])) as image:
                image.verify()  # the checksums of PNG
        fault = None if len(cells) == count else f"{len(cells)} of {count} images"
    except (pa.ArrowException, OSError, SyntaxError, LookupError, ValueError, TypeError) as error:
        fault = f"{error}"
    if fault:
        log(f"{file}: damaged, its images are generated again ({fault})")
    return fault is None


def _generate_group(
    sampler: Sampler, rows: list[dict], seed: int, provenance: dict[str, Any]
) -> tuple[list[dict], np.ndarray]:
    """The rows of a group with their seeds and provenance; their images uint8 [B, H, W, 3]."""
    seeds = [image_seed(seed, *row["item"]) for row in rows]
    prompts = [row["prompt"] for row in rows]
    negative_prompts = [row["negative_prompt"] for row in rows]
    group_size = sampler.sampling.batch_size
    with report_out_of_memory("sampling.batch_size", group_size, sampler.try_group_size):
        images = sampler.generate_images(prompts, negative_prompts, seeds)
    finished = [row | provenance | {"seed": row_seed} for row, row_seed in zip(rows, seeds)]
    return finished, images


def _write_group(
    cache: Path, number: int, schema: pa.Schema, rows: list[dict], images: np.ndarray
) -> None:
    """Write a group's rows with their images [B, H, W, 3] to the resume cache."""
    for row, image in zip(rows, images):
        row["image"] = {"bytes": encode_marked_png(image, row), "path": None}
    write_shard(cache, number, rows, schema)


def _merge_groups(cache: Path, group_count: int, out: Path, schema: pa.Schema) -> None:
    """Write the finished groups of all processes as shards to `out`."""
    finished_count = len(list(cache.glob("*.parquet")))
    if finished_count != group_count:
        exit_with_error(
            f"{cache}: {finished_count} of {group_count} groups of images are here: set "
            "REMOTE_DIFFUSION_SCRATCH to a folder that all machines see"
        )
    for old_shard in out.glob("*.parquet"):
        old_shard.unlink()
    write_shards(out, stream_rows(cache), schema)
