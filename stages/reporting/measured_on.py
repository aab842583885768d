"""What each metric of a run was measured on: the data that must be equal for two runs to compare.

It is written to metrics/context.json as `measured_on`, for metrics and for groups of metrics:
`fid.scene.standard` describes all of `fid.scene.standard.*`. tools/comparable.py reads it.
The model that is measured is no part of it: it is what two runs compare.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from stages.common.artifacts import digest, fingerprint, read_json, read_rows, stream_rows
from stages.params import Classifier, Encode, FinetuneLLM, FinetuneSD
from stages.reporting import image_grids
from stages.reporting.context import RunContext, weight_digests
from stages.reporting.grids import image_width

VALIDATION = Path("data/imagery/valid")
CHUNKS = Path("data/chunks.parquet")
PASSAGES = Path("models/index/passages.parquet")
START = Path("models/start")
TILE = ["filename", "scene", "image"]
CAPTIONS = ["filename", "captions"]
# Metrics of prompts that compare them, or passages, with the words of the classes.
ON_CLASS_WORDS = ("class_agreement", "retrieval_top3_about_class")


def measured_on(
    metrics: dict[str, dict],
    context: RunContext,
    classes: dict[str, list[str]],
    words: Mapping[str, tuple],
    encode: Encode,
    finetune_sd: FinetuneSD,
    finetune_llm: FinetuneLLM,
    classifier: Classifier,
) -> dict[str, dict]:
    """Describe every metric of a run.

    Args:
        metrics: file name without `.json` -> content of metrics/*.json.
        context: what identifies the run.
        classes: scenes of each class that is used.
        words: what is said of each class; further classes may be in it.
        encode, finetune_sd, finetune_llm, classifier: the sections of the params of these names.

    Returns:
        Key of a metric or of a group of metrics -> its description. `device` names the stages that
        trained what is measured, and what they computed on.
    """
    test = {
        "test_tiles": hash_rows(image_grids.REAL, TILE),
        "tiles_px": image_width(image_grids.REAL),
    }
    training_names = [row["filename"] for row in read_rows(image_grids.TRAINING, ["filename"])]
    source_images = context.sources["imagery"].get("images_sha256", "")
    train = {"train_tiles": fingerprint({source_images: training_names}, [])}
    captions = {"test_captions": hash_rows(image_grids.REAL, CAPTIONS)}
    scenes_of_classes = {label: sorted(scenes) for label, scenes in classes.items()}
    mapping = {"classes": fingerprint(scenes_of_classes, [])}
    review = metrics["review"]
    return {
        "corpus": {"papers": fingerprint(context.sources["papers"]["files"], [])},
        "review": test | {"n": review["ratings"], "experts": review["experts"]},
        **language_groups(metrics, finetune_llm),
        **prompt_groups(metrics, context, {label: words[label] for label in classes}),
        **training_groups(metrics, context, encode, finetune_sd),
        **distance_groups(metrics, context, test | captions, train),
        **image_groups(metrics, context, test, train, mapping),
        **selection_groups(metrics["select"], context),
        **agreement_groups(metrics, context, test | captions, mapping),
        **classifier_groups(
            "lulc", image_grids.SYNTHETIC, metrics, context, test | mapping, train, classifier
        ),
        **classifier_groups("scenes", image_grids.TUNED, metrics, context, test, train, classifier),
    }


def hash_rows(folder: Path, columns: list[str]) -> str:
    """Return a hash (16 hex digits) of columns of a folder of shards; of images, their bytes."""
    sha256 = hashlib.sha256()
    for row in stream_rows(folder, columns):
        image = row.pop("image", {"bytes": b""})
        sha256.update(json.dumps(row, sort_keys=True).encode())
        sha256.update(hashlib.sha256(image["bytes"]).digest())
    return sha256.hexdigest()[:16]


def device(metrics: dict[str, dict], **stages: str) -> dict[str, dict[str, str]]:
    """Return {"device": {stage: "gpu" or "cpu with 2 threads"}}.

    Args:
        metrics: file name without `.json` -> content of metrics/*.json.
        stages: stage -> name of its metrics file.
    """
    computed_on = {}
    for stage, file in stages.items():
        threads = metrics[file]["cpu_threads"]
        plural = "s" if threads > 1 else ""
        computed_on[stage] = f"cpu with {threads} thread{plural}" if threads else "gpu"
    return {"device": computed_on}


def language_groups(metrics: dict[str, dict], finetune_llm: FinetuneLLM) -> dict[str, dict]:
    """Describe metrics/llm.json."""
    llm = metrics["llm"]
    chunks = pq.read_table(CHUNKS, columns=["paper", "text", "split"]).to_pylist()
    held_out = [[row["paper"], row["text"]] for row in chunks if row["split"] == "test"]
    text = {
        "held_out_text": fingerprint({"text": held_out}, []),
        "n": llm.get("n", 0),
        "context_length": finetune_llm.context,
        **device(metrics, finetune_llm="llm"),
    }
    # Perplexity is per token, so it does not compare across tokenizers.
    return {"llm": text | {"tokens": llm.get("tokens", 0)}, "llm.bits_per_character": text}


def prompt_groups(
    metrics: dict[str, dict], context: RunContext, words: dict[str, tuple]
) -> dict[str, dict]:
    """Describe metrics/prompts.json. words: what is said of each class that is used."""
    passages = pq.read_table(PASSAGES, columns=["paper", "page", "text"]).to_pylist()
    (vector,) = pq.read_table(PASSAGES, columns=["vector"])["vector"].slice(0, 1).to_pylist()
    embedder = {"files": context.sources["embedder"]["files"], "dimensions": len(vector)}
    retrieval = {
        "passages": fingerprint({"passages": passages}, []),
        "embedder": fingerprint(embedder, []),
    }
    prompts = {name: counts["prompts"] for name, counts in sorted(context.class_counts.items())}
    # The last field, the scenes, says which prompts are written, not what they are compared with.
    compared = {label: said[:-1] for label, said in words.items()}
    class_words = {"class_words": fingerprint(compared, [])}
    groups = {}
    for writer, techniques in metrics["prompts"].items():
        for technique, values in techniques.items():
            key = f"prompts.{writer}.{technique}"
            group = {"n": values["count"], "prompts_per_class": prompts, **retrieval}
            if writer == "domain":
                group |= device(metrics, finetune_llm="llm")
            groups[key] = group
            on_words = [name for name in ON_CLASS_WORDS if name in values]
            groups |= {f"{key}.{name}": group | class_words for name in on_words}
    return groups


def training_groups(
    metrics: dict[str, dict], context: RunContext, encode: Encode, finetune_sd: FinetuneSD
) -> dict[str, dict]:
    """Describe metrics/diffusion.json."""
    latents = {
        "latent_space": hash_latent_space(context.sources["diffusion"]),
        "normalization": encode.normalization,
        "zero_terminal_snr": finetune_sd.zero_terminal_snr,
        "tiles_px": image_width(VALIDATION),
        **device(metrics, finetune_sd="diffusion"),
    }
    tiles = {"validation_tiles": hash_rows(VALIDATION, [*TILE, "captions"])}
    count = len(read_rows(VALIDATION, ["filename"]))
    return {
        "diffusion": latents | tiles | {"n": min(finetune_sd.validation_images, count)},
        "diffusion.base_domain_loss": latents
        | {"base_domain": encode.base_domain, "n": encode.base_images},
        "diffusion.diversity": {
            **latents,
            **tiles,
            "n": min(finetune_sd.grid_captions, count),
            "steps": finetune_sd.grid_steps,
        },
    }


def hash_latent_space(source: dict) -> str:
    """Return a hash (16 hex digits) of the start model without its UNet.

    Its VAE, text encoder and noise schedule decide what a loss is a loss of.

    Args:
        source: SOURCE.json of the fetched diffusion model.
    """
    if read_json(START / "start.json")["folder"] == str(START):  # trained by this run
        parts = ("vae", "text_encoder", "tokenizer", "scheduler")
        return digest(*(START / part for part in parts))
    files = {
        name: sha256 for name, sha256 in source["files"].items() if not name.startswith("unet/")
    }
    return fingerprint(files, [])


def distance_groups(
    metrics: dict[str, dict], context: RunContext, test: dict, train: dict
) -> dict[str, dict]:
    """Describe metrics/fid.json."""
    trained = device(metrics, finetune_sd="diffusion")
    groups = {}
    for extractor, protocols in metrics["fid"].items():
        for protocol, values in protocols.items():
            groups[f"fid.{extractor}.{protocol}"] = {
                **test,
                "n": values["n"],
                **({"draws": values["draws"]} if "draws" in values else {}),
                "extractor": hash_extractor(extractor, context),
                "generated_px": context.sampling["resolution"],
                "floor_tiles": train["train_tiles"],
                **trained,
            }
    return groups


def hash_extractor(name: str, context: RunContext) -> str:
    """Return a hash (16 hex digits) of a feature extractor; pixels are the extractor `pixels`."""
    if name == "scene":
        return digest("models/scene")
    return fingerprint({name: weight_digests(context.sources["vision"], f"{name}/")}, [])


def image_groups(
    metrics: dict[str, dict], context: RunContext, test: dict, train: dict, mapping: dict
) -> dict[str, dict]:
    """Describe metrics/images.json.

    Args:
        metrics: file name without `.json` -> content of metrics/*.json.
        context: what identifies the run.
        test: identifies the real test tiles.
        train: identifies the real training tiles.
        mapping: identifies the scenes of each class.
    """
    images = metrics["images"]
    shared = {
        **test,
        "generated_px": context.sampling["resolution"],
        **device(metrics, finetune_sd="diffusion"),
    }
    groups = {}
    for space, by_image_set in images.items():
        for image_set in by_image_set:
            group = shared | {"n": images["pixels"][image_set]["n"]}
            if space != "compression_artifacts":
                group |= train | {"extractor": hash_extractor(space, context)}
            if image_set == "synthetic":
                # Judged by test tiles in its mix of classes.
                group |= mapping | images_per_class(context)
            groups[f"images.{space}.{image_set}"] = group
    return groups


def images_per_class(context: RunContext) -> dict[str, dict[str, int]]:
    return {"images_per_class": dict(sorted(context.image_counts.items()))}


def agreement_groups(
    metrics: dict[str, dict], context: RunContext, test: dict, mapping: dict
) -> dict[str, dict]:
    """Describe metrics/caption_agreement.json. mapping: identifies the scenes of each class."""
    agreement = metrics["caption_agreement"]
    shared = {
        "generated_px": context.sampling["resolution"],
        **device(metrics, finetune_sd="diffusion"),
    }
    by_scene = shared | {"extractor": hash_extractor("scene", context)}
    groups = {"caption_agreement": test | by_scene | {"n": agreement["n"]}}
    if "class_agreement" in agreement:
        groups["caption_agreement.class_agreement"] = {
            **mapping,
            **by_scene,
            "n": agreement["class_agreement_n"],
            **images_per_class(context),
        }
    if "clip_score" in agreement:
        by_clip = shared | {"extractor": hash_extractor("clip", context)}
        groups["caption_agreement.clip_score"] = test | by_clip | {"n": agreement["n"]}
    return groups


def selection_groups(selected: dict, context: RunContext) -> dict[str, dict]:
    """Describe metrics/select.json: how many images were drawn, and which classifier selected."""
    return {"select": {"extractor": hash_extractor("scene", context), "n": selected["drawn"]}}


def classifier_groups(
    key: str,
    generated: Path,
    metrics: dict[str, dict],
    context: RunContext,
    test: dict,
    train: dict,
    classifier: Classifier,
) -> dict[str, dict]:
    """Describe metrics/ceiling_<key>.json and metrics/classify_<key>.json.

    Args:
        key: lulc or scenes.
        generated: the generated images that the classifier is trained and tested on.
        metrics: file name without `.json` -> content of metrics/*.json.
        context: what identifies the run.
        test: identifies the real test tiles and their classes.
        train: identifies the real training tiles.
        classifier: the section of the params.
    """
    ceiling = metrics[f"ceiling_{key}"]
    scores = metrics[f"classify_{key}"]
    network = {
        "network": context.classifiers[key]["model"],
        "network_px": context.classifiers[key]["resolution"],
        "start_weights": fingerprint(weight_digests(context.sources["classifier"]), []),
        "seeds": scores["seeds"],
        "epochs": classifier.epochs,
        "batch_size": classifier.batch_size,
        "lr": classifier.lr,
        "valid_fraction": classifier.valid_fraction,
        "test_fraction": classifier.test_fraction,
    }
    on_real = test | network | {"n": scores["real_test"]["n"]}
    of_ceiling = train | {"n_train": ceiling["n_train"]}
    trained = {"finetune_sd": "diffusion", "classify": f"classify_{key}"}
    return {
        f"ceiling_{key}": {
            **on_real,
            **of_ceiling,
            "n": ceiling["n"],
            "seeds": ceiling["seeds"],
            **device(metrics, ceiling=f"ceiling_{key}"),
        },
        f"classify_{key}": on_real | device(metrics, **trained),
        f"classify_{key}.real_test.share_of_ceiling": {
            **on_real,
            **of_ceiling,
            **device(metrics, **trained, ceiling=f"ceiling_{key}"),
        },
        f"classify_{key}.synthetic_test": {
            "generated_images": hash_rows(generated, ["image"]),
            **network,
            "n": scores["synthetic_test"]["n"],
            **device(metrics, **trained),
        },
    }
