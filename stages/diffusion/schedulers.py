"""Load the noise schedule of a diffusion model, with the schedulers that step through it."""

import math
from pathlib import Path
from typing import Any

from stages.diffusion.models import CONFIG_FILES, read_config
from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log

# The noise schedule rescaled to zero terminal signal-to-noise ratio (Lin et al. 2024, algorithm 1),
# and timesteps that begin at its very end (section 3.3).
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
}
# Settings of every scheduler, as StableDiffusionPipeline has them, whichever class the folder was
# saved for. A scheduler ignores those that it doesn't know.
STEPPING = {
    "clip_sample": False,  # latents exceed [-1, 1]
    "set_alpha_to_one": False,
    "steps_offset": 1,  # StableDiffusionPipeline sets it, whatever the file says
    "skip_prk_steps": True,  # the Runge-Kutta start would cost 9 more steps
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}
# Settings that a file may have and StableDiffusionPipeline hasn't: other steps of `dpm`. They are
# left out, which turns them off.
OTHER_STEPPING = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "thresholding",
)
# Sampling starts from pure noise, at this share of the T timesteps or later. Before it the UNet
# expects to see some of the image.
START_OF_SAMPLING = 0.95
FEW_STEPS = 50  # so few are coarse anyway; diffusers starts 10 of them at 0.9 T


def load_scheduler(folder: str | Path, name: str, zero_terminal_snr: bool = False) -> Any:
    """Load the noise schedule with the scheduler that steps through it.

    Args:
        folder: the model.
        name: a key of `SCHEDULERS`: "ddpm" (training), "pndm", "ddim" or "dpm" (DPM-Solver++).
        zero_terminal_snr: rescale the schedule to zero terminal signal-to-noise ratio.

    Raises:
        SystemExit: the schedule has zero terminal SNR, and the scheduler is `pndm` or the UNet
            predicts the noise.
    """
    import diffusers

    config = read_config(folder, "scheduler")
    if zero_terminal_snr:
        config |= ZERO_TERMINAL_SNR
    if config.get("rescale_betas_zero_snr") and name == "pndm":
        exit_with_error(
            f"sampling.scheduler: pndm can't start from pure noise, as {folder} was trained to; "
            "use ddim or dpm"
        )
    predicts_noise = config.get("prediction_type", "epsilon") == "epsilon"
    if config.get("rescale_betas_zero_snr") and predicts_noise:
        key = "finetune_sd.zero_terminal_snr" if zero_terminal_snr else f"{folder}/scheduler"
        exit_with_error(
            f"{key}: a noise schedule that ends where the signal is zero (rescale_betas_zero_snr) "
            f"needs a model with v_prediction; {folder} predicts the noise (epsilon), which says "
            "nothing about the image there"
        )
    if name == "dpm":
        # Of a few steps, the first is at the last timestep (Lin et al. 2024, section 3.3).
        config["timestep_spacing"] = "trailing"
    return getattr(diffusers, SCHEDULERS[name]).from_config(stepping_config(config))


def load_training_schedule(
    folder: str | Path, zero_terminal_snr: bool, min_snr_gamma: float | None
) -> Any:
    """Load the noise schedule that `finetune_sd` trains on, a DDPMScheduler.

    Args:
        folder: the model.
        zero_terminal_snr, min_snr_gamma: the params of `finetune_sd`.

    Raises:
        SystemExit: the schedule has zero terminal SNR, and the UNet predicts the noise or the loss
            is weighted by Min-SNR.
    """
    schedule = load_scheduler(folder, "ddpm", zero_terminal_snr)
    if min_snr_gamma is not None and schedule.config.get("rescale_betas_zero_snr"):
        exit_with_error(
            "finetune_sd.min_snr_gamma: gives no weight to pure noise, in which the schedule of "
            f"{folder}/scheduler ends (rescale_betas_zero_snr): write null"
        )
    return schedule


def stepping_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a scheduler with the settings of `STEPPING`, no `OTHER_STEPPING`.

    DPM-Solver's classes save their default of `lambda_min_clipped`, -Infinity, which JSON hasn't.
    It is left out, which stands for the same.
    """
    kept = {
        name: value
        for name, value in config.items()
        if name not in OTHER_STEPPING and value != -math.inf
    }
    return kept | STEPPING


def check_scheduler(folder: Path) -> None:
    """Exit with an error where a scheduler can't step through the noise schedule of a model.

    `sample` would end in that after hours of fine-tuning; so would `finetune_sd` where a number is
    NaN or infinite, which it can't save. `folder` is the model.
    """
    config = read_config(folder, "scheduler")
    file = folder / "scheduler" / CONFIG_FILES["scheduler"]
    for key, value in stepping_config(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            exit_with_error(f"{file}: {key} is {value}, which is no number of JSON")
    for name, scheduler_class in SCHEDULERS.items():
        if name == "pndm" and config.get("rescale_betas_zero_snr"):
            continue  # `check_steps` refuses it
        try:
            scheduler = load_scheduler(folder, name)
            scheduler.set_timesteps(4)
            betas = scheduler.betas  # [T]
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            exit_with_error(f"{file}: {scheduler_class} can't step by it: {str(error)[:300]}")
        if len(betas) != config["num_train_timesteps"]:
            exit_with_error(
                f"{file}: its noise schedule has {len(betas)} steps, and "
                f"num_train_timesteps is {config['num_train_timesteps']}"
            )
        if not ((betas >= 0) & (betas <= 1)).all():  # also where one is NaN
            exit_with_error(f"{file}: the betas of its noise schedule are not between 0 and 1")


def check_steps(folder: str | Path, name: str, steps: int) -> None:
    """Exit with an error where denoising steps start far from the end of the noise schedule.

    The timesteps of `pndm` and `ddim` lie T // steps apart, so where steps don't divide T they may
    end early: 400 of 1000 at 799. For few steps that is a line in the log.

    Args:
        folder, name: as for `load_scheduler`.
        steps: denoising steps.
    """
    scheduler = load_scheduler(folder, name)
    total = scheduler.config.num_train_timesteps  # T
    if steps >= total:
        exit_with_error(
            f"sampling.steps: {steps} are too many for {folder}, which has {total} timesteps: use "
            f"at most {total - 1}"
        )

    def first_timestep(count: int) -> int:
        scheduler.set_timesteps(count)
        return int(scheduler.timesteps[0])

    first = first_timestep(steps)
    if first >= START_OF_SAMPLING * total:
        return
    fault = (
        f"sampling.steps: {steps} of {name} start at timestep {first} of {total}, where {folder} "
        "expects some of the image and gets pure noise"
    )
    if steps <= FEW_STEPS:
        log(f"{fault}; sampling.scheduler: dpm starts at the last")
        return
    counts = range(FEW_STEPS + 1, total)
    others = [count for count in counts if first_timestep(count) >= START_OF_SAMPLING * total]
    nearest = [count for count in others if count < steps][-1:]
    nearest += [count for count in others if count > steps][:1]
    exit_with_error(
        f"{fault}: use {' or '.join(map(str, nearest))} steps, or sampling.scheduler: dpm"
    )
