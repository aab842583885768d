"""The upload folders: what a repository on the Hugging Face hub would hold, file by file."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.common.artifacts import read_json, shard_paths, write_json, write_table
from stages.publishing.card import SYNTHETIC, card

# Repository name -> what is in it and what its card says. `path`: the output that is published.
KINDS = {
    "lulc-synthetic": {
        "type": "dataset",
        "path": "data/synthetic",
        "title": "Synthetic land use and land cover",
        "about": "Satellite-like images in seven land-use/land-cover classes, each drawn by a diffusion model from a written prompt. A row "
        "holds the image, its class, prompt, writer, seed and sampler settings: enough to draw it again.",
        "use": "Research on training with synthetic images: classifiers, pretraining, augmentation. Not for mapping, monitoring or any "
        "decision about a real place.",
        "params": ("seed", "classes", "prompt", "generate", "sampling"),
        "inputs": (
            "imagery",
            "papers",
            "diffusion model",
            "language model",
            "prompt writer",
            "passage embedder",
        ),
        "metrics": (
            "fid:scene.standard.fid",
            "caption_agreement:caption_agreement",
            "classify_lulc:synthetic_test.overall_accuracy",
            "classify_lulc:real_test.overall_accuracy",
        ),
        "data": {
            "pretty_name": "Synthetic land use and land cover",
            "task_categories": ["image-classification"],
            "tags": ["remote-sensing", "synthetic"],
            "language": ["en"],
        },
        "limits": SYNTHETIC + "There is one split: hold real images out to test on.",
    },
    "remote-diffusion": {
        "type": "model",
        "path": "models/diffusion",
        "title": "Remote Diffusion: text to satellite scene",
        "about": "A text-to-image diffusion model fine-tuned on captioned satellite tiles. "
        "`StableDiffusionPipeline.from_pretrained(...)` loads it.",
        "use": "Research on generated remote-sensing images. Its pictures are not observations: never show them as such.",
        "params": ("seed", "fetch_imagery", "train_base", "encode", "finetune_sd", "sampling"),
        "inputs": ("imagery", "diffusion model"),
        "metrics": (
            "diffusion:validation_loss",
            "fid:scene.standard.fid",
            "fid:scene.standard.kid_x1000",
            "fid:scene.standard.precision",
            "fid:scene.standard.recall",
            "caption_agreement:caption_agreement",
        ),
        "data": {
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["remote-sensing"],
            "language": ["en"],
        },
        "limits": SYNTHETIC,
    },
    "remote-llm": {
        "type": "model",
        "path": "models/llm",
        "title": "Remote-sensing language model",
        "about": "A causal language model fine-tuned (LoRA, merged into its base) on remote-sensing papers.",
        "use": "Research on domain adaptation and on writing prompts. It has no instruction tuning and states falsehoods fluently.",
        "params": ("seed", "scrape", "chunk", "finetune_llm"),
        "inputs": ("papers", "language model"),
        "metrics": ("llm:perplexity", "llm:bits_per_character"),
        "data": {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["remote-sensing"],
            "language": ["en"],
        },
        "limits": "It knows the text of its papers and no more; it can repeat passages of them. It is no source of facts.",
    },
    "lulc-classifier": {
        "type": "model",
        "path": "models/classifier/lulc",
        "title": "Land-cover classifier trained on synthetic images",
        "about": "An image classifier of seven land-cover classes that saw synthetic images only in training. `config.json` has "
        "the timm architecture, classes and normalization.",
        "use": "A measurement of the synthetic data set, not a product: compare its accuracy on real tiles with the ceiling.",
        "params": ("seed", "classes", "classifier"),
        "inputs": ("imagery", "papers", "diffusion model", "classifier's first weights"),
        "metrics": (
            "classify_lulc:real_test.overall_accuracy",
            "classify_lulc:synthetic_test.overall_accuracy",
            "ceiling_lulc:overall_accuracy",
        ),
        "data": {
            "library_name": "timm",
            "pipeline_tag": "image-classification",
            "tags": ["remote-sensing", "synthetic"],
        },
        "limits": SYNTHETIC + "A classifier trained on them inherits all of that.",
    },
}


def write(name: str, target: Path, commit: str, classes: list[str], merge) -> None:
    """Write the upload folder of a repository. `merge(folder)` writes the language model with its adapter merged in."""
    kind = KINDS[name]
    if kind["type"] == "dataset":
        data_set(Path(kind["path"]), target / "data", classes)
    elif name == "remote-llm":
        merge(str(target))
    else:
        shutil.copytree(kind["path"], target)
    write_json(
        target / "metrics.json",
        {
            path.stem: read_json(path)
            for path in sorted(Path("metrics").glob("*.json"))
            if path.stem != "context"
        },
    )
    shutil.copyfile("metrics/context.json", target / "metrics_context.json")
    (target / "README.md").write_text(card(kind, commit), encoding="utf-8")


def data_set(source: Path, target: Path, classes: list[str]) -> None:
    """The shards with their label as the hub's `ClassLabel`: a number, its name in the schema. One shard in memory at a time."""
    files = shard_paths(source)
    for number, path in enumerate(files):
        table = pq.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])
        features["info"]["features"]["label"] = {"_type": "ClassLabel", "names": classes}
        labels = pc.index_in(table["label"], pa.array(classes))
        table = table.set_column(
            table.schema.get_field_index("label"), "label", labels.cast(pa.int64())
        )
        write_table(
            target / f"train-{number:05d}-of-{len(files):05d}.parquet",
            table.replace_schema_metadata({"huggingface": json.dumps(features)}),
        )
