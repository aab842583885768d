"""Denoising with classifier-free guidance, shared by the sampler and the grids of fine-tuning."""

from typing import Any

import torch


@torch.no_grad()
def denoise(
    unet: torch.nn.Module,
    scheduler: Any,
    noise: torch.Tensor,
    text: torch.Tensor,
    guidance: float,
    steps: int,
) -> torch.Tensor:
    """Latents [B, C, h, w], scaled as the UNet sees them, from standard normal noise.

    Args:
        unet: predicts the noise or the velocity.
        scheduler: a diffusers scheduler; its timesteps and history are reset.
        noise: [B, C, h, w].
        text: [B, L, D]; with guidance > 1 [2B, L, D], the negative prompts first.
        guidance: scale of classifier-free guidance (Ho & Salimans 2022, eq. 6); 1 is without.
        steps: denoising steps.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise * scheduler.init_noise_sigma  # [B, C, h, w]
    for t in scheduler.timesteps:
        # With guidance, one call predicts with and without the prompt: the batch is doubled.
        x_in = torch.cat([x, x]) if guidance > 1 else x
        x_in = scheduler.scale_model_input(x_in, t)
        x_in = x_in.contiguous(memory_format=torch.channels_last)
        prediction = unet(x_in, t, text, return_dict=False)[0].float()  # [B or 2B, C, h, w]
        if guidance > 1:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    return x
