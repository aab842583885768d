"""Artefacts in the forms other tools read.

    python -m stages.export imagefolder train out/

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


def imagefolder(split: str, folder: str) -> None:
    """Write a split of data/imagery as an image folder. The target must be new or empty."""
    if not (IMAGERY / split).is_dir():
        fail(f"export: no split {split!r} in {IMAGERY}; run `dvc repro fetch_imagery`, or choose train, valid or test")
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        fail(f"export: {folder} exists and is not an empty folder")
    target.mkdir(parents=True, exist_ok=True)
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


def main(form: str = "", *arguments: str) -> None:
    forms = {"imagefolder": imagefolder}
    if form not in forms or len(arguments) != 2:
        fail("export: use `python -m stages.export imagefolder <split> <folder>`")
    forms[form](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
