"""The denoising loss (Ho et al. 2020, eq. 14) for epsilon- and v-prediction (Salimans & Ho 2022), with Min-SNR weighting.

Shapes: x, noise, prediction [B,C,h,w]; t int64 [B]; alphas_cumprod float32 [T]; losses [B].
"""

import torch


def add_noise(x, noise, t, alphas_cumprod):
    """The noisy latent x_t = alpha x + sigma noise (Ho et al. 2020, eq. 4)."""
    alpha, sigma = _alpha_sigma(t, alphas_cumprod)
    return alpha * x + sigma * noise


def target(x, noise, t, alphas_cumprod, prediction_type: str):
    """What the UNet predicts: the noise, or the velocity alpha noise - sigma x (Salimans & Ho 2022, appendix D)."""
    if prediction_type == "epsilon":
        return noise
    alpha, sigma = _alpha_sigma(t, alphas_cumprod)
    return alpha * noise - sigma * x


def min_snr_weight(t, alphas_cumprod, prediction_type: str, gamma: float | None):
    """Min-SNR-gamma weights [B] (Hang et al. 2023, section 3.4): min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v."""
    if gamma is None:
        return torch.ones(len(t), device=t.device)
    power = alphas_cumprod[t]
    snr = power / (1 - power)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr.clamp(min=1e-8)).clamp(max=1)  # finite at zero terminal SNR too


def denoising_loss(
    unet, batch: dict, alphas_cumprod, prediction_type: str, gamma: float | None = None
):
    """Weighted squared error per image [B] of one denoising step. `batch`: latents, noise, timesteps, text [B,L,D]."""
    x, noise, t = batch["latents"], batch["noise"], batch["timesteps"]
    noisy = add_noise(x, noise, t, alphas_cumprod).contiguous(memory_format=torch.channels_last)
    prediction = unet(noisy, t, batch["text"], return_dict=False)[0]
    error = (
        (prediction.float() - target(x, noise, t, alphas_cumprod, prediction_type))
        .square()
        .mean((1, 2, 3))
    )
    return error * min_snr_weight(t, alphas_cumprod, prediction_type, gamma)


def stratified_timesteps(count: int, timesteps: int) -> torch.Tensor:
    """`count` timesteps at the centers of equal strata of 0..timesteps-1: a validation loss with no luck in it."""
    return ((torch.arange(count) + 0.5) * timesteps / count).long()


def _alpha_sigma(t, alphas_cumprod):
    power = alphas_cumprod[t][:, None, None, None]
    return power.sqrt(), (1 - power).sqrt()
