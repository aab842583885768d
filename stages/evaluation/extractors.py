"""Feature extractors behind one interface: uint8 images of any size in, a row of float32 numbers per image out.

Each resizes by itself, antialiased, so that real and generated images go through the same path. Only `scene` comes with
the pipeline; the others read weights from `models/base/vision` (`fetch_model.vision`).
"""

import io
from pathlib import Path

import torch
from torch import nn

from stages.common.artifacts import read_json
from stages.evaluation.memorization import SIDE
from stages.evaluation.networks import load_scene, normalize, resize
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained

VISION = Path("models/base/vision")


class Scene(nn.Module):
    """This run's own scene classifier: what lies before its last layer, and its logits."""

    def __init__(self, folder: str | Path = "models/scene"):
        super().__init__()
        self.network, self.config = load_scene(folder)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, D], logits [B, scenes]."""
        x = normalize(
            resize(images, self.config["resolution"]), self.config["mean"], self.config["std"]
        )
        hidden = self.network.forward_features(x)
        return {
            "features": self.network.forward_head(hidden, pre_logits=True),
            "logits": self.network.forward_head(hidden),
        }


class Pixels(nn.Module):
    """The image itself, small, and what a compressed or resized one gives itself away by. No weights.

    `blocking`: brightness steps across the borders of 8 x 8 blocks, relative to those elsewhere: 1 where nothing was JPEG.
    `detail`: the Laplacian relative to the gradient: falls when an image was scaled up, or blurred.
    """

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, 3 * SIDE * SIDE] in [0, 255]; blocking, detail [B]."""
        grey = images.float().mean(1)  # [B, H, W]
        steps = (
            grey.diff(dim=2).abs().mean(1),
            grey.diff(dim=1).abs().mean(2),
        )  # [B, W - 1], [B, H - 1]
        border, inside = (
            sum(step[:, (torch.arange(step.shape[1]) % 8 == 7) == wanted].mean(1) for step in steps)
            for wanted in (True, False)
        )
        around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        laplacian = (4 * grey[:, 1:-1, 1:-1] - around).abs().mean((1, 2))
        tiny = 1e-3  # grey levels: a blank image has no steps at all
        return {
            "features": resize(images, SIDE).flatten(1),
            "blocking": (border + tiny) / (inside + tiny),
            "detail": laplacian / (sum(step.mean(1) for step in steps) + tiny),
        }


class Inception(nn.Module):
    """Inception-v3's 2048 pooled features, the FID network, as torchmetrics runs it (antialiased resize to 299 px)."""

    def __init__(self, file: Path = VISION / "inception2048/model.safetensors"):
        super().__init__()
        from safetensors.torch import load_file
        from torchmetrics.image.fid import NoTrainInceptionV3

        found(file, "torch-fidelity's weights-inception-2015-12-05-6726825d.pth, converted")
        weights = io.BytesIO()  # the class reads torch's own format only
        torch.save(load_file(file), weights)
        weights.seek(0)
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        except RuntimeError as fault:
            exit_with_error(f"{file}: not the weights of the FID network: {str(fault)[:300]}")

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, 2048]."""
        return {"features": self.network(images)}


class Transformer(nn.Module):
    """DINOv2's normalized class token, or CLIP's embedding of an image, from a folder in the layout of transformers."""

    def __init__(self, name: str, folder: Path):
        super().__init__()
        from transformers import CLIPModel, Dinov2Model

        for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
            found(folder / file, f"a {name} folder of the Hugging Face hub")
        kind = {"dinov2": Dinov2Model, "clip": CLIPModel}[name]
        self.network = load_pretrained(kind, folder).eval()
        self.settings, self.is_clip = read_json(folder / "preprocessor_config.json"), name == "clip"
        crop = self.settings.get("crop_size") or self.settings["size"]
        self.size = crop if isinstance(crop, int) else crop.get("height") or crop["shortest_edge"]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, D]."""
        x = normalize(
            resize(images, self.size), self.settings["image_mean"], self.settings["image_std"]
        )
        if not self.is_clip:
            return {"features": self.network(pixel_values=x).pooler_output}
        return {
            "features": self.network.visual_projection(
                self.network.vision_model(pixel_values=x).pooler_output
            )
        }


@torch.inference_mode()
def caption_embeddings(
    clip: Transformer, captions: list[str], size: int, folder: Path = VISION / "clip"
) -> torch.Tensor:
    """CLIP's embeddings float32 [N, D] of captions, cut at its context; in groups of `size`."""
    from transformers import AutoTokenizer

    found(folder / "tokenizer_config.json", "a clip folder of the Hugging Face hub")
    tokenizer, model = AutoTokenizer.from_pretrained(folder, local_files_only=True), clip.network
    length, embedded = model.config.text_config.max_position_embeddings, []
    for start in range(0, len(captions), size):
        tokens = tokenizer(
            captions[start : start + size],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        hidden = model.text_model(**tokens.to(model.device)).pooler_output
        embedded.append(model.text_projection(hidden).float().cpu())
    return torch.cat(embedded)


def extractor(name: str) -> nn.Module:
    """The extractor of that name, in evaluation mode; one line and exit code 1 where its weights are missing."""
    if name in ("scene", "pixels"):
        return (Scene() if name == "scene" else Pixels()).eval()
    return (Inception() if name == "inception2048" else Transformer(name, VISION / name)).eval()


def found(file: Path, what: str) -> None:
    if not file.is_file():
        exit_with_error(
            f"features.extractors: {file} is missing ({what}): put {file.relative_to(VISION)} into a folder and name that "
            "folder in params.yaml, fetch_model.vision: path:<folder>"
        )
