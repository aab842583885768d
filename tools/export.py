"""Artifacts in the forms other tools read.

    python -m tools.export imagefolder train out/
    python -m tools.export llm out/
    python -m tools.export hub <owner>                       with HF_TOKEN in the environment
    python -m tools.export hub <owner> --dry-run out/

hub: the synthetic data set and the models as repositories of <owner> on the Hugging Face hub, each with a card made from the run;
--dry-run writes the folders that would be uploaded, and uploads nothing.
llm: the fine-tuned language model as one ordinary `transformers` folder: the adapter merged into its base.
imagefolder: PNGs + metadata.jsonl {file_name, text}, for `load_dataset("imagefolder", ...)`, the diffusers training scripts
and `fetch_imagery.source: path:out`. One of an image's captions (the first) is `text`; all of them stand in `captions`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from stages.common.artifacts import stream_rows, write_atomically
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained
from stages.runtime.progress import log, progress_bar

IMAGERY = Path("data/imagery")
LANGUAGE, LLM = Path("models/base/language"), Path("models/llm")


def imagefolder(split: str, folder: str) -> None:
    """Write a split of data/imagery as an image folder. The target must be new or empty."""
    if not (IMAGERY / split).is_dir():
        exit_with_error(
            f"export: no split {split!r} in {IMAGERY}; run `dvc repro fetch_imagery`, or choose train, valid or test"
        )
    target = _empty(folder)
    lines, taken = [], set()
    for number, row in enumerate(
        progress_bar(stream_rows(IMAGERY / split), what=split, unit="tile")
    ):
        # A file name is data: it must not lead out of the folder.
        stem = re.sub(
            r"[^\w.-]", "_", re.sub(r"\.(png|jpe?g|tiff?)$", "", row["filename"], flags=re.I)
        ).lstrip(".")
        stem = stem.encode()[:200].decode(
            errors="ignore"
        )  # no file system takes a name of more than 255 bytes
        name = f"{stem}.png" if stem and f"{stem}.png" not in taken else f"{stem}_{number:07d}.png"
        taken.add(name)
        (target / name).write_bytes(row["image"]["bytes"])
        lines.append(
            json.dumps(
                {
                    "file_name": name,
                    "text": row["captions"][0],
                    "captions": row["captions"],
                    "scene": row["scene"],
                },
                ensure_ascii=False,
            )
            + "\n"
        )
    write_atomically(target / "metadata.jsonl", "".join(lines).encode())


def llm(folder: str) -> None:
    """Write models/base/language with the adapter models/llm merged in, and its tokenizer. The target must be new or empty."""
    if not (LLM / "adapter_config.json").exists():
        exit_with_error(f"export: no adapter in {LLM}; run `dvc repro finetune_llm`")
    target = _empty(folder)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # From the unquantized base: merging into 4-bit weights would round the adapter away.
    base = load_pretrained(AutoModelForCausalLM, LANGUAGE)
    PeftModel.from_pretrained(base, LLM).merge_and_unload().save_pretrained(target)
    AutoTokenizer.from_pretrained(LANGUAGE).save_pretrained(target)


def hub(owner: str, folder: str | None = None) -> None:
    """Write the upload folders below `folder`; without one, write them to a temporary place and upload them."""
    from stages.params import load
    from stages.publishing import folders

    if missing := [
        kind["path"] for kind in folders.KINDS.values() if not Path(kind["path"]).exists()
    ]:
        exit_with_error(
            f"export: {missing[0]} is missing; run `dvc repro` or `dvc pull {missing[0]}`"
        )
    commit, classes = (
        published_commit([kind["path"] for kind in folders.KINDS.values()], strict=folder is None),
        list(load().classes),
    )
    if folder is None and not os.environ.get("HF_TOKEN"):
        exit_with_error(
            "export: set HF_TOKEN in the environment to a token that may write (or look first: --dry-run <folder>)"
        )
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else _empty(folder)
        for name in folders.KINDS:
            folders.write(name, place / name, commit, classes, merge=llm)
        if folder is None:
            for name, kind in folders.KINDS.items():
                log(f"export: {upload(f'{owner}/{name}', kind['type'], place / name, commit)}")


def published_commit(paths: list[str], strict: bool) -> str:
    """The commit that the cards name. Where the run on disk is not the committed one, that is an error, or (not `strict`) is said."""

    def told(*command: str) -> str:
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode:
            exit_with_error(f"export: {' '.join(command[:2])}: {done.stderr.strip()[-300:]}")
        return done.stdout

    commit = told("git", "rev-parse", "HEAD").strip()
    changed = [
        line[3:]
        for line in told(
            "git", "status", "--porcelain", "--", "params.yaml", "dvc.lock", "metrics", "stages"
        ).splitlines()
    ]
    data = json.loads(told("dvc", "data", "status", "--json")).get("uncommitted", {})
    touched = [
        path.rstrip("/")
        for state in ("added", "modified", "deleted")
        for path in data.get(state, [])
    ]
    changed += [path for path in touched if path in paths]
    if changed and strict:
        exit_with_error(
            f"export: {changed[0]} is not what the last commit has; commit your run (or `dvc checkout`): the cards name the commit"
        )
    return f"{commit} (with uncommitted changes)" if changed else commit


def upload(repo: str, kind: str, folder: Path, commit: str) -> str:
    """Make the repository hold just this folder; returns its address."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=os.environ["HF_TOKEN"])  # never the token file of `hf auth login`
    try:
        address = api.create_repo(repo, repo_type=kind, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            folder_path=folder,
            commit_message=f"Run of {commit}",
            delete_patterns="*",
        )
    except HFValidationError:
        exit_with_error(f"export: {repo} is no name of a repository on the hub")
    except (HfHubHTTPError, httpx2.HTTPError) as fault:
        status = getattr(getattr(fault, "response", None), "status_code", None)
        why = {401: "HF_TOKEN is not valid", 403: "HF_TOKEN may not write there"}.get(
            status, str(fault).partition("\n")[0]
        )
        exit_with_error(
            f"export: {repo} was not uploaded: {why}. Run it again: what the hub has already is not sent twice"
        )
    return str(address)


def _empty(folder: str) -> Path:
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        exit_with_error(f"export: {folder} exists and is not an empty folder")
    target.mkdir(parents=True, exist_ok=True)
    return target


def main(form: str = "", *arguments: str) -> None:
    match form, arguments:
        case "imagefolder", (split, folder):
            imagefolder(split, folder)
        case "llm", (folder,):
            llm(folder)
        case "hub", (owner,):
            hub(owner)
        case "hub", (owner, "--dry-run", folder):
            hub(owner, folder)
        case _:
            exit_with_error(
                "export: use `python -m tools.export imagefolder <split> <folder>`, `... llm <folder>` or "
                "`... hub <owner> [--dry-run <folder>]`"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
