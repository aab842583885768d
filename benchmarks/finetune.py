"""Speed of fine-tuning, data loading included: `finetune_sd` against encoding at every step.

    python -m benchmarks.finetune           demo size (CPU or GPU)
    python -m benchmarks.finetune 224       Stable Diffusion v1.5's size at 224 px, or at 512 (GPU)

The reference is diffusers' text-to-image example as released: decode and augment an image, encode
it with the VAE, encode its caption, step. Model, images, batch size, precision and optimizer are
the same; the reference is not compiled. Each run is a new process, and only steps count.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch.utils.data import Dataset

from benchmarks.flops import UNET_TRAINING, training_flops
from benchmarks.interleaved import compare
from benchmarks.workspace import (
    LITTLE_MEASURING,
    make_demo,
    make_stable_diffusion,
    read_scale,
    run_module,
    write_params,
)
from stages.runtime.process import make_parser

WARM_UP_STEPS = 3
TIMED_STEPS = 12
# Dense bf16 FLOP/s, by the manufacturer. The first name that a device's holds counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def main() -> None:
    parser = make_parser("benchmarks.finetune", __doc__)
    # `stage` and `reference` are the processes that `compare_loops` starts.
    choices = ["demo", "224", "512", "stage", "reference"]
    parser.add_argument("size", nargs="?", choices=choices, default="demo")
    size = parser.parse_args().size
    if size == "stage":
        print(time_stage_loop())
    elif size == "reference":
        print(time_reference_loop())
    else:
        compare_loops(size)


def compare_loops(size: str) -> None:
    """Print images per second of both loops and, on a known GPU, the share of its peak FLOP/s."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    training: dict[str, Any] = {
        "epochs": 1000,
        "checkpoint_steps": 10**6,
        "optimizer": "adamw",  # the reference's
        **LITTLE_MEASURING,
    }
    encoding: dict[str, Any] = {"base_domain": "none"}
    if size != "demo":
        batch_size = 16 if size == "224" else 8
        changes = {"batch_size": batch_size, "gradient_accumulation": 1, "precision": "bf16"}
        training = read_scale("paper")["finetune_sd"] | training | changes
        encoding = {"precision": "bf16"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if size == "demo":
            make_demo(folder, 512, finetune_sd=training, encode=encoding)
        else:
            make_stable_diffusion(folder, 64, int(size), finetune_sd=training)
        run_module(folder, "stages.encode")

        def images_per_second(loop: str, **options: bool) -> float:
            write_params(folder, finetune_sd=training | options, encode=encoding)
            return float(run_module(folder, "benchmarks.finetune", loop).split()[-1])

        runs = {
            "encode at every step": lambda: images_per_second("reference"),
            "encode once": lambda: images_per_second("stage"),
        }
        if device != "CPU":
            runs["encode once, compiled"] = lambda: images_per_second("stage", compile=True)
        rates = compare(f"fine-tuning, {size}, {device}", runs)
    if size != "demo":
        shares = [
            f"{name} {describe_mfu(int(size), rate, device)}"
            for name, rate in rates.items()
            if "once" in name
        ]
        print("\nMFU: " + ", ".join(shares))


def describe_mfu(resolution: int, rate: float, device: str) -> str:
    """The share of the device's dense bf16 peak that `rate` images a second take, and the peak."""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    if peak is None:
        return f"unknown: benchmarks/finetune.py has no peak of {device}"
    flops = training_flops(resolution)[UNET_TRAINING]
    return f"{flops * rate / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"


class TimingDone(Exception):
    """All timed steps are done. Its argument is the rate, in images per second."""


class StepTimer:
    """Called when each step begins; raises TimingDone after the timed steps.

    The first WARM_UP_STEPS don't count.
    """

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.steps = 0
        self.started = 0.0

    def __call__(self) -> None:
        if self.steps == WARM_UP_STEPS:
            self.started = self.now()
        if self.steps == WARM_UP_STEPS + TIMED_STEPS:
            seconds = self.now() - self.started
            raise TimingDone(TIMED_STEPS * self.images_per_step / seconds)
        self.steps += 1

    def now(self) -> float:
        """Seconds, when the GPU has done its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def time_stage_loop() -> float:
    """Images per second of the stage `finetune_sd` itself, stopped after a few steps."""
    from stages import finetune_sd
    from stages.params import load

    config = load().finetune_sd
    timer = StepTimer(config.batch_size * config.gradient_accumulation)
    learning_rate = finetune_sd.learning_rate

    def timed_learning_rate(*arguments: Any) -> float:
        timer()
        return learning_rate(*arguments)

    with patch.object(finetune_sd, "learning_rate", timed_learning_rate):
        try:
            finetune_sd.main()
        except TimingDone as done:
            return done.args[0]
    raise RuntimeError("finetune_sd ended before the timed steps: too few epochs or images")


class CaptionedTiles(Dataset):
    """Tiles as `datasets` would give them: PNGs from Parquet, augmented, with a token sequence."""

    def __init__(self, rows: list[dict], tokenizer: Any) -> None:
        self.rows = rows
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        import numpy as np

        from stages.common.artifacts import decode_image

        captions = self.rows[i]["captions"]
        tokens = self.tokenizer(
            captions[np.random.randint(len(captions))],
            padding="max_length",
            truncation=True,
            max_length=77,
            return_tensors="pt",
        )
        image = torch.from_numpy(np.array(decode_image(self.rows[i]["image"])))  # [H, W, 3]
        pixels = image.permute(2, 0, 1) / 127.5 - 1  # [3, H, W]
        for side in (1, 2):
            if np.random.random() < 0.5:
                pixels = pixels.flip(side)
        return {"pixel_values": pixels, "input_ids": tokens.input_ids[0]}


def time_reference_loop() -> float:
    """Images per second of diffusers' train_text_to_image.py, without its options."""
    try:
        run_reference_loop()
    except TimingDone as done:
        return done.args[0]


def run_reference_loop() -> NoReturn:
    """The loop of train_text_to_image.py. Raises TimingDone after a few steps.

    Raises RuntimeError where the training tiles don't fill a batch.
    """
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from stages.common.artifacts import read_rows
    from stages.diffusion import models, schedulers
    from stages.diffusion.loss import add_noise, min_snr_weight, target
    from stages.params import load

    config = load().finetune_sd
    start = models.start_folder()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision)
    )
    device = accelerator.device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.precision]
    tiles = CaptionedTiles(read_rows(Path("data/imagery/train")), models.load_tokenizer(start))
    if len(tiles) < config.batch_size:  # an epoch would have no step, and the loop no end
        raise RuntimeError(f"{len(tiles)} training tiles don't fill a batch of {config.batch_size}")
    loader = DataLoader(tiles, batch_size=config.batch_size, shuffle=True, drop_last=True)
    unet = models.load(start, "unet").requires_grad_(True).train()
    vae = models.load(start, "vae").to(device, dtype)
    text_encoder = models.load(start, "text_encoder").to(device, dtype)
    schedule = schedulers.load_scheduler(start, "ddpm")
    prediction_type = schedule.config.prediction_type
    alphas_cumprod = schedule.alphas_cumprod.to(device)  # [T]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    ema = [weight.detach().clone() for weight in unet.parameters()] if config.ema_decay else []
    timer = StepTimer(config.batch_size)
    while True:
        for batch in loader:
            timer()
            with torch.no_grad():
                x = vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample().float()
                x = x * vae.config.scaling_factor  # [B, C, h, w]
                text = text_encoder(batch["input_ids"])[0]  # [B, L, D]
            noise = torch.randn_like(x)
            t = torch.randint(0, len(alphas_cumprod), (len(x),), device=device)  # [B]
            prediction = unet(add_noise(x, noise, t, alphas_cumprod).to(dtype), t, text).sample
            error = prediction.float() - target(x, noise, t, alphas_cumprod, prediction_type)
            weight = min_snr_weight(t, alphas_cumprod, prediction_type, config.min_snr_gamma)  # [B]
            accelerator.backward((error.square().mean((1, 2, 3)) * weight).mean())
            accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            for average, parameter in zip(ema, unet.parameters()):
                average.lerp_(parameter.detach(), 1 - config.ema_decay)


if __name__ == "__main__":
    main()
