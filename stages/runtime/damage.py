"""Find out whether a file that cannot be read came damaged out of the DVC cache.

DVC checks out a truncated object without a word, and a new run of the stage that makes it, or
`dvc pull`, keeps the object: it has to be deleted first.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stages.runtime.dvc_lock import current_entries


class LockedFile(NamedTuple):
    """A file of an output in dvc.lock."""

    path: Path
    md5: str
    stage: str
    out: str  # the output: the file itself, or its folder


def explain_damage() -> str | None:
    """Say which input of this stage is damaged and what mends it; None if none is.

    An input is damaged if its MD5 is not the one in dvc.lock. Outside a run of DVC nothing counts
    as damaged: see `note_changed_file`.
    """
    changed = find_changed_file() if "DVC_STAGE" in os.environ else None
    return explain(changed) if changed else None


def note_changed_file() -> str:
    """Outside a run of DVC, name an output that is not that of dvc.lock; "" if none is.

    It may be damaged, or of a stage that was run by hand with other params.
    """
    changed = find_changed_file() if "DVC_STAGE" not in os.environ else None
    if changed is None:
        return ""
    return f"note: {changed.path} is not the file of dvc.lock (stage {changed.stage})"


def find_changed_file() -> LockedFile | None:
    """Return the first of `list_outputs` whose MD5 is another; None if there is none.

    Within a run of DVC, only inputs of its stage are looked at.
    """
    files = Path("dvc.lock"), Path("dvc.yaml")
    if not all(file.is_file() for file in files):
        return None
    from ruamel.yaml import YAML  # DVC's, which is here where its lock is

    contents = [YAML(typ="safe").load(file.read_text(encoding="utf-8")) for file in files]
    stages = current_entries(*(content.get("stages", {}) for content in contents))
    reader = stages.get(os.environ.get("DVC_STAGE", ""), {})
    inputs = [dep["path"] for dep in reader.get("deps", [])]
    for file in list_outputs(stages, cache_folder()):
        is_input = not inputs or any(file.path.is_relative_to(path) for path in inputs)
        if is_input and file.path.is_file() and hash_file(file.path) != file.md5:
            return file
    return None


def cache_folder() -> Path:
    """Return the folder of DVC's cached objects, which the config may place outside .dvc/cache."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    printed = subprocess.run(command, text=True, capture_output=True).stdout
    return Path(os.path.relpath(printed.strip() or ".dvc/cache")) / "files/md5"


def object_path(cache: Path, md5: str) -> Path:
    """Return where the cache keeps the file, or the list of a folder's files, of this MD5."""
    return cache / md5[:2] / md5[2:]


def list_outputs(stages: dict, cache: Path) -> Iterator[LockedFile]:
    """Yield each file of the outputs in dvc.lock."""
    for stage, entry in stages.items():
        for out in entry.get("outs", []):
            for path, md5 in list_files(out, cache):
                yield LockedFile(path, md5, stage, out["path"])


def list_files(out: dict, cache: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of an output in dvc.lock with their MD5; none if the cache has no list."""
    if not out["md5"].endswith(".dir"):
        yield Path(out["path"]), out["md5"]
        return
    listing = object_path(cache, out["md5"])
    if listing.is_file() and hash_file(listing) == out["md5"].removesuffix(".dir"):
        for file in json.loads(listing.read_text(encoding="utf-8")):
            yield Path(out["path"], file["relpath"]), file["md5"]


def hash_file(path: Path) -> str:
    """Return the MD5 of a file, as in dvc.lock."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def explain(file: LockedFile) -> str:
    """Say what mends a damaged file: its object in the cache, or what made it."""
    line = f"{file.path} is damaged: it is not what the stage {file.stage} wrote. "
    cached = object_path(cache_folder(), file.md5)
    if cached.is_file() and hash_file(cached) == file.md5:
        return f"{line}Type `rm -f {file.path}; dvc checkout {file.out}`"
    return f"{line}Type `rm -f {file.path} {cached}`, then `dvc pull {file.out}` or `dvc repro`"
