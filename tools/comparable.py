"""Whether a metric of two runs compares, by `measured_on` in each run's metrics/context.json."""

# Parts of a description that hold a hash -> the words for what it is the hash of.
HASHED = {
    "test_tiles": "test tiles",
    "test_captions": "test captions",
    "validation_tiles": "validation tiles",
    "train_tiles": "training tiles",
    "floor_tiles": "training tiles",
    "generated_images": "generated test images",
    "classes": "scenes of the classes",
    "class_words": "words of the classes",
    "images_per_class": "numbers of images per class",
    "prompts_per_class": "numbers of prompts per class",
    "extractor": "weights of the feature extractor",
    "start_weights": "start weights of the classifier",
    "latent_space": "VAE, text encoder or noise schedule",
    "held_out_text": "held-out text",
    "papers": "papers",
    "passages": "passages",
    "embedder": "embedder",
}


def find_description(measured_on: dict[str, dict], metric: str) -> dict | None:
    """Return what describes a metric; None where nothing does.

    That is the entry of the metric or, if it has none, of the smallest group that it is in.
    An entry covers its interval, too: `llm.perplexity` that of `llm.perplexity_lo`. Its part
    `floor_tiles` describes floors alone.
    """
    keys = [key for key in measured_on if f"{metric}.".startswith((f"{key}.", f"{key}_"))]
    if not keys:
        return None
    description = measured_on[max(keys, key=len)]
    is_floor = "_floor" in metric
    return {part: description[part] for part in description if is_floor or part != "floor_tiles"}


def describe_difference(new: dict, old: dict) -> str:
    """Say which parts of two descriptions differ, such as "other test tiles, n 64, was 256".

    It is "" where the metrics compare. The device may differ: `describe_devices` names it.
    """
    differences = []
    for part in dict.fromkeys([*new, *old]):  # the parts of both, in order, each once
        if part == "device" or new.get(part) == old.get(part):
            continue
        if part in HASHED:
            differences.append(f"other {HASHED[part]}")
        else:
            name = part.removesuffix("_px").replace("_", " ")
            unit = " px" if part.endswith("_px") else ""
            values = f"{new.get(part, 'none')}{unit}, was {old.get(part, 'none')}"
            differences.append(f"{name} {values}")
    return "; ".join(differences)


def describe_devices(new: dict, old: dict) -> list[str]:
    """Say which stages trained on another device or number of threads.

    Such as "finetune_sd on gpu, was cpu with 2 threads".
    """
    new_devices = new.get("device", {})
    old_devices = old.get("device", {})
    return [
        f"{stage} on {device}, was {old_devices[stage]}"
        for stage, device in new_devices.items()
        if stage in old_devices and old_devices[stage] != device
    ]
