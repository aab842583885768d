"""The repositories that a run is published as on the Hugging Face hub, and what their cards say."""

from dataclasses import dataclass
from typing import Any, Literal

# Where a metric was measured: the dataset type of the hub's evaluation results -> its name.
EVALUATION_DATA = {
    "real-test": "held-out real tiles",
    "real-valid": "real validation tiles",
    "generated-test": "images generated from the captions of held-out real tiles",
    "synthetic": "these images, by the scene classifier of real tiles",
    "synthetic-pixels": "these images, by their pixels",
    "synthetic-test": "held-out synthetic images",
    "papers-test": "held-out papers",
}
# Types of metrics.
LOWER_IS_BETTER = ("loss", "fid", "kid_x1000", "near_copies", "perplexity", "bits_per_character")


@dataclass(frozen=True)
class Metric:
    """A metric that a card shows."""

    file: str  # metrics/<file>.json
    key: str  # its path in the file, dotted
    type: str  # the hub's word for it
    data: str  # a key of EVALUATION_DATA

    @property
    def better(self) -> str:
        """Which values are better: lower or higher ones."""
        return "lower" if self.type in LOWER_IS_BETTER else "higher"


@dataclass(frozen=True)
class Repository:
    """A repository on the hub."""

    type: Literal["dataset", "model"]
    path: str  # the output that is published
    title: str
    about: str  # {weights}: of `describe_weights`
    use: str  # what it is for, and what it is not for; {real_tiles}: of `describe_real_tiles`
    limits: str
    misuse: str  # what harm it can do, and how its images are marked; "" where it has none
    params: tuple[str, ...]  # sections of params.yaml that the card quotes
    inputs: tuple[str, ...]  # keys of stages.publishing.card.INPUTS that went into it
    metrics: tuple[Metric, ...]
    card_data: dict[str, Any]  # further arguments of DatasetCardData or ModelCardData


SYNTHETIC_INPUTS = (
    "imagery",
    "papers",
    "diffusion model",
    "language model",
    "prompt writer",
    "passage embedder",
)

SYNTHETIC_LIMITS = (
    "The images are synthetic: no place on Earth looks like this, there is no location and no "
    "time, and no measurement can be taken from them. A label is the class that was asked for, not "
    "what an expert saw. Rare scenes and fine textures fail first. A bias of the training tiles "
    "(region, season, sensor) is a bias of the images."
)

MISUSE = (
    "Synthetic satellite images can be passed off as observations: of damage, construction, crops "
    "or troops that never were. Don't publish them without the word synthetic, and don't use them "
    "as evidence. Each image that the pipeline draws says what it is: text chunks of its PNG hold "
    "the prompt, the seed, the sampler settings and the model's digest, and its XMP packet the "
    "IPTC's digital source type `trainedAlgorithmicMedia`. Whoever writes the image again can "
    "drop these, so a file without them is no proof of an observation."
)

FID = Metric("fid", "scene.standard.fid", "fid", "real-test")
CAPTION_AGREEMENT = Metric(
    "caption_agreement", "caption_agreement", "caption_agreement", "generated-test"
)
# Left out where the scene classifier selected the images.
CLASS_AGREEMENT = Metric("caption_agreement", "class_agreement", "class_agreement", "synthetic")
ACCURACY_ON_REAL = Metric("classify_lulc", "real_test.overall_accuracy", "accuracy", "real-test")
ACCURACY_ON_SYNTHETIC = Metric(
    "classify_lulc", "synthetic_test.overall_accuracy", "accuracy", "synthetic-test"
)
CEILING = Metric("ceiling_lulc", "overall_accuracy", "accuracy", "real-test")

# By their name on the hub.
REPOSITORIES = {
    "lulc-synthetic": Repository(
        type="dataset",
        path="data/synthetic",
        title="Synthetic land use and land cover",
        about="Satellite-like images of land-use/land-cover classes, each drawn by a "
        "diffusion model from a written prompt. A row holds the image, its class, prompt, writer, "
        "seed and sampler settings: enough to draw it again.",
        use="Research on training with synthetic images: classifiers, pretraining, augmentation. "
        "Not for mapping, monitoring or any decision about a real place.",
        limits=SYNTHETIC_LIMITS + " There is one split: hold real images out to test on.",
        misuse=MISUSE,
        params=("seed", "classes", "prompt", "generate", "sampling"),
        inputs=SYNTHETIC_INPUTS,
        metrics=(
            CLASS_AGREEMENT,
            ACCURACY_ON_SYNTHETIC,
            ACCURACY_ON_REAL,
            CEILING,
            Metric("images", "pixels.synthetic.memorized", "near_copies", "synthetic-pixels"),
        ),
        card_data={
            "pretty_name": "Synthetic land use and land cover",
            "task_categories": ["image-classification"],
            "tags": ["remote-sensing", "synthetic"],
            "language": ["en"],
        },
    ),
    "remote-diffusion": Repository(
        type="model",
        path="models/diffusion",
        title="Remote Diffusion: text to satellite scene",
        about="A text-to-image diffusion model fine-tuned on captioned satellite tiles. "
        "`StableDiffusionPipeline.from_pretrained(...)` loads it.",
        use="Research on generated remote-sensing images. Its images are not observations: never "
        "show them as such.",
        limits=SYNTHETIC_LIMITS,
        misuse=MISUSE,
        params=("seed", "fetch_imagery", "train_base", "encode", "finetune_sd", "sampling"),
        inputs=("imagery", "diffusion model"),
        metrics=(
            Metric("diffusion", "validation_loss", "loss", "real-valid"),
            FID,
            Metric("fid", "scene.standard.kid_x1000", "kid_x1000", "real-test"),
            Metric("fid", "scene.standard.precision", "precision", "real-test"),
            Metric("fid", "scene.standard.recall", "recall", "real-test"),
            CAPTION_AGREEMENT,
            Metric("images", "pixels.tuned.memorized", "near_copies", "generated-test"),
        ),
        card_data={
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["remote-sensing"],
            "language": ["en"],
        },
    ),
    "remote-llm": Repository(
        type="model",
        path="models/llm",
        title="Remote-sensing language model",
        about="A causal language model fine-tuned (LoRA, merged into its base) on remote-sensing "
        "papers.",
        use="Research on domain adaptation and on writing prompts. It has no instruction tuning "
        "and states falsehoods fluently.",
        limits="It knows the text of its papers and no more; it can repeat passages of them. It is "
        "no source of facts.",
        misuse="",
        params=("seed", "scrape", "chunk", "finetune_llm"),
        inputs=("papers", "language model"),
        metrics=(
            Metric("llm", "perplexity", "perplexity", "papers-test"),
            Metric("llm", "bits_per_character", "bits_per_character", "papers-test"),
        ),
        card_data={
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["remote-sensing"],
            "language": ["en"],
        },
    ),
    "lulc-classifier": Repository(
        type="model",
        path="models/classifier/lulc",
        title="Land-cover classifier trained on synthetic images",
        about="An image classifier of land-cover classes that saw synthetic images only in "
        "training. `config.json` has the timm architecture, classes and normalization.{weights}",
        use="A measurement of the synthetic data set, not a product: compare its accuracy on real "
        "tiles with the ceiling, that of the same network trained on {real_tiles}.",
        limits=SYNTHETIC_LIMITS + " A classifier trained on them inherits all of that.",
        misuse="",
        params=("seed", "classes", "classifier"),
        inputs=(*SYNTHETIC_INPUTS, "classifier's first weights"),
        metrics=(
            ACCURACY_ON_REAL,
            ACCURACY_ON_SYNTHETIC,
            CEILING,
        ),
        card_data={
            "library_name": "timm",
            "pipeline_tag": "image-classification",
            "tags": ["remote-sensing", "synthetic"],
        },
    ),
}
