"""Fine-tuning, data loading included: `finetune_sd` against the loop that encodes at every step.

    python -m benchmarks.finetune                 demo size (CPU or GPU)
    python -m benchmarks.finetune 224             Stable Diffusion v1.5's size at 224 px, or 512 (a GPU)
The other loop is diffusers' text-to-image example as released: decode and augment an image, encode it with the VAE, encode its
caption, step; the same model, images, batch size and precision, not compiled. Each run is a process of its own; only steps count.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.flops import training_flops
from benchmarks.interleaved import compare
from benchmarks.workspace import demo, stable_diffusion, stage, write_params

ROUNDS, WARM_UP, STEPS = 5, 3, 12
PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}  # dense bf16 FLOP/s, by its maker


def main(size: str = "demo") -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    large = size != "demo"
    training = {
        "epochs": 1000,
        "checkpoint_steps": 10**6,
        "validation_images": 2,
        "grid_captions": 1,
    }
    if large:
        training |= {
            "batch_size": 16 if size == "224" else 8,
            "precision": "bf16",
            "ema_decay": 0,
            "lr": 1.0e-6,
        }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if large:
            stable_diffusion(folder, 64, int(size), finetune_sd=training)
        else:
            demo(folder, 512, finetune_sd=training, encode={"base_domain": "none"})
        stage(folder, "stages.encode")

        def run(name: str, **options) -> float:
            write_params(
                folder,
                finetune_sd=training | options,
                **({"encode": {"precision": "bf16"}} if large else {}),
            )
            return float(stage(folder, "benchmarks.finetune", name).split()[-1])

        runs = {
            "encode at every step": lambda: run("reference"),
            "encode once": lambda: run("ours"),
        }
        if device != "CPU":
            runs["encode once, compiled"] = lambda: run("ours", compile=True)
        found = compare(f"fine-tuning, {size}, {device}", "images/s", runs, ROUNDS)
        peak = next((value for name, value in PEAK.items() if name in device), None)
        if large and peak:
            flops = training_flops(int(size))["UNet, forward and backward"]
            print(
                "\nMFU of bf16 peak: "
                + ", ".join(
                    f"{name} {flops * rate / peak:.1%}"
                    for name, rate in found.items()
                    if "once" in name
                )
            )


class Clock:
    """Images per second over `STEPS` steps after `WARM_UP`: called at the beginning of each step, prints the rate and ends the process."""

    def __init__(self, images: int):
        self.images, self.calls, self.began = images, 0, 0.0

    def __call__(self) -> None:
        if self.calls in (WARM_UP, WARM_UP + STEPS):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if self.calls > WARM_UP:
                print(STEPS * self.images / (time.perf_counter() - self.began), flush=True)
                raise SystemExit(0)
            self.began = time.perf_counter()
        self.calls += 1


def ours() -> None:
    """The stage itself, stopped after a few steps."""
    from stages import finetune_sd
    from stages.params import load

    clock, rate = Clock(load().finetune_sd.batch_size), finetune_sd.learning_rate
    finetune_sd.learning_rate = lambda *arguments: (clock(), rate(*arguments))[1]
    finetune_sd.main()


def reference() -> None:
    """train_text_to_image.py of diffusers, less its options: the images come from Parquet as PNGs, as `datasets` would give them."""
    import numpy as np
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from stages.common.artifacts import decode_image, read_rows
    from stages.diffusion import models
    from stages.diffusion.loss import add_noise, min_snr_weight, target
    from stages.params import load

    p, start = load().finetune_sd, models.start_folder()
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(p.precision, p.precision))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[p.precision]
    rows, tokenizer = read_rows(Path("data/imagery/train")), models.load_tokenizer(start)
    augment = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )

    class Tiles(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, i: int) -> dict:
            caption = rows[i]["captions"][np.random.randint(len(rows[i]["captions"]))]
            ids = tokenizer(
                caption, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
            ).input_ids[0]
            return {"pixel_values": augment(decode_image(rows[i]["image"])), "input_ids": ids}

    loader = DataLoader(Tiles(), batch_size=p.batch_size, shuffle=True, drop_last=True)
    unet = models.load(start, "unet").requires_grad_(True).train()
    vae, text = (
        models.load(start, part).to(accelerator.device, dtype) for part in ("vae", "text_encoder")
    )
    schedule = models.load_scheduler(start, "ddpm")
    kind, alphas_cumprod = (
        schedule.config.prediction_type,
        schedule.alphas_cumprod.to(accelerator.device),
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=p.lr, weight_decay=p.weight_decay)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    ema = [w.detach().clone() for w in unet.parameters()] if p.ema_decay else []
    clock = Clock(p.batch_size)
    while True:
        for batch in loader:
            clock()
            with torch.no_grad():
                x = (
                    vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample().float()
                    * vae.config.scaling_factor
                )
                states = text(batch["input_ids"])[0]
            noise, t = (
                torch.randn_like(x),
                torch.randint(0, len(alphas_cumprod), (len(x),), device=x.device),
            )
            prediction = unet(add_noise(x, noise, t, alphas_cumprod).to(dtype), t, states).sample
            error = (
                (prediction.float() - target(x, noise, t, alphas_cumprod, kind))
                .square()
                .mean((1, 2, 3))
            )
            accelerator.backward(
                (error * min_snr_weight(t, alphas_cumprod, kind, p.min_snr_gamma)).mean()
            )
            accelerator.clip_grad_norm_(unet.parameters(), p.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            for average, w in zip(ema, unet.parameters()):
                average.lerp_(w.detach(), 1 - p.ema_decay)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ours"]:
            ours()
        case ["reference"]:
            reference()
        case arguments:
            main(*arguments)
