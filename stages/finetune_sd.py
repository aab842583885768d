"""Fine-tune the UNet on cached latents; the checkpoint with the lowest validation loss becomes `models/diffusion/`.

    python -m stages.runtime.launch finetune_sd      in one process, or several (data-parallel, the same global batch)
Killed at any moment, the next run goes on from the last checkpoint and ends with the same bytes. The loop is the usual one
(Ho et al. 2020; the diffusers text-to-image example) less the VAE and the text encoder, which `encode` has already run.
At each checkpoint it also measures what the base knew and may forget: the loss on the base's own domain, and a grid's diversity.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, DistributedType

from stages.common.artifacts import fingerprint, read_json
from stages.common.torch_setup import make_deterministic
from stages.diffusion import checkpoints, models, training_log
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.latents import Latents
from stages.diffusion.loss import denoising_loss
from stages.diffusion.validation import sample_grid, validation_loss
from stages.params import load
from stages.runtime import resume_cache
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.process import run_stage
from stages.runtime.processes import process_state
from stages.runtime.progress import log, progress_bar
from stages.runtime.tracking import track_metrics

LATENTS, OUT = Path("data/latents"), Path("models/diffusion")
LOG_STEPS = 10  # steps between looks at the loss: each look waits for the GPU


def main() -> None:
    params = load()
    seed, p = params.seed, params.finetune_sd
    make_deterministic(seed)
    process_state()
    precision = {"fp32": "no"}.get(p.precision, p.precision)
    accelerator = Accelerator(
        mixed_precision=precision, gradient_accumulation_steps=p.gradient_accumulation
    )
    world, device = accelerator.num_processes, accelerator.device
    if p.precision == "fp16" and device.type != "cuda":
        exit_with_error("finetune_sd.precision: fp16 needs a GPU; use bf16 or fp32")
    if p.batch_size % world:
        exit_with_error(
            f"finetune_sd.batch_size: {p.batch_size} images per step can't be shared evenly by {world} processes"
        )

    # Data: memory-mapped latents and embeddings.
    start = models.start_folder()
    scale, statistics = models.latent_scale(start), read_json(LATENTS / "normalization.json")
    train, valid = (Latents(LATENTS, split, scale) for split in ("train", "valid"))
    base = Latents(LATENTS, "base", scale) if (LATENTS / "base.safetensors").exists() else None
    settings = models.config(start, "unet")
    if (
        settings["in_channels"] != train.shape[0]
        or settings["cross_attention_dim"] != train.embeddings.shape[2]
    ):
        exit_with_error(
            f"{start}/unet: reads latents of {settings['in_channels']} channels and text of width "
            f"{settings['cross_attention_dim']}; {LATENTS} holds {train.shape[0]} and {train.embeddings.shape[2]}"
        )
    schedule = models.load_scheduler(start, "ddpm", p.zero_terminal_snr)
    kind, alphas_cumprod = (
        schedule.config.prediction_type,
        schedule.alphas_cumprod.to(device),
    )  # [T]
    if p.zero_terminal_snr and kind != "v_prediction":
        exit_with_error(
            f"finetune_sd.zero_terminal_snr: at zero signal the noise says nothing of the image, and {start} predicts {kind}; "
            "it needs a base with v_prediction"
        )
    steps = math.ceil(p.epochs * len(train) / (p.batch_size * p.gradient_accumulation))
    share = p.batch_size // world

    def batch(micro: int) -> dict:
        """This process's share of a micro-batch: latents [b,C,h,w], noise [b,C,h,w], timesteps [b], text [b,L,D]."""
        first = micro * p.batch_size + accelerator.process_index * share
        return train.visits(
            range(first, first + share),
            seed,
            len(alphas_cumprod),
            p.caption_dropout,
            p.latent == "sample",
        )

    def on_device(b: dict) -> dict:
        return {key: value.to(device, non_blocking=True) for key, value in b.items()}

    # Model and optimizer.
    unet = models.trainable_unet(start, p.method, seed).to(
        device, memory_format=torch.channels_last
    )
    if p.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if p.compile:
        unet.compile()
    trained = [w for w in unet.parameters() if w.requires_grad]
    if p.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        adamw = AdamW8bit(trained, lr=p.lr, weight_decay=p.weight_decay)
    else:
        adamw = torch.optim.AdamW(trained, lr=p.lr, weight_decay=p.weight_decay, fused=True)
    model, optimizer = accelerator.prepare(unet, adamw)
    names, weights = zip(
        *((name, w) for name, w in unet.named_parameters() if w.requires_grad)
    )  # sharded by now, under FSDP2
    ema = [w.detach().clone() for w in weights] if p.ema_decay else []
    slices = CpuChunks(share, device)
    sliced = (
        len(slices.slices) > 1 and world == 1 and not p.compile
    )  # elsewhere accelerate has hooks on `backward`

    def learn(b: dict) -> torch.Tensor:
        """Loss and gradients of a micro-batch. A function, so that nothing holds on to its activations when memory runs out."""

        def loss(part: slice) -> torch.Tensor:
            images = {key: value[part] for key, value in b.items()}
            return (
                denoising_loss(model, images, alphas_cumprod, kind, p.min_snr_gamma).sum() / share
            )

        if sliced:
            return slices.backward(loss, weights, 1 / p.gradient_accumulation)
        whole = loss(slice(None))
        accelerator.backward(whole)
        return whole.detach()

    def attempt(count: int) -> None:
        """This process's part of a step on `count` images, to see whether it fits into memory; waits for no other process."""
        b = on_device(
            train.visits(range(math.ceil(count / world)), seed, len(alphas_cumprod), 0.0, False)
        )
        with accelerator.no_sync(model):
            denoising_loss(unet, b, alphas_cumprod, kind).mean().backward()
        adamw.step()
        adamw.zero_grad()

    def measure(step: int, train_loss: float) -> list[float]:
        """A row of the curve (see training_log.COLUMNS); draws the sample grid."""
        losses = [
            validation_loss(model, data, count, share, accelerator, alphas_cumprod, kind)
            if data
            else None
            for data, count in ((valid, p.validation_images), (base, len(base or ())))
        ]
        grid, diversity = sample_grid(
            model, valid, p.grid_captions, start, statistics, device, p.zero_terminal_snr
        )
        if accelerator.is_main_process:
            (cache / "grid").mkdir(exist_ok=True)
            grid.save(training_log.grid_file(cache, step))
        return [step, train_loss, *losses, diversity]

    # Resume from the last whole checkpoint of the same params and inputs.
    code = [Path(__file__), *sorted(Path(models.__file__).parent.glob("*.py"))]
    inputs = [LATENTS, start / "unet", start / "scheduler", *code]
    mark = fingerprint({"finetune_sd": p.model_dump(), "seed": seed}, inputs)
    advice = "; a bigger gradient_accumulation keeps the step the same, gradient_checkpointing and adamw8bit save memory"
    if accelerator.distributed_type == DistributedType.FSDP:
        attempt = None  # it would wait for the other processes
    with (
        resume_cache.resume_folder("finetune_sd", mark) as cache,
        report_out_of_memory("finetune_sd.batch_size", p.batch_size, attempt, advice),
        track_metrics(
            "finetune_sd", p.model_dump(), mark, resume=any(cache.glob("step_*"))
        ) as log_metrics,
    ):
        found = checkpoints.load_latest(cache)
        at = accelerator.gather(torch.tensor([found[1]["step"] if found else 0], device=device))
        if at.min() != at.max():
            exit_with_error(
                f"{cache}: not all processes see the same checkpoints: set REMOTE_DIFFUSION_SCRATCH to a folder that all machines see"
            )
        if found:
            checkpoints.unpack(found[0], names, weights, ema, adamw)
            state, found = (
                found[1],
                None,
            )  # its tensors are as large as the model, the average and the optimizer together
            if accelerator.scaler:
                accelerator.scaler.load_state_dict(state["scaler"])
            log(f"finetune_sd: going on from step {state['step']}")
        else:
            with torch.no_grad():
                loss = denoising_loss(
                    model, on_device(batch(0)), alphas_cumprod, kind, p.min_snr_gamma
                ).mean()
            before = measure(0, accelerator.reduce(loss, "mean").item())
            state = {"step": 0, "best_step": 0, "best": math.inf, "curve": [before]}

        # Train. The next batch is drawn while this one is learned from.
        bar, pool, losses = (
            progress_bar(total=steps, what="finetune_sd", unit="step"),
            ThreadPoolExecutor(1),
            [],
        )
        resumed = state["step"]
        bar.update(resumed)
        following = pool.submit(batch, resumed * p.gradient_accumulation)
        writer = ThreadPoolExecutor(1)
        written = writer.submit(lambda: None)  # the last checkpoint
        for step in range(state["step"], steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, p)
            for micro in range(
                step * p.gradient_accumulation, (step + 1) * p.gradient_accumulation
            ):
                b, following = on_device(following.result()), pool.submit(batch, micro + 1)
                with accelerator.accumulate(model):
                    losses.append(learn(b))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(weights, p.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
            if ema:
                # Warmed up, or the average would keep the base's weights for the first 1 / (1 - decay) steps.
                torch._foreach_lerp_(
                    ema,
                    [w.detach() for w in weights],
                    1 - min(p.ema_decay, (step + 1) / (step + 10)),
                )
            done, checkpoint = step + 1, (step + 1) % p.checkpoint_steps == 0 or step + 1 == steps
            bar.update()
            if written.done():
                written.result()  # ends the stage here if the disk was full
            if done % LOG_STEPS == 0 or checkpoint:
                recent = torch.stack(losses[-LOG_STEPS * p.gradient_accumulation :]).tolist()
                rate = (
                    (done - resumed)
                    * p.batch_size
                    * p.gradient_accumulation
                    / max(bar.format_dict["elapsed"], 1e-9)
                )
                bar.set_postfix(
                    loss=f"{sum(recent) / len(recent):.4f}", images_s=f"{rate:.0f}", refresh=False
                )
                if not all(map(math.isfinite, recent)):
                    written.result()
                    diverged(done, state, p, bar)
                log_metrics(
                    done,
                    {
                        "train_loss": sum(recent) / len(recent),
                        "images_per_second": rate,
                        "lr": group["lr"],
                    },
                )
            if not checkpoint:
                continue

            # Checkpoint: measure the averaged weights, keep them if they are the best so far, write all that resuming needs
            # while training goes on.
            if ema:
                swap(weights, ema)
            row, losses = (
                measure(done, accelerator.reduce(torch.stack(losses).mean(), "mean").item()),
                [],
            )
            if not all(math.isfinite(value) for value in row if value is not None):
                written.result()
                diverged(done, state, p, bar)
            state["curve"].append(row)
            if row[2] < state["best"]:
                state |= {"best": row[2], "best_step": done}
            if ema:
                swap(weights, ema)
            state |= {
                "step": done,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            }
            written.result()
            tensors = checkpoints.pack(names, weights, ema, adamw)
            if accelerator.is_main_process:
                written = writer.submit(
                    checkpoints.save_step, cache, tensors, deepcopy(state), p.keep_checkpoints
                )
            del tensors
            log_metrics(
                done,
                {
                    name: value
                    for name, value in zip(training_log.COLUMNS[2:], row[2:])
                    if value is not None
                },
                training_log.grid_file(cache, done),
            )
        bar.close()
        following.result()
        written.result()

        # Publish the best checkpoint as a whole pipeline, with its metrics.
        if accelerator.is_main_process:
            best = None
            if steps:
                best = models.trained_unet(
                    start, p.method, seed, checkpoints.load(cache / "best.safetensors")[0]
                )
            models.publish(
                start,
                OUT,
                best,
                statistics if steps else models.VAE_PIXELS,
                p.zero_terminal_snr and steps > 0,
            )
            training_log.write(state, steps, cache, LATENTS)
        accelerator.wait_for_everyone()


def learning_rate(step: int, steps: int, p) -> float:
    """Linear warm-up, then constant or a half cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < p.warmup_steps:
        return p.lr * (step + 1) / p.warmup_steps
    if p.lr_schedule == "constant":
        return p.lr
    return (
        p.lr
        * 0.5
        * (1 + math.cos(math.pi * (step - p.warmup_steps) / max(1, steps - p.warmup_steps)))
    )


def diverged(step: int, state: dict, p, bar) -> NoReturn:
    bar.close()
    before = ", ".join(f"step {step}: {loss:.4f}" for step, loss, *_ in state["curve"])
    kept = (
        f"The checkpoint of step {state['step']} is kept"
        if state["step"]
        else "No checkpoint was written yet"
    )
    exit_with_error(
        f"finetune_sd.lr: the loss is no number by step {step} (mean training loss before: {before}). {kept}. Try a lower lr than "
        f"{p.lr}, a longer warm-up, or precision fp32"
    )


def swap(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Exchange the values of two lists of tensors, a tensor at a time."""
    with torch.no_grad():
        for a, b in zip(one, other):
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)


if __name__ == "__main__":
    run_stage(main, __doc__)
