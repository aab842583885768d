"""The schema of `params.yaml`: one class per section, one described field per key, no defaults.

    python -m stages.params [file]     check a whole params file

Faults are printed one per line, with exit code 1. Each stage calls `load()`, which checks the whole
file: a typo in the last section stops the first stage.

"Paper" in the descriptions is Kasodekar 2024, Remote Diffusion, with the value that it uses.
"""

import argparse
import difflib
import re
import sys
import unicodedata
from collections.abc import Callable
from math import ceil, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stages.common.class_names import derived_names, slug

try:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    load_yaml = YAML(typ="safe").load
except ImportError:  # benchmarks.gpu runs where DVC and its reader are not installed
    from yaml import MarkedYAMLError, YAMLError  # type: ignore[assignment]
    from yaml import safe_load as load_yaml  # type: ignore[assignment]


# A repository of the hub, some without an owner, with or without a revision.
HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+(@\S+)?")


def _check_source(source: str) -> str:
    """Refuse a source without a known kind, or with a location that does not fit its kind."""
    kind, _, location = source.partition(":")
    needs_location = kind in ("path", "hub", "arxiv", "package", "torchgeo")
    is_known = needs_location or kind in ("embedded", "none")
    if not is_known or needs_location != bool(location.strip()):
        raise ValueError(
            "a source is embedded, path:<folder or file>, hub:<repo>[@revision], "
            "arxiv:<csv> (papers only), torchgeo:<data set> (imagery only), package:<name> (models "
            "only) or none"
        )
    if location != location.lstrip():
        raise ValueError(f"no blank may follow the colon: write {kind}:{location.lstrip()}")
    if kind == "hub" and not HUB_NAME.fullmatch(location):
        raise ValueError("write hub:<owner>/<name>, and @<revision> where it is not the newest")
    return source


def _check_split_size(size: float) -> float:
    """Refuse a size that is neither a fraction nor a number of images."""
    if size > 1 and not size.is_integer():
        raise ValueError("write a fraction below 1, or a whole number of images")
    return size


def _check_caption(caption: str | None) -> str | None:
    """Refuse a caption that `fetch_imagery` would not take from a file either."""
    if caption is None:
        return None
    is_missing = caption.strip().lower() in ("none", "null", "nan", "n/a", "na")
    if is_missing or not any(letter.isalpha() for letter in caption):
        raise ValueError("a caption is a text with letters, or null")
    return caption


def _check_text(text: str) -> str:
    if not any(letter.isalpha() for letter in text):
        raise ValueError("write a text with letters")
    # Text of several lines holds line ends, which count as blanks.
    if any(_is_control(letter) and not letter.isspace() for letter in text):
        raise ValueError("write a text without control characters")
    return text


def _check_per_class(per_class: Any) -> Any:
    """Refuse what is neither a number of prompts nor such a number for each class."""
    if isinstance(per_class, dict):
        for name, count in per_class.items():
            if not isinstance(name, str) or not _is_integer(count, 0):
                raise ValueError(f"{name}: write a number of prompts, 0 or more, not {count!r}")
    elif not _is_integer(per_class, 0):
        raise ValueError("write a number of prompts, 0 or more, or such a number for each class")
    return per_class


def _compose(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which `fetch_imagery` reads names of imagery.

    macOS lists names in the decomposed one.
    """
    return unicodedata.normalize("NFC", name)


def _compose_keys(of_classes: Any) -> Any:
    """Compose the names of classes that are keys; refuse two that are equal then."""
    if not isinstance(of_classes, dict):
        return of_classes
    composed = {_compose(name): value for name, value in of_classes.items()}
    if len(composed) < len(of_classes):
        names = [_compose(name) for name in of_classes]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twin} stands there twice, in two forms of Unicode (NFC and NFD)")
    return composed


def _check_balance(balance: Any) -> Any:
    """Refuse what is neither null, equal, {to: N} nor {like: real}."""
    has_number = isinstance(balance, dict) and set(balance) == {"to"}
    if balance in (None, "equal", {"like": "real"}) or (
        has_number and _is_integer(balance["to"], 1)
    ):
        return balance
    raise ValueError("write equal, {to: <images per class>}, {like: real} or null")


def _check_bands(bands: Any) -> Any:
    """Refuse what is not null, or one or three numbers or names of bands."""
    is_list = isinstance(bands, list) and len(bands) in (1, 3)
    if bands is None or (is_list and all(map(_is_band, bands))):
        return bands
    raise ValueError("write three bands (red, green, blue) or one (gray), by number from 1 or name")


def _is_band(band: Any) -> bool:
    return _is_integer(band, 1) or _is_name(band)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_integer(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _check_stretch(stretch: Any) -> Any:
    """Refuse what is neither auto, none, a divisor, a pair low <= high, nor one or three pairs."""
    if stretch in ("auto", "none") or (_is_number(stretch) and stretch > 0):
        return stretch
    pairs = stretch if isinstance(stretch, list) else []
    if len(pairs) == 2 and all(map(_is_number, pairs)):
        pairs = [pairs]
    if len(pairs) in (1, 3) and all(map(_is_stretch_pair, pairs)):
        return stretch
    raise ValueError(
        "write auto, none, a divisor, [low, high] with low <= high, or three such pairs"
    )


def _is_stretch_pair(pair: Any) -> bool:
    is_pair = isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
    return is_pair and pair[0] <= pair[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _check_mask(mask: Any) -> Any:
    """Refuse what is neither null, nor a band or file with its values of valid pixels."""
    if mask is None:
        return None
    keys = set(mask) if isinstance(mask, dict) else set()
    has_band = keys == {"band", "valid"} and _is_band(mask["band"])
    has_file = keys == {"file", "valid"} and _is_name(mask["file"])
    if has_band or has_file:
        values = mask["valid"]
        if isinstance(values, list) and values and all(map(_is_number, values)):
            return mask
    raise ValueError(
        "write {band: <number or name>, valid: [<value>, ...]}, {file: <path>, valid: [...]} or "
        "null"
    )


Source = Annotated[
    str, AfterValidator(_check_source), Field(json_schema_extra={"format": "source"})
]
Name = Annotated[str, Field(min_length=1)]
ClassName = Annotated[str, AfterValidator(_compose)]  # or the name of a scene
Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]
PositiveNumber = Annotated[float, Field(gt=0)]
NonNegativeNumber = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
HeldOutFraction = Annotated[float, Field(gt=0, lt=1)]
SplitSize = Annotated[
    float,
    Field(ge=0, json_schema_extra={"format": "fraction < 1, or integer >= 0"}),
    AfterValidator(_check_split_size),
]
Share = Annotated[float, Field(ge=0, le=1)]
# Group normalization needs channels in multiples of its number of groups.
MultipleOf8 = Annotated[int, Field(gt=0, multiple_of=8)]
MultipleOf16 = Annotated[int, Field(gt=0, multiple_of=16)]
Precision = Literal["fp32", "bf16", "fp16"]
# Of a class in a file's name, which has 255 bytes at most.
MAX_SLUG_BYTES = 200


class Section(BaseModel):
    """A section of the file. Unknown keys, NaN, inf and values of another type are errors.

    3.7 is not a count and "yes" is not a bool, but an int is accepted as a float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sampling(Section):
    scheduler: Literal["pndm", "ddim", "dpm"] = Field(
        description="PNDM (Liu et al. 2022; paper, section 3), DDIM (Song et al. 2021) or "
        "DPM-Solver++ (Lu et al. 2022)"
    )
    steps: Count = Field(
        le=999, description="denoising steps per image, of 1000 timesteps (paper, section 3: 50)"
    )
    guidance_scale: float = Field(
        ge=1, description="classifier-free guidance scale (Ho & Salimans 2022); 1 = off"
    )
    resolution: Count = Field(
        description="pixels per side, a multiple of the VAE's factor (paper, section 3: 512)"
    )
    batch_size: Count = Field(
        description="images denoised at once; a last group of fewer is padded"
    )
    precision: Precision = Field(
        description="number format of the UNet and the VAE; fp16 needs a GPU"
    )


class FetchPapers(Section):
    source: Source = Field(
        description="PDFs, text, Markdown, LaTeX, HTML, Parquet, ... (paper: appendix A.1); "
        "embedded = the field notes"
    )
    text_column: Name = Field(description="column of Parquet files that holds the text")


class Scrape(Section):
    min_papers: Count = Field(
        description="readable papers; fewer are an error (paper, section 4: about 50)"
    )
    cut_references: bool = Field(description="whether each paper's reference list is removed")
    test_fraction: NonNegativeNumber = Field(
        le=0.5,
        description="fraction of the text lines held out, as whole papers (paper, section 4: 0.05)",
    )
    min_test_papers: CountOrZero = Field(
        description="papers held out, at least; fewer than 4 give the perplexity no interval, none "
        "give no perplexity"
    )


class Chunk(Section):
    min_characters: Count = Field(
        description="characters of a chunk, at least; it ends at the next full stop "
        "(paper, section 4: 500)"
    )


class Splits(Section):
    train: Name | None = Field(
        description="the source's name of its training split; null = all other images, except "
        "those of splits that are named like the other two"
    )
    valid: Name | None = Field(
        description="the source's name of its validation split; null = carve one out"
    )
    test: Name | None = Field(
        description="the source's name of its test split; null = carve one out"
    )


class Mask(Section):
    """Where the validity of pixels is read: a band of the image, or else a file of one band."""

    band: int | str | None = None  # its number or name
    file: str | None = None  # relative to the image's folder; {stem}: its name without suffix
    valid: list[int | float]  # the values of valid pixels


class TileGrid(Section):
    size: int = Field(ge=16, description="pixels along a side")
    stride: Count = Field(description="pixels from one tile to the next")
    min_valid: Share = Field(
        description="share of a tile's pixels that must be valid, and have a label of `labels`"
    )


class Labels(Section):
    file: Name = Field(
        description="a raster of the scene's grid, relative to the scene's folder; {stem} stands "
        "for the scene's name without suffix",
    )
    classes: dict[int, ClassName] = Field(
        min_length=1, description="value -> class name; several values may have the same"
    )


class FetchImagery(Section):
    source: Source = Field(
        description="captioned images (paper, section 3: RSICD, Lu et al. 2017); "
        "embedded = the scene renderer"
    )
    download: bool = Field(
        description="whether a torchgeo: data set that is not in $TORCHGEO_DATA is downloaded there"
    )
    caption: Annotated[str | None, AfterValidator(_check_caption)] = Field(
        description="the one caption of all images in a flat folder without captions; null = "
        "classes are read from the file names"
    )
    bands: Annotated[list[int | str] | None, BeforeValidator(_check_bands)] = Field(
        json_schema_extra={"format": "a list of 1 or 3 numbers or names, or `null`"},
        description="of rasters, the red, green and blue band, or one for gray: numbers from 1 or "
        "names (B04, red); null = those that the file names so, else the first three of 3 or 4",
    )
    stretch: Annotated[
        Literal["auto", "none"] | float | list[float] | list[list[float]],
        BeforeValidator(_check_stretch),
    ] = Field(
        json_schema_extra={
            "format": "`auto`, `none`, a divisor, a pair, or a list of 1 or 3 pairs"
        },
        description="which values become black and white: auto = 8-bit as it is, others from the "
        "2nd to the 98th percentile of the training tiles; [low, high], or a pair per band; a "
        "divisor (white; 10000 for Sentinel-2); none = values from 0 to 255 as they are",
    )
    mask: Annotated[Mask | None, BeforeValidator(_check_mask)] = Field(
        json_schema_extra={"format": "{band, valid}, {file, valid} or `null`"},
        description="which pixels of rasters are valid: {band: <number or name>, valid: [<value>, "
        "...]}, or {file: <path>, valid: [...]} with {stem} for the image's name; null = those "
        "that are not nodata",
    )
    tile: TileGrid | None = Field(
        description="how rasters larger than a tile are cut: {size, stride, min_valid} in pixels "
        "of the raster; null = each is one tile"
    )
    labels: Labels | None = Field(
        description="rasters that give tiles their class, by the largest share: {file: <path with "
        "{stem}>, classes: {<value>: <name>}}; null = folders, columns or names give it"
    )
    resolution: int = Field(
        ge=16, description="pixels per side of the stored tiles (paper, section 3: 224)"
    )
    splits: Splits = Field(
        description="names of the source's own splits; all null = those that are named train, "
        "val, test or alike"
    )
    valid: SplitSize = Field(
        description="size of a carved validation split: fraction (< 1) or number of images"
    )
    test: SplitSize = Field(
        description="size of a carved test split: fraction (< 1) or number of images "
        "(paper, section 3: 500)"
    )
    max_images: Count | None = Field(
        description="images rendered (embedded), or kept per split of the source at most; "
        "null = all"
    )
    exclude_near_duplicates: bool = Field(
        description="whether test tiles that look like a training tile are left out; of tiles cut "
        "from scenes, valid ones too"
    )


class FetchModel(Section):
    diffusion: Source = Field(
        description="a StableDiffusionPipeline (paper, section 4: Stable Diffusion v1.5)"
    )
    language: Source = Field(description="a causal language model (paper, section 4: Phi-1.5)")
    writer: Source = Field(
        description="an instruction-tuned language model that writes prompts "
        "(paper, section 4: Mistral-7B)"
    )
    embedder: Source = Field(description="a sentence embedder; embedded = TF-IDF + SVD")
    classifier: Source = Field(
        description="initial weights of the classifier, whose pixels are normalized by mean and "
        "std of their config.json, or else scaled to Sentinel-2 reflectance; none = random "
        "(paper, section 4: ResNet-18, Sentinel-2 RGB MoCo)"
    )
    vision: Source = Field(
        description="networks of features.extractors other than scene; none = only scene"
    )


ROLES = tuple(FetchModel.model_fields)


class TrainBase(Section):
    source: Literal["base", "adapt", "scratch"] = Field(
        description="base: fetch_model.diffusion as it is; adapt: train its VAE further on this "
        "run's imagery and, with text_steps, a new text encoder (`sample@base` still draws with "
        "the fetched model); scratch: train both from random weights"
    )
    vae_channels: list[MultipleOf8] = Field(
        min_length=1,
        description="scratch: channels per level of the VAE, multiples of 8; each level but the "
        "last halves the resolution",
    )
    latent_channels: Count = Field(description="scratch: channels of the VAE's latents")
    vae_steps: CountOrZero = Field(
        description="optimizer steps of the VAE; adapt: 0 leaves it as it is"
    )
    decoder_steps: CountOrZero = Field(
        description="optimizer steps of the VAE's decoder alone, after `vae_steps`, against a "
        "patch discriminator (Isola et al. 2017) and with a perceptual loss (Zhang et al. 2018) in "
        "features of a network that first learns the captions' words: sharper images; 0 = none"
    )
    text_width: int = Field(
        gt=0,
        multiple_of=32,
        description="scratch: width of the text encoder, a multiple of an attention head's 32",
    )
    text_layers: Count = Field(description="layers of the text encoder")
    text_steps: CountOrZero = Field(
        description="optimizer steps of contrastive training on images and captions; adapt: 0 "
        "leaves text encoder and tokenizer as they are"
    )
    unet_channels: list[MultipleOf16] = Field(
        min_length=1,
        description="scratch: channels per level of the untrained UNet, multiples of 16",
    )
    batch_size: int = Field(
        ge=2,
        description="images per optimizer step, at least two: in contrastive training, an "
        "image's caption is told from those of the others",
    )
    lr: PositiveNumber = Field(
        description="peak learning rate of AdamW, one-cycle schedule; not that of `decoder_steps`"
    )


class TrainScene(Section):
    source: Literal["embedded", "scratch"] = Field(
        description="embedded: the judge that comes with the embedded scenes; scratch: train one "
        "on the training tiles"
    )
    model: Name = Field(description="name of a timm model")
    resolution: int = Field(ge=16, description="pixels per side of the classifier's input")
    epochs: Count = Field(description="passes over the training tiles")
    batch_size: int = Field(
        ge=2, description="images per optimizer step; batch normalization needs two"
    )
    lr: PositiveNumber = Field(
        description="learning rate of AdamW: linear warm-up over 15 % of the steps, cosine to 0; "
        "the highest rate reached is 0.95 of this"
    )


class FinetuneLLM(Section):
    quantization: Literal["none", "nf4"] = Field(
        description="format of the frozen base weights: theirs, or 4-bit NormalFloat "
        "(QLoRA, Dettmers et al. 2023; paper, section 4)"
    )
    rank: Count = Field(description="LoRA rank r (Hu et al. 2022; paper, section 4: 16)")
    alpha: Count = Field(
        description="LoRA alpha: the update is scaled by alpha / rank (paper, section 4: 8)"
    )
    dropout: Fraction = Field(
        description="dropout probability of the LoRA layers (paper, section 4: 0.05)"
    )
    target_modules: list[Name] = Field(
        min_length=1,
        description="names of the adapted linear layers (paper, section 4: query, key, value)",
    )
    lr: PositiveNumber = Field(description="peak learning rate (paper, section 4: 2.0e-5)")
    weight_decay: NonNegativeNumber = Field(
        description="weight decay of AdamW (paper, section 4: 0.01)"
    )
    batch_size: Count = Field(description="sequences per optimizer step (paper, section 5: 8)")
    steps: Count = Field(description="optimizer steps (paper, section 5: 3000)")
    context: int = Field(ge=16, description="tokens per sequence (paper, section 4: 512)")
    packing: bool = Field(
        description="whether texts are joined and cut into full sequences (paper: padded instead)"
    )


class IndexRag(Section):
    passage_tokens: Count = Field(
        description="length of a passage in tokens of the embedder (words for the embedded one), "
        "at most as many as it reads (paper, section 4: 256)"
    )
    overlap_tokens: CountOrZero = Field(description="tokens that neighboring passages share")
    dimensions: Count = Field(description="dimensions of the embedded embedder's vectors")


Writer = Literal["extractive", "huggingface", "openai", "domain"]
# `retrieval` alone is zero-shot with passages.
Technique = Literal[
    "zero_shot",
    "few_shot",
    "chain_of_thought",
    "retrieval",
    "few_shot_retrieval",
    "chain_of_thought_retrieval",
]
WRITER_TECHNIQUES: dict[Writer, tuple[Technique, ...]] = {
    "extractive": ("retrieval",),
    "domain": ("zero_shot", "few_shot"),
    "huggingface": get_args(Technique),
    "openai": get_args(Technique),
}


Text = Annotated[str, AfterValidator(_check_text)]


class Words(Section):
    """What is said of a class; null = derived from its name and scenes."""

    names: list[Text] | None = Field(
        default=None,
        min_length=1,
        description="plain names of what the class shows: each of its prompts has one of these or "
        "of `kinds`, and prompts of other classes have none. Regular plurals count, too",
    )
    kinds: list[Text] | None = Field(
        default=None,
        description="rarer names, used where the plain ones give too few prompts; prompts of other "
        "classes have none of them either",
    )
    description: Text | None = Field(
        default=None,
        description="query for the index of passages; also the text that stands for the class in "
        "the embedding space",
    )
    looks: list[Text] | None = Field(
        default=None,
        min_length=2,
        description="adjectives of its surface from above, for composed prompts",
    )
    parts: list[Text] | None = Field(
        default=None, min_length=1, description="details visible in it, for composed prompts"
    )


class Pair(Section):
    writer: Writer = Field(description="who writes the prompts")
    technique: Technique = Field(description="how the writer is asked")


class Prompt(Section):
    writer: Writer = Field(
        description="who writes the prompts: sentences of the passages, fetch_model.writer, an "
        "OpenAI-compatible endpoint, or the fine-tuned language model"
    )
    technique: Technique = Field(
        description="how the writer is asked (paper, section 4: retrieval)"
    )
    compare: list[Pair] = Field(
        description="further writers and techniques, which are measured but not used"
    )
    compare_count: Count = Field(description="prompts per class of each compared pair")
    openai_base_url: str | None = Field(
        pattern="^https?://[^?#]*$",
        description="URL of an OpenAI-compatible endpoint (writer openai), without a query; its "
        "key is read from $OPENAI_API_KEY",
    )
    openai_model: Name | None = Field(description="model name at that endpoint")
    openai_timeout: Count = Field(description="seconds that endpoint has for an answer")
    max_tokens: Count = Field(
        description="tokens of an answer, thoughts included (writers openai and huggingface)"
    )
    one_by_one: bool = Field(
        description="ask for one description at a time, in a dialogue, and give its first words: "
        "for models that are too small to write a list (writer huggingface)"
    )
    temperature: NonNegativeNumber | None = Field(
        description="sampling temperature of the writers that are language models; null = the "
        "model's own, which some endpoints insist on"
    )
    top_p: PositiveNumber | None = Field(
        le=1,
        description="nucleus sampling (Holtzman et al. 2020): the likeliest tokens of this total "
        "probability (writers huggingface and domain: of the 50 likeliest, unless the model's "
        "generation_config.json says otherwise); null = the model's own",
    )
    top_k: Count = Field(
        description="passages retrieved per attempt, at least one for each scene of the class "
        "(techniques with retrieval)"
    )
    per_class: Annotated[
        int | dict[str, int], BeforeValidator(_check_per_class), AfterValidator(_compose_keys)
    ] = Field(
        json_schema_extra={"format": "integer >= 0, or for each class: integer >= 0"},
        description="prompts kept per class: one number, or one for each; 0 leaves a class out "
        "(paper, Table 2: 52 to 61)",
    )
    words: Annotated[dict[str, Words], AfterValidator(_compose_keys)] = Field(
        description="what is said of a class: {names, kinds, description, looks, parts}, each "
        "optional; what isn't given is derived from the names of the class and its scenes"
    )
    attempts: Count = Field(
        description="rounds of asking a writer; later ones replace rejected prompts"
    )
    positive_cues: str = Field(
        description="text before every image prompt (paper, section 3: positive cues), except one "
        "that begins with its class's only training caption"
    )
    negative_prompt: str = Field(
        description="prompt that guidance leads away from (paper, section 3)"
    )


class Encode(Section):
    variants: Count = Field(
        le=8,
        description="flips and rotations that are cached of each training image, of the 8 of a "
        "square: 1 = none, 2 = also mirrored left to right (shadows still fall the same way, up or "
        "down), 4 = also rotated by 180 degrees, 8 = all; an epoch shows each image in one of them",
    )
    cache_gb: PositiveNumber = Field(
        description="GB (10^9 bytes) that the latents and the text embeddings may take; where both "
        "together are larger, finetune_sd embeds captions while it trains"
    )
    normalization: Literal["vae", "dataset"] = Field(
        description="of the pixels: vae = to [-1, 1], as the VAE was trained; dataset = by the "
        "data set's mean and standard deviation (paper, section 3), which shifts the colors"
    )
    batch_size: Count = Field(description="images per forward pass")
    precision: Precision = Field(description="number format of the VAE and the text encoder")
    base_domain: Source = Field(
        description="captioned images of the base model's own domain, for the loss that shows "
        "forgetting; none = not measured"
    )
    base_images: Count = Field(description="images of base_domain, at most")


class FinetuneSD(Section):
    method: Literal["full", "lora"] = Field(
        description="full: all weights of the UNet (paper, section 4); lora: LoRA of its attention"
    )
    epochs: NonNegativeNumber = Field(
        description="passes over the training images; 0 = no fine-tuning (paper, section 4: 5)"
    )
    batch_size: Count = Field(
        description="images per batch over all processes (paper, section 4: 4)"
    )
    gradient_accumulation: Count = Field(
        description="batches per optimizer step (paper, section 4: 4)"
    )
    optimizer: Literal["adamw", "adamw8bit", "muon"] = Field(
        description="AdamW (Loshchilov & Hutter 2019), AdamW with 8-bit state (Dettmers et al. "
        "2022), or Muon (Jordan et al. 2024), which learns more from few steps but can't be used "
        "with FSDP"
    )
    lr: PositiveNumber = Field(description="peak learning rate (paper, section 4: 1.0e-6)")
    lr_schedule: Literal["constant", "cosine"] = Field(
        description="learning rate after the warm-up: constant, or cosine to 0"
    )
    warmup_steps: CountOrZero = Field(description="optimizer steps of linear warm-up")
    weight_decay: NonNegativeNumber = Field(
        description="weight decay of AdamW and of Muon; the paper doesn't say"
    )
    max_grad_norm: PositiveNumber = Field(description="L2 norm that gradients are clipped to")
    precision: Precision = Field(
        description="number format under autocast; the weights stay fp32 (paper, section 4: mixed)"
    )
    ema_decay: Fraction = Field(
        description="decay of the weights' exponential moving average per optimizer step; 0 = off"
    )
    min_snr_gamma: PositiveNumber | None = Field(
        description="gamma of the Min-SNR loss weight (Hang et al. 2023); null = off"
    )
    caption_dropout: Fraction = Field(
        description="fraction of captions replaced by the empty one (Ho & Salimans 2022)"
    )
    latent: Literal["sample", "mean"] = Field(
        description="whether training samples the VAE's posterior or takes its mean"
    )
    gradient_checkpointing: bool = Field(
        description="whether the backward pass recomputes activations, which saves memory"
    )
    compile: bool = Field(description="whether the UNet is compiled by torch.compile")
    zero_terminal_snr: bool = Field(
        description="whether the noise schedule ends in pure noise (Lin et al. 2024), which needs "
        "a base that predicts v"
    )
    checkpoint_steps: Count = Field(
        description="optimizer steps between checkpoints, each with a validation "
        "(paper, section 4: 500)"
    )
    keep_checkpoints: Count = Field(description="checkpoints kept on disk while training")
    validation_images: Count = Field(
        description="images of the valid split that are scored, at most"
    )
    grid_captions: Count = Field(
        description="rows of the sample grid, one validation caption and four images each"
    )
    grid_steps: Count = Field(description="denoising steps of the grid's images (DPM-Solver++)")


class Keep(Section):
    draw: float = Field(gt=1, description="images drawn per image that is kept")


class Generate(Section):
    images_per_prompt: Count = Field(
        description="images per prompt, each from its own seed (paper, Table 2: 1)"
    )
    balance: Annotated[
        Literal["equal"] | dict[str, int | str] | None, BeforeValidator(_check_balance)
    ] = Field(
        json_schema_extra={"format": "`equal`, {to: images}, {like: real} or `null`"},
        description="images per class: equal = for each class as many as for the one with the most "
        "prompts; {to: N} = N each; {like: real} = in proportion to the training tiles; null = "
        "images_per_prompt for each prompt",
    )
    keep: Keep | None = Field(
        description="{draw: 3} draws three images for each that is kept: those that show their "
        "class and differ most; null = all are kept"
    )


Extractor = Literal["scene", "efficientnet", "inception2048", "dinov2", "clip"]


class Features(Section):
    extractors: list[Extractor] = Field(
        min_length=1,
        description="networks whose features are compared (paper, section 5: Inception-2048)",
    )
    batch_size: Count = Field(description="images per forward pass")
    padded: bool = Field(
        description="whether test tiles are also compared in a black frame, as by the paper's "
        "released script"
    )


class Fid(Section):
    standard_min_n: Count = Field(
        description="smallest number of images for which FID is computed (standard protocol)"
    )
    paper_n: int = Field(
        ge=2, description="images per draw of the paper's protocol (paper, section 5: 250)"
    )
    paper_draws: Count = Field(description="number of seeded draws of the paper's protocol")
    subsets: int = Field(
        ge=2,
        description="random halvings of both sets behind a 95 % interval; 20 leave its width "
        "uncertain by about 15 % (FID) to 25 % (KID), 100 by 7 %",
    )


class Classifier(Section):
    model: Name = Field(description="name of a timm model (paper, section 5: ResNet-18)")
    resolution: int = Field(ge=16, description="pixels per side of the classifier's input")
    epochs: Count = Field(description="passes over the training images (paper, section 5: 20)")
    batch_size: int = Field(
        ge=2, description="images per optimizer step; batch normalization needs two"
    )
    lr: PositiveNumber = Field(description="learning rate of AdamW (paper, section 5: 3.0e-4)")
    seeds: Count = Field(description="classifiers trained, each from its own seed")
    valid_fraction: HeldOutFraction = Field(
        description="fraction of the synthetic images of each class for validation, whole prompts"
    )
    test_fraction: HeldOutFraction = Field(
        description="fraction of the synthetic images of each class for testing, whole prompts "
        "(paper: 0.1)"
    )
    images_per_caption: Count = Field(
        description="images sampled for each test caption, which classify@scenes learns from"
    )


class Report(Section):
    gallery_per_class: Count = Field(description="images shown per class, real and generated")
    review_tiles: int = Field(
        ge=2, multiple_of=2, description="tiles that an expert rates blind, half of them generated"
    )


# The kinds of sources that only one key, or section, knows.
ONLY_FOR = {
    "arxiv": "fetch_papers.source",
    "torchgeo": "fetch_imagery.source",
    "package": "fetch_model",
}
# The roles of fetch_model that an embedded model has.
EMBEDDED_ROLES = ("diffusion", "language", "embedder")
NEEDED_SOURCES = (
    "fetch_papers.source",
    "fetch_imagery.source",
    "fetch_model.language",
    "fetch_model.embedder",
)


class Params(Section):
    """The whole file. The validators check what several values must agree on."""

    seed: int = Field(ge=0, lt=2**32, description="seed of every random number")
    classes: Annotated[dict[str, list[ClassName]], AfterValidator(_compose_keys)] = Field(
        description="2 to 100 classes, each with the scenes of the imagery that show it; Ice: [] = "
        "none (paper, Table 2: seven)"
    )
    sampling: Sampling
    fetch_papers: FetchPapers
    scrape: Scrape
    chunk: Chunk
    fetch_imagery: FetchImagery
    fetch_model: FetchModel
    train_base: TrainBase
    train_scene: TrainScene
    finetune_llm: FinetuneLLM
    index_rag: IndexRag
    prompt: Prompt
    encode: Encode
    finetune_sd: FinetuneSD
    generate: Generate
    features: Features
    fid: Fid
    classifier: Classifier
    report: Report

    def prompts_per_class(self) -> dict[str, int]:
        """Return the number of prompts of each class, in the order of `classes`."""
        per_class = self.prompt.per_class
        if isinstance(per_class, int):
            return dict.fromkeys(self.classes, per_class)
        return {name: per_class[name] for name in self.classes}

    def used_classes(self) -> dict[str, list[str]]:
        """Return `classes` without those of 0 prompts."""
        counts = self.prompts_per_class()
        return {name: scenes for name, scenes in self.classes.items() if counts[name]}

    def _refuse_unknown_class(self, key: str, names: dict[str, Any]) -> None:
        for name in names:
            if name not in self.classes:
                similar = difflib.get_close_matches(name, self.classes, n=1)
                hint = f"did you mean {similar[0]}?" if similar else "classes doesn't list it"
                raise ValueError(f"{key}: {name}: unknown class; {hint}")

    # Each raises its first fault. `_check_together` runs them all, so that no fault hides another.

    def _check_classes(self) -> None:
        if not 2 <= len(self.classes) <= 100:
            last = f"; the last is {list(self.classes)[-1]}" if self.classes else ""
            raise ValueError(f"classes: 2 to 100 classes, not {len(self.classes)}{last}")
        slugs: dict[str, str] = {}
        for name, class_scenes in self.classes.items():
            _check_class_name(name)
            if not all(map(str.strip, class_scenes)):
                raise ValueError(f"classes: {name}: a scene has no name; write [] for no scene")
            # Some file systems hold one of "Forest" and "forest".
            twin = slugs.setdefault(slug(name).casefold(), name)
            if twin != name:
                raise ValueError(
                    f"classes: {name} and {twin} have the same name in metrics and files: "
                    f"{slug(name)}"
                )
        owners: dict[str, str] = {}  # of the scenes
        pairs = [(scene, name) for name, scenes in self.classes.items() for scene in scenes]
        for scene, name in pairs:
            if owners.get(scene) == name:
                raise ValueError(
                    f"classes: {name}: {scene} stands there twice, perhaps in two forms of Unicode "
                    "(NFC and NFD)"
                )
            if scene in owners:
                raise ValueError(
                    f"classes: {scene} stands there twice, for {owners[scene]} and for {name}; a "
                    "scene shows one class"
                )
            owners[scene] = name

    def _check_sources(self) -> None:
        sources = {f"fetch_model.{role}": source for role, source in self.fetch_model}
        sources["fetch_papers.source"] = self.fetch_papers.source
        sources["fetch_imagery.source"] = self.fetch_imagery.source
        sources["encode.base_domain"] = self.encode.base_domain
        for key, source in sources.items():
            kind = source.partition(":")[0]
            if not key.startswith(ONLY_FOR.get(kind, key)):
                raise ValueError(f"{key}: {kind}: is for {ONLY_FOR[kind]}")
            if source == "none" and key in NEEDED_SOURCES:
                raise ValueError(f"{key}: none: the pipeline needs one")
            section, _, role = key.partition(".")
            if section == "fetch_model" and source == "embedded" and role not in EMBEDDED_ROLES:
                raise ValueError(
                    f"{key}: embedded: no such model is embedded; write none, path:<folder> or "
                    "hub:<repo>[@revision]"
                )
        start = self.train_base.source
        if start != "scratch" and self.fetch_model.diffusion == "none":
            raise ValueError(
                f"fetch_model.diffusion: none leaves train_base.source: {start} nothing to start "
                "from: write train_base.source: scratch"
            )
        if self.fetch_imagery.source == "embedded" and self.fetch_imagery.max_images is None:
            raise ValueError(
                "fetch_imagery.max_images: null: say how many tiles the embedded renderer makes"
            )
        if self.train_scene.source == "embedded" and self.fetch_imagery.source != "embedded":
            raise ValueError(
                "train_scene.source: embedded knows the embedded scenes only, and "
                f"fetch_imagery.source is {self.fetch_imagery.source}: write train_scene.source: "
                "scratch"
            )

    def _check_base_domain(self) -> None:
        base = self.fetch_model.diffusion
        adapted = self.train_base.vae_steps or self.train_base.text_steps
        if self.encode.base_domain != "none" and self.train_base.source == "adapt" and adapted:
            raise ValueError(
                f"encode.base_domain: {self.encode.base_domain} measures what fine-tuning forgets; "
                "train_base.source: adapt changes what the base knows before it: write "
                "encode.base_domain: none"
            )
        if self.encode.base_domain == "embedded" and base != "embedded":
            raise ValueError(
                "encode.base_domain: embedded shows the scenes of the embedded base, and "
                f"fetch_model.diffusion is {base}: write encode.base_domain: none, or name "
                "captioned images of your model's domain"
            )

    def _check_split_sizes(self) -> None:
        config = self.fetch_imagery
        carved = [key for key in ("valid", "test") if getattr(config.splits, key) is None]
        sizes = [getattr(config, key) for key in carved]
        keys = ", ".join(f"fetch_imagery.{key}" for key in carved)
        if config.source != "embedded" and config.splits.train is None:
            return  # the source may have splits of its own
        if sum(size for size in sizes if size < 1) >= 1:
            raise ValueError(f"{keys}: these fractions leave no image to train on")
        if config.source != "embedded" or config.max_images is None:
            return
        held_out = sum(size if size >= 1 else size * config.max_images for size in sizes)
        if held_out >= config.max_images:
            raise ValueError(
                f"{keys}: {held_out:.0f} of {config.max_images} images (fetch_imagery.max_images) "
                "leave none to train on"
            )

    def _check_unused_imagery_keys(self) -> None:
        config = self.fetch_imagery
        if config.download and not config.source.startswith("torchgeo:"):
            raise ValueError(
                f"fetch_imagery.download: true is for torchgeo: data sets, not {config.source}: "
                "write false"
            )
        if config.source != "embedded":
            return
        if config.caption is not None:
            raise ValueError(
                "fetch_imagery.caption: the embedded scenes have captions of their own: write null"
            )
        unused = {"bands": None, "stretch": "auto", "mask": None, "tile": None, "labels": None}
        for key, value in unused.items():
            if getattr(config, key) != value:
                raise ValueError(
                    f"fetch_imagery.{key}: is for rasters, and the embedded scenes are none: write "
                    f"{value or 'null'}"
                )

    def _check_extractors(self) -> None:
        extractors = self.features.extractors
        if "scene" not in extractors or len(set(extractors)) < len(extractors):
            raise ValueError(
                "features.extractors: each once, and scene among them: "
                "caption agreement is measured in its features"
            )
        if self.fetch_model.vision == "none" and extractors != ["scene"]:
            raise ValueError(
                "features.extractors: all but scene need fetch_model.vision, which is none"
            )
        others = set(extractors) - {"scene", "efficientnet"}
        if self.fetch_model.vision.startswith("package:") and others:
            raise ValueError(
                f"features.extractors: {self.fetch_model.vision} of fetch_model.vision holds no "
                f"{min(others)}"
            )

    def _check_prompt_writers(self) -> None:
        prompt = self.prompt
        pairs = [(prompt.writer, prompt.technique)]
        pairs += [(pair.writer, pair.technique) for pair in prompt.compare]
        writers = {writer for writer, _ in pairs}
        if "huggingface" in writers and self.fetch_model.writer == "none":
            raise ValueError("prompt.writer: huggingface needs fetch_model.writer, which is none")
        if "openai" in writers and not (prompt.openai_base_url and prompt.openai_model):
            raise ValueError(
                "prompt.openai_base_url, prompt.openai_model: the openai writer needs both"
            )
        for writer, technique in pairs:
            if pairs.count((writer, technique)) > 1:
                raise ValueError(
                    f"prompt.compare: {writer} with {technique} is listed twice, or is the pair "
                    "that prompt.writer and prompt.technique name"
                )
            known = WRITER_TECHNIQUES[writer]
            if technique not in known:
                raise ValueError(
                    f"prompt.technique: the {writer} writer knows {', '.join(known)}, "
                    f"not {technique}"
                )
            if prompt.one_by_one and writer == "huggingface" and "chain_of" in technique:
                raise ValueError(
                    f"prompt.one_by_one: gives the first words of each answer, which leaves no "
                    f"room for {technique}"
                )

    def _check_prompts_per_class(self) -> None:
        per_class = self.prompt.per_class
        if isinstance(per_class, dict):
            self._refuse_unknown_class("prompt.per_class", per_class)
            missing = [name for name in self.classes if name not in per_class]
            if missing:
                raise ValueError(f"prompt.per_class: {missing[0]} is missing; 0 leaves it out")
        used = list(self.used_classes())
        if len(used) < 2:
            raise ValueError(
                f"prompt.per_class: prompts for {f'{used[0]} only' if used else 'no class'}; a "
                "classifier needs two classes"
            )

    def _check_words(self) -> None:
        self._refuse_unknown_class("prompt.words", self.prompt.words)
        terms = []  # with their classes
        for name, scenes in self.classes.items():
            words = self.prompt.words.get(name, Words())
            names = words.names or derived_names(name, scenes)
            if not names:
                raise ValueError(f"classes: {name} holds no letter: give it prompt.words, names")
            frequent = [] if words.names else [term for term in names if _is_frequent(term)]
            if frequent:
                raise ValueError(
                    f"classes: {name}: prompts of any class hold {frequent[0]}, a name that it has "
                    "of itself or a scene: give it prompt.words, names"
                )
            terms += [(term, name) for term in [*names, *(words.kinds or [])]]
        owners: dict[str, str] = {}  # of each form of a term
        for term, name in terms:
            others = {owners.setdefault(form, name) for form in _term_forms(term)} - {name}
            if others:
                raise ValueError(
                    f"prompt.words: {min(others)} and {name} share {term}; a prompt names one "
                    "class: give one of them other names or kinds"
                )

    def _check_selection(self) -> None:
        if self.generate.keep and self.features.extractors == ["scene"]:
            raise ValueError(
                "generate.keep: a selected set can't be scored in the features that selected it: "
                "add another network to features.extractors, or say null"
            )

    def _check_passage_overlap(self) -> None:
        if self.index_rag.overlap_tokens >= self.index_rag.passage_tokens:
            raise ValueError("index_rag.overlap_tokens: must be less than passage_tokens")

    def _check_zero_terminal_snr(self) -> None:
        if not self.finetune_sd.zero_terminal_snr:
            return
        if self.sampling.scheduler == "pndm":
            raise ValueError(
                "sampling.scheduler: pndm can't start from pure noise, as "
                "finetune_sd.zero_terminal_snr asks; use ddim or dpm"
            )
        if self.finetune_sd.min_snr_gamma is not None:
            raise ValueError(
                "finetune_sd.min_snr_gamma: gives pure noise, which zero_terminal_snr is for, "
                "no weight; say null"
            )

    def _check_classifier_fractions(self) -> None:
        if self.classifier.valid_fraction + self.classifier.test_fraction >= 1:
            raise ValueError("classifier: valid_fraction + test_fraction leave nothing to train on")

    def _check_trained_base(self) -> None:
        config = self.train_base
        if config.source == "adapt" and not (
            config.vae_steps or config.decoder_steps or config.text_steps
        ):
            raise ValueError(
                "train_base.vae_steps, train_base.decoder_steps, train_base.text_steps: all are 0, "
                "so train_base.source: adapt trains nothing; say base"
            )
        new_inputs = config.source == "adapt" and (config.vae_steps or config.text_steps)
        if new_inputs and not self.finetune_sd.epochs:
            raise ValueError(
                "finetune_sd.epochs: 0 leaves a UNet that never saw the latents and text encoder "
                "of train_base.vae_steps and train_base.text_steps"
            )
        if config.source != "scratch":
            return
        if self.finetune_sd.method == "lora":
            raise ValueError(
                "finetune_sd.method: lora adapts a trained UNet, and train_base.source: scratch "
                "begins with random weights; say full"
            )
        lengths = {
            "train_base.vae_steps": config.vae_steps,
            "train_base.text_steps": config.text_steps,
            "finetune_sd.epochs": self.finetune_sd.epochs,
        }
        untrained = [key for key, length in lengths.items() if not length]
        if untrained:
            raise ValueError(
                f"{', '.join(untrained)}: 0 trains nothing, and train_base.source: scratch begins "
                "with random weights (params/rsicd.yaml: 6000 and 3000 steps, 150 epochs)"
            )

    def _check_warmup(self) -> None:
        images = self.fetch_imagery.max_images
        config = self.finetune_sd
        if images is None or not config.epochs:
            return
        per_step = config.batch_size * config.gradient_accumulation
        steps = ceil(config.epochs * images / per_step)
        if config.warmup_steps > steps:
            raise ValueError(
                f"finetune_sd.warmup_steps: {config.warmup_steps} are more than the {steps} steps "
                f"of the training, {config.epochs:g} epochs of at most {images} images, "
                f"{per_step} a step: lr would not be reached"
            )

    @model_validator(mode="after")
    def _check_together(self) -> "Params":
        """Run all checks; each that fails is a line of the message."""
        # What is said of classes can't be judged where these have a fault.
        faults = _faults(self._check_classes) or _faults(
            self._check_prompts_per_class, self._check_words
        )
        faults += _faults(
            self._check_sources,
            self._check_base_domain,
            self._check_split_sizes,
            self._check_unused_imagery_keys,
            self._check_extractors,
            self._check_prompt_writers,
            self._check_selection,
            self._check_passage_overlap,
            self._check_zero_terminal_snr,
            self._check_classifier_fractions,
            self._check_trained_base,
            self._check_warmup,
        )
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _faults(*checks: Callable[[], None]) -> list[str]:
    """The message of each check that fails."""
    faults = []
    for check in checks:
        try:
            check()
        except ValueError as fault:
            faults.append(_on_one_line(str(fault)))
    return faults


def _check_class_name(name: str) -> None:
    """Refuse a name that can't stand on one line, or of which nothing is left in a file's name."""
    if any(map(_is_control, name)):
        raise ValueError(f"classes: {name} holds control characters")
    if not slug(name):
        raise ValueError(f"classes: {name!r} holds no letter and no digit")
    if len(slug(name).encode()) > MAX_SLUG_BYTES:
        raise ValueError(
            f"classes: {name[:40]}... is too long for a file's name: {MAX_SLUG_BYTES} bytes at most"
        )


def _is_frequent(term: str) -> bool:
    """Whether prompts of all classes may hold it: "a dry desert with narrow tracks".

    A tile without captions gets "a satellite image of ..." (`caption_from_scene`), and so may a
    prompt.
    """
    is_letter = len(term) == 1 and term.isascii()
    return is_letter or bool(re.fullmatch("an|of|with|satellites?|(satellite )?images?", term))


def _term_forms(term: str) -> set[str]:
    """A term and its regular plurals; "Car park", "car-park" and "carpark" are one."""
    text = unicodedata.normalize("NFC", term).casefold()
    stem = re.sub(r"[\s\-\u2010\u2011]", "", text)
    plurals = {f"{stem}s", f"{stem}es"}
    return {stem, *plurals, f"{stem[:-1]}ies"} if stem.endswith("y") else {stem, *plurals}


def _is_control(letter: str) -> bool:
    """Whether it is a control character, a line's end, half a character, or turns the text."""
    is_control = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
    return is_control or "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a whole params file.

    Raises:
        SystemExit: code 1, with one line per fault that names the file and the key.
    """
    return check(read(path), path)


def check(values: dict[str, Any], name: str | Path) -> Params:
    """Check the values of a whole params file, which faults call by this name.

    Raises:
        SystemExit: code 1, with one line per fault; one in all for a file that, as those of
            params/, holds only what differs from the demo.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as invalid:
        faults = invalid.errors()
        missing = [fault for fault in faults if fault["type"] == "missing"]
        if len(missing) > 10:  # no whole file lacks that many
            scale = str(name) if Path(name).parent != Path() else "<its name>"
            if Path(name).parent.name == "params":
                scale = Path(name).stem
            sys.exit(
                f"{name}: holds only some keys, as the files of params/ do; "
                f"`make scale SCALE={scale}` writes a whole params.yaml with its values"
            )
        lines = []
        for fault in faults:
            # Those of the whole file are several lines, each of one check.
            message = _explain(fault)
            lines += [_on_one_line(message)] if _key(fault) else message.splitlines()
        sys.exit("\n".join(f"{name}: {line}" for line in lines))


def read(path: str | Path = "params.yaml") -> dict[str, Any]:
    """Read a params file with the YAML 1.2 reader that DVC uses, so that dvc.lock holds the same.

    1e-05 is a number, `yes`, `no` and 1:30 are text, and a key that stands twice is an error.

    Raises:
        SystemExit: code 1, with one line that names the file and, where known, line and column.
    """
    try:
        values = load_yaml(Path(path).read_text(encoding="utf-8"))
    # A ValueError is text that is not UTF-8, or a date such as 2026-13-01.
    except (OSError, ValueError, RecursionError, YAMLError) as error:
        message = str(error)
        if isinstance(error, MarkedYAMLError) and error.problem_mark:
            mark = error.problem_mark
            message = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
        sys.exit(f"{path}: cannot be read: {' '.join(message.split())}")
    if not isinstance(values, dict):
        sys.exit(f"{path}: expected sections, found {type(values).__name__}")
    return values


def _location(fault: ErrorDetails) -> list[int | str]:
    """The keys that lead to a fault; pydantic marks one that is itself at fault by "[key]"."""
    return [part for part in fault["loc"] if part != "[key]"]


def _key(fault: ErrorDetails) -> str:
    return ".".join(str(part) for part in _location(fault))


def _explain(fault: ErrorDetails) -> str:
    """One line with the key, the value and what is allowed, or the known key most like it."""
    location = _location(fault)
    key = _key(fault)
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return explain_unknown_key(location)
    if fault["type"] == "missing":
        field = _fields(location[:-1])[str(location[-1])]
        return f"{key}: missing ({field.description or 'a section'})"
    if not key:
        return message  # a line for each of `Params._check_together`
    if location[:-1] == ["prompt", "words"] and fault["input"] is None:
        return f"{key}: is empty; write {{}} or leave it out"
    if fault["type"] == "model_type":
        message = f"write {{{', '.join(f'{name}: ...' for name in _fields(location))}}} or null"
    if fault["type"] == "bool_type":
        message = "should be true or false"
    message = message.replace("Input should", "should")
    if fault["type"] == "string_type":
        return f"{key}: {message}, not {fault['input']} (text like a number or a date needs quotes)"
    if isinstance(fault["input"], dict):
        return f"{key}: {message}"
    return f"{key}: {message}, not {fault['input']!r}"


def explain_unknown_key(location: list[int | str]) -> str:
    """One line with the key that these keys lead to, and the known keys most like it."""
    key = ".".join(map(str, location))
    same_name = _keys_with_name_of(key)
    if key in same_name:  # written as one key
        section, _, name = key.partition(".")
        return f"{key}: unknown key; write the key {name} into the section {section}"
    same_name = same_name if len(same_name) <= 2 else []  # more are no hint
    allowed = list(_fields(location[:-1]))
    similar = difflib.get_close_matches(
        str(location[-1]), allowed, n=1, cutoff=0.7 if same_name else 0.5
    )
    similar += same_name
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"allowed: {', '.join(allowed)}"
    return f"{key}: unknown key; {hint}"


def _keys_with_name_of(key: str) -> list[str]:
    """The keys of any section with the name of this one: `sampling.steps` for `generate.steps`."""
    name = key.partition(".")[2]
    found = []
    for section, field in Params.model_fields.items():
        model = _find_section(field.annotation)
        if model is not None and name in model.model_fields:
            found.append(f"{section}.{name}")
    return found


def _on_one_line(text: str) -> str:
    """Write control characters as Python does: a key may hold some."""
    return "".join(repr(letter)[1:-1] if _is_control(letter) else letter for letter in text)


def _fields(location: list[int | str]) -> dict[str, FieldInfo]:
    """The fields of the section that these keys lead to."""
    model: type[BaseModel] = Params
    for part in location:
        if part in model.model_fields:  # else an index of a list, or a class
            model = _find_section(model.model_fields[str(part)].annotation) or model
    return model.model_fields


def _find_section(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's type, such as `list[Pair]` or `TileGrid | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_find_section, get_args(annotation))), None)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.params",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", default="params.yaml", help="default: params.yaml")
    load(parser.parse_args().file)


if __name__ == "__main__":
    main()
