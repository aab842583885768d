"""Parts of a StableDiffusionPipeline folder, loaded one at a time: a stage holds only what it uses.

A missing, broken or pickled part ends the stage in one line that names the file.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from stages.common.artifacts import digest, read_json, write_json
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
SETTINGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
LORA_RANK = 16  # of `method: lora`; alpha is the same, so the update isn't scaled
# Pixel values a model is fed: (x - mean) / std of x in [0, 1], per channel. This is the VAE's own [-1, 1].
VAE_PIXELS = {"normalization": "vae", "mean": [0.5] * 3, "std": [0.5] * 3}


def start_folder() -> Path:
    """The pipeline that fine-tuning starts from: `models/start` names it (the fetched base, or one trained from scratch)."""
    path = Path("models/start/start.json")
    if not path.is_file():
        exit_with_error(f"{path}: not found; run the stage train_base")
    return Path(read_json(path)["folder"])


def config(folder: str | Path, part: str) -> dict:
    """The JSON configuration of a part (unet, vae, text_encoder, scheduler, tokenizer)."""
    path = Path(folder) / part / SETTINGS[part]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        exit_with_error(
            f"{path}: not found; a diffusion model is a folder with {', '.join(SETTINGS)}, as diffusers saves it"
        )
    except (ValueError, OSError) as fault:
        exit_with_error(f"{path}: cannot be read: {fault}")
    if not isinstance(found, dict):
        exit_with_error(f"{path}: holds no JSON object")
    return found


def weights(folder: str | Path, part: str) -> tuple[list[Path], str | None]:
    """The safetensors files of a part, and their variant ("fp16", or None for the plain ones, which are preferred)."""
    where, stem = Path(folder) / part, WEIGHTS[part]
    for variant in (None, "fp16"):
        name = stem if variant is None else f"{stem}.{variant}"
        if files := sorted(
            {
                *where.glob(f"{name}.safetensors"),
                *where.glob(f"{name}-*-of-*.safetensors"),
                *where.glob(f"{stem}.safetensors.index{'.' + variant if variant else ''}.json"),
            }
        ):
            return files, variant
    if pickles := sorted([*where.glob("*.bin"), *where.glob("*.pt"), *where.glob("*.ckpt")]):
        exit_with_error(
            f"{pickles[0]}: a pickle can run code, so it is refused; convert it to {stem}.safetensors"
        )
    exit_with_error(f"{where / stem}.safetensors: not found")


def load(folder: str | Path, part: str):
    """The unet, vae or text_encoder on the CPU, float32, in eval mode, gradients off."""
    import torch

    config(folder, part)
    _, variant = weights(folder, part)
    if part == "text_encoder":
        from transformers import CLIPTextModel as Model
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    elif part == "vae":
        from diffusers import AutoencoderKL as Model
    else:
        from diffusers import UNet2DConditionModel as Model
    kind = "dtype" if part == "text_encoder" else "torch_dtype"
    return (
        load_pretrained(Model, folder, part, variant=variant, **{kind: torch.float32})
        .eval()
        .requires_grad_(False)
    )


def trainable_unet(folder: str | Path, method: str, seed: int):
    """The UNet with gradients on: all of it, or a low-rank update of its attention (Hu et al. 2022), drawn from `seed`."""
    import torch

    unet = load(folder, "unet").train()
    if method == "full":
        return unet.requires_grad_(True)
    from peft import LoraConfig

    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
        )
    )
    return unet


def trained_unet(folder: str | Path, method: str, seed: int, weights: dict) -> dict:
    """All weights of the UNet by name, on the CPU, with the trained ones put in, a low-rank update merged."""
    import torch

    unet = trainable_unet(folder, method, seed)
    with torch.no_grad():
        for name, w in unet.named_parameters():
            if w.requires_grad:
                w.copy_(weights[name])
    if method == "lora":
        unet.fuse_lora()
        unet.unload_lora()
    return {name: w.detach().contiguous() for name, w in unet.state_dict().items()}


def load_tokenizer(folder: str | Path):
    """The CLIP tokenizer."""
    from transformers import CLIPTokenizer

    where = Path(folder) / "tokenizer"
    if not (where / "tokenizer.json").is_file():
        for name in (
            "vocab.json",
            "merges.txt",
        ):  # without them it silently makes a tokenizer of two tokens
            if not (where / name).is_file():
                exit_with_error(f"{where / name}: not found")
    return CLIPTokenizer.from_pretrained(where)


# Rescaled to zero terminal signal-to-noise ratio (Lin et al. 2024, algorithm 1), and sampled from its very end (section 3.3).
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def load_scheduler(folder: str | Path, name: str, zero_terminal_snr: bool = False):
    """The noise schedule of the folder, stepped by `ddpm` (training), `pndm`, `ddim` or `dpm` (DPM-Solver++)."""
    import diffusers

    settings = config(folder, "scheduler") | (ZERO_SNR if zero_terminal_snr else {})
    if settings.get("rescale_betas_zero_snr") and name == "pndm":
        exit_with_error(
            f"sampling.scheduler: pndm can't start from pure noise, as {folder} was trained to; use ddim or dpm"
        )
    if settings.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        exit_with_error(
            f"{folder}/scheduler: prediction_type {settings['prediction_type']} is not supported (epsilon, v_prediction)"
        )
    if settings.get("use_beta_sigmas"):
        exit_with_error(
            f"{folder}/scheduler: use_beta_sigmas is not supported"
        )  # needs scipy, which the launcher hides: a second of each start
    # Stable Diffusion's own settings, where another class's defaults would differ: `clip_sample` is for pixels, PNDM's
    # Runge-Kutta start costs 9 more steps.
    kind, extra = {
        "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
        "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        "dpm": (
            diffusers.DPMSolverMultistepScheduler,
            {"algorithm_type": "dpmsolver++", "solver_order": 2},
        ),
    }[name]
    return kind.from_config(settings, **extra)


def vae_factor(folder: str | Path) -> int:
    """Pixels per latent, along a side."""
    return 2 ** (len(config(folder, "vae")["block_out_channels"]) - 1)


def latent_scale(folder: str | Path) -> float:
    """What VAE latents are multiplied by so that their standard deviation is near 1."""
    return float(config(folder, "vae").get("scaling_factor", 0.18215))


def text_length(tokenizer, encoder) -> int:
    """Tokens per caption: CLIP's 77."""
    return min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def embed(tokenizer, encoder, texts: list[str]):
    """Text embeddings as the UNet reads them, the last hidden state: float32 [N,L,D]; longer texts are cut at L."""
    length = text_length(tokenizer, encoder)
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return encoder(tokens.input_ids.to(encoder.device)).last_hidden_state.float()


def pixel_statistics(folder: str | Path) -> dict:
    """{normalization, mean [3], std [3]} of the pixels this model makes; the VAE's own where the folder doesn't say."""
    path = Path(folder) / "normalization.json"
    return read_json(path) if path.is_file() else VAE_PIXELS


def to_pixels(images: np.ndarray, statistics: dict) -> np.ndarray:
    """Decoded images [N,3,H,W] float -> uint8 [N,H,W,3], undoing the normalization."""
    mean, std = (np.asarray(statistics[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return (np.clip(images * std + mean, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def publish(
    start: Path, target: Path, unet: dict | None, statistics: dict, zero_terminal_snr: bool = False
) -> None:
    """Write a whole StableDiffusionPipeline folder: the parts of `start`, with the UNet's weights replaced unless None.

    The VAE is copied as it is; text encoder and UNet are float32, so that `from_pretrained` works as it stands. The safety
    checker, a classifier of photographs, and its feature extractor are left out. `statistics` tells the sampler how to undo
    the normalization, `zero_terminal_snr` the noise schedule that the UNet was trained on.
    """
    from safetensors.torch import save_file

    shutil.rmtree(target, ignore_errors=True)
    for part in SETTINGS:
        (target / part).mkdir(parents=True)
        for file in sorted(
            p for p in (start / part).iterdir() if p.is_file() and p.suffix in (".json", ".txt")
        ):
            shutil.copyfile(file, target / part / file.name.replace(".fp16", ""))
        if part == "vae" or part == "unet" and unet is None:
            for file in weights(start, part)[0]:
                shutil.copyfile(file, target / part / file.name.replace(".fp16", ""))
    # diffusers loads the other parts in float32 whatever they are stored in, transformers loads this one as stored.
    load(start, "text_encoder").save_pretrained(target / "text_encoder")
    if unet is not None:
        for stale in (target / "unet").glob("*.index*.json"):
            stale.unlink()
        save_file(
            unet, target / "unet" / f"{WEIGHTS['unet']}.safetensors", metadata={"format": "pt"}
        )
    if not (start / "model_index.json").is_file():
        exit_with_error(f"{start / 'model_index.json'}: not found")
    index = read_json(start / "model_index.json") | {"requires_safety_checker": False}
    index |= {part: [None, None] for part in ("feature_extractor", "safety_checker")}
    index.pop("_name_or_path", None)
    if zero_terminal_snr:  # PNDM can't sample it
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        settings = (
            config(start, "scheduler")
            | ZERO_SNR
            | {"_class_name": "DDIMScheduler", "clip_sample": False}
        )
        write_json(target / "scheduler" / SETTINGS["scheduler"], settings)
    write_json(target / "model_index.json", index)
    if statistics != VAE_PIXELS:
        write_json(target / "normalization.json", statistics)


def model_digest(folder: str | Path) -> str:
    """16 hex digits over everything that decides what the model draws."""
    folder = Path(folder)
    return digest(
        *(folder / part for part in SETTINGS),
        *(p for p in [folder / "normalization.json"] if p.is_file()),
    )
