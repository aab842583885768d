"""Artefacts in the forms other tools read.

    python -m stages.export imagefolder train out/
    python -m stages.export llm out/

llm: the fine-tuned language model as one ordinary `transformers` folder: the adapter merged into its base.
imagefolder: PNGs + metadata.jsonl {file_name, text}, for `load_dataset("imagefolder", ...)`, the diffusers training scripts
and `fetch_imagery.source: path:out`. One of an image's captions (the first) is `text`; all of them stand in `captions`.
"""

import json
import re
import sys
from pathlib import Path

from stages.common.artefacts import replace, stream_rows
from stages.common.fail import fail
from stages.common.progress import progress

IMAGERY = Path("data/imagery")
LANGUAGE, LLM = Path("models/base/language"), Path("models/llm")


def imagefolder(split: str, folder: str) -> None:
    """Write a split of data/imagery as an image folder. The target must be new or empty."""
    if not (IMAGERY / split).is_dir():
        fail(f"export: no split {split!r} in {IMAGERY}; run `dvc repro fetch_imagery`, or choose train, valid or test")
    target = _empty(folder)
    lines, taken = [], set()
    for number, row in enumerate(progress(stream_rows(IMAGERY / split), what=split, unit="tile")):
        # A file name is data: it must not lead out of the folder.
        stem = re.sub(r"[^\w.-]", "_", re.sub(r"\.(png|jpe?g|tiff?)$", "", row["filename"], flags=re.I)).lstrip(".")
        name = f"{stem}.png" if stem and f"{stem}.png" not in taken else f"{stem}_{number:07d}.png"
        taken.add(name)
        (target / name).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": name, "text": row["captions"][0], "captions": row["captions"],
                                 "scene": row["scene"]}, ensure_ascii=False) + "\n")
    replace(target / "metadata.jsonl", "".join(lines).encode())


def llm(folder: str) -> None:
    """Write models/base/language with the adapter models/llm merged in, and its tokenizer. The target must be new or empty."""
    if not (LLM / "adapter_config.json").exists():
        fail(f"export: no adapter in {LLM}; run `dvc repro finetune_llm`")
    target = _empty(folder)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # From the unquantized base: merging into 4-bit weights would round the adapter away.
    base = AutoModelForCausalLM.from_pretrained(LANGUAGE)
    PeftModel.from_pretrained(base, LLM).merge_and_unload().save_pretrained(target)
    AutoTokenizer.from_pretrained(LANGUAGE).save_pretrained(target)


def _empty(folder: str) -> Path:
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        fail(f"export: {folder} exists and is not an empty folder")
    target.mkdir(parents=True, exist_ok=True)
    return target


def main(form: str = "", *arguments: str) -> None:
    match form, arguments:
        case "imagefolder", (split, folder):
            imagefolder(split, folder)
        case "llm", (folder,):
            llm(folder)
        case _:
            fail("export: use `python -m stages.export imagefolder <split> <folder>` or `python -m stages.export llm <folder>`")


if __name__ == "__main__":
    main(*sys.argv[1:])
