"""Fine-tune the UNet on cached latents; the checkpoint with the lowest validation loss becomes `models/diffusion/`.

    python -m stages.launch finetune_sd      in one process, or several (data-parallel, the same global batch)
Killed at any moment, the next run goes on from the last checkpoint and ends with the same bytes. The loop is the usual one
(Ho et al. 2020; the diffusers text-to-image example) less the VAE and the text encoder, which `encode` has already run.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator

from stages.common import scratch
from stages.common.artefacts import read_json, replace, write_json
from stages.common.fail import fail
from stages.common.processes import processes
from stages.common.progress import progress, say
from stages.common.rng import rng
from stages.common.torch_setup import deterministic
from stages.diffusion import checkpoints, models
from stages.diffusion.latents import Latents
from stages.diffusion.loss import denoising_loss, stratified_timesteps
from stages.params import load

LATENTS, OUT = Path("data/latents"), Path("models/diffusion")
LORA_RANK = 16  # of `method: lora`; alpha is the same, so the update isn't scaled (Hu et al. 2022)
LOG_STEPS = 10  # steps between looks at the loss: each look waits for the GPU


def main() -> None:
    params = load()
    seed, p = params.seed, params.finetune_sd
    deterministic(seed)
    processes()
    precision = {"fp32": "no"}.get(p.precision, p.precision)
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=p.gradient_accumulation)
    world, device = accelerator.num_processes, accelerator.device
    if p.precision == "fp16" and device.type != "cuda":
        fail("finetune_sd.precision: fp16 needs a GPU; use bf16 or fp32")
    if p.batch_size % world:
        fail(f"finetune_sd.batch_size: {p.batch_size} images per step can't be shared evenly by {world} processes")

    # Data: memory-mapped latents and embeddings.
    start = models.start_folder()
    train, valid = (Latents(LATENTS, split, models.latent_scale(start)) for split in ("train", "valid"))
    settings = models.config(start, "unet")
    if settings["in_channels"] != train.shape[0] or settings["cross_attention_dim"] != train.embeddings.shape[2]:
        fail(f"{start}/unet: reads latents of {settings['in_channels']} channels and text of width "
             f"{settings['cross_attention_dim']}; {LATENTS} holds {train.shape[0]} and {train.embeddings.shape[2]}")
    schedule = models.load_scheduler(start, "ddpm")
    kind, alphas_cumprod = schedule.config.prediction_type, schedule.alphas_cumprod.to(device)  # [T]
    steps = math.ceil(p.epochs * len(train) / (p.batch_size * p.gradient_accumulation))
    share = p.batch_size // world

    def batch(micro: int) -> dict:
        """This process's share of a micro-batch: latents [b,C,h,w], noise [b,C,h,w], timesteps [b], text [b,L,D]."""
        first = micro * p.batch_size + accelerator.process_index * share
        return train.visits(range(first, first + share), seed, len(alphas_cumprod), p.caption_dropout, p.latent == "sample")

    def on_device(b: dict) -> dict:
        return {key: value.to(device, non_blocking=True) for key, value in b.items()}

    # Model: all of the UNet, or a low-rank update of its attention.
    unet = models.load(start, "unet")
    if p.method == "lora":
        from peft import LoraConfig
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    else:
        unet.requires_grad_(True)
    unet.train().to(device, memory_format=torch.channels_last)
    names, weights = zip(*((name, w) for name, w in unet.named_parameters() if w.requires_grad))
    optimiser = torch.optim.AdamW(weights, lr=p.lr, weight_decay=p.weight_decay, fused=True)
    ema = [w.detach().clone() for w in weights] if p.ema_decay else None
    model, optimiser = accelerator.prepare(unet, optimiser)

    def validation_loss() -> float:
        """Mean squared error on the valid split: the same noise, timesteps, captions for every checkpoint and experiment."""
        order = rng(0, "validation").permutation(len(valid))[:p.validation_images]
        times = stratified_timesteps(len(order), len(alphas_cumprod))
        errors = torch.zeros(len(order), dtype=torch.float64, device=device)
        for number, first in enumerate(range(0, len(order), share)):
            if number % world == accelerator.process_index:
                rows = order[first:first + share]
                noise = np.stack([rng(0, "validation", int(row)).standard_normal(valid.shape, np.float32) for row in rows])
                b = {"latents": valid.latents(rows, 0, None), "noise": torch.from_numpy(noise),
                     "timesteps": times[first:first + share], "text": valid.text([valid.captions[row][0] for row in rows])}
                with torch.no_grad():
                    errors[first:first + share] = denoising_loss(model, on_device(b), alphas_cumprod, kind).double()
        return accelerator.reduce(errors, "sum").mean().item()

    # Resume from the last whole checkpoint of the same params and inputs.
    code = [Path(__file__), *sorted(Path(models.__file__).parent.glob("*.py"))]
    inputs = [LATENTS, start / "unet", start / "scheduler", *code]
    mark = scratch.fingerprint({"finetune_sd": p.model_dump(), "seed": seed}, inputs)
    with scratch.folder("finetune_sd", mark) as cache:
        if found := checkpoints.load_latest(cache):
            tensors, state = found
            with torch.no_grad():
                for i, (name, w) in enumerate(zip(names, weights)):
                    w.copy_(tensors[f"weight.{name}"])
                    moments = {key: torch.empty_like(w).copy_(tensors[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
                    optimiser.state[w] = {"step": torch.tensor(float(state["step"]), device=device), **moments}
                    if ema:
                        ema[i].copy_(tensors[f"ema.{name}"])
            if accelerator.scaler:
                accelerator.scaler.load_state_dict(state["scaler"])
            say(f"finetune_sd: going on from step {state['step']}")
        else:
            with torch.no_grad():
                loss = denoising_loss(model, on_device(batch(0)), alphas_cumprod, kind, p.min_snr_gamma).mean()
            before = [0, accelerator.reduce(loss, "mean").item(), validation_loss()]
            state = {"step": 0, "best_step": 0, "best": math.inf, "curve": [before]}

        # Train. The next batch is drawn while this one is learnt from.
        bar, pool, losses = progress(total=steps, what="finetune_sd", unit="step"), ThreadPoolExecutor(1), []
        resumed = state["step"]
        bar.update(resumed)
        following = pool.submit(batch, state["step"] * p.gradient_accumulation)
        for step in range(state["step"], steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, p)
            for micro in range(step * p.gradient_accumulation, (step + 1) * p.gradient_accumulation):
                b, following = on_device(following.result()), pool.submit(batch, micro + 1)
                with accelerator.accumulate(model):
                    loss = denoising_loss(model, b, alphas_cumprod, kind, p.min_snr_gamma).mean()
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(weights, p.max_grad_norm)
                    optimiser.step()
                    optimiser.zero_grad()
                losses.append(loss.detach())
            if ema:
                # Warmed up, or the average would keep the base's weights for the first 1 / (1 - decay) steps.
                torch._foreach_lerp_(ema, [w.detach() for w in weights], 1 - min(p.ema_decay, (step + 1) / (step + 10)))
            done, checkpoint = step + 1, (step + 1) % p.checkpoint_steps == 0 or step + 1 == steps
            bar.update()
            if done % LOG_STEPS == 0 or checkpoint:
                recent = torch.stack(losses[-LOG_STEPS * p.gradient_accumulation:]).tolist()
                rate = (done - resumed) * p.batch_size * p.gradient_accumulation / max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", images_s=f"{rate:.0f}", refresh=False)
                if not all(map(math.isfinite, recent)):
                    diverged(done, state, p, bar)
            if not checkpoint:
                continue

            # Checkpoint: measure the averaged weights, keep them if they are the best so far, write all that resuming needs.
            if ema:
                swap(weights, ema)
            error, average = validation_loss(), accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            losses = []
            if not math.isfinite(error):
                diverged(done, state, p, bar)
            state["curve"].append([done, average, error])
            if error < state["best"]:
                state |= {"best": error, "best_step": done}
                if accelerator.is_main_process:
                    checkpoints.save(cache / "best.safetensors", dict(zip(names, weights)), {"step": done})
            if ema:
                swap(weights, ema)
            if accelerator.is_main_process:
                tensors = {f"ema.{name}": w for name, w in zip(names, ema or [])}
                for name, w in zip(names, weights):
                    moments = optimiser.state[w]
                    tensors |= {f"weight.{name}": w} | {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
                state["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler else None
                checkpoints.save_step(cache, done, tensors, state, p.keep_checkpoints)
            state["step"] = done
        bar.close()
        following.result()

        # Publish the best checkpoint as a whole pipeline, with its metrics.
        if accelerator.is_main_process:
            best = None
            if steps:
                with torch.no_grad():
                    tensors, _ = checkpoints.load(cache / "best.safetensors")
                    for name, w in zip(names, weights):
                        w.copy_(tensors[name])
                if p.method == "lora":
                    unet.fuse_lora()
                    unet.unload_lora()
                best = {name: w.detach().cpu().contiguous() for name, w in unet.state_dict().items()}
            models.publish(start, OUT, best, read_json(LATENTS / "normalisation.json") if steps else models.VAE_PIXELS)
            write_metrics(state, steps)
        accelerator.wait_for_everyone()


def learning_rate(step: int, steps: int, p) -> float:
    """Linear warm-up, then constant or a half cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < p.warmup_steps:
        return p.lr * (step + 1) / p.warmup_steps
    if p.lr_schedule == "constant":
        return p.lr
    return p.lr * 0.5 * (1 + math.cos(math.pi * (step - p.warmup_steps) / max(1, steps - p.warmup_steps)))


def diverged(step: int, state: dict, p, bar) -> NoReturn:
    bar.close()
    curve = ", ".join(f"step {step}: {loss:.4f}" for step, loss, _ in state["curve"])
    fail(f"finetune_sd.lr: the loss is no number by step {step} (mean training loss before: {curve}). The checkpoint of "
         f"step {state['step']} is kept. Try a lower lr than {p.lr}, a longer warm-up, or precision fp32")


def swap(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Exchange the values of two lists of tensors, a tensor at a time."""
    with torch.no_grad():
        for a, b in zip(one, other):
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)


def write_metrics(state: dict, steps: int) -> None:
    curve = state["curve"]
    best = next(row for row in curve if row[0] == state["best_step"])
    truncated = pq.read_table(LATENTS / "captions.parquet", columns=["truncated"])["truncated"].to_pylist()
    write_json("metrics/diffusion.json", {
        "train_loss": best[1], "validation_loss": best[2], "validation_loss_base": curve[0][2],
        "validation_loss_last": curve[-1][2], "best_step": state["best_step"], "steps": steps,
        "truncated_captions": sum(truncated)})
    lines = ["step,train_loss,validation_loss", *(f"{step},{loss!r},{error!r}" for step, loss, error in curve)]
    replace("metrics/plots/diffusion_loss.csv", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
