"""FLOPs per training image at Stable Diffusion v1.5's size: encoding once or at every step.

    python -m benchmarks.flops

torch counts them on meta tensors, so no weights and no GPU are needed. Convolutions, matrix
products and attention count; a multiply-add counts as two.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workspace import build_part
from stages.runtime.process import make_parser

RESOLUTIONS = (224, 512)  # pixels
UNET_TRAINING = "UNet, forward and backward"


def main() -> None:
    make_parser("benchmarks.flops", __doc__).parse_args()
    flops = {resolution: training_flops(resolution) for resolution in RESOLUTIONS}
    heading = " | ".join(f"{resolution} px" for resolution in RESOLUTIONS)
    print(f"| TFLOP per training image | {heading} |\n|---|---|---|")
    for part in flops[RESOLUTIONS[0]]:
        cells = " | ".join(f"{by_part[part] / 1e12:.3f}" for by_part in flops.values())
        print(f"| {part} | {cells} |")
    ratios = [sum(by_part.values()) / by_part[UNET_TRAINING] for by_part in flops.values()]
    cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"| encode at every step / encode once | {cells} |")


def training_flops(resolution: int) -> dict[str, float]:
    """FLOPs per image of the VAE's encoder, the text encoder, and a training step of the UNet."""
    latent_size = resolution // 8
    with torch.device("meta"):
        unet, vae, text_encoder = map(build_part, ("unet", "vae", "text_encoder"))
        image = torch.zeros(1, 3, resolution, resolution)
        latent = torch.zeros(1, 4, latent_size, latent_size)
        timestep = torch.zeros(1)
        token_ids = torch.zeros(1, 77, dtype=torch.long)
        text_embedding = torch.zeros(1, 77, 768)
    with torch.no_grad():
        vae_flops = count_flops(lambda: vae.encode(image).latent_dist.mean)
        text_flops = count_flops(lambda: text_encoder(token_ids))
    unet_flops = count_flops(lambda: unet(latent, timestep, text_embedding).sample.sum().backward())
    return {"VAE encoder": vae_flops, "text encoder": text_flops, UNET_TRAINING: unet_flops}


def count_flops(function: Callable[[], object]) -> float:
    """FLOPs of one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
