"""FLOPs per training image at Stable Diffusion v1.5's size: encoding once against encoding at every step.

    python -m benchmarks.flops
Counted by torch on meta tensors (no weights, no GPU): convolutions, matrix products, attention; a multiply-add is two.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workspace import TEXT, UNET, VAE


def training_flops(resolution: int) -> dict[str, float]:
    """FLOPs per image of the VAE's encoder, the text encoder, and the UNet's forward and backward pass."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    side = resolution // 8
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        text = CLIPTextModel(
            CLIPTextConfig(
                **TEXT, vocab_size=49408, max_position_embeddings=77, attn_implementation="sdpa"
            )
        )
        image, latent = torch.zeros(1, 3, resolution, resolution), torch.zeros(1, 4, side, side)
        tokens, states = torch.zeros(1, 77, dtype=torch.long), torch.zeros(1, 77, 768)
    with torch.no_grad():
        encode, embed = (
            count(lambda: vae.encode(image).latent_dist.mean),
            count(lambda: text(tokens)),
        )
    train = count(
        lambda: unet(latent, torch.zeros(1, device="meta"), states).sample.sum().backward()
    )
    return {"VAE encoder": encode, "text encoder": embed, "UNet, forward and backward": train}


def count(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    found = {resolution: training_flops(resolution) for resolution in (224, 512)}
    print(
        "| TFLOP per training image | " + " | ".join(f"{r} px" for r in found) + " |\n|---|---|---|"
    )
    for name in found[224]:
        print(
            f"| {name} | "
            + " | ".join(f"{parts[name] / 1e12:.3f}" for parts in found.values())
            + " |"
        )
    ratios = [sum(parts.values()) / parts["UNet, forward and backward"] for parts in found.values()]
    print(
        "| encode at every step / encode once | "
        + " | ".join(f"{ratio:.2f}" for ratio in ratios)
        + " |"
    )


if __name__ == "__main__":
    main()
