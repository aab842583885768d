"""The schema of `params.yaml`: one class per section, no defaults; each field says its meaning and unit.

    python -m stages.params [file]     check a whole params file; prints one line per fault, exit code 1

Stages call `load()`, which checks the *whole* file, so that a typo in the last section stops the first stage.
"""

import argparse
import difflib
import sys
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)


def _source(value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind not in ("embedded", "none", "path", "hub", "arxiv") or (
        kind in ("path", "hub", "arxiv")
    ) != bool(rest):
        raise ValueError(
            "a source is embedded, path:<folder or file>, hub:<repo>[@revision]" + _MORE
        )
    return value


_MORE = ", arxiv:<csv> (papers only) or none (models only)"


def _number(value):
    # YAML 1.1 reads `1e-6` as text: say so instead of "should be a number".
    if (
        isinstance(value, str)
        and value.lower().replace("e-", "").replace("e", "").replace(".", "").isdigit()
    ):
        raise ValueError(f"write {float(value):.1e} with a point: YAML reads {value} as text")
    return value


Source = Annotated[str, AfterValidator(_source)]
Count = Annotated[int, Field(gt=0)]
Groups8, Groups16 = (
    Annotated[int, Field(gt=0, multiple_of=8)],
    Annotated[int, Field(gt=0, multiple_of=16)],
)  # group normalization
Steps = Annotated[int, Field(ge=0)]
Rate = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Amount = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Precision = Literal["fp32", "bf16", "fp16"]
LULC = Literal[
    "Bare Land",
    "Crop Land",
    "Cultivated Vegetation",
    "Natural Vegetation",
    "Snow Ice",
    "Water Body",
    "Woody Vegetation",
]
LULC_CLASSES: tuple[str, ...] = LULC.__args__


class Section(BaseModel):
    # Strict: 3.7 is not an epoch count, "yes" is not a switch. Ints are accepted where floats are asked for.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sampling(Section):
    scheduler: Literal["pndm", "ddim", "dpm"] = Field(
        description="PNDM (Liu et al. 2022), DDIM (Song et al. 2021) or "
        "DPM-Solver++ (Lu et al. 2022)"
    )
    steps: Count = Field(
        le=1000, description="denoising steps per image; models know 1000 timesteps"
    )
    guidance_scale: float = Field(
        ge=1, description="classifier-free guidance scale (Ho & Salimans 2022); 1 = off"
    )
    resolution: Count = Field(description="pixels per side; a multiple of the VAE's factor")
    batch_size: Count = Field(description="images per fixed, padded group")
    precision: Precision = Field(description="arithmetic of UNet and VAE")


class FetchPapers(Section):
    source: Source = Field(description="where the papers come from")


class Scrape(Section):
    min_papers: Count = Field(description="readable papers below which the stage fails")
    cut_references: bool = Field(description="drop each paper's reference list")
    test_fraction: Share = Field(
        le=0.5, description="share of the text lines held out, as whole papers"
    )
    min_test_papers: Count = Field(description="papers held out at least")


class Chunk(Section):
    min_characters: Count = Field(
        description="a chunk runs to the first full stop after so many characters"
    )


class Splits(Section):
    train: str | None = Field(description="the source's name for it; null = carve it out")
    valid: str | None = Field(description="ditto")
    test: str | None = Field(description="ditto")


class FetchImagery(Section):
    source: Source = Field(description="where the captioned imagery comes from")
    resolution: Count = Field(ge=16, description="pixels per side of the stored tiles")
    splits: Splits = Field(description="names of the source's own splits")
    valid: Amount = Field(
        description="carved out where the source has none: fraction (< 1) or count"
    )
    test: Amount = Field(description="ditto")
    max_images: Count | None = Field(
        description="embedded: tiles rendered; else kept per source split; null = all"
    )
    exclude_near_duplicates: bool = Field(
        description="leave test tiles out that look like a training tile"
    )


class FetchModel(Section):
    diffusion: Source = Field(description="a StableDiffusionPipeline")
    language: Source = Field(description="a causal language model")
    writer: Source = Field(description="an instruction-tuned language model that writes prompts")
    embedder: Source = Field(description="a sentence embedder; embedded = TF-IDF + SVD")
    classifier: Source = Field(description="weights the classifier starts from")
    vision: Source = Field(description="folder of further feature extractors")


class TrainBase(Section):
    source: Literal["base", "scratch"] = Field(
        description="pass fetch_model.diffusion through, or train a VAE and text encoder"
    )
    vae_channels: list[Groups8] = Field(
        min_length=1,
        description="channels per level, multiples of 8; each level but the last halves "
        "the resolution",
    )
    latent_channels: Count = Field(description="channels of the latents")
    vae_steps: Steps = Field(description="optimizer steps of the VAE")
    text_width: int = Field(
        gt=0,
        multiple_of=32,
        description="width of the text encoder, a multiple of 32 (an attention head)",
    )
    text_layers: Count = Field(description="its layers")
    text_steps: Steps = Field(description="contrastive steps (image, caption)")
    unet_channels: list[Groups16] = Field(
        min_length=1, description="channels per level of the untrained UNet, multiples of 16"
    )
    batch_size: Count = Field(description="images per step")
    lr: Rate = Field(description="peak learning rate")


class TrainScene(Section):
    model: str = Field(description="a timm model name")
    resolution: Count = Field(ge=16, description="pixels per side")
    epochs: Count = Field(description="passes over the training tiles")
    batch_size: Count = Field(ge=2, description="images per step; batch normalization needs two")
    lr: Rate = Field(description="peak learning rate")


class FinetuneLLM(Section):
    quantization: Literal["none", "nf4"] = Field(
        description="4-bit NormalFloat (Dettmers et al. 2023) or none"
    )
    rank: Count = Field(description="LoRA rank r (Hu et al. 2022)")
    alpha: Count = Field(description="LoRA alpha")
    dropout: Share = Field(description="LoRA dropout")
    target_modules: list[str] = Field(
        min_length=1, description="names of the adapted linear layers"
    )
    lr: Rate = Field(description="learning rate")
    weight_decay: Amount = Field(description="AdamW weight decay")
    batch_size: Count = Field(description="sequences per step")
    steps: Count = Field(description="optimizer steps")
    context: Count = Field(ge=16, description="tokens per sequence")
    packing: bool = Field(description="fill each sequence to the context length")


class IndexRag(Section):
    passage_tokens: Count = Field(description="tokens per passage")
    overlap_tokens: Steps = Field(description="tokens shared by neighboring passages")
    dimensions: Count = Field(description="of the embedded embedder's vectors")


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
TECHNIQUES = {
    "extractive": ("retrieval",),
    "domain": ("zero_shot", "few_shot"),
    "huggingface": Technique.__args__,
    "openai": Technique.__args__,
}


class Pair(Section):
    writer: Writer = Field(description="who writes the prompts")
    technique: Technique = Field(description="how it is asked")


class Prompt(Section):
    writer: Writer = Field(description="who writes the prompts")
    technique: Technique = Field(description="how it is asked")
    compare: list[Pair] = Field(description="further pairs, measured but not used")
    compare_count: Count = Field(description="prompts asked of each compared pair, per class")
    openai_base_url: str | None = Field(
        description="of an OpenAI-compatible endpoint (writer openai); its key is $OPENAI_API_KEY"
    )
    openai_model: str | None = Field(description="the model asked there")
    top_k: Count = Field(description="passages retrieved per query")
    per_class: dict[LULC, Count] = Field(description="prompts kept per class")
    attempts: Count = Field(description="times a writer is asked again")
    positive_cues: str = Field(description="put before every prompt")
    negative_prompt: str = Field(description="what guidance pushes away from")


class Encode(Section):
    normalization: Literal["vae", "dataset"] = Field(
        description="[-1, 1], or the data set's own mean and std"
    )
    batch_size: Count = Field(description="images per forward pass")
    precision: Precision = Field(description="arithmetic of the VAE and text encoder")
    base_domain: Source = Field(
        description="captioned images of the base model's own domain, for the forgetting curve; none = no curve"
    )
    base_images: Count = Field(description="of them at most")


class FinetuneSD(Section):
    method: Literal["full", "lora"] = Field(
        description="train the whole UNet or a LoRA of its attention"
    )
    epochs: Amount = Field(description="passes over the training images; 0 = no fine-tuning")
    batch_size: Count = Field(description="images per step over all processes")
    gradient_accumulation: Count = Field(description="steps whose gradients are averaged")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        description="AdamW (Loshchilov & Hutter 2019); with 8-bit state (Dettmers et al. 2022)"
    )
    lr: Rate = Field(description="peak learning rate")
    lr_schedule: Literal["constant", "cosine"] = Field(description="after the warm-up")
    warmup_steps: Steps = Field(description="optimizer steps of linear warm-up")
    weight_decay: Amount = Field(description="AdamW weight decay")
    max_grad_norm: Rate = Field(description="gradient clipping")
    precision: Precision = Field(description="autocast; weights stay fp32")
    ema_decay: Share = Field(description="exponential moving average of the weights; 0 = off")
    min_snr_gamma: Rate | None = Field(
        description="Min-SNR loss weighting (Hang et al. 2023); null = off"
    )
    caption_dropout: Share = Field(description="share of captions replaced by the empty one")
    latent: Literal["sample", "mean"] = Field(description="of the VAE posterior")
    gradient_checkpointing: bool = Field(description="recompute activations in the backward pass")
    compile: bool = Field(description="torch.compile the UNet")
    zero_terminal_snr: bool = Field(
        description="noise schedule rescaled to no signal at its end (Lin et al. 2024); needs v-prediction"
    )
    checkpoint_steps: Count = Field(
        description="optimizer steps between checkpoints and validations"
    )
    keep_checkpoints: Count = Field(description="checkpoints kept on disk while training")
    validation_images: Count = Field(description="valid images in the validation loss")
    grid_captions: Count = Field(
        description="rows of the sample grid: validation captions, four images each"
    )


class Generate(Section):
    images_per_prompt: Count = Field(description="images per prompt, each with its own seed")


class Features(Section):
    extractors: list[Literal["scene", "inception2048", "dinov2", "clip"]] = Field(
        min_length=1, description="feature networks"
    )
    batch_size: Count = Field(description="images per forward pass")
    padded: bool = Field(
        description="also test tiles in a black frame, as the released script compares them"
    )


class Fid(Section):
    standard_min_n: Count = Field(description="images below which the standard protocol refuses")
    paper_n: Count = Field(ge=2, description="images per draw of the paper's protocol")
    paper_draws: Count = Field(description="seeded draws of it")
    subsets: Count = Field(ge=2, description="subsamples behind a 95 % interval")


class Classifier(Section):
    model: str = Field(description="a timm model name")
    resolution: Count = Field(ge=16, description="pixels per side")
    epochs: Count = Field(description="passes over the training images")
    batch_size: Count = Field(ge=2, description="images per step; batch normalization needs two")
    lr: Rate = Field(description="learning rate of AdamW")
    seeds: Count = Field(description="classifiers trained")
    valid_fraction: Share = Field(description="of the synthetic images, stratified")
    test_fraction: Share = Field(description="ditto")
    images_per_caption: Count = Field(
        description="sampled for each test caption, for classify@scenes"
    )


class Report(Section):
    gallery_per_class: Count = Field(description="images a class, real and generated")
    review_tiles: int = Field(
        ge=2, multiple_of=2, description="tiles that an expert rates blind, half of them generated"
    )


class Params(Section):
    seed: int = Field(ge=0, lt=2**32, description="of every random number")
    classes: dict[LULC, list[str]] = Field(
        description="LULC class -> scenes that show it; [] = none in this imagery"
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

    @model_validator(mode="after")
    def _consistent(self):
        scenes = [s for names in self.classes.values() for s in names]
        if twice := sorted({s for s in scenes if scenes.count(s) > 1}):
            raise ValueError(f"classes: {twice[0]} stands there twice; a scene shows one class")
        if missing := [c for c in LULC_CLASSES if c not in self.classes]:
            raise ValueError(
                f"classes: {missing[0]} is missing (write {missing[0]}: [] when the imagery has none)"
            )
        kinds = {source: value.partition(":")[0] for source, value in self.fetch_model}
        if wrong := [role for role, kind in kinds.items() if kind == "arxiv"]:
            raise ValueError(f"fetch_model.{wrong[0]}: arxiv: is for papers")
        if self.fetch_papers.source == "none" or self.fetch_imagery.source.startswith(
            ("none", "arxiv:")
        ):
            raise ValueError(
                "fetch_papers.source, fetch_imagery.source: the pipeline needs papers (embedded, path:, hub:, arxiv:) "
                "and imagery (embedded, path:, hub:)"
            )
        if missing := [role for role in ("language", "embedder") if kinds[role] == "none"]:
            raise ValueError(f"fetch_model.{missing[0]}: none: the pipeline needs one")
        if self.train_base.source == "base" and kinds["diffusion"] == "none":
            raise ValueError(
                "fetch_model.diffusion: none leaves train_base.source: base nothing to start from; say scratch"
            )
        if self.fetch_imagery.source == "embedded" and self.fetch_imagery.max_images is None:
            raise ValueError(
                "fetch_imagery.max_images: null: say how many tiles the embedded renderer makes"
            )
        if self.encode.base_domain.startswith("arxiv:"):
            raise ValueError("encode.base_domain: arxiv: is for papers")
        if "scene" not in self.features.extractors or len(set(self.features.extractors)) < len(
            self.features.extractors
        ):
            raise ValueError(
                "features.extractors: each once, and scene among them: agreement is measured in its features"
            )
        if kinds["vision"] == "none" and self.features.extractors != ["scene"]:
            raise ValueError(
                "features.extractors: all but scene need fetch_model.vision, which is none"
            )
        pairs = [
            (self.prompt.writer, self.prompt.technique),
            *((pair.writer, pair.technique) for pair in self.prompt.compare),
        ]
        if kinds["writer"] == "none" and any(writer == "huggingface" for writer, _ in pairs):
            raise ValueError("prompt.writer: huggingface needs fetch_model.writer, which is none")
        if not (self.prompt.openai_base_url and self.prompt.openai_model) and any(
            writer == "openai" for writer, _ in pairs
        ):
            raise ValueError(
                "prompt.openai_base_url, prompt.openai_model: the openai writer needs both"
            )
        for writer, technique in pairs:
            if technique not in TECHNIQUES[writer]:
                raise ValueError(
                    f"prompt.technique: the {writer} writer knows {', '.join(TECHNIQUES[writer])}, not {technique}"
                )
        if missing := [name for name in LULC_CLASSES if name not in self.prompt.per_class]:
            raise ValueError(f"prompt.per_class: {missing[0]} is missing")
        if self.index_rag.overlap_tokens >= self.index_rag.passage_tokens:
            raise ValueError("index_rag.overlap_tokens: must be less than passage_tokens")
        if self.finetune_sd.zero_terminal_snr and self.sampling.scheduler == "pndm":
            raise ValueError(
                "sampling.scheduler: pndm can't start from pure noise, as finetune_sd.zero_terminal_snr asks; use ddim or dpm"
            )
        if self.finetune_sd.zero_terminal_snr and self.finetune_sd.min_snr_gamma is not None:
            raise ValueError(
                "finetune_sd.min_snr_gamma: gives pure noise, which zero_terminal_snr is for, no weight; say null"
            )
        if self.classifier.valid_fraction + self.classifier.test_fraction >= 1:
            raise ValueError("classifier: valid_fraction + test_fraction leave nothing to train on")
        return self


# Old key -> new key.
RENAMED = {
    "encode.normalisation": "encode.normalization",
    "finetune_sd.optimiser": "finetune_sd.optimizer",
}


class _Loader(yaml.SafeLoader):
    """PyYAML's, which would take the last of two equal keys."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]} stands there twice", node.value[0][0].start_mark
            )
        return super().construct_mapping(node, deep)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a whole params file. Faults are printed one per line, then the process exits with code 1."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as fault:  # ValueError: no UTF-8, or a date such as 2026-13-01
        sys.exit(f"{path}: cannot be read: {' '.join(str(fault).split())}")
    if not isinstance(values, dict):
        sys.exit(f"{path}: expected sections, found {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as fault:
        # An old key is told once, as the old one, not also as the missing new one.
        renamed = {new for old, new in RENAMED.items() if _holds(values, old)}
        errors = [error for error in fault.errors() if _key(error) not in renamed]
        sys.exit("\n".join(f"{path}: {_explain(error)}" for error in errors))


def _key(error: dict) -> str:
    return ".".join(str(part) for part in error["loc"] if part != "[key]")


def _holds(values: dict, key: str) -> bool:
    section, _, name = key.partition(".")
    return isinstance(values.get(section), dict) and name in values[section]


def _explain(error: dict) -> str:
    """One line: the key, the value, what is allowed and, for an unknown key, the nearest valid name."""
    where = [part for part in error["loc"] if part != "[key]"]
    key = _key(error)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        if key in RENAMED:
            return f"{key}: is named {RENAMED[key]} now"
        allowed = list(_fields(where[:-1]))
        near = difflib.get_close_matches(str(where[-1]), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing ({_fields(where[:-1])[where[-1]].description or 'a section'})"
    if not key:
        return message
    return f"{key}: {message.replace('Input should', 'should')}, not {error['input']!r}"


def _fields(where: list) -> dict:
    """The model fields of the section that `where` leads to."""
    model = Params
    for part in where:
        annotation = model.model_fields[part].annotation if part in model.model_fields else model
        model = (
            annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel)
            else Pair
        )
    return model.model_fields


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m stages.params", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", nargs="?", default="params.yaml", help="default: params.yaml")
    load(parser.parse_args().file)
