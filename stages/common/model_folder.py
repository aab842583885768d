"""Model folders in their library's own layout: which files a role needs, what is missing, and the two pickles we accept.

Weights are safetensors. A `.bin`, `.ckpt` or `.pt` is a pickle, which runs code when read: it is never copied. Where the
world offers nothing else, the file is on `PICKLES` by SHA-256, read with `weights_only=True` and converted.
"""

import hashlib
import shutil
from pathlib import Path

from stages.common.artifacts import read_json, write_json
from stages.runtime.errors import exit_with_error

# SHA-256 -> name of the converted file. TorchGeo (torchgeo.models.ResNet18_Weights.SENTINEL2_RGB_MOCO) and torch-fidelity
# (URL_INCEPTION_V3) publish the first 8 digits, in the file names; the rest is as quoted by users who hashed the files.
PICKLES = {
    "e3a335e38d1d189ad3b0eba4be4004a9c52c5e846317b6737ac9f0fac57e1ac8": "model.safetensors",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "inception2048/model.safetensors",
}
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
TEXT = [
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
WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
UNET = [name.replace("model", "diffusion_pytorch_model", 1) for name in WEIGHTS]
DIFFUSION = {
    "unet": ["config.json", *UNET],
    "vae": ["config.json", *UNET],
    "text_encoder": ["config.json", *WEIGHTS],
    "tokenizer": TEXT,
    "scheduler": ["scheduler_config.json"],
}

# What a file says where the library saved it: without, its reader takes defaults, or ends in a traceback.
NAMED = {
    "model_index.json": ["_class_name", *DIFFUSION],
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

# Weights of a diffusion model that comes in half precision only.
HALF = [
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/model.fp16.safetensors",
]

# role -> file patterns, relative to the folder; also what is downloaded of a hub repository.
PATTERNS = {
    "diffusion": [
        "model_index.json",
        *(f"{part}/{name}" for part, names in DIFFUSION.items() for name in names),
    ],
    "language": TEXT + WEIGHTS,
    "writer": TEXT + WEIGHTS,
    "embedder": [
        *TEXT,
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
        "*.pth",
        "inception2048/*.pth",
        *(f"{part}/{name}" for part in ("dinov2", "clip") for name in TEXT + WEIGHTS),
    ],
}


def copy_model(role: str, origin: Path, target: Path, key: str) -> list[Path]:
    """Copy what a role needs of a model folder (classifier, vision: or of one weights file) and check it first.

    Returns the copies, sorted. Fails in one line naming the missing, broken or pickled file; `key` (params key and
    source) starts that line.
    """
    if origin.is_file():
        if role not in ("classifier", "vision") or origin.suffix not in (".safetensors", *PICKLED):
            exit_with_error(f"{key}: is a file; a {role} is a folder in its library's own layout")
        root = origin.parent
        files = {
            origin: "model.safetensors"
            if role == "classifier"
            else "inception2048/model.safetensors"
        }
    else:
        root = origin
        files = {
            file: file.relative_to(root).as_posix()
            for pattern in PATTERNS[role]
            for file in root.glob(pattern)
        }
        for name in HALF * (role == "diffusion"):
            if (root / name).is_file() and not list(
                (root / name).parent.glob("*model.safetensors*")
            ):
                files[root / name] = name.replace(".fp16", "")
        if {"model.safetensors", "inception2048/model.safetensors"}.intersection(
            files.values()
        ):  # no need of the pickle
            files = {file: name for file, name in files.items() if file.suffix != ".pth"}
    check_layout(role, root, files, key)
    for file, name in sorted(files.items()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in PICKLED:
            convert(file, target, key)
        else:
            shutil.copyfile(file, target / name)  # follows the hub cache's links
    if role == "diffusion":
        only_parts(target / "model_index.json")
    return sorted(file for file in target.rglob("*") if file.is_file())


def check_layout(role: str, root: Path, files: dict[Path, str], key: str) -> None:
    """Name the first file of a role's layout that is missing or unreadable. files: what is there -> its name in the copy."""
    names = set(files.values())
    parts = {
        "diffusion": ["unet/", "vae/", "text_encoder/"],
        "classifier": [],
        "vision": [part for part in ("dinov2/", "clip/") if (root / part).is_dir()],
    }.get(role, [""])
    if role == "diffusion":
        need(names, ["model_index.json"], root, key)
        need(names, ["scheduler/scheduler_config.json"], root, key)
        need(names, ["tokenizer/vocab.json", "tokenizer/tokenizer.json"], root, key)
    elif role in ("language", "writer"):
        need(names, ["tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"], root, key)
    elif role == "vision" and not names:
        exit_with_error(
            f"{key}: none of inception2048/model.safetensors, {INCEPTION}, dinov2/ and clip/ is in it"
        )
    elif role == "classifier" and not names:
        need(names, ["model.safetensors"], root, key)
    for part in parts:
        need(names, [part + "config.json"], root, key)
        stem = part + ("diffusion_pytorch_model" if part in ("unet/", "vae/") else "model")
        need(names, [f"{stem}.safetensors", f"{stem}.safetensors.index.json"], root, key)
        if f"{stem}.safetensors" not in names:
            shards = parsed(root / f"{stem}.safetensors.index.json", key)
            for shard in sorted(set((shards.get("weight_map") or {}).values())):
                need(names, [part + shard], root, key)
    for file, name in files.items():
        if file.suffix == ".json":
            found = parsed(file, key)
            if lacking := [
                entry
                for entry in NAMED.get(name, ())
                if role != "classifier" and entry not in found
            ]:
                exit_with_error(
                    f"{key}: {name} does not say {lacking[0]}: it is not what the library saves"
                )
        elif file.suffix == ".safetensors":
            readable(file, key)


def need(names: set[str], either: list[str], root: Path, key: str) -> None:
    """Fail unless one of `either` is among the names; say so when there is only a pickle of it."""
    if names.intersection(either):
        return
    pickles = [
        file.name for file in sorted((root / either[0]).parent.glob("*")) if file.suffix in PICKLED
    ]
    if pickles and either[0].endswith(".safetensors"):
        exit_with_error(
            f"{key}: {either[0]} is missing, there is only {pickles[0]}: a pickle can run code when it is read; "
            "convert it to safetensors"
        )
    exit_with_error(f"{key}: {' or '.join(either)} is missing")


def parsed(path: Path, key: str) -> dict:
    """A JSON file; `{}` where it holds something else than an object (modules.json is a list)."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as fault:
        exit_with_error(f"{key}: {path.parent.name}/{path.name} is not readable JSON ({fault})")
    return value if isinstance(value, dict) else {}


def readable(path: Path, key: str) -> None:
    """A safetensors file whose header fits its size and that holds a tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as tensors:
            if not list(tensors.keys()):
                exit_with_error(f"{key}: {path.name} holds no tensors")
    except (SafetensorError, OSError) as fault:
        exit_with_error(f"{key}: {path.parent.name}/{path.name} is not whole safetensors ({fault})")


def only_parts(index: Path) -> None:
    """Say in `model_index.json` that the parts we leave out (safety checker, ...) are not there."""
    parts = {
        name: [None, None] if isinstance(value, list) and name not in DIFFUSION else value
        for name, value in read_json(index).items()
    }
    if "requires_safety_checker" in parts:
        parts["requires_safety_checker"] = False
    write_json(index, parts)


def convert(pickle: Path, target: Path, key: str) -> None:
    """Turn an allow-listed pickle into safetensors in the folder `target`; any other is refused unread."""
    with open(pickle, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found not in PICKLES:
        exit_with_error(
            f"{key}: {pickle.name} is a pickle not on the allow-list (SHA-256 {found[:16]}...): convert it to safetensors"
        )
    from pickle import UnpicklingError

    import torch
    from safetensors.torch import save_file

    try:
        tensors = torch.load(pickle, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as fault:
        exit_with_error(f"{key}: {pickle.name} is not plain tensors ({str(fault).splitlines()[0]})")
    (target / PICKLES[found]).parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: value.clone().contiguous()
            for name, value in tensors.items()
            if isinstance(value, torch.Tensor)
        },
        target / PICKLES[found],
    )
