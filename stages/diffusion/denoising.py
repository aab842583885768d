"""Denoising with classifier-free guidance: what the sampler and the grids of fine-tuning share."""

import torch


@torch.no_grad()
def denoise(
    unet, scheduler, noise: torch.Tensor, text: torch.Tensor, guidance: float, steps: int
) -> torch.Tensor:
    """Latents [B,C,h,w], scaled as the UNet sees them, from standard normal noise [B,C,h,w].

    text: [B,L,D], or with guidance > 1 [2B,L,D], the negative prompts' half first.
    """
    scheduler.set_timesteps(steps, device=noise.device)  # also clears the scheduler's history
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([x, x]) if guidance > 1 else x, t)
        both = both.contiguous(memory_format=torch.channels_last)
        prediction = unet(both, t, text, return_dict=False)[0].float()
        if guidance > 1:  # one call for both halves (Ho & Salimans 2022, eq. 6)
            without, prediction = prediction.chunk(2)
            prediction = without + guidance * (prediction - without)
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    return x
