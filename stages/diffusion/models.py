"""Load the parts of a diffusion model one at a time, and save the fine-tuned model.

A diffusion model is a folder as diffusers' StableDiffusionPipeline saves it. A stage loads only the
parts that it uses. `fetch_model` checks the whole folder when it copies it; a part that is missing
or broken later ends the stage with one line that names it.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.artifacts import digest, read_json, write_json
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.pretrained import load_pretrained

# The parts of the folder, each with its configuration file.
CONFIG_FILES = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
# The VAE is fed pixels (x - mean) / std, where x is in [0, 1], per RGB channel. These values give
# the [-1, 1] that it was trained on.
VAE_NORMALIZATION = {"normalization": "vae", "mean": [0.5] * 3, "std": [0.5] * 3}
# Rank r of `finetune_sd.method: lora` (Hu et al. 2022). Alpha equals r: the update is not scaled.
LORA_RANK = 16
# The noise schedule rescaled to zero terminal signal-to-noise ratio (Lin et al. 2024, algorithm 1),
# and timesteps that begin at its very end (section 3.3).
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

# Where `train_base` saves a model that it trained from scratch; its UNet is untrained.
FROM_SCRATCH = Path("models/start")


def start_folder() -> Path:
    """The model that fine-tuning starts from: the fetched base, or the one `train_base` trained."""
    path = FROM_SCRATCH / "start.json"
    if not path.is_file():
        exit_with_error(f"{path}: not found; run the stage train_base")
    return Path(read_json(path)["folder"])


def read_config(folder: str | Path, part: str) -> dict[str, Any]:
    """The JSON configuration of a part: unet, vae, text_encoder, scheduler or tokenizer."""
    path = Path(folder) / part / CONFIG_FILES[part]
    if not path.is_file():
        exit_with_error(
            f"{path}: not found; a diffusion model is a folder with {', '.join(CONFIG_FILES)}, "
            "as diffusers saves it"
        )
    try:
        config = read_json(path)
    except ValueError as error:
        exit_with_error(f"{path}: not valid JSON: {error}")
    if not isinstance(config, dict):
        exit_with_error(f"{path}: holds no JSON object")
    return config


def downsampling_factor(folder: str | Path) -> int:
    """Pixels per latent along a side of the image: f in Rombach et al. 2022, section 3.1."""
    return 2 ** (len(read_config(folder, "vae")["block_out_channels"]) - 1)


def scaling_factor(folder: str | Path) -> float:
    """The factor that brings the VAE's latents to a standard deviation near 1."""
    return float(read_config(folder, "vae").get("scaling_factor", 0.18215))


def read_normalization(folder: str | Path) -> dict[str, Any]:
    """{normalization, mean [3], std [3]} of the pixels that a model makes.

    The VAE's own where the folder has no normalization.json.
    """
    path = Path(folder) / "normalization.json"
    return read_json(path) if path.is_file() else VAE_NORMALIZATION


def load(folder: str | Path, part: str) -> Any:
    """Load the unet, vae or text_encoder: on the CPU, float32, in eval mode, without gradients."""
    import torch

    _refuse_pickle(Path(folder) / part)
    if part == "text_encoder":
        from transformers import CLIPTextModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = load_pretrained(CLIPTextModel, folder, part, dtype=torch.float32)
    elif part == "vae":
        from diffusers import AutoencoderKL

        model = load_pretrained(AutoencoderKL, folder, part, torch_dtype=torch.float32)
    else:
        from diffusers import UNet2DConditionModel

        model = load_pretrained(UNet2DConditionModel, folder, part, torch_dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _refuse_pickle(part: Path) -> None:
    """Exit with an error where the weights of a part are a pickle, which could run code."""
    if list(part.glob("*.safetensors")):
        return
    for file in sorted(part.glob("*")):
        if file.suffix in (".bin", ".pt", ".ckpt"):
            exit_with_error(
                f"{file}: a pickle can run code, so it is refused; convert it to safetensors"
            )


def load_tokenizer(folder: str | Path) -> Any:
    """Load the CLIP tokenizer."""
    from transformers import CLIPTokenizer

    path = Path(folder) / "tokenizer"
    if not (path / "tokenizer.json").is_file():
        # Without these, transformers silently makes a tokenizer of two tokens.
        for name in ("vocab.json", "merges.txt"):
            if not (path / name).is_file():
                exit_with_error(f"{path / name}: not found")
    return CLIPTokenizer.from_pretrained(path)


def load_scheduler(folder: str | Path, name: str, zero_terminal_snr: bool = False) -> Any:
    """Load the noise schedule with the scheduler that steps through it.

    Args:
        folder: the model.
        name: "ddpm" (training), "pndm", "ddim" or "dpm" (DPM-Solver++).
        zero_terminal_snr: rescale the schedule to zero terminal signal-to-noise ratio.

    Raises:
        SystemExit: `pndm` on a zero-terminal-SNR schedule, or an unknown prediction type.
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
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        exit_with_error(
            f"{folder}/scheduler: prediction_type {prediction_type} is not supported "
            "(epsilon, v_prediction)"
        )
    # The folder may have been saved for another scheduler class. What its file doesn't mention is
    # set to Stable Diffusion's values here, where the class's defaults differ from them.
    match name:
        case "ddpm":
            return diffusers.DDPMScheduler.from_config(config, clip_sample=False)
        case "pndm":  # the Runge-Kutta start would cost 9 more steps
            return diffusers.PNDMScheduler.from_config(config, skip_prk_steps=True)
        case "ddim":
            return diffusers.DDIMScheduler.from_config(
                config, clip_sample=False, set_alpha_to_one=False
            )
        case "dpm":
            return diffusers.DPMSolverMultistepScheduler.from_config(
                config, algorithm_type="dpmsolver++", solver_order=2
            )
        case _:
            raise ValueError(f"unknown scheduler: {name}")


def context_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens that the text encoder reads of a text: CLIP's 77."""
    return min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)


def embed_text(tokenizer: Any, text_encoder: Any, texts: list[str]) -> Any:
    """The last hidden states of N texts, which the UNet attends to: float32 [N, L, D].

    Longer texts are cut to the context length L.
    """
    tokens = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=context_length(tokenizer, text_encoder),
        return_tensors="pt",
    )
    return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state.float()


def to_pixels(images: np.ndarray, normalization: dict[str, Any]) -> np.ndarray:
    """Undo the normalization of decoded images: float [N, 3, H, W] to uint8 [N, H, W, 3]."""
    mean = np.asarray(normalization["mean"], np.float32)[:, None, None]  # [3, 1, 1]
    std = np.asarray(normalization["std"], np.float32)[:, None, None]  # [3, 1, 1]
    pixels = (np.clip(images * std + mean, 0, 1) * 255).round().astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def load_trainable_unet(folder: str | Path, method: str, seed: int) -> Any:
    """Load the UNet for training.

    Method "full" trains all its weights; "lora" trains a low-rank update of its attention layers
    (Hu et al. 2022), initialized from `seed`.
    """
    import torch

    unet = load(folder, "unet").train()
    if method == "full":
        return unet.requires_grad_(True)
    from peft import LoraConfig

    torch.manual_seed(seed)
    attention_layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=attention_layers))
    return unet


def merge_trained_weights(
    folder: str | Path, method: str, seed: int, trained: dict[str, Any]
) -> dict[str, Any]:
    """The weights of the whole UNet by name, after training, on the CPU.

    Args:
        folder, method, seed: as `load_trainable_unet` was called.
        trained: the trained tensors by parameter name. A low-rank update is merged into the
            weights that it adapts.
    """
    import torch

    unet = load_trainable_unet(folder, method, seed)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if weight.requires_grad:
                weight.copy_(trained[name])
    if method == "lora":
        unet.fuse_lora()
        unet.unload_lora()
    return {name: weight.detach().contiguous() for name, weight in unet.state_dict().items()}


def save_finetuned(
    start: Path,
    target: Path,
    unet_weights: dict[str, Any] | None,
    normalization: dict[str, Any],
    zero_terminal_snr: bool = False,
) -> None:
    """Save a folder that `StableDiffusionPipeline.from_pretrained` loads.

    The VAE, tokenizer and scheduler are copied from `start`. The safety checker, which classifies
    photographs, is left out.

    Args:
        start: the model that fine-tuning started from.
        target: the folder to write; an old one is replaced.
        unet_weights: the UNet's weights by name, float32; None copies those of `start`.
        normalization: tells the sampler how to undo the normalization of the pixels.
        zero_terminal_snr: whether the UNet was trained on the rescaled noise schedule.
    """
    from safetensors.torch import save_file

    shutil.rmtree(target, ignore_errors=True)
    for part in CONFIG_FILES:
        replaced = part == "text_encoder" or part == "unet" and unet_weights is not None
        _copy_part(start / part, target / part, with_weights=not replaced)
    # diffusers loads its parts as float32 however they are stored, transformers as they are stored.
    load(start, "text_encoder").save_pretrained(target / "text_encoder")
    if unet_weights is not None:
        weights_file = target / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(unet_weights, weights_file, metadata={"format": "pt"})
    follow_umask(target)

    index = read_json(start / "model_index.json")
    index.pop("_name_or_path", None)
    if zero_terminal_snr:
        # diffusers would sample with PNDM, which cannot start from pure noise.
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        overrides = {"_class_name": "DDIMScheduler", "clip_sample": False}
        write_json(
            target / "scheduler" / CONFIG_FILES["scheduler"],
            read_config(start, "scheduler") | ZERO_TERMINAL_SNR | overrides,
        )
    write_json(target / "model_index.json", index)
    if normalization != VAE_NORMALIZATION:
        write_json(target / "normalization.json", normalization)


def _copy_part(source: Path, target: Path, with_weights: bool) -> None:
    """Copy the configuration of a part, and its safetensors files where wanted."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        is_weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        is_config = file.suffix in (".json", ".txt") and not is_weights
        if is_config or is_weights and with_weights:
            shutil.copyfile(file, target / file.name)


def model_digest(folder: str | Path) -> str:
    """16 hex digits over every file that decides which images the model makes."""
    folder = Path(folder)
    paths = [folder / part for part in CONFIG_FILES]
    if (folder / "normalization.json").is_file():
        paths.append(folder / "normalization.json")
    return digest(*paths)
