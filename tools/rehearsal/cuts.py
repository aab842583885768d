"""What a rehearsal cuts of a scale's params, and how much work a stage then does.

Counts are cut: images, prompts, steps, repetitions. Widths, resolutions and code paths stay.
"""

import math
from copy import deepcopy
from fractions import Fraction
from typing import Any

from stages.common.class_balance import share_among_classes, share_among_prompts

Params = dict[str, Any]
Counts = dict[str, int]  # train, valid, test, figures -> images

# Values of a rehearsal, where the scale has larger ones. Some are the fewest that a stage accepts.
CUT = {
    "fetch_imagery.max_images": 96,
    "train_base.vae_steps": 10,
    "train_base.decoder_steps": 10,
    "train_base.text_steps": 10,
    "train_scene.epochs": 2,
    "finetune_llm.steps": 6,
    "prompt.per_class": 3,
    "prompt.compare_count": 1,
    "encode.base_images": 64,
    "finetune_sd.warmup_steps": 0,
    "finetune_sd.checkpoint_steps": 6,
    "finetune_sd.validation_images": 16,
    "finetune_sd.grid_captions": 1,
    "generate.images_per_prompt": 2,
    "fid.standard_min_n": 4,
    "fid.paper_n": 4,
    "classifier.epochs": 2,
    "classifier.images_per_caption": 1,
}
# Further cuts where a large diffusion model runs on a CPU.
CUT_LARGE_ON_CPU = {
    "finetune_llm.steps": 1,
    "finetune_llm.batch_size": 1,
    "prompt.per_class": 2,
    "encode.batch_size": 1,
    "encode.variants": 2,
    "finetune_sd.batch_size": 1,
    "finetune_sd.gradient_accumulation": 1,
    "finetune_sd.validation_images": 1,
    "finetune_sd.checkpoint_steps": 2,
    "finetune_sd.grid_steps": 1,
    "generate.images_per_prompt": 1,
    "fid.subsets": 4,
    "fid.paper_draws": 2,
    "features.batch_size": 4,
    "sampling.batch_size": 1,
    "sampling.steps": 1,
    "classifier.epochs": 1,
    "train_base.batch_size": 2,
    "train_base.vae_steps": 1,
    "train_base.decoder_steps": 1,
    "train_base.text_steps": 1,
    "train_scene.epochs": 1,
}
TRAINING_STEPS = 12  # optimizer steps of finetune_sd
TRAINING_STEPS_LARGE_ON_CPU = 2
CLASSES_LARGE_ON_CPU = 2  # that get prompts; a classifier needs two
HELD_OUT = {"valid": 16, "test": 24}  # images, where the scale gives a number of them
HELD_OUT_LARGE_ON_CPU = 4  # images, and as many of the training split
SHARE_LARGE_ON_CPU = 0.25  # at most, where the scale gives a share: most images are left to train
# UNet passes per caption and step of the grid: four images, each with and without the caption
# (stages/diffusion/validation.py).
GRID_PASSES = 4 * 2
# Decoding an image costs about as much as so many guided steps (SD v1.5: 2.5 and 1.6 TFLOP).
DECODING_STEPS = 1.5
VAE_STEP = 8  # a step of the VAE takes as long as so many of the text encoder (rsicd, on a CPU)
TRAINING_PASSES = 3  # forward passes that a training step costs: backward counts as two
# Bytes of a checkpoint per trained weight: fp32 weights, as much for their moving average, and the
# optimizer's state. The best checkpoint holds weights alone.
WEIGHT_BYTES = 4
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}
PRECISIONS = ("sampling.precision", "encode.precision", "finetune_sd.precision")


def get(params: Params, key: str) -> Any:
    section, name = key.split(".")
    return params[section][name]


def put(params: Params, key: str, value: Any) -> None:
    section, name = key.split(".")
    params[section][name] = value


def cut_params(params: Params, large_on_cpu: bool, precisions: tuple[str, ...]) -> Params:
    """Cut the counts of a scale.

    Args:
        params: the values of params.yaml at the scale.
        large_on_cpu: whether its diffusion model is large, and there is no GPU.
        precisions: those that the device computes with, the best stand-in first.

    Returns:
        The params of the rehearsal.
    """
    cut = deepcopy(params)
    values: dict[str, Any] = CUT | (CUT_LARGE_ON_CPU if large_on_cpu else {})
    for key, value in values.items():
        put(cut, key, smaller(get(params, key), value))
    cut_held_out(params["fetch_imagery"], cut["fetch_imagery"], large_on_cpu)
    balance = cut["generate"]["balance"]
    if isinstance(balance, dict) and "to" in balance:
        # At most as many images of a class as its few prompts would have without `balance`.
        few = values["prompt.per_class"] * values["generate.images_per_prompt"]
        balance["to"] = min(balance["to"], few)
    if large_on_cpu:
        cut["prompt"]["per_class"] = few_classes(cut)
    for key in PRECISIONS:
        if get(params, key) not in precisions:
            put(cut, key, precisions[0])
    return cut


def cut_held_out(full: Params, cut: Params, large_on_cpu: bool) -> None:
    """Cut the splits that are carved out of the training images.

    Args:
        full: fetch_imagery at the scale.
        cut: the same of the rehearsal; changed in place.
        large_on_cpu: as for `cut_params`.
    """
    if not large_on_cpu:
        for split, images in HELD_OUT.items():
            if full[split] >= 1:
                cut[split] = min(full[split], images)
        return
    # Without a name a split may still be the source's own: then it has some images more.
    carved = [split for split in HELD_OUT if full["splits"][split] is None]
    for split in carved:
        limit = HELD_OUT_LARGE_ON_CPU if full[split] >= 1 else SHARE_LARGE_ON_CPU
        cut[split] = min(full[split], limit)
    cut["max_images"] = smaller(full["max_images"], HELD_OUT_LARGE_ON_CPU * (1 + len(carved)))


def few_classes(params: Params) -> dict[str, int]:
    """The prompts of the first classes that get some, and none of the others.

    Classes that have scenes come first: a classifier needs tiles of two.
    """
    counts = prompts_per_class(params)
    with_prompts = [name for name in params["classes"] if counts[name]]
    with_prompts.sort(key=lambda name: not params["classes"][name])
    few = with_prompts[:CLASSES_LARGE_ON_CPU]
    return {name: counts[name] if name in few else 0 for name in params["classes"]}


def smaller(value: Any, limit: int) -> Any:
    """The smaller of both; of a mapping (prompts of each class) value by value; null is all."""
    if isinstance(value, dict):
        return {name: min(count, limit) for name, count in value.items()}
    return limit if value is None else min(value, limit)


def changes(before: Params, after: Params) -> dict[str, str]:
    """Key -> `before -> after` of the values that differ."""
    differing = {}
    for section, values in before.items():
        if not isinstance(values, dict) or section not in after:
            continue
        for name, value in values.items():
            now = after[section].get(name)
            if now != value:
                differing[f"{section}.{name}"] = f"{show(value)} -> {show(now)}"
    return differing


def show(value: Any) -> str:
    """A value in a few letters; of numbers per class their sum."""
    if isinstance(value, dict) and set(value) == {"to"}:  # generate.balance
        return f"{value['to']} of each class"
    if isinstance(value, dict) and all(isinstance(number, int) for number in value.values()):
        return f"{sum(value.values())} in all"
    return "all" if value is None else str(value)


def fit_training(params: Params, images: Counts, large_on_cpu: bool) -> None:
    """Cut the epochs of fine-tuning to a few steps, now that the number of images is known."""
    config = params["finetune_sd"]
    steps = TRAINING_STEPS_LARGE_ON_CPU if large_on_cpu else TRAINING_STEPS
    per_step = config["batch_size"] * config["gradient_accumulation"]
    # A little less than a whole number: it is rounded up.
    config["epochs"] = min(config["epochs"], round((steps - 0.01) * per_step / images["train"], 6))


# The work of each stage.


def count_prompts(params: Params) -> int:
    """The number of prompts of all classes."""
    return sum(prompts_per_class(params).values())


def prompts_per_class(params: Params) -> dict[str, int]:
    """The number of prompts of each class; 0: the class is left out."""
    per_class = params["prompt"]["per_class"]
    return per_class if isinstance(per_class, dict) else dict.fromkeys(params["classes"], per_class)


def compared_prompts(params: Params) -> int:
    config = params["prompt"]
    classes = sum(count > 0 for count in prompts_per_class(params).values())
    return len(config["compare"]) * config["compare_count"] * classes


def kept_per_class(params: Params) -> dict[str, int]:
    """The number of images of each class with prompts in the synthetic data set."""
    config = params["generate"]
    # `like: real` needs numbers of tiles; the total doesn't depend on them.
    tiles = dict.fromkeys(params["classes"], 1)
    counts = prompts_per_class(params)
    return share_among_classes(config["balance"], counts, config["images_per_prompt"], tiles)


def count_kept(params: Params) -> int:
    """The number of images of the synthetic data set."""
    return sum(kept_per_class(params).values())


def count_drawn(params: Params) -> int:
    """The number of images that `generate` draws, rounded up for each prompt as it does."""
    keep = params["generate"]["keep"]
    draw = Fraction(str(keep["draw"])) if keep else 1
    counts = prompts_per_class(params)
    return sum(
        math.ceil(images * draw)
        for name, of_class in kept_per_class(params).items()
        for images in share_among_prompts(of_class, counts[name])
    )


def pad(images: int, batch_size: int) -> int:
    """Images with those that fill the last batch."""
    return math.ceil(images / batch_size) * batch_size


def guided_steps(params: Params, images: int) -> float:
    """Guided steps of drawing so many images, their decoding included."""
    steps = params["sampling"]["steps"] + DECODING_STEPS
    return pad(images, params["sampling"]["batch_size"]) * steps


def training_steps(params: Params, images: Counts) -> int:
    config = params["finetune_sd"]
    per_step = config["batch_size"] * config["gradient_accumulation"]
    return math.ceil(config["epochs"] * images["train"] / per_step)


def base_images(params: Params) -> int:
    """The number of images of the base model's own domain, at most."""
    config = params["encode"]
    return 0 if config["base_domain"] == "none" else config["base_images"]


def measuring_passes(params: Params, images: Counts) -> int:
    """UNet passes of the losses and the sample grid that are measured at a checkpoint."""
    config = params["finetune_sd"]
    held_out = min(config["validation_images"], images["valid"]) + base_images(params)
    return held_out + config["grid_captions"] * config["grid_steps"] * GRID_PASSES


def training_passes(params: Params, images: Counts) -> int:
    """UNet passes of fine-tuning from its first step on: training, and measuring at checkpoints."""
    config = params["finetune_sd"]
    steps = training_steps(params, images)
    per_step = config["batch_size"] * config["gradient_accumulation"]
    measured = count_checkpoints(params, images) * measuring_passes(params, images)
    return TRAINING_PASSES * steps * per_step + measured


def count_checkpoints(params: Params, images: Counts) -> int:
    """The number of checkpoints of fine-tuning."""
    return math.ceil(training_steps(params, images) / params["finetune_sd"]["checkpoint_steps"])


def checkpoint_bytes(params: Params, images: Counts) -> int:
    """Bytes per trained weight that the resume cache of fine-tuning holds at most.

    When a new best checkpoint is written, the one that it replaces and the best before it are
    still there (stages/diffusion/checkpoints.py).
    """
    config = params["finetune_sd"]
    weights = WEIGHT_BYTES * (2 if config["ema_decay"] else 1)
    written = count_checkpoints(params, images)
    whole = min(written, config["keep_checkpoints"] + 1)
    return whole * (weights + OPTIMIZER_BYTES[config["optimizer"]]) + WEIGHT_BYTES * min(written, 2)


def classifier_images(params: Params, images: int) -> int:
    """Images that the training of all seeds sees, with the padding of the last batch."""
    config = params["classifier"]
    return config["seeds"] * config["epochs"] * pad(images, config["batch_size"])


def work(stage: str, params: Params, images: Counts) -> tuple[str, float]:
    """Return the unit of a stage's work, and how many there are; ("", 0): its time is fixed."""
    splits = [images[split] for split in ("train", "valid", "test")]
    encode_batch = params["encode"]["batch_size"]
    features_batch = params["features"]["batch_size"]
    copies = params["classifier"]["images_per_caption"]
    match stage:
        case "fetch_imagery":
            return "images", sum(splits)
        case "train_base" if params["train_base"]["source"] != "base":
            config = params["train_base"]
            vae_steps = config["vae_steps"] + config["decoder_steps"]
            return "steps", VAE_STEP * vae_steps + config["text_steps"]
        case "train_scene" if params["train_scene"]["source"] == "scratch":
            return "images", params["train_scene"]["epochs"] * images["train"]
        case "finetune_llm":
            config = params["finetune_llm"]
            return "sequences", config["steps"] * config["batch_size"]
        case "prompt":
            return "prompts", count_prompts(params) + compared_prompts(params)
        case "encode":
            training = params["encode"]["variants"] * pad(images["train"], encode_batch)
            measured = [images["valid"], base_images(params)]
            return "encodings", training + sum(pad(count, encode_batch) for count in measured)
        case "finetune_sd":
            passes = training_passes(params, images) + measuring_passes(params, images)
            return "UNet passes", passes
        case "sample@base":
            return "guided steps", guided_steps(params, images["test"])
        case "sample@tuned":
            return "guided steps", guided_steps(params, images["test"] * copies)
        case "sample@figures":
            return "guided steps", guided_steps(params, images["figures"])
        case "generate":
            return "guided steps", guided_steps(params, count_drawn(params))
        case "select":
            return "images", count_drawn(params)
        case "features@real":
            test = (1 + params["features"]["padded"]) * pad(images["test"], features_batch)
            return "images", pad(images["train"], features_batch) + test
        case "features@base" | "features@tuned":
            return "images", pad(images["test"], features_batch)
        case "features@synthetic":
            return "images", pad(count_kept(params), features_batch)
        case "fid":
            return "halvings", params["fid"]["subsets"] + params["fid"]["paper_draws"]
        case "ceiling":
            # As many real tiles as there are images of each label set, all of the training split.
            wanted = [count_kept(params), images["test"] * copies]
            drawn = [min(count, images["train"]) for count in wanted]
            return "images", sum(classifier_images(params, count) for count in drawn)
        case "classify@lulc":
            return "images", classifier_images(params, count_kept(params))
        case "classify@scenes":
            return "images", classifier_images(params, images["test"] * copies)
    return "", 0


def stored_images(stage: str, params: Params, images: Counts) -> int:
    """The number of images that a stage stores; 0: its outputs don't grow with images."""
    match stage:
        case "fetch_imagery":
            return images["train"] + images["valid"] + images["test"]
        case "encode":
            training = params["encode"]["variants"] * images["train"]
            return training + images["valid"] + base_images(params)
        case "sample@base" | "features@base" | "features@tuned":
            return images["test"]
        case "sample@tuned":
            return images["test"] * params["classifier"]["images_per_caption"]
        case "sample@figures":
            return images["figures"]
        case "generate":
            return count_drawn(params)
        case "select" | "features@synthetic":
            return count_kept(params)
        case "features@real":
            return images["train"] + (1 + params["features"]["padded"]) * images["test"]
    return 0


def work_in_bars(stage: str, params: Params, images: Counts) -> float:
    """The part of a stage's work that its progress bars measure."""
    match stage:
        case "finetune_sd":
            return training_passes(params, images)
        case "prompt":
            return count_prompts(params)
    return work(stage, params, images)[1]


# Stages without a progress bar run twice, the second time with more of these: the difference is
# the time of a unit.
SECOND_RUN = {
    "ceiling": "classifier.epochs",
    "classify@lulc": "classifier.epochs",
    "classify@scenes": "classifier.epochs",
}
SECOND_RUN_FACTOR = 3
