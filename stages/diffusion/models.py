"""Load the parts of a diffusion model one at a time.

A diffusion model is a folder as diffusers' StableDiffusionPipeline saves it. A stage loads only the
parts that it uses. `fetch_model` checks the whole folder when it copies it; a part that is missing
or broken later ends the stage with one line that names it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from stages.common.artifacts import digest, read_json
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
# Rank r of `finetune_sd.method: lora` (Hu et al. 2022). Alpha equals r: the update is not scaled.
LORA_RANK = 16

# Where `train_base` saves a model that it adapted or trained from scratch.
TRAINED = Path("models/start")


def start_folder() -> Path:
    """The model that fine-tuning starts from: the fetched base, or what `train_base` trained."""
    return Path(read_start()["folder"])


def base_folder() -> Path:
    """The model before fine-tuning: the fetched one, also where `train_base` adapted it."""
    start = read_start()
    return Path(start.get("base", start["folder"]))


def read_start() -> dict[str, Any]:
    """What `train_base` says of the model that fine-tuning starts from."""
    path = TRAINED / "start.json"
    if not path.is_file():
        exit_with_error(f"{path}: not found; run the stage train_base")
    return read_json(path)


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
    except OSError as error:
        exit_with_error(f"{error}")
    if not isinstance(config, dict):
        exit_with_error(f"{path}: holds no JSON object")
    return config


def downsampling_factor(folder: str | Path) -> int:
    """Pixels per latent along a side of the image: f in Rombach et al. 2022, section 3.1."""
    return 2 ** (len(read_config(folder, "vae")["block_out_channels"]) - 1)


def check_resolution(key: str, size: int, factor: int) -> None:
    """Exit with an error where images of `size` px, the value of a key, have no latents."""
    if size % factor:
        exit_with_error(f"{key}: {size} px is not a multiple of {factor}, the VAE's factor")


def scaling_factor(folder: str | Path) -> float:
    """The factor that brings the VAE's latents to a standard deviation near 1."""
    return float(read_config(folder, "vae").get("scaling_factor", 0.18215))


def load(folder: str | Path, part: str) -> Any:
    """Load the unet, vae or text_encoder: on the CPU, float32, in eval mode, without gradients."""
    import torch

    if part == "text_encoder":
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model_class = transformers.CLIPTextModel
    else:
        import diffusers

        model_class = diffusers.AutoencoderKL if part == "vae" else diffusers.UNet2DConditionModel
    model = load_pretrained(model_class, folder, part, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def save_text_encoder(text_encoder: Any, folder: Path) -> None:
    """Save a CLIPTextModel under the names that every published Stable Diffusion has.

    transformers 5 leaves out their prefix; version 4 then takes every weight for missing, and makes
    it at random.
    """
    weights = {f"text_model.{name}": value for name, value in text_encoder.state_dict().items()}
    # No stage reads its attention, and where a base asks for it, transformers saves no config.
    text_encoder.config.output_attentions = False
    # The original format would be the prefix again, where the weights were read with it.
    text_encoder.save_pretrained(folder, state_dict=weights, save_original_format=False)
    follow_umask(folder)


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


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Decoded images as pixels: float [N, 3, H, W], -1 black and 1 white, to uint8 [N, H, W, 3]."""
    pixels = (np.clip(images * 0.5 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def load_trainable_unet(folder: str | Path, method: str, seed: int) -> Any:
    """Load the UNet for training.

    Method "full" trains all its weights; "lora" trains a low-rank update of its attention layers
    (Hu et al. 2022), initialized from `seed`. Dropout that its config asks for is off.
    """
    import torch

    unet = load(folder, "unet").train()
    # With dropout, the same step of a resumed run, or of other chunks, would differ.
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
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


def model_digest(folder: str | Path) -> str:
    """16 hex digits over every file that decides which images the model makes."""
    return digest(*(Path(folder) / part for part in CONFIG_FILES))
