"""The denoising loss (Ho et al. 2020, eq. 14) with Min-SNR weighting (Hang et al. 2023).

For UNets that predict the noise (`epsilon`) or the velocity (`v_prediction`, Salimans & Ho 2022).
Shapes: x, noise, prediction [B, C, h, w]; t int64 [B]; alphas_cumprod float32 [T]; losses [B].
"""

import torch


def add_noise(
    x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """The noisy latent x_t = alpha x + sigma noise (Ho et al. 2020, eq. 4)."""
    alpha, sigma = alpha_sigma(t, alphas_cumprod)
    return alpha * x + sigma * noise


def target(
    x: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """What the UNet is trained to predict.

    For `epsilon` the noise; for `v_prediction` the velocity alpha noise - sigma x (Salimans & Ho
    2022, appendix D).
    """
    if prediction_type == "epsilon":
        return noise
    alpha, sigma = alpha_sigma(t, alphas_cumprod)
    return alpha * noise - sigma * x


def min_snr_weight(
    t: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str, gamma: float | None
) -> torch.Tensor:
    """Min-SNR-gamma weights [B] (Hang et al. 2023, section 3.4); ones where gamma is None.

    min(SNR, gamma) / SNR for `epsilon`, min(SNR, gamma) / (SNR + 1) for `v_prediction`.
    """
    if gamma is None:
        return torch.ones(len(t), device=t.device)
    signal_power = alphas_cumprod[t]  # [B]
    snr = signal_power / (1 - signal_power)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr.clamp(min=1e-8)).clamp(max=1)  # finite at zero terminal SNR too


def denoising_loss(
    unet: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
    gamma: float | None = None,
) -> torch.Tensor:
    """The weighted mean squared error [B] of one denoising step of each image.

    Args:
        unet: called as unet(noisy latents, timesteps, text).
        batch: latents [B, C, h, w], noise [B, C, h, w], timesteps int64 [B], text [B, L, D].
        alphas_cumprod: the noise schedule [T].
        prediction_type: `epsilon` or `v_prediction`.
        gamma: of Min-SNR weighting; None weighs all timesteps alike.
    """
    x = batch["latents"]
    noise = batch["noise"]
    t = batch["timesteps"]
    noisy = add_noise(x, noise, t, alphas_cumprod).contiguous(memory_format=torch.channels_last)
    prediction = unet(noisy, t, batch["text"], return_dict=False)[0]  # [B, C, h, w]
    error = prediction.float() - target(x, noise, t, alphas_cumprod, prediction_type)
    weight = min_snr_weight(t, alphas_cumprod, prediction_type, gamma)  # [B]
    return error.square().mean((1, 2, 3)) * weight


def stratified_timesteps(count: int, timesteps: int) -> torch.Tensor:
    """The centers [count] of equal strata of 0 .. timesteps - 1.

    With them, and fixed noise, a validation loss has no random part.
    """
    return ((torch.arange(count) + 0.5) * timesteps / count).long()


def alpha_sigma(t: torch.Tensor, alphas_cumprod: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales of signal and noise at timesteps t, each [B, 1, 1, 1]."""
    signal_power = alphas_cumprod[t][:, None, None, None]
    return signal_power.sqrt(), (1 - signal_power).sqrt()
