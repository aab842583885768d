"""Every external input has one `source`: where it comes from, and what it turned out to be (`SOURCE.json`)."""

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from stages.common.artifacts import write_json
from stages.runtime.errors import exit_with_error

# Folders that stages empty before they fill them: nothing that a user gives may lie in one.
OUTPUTS = [
    "data/papers",
    "data/imagery",
    "data/latents",
    "data/samples",
    "data/synthetic",
    "data/features",
    "models/base",
    "models/start",
    "models/scene",
    "models/llm",
    "models/index",
    "models/diffusion",
    "models/classifier",
    "metrics",
]


def kind(source: str) -> str:
    """embedded, none, path, hub or arxiv."""
    return source.partition(":")[0]


def local(source: str, key: str) -> Path:
    """The file or folder of a `path:` or `arxiv:` source: absolute, or relative to the repository; `$VAR` is expanded."""
    text = source.partition(":")[2]
    if text.startswith("$"):
        name, slash, rest = text[1:].partition("/")
        if name not in os.environ:
            exit_with_error(f"{key}: {source}: the environment variable {name} is not set")
        text = os.environ[name] + slash + rest
    path = Path(text).expanduser()
    if not path.exists():
        exit_with_error(f"{key}: {source}: no such file or folder")
    refuse_outputs(path, f"{key}: {source}")
    return path


def refuse_outputs(path: Path, shown: str) -> None:
    """End the stage where a file or folder holds, or lies in, what a run replaces. `shown` begins the line."""
    real = os.path.realpath(path) + os.sep
    for output, made in replaced(os.getcwd()):
        if real.startswith(made) or made.startswith(real):
            exit_with_error(
                f"{shown}: a run replaces {output}; keep what is yours in a folder of its own and name that"
            )


@cache
def replaced(root: str) -> list[tuple[str, str]]:
    """`OUTPUTS` and their unfinished selves, with where they really lie; once: a source may hold a million links."""
    return [
        (output, os.path.realpath(f"{root}/{output}{end}") + os.sep)
        for output in OUTPUTS
        for end in ("", ".part")
    ]


def visible(folder: Path, key: str, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """What lies below a folder, without hidden things (.git, .DS_Store). Links are followed, but not round in a circle.

    `key`: the params key that named the folder, for the line in which a link into the outputs ends the stage.
    """
    above |= {folder.resolve()}
    for path in (path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_symlink():
            refuse_outputs(path, f"{key}: {path}")
        if not os.path.isdir(path):
            yield path
        elif path.resolve() not in above:
            yield from visible(path, key, above)


def hub(source: str, key: str, repo_type: str, patterns: list[str]) -> tuple[Path, dict]:
    """Download the files of a `hub:<repo>[@revision]` source that match `patterns`.

    Returns the local snapshot folder and what it resolved to (repo, commit, license).
    """
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = source.partition(":")[2].partition("@")
    try:
        info = HfApi().repo_info(repo, repo_type=repo_type, revision=revision or None)
        folder = snapshot_download(
            repo, repo_type=repo_type, revision=info.sha, allow_patterns=patterns
        )
    except HFValidationError:
        exit_with_error(f"{key}: {source} is no hub name; write hub:<owner>/<name>[@revision]")
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
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        exit_with_error(
            f"{key}: {source} cannot be reached ({reason}); use path:<folder> with a copy you have"
        )
    card = getattr(info, "card_data", None) or {}
    return Path(folder), {"repo": repo, "commit": info.sha, "license": card.get("license")}


def record(folder: str | Path, source: str, **found) -> None:
    """Write `SOURCE.json` beside fetched data: the source and what it resolved to (no clock, host or absolute path)."""
    write_json(Path(folder) / "SOURCE.json", {"source": source, **found})


def hashes(paths: list[Path], root: Path | None = None) -> dict[str, str]:
    """File name (below `root`, where given) -> SHA-256, for SOURCE.json."""
    found = {}
    for path in paths:
        with open(path, "rb") as stream:
            name = path.relative_to(root).as_posix() if root else path.name
            name = os.fsencode(name).decode(errors="replace")  # a name need not be UTF-8; JSON must
            found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
